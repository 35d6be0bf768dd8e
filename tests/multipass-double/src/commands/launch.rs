//! `launch`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::networks::NETWORKS;
use super::{Context, mount};
use crate::args::Arguments;
use crate::daemon::{self, Serial, expect_io};
use crate::failure::{Done, Failure};
use crate::guest::image;
use crate::home::Home;
use crate::images::{self, Source};
use crate::instance;
use crate::knobs::Version;
use crate::print::screen::Event;
use crate::sizes;
use crate::state::{DEFAULTS, Instance, MINIMUMS, MINIMUMS_OF_MAIN, Phase, is_name};

const COMMAND: &str = "launch";
/// How long a machine that boots for the first time is Starting before it is Unknown.
const STARTING: Duration = Duration::from_secs(1);

/// What is asked for, as far as the client understands it.
struct Order {
    image: String,
    name: Option<String>,
    cpus: u32,
    memory: Option<(String, u64)>,
    disk: Option<(String, u64)>,
    user_data: Option<serde_yaml::Value>,
    networks: Vec<String>,
    mounts: Vec<(PathBuf, Option<String>)>,
    timeout: Option<Duration>,
}

/// `launch`.
pub(super) fn launch(context: &mut Context, arguments: &Arguments) -> Done {
    let order = understand(context, arguments)?;
    if let Some(timeout) = order.timeout {
        context.screen.show(Event::Deadline(timeout.as_secs(), "Timed out waiting for instance launch.\n".to_owned()));
    }
    let name = carry_out(context, &order).map_err(|failure| context.stilled(failure))?;
    context.screen.still();
    let place = if context.knobs.version == Version::Main { " in zone1" } else { "" };
    context.screen.out(format!("Launched: {name}{place}\n"));
    context.screen.still();
    for (source, target) in &order.mounts {
        let folder = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let target = target.clone().unwrap_or_else(|| format!("/home/ubuntu/{folder}"));
        mount::add(context, &name, source, &target, &[], &[], false)?;
    }
    Ok(())
}

fn understand(context: &mut Context, arguments: &Arguments) -> Result<Order, Failure> {
    if arguments.positional.len() > 1 {
        return Err(Failure::usage("Too many arguments supplied"));
    }
    let image = arguments.positional.first().cloned().unwrap_or_default();
    if images::is_malformed(&image) {
        return Err(Failure::usage("Invalid remote and source image name supplied"));
    }
    let cpus = match arguments.value("cpus") {
        None => DEFAULTS.0,
        Some(text) => {
            text.parse::<i32>().ok().filter(|cpus| *cpus > 0).and_then(|cpus| u32::try_from(cpus).ok()).ok_or_else(
                || Failure::usage(format!("Error: invalid CPU count '{text}', need a positive integer value.")),
            )?
        }
    };
    if arguments.has("mem") {
        if arguments.has("memory") {
            return Err(Failure::usage(
                "Error: invalid option(s) used for memory allocation. Please use \"--memory\" to specify amount of memory \
                 to allocate.",
            ));
        }
        context.screen.err(
            "Warning: the \"--mem\" long option is deprecated in favour of \"--memory\". Please update any scripts, etc.\n",
        );
    }
    let memory = size(arguments.value("memory").or(arguments.value("mem")))?;
    let disk = size(arguments.value("disk"))?;
    let networks = networks(arguments)?;
    let mounts = arguments.values("mount").map(host_folder).collect::<Result<_, _>>()?;
    let timeout = super::timeout(arguments)?.map(Duration::from_secs);
    let user_data = arguments.value("cloud-init").map(|source| user_data(context, source)).transpose()?;
    let name = arguments.value("name").filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(Order { image, name, cpus, memory, disk, user_data, networks, mounts, timeout })
}

fn size(text: Option<&str>) -> Result<Option<(String, u64)>, Failure> {
    text.map(|text| match sizes::parse(text) {
        Some(bytes) => Ok((text.to_owned(), bytes)),
        None => Err(Failure::exception(&sizes::complaint(text))),
    })
    .transpose()
}

fn networks(arguments: &Arguments) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for given in arguments.values("network") {
        let mut name = None;
        for field in given.split(',') {
            match field.split_once('=') {
                None if !field.is_empty() => name = Some(field.to_owned()),
                Some(("name", value)) => name = Some(value.to_owned()),
                Some(("mode", "auto" | "manual")) => {}
                Some(("mode", mode)) => {
                    return Err(Failure::usage(format!("error: Bad network mode '{mode}', need 'auto' or 'manual'")));
                }
                Some(("mac", mac)) => {
                    let parts: Vec<&str> = mac.split(':').collect();
                    let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
                    if parts.len() != 6 || !parts.iter().all(is_byte) {
                        return Err(Failure::usage(format!("error: Invalid MAC address: {mac}")));
                    }
                }
                Some((field, _)) => return Err(Failure::usage(format!("error: Bad network field: {field}"))),
                None => {}
            }
        }
        names.push(name.ok_or_else(|| Failure::usage("error: Bad network definition, need at least a 'name' field"))?);
    }
    if arguments.has("bridged") {
        names.push("bridged".to_owned());
    }
    Ok(names)
}

fn host_folder(given: &str) -> Result<(PathBuf, Option<String>), Failure> {
    let (source, target) =
        given.split_once(':').map_or((given, None), |(source, target)| (source, Some(target.to_owned())));
    let path = Path::new(source);
    let lacks = match (path.exists(), path.is_dir()) {
        (false, _) => "does not exist",
        (true, false) => "is not a directory",
        (true, true) => return Ok((path.canonicalize().unwrap_or_else(|_| path.to_owned()), target)),
    };
    Err(Failure::usage(format!("Mount source path \"{source}\" {lacks}")))
}

/// Reads and understands user-data, which goes on without what YAML does not carry.
fn user_data(context: &Context, source: &str) -> Result<serde_yaml::Value, Failure> {
    let bad = || {
        Failure::usage(format!(
            "Could not load cloud-init configuration: bad file: {source}\nPlease ensure that Multipass can read it."
        ))
    };
    let mut text = String::new();
    if source == "-" {
        std::io::stdin().read_to_string(&mut text).map_err(|_| bad())?;
    } else if source.starts_with("http://") || source.starts_with("https://") {
        let text = format!("failed to download from '{source}': Error opening {source}");
        return Err(Failure::exception(&text));
    } else {
        if context.knobs.snap && is_hidden_from_snap(Path::new(source)) {
            return Err(bad());
        }
        text = fs::read_to_string(source).map_err(|_| bad())?;
    }
    serde_yaml::from_str(&text).map_err(|error| {
        let place = error.location().map_or((1, 1), |place| (place.line(), place.column()));
        Failure::usage(format!(
            "Could not load cloud-init configuration: yaml-cpp: error at line {}, column {}: {error}",
            place.0, place.1
        ))
    })
}

/// A snap sees what is not hidden below the user's home, and nothing else.
fn is_hidden_from_snap(path: &Path) -> bool {
    let path = std::path::absolute(path).unwrap_or_default();
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    match path.strip_prefix(&home) {
        Ok(rest) => home == Path::new("/root") || rest.iter().any(|part| part.to_string_lossy().starts_with('.')),
        Err(_) => true,
    }
}

/// Does all of it, and gives the instance's name.
fn carry_out(context: &mut Context, order: &Order) -> Result<String, Failure> {
    let no = |text: String| Failure::daemon(COMMAND, text);
    let mut serial = context.daemon(COMMAND)?;
    check(context, &serial, order)?;
    let source = images::look_up(&context.knobs, &order.image).map_err(no)?;
    let name = match &order.name {
        Some(name) => name.clone(),
        None => images::pet_name(),
    };
    if serial.state.instances.contains_key(&name) {
        return Err(no(format!("instance \"{name}\" already exists")));
    }
    if serial.state.preparing.contains_key(&name) {
        return Err(no(format!("instance \"{name}\" is being prepared")));
    }
    serial.state.preparing.insert(name.clone(), std::process::id());
    serial.save();
    drop(serial);
    let prepared = prepare(context, order, &name, &source).and_then(|image| {
        context.screen.message(&format!("Configuring {name}"));
        if order.user_data.as_ref().is_some_and(|data| !data.is_mapping() && !data.is_null()) {
            return Err(no("operator[] call on a scalar (key: \"users\")".to_owned()));
        }
        Ok(image)
    });
    let mut serial = daemon::enter(&context.home, &context.knobs, COMMAND)?;
    serial.state.preparing.remove(&name);
    if prepared.is_err() {
        serial.state.vault.remove(&name);
    }
    let image = prepared.inspect_err(|_| serial.save())?;
    context.phase("launch.configure");
    create(context, &mut serial, order, &name, image);
    drop(serial);
    wait(context, order, &name)?;
    Ok(name)
}

fn check(context: &Context, serial: &Serial, order: &Order) -> Done {
    let (memory, disk) = if context.knobs.version == Version::Main { MINIMUMS_OF_MAIN } else { MINIMUMS };
    let bridged = serial.state.setting("local.bridged-network");
    if order.networks.iter().any(|network| network == "bridged") && bridged.is_empty() {
        let text = "You have to `multipass set local.bridged-network=<name>` to use the \"bridged\" shortcut.";
        return Err(Failure::daemon(COMMAND, text));
    }
    // Only the last of several is said.
    let mut wrong = None;
    if let Some((text, _)) = order.memory.as_ref().filter(|(_, bytes)| *bytes < memory) {
        wrong = Some(format!("Invalid memory size value supplied: {text}."));
    }
    if let Some((text, _)) = order.disk.as_ref().filter(|(_, bytes)| *bytes < disk) {
        wrong = Some(format!("Invalid disk size value supplied: {text}."));
    }
    if let Some(name) = order.name.as_ref().filter(|name| !is_name(name)) {
        wrong = Some(format!("Invalid instance name supplied: {name}"));
    }
    if order.networks.iter().any(|network| network != "bridged" && !NETWORKS.contains(&network.as_str())) {
        wrong = Some("Invalid network options supplied".to_owned());
    }
    match wrong {
        Some(wrong) => Err(Failure::daemon(COMMAND, format!("Invalid arguments supplied\n{wrong}"))),
        None => Ok(()),
    }
}

/// Gets the image ready. Nobody else waits for that, and nobody sees it.
fn prepare(context: &mut Context, order: &Order, name: &str, source: &Source) -> Result<crate::state::Image, Failure> {
    let no = |text: String| Failure::daemon(COMMAND, text);
    context.screen.message(&format!("Creating {name}"));
    if let Source::File(path) = source
        && !path.exists()
    {
        return Err(no(format!("Custom image `{}` does not exist.", path.display())));
    }
    let serial = daemon::hold(&context.home);
    let cached = serial.state.cached.contains(&source.key());
    drop(serial);
    match source {
        Source::File(_) => context.screen.message(&format!("Preparing image for {name}")),
        _ if cached => {}
        _ => {
            download(context, name)?;
            context.screen.message("Verifying image: ");
            context.phase("launch.verify");
            context.screen.message(&format!("Preparing image for {name}"));
            let mut serial = daemon::hold(&context.home);
            serial.state.cached.insert(source.key());
            serial.save();
        }
    }
    context.phase("launch.prepare");
    let image = source.image();
    let mut serial = daemon::hold(&context.home);
    serial.state.vault.insert(name, &image.hash);
    serial.save();
    if matches!(source, Source::File(_)) {
        measure(&context.home, &serial, name, &image.hash).map_err(no)?;
    }
    drop(serial);
    if let Some((_, bytes)) = order.disk.as_ref().filter(|(_, bytes)| *bytes < images::LEAST) {
        let least = images::LEAST;
        return Err(no(format!("Requested disk ({bytes} bytes) below minimum for this image ({least} bytes)")));
    }
    Ok(image)
}

/// Finds out how large an image is that is a file: by the disk of any instance that was made from such a one. The QEMU
/// of one that runs has it locked.
fn measure(home: &Home, serial: &Serial, name: &str, digest: &str) -> Result<(), String> {
    let Some(first) = serial.state.vault.first(digest).filter(|first| *first != name) else { return Ok(()) };
    let runs = |found: &Instance| found.phase.needs_process() && found.phase != Phase::Suspended;
    if !serial.state.instances.get(first).is_some_and(runs) {
        return Ok(());
    }
    let disk = home.instance(first).join("image.qcow2");
    let disk = disk.display();
    Err(format!(
        "Cannot get image info: qemu-img failed (Process returned exit code: 1) with output:\nqemu-img: Could not open \
         '{disk}': Failed to get shared \"write\" lock\nIs another process using the image [{disk}]?\n"
    ))
}

/// The one phase that ends with its client.
fn download(context: &mut Context, name: &str) -> Done {
    let steps = 10;
    let whole = context.knobs.latency("launch.download");
    for step in 1..=steps {
        // So small a step that a client that goes is missed soon.
        let begun = Instant::now();
        while begun.elapsed() < whole / steps {
            thread::sleep((whole / steps).min(Duration::from_millis(20)));
            if !context.screen.is_watched() {
                let mut serial = daemon::hold(&context.home);
                serial.state.preparing.remove(name);
                serial.save();
                return Err(Failure::daemon(COMMAND, "the client is gone"));
            }
        }
        context.screen.still();
        context.screen.out(format!("\rRetrieving image: {}%", step * 10));
    }
    daemon::phase(
        &context.home,
        &crate::knobs::Knobs { latency: BTreeMap::new(), ..context.knobs.clone() },
        "launch.download",
    );
    Ok(())
}

fn create(context: &Context, serial: &mut Serial, order: &Order, name: &str, image: crate::state::Image) {
    let made = Instance {
        phase: Phase::Starting,
        deleted: false,
        image,
        cpus: order.cpus,
        memory: order.memory.as_ref().map_or(DEFAULTS.1, |(_, bytes)| *bytes),
        disk: order.disk.as_ref().map_or(DEFAULTS.2, |(_, bytes)| *bytes),
        mounts: BTreeMap::new(),
        snapshots: Vec::new(),
        snapshots_taken: 0,
        parent: None,
        clones: 0,
        ipv4: serial.state.next_address(),
        uuid: uuid::Uuid::new_v4().to_string(),
        bridged: !order.networks.is_empty(),
        shutdown_at: None,
        autostart: false,
    };
    let home = &context.home;
    // Of an instance of that name that was purged nothing is left.
    drop(fs::remove_dir_all(home.instance(name)));
    image::make_disk(home, name);
    plant(home, name, name, order.user_data.as_ref());
    instance::boot(home, &context.knobs, name, &made);
    serial.state.instances.insert(name.to_owned(), made);
    serial.save();
}

/// Lays down what cloud-init is told.
pub(super) fn plant(home: &Home, name: &str, id: &str, user_data: Option<&serde_yaml::Value>) {
    let seed = home.disk(name).join("var/lib/cloud/seed/nocloud");
    expect_io(fs::create_dir_all(&seed), "make a folder for user-data");
    let meta = format!("#cloud-config\ninstance-id: {id}\nlocal-hostname: {name}\ncloud-name: multipass\n");
    expect_io(fs::write(seed.join("meta-data"), meta), "write meta-data");
    if let Some(data) = user_data {
        let text = serde_yaml::to_string(data).unwrap_or_default();
        expect_io(fs::write(seed.join("user-data"), format!("#cloud-config\n{text}")), "write user-data");
    }
}

/// Waits for SSH, and for cloud-init. Nobody else waits for that.
fn wait(context: &mut Context, order: &Order, name: &str) -> Done {
    let no = |text: String| Failure::daemon(COMMAND, text);
    let home = context.home.clone();
    context.screen.message(&format!("Starting {name}"));
    context.phase("launch.boot");
    let limit = order.timeout.unwrap_or_else(|| context.knobs.limit("ssh"));
    let begun = Instant::now();
    let mut up = instance::await_up(&home, &context.knobs, name, limit.min(STARTING));
    if !up && instance::lives(&home, name) {
        become_phase(&home, name, Phase::Unknown);
        up = instance::await_up(&home, &context.knobs, name, limit.saturating_sub(begun.elapsed()));
    }
    if !up {
        let text = if instance::lives(&home, name) {
            "timed out waiting for response"
        } else {
            "shutdown called while starting"
        };
        return Err(Failure::errors(COMMAND, &[format!("{name}: {text}")]));
    }
    become_phase(&home, name, Phase::Running);
    context.screen.message("Waiting for initialization to complete");
    context.phase("launch.initialization");
    let finished = home.disk(name).join("var/lib/cloud/instance");
    let limit = order.timeout.unwrap_or_else(|| context.knobs.limit("cloud-init"));
    let begun = Instant::now();
    loop {
        // The link is the guest's, and leads nowhere from here.
        let id = fs::read_link(&finished).unwrap_or_default();
        let folder = home.disk(name).join(id.strip_prefix("/").unwrap_or(&id));
        if !id.as_os_str().is_empty() && folder.join("boot-finished").exists() {
            return Ok(());
        }
        if !instance::lives(&home, name) {
            return Err(no(format!("instance \"{name}\" is not running")));
        }
        if begun.elapsed() >= limit {
            return Err(Failure::errors(COMMAND, &["timed out waiting for initialization to complete".to_owned()]));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Has an instance be about something, unless it stopped or went meanwhile.
pub(super) fn become_phase(home: &Home, name: &str, phase: Phase) {
    let mut serial = daemon::hold(home);
    let still =
        |instance: &&mut Instance| matches!(instance.phase, Phase::Starting | Phase::Unknown | Phase::Restarting);
    if let Some(instance) = serial.state.instances.get_mut(name).filter(still) {
        instance.phase = phase;
        serial.save();
    }
}

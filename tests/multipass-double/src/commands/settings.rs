//! `get` and `set`.

use std::io::BufRead;
use std::time::Duration;

use super::{Context, lacking};
use crate::args::Arguments;
use crate::daemon::{self, Serial};
use crate::failure::{Done, Failure};
use crate::knobs::Version;
use crate::print::log_line;
use crate::sizes;
use crate::state::{MINIMUMS, MINIMUMS_OF_MAIN, Phase, State, is_name};

/// The settings of the daemon as a whole. To change one of them ends it.
const GLOBAL: [&str; 5] =
    ["local.bridged-network", "local.driver", "local.image.mirror", "local.passphrase", "local.privileged-mounts"];
/// The one that the client keeps.
const PRIMARY: &str = "client.primary-name";
/// What an instance can be given.
const OF_INSTANCE: [&str; 4] = ["bridged", "cpus", "disk", "memory"];
/// How long a daemon that was told to end is away, where the knobs do not say.
const AWAY: Duration = Duration::from_millis(300);
const UNBRIDGED: &str = "You have to `multipass set local.bridged-network=<name>` to use the \"bridged\" shortcut.";

/// What a key is of.
enum Key<'a> {
    Client,
    Global,
    Instance(&'a str, &'a str),
    Snapshot(&'a str, &'a str, &'a str),
    Unknown,
}

fn key(text: &str) -> Key<'_> {
    let parts: Vec<&str> = text.split('.').collect();
    match *parts.as_slice() {
        _ if text == PRIMARY => Key::Client,
        _ if GLOBAL.contains(&text) => Key::Global,
        ["local", instance, property] if OF_INSTANCE.contains(&property) => Key::Instance(instance, property),
        ["local", instance, snapshot, property @ ("name" | "comment")] => Key::Snapshot(instance, snapshot, property),
        _ => Key::Unknown,
    }
}

fn unrecognised(command: &str, text: &str) -> Failure {
    let said = format!("Unrecognized settings key: '{text}'");
    if text.starts_with("local.") { Failure::daemon(command, said) } else { Failure::usage(said) }
}

/// `get`.
pub(super) fn get(context: &mut Context, arguments: &Arguments) -> Done {
    if arguments.has("keys") {
        return keys(context);
    }
    let text = match arguments.positional.as_slice() {
        [] => {
            return Err(Failure::usage(
                "Multiple settings not implemented yet. Please try again with one setting key or just the `--keys` option \
                 for now.",
            ));
        }
        [text] => text,
        _ => return Err(Failure::usage("Need at most one setting key.")),
    };
    let value = match key(text) {
        Key::Client => daemon::hold(&context.home).state.setting(PRIMARY).to_owned(),
        Key::Unknown if !text.starts_with("local.") => return Err(unrecognised("get", text)),
        key => {
            let serial = context.daemon("get")?;
            read(&serial.state, &key, text)?
        }
    };
    let told = if value.is_empty() && !arguments.has("raw") { "<empty>" } else { &value };
    context.screen.out(format!("{told}\n"));
    Ok(())
}

fn read(state: &State, key: &Key, text: &str) -> Result<String, Failure> {
    let no = |said: String| Failure::daemon("get", said);
    match key {
        Key::Client | Key::Global => Ok(state.setting(text).to_owned()),
        Key::Unknown => Err(unrecognised("get", text)),
        Key::Instance(name, property) => {
            let found = state.instances.get(*name).ok_or_else(|| {
                no(format!("Cannot obtain instance settings; instance: {name}; reason: No such instance"))
            })?;
            match *property {
                "cpus" => Ok(found.cpus.to_string()),
                "memory" => Ok(sizes::human(found.memory)),
                "disk" => Ok(sizes::human(found.disk)),
                _ if state.setting("local.bridged-network").is_empty() => Err(no(UNBRIDGED.to_owned())),
                _ => Ok(found.bridged.to_string()),
            }
        }
        Key::Snapshot(name, snapshot, property) => {
            let found = state.instances.get(*name).ok_or_else(|| {
                no(format!("Cannot access snapshot settings; instance: {name}; reason: No such instance"))
            })?;
            let taken = found.snapshots.iter().find(|taken| taken.name == *snapshot).ok_or_else(|| {
                no(format!("Cannot access snapshot settings; reason: No such snapshot: {name}.{snapshot}"))
            })?;
            Ok(if *property == "name" { taken.name.clone() } else { taken.comment.clone() })
        }
    }
}

fn keys(context: &mut Context) -> Done {
    let mut keys = vec![PRIMARY.to_owned()];
    match context.daemon("get") {
        Err(_) => context.screen.err(log_line("remote settings", "Could not reach daemon.")),
        Ok(serial) => {
            keys.extend(GLOBAL.map(str::to_owned));
            for (name, found) in &serial.state.instances {
                keys.extend(OF_INSTANCE.map(|property| format!("local.{name}.{property}")));
                for taken in &found.snapshots {
                    keys.extend(["name", "comment"].map(|property| format!("local.{name}.{}.{property}", taken.name)));
                }
            }
        }
    }
    keys.sort();
    context.screen.out(keys.iter().map(|key| format!("{key}\n")).collect::<String>());
    Ok(())
}

/// `set`.
pub(super) fn set(context: &mut Context, arguments: &Arguments) -> Done {
    let [given] = arguments.positional.as_slice() else {
        return Err(Failure::usage("Need exactly one key-value pair (in <key>=<value> form)."));
    };
    let (text, value) = match given.split_once('=') {
        Some((_, value)) if value.contains('=') => return Err(Failure::usage("Bad key-value format.")),
        Some((text, value)) => (text.to_owned(), value.to_owned()),
        None => (given.clone(), ask_for(context, given)?),
    };
    match key(&text) {
        Key::Unknown if !text.starts_with("local.") => return Err(unrecognised("set", &text)),
        Key::Client => {
            let mut serial = daemon::hold(&context.home);
            serial.state.settings.insert(text, value);
            serial.save();
            return Ok(());
        }
        _ => {}
    }
    let done = write(context, &text, &value);
    context.screen.still();
    done
}

fn ask_for(context: &mut Context, text: &str) -> Result<String, Failure> {
    context.screen.out(format!("{text}: "));
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(count) if count > 0 => Ok(line.trim_end_matches('\n').to_owned()),
        _ => Err(Failure::usage("Failed to read value")),
    }
}

fn write(context: &mut Context, text: &str, value: &str) -> Done {
    let mut serial = context.daemon("set")?;
    match key(text) {
        Key::Client => {}
        Key::Unknown => return Err(unrecognised("set", text)),
        Key::Instance(name, property) => of_instance(context, &mut serial, (name, property), text, value)?,
        Key::Snapshot(name, snapshot, property) => of_snapshot(&mut serial, (name, snapshot, property), text, value)?,
        Key::Global => {
            if text == "local.driver" && !matches!(value, "qemu" | "lxd" | "libvirt") {
                return Err(Failure::daemon("set", format!("Invalid setting '{text}={value}': Invalid driver")));
            }
            let value = if text == "local.passphrase" { (!value.is_empty()).to_string() } else { value.to_owned() };
            if serial.state.setting(text) != value {
                serial.state.settings.insert(text.to_owned(), value);
                serial.save();
                drop(serial);
                restart_daemon(context);
                return Ok(());
            }
        }
    }
    serial.save();
    Ok(())
}

/// The daemon ends, and the service manager begins another. What runs is saved and goes on.
fn restart_daemon(context: &Context) {
    let latency = context.knobs.latency("set.restart");
    daemon::stop_now(&context.home);
    daemon::begin_later(&context.home, if latency.is_zero() { AWAY } else { latency });
}

fn of_instance(
    context: &Context,
    serial: &mut Serial,
    (name, property): (&str, &str),
    text: &str,
    value: &str,
) -> Done {
    let refused = |reason: &str| {
        let said = format!("Cannot update instance settings; instance: {name}; reason: {reason}");
        Err(Failure::daemon("set", said))
    };
    let invalid = |reason: &str| Err(Failure::daemon("set", format!("Invalid setting '{text}={value}': {reason}")));
    if serial.state.preparing.contains_key(name) {
        return refused("instance is being prepared");
    }
    let bridge = serial.state.setting("local.bridged-network").to_owned();
    let Some(found) = serial.state.instances.get_mut(name) else { return refused("No such instance") };
    if found.deleted {
        return refused("Instance is deleted");
    }
    if found.phase != Phase::Stopped {
        return refused("Instance must be stopped for modification");
    }
    if property == "cpus" {
        match value.parse::<u32>() {
            Ok(cpus) if cpus > 0 => found.cpus = cpus,
            _ => return invalid("Need a positive integer (in decimal format) of minimum 1"),
        }
        return Ok(());
    }
    if property == "bridged" {
        return match value {
            "true" | "yes" | "on" | "1" if bridge.is_empty() => Err(Failure::daemon("set", UNBRIDGED)),
            "true" | "yes" | "on" | "1" => {
                found.bridged = true;
                Ok(())
            }
            "false" | "no" | "off" | "0" if found.bridged => {
                invalid("Removing the bridged network is currently not supported")
            }
            "false" | "no" | "off" | "0" => Ok(()),
            _ => invalid("Invalid value, try \"true\" or \"false\""),
        };
    }
    let Some(bytes) = sizes::parse(value) else { return invalid(&sizes::complaint(value)) };
    let (memory, _) = if context.knobs.version == Version::Main { MINIMUMS_OF_MAIN } else { MINIMUMS };
    match property {
        _ if bytes == 0 => return invalid("Need a positive size."),
        "memory" if bytes < memory => {
            return invalid(&format!("Memory less than {}M minimum not allowed", memory / sizes::MIB));
        }
        "memory" => found.memory = bytes,
        _ if bytes < found.disk => return invalid("Disk can only be expanded"),
        _ => found.disk = bytes,
    }
    Ok(())
}

fn of_snapshot(serial: &mut Serial, (name, snapshot, property): (&str, &str, &str), text: &str, value: &str) -> Done {
    let no = |said: String| Err(Failure::daemon("set", said));
    if let Some(said) = lacking(&serial.state, name) {
        return no(said);
    }
    let found = serial.state.instances.get_mut(name).expect("it was just there");
    let taken = |wanted: &str| found.snapshots.iter().position(|taken| taken.name == wanted);
    let Some(index) = taken(snapshot) else { return no(format!("No such snapshot: {name}.{snapshot}")) };
    if property == "comment" {
        found.snapshots[index].comment = value.to_owned();
        return Ok(());
    }
    if !is_name(value) {
        return no(format!("Invalid setting '{text}={value}': Invalid snapshot name."));
    }
    match taken(value) {
        Some(other) if other != index => return no(format!("Snapshot already exists: {name}.{value}")),
        _ => {}
    }
    for taken in &mut found.snapshots {
        if taken.parent.as_deref() == Some(snapshot) {
            taken.parent = Some(value.to_owned());
        }
    }
    if found.parent.as_deref() == Some(snapshot) {
        found.parent = Some(value.to_owned());
    }
    found.snapshots[index].name = value.to_owned();
    Ok(())
}

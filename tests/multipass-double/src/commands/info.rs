//! `info`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::list::ask;
use super::{Context, Format, format};
use crate::args::Arguments;
use crate::failure::{Done, Failure};
use crate::instance;
use crate::print::{or_dashes, yaml, yaml_or_null};
use crate::sizes::{MIB, human};
use crate::state::{Instance, Mount, Snapshot};

/// What a guest's kernel keeps of the memory, in bytes.
const KERNEL: u64 = 43 * MIB;
/// What a fresh system takes of its disk and its memory, in bytes.
const USED: (u64, u64) = (410_923_008, 57_659_392);

/// What is told of one instance.
struct Told<'a> {
    name: &'a str,
    instance: &'a Instance,
    /// The instance itself was asked for.
    whole: bool,
    /// What only the machine knows.
    runtime: Option<Runtime>,
    /// The snapshots that were asked for.
    snapshots: Vec<&'a Snapshot>,
}

/// What a machine that runs says of itself.
struct Runtime {
    addresses: Vec<String>,
    release: String,
    cpus: u32,
    load: [f64; 3],
    disk: (u64, u64),
    memory: (u64, u64),
}

/// `info`: every machine that runs is asked over SSH, and one that does not answer fails all.
pub(super) fn info(context: &mut Context, arguments: &Arguments) -> Done {
    let format = format(arguments)?;
    if arguments.has("all") {
        context.screen.err(
            "Warning: the `--all` flag for the `info` command is deprecated. Please use `info` with no positional \
             arguments for the same effect.\n",
        );
    }
    let (snapshots, instances): (Vec<&String>, Vec<&String>) =
        arguments.positional.iter().partition(|name| name.contains('.'));
    if format == Format::Csv && !snapshots.is_empty() && !instances.is_empty() {
        return Err(Failure::usage("Mixed snapshot and instance arguments are not supported with CSV format"));
    }
    let mut serial = context.daemon("info")?;
    let errors: Vec<String> = arguments
        .positional
        .iter()
        .filter_map(|name| {
            let (instance, snapshot) =
                name.split_once('.').map_or((name.as_str(), None), |(name, taken)| (name, Some(taken)));
            match (serial.state.instances.get(instance), snapshot) {
                (None, _) => Some(format!("instance \"{instance}\" does not exist")),
                (Some(found), Some(taken)) if !found.snapshots.iter().any(|known| known.name == taken) => {
                    Some(format!("No such snapshot: {name}"))
                }
                _ => None,
            }
        })
        .collect();
    if !errors.is_empty() {
        return Err(Failure::errors("info", &errors));
    }
    let everything = arguments.positional.is_empty();
    let only_snapshots = arguments.has("snapshots");
    let asked = |name: &String| !only_snapshots && (everything || instances.contains(&name));
    let mut runtimes = BTreeMap::new();
    let names: Vec<String> = serial.state.instances.keys().filter(|name| asked(name)).cloned().collect();
    for name in names {
        let found = &serial.state.instances[&name];
        if found.phase.is_running() && !found.deleted && !arguments.has("no-runtime-information") {
            let addresses = ask(context, "info", &mut serial.state, &name).inspect_err(|_| serial.save())?;
            let trouble = match (instance::is_up(&context.home, &name), instance::is_frozen(&context.home, &name)) {
                (true, false) => None,
                (false, _) => Some("Connection refused"),
                (true, true) => Some("Timeout connecting to the instance"),
            };
            if let Some(trouble) = trouble {
                return Err(Failure::daemon("info", format!("ssh connection failed: '{trouble}'")));
            }
            runtimes.insert(name.clone(), runtime(&serial.state.instances[&name], addresses));
        }
    }
    let told = serial.state.instances.iter().filter_map(|(name, found)| {
        let wants_all = only_snapshots && (everything || instances.contains(&name));
        let wanted = |taken: &&Snapshot| wants_all || snapshots.contains(&&format!("{name}.{}", taken.name));
        let told = Told {
            name,
            instance: found,
            whole: asked(name),
            runtime: runtimes.remove(name),
            snapshots: found.snapshots.iter().filter(wanted).collect(),
        };
        (told.whole || !told.snapshots.is_empty()).then_some(told)
    });
    let told: Vec<Told> = told.collect();
    match format {
        Format::Json => as_json(context, &told),
        Format::Table => as_table(context, &told, only_snapshots),
        Format::Csv => as_csv(context, &told),
        Format::Yaml => as_yaml(context, &told),
    }
    Ok(())
}

fn runtime(instance: &Instance, addresses: Vec<String>) -> Runtime {
    let release = std::fs::read_to_string("/usr/lib/os-release").unwrap_or_default();
    let release =
        release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    Runtime {
        addresses,
        release: release.to_owned(),
        cpus: instance.cpus,
        load: [0.08, 0.02, 0.01],
        disk: (USED.0, instance.disk / 10_000 * 9_726),
        memory: (USED.1, instance.memory.saturating_sub(KERNEL)),
    }
}

/// A date as C's `%c %Z` gives it.
fn date(context: &Context, seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default().to_zoned(TimeZone::system());
    let plain = std::env::var("LC_ALL").is_ok_and(|locale| locale == "C" || locale == "POSIX");
    let zone = if std::env::var("TZ").is_ok_and(|zone| zone == "UTC") {
        "UTC".to_owned()
    } else {
        time.strftime("%Z").to_string()
    };
    match context.knobs.localised && !plain {
        true => format!("{} {zone}", time.strftime("%d.%m.%Y %H:%M:%S")),
        false => format!("{} {zone}", time.strftime("%a %b %e %H:%M:%S %Y")),
    }
}

fn children<'a>(told: &'a Told, taken: &Snapshot) -> Vec<&'a str> {
    let is_child = |other: &&Snapshot| other.parent.as_ref() == Some(&taken.name);
    told.instance.snapshots.iter().filter(is_child).map(|other| other.name.as_str()).collect()
}

fn mount_json((target, mount): (&String, &Mount)) -> (String, Value) {
    let told = json!({ "gid_mappings": mount.gids, "source_path": mount.source, "uid_mappings": mount.uids });
    (target.clone(), told)
}

fn as_json(context: &mut Context, all: &[Told]) {
    let mut info = Map::new();
    for told in all {
        let mut entry = Map::new();
        if told.whole {
            entry = instance_json(context, told);
        }
        if !told.snapshots.is_empty() {
            let snapshots: Map<String, Value> =
                told.snapshots.iter().map(|taken| (taken.name.clone(), snapshot_json(context, told, taken))).collect();
            entry.insert("snapshots".to_owned(), snapshots.into());
        }
        info.insert(told.name.to_owned(), entry.into());
    }
    context.print_json(&json!({ "errors": [], "info": info }));
}

fn instance_json(context: &Context, told: &Told) -> Map<String, Value> {
    let found = told.instance;
    let mounts: Map<String, Value> = found.mounts.iter().map(mount_json).collect();
    let mut entry = json!({
        "cpu_count": "", "disks": { "sda1": {} }, "image_hash": found.image.hash, "image_release": found.image.release,
        "ipv4": [], "load": [], "memory": {}, "mounts": mounts, "release": "", "state": found.told(),
    });
    if context.knobs.has("snapshots") {
        entry["snapshot_count"] = found.snapshots.len().to_string().into();
    }
    if let Some(runtime) = &told.runtime {
        entry["cpu_count"] = runtime.cpus.to_string().into();
        entry["disks"]["sda1"] = json!({ "total": runtime.disk.1.to_string(), "used": runtime.disk.0.to_string() });
        entry["ipv4"] = json!(runtime.addresses);
        entry["load"] = json!(runtime.load);
        entry["memory"] = json!({ "total": runtime.memory.1, "used": runtime.memory.0 });
        entry["release"] = json!(runtime.release);
    }
    match entry {
        Value::Object(entry) => entry,
        _ => Map::new(),
    }
}

fn snapshot_json(context: &Context, told: &Told, taken: &Snapshot) -> Value {
    let mounts: Map<String, Value> =
        taken.mounts.iter().map(|(target, mount)| (target.clone(), json!({ "source_path": mount.source }))).collect();
    json!({
        "children": children(told, taken), "comment": taken.comment, "cpu_count": taken.cpus.to_string(),
        "created": date(context, taken.created), "disk_space": human(taken.disk), "memory_size": human(taken.memory),
        "mounts": mounts, "parent": taken.parent.clone().unwrap_or_default(), "size": "",
    })
}

fn as_table(context: &mut Context, all: &[Told], only_snapshots: bool) {
    if all.is_empty() {
        context.screen.out(if only_snapshots { "No snapshots found.\n" } else { "No instances found.\n" });
        return;
    }
    let instances = all.iter().filter(|told| told.whole).map(|told| instance_table(context, told));
    let snapshots = all.iter().flat_map(|told| told.snapshots.iter().map(|taken| snapshot_table(context, told, taken)));
    let parts: Vec<String> = instances.chain(snapshots).collect();
    context.screen.out(parts.join("\n"));
}

fn row(label: &str, value: &str) -> String {
    format!("{:<16}{value}\n", format!("{label}:"))
}

fn instance_table(context: &Context, told: &Told) -> String {
    let found = told.instance;
    let mut text = row("Name", told.name) + &row("State", found.told());
    if context.knobs.has("snapshots") {
        text += &row("Snapshots", &found.snapshots.len().to_string());
    }
    let runtime = told.runtime.as_ref();
    let addresses = runtime.map(|runtime| runtime.addresses.join("\n                ")).unwrap_or_default();
    text += &row("IPv4", or_dashes(&addresses));
    text += &row("Release", runtime.map_or("--", |runtime| &runtime.release));
    let hash: String = found.image.hash.chars().take(12).collect();
    text += &match found.image.release.as_str() {
        "" => row("Image hash", &hash),
        release => row("Image hash", &format!("{hash} (Ubuntu {release})")),
    };
    let all = runtime.map(|runtime| {
        let usage = |(used, total): (u64, u64)| format!("{} out of {}", human(used), human(total));
        [runtime.cpus.to_string(), load(runtime), usage(runtime.disk), usage(runtime.memory)]
    });
    let all = all.unwrap_or_else(|| ["--"; 4].map(str::to_owned));
    for (label, value) in ["CPU(s)", "Load", "Disk usage", "Memory usage"].iter().zip(&all) {
        text += &row(label, value);
    }
    text + &mounts_table(&found.mounts, true)
}

fn load(runtime: &Runtime) -> String {
    runtime.load.map(|load| format!("{load:.2}")).join(" ")
}

fn mounts_table(mounts: &BTreeMap<String, Mount>, with_maps: bool) -> String {
    if mounts.is_empty() {
        return row("Mounts", "--");
    }
    let width = mounts.values().map(|mount| mount.source.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (index, (target, mount)) in mounts.iter().enumerate() {
        let label = if index == 0 { "Mounts:" } else { "" };
        text += &format!("{label:<16}{:<width$} => {target}\n", mount.source);
        if with_maps {
            text += &format!(
                "{:<20}UID map: {}\n{:<20}GID map: {}\n",
                "",
                mount.uids.join(", "),
                "",
                mount.gids.join(", ")
            );
        }
    }
    text
}

fn snapshot_table(context: &Context, told: &Told, taken: &Snapshot) -> String {
    let comment = taken.comment.replace('\n', "\n                ");
    [
        row("Snapshot", &taken.name),
        row("Instance", told.name),
        row("CPU(s)", &taken.cpus.to_string()),
        row("Disk space", &human(taken.disk)),
        row("Memory size", &human(taken.memory)),
        mounts_table(&taken.mounts, false),
        row("Created", &date(context, taken.created)),
        row("Parent", or_dashes(taken.parent.as_deref().unwrap_or_default())),
        row("Children", or_dashes(&children(told, taken).join("\n                "))),
        row("Comment", or_dashes(&comment)),
    ]
    .concat()
}

fn as_csv(context: &mut Context, all: &[Told]) {
    let mut text = String::new();
    if all.iter().any(|told| told.whole) {
        text += "Name,State,Ipv4,Ipv6,Release,Image hash,Image release,Load,Disk usage,Disk total,Memory usage,Memory total,\
                 Mounts,AllIPv4,CPU(s)";
        text += if context.knobs.has("snapshots") { ",Snapshots\n" } else { "\n" };
    } else if !all.is_empty() {
        text += "Snapshot,Instance,CPU(s),Disk space,Memory size,Mounts,Created,Parent,Children,Comment\n";
    }
    for told in all {
        let found = told.instance;
        let join = |mounts: &BTreeMap<String, Mount>| {
            mounts.iter().map(|(target, mount)| format!("{} => {target}", mount.source)).collect::<Vec<_>>().join(";")
        };
        if told.whole {
            let mut fields = vec![told.name.to_owned(), found.told().to_owned()];
            let runtime = told.runtime.as_ref();
            let of = |value: fn(&Runtime) -> String| runtime.map(value).unwrap_or_default();
            fields.push(of(|runtime| runtime.addresses.first().cloned().unwrap_or_default()));
            fields.extend([String::new(), of(|runtime| runtime.release.clone())]);
            fields.extend([found.image.hash.clone(), found.image.release.clone(), of(load)]);
            fields.extend([of(|runtime| runtime.disk.0.to_string()), of(|runtime| runtime.disk.1.to_string())]);
            fields.extend([of(|runtime| runtime.memory.0.to_string()), of(|runtime| runtime.memory.1.to_string())]);
            fields.extend([
                join(&found.mounts),
                of(|runtime| runtime.addresses.join(";")),
                of(|runtime| runtime.cpus.to_string()),
            ]);
            if context.knobs.has("snapshots") {
                fields.push(found.snapshots.len().to_string());
            }
            text += &format!("{}\n", fields.join(","));
        }
        for taken in &told.snapshots {
            let (cpus, parent) = (taken.cpus, taken.parent.as_deref().unwrap_or_default());
            let (disk, memory, mounts) = (human(taken.disk), human(taken.memory), join(&taken.mounts));
            let (created, children) = (date(context, taken.created), children(told, taken).join(";"));
            let (name, instance, comment) = (&taken.name, told.name, &taken.comment);
            text += &format!(
                "{name},{instance},{cpus},{disk},{memory},{mounts},{created},{parent},{children},\"{comment}\"\n"
            );
        }
    }
    context.screen.out(text);
}

fn as_yaml(context: &mut Context, all: &[Told]) {
    let mut text = "errors:\n  - ~\n".to_owned();
    for told in all {
        text += &format!("{}:\n", told.name);
        if told.whole {
            text += &instance_yaml(context, told);
        }
        if !told.snapshots.is_empty() {
            text += if told.whole { "    snapshots:\n" } else { "  - snapshots:\n" };
            for taken in &told.snapshots {
                text += &snapshot_yaml(context, told, taken);
            }
        }
    }
    context.screen.out(text);
}

fn items(indent: &str, items: &[String]) -> String {
    match items {
        [] => format!("{indent}[]\n"),
        items => items.iter().map(|item| format!("{indent}- {}\n", yaml(item))).collect(),
    }
}

fn instance_yaml(context: &Context, told: &Told) -> String {
    let found = told.instance;
    let mut text = format!("  - state: {}\n", found.told());
    if context.knobs.has("snapshots") {
        text += &format!("    snapshot_count: {}\n", found.snapshots.len());
    }
    text += &format!("    image_hash: {}\n    image_release: {}\n", found.image.hash, yaml(&found.image.release));
    match &told.runtime {
        None => {
            text +=
                "    release: ~\n    cpu_count: ~\n    disks:\n      - sda1:\n          used: ~\n          total: ~\n";
            text += "    memory:\n      usage: ~\n      total: ~\n    ipv4:\n      []\n";
        }
        Some(runtime) => {
            text += &format!("    release: {}\n    cpu_count: {}\n    load:\n", yaml(&runtime.release), runtime.cpus);
            text += &runtime.load.map(|load| format!("      - {load}\n")).concat();
            let ((disk_used, disk), (memory_used, memory)) = (runtime.disk, runtime.memory);
            text += &format!("    disks:\n      - sda1:\n          used: {disk_used}\n          total: {disk}\n");
            text += &format!("    memory:\n      usage: {memory_used}\n      total: {memory}\n    ipv4:\n");
            text += &items("      ", &runtime.addresses);
        }
    }
    if found.mounts.is_empty() {
        return text + "    mounts: ~\n";
    }
    text += "    mounts:\n";
    for (target, mount) in &found.mounts {
        text += &format!("      {}:\n        uid_mappings:\n", yaml(target));
        text += &items("          ", &mount.uids);
        text += "        gid_mappings:\n";
        text += &items("          ", &mount.gids);
        text += &format!("        source_path: {}\n", yaml(&mount.source));
    }
    text
}

fn snapshot_yaml(context: &Context, told: &Told, taken: &Snapshot) -> String {
    let children: Vec<String> = children(told, taken).into_iter().map(str::to_owned).collect();
    let mut text = format!("      - {}:\n          size: ~\n          cpu_count: {}\n", yaml(&taken.name), taken.cpus);
    text += &format!("          disk_space: {}\n          memory_size: {}\n", human(taken.disk), human(taken.memory));
    match taken.mounts.is_empty() {
        true => text += "          mounts: ~\n",
        false => {
            text += "          mounts:\n";
            for (target, mount) in &taken.mounts {
                text += &format!("            {}:\n              source_path: {}\n", yaml(target), yaml(&mount.source));
            }
        }
    }
    text += &format!("          created: {}\n", yaml(&date(context, taken.created)));
    text += &format!("          parent: {}\n          children:\n", taken.parent.as_deref().unwrap_or("~"));
    text += &items("            ", &children);
    text + &format!("          comment: {}\n", yaml_or_null(&taken.comment))
}

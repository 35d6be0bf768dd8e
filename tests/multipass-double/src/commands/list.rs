//! `list`.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Context, Format, format, without_names};
use crate::args::Arguments;
use crate::failure::{Done, Failure};
use crate::instance;
use crate::knobs::Version;
use crate::print::{column, or_dashes, yaml, yaml_or_null};
use crate::state::{Instance, Phase, State};

/// `list`: without `--no-ipv4` every machine that runs is asked, and holds the daemon up.
pub(super) fn list(context: &mut Context, arguments: &Arguments) -> Done {
    without_names(arguments)?;
    if arguments.has("snapshots") && arguments.has("no-ipv4") {
        return Err(Failure::usage("IP addresses are not applicable in conjunction with listing snapshots"));
    }
    let format = format(arguments)?;
    let mut serial = context.daemon("list")?;
    if arguments.has("snapshots") {
        if !context.knobs.has("snapshots") {
            let text = "The snapshots feature is not implemented on this backend.";
            return Err(Failure::daemon("list", text));
        }
        return snapshots(context, &serial.state, format);
    }
    let mut addresses = BTreeMap::new();
    if !arguments.has("no-ipv4") {
        let running =
            serial.state.instances.iter().filter(|(_, instance)| !instance.deleted && instance.phase.is_running());
        for name in running.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            addresses
                .insert(name.clone(), ask(context, "list", &mut serial.state, &name).inspect_err(|_| serial.save())?);
        }
    }
    print(context, &serial.state, &addresses, format);
    Ok(())
}

/// The addresses of a machine that runs. One that stands still does not answer, and is waited for.
pub(super) fn ask(context: &mut Context, command: &str, state: &mut State, name: &str) -> Result<Vec<String>, Failure> {
    let begun = Instant::now();
    while instance::is_frozen(&context.home, name) && begun.elapsed() < context.knobs.limit("address") {
        thread::sleep(Duration::from_millis(20));
    }
    let Some(found) = state.instances.get_mut(name) else { return Ok(Vec::new()) };
    if context.knobs.lost_lease.iter().any(|lost| lost == name) {
        let limit = context.knobs.limit("address");
        thread::sleep(limit.saturating_sub(begun.elapsed()));
        found.phase = Phase::Unknown;
        let text = format!("Could not determine IP address within {}ms", limit.as_millis());
        return Err(Failure::daemon(command, text));
    }
    Ok(vec![found.ipv4.clone()])
}

fn release(instance: &Instance) -> String {
    match instance.image.release.as_str() {
        "" => "Not Available".to_owned(),
        release => format!("Ubuntu {release}"),
    }
}

fn print(context: &mut Context, state: &State, addresses: &BTreeMap<String, Vec<String>>, format: Format) {
    let none = Vec::new();
    let of = |name: &String| addresses.get(name).unwrap_or(&none);
    let all: Vec<(&String, &Instance)> = state.instances.iter().collect();
    let mut text = String::new();
    match format {
        Format::Json => {
            let mut all = all;
            // The real one's order is that of a hash table.
            fastrand::shuffle(&mut all);
            let entry = |(name, instance): (&String, &Instance)| {
                let mut entry = json!({
                    "ipv4": of(name), "name": name, "release": release(instance), "state": instance.told(),
                });
                if context.knobs.version == Version::Main {
                    entry["zone"] = json!({ "available": true, "name": "zone1" });
                }
                entry
            };
            let list: Vec<Value> = all.into_iter().map(entry).collect();
            return context.print_json(&json!({ "list": list }));
        }
        Format::Table if all.is_empty() => text.push_str("No instances found.\n"),
        Format::Table => {
            let width = column(all.iter().map(|(name, _)| name.as_str()), "Name", 24);
            text.push_str(&format!("{:<width$}{:<18}{:<17}Image\n", "Name", "State", "IPv4"));
            for (name, instance) in all {
                let first = of(name).first().map_or("--", String::as_str);
                text.push_str(&format!("{name:<width$}{:<18}{first:<17}{}\n", instance.told(), release(instance)));
                for other in of(name).iter().skip(1) {
                    text.push_str(&format!("{:<1$}{other}\n", "", width + 18));
                }
            }
        }
        Format::Csv => {
            text.push_str("Name,State,IPv4,IPv6,Release,AllIPv4\n");
            for (name, instance) in all {
                let first = of(name).first().map_or("", String::as_str);
                let line =
                    format!("{name},{},{first},,{},\"{}\"\n", instance.told(), release(instance), of(name).join(","));
                text.push_str(&line);
            }
        }
        Format::Yaml if all.is_empty() => text.push('\n'),
        Format::Yaml => {
            for (name, instance) in all {
                text.push_str(&format!("{name}:\n  - state: {}\n    ipv4:\n", instance.told()));
                match of(name).as_slice() {
                    [] => text.push_str("      []\n"),
                    all => all.iter().for_each(|address| text.push_str(&format!("      - {address}\n"))),
                }
                text.push_str(&format!("    release: {}\n", release(instance)));
            }
        }
    }
    context.screen.out(text);
}

fn snapshots(context: &mut Context, state: &State, format: Format) -> Done {
    let mut text = String::new();
    let all = || {
        state.instances.iter().flat_map(|(name, instance)| instance.snapshots.iter().map(move |taken| (name, taken)))
    };
    let none = all().next().is_none();
    match format {
        Format::Json => {
            let mut info = Map::new();
            for (name, taken) in all() {
                let parent = taken.parent.as_deref().unwrap_or_default();
                let of = info.entry(name.clone()).or_insert_with(|| json!({}));
                of[&taken.name] = json!({ "comment": taken.comment, "parent": parent });
            }
            context.print_json(&json!({ "errors": [], "info": info }));
            return Ok(());
        }
        Format::Table if none => text.push_str("No snapshots found.\n"),
        Format::Table => {
            let instance = column(all().map(|(name, _)| name.as_str()), "Instance", 0);
            let snapshot = column(all().map(|(_, taken)| taken.name.as_str()), "Snapshot", 0);
            let parent = column(all().map(|(_, taken)| taken.parent.as_deref().unwrap_or("--")), "Parent", 0);
            text.push_str(&format!("{:<instance$}{:<snapshot$}{:<parent$}Comment\n", "Instance", "Snapshot", "Parent"));
            for (name, taken) in all() {
                let of = or_dashes(taken.parent.as_deref().unwrap_or_default());
                let comment = or_dashes(&taken.comment);
                let comment =
                    comment.split_once('\n').map_or_else(|| comment.to_owned(), |(first, _)| format!("{first}…"));
                text.push_str(&format!("{name:<instance$}{:<snapshot$}{of:<parent$}{comment}\n", taken.name));
            }
        }
        Format::Csv => {
            text.push_str("Instance,Snapshot,Parent,Comment\n");
            for (name, taken) in all() {
                let parent = taken.parent.as_deref().unwrap_or_default();
                text.push_str(&format!("{name},{},{parent},\"{}\"\n", taken.name, taken.comment));
            }
        }
        Format::Yaml if none => text.push('\n'),
        Format::Yaml => {
            for (name, instance) in state.instances.iter().filter(|(_, instance)| !instance.snapshots.is_empty()) {
                text.push_str(&format!("{name}:\n"));
                for taken in &instance.snapshots {
                    let parent = taken.parent.as_deref().unwrap_or("~");
                    let comment = yaml_or_null(&taken.comment);
                    let name = yaml(&taken.name);
                    text.push_str(&format!("  - {name}:\n      - parent: {parent}\n        comment: {comment}\n"));
                }
            }
        }
    }
    context.screen.out(text);
    Ok(())
}

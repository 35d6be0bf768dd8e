//! `delete`, `purge` and `recover`.

use std::fs;

use super::run::stop_one;
use super::{Context, either, require, without_names};
use crate::args::Arguments;
use crate::daemon::Serial;
use crate::failure::{Done, Failure};
use crate::home::Home;
use crate::instance;
use crate::state::{Phase, State};

/// `delete`: of instances, and of snapshots as `INSTANCE.SNAPSHOT`. One that is missing stops all of it.
pub(super) fn delete(context: &mut Context, arguments: &Arguments) -> Done {
    if arguments.positional.is_empty() && !arguments.has("all") {
        return Err(Failure::usage("Name argument or --all is required"));
    }
    either(arguments)?;
    let purge = arguments.has("purge");
    let (snapshots, instances): (Vec<String>, Vec<String>) =
        arguments.positional.iter().cloned().partition(|name| name.contains('.'));
    if !snapshots.is_empty() && !purge {
        return Err(Failure::exception(
            "Snapshots can only be purged (after deletion, they cannot be recovered). Unable to query client for \
             confirmation. Please use the `--purge` flag if that is what you want.\n",
        ));
    }
    let mut serial = context.daemon("delete")?;
    let instances = match arguments.has("all") {
        true => serial
            .state
            .instances
            .iter()
            .filter(|(_, found)| purge || !found.deleted)
            .map(|(name, _)| name.clone())
            .collect(),
        false => instances,
    };
    let missing: Vec<String> = instances
        .iter()
        .map(String::as_str)
        .chain(snapshots.iter().filter_map(|name| name.split('.').next()))
        .filter(|name| !serial.state.instances.contains_key(*name))
        .map(|name| format!("instance \"{name}\" does not exist"))
        .collect();
    if !missing.is_empty() {
        return Err(Failure::errors("delete", &missing));
    }
    for name in &snapshots {
        if find(&serial.state, name).is_none() {
            return Err(Failure::daemon("delete", format!("No such snapshot: {name}")));
        }
    }
    for name in &instances {
        let done = delete_one(context, &mut serial, name, purge);
        serial.save();
        done.map_err(|text| Failure::daemon("delete", text))?;
    }
    for name in &snapshots {
        delete_snapshot(&context.home, &mut serial.state, name);
        serial.save();
    }
    Ok(())
}

fn delete_one(context: &Context, serial: &mut Serial, name: &str, purge: bool) -> Result<(), String> {
    if purge {
        purge_one(&context.home, &mut serial.state, name);
        return Ok(());
    }
    let Some(found) = serial.state.instances.get(name).filter(|found| !found.deleted) else { return Ok(()) };
    // A machine whose memory is saved keeps it.
    if found.phase != Phase::Suspended {
        stop_one(context, serial, name, false)
            .map_err(|text| text.replace("Use --force to power it off.", "Use --purge to forcefully delete it."))?;
    }
    if let Some(found) = serial.state.instances.get_mut(name) {
        found.deleted = true;
    }
    Ok(())
}

/// Ends and removes an instance with all that it has.
pub(crate) fn purge_one(home: &Home, state: &mut State, name: &str) {
    instance::kill(home, name);
    state.instances.remove(name);
    state.vault.remove(name);
    drop(fs::remove_dir_all(home.instance(name)));
}

fn find(state: &State, name: &str) -> Option<usize> {
    let (instance, snapshot) = name.split_once('.')?;
    state.instances.get(instance)?.snapshots.iter().position(|taken| taken.name == snapshot)
}

fn delete_snapshot(home: &Home, state: &mut State, name: &str) {
    let Some((index, instance)) = find(state, name).zip(name.split('.').next()) else { return };
    let Some(found) = state.instances.get_mut(instance) else { return };
    let gone = found.snapshots.remove(index);
    // Its children are those of its parent now.
    for taken in &mut found.snapshots {
        if taken.parent.as_ref() == Some(&gone.name) {
            taken.parent.clone_from(&gone.parent);
        }
    }
    if found.parent.as_ref() == Some(&gone.name) {
        found.parent = gone.parent;
    }
    drop(fs::remove_dir_all(home.snapshot(instance, &gone.folder)));
}

/// `purge`: of everything that is deleted.
pub(super) fn purge(context: &mut Context, arguments: &Arguments) -> Done {
    without_names(arguments)?;
    let mut serial = context.daemon("purge")?;
    let deleted: Vec<String> =
        serial.state.instances.iter().filter(|(_, found)| found.deleted).map(|(name, _)| name.clone()).collect();
    for name in deleted {
        purge_one(&context.home, &mut serial.state, &name);
    }
    serial.save();
    Ok(())
}

/// `recover`.
pub(super) fn recover(context: &mut Context, arguments: &Arguments) -> Done {
    if arguments.positional.is_empty() && !arguments.has("all") {
        return Err(Failure::usage("Name argument or --all is required"));
    }
    either(arguments)?;
    let mut serial = context.daemon("recover")?;
    let names: Vec<String> = match arguments.has("all") {
        true => serial.state.instances.keys().cloned().collect(),
        false => arguments.positional.clone(),
    };
    let missing = |name: &&String| !serial.state.instances.contains_key(*name);
    let missing: Vec<String> = names.iter().filter(missing).cloned().collect();
    require("recover", &serial.state, &missing)?;
    for name in names {
        if let Some(found) = serial.state.instances.get_mut(&name) {
            found.deleted = false;
        }
    }
    serial.save();
    Ok(())
}

//! `snapshot` and `restore`.

use std::fs;

use jiff::Timestamp;

use super::{Context, existing};
use crate::args::Arguments;
use crate::failure::{Done, Failure};
use crate::instance;
use crate::state::{Phase, Snapshot, is_name};

/// `snapshot`: of what is stopped.
pub(super) fn snapshot(context: &mut Context, arguments: &Arguments) -> Done {
    let name = match arguments.positional.as_slice() {
        [] => return Err(Failure::usage("Need the name of an instance to snapshot.")),
        [name] => name,
        _ => return Err(Failure::usage("Too many arguments supplied")),
    };
    context.screen.spin("Taking snapshot");
    let taken = take(context, name, arguments).map_err(|failure| context.stilled(failure))?;
    context.screen.still();
    context.screen.out(format!("Snapshot taken: {name}.{taken}\n"));
    context.screen.still();
    Ok(())
}

fn take(context: &mut Context, name: &str, arguments: &Arguments) -> Result<String, Failure> {
    let no = |text: String| Failure::daemon("snapshot", text);
    let mut serial = context.daemon("snapshot")?;
    if !context.knobs.has("snapshots") {
        return Err(no("The snapshots feature is not implemented on this backend.".to_owned()));
    }
    let found = existing("snapshot", &mut serial.state, name)?;
    if found.phase != Phase::Stopped {
        return Err(no("Multipass can only take snapshots of stopped instances.".to_owned()));
    }
    let wanted = arguments.value("name").filter(|wanted| !wanted.is_empty());
    if let Some(wanted) = wanted.filter(|wanted| !is_name(wanted)) {
        return Err(no(format!("Invalid snapshot name: \"{wanted}\".")));
    }
    let wanted = wanted.map_or_else(|| format!("snapshot{}", found.snapshots_taken + 1), str::to_owned);
    if found.snapshots.iter().any(|taken| taken.name == wanted) {
        return Err(no(format!("Snapshot already exists: {name}.{wanted}")));
    }
    found.snapshots_taken += 1;
    let taken = Snapshot {
        name: wanted.clone(),
        folder: found.snapshots_taken.to_string(),
        comment: arguments.value("comment").unwrap_or_default().to_owned(),
        parent: found.parent.replace(wanted.clone()),
        created: Timestamp::now().as_second(),
        cpus: found.cpus,
        memory: found.memory,
        disk: found.disk,
        mounts: found.mounts.clone(),
    };
    instance::copy(&context.home.disk(name), &context.home.snapshot(name, &taken.folder));
    found.snapshots.push(taken);
    serial.save();
    Ok(wanted)
}

/// `restore`: of what is stopped. Nobody can be asked here, so only `--destructive` gets far.
pub(super) fn restore(context: &mut Context, arguments: &Arguments) -> Done {
    let whole = match arguments.positional.as_slice() {
        [] => return Err(Failure::usage("Need the name of an instance and snapshot to restore.")),
        [whole] => whole,
        _ => return Err(Failure::usage("Too many arguments supplied.")),
    };
    let parts = whole.split_once('.').filter(|(name, snapshot)| !name.is_empty() && !snapshot.is_empty());
    let Some((name, snapshot)) = parts else {
        return Err(Failure::usage(
            "Invalid format. Please specify the instance to restore and snapshot to use in the form \
             <instance>.<snapshot>.",
        ));
    };
    let done = restore_to(context, name, snapshot, arguments.has("destructive"));
    done.map_err(|failure| context.stilled(failure))?;
    context.screen.still();
    context.screen.out(format!("Snapshot restored: {whole}\n"));
    context.screen.still();
    Ok(())
}

fn restore_to(context: &mut Context, name: &str, snapshot: &str, destructive: bool) -> Done {
    let no = |text: String| Failure::daemon("restore", text);
    let mut serial = super::daemon::enter(&context.home, &context.knobs, "restore")?;
    if !context.knobs.has("snapshots") {
        return Err(no("The snapshots feature is not implemented on this backend.".to_owned()));
    }
    let found = existing("restore", &mut serial.state, name)?;
    let taken = found.snapshots.iter().find(|taken| taken.name == snapshot).cloned();
    let taken = taken.ok_or_else(|| no(format!("No such snapshot: {name}.{snapshot}")))?;
    if found.phase != Phase::Stopped {
        return Err(no("Multipass can only restore snapshots of stopped instances.".to_owned()));
    }
    if !destructive {
        return Err(match context.knobs.version {
            crate::knobs::Version::Main => no("Cannot get confirmation from client. Aborting...".to_owned()),
            _ => Failure::exception(
                "Unable to query client for confirmation. Use '--destructive' to automatically discard current machine \
                 state.",
            ),
        });
    }
    context.screen.message("Restoring snapshot");
    context.phase("restore");
    let disk = context.home.disk(name);
    drop(fs::remove_dir_all(&disk));
    instance::copy(&context.home.snapshot(name, &taken.folder), &disk);
    (found.cpus, found.memory, found.disk) = (taken.cpus, taken.memory, taken.disk);
    found.mounts = taken.mounts;
    found.parent = Some(taken.name);
    serial.save();
    Ok(())
}

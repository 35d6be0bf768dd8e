//! `mount` and `umount`.

use std::path::Path;

use super::Context;
use crate::args::Arguments;
use crate::failure::{Done, Failure};
use crate::instance;
use crate::state::{Mount, Phase};

/// Where nothing can be mounted.
const FORBIDDEN: [&str; 6] = ["/", "/dev", "/proc", "/sys", "/home", "/home/ubuntu"];

/// `mount`.
pub(super) fn mount(context: &mut Context, arguments: &Arguments) -> Done {
    let [source, targets @ ..] = arguments.positional.as_slice() else {
        return Err(Failure::usage("Not enough arguments given"));
    };
    if targets.is_empty() {
        return Err(Failure::usage("Not enough arguments given"));
    }
    let path = Path::new(source);
    let lacks = match (path.exists(), path.is_dir()) {
        (false, _) => Some("does not exist"),
        (true, false) => Some("is not a directory"),
        (true, true) => None,
    };
    if let Some(lacks) = lacks {
        return Err(Failure::usage(format!("Source path \"{source}\" {lacks}")));
    }
    let native = match arguments.value("type") {
        None | Some("classic") => false,
        Some("native") => true,
        Some(kind) => {
            let text = format!("error: Bad mount type '{kind}' specified, please use 'classic' or 'native'");
            return Err(Failure::usage(text));
        }
    };
    let maps = |name: &'static str, kind: &'static str| {
        let is_map = |map: &str| {
            map.split_once(':').is_some_and(|(host, guest)| host.parse::<u32>().is_ok() && guest.parse::<u32>().is_ok())
        };
        arguments
            .values(name)
            .map(|map| {
                if is_map(map) {
                    Ok(map.to_owned())
                } else {
                    Err(Failure::usage(format!("Invalid {kind} map given: {map}")))
                }
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let (uids, gids) = (maps("uid-map", "UID")?, maps("gid-map", "GID")?);
    let source = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for target in targets {
        let (name, place) = target.split_once(':').unwrap_or((target, ""));
        let place = if place.is_empty() { format!("/home/ubuntu/{folder}") } else { place.to_owned() };
        let done = add(context, name, &source, &place, &uids, &gids, native);
        done.map_err(|failure| context.stilled(failure))?;
    }
    context.screen.still();
    context.screen.still();
    Ok(())
}

/// Mounts a folder, now where the machine runs, else when it starts.
pub(super) fn add(
    context: &mut Context,
    name: &str,
    source: &Path,
    target: &str,
    uids: &[String],
    gids: &[String],
    native: bool,
) -> Done {
    let mut serial = context.daemon("mount")?;
    if serial.state.setting("local.privileged-mounts") == "false" {
        return Err(Failure::daemon(
            "mount",
            "Mounts are disabled on this installation of Multipass.\n\nSee \
             https://canonical.com/multipass/docs/set-command#local.privileged-mounts for information\non how to enable them.",
        ));
    }
    let no = |text: String| Err(Failure::errors("mount", &[text]));
    let Some(found) = serial.state.instances.get_mut(name).filter(|found| !found.deleted) else {
        return no(format!("instance '{name}' does not exist"));
    };
    let place = if target == "/" { target } else { target.trim_end_matches('/') };
    if FORBIDDEN.contains(&place) {
        return no(format!("unable to mount to \"{target}\""));
    }
    if found.mounts.contains_key(target) {
        return no(format!("\"{target}\" is already mounted in '{name}'"));
    }
    if native && found.phase != Phase::Stopped {
        let text = format!("Please stop the instance {name} before attempting native mounts.");
        return Err(Failure::daemon("mount", text));
    }
    let source = source.to_string_lossy().into_owned();
    if found.phase == Phase::Running
        && let Err(error) = instance::mount(&context.home, name, Path::new(&source), target)
    {
        return no(format!("error mounting \"{target}\": {error}"));
    }
    let user = rustix::process::getuid().as_raw();
    let or_default = |maps: &[String]| if maps.is_empty() { vec![format!("{user}:default")] } else { maps.to_owned() };
    let mount = Mount { source, native, uids: or_default(uids), gids: or_default(gids) };
    found.mounts.insert(target.to_owned(), mount);
    serial.save();
    Ok(())
}

/// `umount`: of one place, or of all in an instance.
pub(super) fn umount(context: &mut Context, arguments: &Arguments) -> Done {
    if arguments.positional.is_empty() {
        return Err(Failure::usage("Not enough arguments given"));
    }
    let mut serial = context.daemon("umount")?;
    for target in &arguments.positional {
        let (name, place) = target.split_once(':').unwrap_or((target, ""));
        let no = |text: String| Err(Failure::errors("umount", &[text]));
        let Some(found) = serial.state.instances.get_mut(name).filter(|found| !found.deleted) else {
            return no(format!("instance '{name}' does not exist"));
        };
        if !place.is_empty() && !found.mounts.contains_key(place) {
            return no(format!("path \"{place}\" is not mounted in '{name}'"));
        }
        let gone: Vec<String> = found.mounts.keys().filter(|key| place.is_empty() || *key == place).cloned().collect();
        for place in gone {
            found.mounts.remove(&place);
            if found.phase.is_running() {
                instance::unmount(&context.home, name, &place);
            }
        }
    }
    serial.save();
    Ok(())
}

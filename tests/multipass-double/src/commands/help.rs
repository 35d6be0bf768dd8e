//! `help`: what the real one says, word for word.

use super::{Context, version};
use crate::args::{Arguments, parse};
use crate::failure::{Done, Failure};

const GENERAL: &str = include_str!("help/general.txt");
const TEXTS: [(&str, &str); 25] = [
    ("aliases", include_str!("help/aliases.txt")),
    ("authenticate", include_str!("help/authenticate.txt")),
    ("clone", include_str!("help/clone.txt")),
    ("delete", include_str!("help/delete.txt")),
    ("exec", include_str!("help/exec.txt")),
    ("find", include_str!("help/find.txt")),
    ("get", include_str!("help/get.txt")),
    ("help", include_str!("help/help.txt")),
    ("info", include_str!("help/info.txt")),
    ("launch", include_str!("help/launch.txt")),
    ("list", include_str!("help/list.txt")),
    ("mount", include_str!("help/mount.txt")),
    ("networks", include_str!("help/networks.txt")),
    ("purge", include_str!("help/purge.txt")),
    ("recover", include_str!("help/recover.txt")),
    ("restart", include_str!("help/restart.txt")),
    ("restore", include_str!("help/restore.txt")),
    ("set", include_str!("help/set.txt")),
    ("snapshot", include_str!("help/snapshot.txt")),
    ("start", include_str!("help/start.txt")),
    ("stop", include_str!("help/stop.txt")),
    ("suspend", include_str!("help/suspend.txt")),
    ("transfer", include_str!("help/transfer.txt")),
    ("umount", include_str!("help/umount.txt")),
    ("version", include_str!("help/version.txt")),
];

/// `help`, of all or of one command.
pub(super) fn help(context: &mut Context, arguments: &Arguments) -> Done {
    match arguments.positional.as_slice() {
        [] => context.screen.out(GENERAL),
        [name] => of(context, name)?,
        _ => return Err(Failure::usage("Too many arguments given")),
    }
    Ok(())
}

/// The text of one command.
pub(crate) fn of(context: &mut Context, name: &str) -> Done {
    let known = match name {
        "ls" => "list",
        "unmount" => "umount",
        name => name,
    };
    match TEXTS.iter().find(|(command, _)| *command == known) {
        Some((_, text)) => {
            context.screen.out(*text);
            Ok(())
        }
        None => Err(Failure::usage(format!("Error: Unknown Command: '{name}'"))),
    }
}

/// Without a command: the help and exit code 2, unless an option asked for something.
pub(crate) fn without_command(context: &mut Context, words: &[String]) -> Result<u8, Failure> {
    if words.iter().any(|word| word == "--version") {
        return version::version(context, &Arguments::default()).map(|()| 0);
    }
    let arguments = parse(&[], words).map_err(Failure::usage)?;
    context.screen.out(GENERAL);
    Ok(if arguments.has("h") { 0 } else { 2 })
}

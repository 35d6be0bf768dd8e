//! Running other programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the workspace that cargo runs this for. It is asked at run time: several checkouts may
/// share one target folder, and then this very program.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.ancestors().nth(2).expect("this package lies two folders below the root").to_owned()
}

/// The cargo that runs this program, in the root of the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs a program to its end.
///
/// # Errors
/// When it can't be run or fails.
pub(crate) fn run(mut command: Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("`{}` can't be run: {error}", told(&command)))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` failed ({status})", told(&command))) }
}

/// Runs a program to its end, and gives what it printed.
///
/// # Errors
/// When it can't be run or fails.
pub(crate) fn answer_of(mut command: Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("`{}` can't be run: {error}", told(&command)))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("`{}` failed ({})", told(&command), output.status))
    }
}

/// Lets a program take the place of this one. It returns only when that fails, with the reason.
pub(crate) fn instead(mut command: Command) -> String {
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    format!("`{}` can't be run: {error}", told(&command))
}

/// Whether a program is there and runs, and none of what it prints.
pub(crate) fn answers(program: impl AsRef<OsStr>, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).current_dir(root()).output().is_ok_and(|output| output.status.success())
}

/// The command as a person would type it.
pub(crate) fn told(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

//! What keeps the processes of one start of a unit together, as a control group does for systemd: whatever they leave
//! behind becomes its child.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait};

use super::complain;
use super::process::{below, signal};

/// The name of the program.
pub(super) const NAME: &str = "double-keeper";
/// What is left of the unit when its main process has ended goes on.
pub(super) const LEAVE: &str = "leave";
/// It is killed.
pub(super) const KILL: &str = "kill";

/// The program: the file for the id of the main process, [`LEAVE`] or [`KILL`], and the main process' own words. Ends
/// as that does.
pub(super) fn main(arguments: &[String]) -> ExitCode {
    match keep(arguments) {
        Ok(status) => end_as(status),
        Err(error) => {
            complain(&format!("{NAME}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn keep(arguments: &[String]) -> std::io::Result<WaitStatus> {
    let [file, rest, program, words @ ..] = arguments else {
        return Err(std::io::Error::other("a file, a word and a program are needed"));
    };
    set_child_subreaper(Some(getpid()))?;
    // A group of its own: what reaches the keeper's does not reach it.
    let main = Command::new(program).args(words).process_group(0).spawn()?.id();
    fs::write(file, main.to_string())?;
    let status = loop {
        if let Some((pid, status)) = wait(WaitOptions::empty())?
            && u32::try_from(pid.as_raw_nonzero().get()).is_ok_and(|pid| pid == main)
        {
            break status;
        }
    };
    let own = std::process::id();
    while rest == KILL && !below(own).is_empty() {
        below(own).into_iter().for_each(|pid| signal(pid, Signal::KILL));
        while wait(WaitOptions::NOHANG).is_ok_and(|ended| ended.is_some()) {}
        thread::sleep(Duration::from_millis(2));
    }
    Ok(status)
}

fn end_as(status: WaitStatus) -> ExitCode {
    if let Some(signal) = status.terminating_signal().and_then(Signal::from_named_raw) {
        kill_process(getpid(), signal).ok();
    }
    ExitCode::from(status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

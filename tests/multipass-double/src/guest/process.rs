//! The processes of units.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::journal;
use super::unit::{Unit, words};

/// The variable by which the processes of one start of a unit are known.
const INVOCATION: &str = "INVOCATION_ID";

/// What is to be run for a unit. A program that is not there fails when it runs, not before.
pub(super) fn command(name: &str, unit: &Unit, invocation: &str) -> Command {
    prepare_folders(unit);
    let mut command = Command::new("/usr/bin/env");
    let home = format!("--chdir={}", unit.last("WorkingDirectory").unwrap_or("/").trim_start_matches('-'));
    command.arg("-i").arg(home).arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.arg(format!("{INVOCATION}={invocation}"));
    let user = unit.last("User").unwrap_or("root");
    if let Some((id, home, shell)) = account(user).filter(|_| user != "root") {
        command.args([
            format!("USER={user}"),
            format!("LOGNAME={user}"),
            format!("HOME={home}"),
            format!("SHELL={shell}"),
        ]);
        command.args(unit.service("Environment").iter().flat_map(|line| words(line)));
        command.args(["setpriv", "--reuid", &id, "--regid", &group(user), "--init-groups"]);
    } else {
        command.args(unit.service("Environment").iter().flat_map(|line| words(line)));
    }
    command.args(["/bin/sh", "-c", &script(unit)]).process_group(0).stdin(Stdio::null());
    if let Ok((out, err)) = journal::open(name).and_then(|log| Ok((log.try_clone()?, log))) {
        command.stdout(out).stderr(err);
    }
    command
}

/// The lines of a unit as one script: all but the last run before it, in the same process.
fn script(unit: &Unit) -> String {
    let lines: Vec<&String> = ["ExecStartPre", "ExecStart"].iter().flat_map(|key| unit.service(key)).collect();
    let script: Vec<String> = lines
        .iter()
        .enumerate()
        .map(|(index, line)| {
            let ignored = line.starts_with('-');
            let line = words(line.trim_start_matches(['-', '+', '!', '@', ':']))
                .iter()
                .map(|word| quoted(word))
                .collect::<Vec<_>>()
                .join(" ");
            match (index + 1 == lines.len(), ignored) {
                (true, _) => format!("exec {line}"),
                (false, true) => format!("{line} || :"),
                (false, false) => format!("{line} || exit"),
            }
        })
        .collect();
    script.join("\n")
}

/// The processes of a unit: those that still carry its mark, and their children.
pub(super) fn members(invocation: &str, main: Option<u32>) -> Vec<u32> {
    let mark = format!("{INVOCATION}={invocation}");
    let pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let parent = |pid: u32| -> Option<u32> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let marked = |pid: u32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|text| String::from_utf8_lossy(&text).split('\0').any(|variable| variable == mark))
    };
    let mut found: Vec<u32> = pids.iter().copied().filter(|pid| marked(*pid) || main == Some(*pid)).collect();
    loop {
        let more: Vec<u32> = pids
            .iter()
            .copied()
            .filter(|pid| !found.contains(pid) && parent(*pid).is_some_and(|parent| found.contains(&parent)))
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Sends a signal to a process. That it is gone is no error.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// A word as a shell takes it for one.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The id, the home and the shell of a user.
fn account(user: &str) -> Option<(String, String, String)> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> =
        text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == user)?;
    Some(((*fields.get(2)?).to_owned(), (*fields.get(5)?).to_owned(), (*fields.get(6)?).to_owned()))
}

fn group(user: &str) -> String {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == user);
    found.and_then(|fields| fields.get(3).map(|id| (*id).to_owned())).unwrap_or_else(|| "0".to_owned())
}

/// Makes the folders that a unit has for itself.
fn prepare_folders(unit: &Unit) {
    let user = unit.last("User").unwrap_or("root");
    let owner = account(user).and_then(|(id, ..)| Some((id.parse().ok()?, group(user).parse().ok()?)));
    let kinds = [("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run"), ("CacheDirectory", "/var/cache")];
    for (key, place) in kinds {
        let mode = unit.last(&format!("{key}Mode")).and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o755);
        for name in unit.service(key).iter().flat_map(|names| names.split_whitespace()) {
            let path = Path::new(place).join(name);
            let made = fs::create_dir_all(&path)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
                .and_then(|()| owner.map_or(Ok(()), |(user, group)| chown(&path, Some(user), Some(group))));
            // The service says itself what it lacks.
            drop(made);
        }
    }
}

//! The processes of units.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::image::PROGRAM;
use super::unit::{Unit, words};
use super::{journal, keeper};

/// The variable by which processes know the start of the unit that they belong to.
const INVOCATION: &str = "INVOCATION_ID";
/// How long a keeper may take to say which process it keeps.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is to be run for a unit: its keeper. A program that is not there fails when it runs, not before.
pub(super) fn command(name: &str, unit: &Unit, invocation: &str) -> Command {
    prepare_folders(unit);
    drop(fs::remove_file(main_file(name)));
    let stays = unit.is_oneshot() && unit.stays() || matches!(unit.last("KillMode"), Some("process" | "none"));
    let mut command = Command::new(Path::new("/").join(PROGRAM));
    command.arg0(keeper::NAME).arg(main_file(name)).arg(if stays { keeper::LEAVE } else { keeper::KILL });
    command.arg("/usr/bin/env");
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

/// The processes below another, which is not among them.
pub(super) fn below(top: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: u32| -> Option<u32> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![top];
    let mut place = 0;
    while let Some(pid) = found.get(place).copied() {
        found.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(pid, _)| *pid));
        place += 1;
    }
    found.split_off(1)
}

/// Where the id of a unit's main process stands.
fn main_file(name: &str) -> PathBuf {
    Path::new(super::SHARED).join(format!("main-{name}"))
}

/// The main process of a unit that was started.
pub(super) fn main(name: &str) -> Option<u32> {
    let begun = Instant::now();
    // Its keeper writes it down at once, and may not have come to it yet.
    while begun.elapsed() < PATIENCE {
        if let Some(pid) = fs::read_to_string(main_file(name)).ok().and_then(|text| text.parse().ok()) {
            return Some(pid);
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
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
pub(super) fn account(user: &str) -> Option<(String, String, String)> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> =
        text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == user)?;
    Some(((*fields.get(2)?).to_owned(), (*fields.get(5)?).to_owned(), (*fields.get(6)?).to_owned()))
}

/// The id of a user's group.
pub(super) fn group(user: &str) -> String {
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

//! The processes of one fleet, found from outside: nothing that the program says of itself is believed.

use std::ffi::OsStr;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

/// A process, told from a later one with the same id by when it started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// Its command line.
    pub command: Vec<String>,
}

impl Process {
    /// Whether it is a controller.
    #[must_use]
    pub fn is_controller(&self) -> bool {
        self.command.get(1).is_some_and(|verb| verb == "controller")
    }

    /// The name of the instance whose runtime it is.
    #[must_use]
    pub fn runtime_of(&self) -> Option<&str> {
        let [_, verb, folder] = self.command.as_slice() else { return None };
        Path::new(folder).file_name().and_then(OsStr::to_str).filter(|_| verb == "runtime")
    }

    /// Sends it a signal. Nothing happens when it has ended.
    pub fn send(&self, signal: Signal) {
        send(self.pid, signal);
    }
}

/// Sends a signal to a process. Nothing happens when it has ended.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // One that has ended can't be signalled, and need not be.
        let _ = kill_process(pid, signal);
    }
}

/// Every living process that knows of `folder`: by its arguments, its environment (`HOME` of all that a
/// fleet runs lies there) or the folder that it works in.
pub(super) fn of(folder: &Path) -> Vec<Process> {
    let what = ProcessRefreshKind::nothing()
        .with_cmd(UpdateKind::Always)
        .with_environ(UpdateKind::Always)
        .with_cwd(UpdateKind::Always)
        .without_tasks();
    let mut system = System::new().expect("processes can be listed");
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let name = folder.to_string_lossy();
    let names = |text: &OsStr| text.to_string_lossy().contains(&*name);
    let mut found: Vec<Process> = system
        .processes()
        .values()
        .filter(|process| !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead))
        // Between fork and exec a child still bears its parent's command; it is none of its own yet.
        .filter(|process| {
            let parent = process.parent().and_then(|parent| system.process(parent));
            parent.is_none_or(|parent| parent.cmd() != process.cmd() || process.cmd().is_empty())
        })
        .filter(|process| {
            process.cmd().iter().chain(process.environ()).any(|text| names(text))
                || process.cwd().is_some_and(|cwd| cwd.starts_with(folder))
        })
        .map(|process| Process {
            pid: process.pid().as_u32(),
            started: process.start_time(),
            command: process.cmd().iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        })
        .collect();
    found.sort();
    found
}

//! A process that outlives the controller, from its start until it is left to itself.

use std::ffi::OsString;
use std::io;
use std::process::ExitStatus;

use rustix::process::{Pid, setpriority_process};
use tokio::process::{Child, Command};

use crate::hold::Hold;

/// What a process gets of the controller's environment: what programs need to find each other, the user's
/// home, and the user's language and time. Nothing else, as the rest may hold secrets.
const INHERITED: &[&str] =
    &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"];

/// The environment for such a process.
pub(crate) fn inherited() -> impl Iterator<Item = (&'static str, OsString)> {
    INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)))
}

/// A process that is coming up. Dropped before it is let go, it is killed: a start that was given up
/// leaves nothing that comes up later.
pub(crate) struct Launched {
    child: Option<Child>,
    hold: Hold,
}

impl Launched {
    pub(crate) fn spawn(mut command: Command, hold: &Hold) -> io::Result<Self> {
        Ok(Self { child: Some(command.spawn()?), hold: hold.clone() })
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        match &mut self.child {
            Some(child) => child.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Has the process give way to all others.
    pub(crate) fn step_back(&self) {
        /// The lowest that there is.
        const LOWEST: i32 = 19;
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        // What can't be is no reason to do without it.
        if let Some(pid) = pid {
            let _ = setpriority_process(Some(pid), LOWEST);
        }
    }

    /// Leaves the process to itself. It is waited for in the background, or it would stay a zombie when it
    /// ends before the controller does.
    pub(crate) fn let_go(mut self) {
        if let Some(child) = self.child.take() {
            reap(child, None);
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It fails only for a child that has ended.
            let _ = child.start_kill();
            // Held until it is gone: the next call must not take its last moments for a running
            // instance.
            reap(child, Some(self.hold.clone()));
        }
    }
}

fn reap(mut child: Child, hold: Option<Hold>) {
    // Outside of a runtime, which is then shutting down, init reaps in our stead.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            let pid = child.id();
            let ended = child.wait().await;
            tracing::debug!(pid, ?ended, "an instance's process has ended");
            drop(hold);
        });
    }
}

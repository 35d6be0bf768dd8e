//! The programs of the operating system.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, Timespec, clock_settime};
use tokio::process::Command;
use tokio::time::timeout;
use vm_agent_schemas::guest::Mac;

use super::link;

/// Where programs are looked for: a guest's own, and nothing that a user of it could have put on a path.
const PLACES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
/// How long a program may take. Stopping the runtime takes up to 20 s by its unit, and an emulated machine that
/// boots is slow.
const LIMIT: Duration = Duration::from_secs(60);

/// What the guest program needs of the world beyond files.
pub(super) trait System {
    /// The time.
    fn now(&self) -> Timestamp;

    /// Sets the clock.
    fn set_time(&self, time: Timestamp) -> io::Result<()>;

    /// Gives the network card with this number an address.
    fn set_address(&self, card: u32, mac: &Mac) -> io::Result<()>;

    /// Has what was written reach the disk.
    fn sync(&self);

    /// Runs a program to its end, and gives what it printed.
    fn run(&self, program: &'static str, arguments: &[&str]) -> Result<String, RunError>;
}

/// Why a program did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    /// It is not installed.
    #[error("this machine has no `{0}`")]
    Missing(&'static str),
    /// It did not end.
    #[error("`{command}` did not end within {}s", LIMIT.as_secs())]
    Late {
        /// How it was called.
        command: String,
    },
    /// It said no.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// How it was called.
        command: String,
        /// What it said, or how it ended.
        said: String,
    },
}

/// The real programs.
#[derive(Debug)]
pub(super) struct Programs {
    tokio: tokio::runtime::Runtime,
}

impl Programs {
    /// Makes ready to run programs.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { tokio: tokio::runtime::Builder::new_current_thread().enable_all().build()? })
    }
}

impl System for Programs {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn set_time(&self, time: Timestamp) -> io::Result<()> {
        let time = time.as_duration();
        let time = Timespec { tv_sec: time.as_secs(), tv_nsec: time.subsec_nanos().into() };
        Ok(clock_settime(ClockId::Realtime, time)?)
    }

    fn set_address(&self, card: u32, mac: &Mac) -> io::Result<()> {
        link::set_address(card, mac)
    }

    fn sync(&self) {
        rustix::fs::sync();
    }

    fn run(&self, program: &'static str, arguments: &[&str]) -> Result<String, RunError> {
        let path = PLACES.iter().map(|place| PathBuf::from(place).join(program)).find(|path| path.exists());
        let path = path.ok_or(RunError::Missing(program))?;
        self.tokio.block_on(run(path.as_os_str(), arguments, LIMIT))
    }
}

async fn run(program: &OsStr, arguments: &[&str], limit: Duration) -> Result<String, RunError> {
    let told = || format!("{} {}", program.to_string_lossy(), arguments.join(" "));
    let failed = |said: String| RunError::Failed { command: told(), said };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output()).await.map_err(|_| RunError::Late { command: told() })?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_tells_what_it_printed_or_why_it_failed() {
        let shell = async |script| run(OsStr::new("/bin/sh"), &["-c", script], LIMIT).await;
        assert_eq!(shell("echo well").await.unwrap(), "well\n");
        let error = shell("echo the reason >&2; exit 3").await.unwrap_err();
        assert_eq!(error.to_string(), "`/bin/sh -c echo the reason >&2; exit 3` failed: the reason");
        assert!(shell("exit 3").await.unwrap_err().to_string().ends_with("exit status: 3"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let error = run(OsStr::new("/bin/sleep"), &["1000"], Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, RunError::Late { .. }), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Programs::new().unwrap().run("no-such-program", &[]).unwrap_err();
        assert_eq!(error.to_string(), "this machine has no `no-such-program`");
    }
}

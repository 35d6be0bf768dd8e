//! Processes that are told by the mark that they carry in their environment, such as those of an instance.

use std::ffi::{OsStr, OsString};
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use tokio::time::Instant;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::layout::INSTANCE_VARIABLE;

use crate::hold::{Backoff, Hold};

/// How long marked processes may take to be gone once they are killed. A process that the kernel
/// lets go of takes milliseconds; one that sits in a dead device may never go.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// What processes carry in their environment: a variable with its value.
#[derive(Debug, Clone)]
pub(crate) struct Mark(OsString);

impl Mark {
    /// That of what has this variable with this value.
    pub(crate) fn new(variable: &str, value: impl AsRef<OsStr>) -> Self {
        let mut mark = OsString::from(variable);
        mark.push("=");
        mark.push(value);
        Self(mark)
    }

    /// That of the processes of an instance.
    pub(crate) fn of_instance(nonce: &Nonce) -> Self {
        Self::new(INSTANCE_VARIABLE, nonce.as_str())
    }
}

/// A process that can be looked at and then signalled without being mistaken for a later one with
/// the same id. Where the system has no handles for processes the id has to do.
struct Process {
    pid: Pid,
    #[cfg(target_os = "linux")]
    handle: rustix::fd::OwnedFd,
}

impl Process {
    /// Takes hold of a process; nothing when there is none with this id.
    #[cfg(target_os = "linux")]
    fn open(pid: Pid) -> io::Result<Option<Self>> {
        use rustix::io::Errno;
        match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(handle) => Ok(Some(Self { pid, handle })),
            // The last two stand for the id of a thread.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn open(pid: Pid) -> io::Result<Option<Self>> {
        Ok(Some(Self { pid }))
    }

    /// Sends a signal. A process that is gone has nothing to be told.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        let sent = rustix::process::pidfd_send_signal(&self.handle, signal);
        #[cfg(not(target_os = "linux"))]
        let sent = rustix::process::kill_process(self.pid, signal);
        match sent {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Whether it carries the mark now.
    fn is_marked(&self, mark: &Mark) -> io::Result<bool> {
        let pid = sysinfo::Pid::from_u32(self.pid.as_raw_pid().unsigned_abs());
        Ok(!marked(ProcessesToUpdate::Some(&[pid]), mark)?.is_empty())
    }
}

/// Asks a process to end, if it carries the mark and `still` holds once we have hold of it. Says
/// whether it was asked. A process that was suspended is woken, or it could not act.
pub(crate) fn ask_to_end(pid: Pid, mark: &Mark, still: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
    let Some(process) = Process::open(pid)? else { return Ok(false) };
    if !process.is_marked(mark)? || !still()? {
        return Ok(false);
    }
    process.signal(Signal::TERM)?;
    process.signal(Signal::CONT)?;
    Ok(true)
}

/// Kills every process that carries the mark, and returns when there is none any more.
///
/// A process may fork faster than it is killed, and shows no environment while it executes a new
/// program: so it is over when two looks in succession have found none.
pub(crate) async fn sweep(hold: &Hold, mark: &Mark) -> io::Result<()> {
    let deadline = Instant::now() + SWEEP_LIMIT;
    let mut backoff = Backoff::new();
    let mut clean = 0;
    loop {
        let mark = mark.clone();
        let found = hold.blocking(move || kill_marked(&mark)).await?;
        clean = if found.is_empty() { clean + 1 } else { 0 };
        if clean == 2 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let pids = found.iter().map(|pid| pid.to_string()).collect::<Vec<_>>().join(", ");
            return Err(io::Error::other(format!("its processes {pids} do not end, even when killed")));
        }
        backoff.pause().await;
    }
}

fn kill_marked(mark: &Mark) -> io::Result<Vec<Pid>> {
    let found = marked(ProcessesToUpdate::All, mark)?;
    for pid in &found {
        if let Some(process) = Process::open(*pid)?
            && process.is_marked(mark)?
        {
            process.signal(Signal::KILL)?;
        }
    }
    Ok(found)
}

/// Those of this user's processes that carry the mark, but for this one itself.
fn marked(which: ProcessesToUpdate<'_>, mark: &Mark) -> io::Result<Vec<Pid>> {
    let what = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always).with_user(UpdateKind::Always);
    // A new view each time: one that is refreshed keeps the environment of processes that died.
    let mut system = System::new().map_err(io::Error::other)?;
    system.refresh_processes_specifics(which, true, what);
    let user = rustix::process::geteuid().as_raw();
    let ours = |process: &&sysinfo::Process| {
        process.pid().as_u32() != std::process::id()
            && process.effective_user_id().is_some_and(|id| **id == user)
            && process.environ().contains(&mark.0)
    };
    let pids = system.processes().values().filter(ours).map(|process| process.pid().as_u32());
    Ok(pids.filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process that sleeps, and ends with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn new(nonce: &Nonce) -> Self {
            let sleeper = Command::new("sleep").arg("600").env(INSTANCE_VARIABLE, nonce.as_str()).spawn().unwrap();
            let sleeper = Self(sleeper);
            // Spawning returns before the kernel has put the environment in place.
            let process = Process::open(sleeper.pid()).unwrap().unwrap();
            while !process.is_marked(&Mark::of_instance(nonce)).unwrap() {
                std::thread::yield_now();
            }
            sleeper
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }

        fn runs(&mut self) -> bool {
            self.0.try_wait().unwrap().is_none()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test]
    async fn a_sweep_ends_what_carries_the_mark_and_nothing_else() {
        let (ours, other) = (Nonce::generate(), Nonce::generate());
        let mut swept = [Sleeper::new(&ours), Sleeper::new(&ours)];
        let mut spared = Sleeper::new(&other);
        sweep(&Hold::of_nothing(), &Mark::of_instance(&ours)).await.unwrap();
        for sleeper in &mut swept {
            assert!(!sleeper.0.wait().unwrap().success());
        }
        assert!(spared.runs());
    }

    #[test]
    fn only_a_marked_process_is_asked_and_only_if_it_still_holds() {
        let nonce = Nonce::generate();
        let mut sleeper = Sleeper::new(&nonce);
        let (pid, mark) = (sleeper.pid(), Mark::of_instance(&nonce));
        assert!(!ask_to_end(pid, &Mark::of_instance(&Nonce::generate()), || Ok(true)).unwrap());
        assert!(!ask_to_end(pid, &mark, || Ok(false)).unwrap());
        assert!(sleeper.runs());
        assert!(ask_to_end(pid, &mark, || Ok(true)).unwrap());
        sleeper.0.wait().unwrap();
        assert!(!ask_to_end(pid, &mark, || Ok(true)).unwrap(), "it is gone");
    }
}

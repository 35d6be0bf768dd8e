//! Calls of the command `multipass`: each a process in a group of its own, with a deadline, whose output is read to
//! its end and kept only in part.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::launched::inherited;
use crate::tool::find;

/// The variable that names the command, over the one on the `PATH`.
const VARIABLE: &str = "VM_AGENT_MULTIPASS";
/// Where it lies when it was installed as a snap, and by its installer for macOS.
const USUAL: [&str; 2] = ["/snap/bin/multipass", "/usr/local/bin/multipass"];
/// What the command's own variables begin with. By those it finds its daemon.
const OWN_VARIABLES: &str = "MULTIPASS_";
/// Where the command keeps the certificate that its daemon knows it by, if not below `HOME`.
const HOME_VARIABLES: [&str; 3] = ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"];
/// What tells the calls of a controller that is no more from those of others: the folder of its records.
pub(super) const CALLS_VARIABLE: &str = "VM_AGENT_CALLS";
/// How much is kept of what the command writes, in bytes of each stream. A listing takes some 150 for an instance.
const KEPT: usize = 1024 * 1024;
/// How long a command that was told to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// The command `multipass` of this host.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    variables: Vec<(OsString, OsString)>,
}

/// What a call wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// Its exit code; nothing where a signal ended it.
    pub(super) code: Option<i32>,
    /// The first part of what it wrote to stdout.
    pub(super) stdout: Vec<u8>,
    /// The same of stderr.
    pub(super) stderr: Vec<u8>,
}

/// Why a call did not end by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The command can't be run.
    #[error("`{}` can't be run", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    /// It was given up.
    #[error("`multipass {verb}` took longer than {} s", limit.as_secs())]
    Late { verb: String, limit: Duration },
    /// It could not be heard.
    #[error("`multipass {verb}` can't be heard")]
    Io { verb: String, source: io::Error },
}

impl Program {
    /// The command that `VM_AGENT_MULTIPASS` names, else the one on the `PATH`.
    #[must_use]
    pub fn find() -> Option<Self> {
        let named = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()).map(PathBuf::from);
        // A service has a shorter path than a terminal.
        let usual = || USUAL.iter().map(PathBuf::from).find(|path| path.exists());
        named.or_else(|| find("multipass")).or_else(usual).map(Self::new)
    }

    /// The command in this file.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, variables: Vec::new() }
    }

    /// The same with a variable in its environment.
    #[must_use]
    pub fn with(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls the command. Dropped before it has ended, it is ended with all that it started.
    pub(super) async fn call<A: AsRef<OsStr>>(
        &self,
        arguments: &[A],
        stdin: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Said, CallError> {
        let verb = arguments.first().map(|verb| verb.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
        let mut command = self.command();
        command.args(arguments).stdin(stdin.map_or_else(Stdio::null, |_| Stdio::piped()));
        let spawned = Group::spawn(command);
        let mut group = spawned.map_err(|source| CallError::Spawn { program: self.path.clone(), source })?;
        match timeout(limit, group.converse(stdin.unwrap_or_default())).await {
            Ok(said) => said.map_err(|source| CallError::Io { verb, source }),
            Err(_) => Err(CallError::Late { verb, limit }),
        }
    }

    /// The command without arguments. It works in the user's home: a snap may not even look at other folders.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        let is_own = |name: &OsStr| {
            let text = name.to_string_lossy();
            text.starts_with(OWN_VARIABLES) || HOME_VARIABLES.contains(&&*text)
        };
        command
            .env_clear()
            .envs(inherited())
            .envs(std::env::vars_os().filter(|(name, _)| is_own(name)))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(home) = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_dir()) {
            command.current_dir(home);
        }
        command
    }
}

/// A call's process, and whatever it starts.
struct Group(Option<Child>);

impl Group {
    fn spawn(mut command: Command) -> io::Result<Self> {
        Ok(Self(Some(command.spawn()?)))
    }

    /// Says what there is to say, and hears it to its end.
    async fn converse(&mut self, input: &[u8]) -> io::Result<Said> {
        let child = self.0.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let say = async {
            if let Some(mut stdin) = stdin {
                // Who ends without having heard all tells by its end what was wrong.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(say, hear(stdout), hear(stderr));
        let status = child.wait().await?;
        self.0 = None;
        Ok(Said { code: status.code(), stdout: stdout?, stderr: stderr? })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let Some(group) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) else { return };
        // Each fails only where nothing of the group is left.
        let _ = kill_process_group(group, Signal::TERM);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                let _ = timeout(GRACE, child.wait()).await;
                let _ = kill_process_group(group, Signal::KILL);
                let _ = child.wait().await;
            })),
            Err(_) => drop(kill_process_group(group, Signal::KILL)),
        }
    }
}

/// Reads to the end, and keeps the first part.
async fn hear(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return Ok(kept) };
    let mut bytes = vec![0; 8192];
    loop {
        match stream.read(&mut bytes).await? {
            0 => return Ok(kept),
            count => kept.extend_from_slice(&bytes[..count.min(KEPT - kept.len())]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;
    use tokio::time::{Instant, sleep};

    const LONG: Duration = Duration::from_secs(20);

    /// A shell script in the place of the command.
    fn script(text: &str) -> (TempDir, Program) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("multipass");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (place, Program::new(path))
    }

    #[tokio::test]
    async fn a_call_is_heard_on_both_streams_and_may_be_told_something() {
        let (_place, program) = script("cat; echo \"$1 $LC_ALL $TZ\"; echo no >&2; exit 7");
        let said = program.call(&["list"], Some(b"yes\n"), LONG).await.unwrap();
        assert_eq!(said, Said { code: Some(7), stdout: b"yes\nlist C UTC\n".to_vec(), stderr: b"no\n".to_vec() });
    }

    #[tokio::test]
    async fn a_call_without_input_can_not_take_ours_and_endless_output_fills_no_memory() {
        let (_place, program) = script("cat; head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2");
        let said = program.call(&["list"], None, LONG).await.unwrap();
        assert_eq!((said.code, said.stdout.len(), said.stderr.len()), (Some(0), KEPT, KEPT));
    }

    #[tokio::test]
    async fn who_does_not_hear_what_is_said_to_it_is_heard_all_the_same() {
        let (_place, program) = script("echo refused >&2; exit 1");
        let said = program.call(&["launch"], Some(&vec![b'x'; 1_000_000]), LONG).await.unwrap();
        assert_eq!((said.code, said.stderr.as_slice()), (Some(1), b"refused\n".as_slice()));
    }

    #[tokio::test]
    async fn a_call_that_hangs_is_ended_with_all_that_it_started() {
        let (place, program) = script("cd \"${0%/*}\"; trap '' TERM; sleep 600 & echo $! >child; echo $$ >self; wait");
        let pid = |name: &str| fs::read_to_string(place.path().join(name)).ok()?.trim().parse().ok();
        let call = program.call(&["stop"], None, Duration::from_secs(1));
        let error = call.await.unwrap_err();
        assert_eq!(error.to_string(), "`multipass stop` took longer than 1 s");
        let deadline = Instant::now() + LONG;
        for name in ["child", "self"] {
            let pid = Pid::from_raw(pid(name).unwrap()).unwrap();
            while rustix::process::test_kill_process(pid).is_ok() {
                assert!(Instant::now() < deadline, "{name} should be gone");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_named() {
        let error = Program::new("/nowhere/multipass".into()).call(&["list"], None, LONG).await.unwrap_err();
        assert_eq!(error.to_string(), "`/nowhere/multipass` can't be run");
    }
}

//! Processes: started in a group of their own, read until they have no more to say, ended as a group or as a
//! whole tree.

mod account;
mod table;
mod tree;

pub(crate) use account::{Account, AccountError};
pub(crate) use table::{Entry, entries};
pub(crate) use tree::{Mark, Sample, Tree, kill_marked};

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use pty_process::Pts;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process_group, test_kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use vm_agent_schemas::ids::{Nonce, Secret};
use vm_agent_schemas::layout::INSTANCE_VARIABLE;
use vm_agent_schemas::wire::{Run, Signal, TaskOutcome};

use crate::messages::SOCKET_VARIABLE;

/// What a process inherits of the runtime's environment: what programs need to find their way. Anything
/// else in it was meant for the runtime.
const INHERITED: [&str; 11] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "TMPDIR", "TZ"];
/// Where programs are found if the runtime was started without a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long output is waited for, in all, after the process has ended. Its output is in the pipe by
/// then; what still comes is from a process that it left behind, and that may live for ever.
const LINGER: Duration = Duration::from_secs(1);
/// How much is read in that time at most: more than a pipe holds.
const LINGER_BYTES: usize = 1 << 20;
/// How often a group that is to end is looked at.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// What every process finds around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// The folder that relative ones start from.
    pub(crate) work: PathBuf,
    /// The instance's nonce: every process carries it.
    pub(crate) nonce: Nonce,
    /// Where programs reach the runtime.
    pub(crate) socket: PathBuf,
    /// The agent's environment.
    pub(crate) env: BTreeMap<String, String>,
    /// More environment, over that. It is kept nowhere but here and in the processes.
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// A process that has been started.
#[derive(Debug)]
pub(crate) struct Process {
    /// The process, which leads its group.
    pub(crate) leader: Leader,
    /// Its input, where it has one.
    pub(crate) stdin: Option<ChildStdin>,
    /// Its output.
    pub(crate) stdout: ChildStdout,
    /// Its output beside stdout.
    pub(crate) stderr: ChildStderr,
}

/// The leading process of a group.
#[derive(Debug)]
pub(crate) struct Leader {
    child: Child,
    /// The group, until the leader has been waited for.
    group: Option<Pid>,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("there is nothing to run: argv is empty")]
    NoProgram,
    #[error("there is no folder `{0}` to run in")]
    NoFolder(String),
    #[error("there is no program `{0}`")]
    NotFound(String),
    #[error("`{0}` may not be run: permission denied")]
    Denied(String),
    #[error("user `{user}` may not enter the folder `{folder}`: name another to run in, or open it to that user")]
    NoEntry { user: String, folder: String },
    #[error("`{program}`: {reason}")]
    Other { program: String, reason: io::Error },
    #[error(transparent)]
    Account(#[from] AccountError),
}

impl Surroundings {
    /// Starts a process in a group of its own. Without `stdin` it reads an empty input.
    pub(crate) fn spawn(&self, run: &Run, stdin: bool) -> Result<Process, SpawnError> {
        let stdin = if stdin { Stdio::piped() } else { Stdio::null() };
        let mut child =
            self.start(run, |command| command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        Ok(Process {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().expect("stdout was asked to be a pipe"),
            stderr: child.stderr.take().expect("stderr was asked to be a pipe"),
            leader: Leader::new(child),
        })
    }

    /// Starts a process of which only the end matters.
    pub(crate) fn spawn_silent(&self, run: &Run) -> Result<Leader, SpawnError> {
        self.start(run, |command| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
            .map(Leader::new)
    }

    /// Starts a process on a terminal, whose session it leads. With nothing to run it is the user's shell, as
    /// after a login. Answers with what it runs as well.
    pub(crate) fn spawn_on(&self, mut run: Run, terminal: Pts) -> Result<(Leader, Vec<String>), SpawnError> {
        let account = account_of(&run)?;
        let login = run.argv.is_empty();
        if login {
            run.argv = vec![account.as_ref().map_or_else(own_shell, |account| account.shell().to_owned())];
        }
        let mut command = self.prepare(&run, account.as_ref())?;
        let program = &run.argv[0];
        if login {
            // The dash tells a shell that it is one of a login.
            let name = Path::new(program).file_name().unwrap_or_default();
            command.arg0([OsStr::new("-"), name].join(OsStr::new("")));
        }
        if let Some(uid) = account.as_ref().and_then(Account::uid) {
            // Programs that open their terminal by its name need it to be their user's. Without that they still
            // have the one that they were started with.
            let _ = std::os::unix::fs::fchown(&terminal, Some(uid), None);
        }
        let started = launch(account.as_ref(), || pty_process::Command::from(command).spawn(terminal))?;
        let child = started.map_err(|error| match error {
            pty_process::Error::Io(error) => self.refusal(&run, account.as_ref(), error),
            other => SpawnError::new(program, io::Error::other(other)),
        })?;
        Ok((Leader::new(child), run.argv))
    }

    /// The same with only these of the secrets; with all of them when it is not said with which.
    pub(crate) fn with_secrets(&self, chosen: Option<&BTreeSet<String>>) -> Result<Self, String> {
        let Some(chosen) = chosen else { return Ok(self.clone()) };
        let secret = |name: &String| match self.secrets.get(name) {
            Some(secret) => Ok((name.clone(), secret.clone())),
            None => Err(format!("the agent has no secret `{name}`")),
        };
        Ok(Self { secrets: chosen.iter().map(secret).collect::<Result<_, _>>()?, ..self.clone() })
    }

    /// The folder of what runs: the work folder, or one from there on.
    pub(crate) fn folder(&self, cwd: Option<&str>) -> Result<PathBuf, SpawnError> {
        let folder = cwd.map_or_else(|| self.work.clone(), |cwd| self.work.join(cwd));
        if folder.is_dir() { Ok(folder) } else { Err(SpawnError::NoFolder(folder.display().to_string())) }
    }

    fn start(&self, run: &Run, connect: impl FnOnce(&mut Command) -> &mut Command) -> Result<Child, SpawnError> {
        let account = account_of(run)?;
        let mut command = self.prepare(run, account.as_ref())?;
        let command = connect(command.process_group(0));
        let started = launch(account.as_ref(), || command.spawn())?;
        started.map_err(|error| self.refusal(run, account.as_ref(), error))
    }

    /// Why something could not be started. The system tells of a folder that a user may not enter as it does of a
    /// program that may not be run.
    fn refusal(&self, run: &Run, account: Option<&Account>, error: io::Error) -> SpawnError {
        if error.kind() == io::ErrorKind::PermissionDenied
            && let (Some(account), Ok(folder)) = (account, self.folder(run.cwd.as_deref()))
        {
            let entered = account.act(|| folder.join(".").metadata().map(drop));
            if matches!(entered, Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied) {
                return SpawnError::NoEntry { user: account.name().to_owned(), folder: folder.display().to_string() };
            }
        }
        SpawnError::new(&run.argv[0], error)
    }

    /// A command that has all but its input, its output and its group.
    fn prepare(&self, run: &Run, account: Option<&Account>) -> Result<Command, SpawnError> {
        let (program, arguments) = run.argv.split_first().ok_or(SpawnError::NoProgram)?;
        let folder = self.folder(run.cwd.as_deref())?;
        let mut command = self.command(program, &folder);
        if let Some(account) = account {
            command.envs(account.environment());
            if let Some(uid) = account.uid() {
                command.uid(uid).gid(account.gid());
            }
        }
        command
            .args(arguments)
            .envs(&self.env)
            .envs(self.secrets.iter().map(|(name, secret)| (name, secret.expose())))
            .envs(&run.env)
            .env(INSTANCE_VARIABLE, self.nonce.as_str())
            .env(SOCKET_VARIABLE, &self.socket);
        Ok(command)
    }

    fn command(&self, program: &str, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).env_clear().env("PATH", DEFAULT_PATH);
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command
    }
}

impl SpawnError {
    fn new(program: &str, reason: io::Error) -> Self {
        let program = program.to_owned();
        match reason.kind() {
            io::ErrorKind::NotFound => Self::NotFound(program),
            io::ErrorKind::PermissionDenied => Self::Denied(program),
            _ => Self::Other { program, reason },
        }
    }
}

impl Leader {
    fn new(child: Child) -> Self {
        Self { group: child.id().and_then(|id| Pid::from_raw(id.cast_signed())), child }
    }

    /// The process's group, which has its id; nothing once the process has been waited for.
    pub(crate) const fn group(&self) -> Option<Pid> {
        self.group
    }

    /// Waits for the process to end. May be dropped and called again.
    pub(crate) async fn wait(&mut self) -> TaskOutcome {
        let status = self.child.wait().await;
        self.group = None;
        outcome(&status)
    }

    /// Waits for the process to end, and leaves it to be looked at until [`Leader::wait`]: as long as it is not
    /// waited for, its id and its group are nobody else's. May be dropped and called again.
    pub(crate) async fn ended(&mut self) {
        // Listening comes first, so that no end is missed.
        if let (Some(process), Ok(mut ends)) = (self.group, signal(SignalKind::child())) {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            while let Ok(None) = waitid(WaitId::Pid(process), look) {
                ends.recv().await;
            }
        } else {
            self.wait().await;
        }
    }

    /// Sends a signal to the process's group; nothing happens once the process has been waited for, for
    /// then its id may be another's.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            send(group, signal);
        }
    }

    /// Ends the whole group: asks it, and kills what is left of it after the grace.
    pub(crate) async fn end(&mut self, grace: Duration) -> TaskOutcome {
        self.end_within(sleep(grace)).await
    }

    /// Ends the whole group: asks it, and kills what is left of it once `grace` is over.
    pub(crate) async fn end_within(&mut self, grace: impl Future<Output = ()>) -> TaskOutcome {
        let Some(group) = self.group else { return self.wait().await };
        let _ = tokio::join!(self.child.wait(), end_group(group, grace));
        self.wait().await
    }
}

/// Ends what is in a group: asks it, and kills what is left of it once `grace` is over. As long as it has
/// a member, its id is its own; so for what a process left behind this comes right after its end.
pub(crate) async fn end_group(group: Pid, grace: impl Future<Output = ()>) {
    if test_kill_process_group(group).is_err() {
        return;
    }
    send(group, Signal::Term);
    let gone = async {
        while test_kill_process_group(group).is_ok() {
            sleep(GROUP_POLL).await;
        }
    };
    tokio::select! {
        biased;
        () = gone => {}
        () = grace => send(group, Signal::Kill),
    }
}

fn send(group: Pid, signal: Signal) {
    // A group that is gone needs no signal.
    let _ = kill_process_group(group, number(signal));
}

/// The signal as the operating system knows it.
pub(crate) const fn number(signal: Signal) -> rustix::process::Signal {
    match signal {
        Signal::Int => rustix::process::Signal::INT,
        Signal::Term => rustix::process::Signal::TERM,
        Signal::Kill => rustix::process::Signal::KILL,
        Signal::Hup => rustix::process::Signal::HUP,
        Signal::Quit => rustix::process::Signal::QUIT,
    }
}

/// The user that something is to run as, if that is said.
fn account_of(run: &Run) -> Result<Option<Account>, AccountError> {
    run.user.as_deref().map(Account::find).transpose()
}

/// Starts what is prepared for a user.
fn launch<T: Send>(account: Option<&Account>, spawn: impl FnOnce() -> T + Send) -> Result<T, AccountError> {
    let Some(account) = account else { return Ok(spawn()) };
    // Whoever waits for a child does it by the event loop that it was started in.
    let handle = tokio::runtime::Handle::current();
    account.spawning(|| {
        let _within = handle.enter();
        spawn()
    })
}

/// The shell of the user that the runtime runs as.
fn own_shell() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let shell = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2) == Some(&uid.as_str())).then(|| fields.get(6).copied().unwrap_or_default().to_owned())
    });
    let shell = shell.filter(|shell| !shell.is_empty()).or_else(|| std::env::var("SHELL").ok());
    shell.unwrap_or_else(|| "/bin/sh".to_owned())
}

fn outcome(status: &io::Result<ExitStatus>) -> TaskOutcome {
    use std::os::unix::process::ExitStatusExt;
    let Ok(status) = status else { return TaskOutcome::Interrupted };
    match (status.code(), status.signal()) {
        (Some(code), _) => TaskOutcome::Exited { code },
        (None, Some(signal)) => TaskOutcome::Signaled { signal },
        (None, None) => TaskOutcome::Interrupted,
    }
}

/// Reads a pipe to its end, or until its process has ended and nothing more is to be expected.
#[derive(Debug)]
pub(crate) struct Drain<R> {
    pipe: R,
    /// The process has ended.
    ended: CancellationToken,
    patience: Duration,
    spare: usize,
}

impl<R: AsyncRead + Unpin> Drain<R> {
    /// Reads `pipe`, whose process has ended once `ended` says so.
    pub(crate) fn new(pipe: R, ended: CancellationToken) -> Self {
        Self { pipe, ended, patience: LINGER, spare: LINGER_BYTES }
    }

    /// The next data, at most `max` bytes; nothing at the end.
    pub(crate) async fn read(&mut self, max: usize) -> Option<Bytes> {
        let mut buffer = BytesMut::with_capacity(max);
        let count = {
            let mut room = (&mut buffer).limit(max);
            let mut read = std::pin::pin!(self.pipe.read_buf(&mut room));
            tokio::select! {
                biased;
                read = &mut read => read,
                () = self.ended.cancelled() => {
                    let began = Instant::now();
                    let read = timeout(self.patience, read).await.unwrap_or(Ok(0));
                    self.patience = self.patience.saturating_sub(began.elapsed());
                    read
                }
            }
        };
        if self.ended.is_cancelled() {
            self.spare = self.spare.saturating_sub(buffer.len());
        }
        let more = count.is_ok_and(|count| count > 0) && self.spare > 0;
        more.then(|| buffer.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(folder: &Path) -> Surroundings {
        let env = BTreeMap::from([("SHARED".to_owned(), "agent".to_owned()), ("AGENT".to_owned(), "yes".to_owned())]);
        let secrets = ["TOKEN", "SHARED", "AGENT"].map(|name| (name.to_owned(), Secret::from_text("secret")));
        Surroundings {
            work: folder.to_owned(),
            nonce: Nonce::from_text("the-nonce"),
            socket: folder.join("socket"),
            env,
            secrets: secrets.into(),
        }
    }

    fn shell(line: &str) -> Run {
        let argv = ["sh", "-c", line].map(str::to_owned).to_vec();
        Run { argv, env: BTreeMap::from([("SHARED".to_owned(), "run".to_owned())]), ..Run::default() }
    }

    async fn output(process: &mut Process) -> String {
        let mut text = String::new();
        process.stdout.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_process_has_the_agents_environment_under_its_secrets_under_its_own_and_the_nonce() {
        let place = tempfile::tempdir().unwrap();
        let line = "echo $SHARED $AGENT $TOKEN $VM_AGENT_INSTANCE ${CARGO_MANIFEST_DIR:-clean}; pwd";
        let mut process = surroundings(place.path()).spawn(&shell(line), false).unwrap();
        let folder = place.path().canonicalize().unwrap();
        assert_eq!(output(&mut process).await, format!("run secret secret the-nonce clean\n{}\n", folder.display()));
        assert_eq!(process.leader.wait().await, TaskOutcome::Exited { code: 0 });
    }

    #[tokio::test]
    async fn what_can_not_start_says_why() {
        let place = tempfile::tempdir().unwrap();
        let surroundings = surroundings(place.path());
        let run = |argv: &[&str], cwd: Option<&str>| {
            let argv = argv.iter().map(|&text| text.to_owned()).collect();
            let run = Run { argv, cwd: cwd.map(str::to_owned), ..Run::default() };
            surroundings.spawn(&run, false).unwrap_err().to_string()
        };
        assert_eq!(run(&[], None), "there is nothing to run: argv is empty");
        assert_eq!(run(&["no-such-program"], None), "there is no program `no-such-program`");
        assert_eq!(run(&["/etc/passwd"], None), "`/etc/passwd` may not be run: permission denied");
        assert_eq!(run(&["true"], Some("/no/such")), "there is no folder `/no/such` to run in");
    }

    #[tokio::test]
    async fn a_group_that_ignores_the_request_is_killed_with_all_its_members() {
        let place = tempfile::tempdir().unwrap();
        let line = "trap '' TERM; sleep 1000 & echo ready; wait; wait";
        let mut process = surroundings(place.path()).spawn(&shell(line), false).unwrap();
        let mut ready = [0; 6];
        process.stdout.read_exact(&mut ready).await.unwrap();
        let outcome = process.leader.end(Duration::from_millis(50)).await;
        assert_eq!(outcome, TaskOutcome::Signaled { signal: 9 });
        // The pipe ends only when its last holder, the sleeping member, is gone.
        assert_eq!(output(&mut process).await, "");
    }

    #[tokio::test]
    async fn output_ends_though_a_process_left_behind_holds_the_pipe() {
        let (reader, mut writer) = tokio::io::duplex(64);
        let ended = CancellationToken::new();
        let mut drain = Drain::new(reader, ended.clone());
        drain.patience = Duration::from_millis(10);
        tokio::io::AsyncWriteExt::write_all(&mut writer, b"last words").await.unwrap();
        ended.cancel();
        assert_eq!(drain.read(4).await.unwrap(), "last");
        assert_eq!(drain.read(100).await.unwrap(), " words");
        assert_eq!(drain.read(100).await, None);
    }
}

//! One attempt that runs: from its order to its end.
//!
//! Its process leads a tree, which ends with it: what is left when the process has ended is killed at once; at a
//! timeout and when it is cancelled all are asked first. What it writes goes to its [`Output`] without the values
//! of the agent's secrets, and what it was asked to make is looked for when it has succeeded.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use vm_agent_schemas::fleet::FileMode;
use vm_agent_schemas::task::{Job, Report};
use vm_agent_schemas::wire::{Channel, Run, TaskEnded, TaskOutcome, TaskRef};

use super::TASK_VARIABLE;
use super::artifacts::Wanted;
use super::output::Output;
use super::usage::{Meter, Table};
use super::work::script::ScriptFile;
use super::work::{Program, Way, file, way};
use crate::disk::beside;
use crate::process::{Account, AccountError, Drain, Leader, Mark, Process, Surroundings, Tree};
use crate::redact::{Redaction, Redactor};
use crate::sentence::reason;

/// How long the processes of a task that is ended may take to go.
const GRACE: Duration = Duration::from_secs(5);
/// The same when the runtime goes down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// How much is read from a process at once, in bytes: what a pipe holds.
const READ: usize = 64 * 1024;
/// How many pieces of a file may wait to be kept.
const PIECES: usize = 4;
/// The name of a file that is being written, before the task's id.
const TEMPORARY: &str = ".vm-agent-write-";

/// An attempt that is to run.
pub(super) struct Attempt {
    /// Which.
    pub(super) task: TaskRef,
    /// What to do.
    pub(super) job: Job,
    /// How long it may take.
    pub(super) limit: Duration,
    /// What its processes find around them.
    pub(super) surroundings: Arc<Surroundings>,
    /// Where its output goes.
    pub(super) output: Arc<Output>,
    /// The processes of the machine.
    pub(super) table: Arc<Table>,
    /// Nobody wants it any more.
    pub(super) cancel: CancellationToken,
    /// The runtime goes down.
    pub(super) stop: CancellationToken,
}

/// Why an attempt was ended before it had.
#[derive(Debug, Clone, Copy)]
enum Cut {
    TimedOut,
    Canceled,
    Stopped,
}

/// What an attempt needs, all of it checked.
struct Ready {
    surroundings: Surroundings,
    folder: PathBuf,
    account: Option<Account>,
    artifacts: Wanted,
    way: Way,
}

/// What came of it.
struct Done {
    outcome: TaskOutcome,
    report: Report,
}

impl From<TaskOutcome> for Done {
    fn from(outcome: TaskOutcome) -> Self {
        Self { outcome, report: Report::default() }
    }
}

impl Attempt {
    /// Makes the attempt; nothing if the runtime went down meanwhile.
    pub(super) async fn run(self) -> Option<TaskEnded> {
        let attempt = Arc::new(self);
        // All of the agent's secrets, for it may find others than its own.
        let redaction = Redaction::new(&attempt.surroundings.secrets);
        let due = Instant::now() + attempt.limit;
        let prepared = Arc::clone(&attempt);
        let Done { outcome, mut report } = match beside(move || prepared.prepare()).await {
            Ok(ready) => attempt.perform(ready, &redaction, due).await?,
            Err(reason) => TaskOutcome::NotStarted { reason }.into(),
        };
        (report.stdout, report.stderr) = attempt.output.close().await;
        Some(TaskEnded { task: attempt.task, outcome: redacted(outcome, &redaction), report })
    }

    /// Checks everything that can be checked before anything is done.
    fn prepare(&self) -> Result<Ready, String> {
        let Job { work, cwd, user, artifacts, .. } = &self.job;
        let surroundings = self.surroundings.with_secrets(self.job.secrets.as_ref())?;
        let folder = surroundings.folder(cwd.as_deref()).map_err(|error| error.to_string())?;
        let account = user.as_deref().map(Account::find).transpose().map_err(|error| error.to_string())?;
        let artifacts = Wanted::new(&folder, &surroundings.work, artifacts)?;
        let way = way(work, &folder)?;
        Ok(Ready { surroundings, folder, account, artifacts, way })
    }

    async fn perform(&self, ready: Ready, redaction: &Redaction, due: Instant) -> Option<Done> {
        let Ready { surroundings, folder, account, artifacts, way } = ready;
        let mut done = match way {
            Way::Program(program) => self.program(program, &surroundings, account.as_ref(), redaction, due).await?,
            Way::Read(path) => self.read(path, account.clone(), redaction.stream(), due).await?.into(),
            Way::Write(path, content, mode) => self.write(path, content, mode, account.clone(), due).await?.into(),
        };
        if done.outcome.is_success() && !artifacts.is_empty() {
            let found = self.deed(account, due, move || artifacts.collect()).await?;
            match found {
                Ok(Ok(found)) => done.report.artifacts = found,
                Ok(Err(reason)) => {
                    let gone = if folder.is_dir() { "" } else { " (its folder is gone)" };
                    done.outcome = TaskOutcome::Failed { reason: format!("{reason}{gone}") };
                }
                Err(outcome) => done.outcome = outcome,
            }
        }
        Some(done)
    }

    /// Runs a program with all that comes of it.
    async fn program(
        &self,
        program: Program,
        surroundings: &Surroundings,
        account: Option<&Account>,
        redaction: &Redaction,
        due: Instant,
    ) -> Option<Done> {
        let (run, script) = match self.command(program, account, due).await? {
            Ok(command) => command,
            Err(outcome) => return Some(outcome.into()),
        };
        let process = match surroundings.spawn(&run, self.job.stdin.is_some()) {
            Ok(process) => process,
            Err(error) => return Some(TaskOutcome::NotStarted { reason: error.to_string() }.into()),
        };
        let Process { leader, stdin, stdout, stderr } = process;
        let ended = CancellationToken::new();
        let mut meter = Meter::new(Arc::clone(&self.table));
        let life = async {
            let outcome = self.supervise(leader, &mut meter, due).await;
            ended.cancel();
            outcome
        };
        let out = collect(Channel::Stdout, Drain::new(stdout, ended.clone()), redaction.stream(), &self.output);
        let err = collect(Channel::Stderr, Drain::new(stderr, ended.clone()), redaction.stream(), &self.output);
        let (outcome, (), (), _) =
            tokio::join!(life, out, err, ended.run_until_cancelled(feed(stdin, self.job.stdin.as_deref())));
        // Only now, that nothing reads it any more.
        beside(move || drop(script)).await;
        Some(Done { outcome: outcome?, report: Report { usage: meter.usage(), ..Report::default() } })
    }

    /// The command of a program, and its script while it is needed; an outcome if it came to nothing. Nothing if
    /// the runtime went down.
    async fn command(
        &self,
        program: Program,
        account: Option<&Account>,
        due: Instant,
    ) -> Option<Result<(Run, Option<ScriptFile>), TaskOutcome>> {
        let Program { mut argv, env, script } = program;
        let script = match script {
            Some((text, place)) => {
                let task = self.task;
                match self.deed(account.cloned(), due, move || ScriptFile::write(task, &text)).await? {
                    Ok(Ok(written)) => {
                        argv[place] = written.argument();
                        Some(written)
                    }
                    Ok(Err(error)) => {
                        let folder = std::env::temp_dir();
                        let reason = format!("the script can't be written to {}: {error}", folder.display());
                        return Some(Err(TaskOutcome::NotStarted { reason }));
                    }
                    Err(outcome) => return Some(Err(outcome)),
                }
            }
            None => None,
        };
        let mut all: BTreeMap<String, String> = self.job.env.clone();
        all.extend(env);
        all.insert(TASK_VARIABLE.to_owned(), self.task.task.to_string());
        Some(Ok((Run { argv, env: all, cwd: self.job.cwd.clone(), user: self.job.user.clone() }, script)))
    }

    /// Waits for a process to end or ends it, with all that came of it; nothing if the runtime went down.
    async fn supervise(&self, mut leader: Leader, meter: &mut Meter, due: Instant) -> Option<TaskOutcome> {
        let mark = Mark { variable: TASK_VARIABLE, value: self.task.task.to_string() };
        let mut tree = Tree::new(leader.group(), mark);
        let cut = tokio::select! {
            biased;
            () = leader.ended() => None,
            cut = self.cut(due) => Some(cut),
            never = meter.watch(&mut tree) => match never {},
        };
        meter.last_look(&mut tree);
        let ending = async {
            match cut {
                None => tree.kill().await,
                Some(Cut::TimedOut | Cut::Canceled) => tree.end(sleep(GRACE)).await,
                Some(Cut::Stopped) => tree.end(sleep(SHUTDOWN_GRACE)).await,
            }
        };
        let outcome = if cfg!(target_os = "linux") {
            // As long as nobody has waited for the process its group is nobody else's.
            ending.await;
            leader.wait().await
        } else {
            tokio::join!(ending, leader.wait()).1
        };
        match cut {
            None => Some(outcome),
            Some(Cut::TimedOut) => Some(TaskOutcome::TimedOut),
            Some(Cut::Canceled) => Some(TaskOutcome::Canceled),
            Some(Cut::Stopped) => None,
        }
    }

    async fn read(
        &self,
        path: PathBuf,
        account: Option<Account>,
        mut redactor: Redactor,
        due: Instant,
    ) -> Option<TaskOutcome> {
        let (pieces, mut taken) = mpsc::channel::<Bytes>(PIECES);
        let max = self.job.output.bytes();
        let reading =
            self.deed(account, due, move || file::read(&path, max, |piece| pieces.blocking_send(piece).is_ok()));
        let keeping = async {
            while let Some(piece) = taken.recv().await {
                self.output.push(Channel::Stdout, redactor.push(piece)).await;
            }
            self.output.push(Channel::Stdout, redactor.finish()).await;
        };
        // A thread that hangs in a disk never lets go of its end.
        tokio::pin!(reading, keeping);
        let mut all = false;
        let read = tokio::select! {
            read = &mut reading => read,
            () = &mut keeping => {
                all = true;
                reading.await
            }
        }?;
        if !all && matches!(read, Ok(Ok(()))) {
            keeping.await;
        }
        Some(settled(read))
    }

    async fn write(
        &self,
        path: PathBuf,
        content: Vec<u8>,
        mode: FileMode,
        account: Option<Account>,
        due: Instant,
    ) -> Option<TaskOutcome> {
        let temporary = format!("{TEMPORARY}{}", self.task.task);
        let written = self.deed(account, due, move || file::write(&path, &temporary, &content, mode));
        written.await.map(settled)
    }

    /// Does something on a thread of its own, as a user; an outcome if it came to nothing. It is not waited for
    /// longer than the attempt may take. Nothing if the runtime went down.
    async fn deed<T: Send + 'static>(
        &self,
        account: Option<Account>,
        due: Instant,
        deed: impl FnOnce() -> T + Send + 'static,
    ) -> Option<Result<T, TaskOutcome>> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("task".to_owned()).spawn(move || {
            // Nobody listens any more when it took too long.
            let _ = tell.send(on_behalf(account.as_ref(), deed));
        });
        let not_started = |reason: String| Some(Err(TaskOutcome::NotStarted { reason }));
        if let Err(error) = thread {
            return not_started(format!("no thread could be started for it: {error}"));
        }
        tokio::select! {
            biased;
            done = told => match done {
                Ok(Ok(done)) => Some(Ok(done)),
                Ok(Err(refused)) => not_started(refused.to_string()),
                Err(_) => Some(Err(TaskOutcome::Failed { reason: "what was done for it broke off".to_owned() })),
            },
            cut = self.cut(due) => match cut {
                Cut::TimedOut => Some(Err(TaskOutcome::TimedOut)),
                Cut::Canceled => Some(Err(TaskOutcome::Canceled)),
                Cut::Stopped => None,
            },
        }
    }

    /// Returns when the attempt is to end though it has not.
    async fn cut(&self, due: Instant) -> Cut {
        tokio::select! {
            () = self.stop.cancelled() => Cut::Stopped,
            () = self.cancel.cancelled() => Cut::Canceled,
            () = sleep_until(due) => Cut::TimedOut,
        }
    }
}

fn on_behalf<T: Send>(account: Option<&Account>, deed: impl FnOnce() -> T + Send) -> Result<T, AccountError> {
    match account {
        Some(account) => account.act(deed),
        None => Ok(deed()),
    }
}

fn settled(done: Result<Result<(), String>, TaskOutcome>) -> TaskOutcome {
    match done {
        Ok(Ok(())) => TaskOutcome::Exited { code: 0 },
        Ok(Err(reason)) => TaskOutcome::Failed { reason },
        Err(outcome) => outcome,
    }
}

/// An outcome whose reason tells no secret, and fits into a message.
fn redacted(outcome: TaskOutcome, redaction: &Redaction) -> TaskOutcome {
    let clean = |text: String| reason(&redaction.text(&text));
    match outcome {
        TaskOutcome::NotStarted { reason } => TaskOutcome::NotStarted { reason: clean(reason) },
        TaskOutcome::Failed { reason } => TaskOutcome::Failed { reason: clean(reason) },
        plain => plain,
    }
}

/// Writes what the process is to read. One that reads no more misses the rest.
async fn feed(pipe: Option<ChildStdin>, text: Option<&str>) {
    if let (Some(mut pipe), Some(text)) = (pipe, text) {
        let _ = pipe.write_all(text.as_bytes()).await;
    }
}

/// Keeps what comes out of a pipe.
async fn collect<R: AsyncRead + Unpin>(
    channel: Channel,
    mut pipe: Drain<R>,
    mut redactor: Redactor,
    output: &Arc<Output>,
) {
    while let Some(data) = pipe.read(READ).await {
        output.push(channel, redactor.push(data)).await;
        // A process that writes without pause must not hold up the others.
        tokio::task::yield_now().await;
    }
    output.push(channel, redactor.finish()).await;
}

//! Tasks: each attempt runs once, and its output and its end are told until the hub has stored them.
//!
//! The order of writing is what keeps that true over a crash at any instant. That an attempt begins is
//! in the journal before anything of it exists, and how it ended before the hub is told. What began and
//! has no end when the runtime starts was interrupted; what it wrote until then is told as well.
//!
//! A new session is told of every attempt that is not settled; what the hub then asks for is sent from where it
//! has it, and the end after that ([`feed`]). Everything that the hub has said of an attempt in an earlier session
//! is void: it says it again.
//!
//! A disk that is slow holds up the attempts that wait for it and nothing else: the journal is written beside the
//! event loop, in order, and what depends on a record follows when that is written.
//!
//! A disk that is full stops no attempt that has begun: output that can't be kept is left out ([`spool`]), and an
//! end that can't be written counts as long as the runtime lives. A new attempt does not start then, because
//! without its mark in the journal it might run twice.

mod artifacts;
mod attempt;
mod feed;
mod journal;
mod ledger;
mod output;
mod spool;
mod usage;
mod work;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::task::{Job, OUTPUT_MAX, Report};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{FromRuntime, StreamTaken, TaskEnded, TaskFollow, TaskOrder, TaskOutcome, TaskRef};

use crate::broken::unbroken;
use crate::disk::Disk;
use crate::folder::{FolderError, failed};
use crate::outgoing::Outgoing;
use crate::process::{Surroundings, kill_marked};
use attempt::Attempt;
use feed::{Feed, Wish};
use journal::Journal;
use ledger::{Answer, Ledger, Record};
use output::Output;
use usage::Table;
use work::script::ScriptFile;

/// The environment variable with the task's id that every process of a task carries: by it what has left the
/// process's group is found, and what a killed runtime left running.
const TASK_VARIABLE: &str = "VM_AGENT_TASK";
/// How many attempts may run at once. The hub asks for a few; this keeps a hub that has lost its count from
/// filling the machine.
const ATTEMPTS_MAX: usize = 64;

/// The tasks of this instance.
#[derive(Debug)]
pub(crate) struct Tasks {
    folder: PathBuf,
    journal: Arc<Journal>,
    /// Writes the journal and removes output, in the order of what happened.
    disk: Disk,
    ledger: Ledger,
    /// The attempts that are not settled.
    live: HashMap<TaskId, Live>,
    /// What the hub listens to in this session.
    feeds: HashMap<TaskId, Feed>,
    /// Attempts that begin when the one before them has ended.
    next: HashMap<TaskId, TaskOrder>,
    tell: mpsc::UnboundedSender<Happening>,
    happenings: mpsc::UnboundedReceiver<Happening>,
    stop: CancellationToken,
    table: Arc<Table>,
}

/// An attempt that is not settled.
#[derive(Debug)]
struct Live {
    task: TaskRef,
    kept: ByteSize,
    output: Arc<Output>,
    /// Until it has ended: what cancels it.
    cancel: Option<CancellationToken>,
    /// Until it has begun: what it is.
    pending: Option<Pending>,
}

/// An attempt that begins once that is in the journal.
#[derive(Debug)]
struct Pending {
    job: Job,
    limit: Duration,
    /// Where its output is wanted, if it was ordered in this session.
    stream: Option<u32>,
}

/// What happens with attempts.
#[derive(Debug)]
pub(crate) enum Happening {
    /// That one begins is in the journal, or why it is not.
    Noted(TaskRef, Result<(), String>),
    /// One has ended.
    Ended(TaskEnded),
}

/// What an attempt needs of the rest of the runtime in order to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage<'a> {
    /// What its processes find around them.
    pub(crate) surroundings: &'a Arc<Surroundings>,
    /// The way to the hub, while there is one.
    pub(crate) outgoing: Option<&'a Outgoing>,
    /// What looks after its processes.
    pub(crate) tracker: &'a TaskTracker,
}

impl Tasks {
    /// Reads the journals of earlier starts. What had begun and not ended is interrupted.
    pub(crate) fn load(folder: PathBuf) -> Result<Self, FolderError> {
        let journal = Journal::new(folder.clone());
        let (ledger, interrupted) = Ledger::recover(journal.load()?);
        for record in &interrupted {
            let task = record.task();
            tracing::warn!(task.id = %task.task, "the runtime went down while a task ran: it is interrupted");
            let mark = task.task.to_string();
            kill_marked(TASK_VARIABLE, |value| value == mark);
            ScriptFile::clear(task);
            journal.write(record)?;
        }
        let recovered = |record: &Record| {
            let Record::Ended { end, output: kept } = record else { return None };
            let task = end.task;
            let output = Arc::new(Output::recover(output_folder(&folder, task), kept.bytes(), end.clone()));
            Some((task.task, Live { task, kept: *kept, output, cancel: None, pending: None }))
        };
        let live: HashMap<TaskId, Live> = ledger.unsettled().filter_map(recovered).collect();
        let (tell, happenings) = mpsc::unbounded_channel();
        let (feeds, next) = (HashMap::new(), HashMap::new());
        let (stop, table) = (CancellationToken::new(), Arc::default());
        let (journal, disk) = (Arc::new(journal), Disk::default());
        let tasks = Self { folder, journal, disk, ledger, live, feeds, next, tell, happenings, stop, table };
        tasks.clear()?;
        Ok(tasks)
    }

    /// How many tasks run or are about to.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.running()).unwrap_or(u32::MAX)
    }

    /// What happens next. May be dropped and called again without loss.
    pub(crate) async fn next(&mut self) -> Happening {
        self.happenings.recv().await.expect("self keeps a sender")
    }

    /// Does what follows from it.
    pub(crate) fn handle(&mut self, happening: Happening, stage: Stage<'_>) {
        match happening {
            Happening::Noted(task, noted) => self.begin(task, noted, stage),
            Happening::Ended(end) => {
                let id = end.task.task;
                self.settle_one(end);
                // The next attempt may begin now.
                if let Some(order) = self.next.remove(&id) {
                    self.order(order, stage);
                }
            }
        }
    }

    /// Tells a new session of every attempt that is not settled, and waits to be asked for more. What has not begun
    /// yet is ordered again.
    pub(crate) fn resume(&mut self, outgoing: &Outgoing) {
        self.feeds.clear();
        self.next.clear();
        self.live.values_mut().filter_map(|live| live.pending.as_mut()).for_each(|pending| pending.stream = None);
        let begun = |task: &TaskRef| self.live.get(&task.task).is_none_or(|live| live.pending.is_none());
        self.ledger
            .unsettled()
            .map(Record::task)
            .filter(begun)
            .for_each(|it| outgoing.say(FromRuntime::TaskStarted(it)));
    }

    /// Obeys an order, unless it was obeyed before. An attempt that is in the journal is told of instead, with what
    /// is left of its output.
    pub(crate) fn order(&mut self, order: TaskOrder, stage: Stage<'_>) {
        let Some(outgoing) = stage.outgoing else { return };
        let (task, stream) = (order.task, order.stream);
        match self.ledger.answer(task) {
            Answer::Run => self.start(order, stage),
            Answer::Known => {
                let Some(live) = self.live.get_mut(&task.task) else { return };
                if let Some(pending) = &mut live.pending {
                    pending.stream = Some(stream);
                    return;
                }
                outgoing.say(FromRuntime::TaskStarted(task));
                let output = Arc::clone(&live.output);
                self.feed(task, Wish::all(stream), output, outgoing);
            }
            Answer::Settled(end) => {
                outgoing.say(FromRuntime::TaskStarted(task));
                let output = Output::forgotten(output_folder(&self.folder, task), end);
                self.feed(task, Wish::all(stream), Arc::new(output), outgoing);
            }
            Answer::After(earlier) => {
                self.cancel(earlier);
                self.next.insert(task.task, order);
            }
            Answer::Stale => {
                tracing::warn!(task.id = %task.task, "an attempt older than one that ran was ordered; ignored");
            }
        }
    }

    /// Sends what the hub has not of an attempt's output, and its end.
    pub(crate) fn follow(&mut self, follow: TaskFollow, outgoing: &Outgoing) {
        let TaskFollow { task, stream, stdout, stderr } = follow;
        let Some(live) = self.live.get(&task.task).filter(|live| live.task == task) else { return };
        let output = Arc::clone(&live.output);
        self.feed(task, Wish { stream, stdout, stderr }, output, outgoing);
    }

    /// Ends an attempt that nobody wants any more. One that is not known, or has ended, stays as it is.
    pub(crate) fn cancel(&mut self, task: TaskRef) {
        if self.next.get(&task.task).is_some_and(|order| order.task == task) {
            self.next.remove(&task.task);
        }
        let live = self.live.get(&task.task).filter(|live| live.task == task);
        if let Some(cancel) = live.and_then(|live| live.cancel.as_ref()) {
            cancel.cancel();
        }
    }

    /// Notes how much of a task's output has been taken. Answers whether the stream is a task's.
    pub(crate) fn taken(&self, taken: StreamTaken) -> bool {
        let feed = self.feeds.values().find(|feed| feed.stream() == Some(taken.stream));
        if let Some(feed) = feed {
            feed.taken(taken.channel, taken.offset);
        }
        feed.is_some()
    }

    /// The hub has stored the end of an attempt and its output: it may be forgotten.
    pub(crate) fn acknowledged(&mut self, task: TaskRef) {
        if let Some(record) = self.ledger.acknowledged(task) {
            self.ledger.put(record.clone());
            let output = self.live.remove(&task.task).map(|live| live.output.folder().to_owned());
            let forgotten = self.ledger.forget_oldest();
            let journal = Arc::clone(&self.journal);
            self.disk.give(move || {
                note(&journal, &record);
                output.iter().for_each(|folder| remove_output(folder));
                forgotten.into_iter().for_each(|task| journal.remove(task));
            });
        }
        self.feeds.remove(&task.task);
    }

    /// Ends all processes. Their attempts stay begun in the journal, which is how the next start knows.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Records what ended before or while everything was stopped.
    pub(crate) async fn settle(&mut self) {
        // What was about to begin is in the journal by now, or does not count.
        self.disk.done().await;
        while let Ok(happening) = self.happenings.try_recv() {
            if let Happening::Ended(end) = happening {
                self.settle_one(end);
            }
        }
        self.disk.done().await;
    }

    fn running(&self) -> usize {
        self.live.values().filter(|live| live.cancel.is_some()).count()
    }

    /// Has it noted in the journal that an attempt begins, which it does then.
    fn start(&mut self, order: TaskOrder, stage: Stage<'_>) {
        let TaskOrder { task, stream, job, timeout_ms } = order;
        self.forget(task.task);
        let kept = job.output.min(OUTPUT_MAX);
        let output = Arc::new(Output::new(output_folder(&self.folder, task), kept.bytes()));
        let full = self.running() >= ATTEMPTS_MAX;
        let pending = Pending { job, limit: Duration::from_millis(timeout_ms), stream: Some(stream) };
        let cancel = Some(CancellationToken::new());
        self.live.insert(task.task, Live { task, kept, output, cancel, pending: Some(pending) });
        let record = Record::Started { task, output: kept };
        self.ledger.put(record.clone());
        if full {
            let reason = format!("{ATTEMPTS_MAX} tasks are running already; try again later");
            return self.begin(task, Err(reason), stage);
        }
        let (journal, tell) = (Arc::clone(&self.journal), self.tell.clone());
        self.disk.give(move || {
            let noted = journal.write(&record).map_err(|error| crate::chain(&error));
            // The receiver lives as long as the runtime.
            let _ = tell.send(Happening::Noted(task, noted));
        });
    }

    /// Begins an attempt, now that this is in the journal. Where it is not, it might run twice, and is not started.
    fn begin(&mut self, task: TaskRef, noted: Result<(), String>, stage: Stage<'_>) {
        let Some(live) = self.live.get_mut(&task.task).filter(|live| live.task == task) else { return };
        let (Some(Pending { job, limit, stream }), Some(cancel)) = (live.pending.take(), live.cancel.clone()) else {
            return;
        };
        let output = Arc::clone(&live.output);
        if let Some(outgoing) = stage.outgoing {
            outgoing.say(FromRuntime::TaskStarted(task));
            if let Some(stream) = stream {
                self.feed(task, Wish::all(stream), Arc::clone(&output), outgoing);
            }
        }
        let over = match noted {
            Err(reason) => Some(TaskOutcome::NotStarted { reason }),
            Ok(()) => cancel.is_cancelled().then_some(TaskOutcome::Canceled),
        };
        if let Some(outcome) = over {
            return self.settle_one(TaskEnded { task, outcome, report: Report::default() });
        }
        tracing::info!(task.id = %task.task, task.attempt = task.attempt, "a task has begun");
        let attempt = Attempt {
            task,
            job,
            limit,
            surroundings: Arc::clone(stage.surroundings),
            output: Arc::clone(&output),
            table: Arc::clone(&self.table),
            cancel,
            stop: self.stop.clone(),
        };
        let tell = self.tell.clone();
        stage.tracker.spawn(async move {
            if let Some(end) = outlived(task, &output, attempt.run()).await {
                // The receiver lives as long as the runtime.
                let _ = tell.send(Happening::Ended(end));
            }
        });
    }

    /// Begins to send what the hub wishes, unless that is what it is sent already.
    fn feed(&mut self, task: TaskRef, wish: Wish, output: Arc<Output>, outgoing: &Outgoing) {
        let same = |feed: &Feed| feed.stream().is_some() && feed.stream() == wish.stream;
        if !self.feeds.get(&task.task).is_some_and(same) {
            self.feeds.insert(task.task, Feed::begin(wish, output, outgoing.clone()));
        }
    }

    fn settle_one(&mut self, end: TaskEnded) {
        tracing::info!(task.id = %end.task.task, "a task {}", end.outcome);
        let Some(live) = self.live.get_mut(&end.task.task).filter(|live| live.task == end.task) else { return };
        live.cancel = None;
        let output = Arc::clone(&live.output);
        let record = Record::Ended { end: end.clone(), output: live.kept };
        self.ledger.put(record.clone());
        let journal = Arc::clone(&self.journal);
        self.disk.give(move || {
            note(&journal, &record);
            output.end(end);
        });
    }

    /// Forgets the attempt before one that begins.
    fn forget(&mut self, task: TaskId) {
        self.feeds.remove(&task);
        if let Some(live) = self.live.remove(&task) {
            self.disk.give(move || remove_output(live.output.folder()));
        }
    }

    /// Removes output that belongs to no attempt any more.
    fn clear(&self) -> Result<(), FolderError> {
        for entry in fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let path = entry.map_err(failed("list", &self.folder))?.path();
            if path.is_dir() && !self.live.values().any(|live| live.output.folder() == path) {
                remove_output(&path);
            }
        }
        Ok(())
    }
}

/// Writes a record. When the disk refuses, the record still counts as long as the runtime lives: the hub keeps the
/// first end that it is told of, so the worst after a crash is that it hears `interrupted` of a task whose end it has.
fn note(journal: &Journal, record: &Record) {
    if let Err(error) = journal.write(record) {
        tracing::error!(task.id = %record.task().task, "{}", crate::chain(&error));
    }
}

/// What comes of an attempt, also when a defect of the runtime breaks it off: then nothing of it is left, and it has
/// failed. Nothing if the runtime went down.
async fn outlived(
    task: TaskRef,
    output: &Arc<Output>,
    attempt: impl Future<Output = Option<TaskEnded>>,
) -> Option<TaskEnded> {
    let broken = match unbroken(attempt).await {
        Ok(end) => return end,
        Err(broken) => broken,
    };
    let mark = task.task.to_string();
    kill_marked(TASK_VARIABLE, |value| value == mark);
    let (stdout, stderr) = unbroken(output.close()).await.unwrap_or_else(|_| output.totals());
    let outcome = TaskOutcome::Failed { reason: broken.to_string() };
    Some(TaskEnded { task, outcome, report: Report { stdout, stderr, ..Report::default() } })
}

/// Where the output of an attempt lies, in the folder of the journal.
fn output_folder(folder: &Path, task: TaskRef) -> PathBuf {
    folder.join(format!("{}.{}", task.task, task.attempt))
}

/// Removes the output of an attempt. What stays is removed at the next start.
fn remove_output(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("{} can't be removed: {error}", folder.display());
    }
}

#[cfg(test)]
mod tests;

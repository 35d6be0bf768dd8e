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
use vm_agent_schemas::task::{OUTPUT_MAX, Report};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{FromRuntime, StreamTaken, TaskEnded, TaskFollow, TaskOrder, TaskOutcome, TaskRef};

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
    journal: Journal,
    ledger: Ledger,
    /// The attempts that are not settled.
    live: HashMap<TaskId, Live>,
    /// What the hub listens to in this session.
    feeds: HashMap<TaskId, Feed>,
    /// Attempts that begin when the one before them has ended.
    next: HashMap<TaskId, TaskOrder>,
    ends: mpsc::UnboundedSender<TaskEnded>,
    ended: mpsc::UnboundedReceiver<TaskEnded>,
    stop: CancellationToken,
    table: Arc<Table>,
}

/// An attempt that is not settled.
#[derive(Debug)]
struct Live {
    task: TaskRef,
    kept: ByteSize,
    output: Arc<Output>,
    /// As long as it runs: what cancels it.
    cancel: Option<CancellationToken>,
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
            Some((task.task, Live { task, kept: *kept, output, cancel: None }))
        };
        let live: HashMap<TaskId, Live> = ledger.unsettled().filter_map(recovered).collect();
        let (ends, ended) = mpsc::unbounded_channel();
        let (feeds, next) = (HashMap::new(), HashMap::new());
        let (stop, table) = (CancellationToken::new(), Arc::default());
        let tasks = Self { folder, journal, ledger, live, feeds, next, ends, ended, stop, table };
        tasks.clear()?;
        Ok(tasks)
    }

    /// How many tasks are running.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.running()).unwrap_or(u32::MAX)
    }

    /// The next task that has ended. May be dropped and called again without loss.
    pub(crate) async fn next_end(&mut self) -> TaskEnded {
        self.ended.recv().await.expect("self keeps a sender")
    }

    /// Tells a new session of every attempt that is not settled, and waits to be asked for more.
    pub(crate) fn resume(&mut self, outgoing: &Outgoing) {
        self.feeds.clear();
        self.next.clear();
        self.ledger.unsettled().for_each(|record| outgoing.say(FromRuntime::TaskStarted(record.task())));
    }

    /// Obeys an order, unless it was obeyed before. An attempt that is in the journal is told of instead, with what
    /// is left of its output.
    pub(crate) fn order(&mut self, order: TaskOrder, stage: Stage<'_>) {
        let Some(outgoing) = stage.outgoing else { return };
        let (task, stream) = (order.task, order.stream);
        match self.ledger.answer(task) {
            Answer::Run => self.start(order, stage),
            Answer::Known => {
                outgoing.say(FromRuntime::TaskStarted(task));
                let Some(live) = self.live.get(&task.task) else { return };
                let output = Arc::clone(&live.output);
                self.feed(task, Wish::all(stream), output, outgoing);
            }
            Answer::Settled(end) => {
                outgoing.say(FromRuntime::TaskStarted(task));
                let output = Output::recover(output_folder(&self.folder, task), 0, end);
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

    /// Records how an attempt ended; who listens to it is told. The next attempt may begin now.
    pub(crate) fn end(&mut self, end: TaskEnded, stage: Stage<'_>) {
        let id = end.task.task;
        self.settle_one(end);
        if let Some(order) = self.next.remove(&id) {
            self.order(order, stage);
        }
    }

    /// The hub has stored the end of an attempt and its output: it may be forgotten.
    pub(crate) fn acknowledged(&mut self, task: TaskRef) {
        if let Some(record) = self.ledger.acknowledged(task) {
            self.record(record);
            if let Some(live) = self.live.remove(&task.task) {
                remove_output(live.output.folder());
            }
            for task in self.ledger.forget_oldest() {
                self.journal.remove(task);
            }
        }
        self.feeds.remove(&task.task);
    }

    /// Ends all processes. Their attempts stay begun in the journal, which is how the next start knows.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Records what ended before or while everything was stopped.
    pub(crate) fn settle(&mut self) {
        while let Ok(end) = self.ended.try_recv() {
            self.settle_one(end);
        }
    }

    fn running(&self) -> usize {
        self.live.values().filter(|live| live.cancel.is_some()).count()
    }

    fn start(&mut self, order: TaskOrder, stage: Stage<'_>) {
        let TaskOrder { task, stream, job, timeout_ms } = order;
        self.forget(task.task);
        let kept = job.output.min(OUTPUT_MAX);
        let output = Arc::new(Output::new(output_folder(&self.folder, task), kept.bytes()));
        let refused = if self.running() >= ATTEMPTS_MAX {
            Some(format!("{ATTEMPTS_MAX} tasks are running already; try again later"))
        } else {
            self.journal.write(&Record::Started { task, output: kept }).err().map(|error| crate::chain(&error))
        };
        let cancel = CancellationToken::new();
        let live = Live { task, kept, output: Arc::clone(&output), cancel: refused.is_none().then(|| cancel.clone()) };
        self.live.insert(task.task, live);
        if let Some(outgoing) = stage.outgoing {
            outgoing.say(FromRuntime::TaskStarted(task));
            self.feed(task, Wish::all(stream), Arc::clone(&output), outgoing);
        }
        if let Some(reason) = refused {
            output.finish();
            let outcome = TaskOutcome::NotStarted { reason };
            return self.settle_one(TaskEnded { task, outcome, report: Report::default() });
        }
        self.ledger.put(Record::Started { task, output: kept });
        tracing::info!(task.id = %task.task, task.attempt = task.attempt, "a task has begun");
        let attempt = Attempt {
            task,
            job,
            limit: Duration::from_millis(timeout_ms),
            surroundings: Arc::clone(stage.surroundings),
            output,
            table: Arc::clone(&self.table),
            cancel,
            stop: self.stop.clone(),
        };
        let ends = self.ends.clone();
        stage.tracker.spawn(async move {
            if let Some(end) = attempt.run().await {
                // The receiver lives as long as the runtime.
                let _ = ends.send(end);
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
        let (output, kept) = (Arc::clone(&live.output), live.kept);
        self.record(Record::Ended { end: end.clone(), output: kept });
        output.end(end);
    }

    /// Writes a record. When the disk refuses, the record still counts as long as the runtime lives:
    /// the hub keeps the first end that it is told of, so the worst after a crash is that it hears
    /// `interrupted` of a task whose end it has.
    fn record(&mut self, record: Record) {
        if let Err(error) = self.journal.write(&record) {
            tracing::error!(task.id = %record.task().task, "{}", crate::chain(&error));
        }
        self.ledger.put(record);
    }

    /// Forgets the attempt before one that begins.
    fn forget(&mut self, task: TaskId) {
        self.feeds.remove(&task);
        if let Some(live) = self.live.remove(&task) {
            remove_output(live.output.folder());
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

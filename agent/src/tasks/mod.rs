//! Tasks: each attempt runs once, and its end is told until the hub has stored it.
//!
//! The order of writing is what keeps that true over a crash at any instant. That an attempt begins is
//! in the journal before its process exists, and how it ended before the hub is told. What began and
//! has no end when the runtime starts was interrupted.

mod journal;
mod ledger;
mod output;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::task::{Report, Work};
use vm_agent_schemas::wire::{
    Channel, DATA_MAX, FromRuntime, Run, StreamTaken, TaskEnded, TaskOrder, TaskOutcome, TaskRef,
};

use crate::folder::FolderError;
use crate::outgoing::Outgoing;
use crate::process::{Drain, Process, Surroundings, kill_marked};
use journal::Journal;
use ledger::{Answer, Ledger, Record};
use output::Output;

/// The environment variable with the task's id that every process of a task carries: by it the next start
/// finds what a killed runtime left running.
const TASK_VARIABLE: &str = "VM_AGENT_TASK";
/// How long the processes of a task that ran into its timeout may take to end.
const TIMEOUT_GRACE: Duration = Duration::from_secs(5);
/// How long the processes of a task may take to end when the runtime goes down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// The tasks of this instance.
#[derive(Debug)]
pub(crate) struct Tasks {
    journal: Journal,
    ledger: Ledger,
    running: HashMap<TaskId, Running>,
    ends: mpsc::UnboundedSender<TaskEnded>,
    ended: mpsc::UnboundedReceiver<TaskEnded>,
    stop: CancellationToken,
}

/// A task that is running.
#[derive(Debug)]
struct Running {
    /// The stream on which its output is sent, in the session in which it was ordered.
    stream: Option<u32>,
    output: Shared,
}

type Shared = Arc<Mutex<Output>>;

impl Tasks {
    /// Reads the journals of earlier starts. What had begun and not ended is interrupted.
    pub(crate) fn load(folder: PathBuf) -> Result<Self, FolderError> {
        let journal = Journal::new(folder);
        let (ledger, interrupted) = Ledger::recover(journal.load()?);
        for record in &interrupted {
            let id = record.task().task;
            tracing::warn!(task.id = %id, "the runtime went down while a task ran: it is interrupted");
            let mark = id.to_string();
            kill_marked(TASK_VARIABLE, |value| value == mark);
            journal.write(record)?;
        }
        let (ends, ended) = mpsc::unbounded_channel();
        Ok(Self { journal, ledger, running: HashMap::new(), ends, ended, stop: CancellationToken::new() })
    }

    /// How many tasks are running.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }

    /// The next task whose process has ended. May be dropped and called again without loss.
    pub(crate) async fn next_end(&mut self) -> TaskEnded {
        self.ended.recv().await.expect("self keeps a sender")
    }

    /// Tells a new session what is running, and what has ended and is not acknowledged.
    /// Streams are numbered anew in it, so none of the old ones is a task's any more.
    pub(crate) fn resume(&mut self, outgoing: &Outgoing) {
        self.running.values_mut().for_each(|running| running.stream = None);
        self.ledger.unsettled().for_each(|message| outgoing.say(message));
    }

    /// Obeys an order, unless it was obeyed before.
    pub(crate) fn order(
        &mut self,
        order: &TaskOrder,
        surroundings: &Surroundings,
        outgoing: &Outgoing,
        tracker: &TaskTracker,
    ) {
        match self.ledger.answer(order.task) {
            Answer::Run => self.start(order, surroundings, outgoing, tracker),
            Answer::Running => {
                // The hub has lost what it knew of this task, and follows its output on a new stream.
                if let Some(running) = self.running.get_mut(&order.task.task) {
                    running.stream = Some(order.stream);
                    lock(&running.output).attach(order.stream, outgoing.clone());
                }
                outgoing.say(FromRuntime::TaskStarted(order.task));
            }
            Answer::Ended(ended) => outgoing.say(FromRuntime::TaskEnded(ended)),
            Answer::Stale => {
                tracing::warn!(task.id = %order.task.task, "an attempt older than one that ran was ordered; ignored");
            }
        }
    }

    /// Notes how much of a task's output has been taken. Answers whether the stream is a task's.
    pub(crate) fn taken(&self, taken: StreamTaken) -> bool {
        let running = self.running.values().find(|running| running.stream == Some(taken.stream));
        if let Some(running) = running {
            lock(&running.output).taken(taken.channel, taken.offset);
        }
        running.is_some()
    }

    /// Records how a task ended, and tells the hub if it is there.
    pub(crate) fn end(&mut self, ended: TaskEnded, outgoing: Option<&Outgoing>) {
        tracing::info!(task.id = %ended.task.task, "a task {}", ended.outcome);
        self.running.remove(&ended.task.task);
        self.record(Record::Ended(ended.clone()));
        if let Some(outgoing) = outgoing {
            outgoing.say(FromRuntime::TaskEnded(ended));
        }
    }

    /// The hub has stored the end of a task: its output may be forgotten.
    pub(crate) fn acknowledged(&mut self, task: TaskRef) {
        if let Some(record) = self.ledger.acknowledged(task) {
            self.record(record);
            for task in self.ledger.forget_oldest() {
                self.journal.remove(task);
            }
        }
    }

    /// Ends all processes. Their tasks stay begun in the journal, which is how the next start knows.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Records what ended before or while everything was stopped.
    pub(crate) fn settle(&mut self) {
        while let Ok(ended) = self.ended.try_recv() {
            self.end(ended, None);
        }
    }

    fn start(&mut self, order: &TaskOrder, surroundings: &Surroundings, outgoing: &Outgoing, tracker: &TaskTracker) {
        let task = order.task;
        let not_started =
            |reason| TaskEnded { task, outcome: TaskOutcome::NotStarted { reason }, report: Report::default() };
        if let Err(error) = self.journal.write(&Record::Started(task)) {
            // Without its mark in the journal it might run twice, so it does not run at all.
            let ended = not_started(crate::chain(&error));
            return self.end(ended, Some(outgoing));
        }
        self.ledger.put(Record::Started(task));
        let Work::Exec { argv } = &order.job.work else {
            let reason = format!("this runtime can't do work of the type `{}`", order.job.work.kind());
            return self.end(not_started(reason), Some(outgoing));
        };
        let (env, cwd) = (order.job.env.clone(), order.job.cwd.clone());
        let mut what = Run { argv: argv.clone(), env, cwd, user: None };
        what.env.insert(TASK_VARIABLE.to_owned(), task.task.to_string());
        match surroundings.spawn(&what, false) {
            Ok(process) => {
                tracing::info!(task.id = %task.task, task.attempt = task.attempt, "a task has begun");
                outgoing.say(FromRuntime::TaskStarted(task));
                let output = Arc::new(Mutex::new(Output::default()));
                lock(&output).attach(order.stream, outgoing.clone());
                self.running.insert(task.task, Running { stream: Some(order.stream), output: Arc::clone(&output) });
                let limit = Duration::from_millis(order.timeout_ms);
                tracker.spawn(run(task, process, limit, output, self.stop.clone(), self.ends.clone()));
            }
            Err(error) => self.end(not_started(error.to_string()), Some(outgoing)),
        }
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
}

/// Waits for a task's process to end and for its output, then reports the end.
async fn run(
    task: TaskRef,
    process: Process,
    limit: Duration,
    output: Shared,
    stop: CancellationToken,
    ends: mpsc::UnboundedSender<TaskEnded>,
) {
    let Process { mut leader, stdout, stderr, .. } = process;
    let ended = CancellationToken::new();
    let ending = async {
        let outcome = tokio::select! {
            outcome = leader.wait() => Some(outcome),
            () = tokio::time::sleep(limit) => {
                leader.end(TIMEOUT_GRACE).await;
                Some(TaskOutcome::TimedOut)
            }
            () = stop.cancelled() => {
                leader.end(SHUTDOWN_GRACE).await;
                None
            }
        };
        ended.cancel();
        outcome
    };
    let stdout = collect(Channel::Stdout, Drain::new(stdout, ended.clone()), &output);
    let stderr = collect(Channel::Stderr, Drain::new(stderr, ended.clone()), &output);
    let (outcome, (), ()) = tokio::join!(ending, stdout, stderr);
    if let Some(outcome) = outcome {
        let report = Report::default();
        // The receiver lives as long as the runtime.
        let _ = ends.send(TaskEnded { task, outcome, report });
    }
}

async fn collect<R: AsyncRead + Unpin>(channel: Channel, mut drain: Drain<R>, output: &Shared) {
    while let Some(data) = drain.read(DATA_MAX).await {
        lock(output).push(channel, data);
    }
    lock(output).finish(channel);
}

fn lock(output: &Shared) -> std::sync::MutexGuard<'_, Output> {
    // Output is plain bytes, whole at every moment.
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

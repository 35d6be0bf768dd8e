//! What tasks write, kept in the output log, and word of it for whoever follows.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use vm_agent_hub::OutputKnown;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::TaskRef;
use vm_agent_store::output::{Limits, OutputError, OutputLog, OutputRecord, Page, Position, Wanted};

/// Why output can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The log fails.
    #[error(transparent)]
    Log(#[from] OutputError),
    /// A bug of the program.
    #[error("work on the output log was cut short")]
    CutShort(#[from] JoinError),
}

/// The output log, whose calls wait for the disk on threads of their own.
#[derive(Debug)]
pub(crate) struct Output {
    log: Arc<OutputLog>,
    news: watch::Sender<()>,
}

impl Output {
    /// Opens the log in a folder.
    ///
    /// # Errors
    /// When the folder can't be used.
    pub(crate) fn open(dir: &Path) -> Result<Self, OutputError> {
        let log = Arc::new(OutputLog::open(dir, Limits::default())?);
        Ok(Self { log, news: watch::Sender::new(()) })
    }

    /// Appends records, all or none; with `durable` they and everything before them are on the disk after
    /// that.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) async fn append(&self, records: Vec<OutputRecord>, durable: bool) -> Result<(), Failure> {
        if records.is_empty() && (!durable || self.log.is_durable()) {
            return Ok(());
        }
        let log = Arc::clone(&self.log);
        let write = move || {
            log.append(&records)?;
            if durable { log.sync() } else { Ok(()) }
        };
        Ok(spawn_blocking(write).await??)
    }

    /// Tells whoever follows that there may be more, or that a task or a message is further.
    pub(crate) fn tell(&self) {
        self.news.send_replace(());
    }

    /// Tells when there may be more.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// How much is kept of the present attempts of tasks.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) async fn known(&self, tasks: Vec<Task>) -> Result<Vec<(Task, OutputKnown)>, Failure> {
        let log = Arc::clone(&self.log);
        let read = move || {
            let known = |task: Task| {
                let known = log.known(TaskRef { task: task.id, attempt: task.attempt })?;
                Ok((task, OutputKnown { stdout: known.stdout, stderr: known.stderr }))
            };
            tasks.into_iter().map(known).collect::<Result<_, OutputError>>()
        };
        Ok(spawn_blocking(read).await??)
    }

    /// An attempt is over, and nothing of it comes any more.
    pub(crate) fn settled(&self, task: TaskRef) {
        self.log.settled(task);
    }

    /// A page of a task's output.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) async fn read(&self, wanted: Wanted, after: Position, max: usize) -> Result<Page, Failure> {
        let log = Arc::clone(&self.log);
        Ok(spawn_blocking(move || log.read(wanted, after, max)).await??)
    }

    /// Removes the oldest beyond what is kept.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) async fn prune(&self) -> Result<usize, Failure> {
        let log = Arc::clone(&self.log);
        Ok(spawn_blocking(move || log.prune(SystemTime::now())).await??)
    }
}

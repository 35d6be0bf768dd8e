//! Threads that own a connection and serve jobs in the order in which they were asked for.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use crate::StoreError;

/// How many jobs wait for a thread before who asks has to wait as well. It is also the most that one
/// commit carries, so that the first of them does not wait for ever more to join.
pub(crate) const QUEUE: usize = 256;

/// Something to do with the connection, or to answer with the error that prevents it. A job catches
/// its own panics.
type Job = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Done + Send>;

/// A job that has run and is yet to be answered.
struct Done {
    /// Whether what it wrote is to be kept.
    succeeded: bool,
    /// Answers who asked: with the job's own result, unless the commit failed.
    answer: Box<dyn FnOnce(Result<(), StoreError>)>,
}

enum Message {
    Run(Job),
    Close,
}

/// The handle of a thread. Dropping it ends the thread once everything asked for is done.
#[derive(Debug)]
pub(crate) struct Worker {
    queue: mpsc::Sender<Message>,
    ended: watch::Receiver<()>,
}

impl Worker {
    /// Starts a thread that writes: whatever has queued goes into one transaction.
    pub(crate) fn writer(conn: Connection, counts: Arc<Counts>) -> Result<Self, StoreError> {
        Self::spawn("store-writer", conn, move |conn, jobs| write_all(conn, jobs, &counts))
    }

    /// Starts a thread that reads: each job sees one state of the database.
    pub(crate) fn reader(conn: Connection) -> Result<Self, StoreError> {
        Self::spawn("store-reader", conn, |conn, jobs| {
            for job in jobs {
                read_one(conn, job);
            }
        })
    }

    fn spawn(
        name: &str,
        mut conn: Connection,
        serve: impl Fn(&mut Connection, Vec<Job>) + Send + 'static,
    ) -> Result<Self, StoreError> {
        let (queue, mut queued) = mpsc::channel(QUEUE);
        let (alive, ended) = watch::channel(());
        let work = move || {
            let mut messages = Vec::with_capacity(QUEUE);
            while queued.blocking_recv_many(&mut messages, QUEUE) > 0 {
                let mut jobs = Vec::with_capacity(messages.len());
                for message in messages.drain(..) {
                    match message {
                        Message::Run(job) => jobs.push(job),
                        Message::Close => queued.close(),
                    }
                }
                serve(&mut conn, jobs);
            }
            // Who waits for the end may move or delete the files at once.
            drop(conn);
            drop(alive);
        };
        thread::Builder::new().name(name.to_owned()).spawn(work).map_err(StoreError::Thread)?;
        Ok(Self { queue, ended })
    }

    /// Has a job done, and gives its result, once `then` has seen it on the thread. Dropping the future does
    /// not take the job back.
    pub(crate) async fn run<T, U, F, N>(&self, job: F, then: N) -> Result<U, StoreError>
    where
        T: Send + 'static,
        U: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        N: FnOnce(T) -> U + Send + 'static,
    {
        self.queue(job, then).await?.await
    }

    /// The same in two parts: once the first is over, the job has its place in the order.
    pub(crate) async fn queue<T, U, F, N>(
        &self,
        job: F,
        then: N,
    ) -> Result<impl Future<Output = Result<U, StoreError>> + Send + use<T, U, F, N>, StoreError>
    where
        T: Send + 'static,
        U: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        N: FnOnce(T) -> U + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move |conn: Result<&Connection, StoreError>| {
            let result = conn.and_then(|conn| {
                // What a panic leaves half done in the database is rolled back, and the closure and
                // all that it owns are gone: nothing broken can be seen afterwards.
                catch_unwind(AssertUnwindSafe(|| job(conn))).unwrap_or(Err(StoreError::Panicked))
            });
            Done {
                succeeded: result.is_ok(),
                answer: Box::new(move |committed| {
                    let seen = result.and_then(|value| {
                        committed?;
                        catch_unwind(AssertUnwindSafe(|| then(value))).map_err(|_| StoreError::Panicked)
                    });
                    // Who asked may have stopped waiting.
                    let _ = reply.send(seen);
                }),
            }
        });
        self.queue.send(Message::Run(job)).await.map_err(|_| StoreError::Closed)?;
        Ok(async { answer.await.map_err(|_| StoreError::Closed)? })
    }

    /// Takes no more jobs, and waits until all that were taken are done and the thread has let go of
    /// the database.
    pub(crate) async fn close(&self) {
        // Nobody receives when it is closed already; the end is still to be waited for.
        let _ = self.queue.send(Message::Close).await;
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// Tells when the thread has let go of the database: by being closed.
    #[cfg(test)]
    pub(crate) fn ended(&self) -> watch::Receiver<()> {
        self.ended.clone()
    }

    /// How many jobs wait.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}

/// What the writer has done.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) commits: AtomicU64,
    pub(crate) writes: AtomicU64,
}

/// Runs every job, in as few transactions as can be, and answers each after the commit that holds it.
fn write_all(conn: &mut Connection, jobs: Vec<Job>, counts: &Counts) {
    let mut jobs = VecDeque::from(jobs);
    // Usually once. Again when SQLite gave up a transaction half-way (a full disk does that): the
    // jobs that were in it have failed, and those behind them have not been tried yet.
    while !jobs.is_empty() {
        let mut done = Vec::with_capacity(jobs.len());
        match write_group(conn, &mut jobs, &mut done) {
            Ok(()) => {
                counts.commits.fetch_add(1, Ordering::Relaxed);
                counts.writes.fetch_add(done.iter().filter(|job| job.succeeded).count() as u64, Ordering::Relaxed);
                for job in done {
                    (job.answer)(Ok(()));
                }
            }
            Err(error) => {
                tracing::error!(%error, writes = done.len(), "a transaction of the store failed");
                let error = Arc::new(error);
                if done.is_empty() {
                    // It could not even be begun; then the jobs behind fare no better.
                    for job in jobs.drain(..) {
                        (job(Err(StoreError::Commit(Arc::clone(&error)))).answer)(Ok(()));
                    }
                }
                for job in done {
                    (job.answer)(Err(StoreError::Commit(Arc::clone(&error))));
                }
            }
        }
    }
}

/// One transaction over the jobs. `done` gets each job that was run; an error means that nothing of
/// any of these is kept.
fn write_group(conn: &mut Connection, jobs: &mut VecDeque<Job>, done: &mut Vec<Done>) -> Result<(), rusqlite::Error> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Prepared once: there are two of these for each job.
    let run = |sql| tx.prepare_cached(sql)?.execute(()).map(drop);
    while !jobs.is_empty() {
        run("SAVEPOINT job")?;
        // Taken only now: what is taken must be answered.
        let Some(job) = jobs.pop_front() else { break };
        let ran = job(Ok(&*tx));
        let succeeded = ran.succeeded;
        done.push(ran);
        // Either fails when the transaction is gone.
        if !succeeded {
            run("ROLLBACK TO job")?;
        }
        run("RELEASE job")?;
    }
    tx.commit()
}

fn read_one(conn: &mut Connection, job: Job) {
    let done = match conn.transaction() {
        Ok(snapshot) => job(Ok(&snapshot)),
        Err(error) => job(Err(error.into())),
    };
    (done.answer)(Ok(()));
}

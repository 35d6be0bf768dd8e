//! What an attempt writes, between those who write it and those who send it.
//!
//! The spools are on the disk, so they are only touched beside the event loop; what the loop itself wants to know
//! is told to it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;
use vm_agent_schemas::wire::{Channel, TaskEnded};

use super::spool::{Piece, Spool};
use crate::disk::beside;

/// The output of one attempt, and its end once there is one. A task never waits for a listener: it writes here,
/// and whoever listens reads from here at its own pace.
#[derive(Debug)]
pub(super) struct Output {
    folder: PathBuf,
    stdout: Kept,
    stderr: Kept,
    end: watch::Sender<Option<TaskEnded>>,
}

/// What is kept of one channel.
#[derive(Debug)]
struct Kept {
    spool: Mutex<Spool>,
    progress: watch::Sender<Progress>,
}

/// How far a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// How much was written, kept or not.
    total: u64,
    /// Up to where it is given out now, if it is on the disk.
    ready: u64,
    finished: bool,
}

impl Progress {
    const fn of(spool: &Spool) -> Self {
        Self { total: spool.total(), ready: spool.ready(), finished: spool.is_finished() }
    }
}

impl Kept {
    fn new(spool: Spool) -> Self {
        Self { progress: watch::Sender::new(Progress::of(&spool)), spool: Mutex::new(spool) }
    }

    fn change(&self, change: impl FnOnce(&mut Spool)) {
        let mut spool = self.spool();
        change(&mut spool);
        self.progress.send_replace(Progress::of(&spool));
    }

    fn total(&self) -> u64 {
        self.progress.borrow().total
    }

    fn spool(&self) -> MutexGuard<'_, Spool> {
        // Each change is whole before anything in it can panic.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    /// The output of an attempt that begins.
    pub(super) fn new(folder: PathBuf, kept: u64) -> Self {
        let spool = |channel| Spool::new(&folder, channel, kept);
        let (stdout, stderr) = (spool(Channel::Stdout), spool(Channel::Stderr));
        Self::of(folder, stdout, stderr, None)
    }

    /// The output of an attempt that ended so in an earlier start: as much of it as is left.
    pub(super) fn recover(folder: PathBuf, kept: u64, end: TaskEnded) -> Self {
        let spool = |channel, total| Spool::recover(&folder, channel, kept, total);
        let stdout = spool(Channel::Stdout, end.report.stdout);
        let stderr = spool(Channel::Stderr, end.report.stderr);
        Self::of(folder, stdout, stderr, Some(end))
    }

    /// The output of an attempt that ended so and of which nothing is left.
    pub(super) fn forgotten(folder: PathBuf, end: TaskEnded) -> Self {
        let spool = |channel, total| Spool::forgotten(&folder, channel, total);
        let stdout = spool(Channel::Stdout, end.report.stdout);
        let stderr = spool(Channel::Stderr, end.report.stderr);
        Self::of(folder, stdout, stderr, Some(end))
    }

    fn of(folder: PathBuf, stdout: Spool, stderr: Spool, end: Option<TaskEnded>) -> Self {
        Self { folder, stdout: Kept::new(stdout), stderr: Kept::new(stderr), end: watch::Sender::new(end) }
    }

    /// Where it lies.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The attempt has written something. Waits for the disk, and so does whoever writes.
    pub(super) async fn push(self: &Arc<Self>, channel: Channel, data: Bytes) {
        if !data.is_empty() {
            let output = Arc::clone(self);
            beside(move || output.kept(channel).change(|spool| spool.push(&data))).await;
        }
    }

    /// The attempt writes nothing more, and what is kept is brought to the disk. Answers how much was written to
    /// stdout and to stderr.
    pub(super) async fn close(self: &Arc<Self>) -> (u64, u64) {
        let output = Arc::clone(self);
        beside(move || {
            output.finish();
            output.sync();
        })
        .await;
        self.totals()
    }

    /// How much was written to stdout and to stderr.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.stdout.total(), self.stderr.total())
    }

    /// The attempt has ended so, and that is in the journal. It waits for the disk, so it is not for the event loop.
    pub(super) fn end(&self, end: TaskEnded) {
        self.finish();
        self.end.send_replace(Some(end));
    }

    /// Somebody has this much of it already.
    pub(super) async fn known(self: &Arc<Self>, stdout: u64, stderr: u64) {
        let output = Arc::clone(self);
        beside(move || {
            output.stdout.change(|spool| spool.known(stdout));
            output.stderr.change(|spool| spool.known(stderr));
        })
        .await;
    }

    /// What comes in a channel at this offset, once there is something or it has ended.
    pub(super) async fn next(self: &Arc<Self>, channel: Channel, from: u64, max: usize) -> Next {
        let mut progress = self.kept(channel).progress.subscribe();
        loop {
            // The sender is this value's own, so there is always one.
            let _ = progress.wait_for(|it| it.finished || it.ready > from).await;
            progress.mark_unchanged();
            let output = Arc::clone(self);
            match beside(move || output.kept(channel).spool().read(from, max)).await {
                Piece::Data { offset, data } => return Next { offset, data, end: false },
                Piece::End { total } => return Next { offset: total, data: Bytes::new(), end: true },
                // What should be ready did not get to the disk.
                Piece::Wait => drop(progress.changed().await),
            }
        }
    }

    /// How the attempt ended, once it has. What it wrote counts as it does now.
    pub(super) async fn ended(&self) -> TaskEnded {
        let mut ends = self.end.subscribe();
        loop {
            if let Some(mut end) = ends.borrow_and_update().clone() {
                (end.report.stdout, end.report.stderr) = self.totals();
                return end;
            }
            // The sender is this value's own, so there is always one.
            let _ = ends.changed().await;
        }
    }

    fn finish(&self) {
        self.stdout.change(Spool::finish);
        self.stderr.change(Spool::finish);
    }

    fn sync(&self) {
        let files = [&self.stdout, &self.stderr].map(|kept| kept.spool().files().collect::<Vec<_>>());
        for file in files.iter().flatten() {
            let synced = std::fs::File::open(file).and_then(|file| file.sync_data());
            if let Err(error) = synced {
                tracing::warn!("output of a task may not survive a loss of power: {}: {error}", file.display());
            }
        }
    }

    const fn kept(&self, channel: Channel) -> &Kept {
        match channel {
            Channel::Stderr => &self.stderr,
            Channel::Stdout | Channel::Stdin => &self.stdout,
        }
    }
}

/// What comes next in a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// Where it begins.
    pub(super) offset: u64,
    /// The data.
    pub(super) data: Bytes,
    /// Whether the channel ends here.
    pub(super) end: bool,
}

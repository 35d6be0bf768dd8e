//! What an attempt writes, between those who write it and those who send it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use vm_agent_schemas::wire::{Channel, TaskEnded};

use super::spool::{Piece, Spool};

/// The output of one attempt, and its end once there is one. A task never waits for a listener: it writes here,
/// and whoever listens reads from here at its own pace.
#[derive(Debug)]
pub(super) struct Output {
    folder: PathBuf,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    stdout: Spool,
    stderr: Spool,
    end: Option<TaskEnded>,
}

impl State {
    const fn spool(&mut self, channel: Channel) -> &mut Spool {
        match channel {
            Channel::Stderr => &mut self.stderr,
            Channel::Stdout | Channel::Stdin => &mut self.stdout,
        }
    }
}

impl Output {
    /// The output of an attempt that begins.
    pub(super) fn new(folder: PathBuf, kept: u64) -> Self {
        let spool = |channel| Spool::new(&folder, channel, kept);
        let state = State { stdout: spool(Channel::Stdout), stderr: spool(Channel::Stderr), end: None };
        Self::of(folder, state)
    }

    /// The output of an attempt that ended so, in an earlier start or long ago: as much of it as is left.
    pub(super) fn recover(folder: PathBuf, kept: u64, end: TaskEnded) -> Self {
        let spool = |channel, total| Spool::recover(&folder, channel, kept, total);
        let stdout = spool(Channel::Stdout, end.report.stdout);
        let stderr = spool(Channel::Stderr, end.report.stderr);
        Self::of(folder, State { stdout, stderr, end: Some(end) })
    }

    fn of(folder: PathBuf, state: State) -> Self {
        Self { folder, state: Mutex::new(state), changed: watch::Sender::new(()) }
    }

    /// Where it lies.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The attempt has written something.
    pub(super) fn push(&self, channel: Channel, data: &[u8]) {
        if !data.is_empty() {
            self.change(|state| state.spool(channel).push(data));
        }
    }

    /// The attempt writes nothing more.
    pub(super) fn finish(&self) {
        self.change(|state| {
            state.stdout.finish();
            state.stderr.finish();
        });
    }

    /// The attempt has ended so, and that is in the journal.
    pub(super) fn end(&self, end: TaskEnded) {
        self.change(|state| state.end = Some(end));
    }

    /// Somebody has this much of it already.
    pub(super) fn known(&self, stdout: u64, stderr: u64) {
        self.change(|state| {
            state.stdout.known(stdout);
            state.stderr.known(stderr);
        });
    }

    /// How much was written to stdout and to stderr.
    pub(super) fn totals(&self) -> (u64, u64) {
        let state = self.lock();
        (state.stdout.total(), state.stderr.total())
    }

    /// Brings what is kept to the disk. It waits for the disk, so it is not for the event loop.
    pub(super) fn sync(&self) {
        let files: Vec<PathBuf> = {
            let state = self.lock();
            state.stdout.files().chain(state.stderr.files()).collect()
        };
        for file in files {
            let synced = std::fs::File::open(&file).and_then(|file| file.sync_data());
            if let Err(error) = synced {
                tracing::warn!("output of a task may not survive a loss of power: {}: {error}", file.display());
            }
        }
    }

    /// What comes in a channel at this offset, once there is something or it has ended.
    pub(super) async fn next(&self, channel: Channel, from: u64, max: usize) -> Next {
        self.when(|state| match state.spool(channel).read(from, max) {
            Piece::Data { offset, data } => Some(Next { offset, data, end: false }),
            Piece::End { total } => Some(Next { offset: total, data: bytes::Bytes::new(), end: true }),
            Piece::Wait => None,
        })
        .await
    }

    /// How the attempt ended, once it has. What it wrote counts as it does now.
    pub(super) async fn ended(&self) -> TaskEnded {
        self.when(|state| {
            let mut end = state.end.clone()?;
            (end.report.stdout, end.report.stderr) = (state.stdout.total(), state.stderr.total());
            Some(end)
        })
        .await
    }

    async fn when<T>(&self, mut holds: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            let held = holds(&mut self.lock());
            if let Some(it) = held {
                return it;
            }
            // The sender is this value's own, so there is always one.
            let _ = changes.changed().await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What comes next in a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// Where it begins.
    pub(super) offset: u64,
    /// The data.
    pub(super) data: bytes::Bytes,
    /// Whether the channel ends here.
    pub(super) end: bool,
}

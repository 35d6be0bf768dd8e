//! What tasks write, and the log that keeps it: appended, and durable only as far as it was flushed.

use bytes::Bytes;
use fastrand::Rng;
use vm_agent_hub::OutputKnown;
use vm_agent_schemas::wire::{Channel, TaskRef};
use vm_agent_store::output::OutputRecord;

/// The channels that a task writes to.
pub const CHANNELS: [Channel; 2] = [Channel::Stdout, Channel::Stderr];

/// What a task writes at a place: each attempt something of its own, so that nothing passes for anything else.
#[must_use]
pub fn byte(task: TaskRef, channel: Channel, offset: u64) -> u8 {
    let id = task.task.uuid().as_u64_pair();
    let seed = id.0 ^ id.1.rotate_left(17) ^ u64::from(task.attempt) << 7 ^ u64::from(channel == Channel::Stderr);
    let mixed = (seed ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed.to_be_bytes()[0]
}

/// A stretch of what a task writes.
#[must_use]
pub fn bytes(task: TaskRef, channel: Channel, from: u64, to: u64) -> Bytes {
    (from..to).map(|offset| byte(task, channel, offset)).collect()
}

/// The output log of the controller.
#[derive(Debug, Default)]
pub struct Log {
    pieces: Vec<OutputRecord>,
    /// So many of them are durable.
    flushed: usize,
}

impl Log {
    /// Appends what is new of records.
    pub fn append(&mut self, records: &[OutputRecord]) {
        for record in records {
            let known = self.end(record.task, record.channel);
            let old = usize::try_from(known.saturating_sub(record.offset)).unwrap_or(usize::MAX);
            if let Some(data) = record.data.get(old..).filter(|data| !data.is_empty()) {
                let (offset, data) = (record.offset.max(known), Bytes::copy_from_slice(data));
                self.pieces.push(OutputRecord { offset, data, ..record.clone() });
            }
        }
    }

    /// Makes durable what was appended, as does whoever opens it.
    pub fn flush(&mut self) {
        self.flushed = self.pieces.len();
    }

    /// The host goes down: what was not flushed may be lost, the last first.
    pub fn crash(&mut self, rng: &mut Rng) {
        let kept = rng.usize(self.flushed..=self.pieces.len());
        self.pieces.truncate(kept);
    }

    /// How much of an attempt is kept, from the beginning.
    #[must_use]
    pub fn known(&self, task: TaskRef) -> OutputKnown {
        OutputKnown { stdout: self.end(task, Channel::Stdout), stderr: self.end(task, Channel::Stderr) }
    }

    /// What is durable of an attempt.
    #[must_use]
    pub fn durable(&self, task: TaskRef) -> Vec<OutputRecord> {
        self.pieces[..self.flushed].iter().filter(|piece| piece.task == task).cloned().collect()
    }

    fn end(&self, task: TaskRef, channel: Channel) -> u64 {
        let pieces = self.pieces.iter().filter(|piece| piece.task == task && piece.channel == channel);
        pieces.map(|piece| piece.offset + piece.data.len() as u64).max().unwrap_or_default()
    }
}

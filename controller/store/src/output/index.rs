//! Where in a segment the output of each attempt is.
//!
//! The index of the segment that is written to lives in memory. A sealed segment has its index in a file
//! beside it, sorted, in which an attempt is found by bisection: what is kept of the past takes no memory.
//!
//! ```text
//! | magic | count | crc32 | entries …
//! entry: | task 16 | attempt 4 | start 4 | end 4 | stdout 8 | stderr 8 |
//! ```
//!
//! An index is made from its segment alone; a file that is missing or damaged is made anew.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use uuid::Uuid;
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::wire::{Channel, TaskRef};

use super::record::Header;

/// Records of one attempt with no more than this between them are one extent: a reader rather skips over
/// what others wrote meanwhile than looks up another place.
const GAP: u64 = 64 * 1024;

const MAGIC: [u8; 4] = *b"VMI1";
const HEADER_LEN: u64 = 12;
const ENTRY_LEN: usize = 44;

/// How much of an attempt's output is kept, in bytes from the beginning of each channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Of stdout.
    pub stdout: u64,
    /// Of stderr.
    pub stderr: u64,
}

impl Known {
    /// Of one of the two.
    #[must_use]
    pub const fn of(&self, channel: Channel) -> u64 {
        match channel {
            Channel::Stderr => self.stderr,
            Channel::Stdin | Channel::Stdout => self.stdout,
        }
    }

    pub(super) fn advance(&mut self, channel: Channel, end: u64) {
        let known = if channel == Channel::Stderr { &mut self.stderr } else { &mut self.stdout };
        *known = end.max(*known);
    }
}

/// A stretch of a segment in which an attempt has records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// The index of a segment that is written to.
#[derive(Debug, Default)]
pub(super) struct Index {
    attempts: BTreeMap<TaskRef, (Known, Vec<Extent>)>,
    extents: usize,
}

impl Index {
    /// Takes note of a record that begins at `start`.
    pub(super) fn note(&mut self, header: &Header, start: u64) {
        let (known, extents) = self.attempts.entry(header.task).or_default();
        known.advance(header.channel, header.end());
        let place = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        let end = place(start + header.record_len());
        match extents.last_mut().filter(|last| start - u64::from(last.end) <= GAP) {
            Some(last) => last.end = end,
            None => {
                extents.push(Extent { start: place(start), end });
                self.extents += 1;
            }
        }
    }

    /// How many extents there are: what it takes in memory.
    pub(super) const fn len(&self) -> usize {
        self.extents
    }

    pub(super) fn known(&self, task: TaskRef) -> Option<Known> {
        self.attempts.get(&task).map(|(known, _)| *known)
    }

    /// Where a task's output is, attempt by attempt.
    pub(super) fn of(&self, task: TaskId) -> Vec<(TaskRef, Extent)> {
        let attempts = self.attempts.range(TaskRef { task, attempt: 0 }..=TaskRef { task, attempt: u32::MAX });
        attempts.flat_map(|(task, (_, extents))| extents.iter().map(|extent| (*task, *extent))).collect()
    }

    /// Writes the index of a segment that is sealed: there whole, or not at all.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut entries = Vec::with_capacity(self.extents * ENTRY_LEN);
        for (task, (known, extents)) in &self.attempts {
            for extent in extents {
                entries.extend(task.task.uuid().as_bytes());
                entries.extend(task.attempt.to_be_bytes());
                entries.extend(extent.start.to_be_bytes());
                entries.extend(extent.end.to_be_bytes());
                entries.extend(known.stdout.to_be_bytes());
                entries.extend(known.stderr.to_be_bytes());
            }
        }
        let growing = path.with_extension("new");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&growing)?;
        file.write_all(&MAGIC)?;
        file.write_all(&u32::try_from(self.extents).unwrap_or(u32::MAX).to_be_bytes())?;
        file.write_all(&crc32fast::hash(&entries).to_be_bytes())?;
        file.write_all(&entries)?;
        file.sync_all()?;
        fs::rename(&growing, path)
    }
}

/// Whether there is a whole index.
pub(super) fn is_whole(path: &Path) -> io::Result<bool> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?.read_to_end(&mut bytes)?,
    };
    let Some((header, entries)) = bytes.split_at_checked(HEADER_LEN as usize) else { return Ok(false) };
    let count = u32::try_from(entries.len() / ENTRY_LEN).unwrap_or(u32::MAX);
    let expected = [&MAGIC[..], &count.to_be_bytes(), &crc32fast::hash(entries).to_be_bytes()].concat();
    Ok(header == expected && entries.len().is_multiple_of(ENTRY_LEN))
}

/// Where a task's output is in a sealed segment, attempt by attempt.
pub(super) fn find(path: &Path, task: TaskId) -> io::Result<Vec<(TaskRef, Extent, Known)>> {
    let file = File::open(path)?;
    let count = (file.metadata()?.len() - HEADER_LEN) / ENTRY_LEN as u64;
    let entry = |number: u64| -> io::Result<(TaskRef, Extent, Known)> {
        let mut bytes = [0; ENTRY_LEN];
        file.read_exact_at(&mut bytes, HEADER_LEN + number * ENTRY_LEN as u64)?;
        Ok(decode(&bytes))
    };
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if entry(middle)?.0.task < task {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let mut found = Vec::new();
    for number in low..count {
        let entry = entry(number)?;
        if entry.0.task != task {
            break;
        }
        found.push(entry);
    }
    Ok(found)
}

fn decode(bytes: &[u8; ENTRY_LEN]) -> (TaskRef, Extent, Known) {
    let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(number(at)) << 32 | u64::from(number(at + 4));
    let mut task = [0; 16];
    task.copy_from_slice(&bytes[..16]);
    let task = TaskRef { task: TaskId::from_uuid(Uuid::from_bytes(task)), attempt: number(16) };
    (task, Extent { start: number(20), end: number(24) }, Known { stdout: long(28), stderr: long(36) })
}

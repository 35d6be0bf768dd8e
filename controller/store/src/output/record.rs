//! Records of the log: a header and data, with a checksum over both.
//!
//! ```text
//! 0       4     8       12     28        32        33       41
//! | magic | len | crc32 | task | attempt | channel | offset | data …
//! ```
//!
//! Numbers are big-endian. The checksum covers everything but the magic and itself.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};

use uuid::Uuid;
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::wire::{Channel, TaskRef};

/// Bytes before the data.
pub(super) const HEADER_LEN: usize = 41;

/// Most data in one record: what claims to hold more is no record.
pub(super) const DATA_MAX: usize = 64 * 1024;

const MAGIC: [u8; 4] = *b"VMO1";

/// What a record says besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) task: TaskRef,
    pub(super) channel: Channel,
    pub(super) offset: u64,
    /// How much data follows.
    pub(super) len: u32,
    crc: u32,
}

impl Header {
    /// Bytes of the whole record.
    pub(super) const fn record_len(&self) -> u64 {
        HEADER_LEN as u64 + self.len as u64
    }

    /// Where the channel is after this record.
    pub(super) const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len as u64)
    }

    /// Reads the header that bytes begin with; nothing when they begin with none.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().and_then(Self::decode)
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (crc, rest) = rest.split_first_chunk()?;
        let (task, rest) = rest.split_first_chunk()?;
        let (attempt, rest) = rest.split_first_chunk()?;
        let (&channel, offset) = rest.split_first()?;
        let len = u32::from_be_bytes(*len);
        let channel = match channel {
            1 => Channel::Stdout,
            2 => Channel::Stderr,
            _ => return None,
        };
        let known = *magic == MAGIC && (1..=DATA_MAX).contains(&(len as usize));
        let task = TaskRef { task: TaskId::from_uuid(Uuid::from_bytes(*task)), attempt: u32::from_be_bytes(*attempt) };
        let offset = u64::from_be_bytes(offset.try_into().ok()?);
        known.then_some(Self { task, channel, offset, len, crc: u32::from_be_bytes(*crc) })
    }
}

/// Appends a record to what is to be written. `data` is neither empty nor longer than [`DATA_MAX`], and
/// the channel is one that a task writes to.
pub(super) fn encode(task: TaskRef, channel: Channel, offset: u64, data: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(data.len()).expect("data of a record is at most DATA_MAX long").to_be_bytes();
    let mut rest = Vec::with_capacity(HEADER_LEN - 12);
    rest.extend(task.task.uuid().as_bytes());
    rest.extend(task.attempt.to_be_bytes());
    rest.push(if channel == Channel::Stderr { 2 } else { 1 });
    rest.extend(offset.to_be_bytes());
    out.extend(MAGIC);
    out.extend(len);
    out.extend(checksum(&[&len, &rest, data]).to_be_bytes());
    out.extend(rest);
    out.extend(data);
}

fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Records of a file, one after the other.
pub(super) struct Records {
    reader: BufReader<File>,
    at: u64,
    end: u64,
}

/// What stands at some place of a file.
pub(super) enum Found {
    /// A record that was asked for, with its data.
    Record(Header, Vec<u8>),
    /// Another record.
    Other(Header),
    /// What is no record, or not a whole one.
    Torn,
    /// Nothing more.
    End,
}

impl Records {
    /// Those that begin from `start` on and end before `end`; `start` is where a record begins.
    pub(super) fn between(mut file: File, start: u64, end: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(start))?;
        Ok(Self { reader: BufReader::with_capacity(DATA_MAX, file), at: start, end })
    }

    /// Where the next one begins.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// The next one. Only the data of one that is wanted is read and checked.
    pub(super) fn next(&mut self, wanted: impl FnOnce(&Header) -> bool) -> io::Result<Found> {
        if self.at >= self.end || self.reader.fill_buf()?.is_empty() {
            return Ok(Found::End);
        }
        let mut bytes = [0; HEADER_LEN];
        if !self.fill(&mut bytes)? {
            return Ok(Found::Torn);
        }
        let Some(header) = Header::decode(&bytes) else { return Ok(Found::Torn) };
        if self.at + header.record_len() > self.end {
            return Ok(Found::Torn);
        }
        if !wanted(&header) {
            self.reader.seek_relative(i64::from(header.len))?;
            self.at += header.record_len();
            return Ok(Found::Other(header));
        }
        let mut data = vec![0; header.len as usize];
        if !self.fill(&mut data)? || checksum(&[&bytes[4..8], &bytes[12..], &data]) != header.crc {
            return Ok(Found::Torn);
        }
        self.at += header.record_len();
        Ok(Found::Record(header, data))
    }

    /// Reads that much, and tells whether there was as much.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        match self.reader.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| true),
        }
    }
}

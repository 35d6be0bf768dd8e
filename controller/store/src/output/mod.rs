//! What tasks write: an append-only log in segment files of a folder, beside the database.
//!
//! ```text
//! output/00000001.log  00000001.idx   sealed: on the disk, with the index of what is in it
//!        00000002.log  00000002.idx
//!        00000003.log                 written to; its index is in memory
//! ```
//!
//! - What [`append`](OutputLog::append) has taken survives the death of the process; what was there at a
//!   [`sync`](OutputLog::sync) survives that of the machine.
//! - A record is there whole or not at all. What a crash leaves half-written at the end is cut off when
//!   the log is opened, and nobody looks for records behind what is none: a task could have written it.
//! - Per attempt and channel the offsets only grow. What is known already is not stored again.
//! - The oldest segments go as wholes, whatever is in them. Where output is missing, offsets jump.

mod index;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::wire::{Channel, TaskRef};

pub use index::Known;
use index::{Extent, Index};
use record::{Found, Header, Records};

/// Extents in the index of one segment before it is sealed, however short it is: the index of the segment
/// that is written to takes some MiB of memory at the most.
const EXTENTS_MAX: usize = 64 * 1024;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a segment before the next one begins; at most 2 GiB.
    pub segment: u64,
    /// Bytes in all. The segment that is written to stays, whatever this says.
    pub total: u64,
    /// How long a segment is kept after it was last written to.
    pub age: Duration,
}

impl Default for Limits {
    /// 2 GiB in segments of 64 MiB, for 90 days.
    fn default() -> Self {
        Self { segment: 64 << 20, total: 2 << 30, age: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// A piece of what an attempt wrote, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputRecord {
    /// Which attempt of which task.
    pub task: TaskRef,
    /// Where it wrote: stdout or stderr.
    pub channel: Channel,
    /// How much it wrote there before, in bytes.
    pub offset: u64,
    /// What it wrote.
    pub data: Bytes,
}

/// A place in the log. Later records have later places, also those of other tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

impl Position {
    /// The place of that number; 0 is the beginning of everything.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The place as a number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    const fn new(segment: u32, at: u64) -> Self {
        Self((segment as u64) << 32 | at)
    }

    const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn at(self) -> u64 {
        self.0 & 0xffff_ffff
    }
}

/// Which output of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The task.
    pub task: TaskId,
    /// Of this attempt; nothing means of all.
    pub attempt: Option<u32>,
    /// Of this channel; nothing means of both.
    pub channel: Option<Channel>,
}

/// A piece of a task's output, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which attempt wrote it.
    pub attempt: u32,
    /// Where.
    pub channel: Channel,
    /// How much was written there before, in bytes. A jump means that something is left out, or no longer
    /// kept.
    pub offset: u64,
    /// What was written.
    pub data: Bytes,
    /// The place after it.
    pub position: Position,
}

/// Pieces in the order in which they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The pieces.
    pub pieces: Vec<Piece>,
    /// Where to go on.
    pub next: Position,
    /// Whether this was all that there is now.
    pub end: bool,
}

/// Why the log can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A file or folder fails.
    #[error("can't {verb} {} of the output log", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A record that was whole once no longer is: the disk lost it, or somebody changed the file.
    #[error("{} of the output log is damaged at byte {at}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
    },
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.to_owned();
    move |source| OutputError::Io { verb, path, source }
}

/// The log. One at a time holds a folder; who holds the state folder does. All calls work on the calling
/// thread.
#[derive(Debug)]
pub struct OutputLog {
    dir: PathBuf,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The sealed segments, by number, with their sizes.
    sealed: BTreeMap<u32, u64>,
    active: Active,
    /// How far the attempts are that are written now.
    known: HashMap<TaskRef, Known>,
}

/// The segment that is written to.
#[derive(Debug)]
struct Active {
    number: u32,
    file: Arc<File>,
    end: u64,
    /// How much of it is on the disk for certain.
    durable: u64,
    index: Index,
    /// A write failed, and there may be something behind the end.
    ragged: bool,
}

impl OutputLog {
    /// Opens the log in a folder, or makes it.
    ///
    /// # Errors
    /// When the folder can't be used.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, OutputError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make the folder", dir))?;
        let mut numbers = segments(dir)?;
        let mut sealed = BTreeMap::new();
        let last = numbers.pop();
        for number in numbers {
            sealed.insert(number, seal_again(dir, number)?);
        }
        let active = match last {
            Some(last) if index::is_whole(&index_path(dir, last)).map_err(failed("read", dir))? => {
                sealed.insert(last, size(&log_path(dir, last))?);
                Active::begin(dir, last + 1)?
            }
            Some(last) => Active::open(dir, last)?,
            None => Active::begin(dir, 1)?,
        };
        let state = Mutex::new(State { sealed, active, known: HashMap::new() });
        Ok(Self { dir: dir.to_owned(), limits, state })
    }

    /// Appends records, all or none. An attempt of which [`known`](Self::known) was never asked is taken
    /// for a new one.
    ///
    /// # Errors
    /// When they can't be written, as on a full disk.
    pub fn append(&self, records: &[OutputRecord]) -> Result<(), OutputError> {
        let mut state = self.lock();
        let mut known = HashMap::new();
        let mut bytes = Vec::new();
        for record in records {
            let known =
                known.entry(record.task).or_insert_with(|| state.known.get(&record.task).copied().unwrap_or_default());
            encode_new(record, known, &mut bytes);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let full =
            state.active.end + bytes.len() as u64 > self.limits.segment || state.active.index.len() > EXTENTS_MAX;
        if full && state.active.end > 0 {
            self.begin_next(&mut state)?;
        }
        state.active.write(&self.dir, &bytes)?;
        state.known.extend(known);
        Ok(())
    }

    /// Whether all that was appended is durable.
    pub fn is_durable(&self) -> bool {
        let state = self.lock();
        state.active.durable == state.active.end
    }

    /// Makes durable what was appended. The disk is left alone when that is so already: even a flush of
    /// nothing takes its time.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<(), OutputError> {
        // Without the lock: who reads need not wait for the disk.
        let (file, number, end) = {
            let state = self.lock();
            if state.active.durable == state.active.end {
                return Ok(());
            }
            (Arc::clone(&state.active.file), state.active.number, state.active.end)
        };
        file.sync_data().map_err(failed("flush", &log_path(&self.dir, number)))?;
        let active = &mut self.lock().active;
        if active.number == number {
            active.durable = active.durable.max(end);
        }
        Ok(())
    }

    /// How much of an attempt's output is kept, from the beginning: where it has to go on.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn known(&self, task: TaskRef) -> Result<Known, OutputError> {
        let mut state = self.lock();
        if let Some(known) = state.known.get(&task) {
            return Ok(*known);
        }
        // A segment knows only of what is in it: all are asked, for a channel may have been quiet for long.
        let mut known = state.active.index.known(task).unwrap_or_default();
        for number in state.sealed.keys() {
            let path = index_path(&self.dir, *number);
            let found = index::find(&path, task.task).map_err(failed("read", &path))?;
            for (_, _, earlier) in found.into_iter().filter(|(attempt, ..)| *attempt == task) {
                known.advance(Channel::Stdout, earlier.stdout);
                known.advance(Channel::Stderr, earlier.stderr);
            }
        }
        state.known.insert(task, known);
        Ok(known)
    }

    /// Forgets how far an attempt is: it has ended, and nothing of it is appended any more.
    pub fn settled(&self, task: TaskRef) {
        self.lock().known.remove(&task);
    }

    /// The pieces of a task's output after a place, up to about `max` bytes: at least one if there is one.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn read(&self, wanted: Wanted, after: Position, max: usize) -> Result<Page, OutputError> {
        let (after, sealed, active, extents, end) = {
            let state = self.lock();
            let end = Position::new(state.active.number, state.active.end);
            // A place beyond the end is of another log, such as before a restore.
            let after = if after > end { Position::default() } else { after };
            let sealed: Vec<u32> = state.sealed.range(after.segment()..).map(|(number, _)| *number).collect();
            (after, sealed, state.active.number, state.active.index.of(wanted.task), end)
        };
        let mut reading = Reading { wanted, after, room: max, pieces: Vec::new() };
        for number in sealed {
            let path = index_path(&self.dir, number);
            let extents = match index::find(&path, wanted.task) {
                // It went meanwhile, being the oldest.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found.map_err(failed("read", &path))?,
            };
            reading.segment(&self.dir, number, extents.into_iter().map(|(task, extent, _)| (task, extent)))?;
        }
        reading.segment(&self.dir, active, extents)?;
        let full = reading.room == 0;
        let next = reading.pieces.last().filter(|_| full).map_or(end, |piece| piece.position);
        Ok(Page { pieces: reading.pieces, next, end: !full })
    }

    /// Removes the oldest segments beyond what is kept, and tells how many.
    ///
    /// # Errors
    /// When they can't be removed.
    pub fn prune(&self, now: SystemTime) -> Result<usize, OutputError> {
        self.prune_in(&mut self.lock(), now)
    }

    fn prune_in(&self, state: &mut State, now: SystemTime) -> Result<usize, OutputError> {
        let mut total = state.active.end + state.sealed.values().sum::<u64>();
        let mut removed = 0;
        while let Some((&number, &size)) = state.sealed.first_key_value() {
            let path = log_path(&self.dir, number);
            let written = fs::metadata(&path).and_then(|it| it.modified()).map_err(failed("look at", &path))?;
            let old = now.duration_since(written).is_ok_and(|age| age > self.limits.age);
            if total <= self.limits.total && !old {
                break;
            }
            for path in [path, index_path(&self.dir, number)] {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
            state.sealed.remove(&number);
            total -= size;
            removed += 1;
        }
        Ok(removed)
    }

    /// Seals the segment that is written to, and begins the next one.
    fn begin_next(&self, state: &mut State) -> Result<(), OutputError> {
        let Active { number, end, .. } = state.active;
        state.active.file.sync_all().map_err(failed("flush", &log_path(&self.dir, number)))?;
        let path = index_path(&self.dir, number);
        state.active.index.write(&path).map_err(failed("write", &path))?;
        state.active = Active::begin(&self.dir, number + 1)?;
        state.sealed.insert(number, end);
        self.prune_in(state, SystemTime::now()).map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends to what is to be written what of a record is new.
fn encode_new(record: &OutputRecord, known: &mut Known, bytes: &mut Vec<u8>) {
    let mut offset = record.offset.max(known.of(record.channel));
    let old = usize::try_from(offset - record.offset).unwrap_or(usize::MAX);
    // What goes to a task is none of its output.
    let data = record.data.get(old..).filter(|_| record.channel != Channel::Stdin).unwrap_or_default();
    for data in data.chunks(record::DATA_MAX) {
        record::encode(record.task, record.channel, offset, data, bytes);
        offset += data.len() as u64;
        known.advance(record.channel, offset);
    }
}

impl Active {
    /// An empty segment.
    fn begin(dir: &Path, number: u32) -> Result<Self, OutputError> {
        let path = log_path(dir, number);
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(true).read(true).write(true).mode(0o600).open(&path);
        let file = Arc::new(file.map_err(failed("make", &path))?);
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("flush", dir))?;
        Ok(Self { number, file, end: 0, durable: 0, index: Index::default(), ragged: false })
    }

    /// A segment that an earlier life wrote to: what is no whole record at its end is cut off.
    fn open(dir: &Path, number: u32) -> Result<Self, OutputError> {
        let path = log_path(dir, number);
        let (index, end) = scan(&path)?;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        let cut = || {
            if file.metadata()?.len() > end {
                file.set_len(end)?;
            }
            // Whoever asks how much is known is to be told what survives.
            file.sync_all()
        };
        cut().map_err(failed("mend", &path))?;
        Ok(Self { number, file: Arc::new(file), end, durable: end, index, ragged: false })
    }

    /// Writes encoded records, all or none.
    fn write(&mut self, dir: &Path, bytes: &[u8]) -> Result<(), OutputError> {
        let path = || log_path(dir, self.number);
        if self.ragged {
            // Before anything else: behind shorter records the rest of longer ones would stand.
            self.file.set_len(self.end).map_err(failed("mend", &path()))?;
            self.ragged = false;
        }
        if let Err(error) = self.file.write_all_at(bytes, self.end) {
            self.ragged = self.file.set_len(self.end).is_err();
            return Err(failed("write to", &path())(error));
        }
        let mut at = 0;
        while let Some(header) = Header::read(&bytes[at..]) {
            self.index.note(&header, self.end + at as u64);
            at += header.record_len() as usize;
        }
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// A reading of a task's output.
struct Reading {
    wanted: Wanted,
    after: Position,
    /// How many bytes may still come.
    room: usize,
    pieces: Vec<Piece>,
}

impl Reading {
    fn segment(
        &mut self,
        dir: &Path,
        number: u32,
        extents: impl IntoIterator<Item = (TaskRef, Extent)>,
    ) -> Result<(), OutputError> {
        let path = log_path(dir, number);
        let from = if self.after.segment() == number { self.after.at() } else { 0 };
        let wanted = |task: &TaskRef| self.wanted.attempt.is_none_or(|attempt| task.attempt == attempt);
        let extents: Vec<_> =
            extents.into_iter().filter(|(task, extent)| wanted(task) && u64::from(extent.end) > from).collect();
        for (task, extent) in extents {
            if self.room == 0 {
                return Ok(());
            }
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file.map_err(failed("open", &path))?,
            };
            self.extent(file, &path, number, task, extent, from)?;
        }
        Ok(())
    }

    fn extent(
        &mut self,
        file: File,
        path: &Path,
        number: u32,
        task: TaskRef,
        extent: Extent,
        from: u64,
    ) -> Result<(), OutputError> {
        // A place that was given away is one where a record begins.
        let start = u64::from(extent.start).max(from);
        let mut records = Records::between(file, start, extent.end.into()).map_err(failed("read", path))?;
        while self.room > 0 {
            let wanted =
                |it: &Header| it.task == task && self.wanted.channel.is_none_or(|channel| it.channel == channel);
            match records.next(wanted).map_err(failed("read", path))? {
                Found::Record(Header { channel, offset, .. }, data) => {
                    self.room = self.room.saturating_sub(data.len());
                    let position = Position::new(number, records.at());
                    self.pieces.push(Piece { attempt: task.attempt, channel, offset, data: data.into(), position });
                }
                Found::Other(_) => {}
                Found::Torn => return Err(OutputError::Damaged { path: path.to_owned(), at: records.at() }),
                Found::End => break,
            }
        }
        Ok(())
    }
}

/// Reads a segment from its beginning: its index, and where its last whole record ends.
fn scan(path: &Path) -> Result<(Index, u64), OutputError> {
    let file = File::open(path).map_err(failed("open", path))?;
    let mut records = Records::between(file, 0, u64::MAX).map_err(failed("read", path))?;
    let mut index = Index::default();
    loop {
        let start = records.at();
        match records.next(|_| true).map_err(failed("read", path))? {
            Found::Record(header, _) | Found::Other(header) => index.note(&header, start),
            Found::Torn => {
                tracing::warn!(path = %path.display(), at = start, "The output log has no whole record from here on");
                return Ok((index, start));
            }
            Found::End => return Ok((index, start)),
        }
    }
}

/// Makes sure that a sealed segment has its index, and gives its size.
fn seal_again(dir: &Path, number: u32) -> Result<u64, OutputError> {
    let (log, index) = (log_path(dir, number), index_path(dir, number));
    if !index::is_whole(&index).map_err(failed("read", &index))? {
        scan(&log)?.0.write(&index).map_err(failed("write", &index))?;
    }
    size(&log)
}

fn size(path: &Path) -> Result<u64, OutputError> {
    fs::metadata(path).map(|it| it.len()).map_err(failed("look at", path))
}

/// The segments of a folder, in order. An index without its segment goes.
fn segments(dir: &Path) -> Result<Vec<u32>, OutputError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("read the folder", dir))? {
        let path = entry.map_err(failed("read the folder", dir))?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        match (number, path.extension().and_then(|it| it.to_str())) {
            (Some(number), Some("log")) => numbers.push(number),
            (Some(number), Some("idx")) if log_path(dir, number).exists() => {}
            (Some(_), Some("idx" | "new")) => fs::remove_file(&path).map_err(failed("remove", &path))?,
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn log_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.log"))
}

fn index_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.idx"))
}

//! What one channel of an attempt wrote, on disk: the first half of what is to be kept, and the last half.
//!
//! The data lies in files that are named by where they begin, `<channel>.<offset>`, so that the folder alone
//! tells after a crash what there is. Where a file ends is fixed beforehand: the first half is cut into
//! pieces, and so is all that follows, of which the oldest files are removed as it grows. No more than two
//! pieces beyond the last half are ever on the disk.
//!
//! A disk that takes no more stops nobody: what does not fit is left out up to the end of its piece, as if
//! it had come between the halves.
//!
//! Writing goes to the system's cache and is quick, mostly; [`Spool::files`] are to be synced before anything relies
//! on them after a loss of power. All of it waits for the disk, so it is not for the event loop.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use vm_agent_schemas::wire::Channel;

/// In how many pieces a half is cut.
const PIECES: u64 = 8;
/// The smallest piece, in bytes: a file costs more than what is in it below that.
const PIECE_MIN: u64 = 64 * 1024;

/// One channel's output.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    channel: Channel,
    layout: Layout,
    /// How much was written, kept or not.
    total: u64,
    /// What is on the disk, oldest first.
    segments: Vec<Segment>,
    /// The last segment, as long as it grows.
    open: Option<File>,
    /// The disk took no more: what comes before this is left out.
    skip: u64,
    finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: u64,
    len: u64,
}

impl Segment {
    const fn end(self) -> u64 {
        self.start + self.len
    }
}

/// Where what lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// How much of the beginning is kept.
    first: u64,
    /// How much of the end is kept.
    last: u64,
}

impl Layout {
    const fn new(kept: u64) -> Self {
        Self { first: kept / 2, last: kept - kept / 2 }
    }

    /// Where the piece ends that holds this offset.
    fn boundary(self, offset: u64) -> u64 {
        let piece = |half: u64| half.div_ceil(PIECES).max(PIECE_MIN);
        if offset < self.first {
            let piece = piece(self.first);
            ((offset / piece + 1) * piece).min(self.first)
        } else {
            let piece = piece(self.last);
            self.first + ((offset - self.first) / piece + 1) * piece
        }
    }

    /// Where the last half begins.
    fn tail(self, total: u64) -> u64 {
        total.saturating_sub(self.last).max(self.first)
    }
}

/// What comes next in a spool.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Data, which begins here: at the offset that was asked for, or later where something was left out.
    Data {
        /// Where it begins.
        offset: u64,
        /// The data.
        data: Bytes,
    },
    /// Nothing as long as the process may write more.
    Wait,
    /// Nothing any more. The channel ends here.
    End {
        /// How much was written in all.
        total: u64,
    },
}

impl Spool {
    /// An empty spool, of which this many bytes are kept.
    pub(super) fn new(folder: &Path, channel: Channel, kept: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            channel,
            layout: Layout::new(kept),
            total: 0,
            segments: Vec::new(),
            open: None,
            skip: 0,
            finished: false,
        }
    }

    /// What an earlier start of the runtime left, and nothing more comes; of which at least `total` is known to
    /// have been written.
    pub(super) fn recover(folder: &Path, channel: Channel, kept: u64, total: u64) -> Self {
        let mut spool = Self::new(folder, channel, kept);
        let prefix = format!("{}.", name(channel));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let start = entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
            if let (Some(start), Ok(metadata)) = (start, entry.metadata()) {
                spool.segments.push(Segment { start, len: metadata.len() });
            }
        }
        spool.segments.sort_unstable_by_key(|segment| segment.start);
        spool.total = spool.segments.last().map_or(0, |segment| segment.end()).max(total);
        spool.finished = true;
        spool
    }

    /// What was left of it and is no more; so much is known to have been written.
    pub(super) fn forgotten(folder: &Path, channel: Channel, total: u64) -> Self {
        Self { total, finished: true, ..Self::new(folder, channel, 0) }
    }

    /// How much was written, kept or not.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    /// Up to where there is something to give out now, if the disk took it.
    pub(super) const fn ready(&self) -> u64 {
        if self.finished || self.total < self.layout.first { self.total } else { self.layout.first }
    }

    /// Whether nothing more comes.
    pub(super) const fn is_finished(&self) -> bool {
        self.finished
    }

    /// Somebody knows of this much: what a crash took away here counts as left out.
    pub(super) fn known(&mut self, total: u64) {
        if self.finished {
            self.total = self.total.max(total);
        }
    }

    /// Adds what the process wrote.
    pub(super) fn push(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let boundary = self.layout.boundary(self.total);
            let len = usize::try_from(boundary - self.total).unwrap_or(usize::MAX).min(data.len());
            let (piece, rest) = data.split_at(len);
            if self.total >= self.skip && self.layout.last > 0 {
                self.write(piece, boundary);
            }
            self.total += len as u64;
            data = rest;
        }
    }

    /// Nothing more comes.
    pub(super) fn finish(&mut self) {
        self.finished = true;
        self.open = None;
    }

    /// What comes at this offset or after it, at most `max` bytes. As long as more may come only the first half
    /// is given out: what will be kept of the rest is not known.
    pub(super) fn read(&self, from: u64, max: usize) -> Piece {
        let mut from = from;
        let tail = self.layout.tail(self.total);
        for segment in &self.segments {
            if segment.end() <= from {
                continue;
            }
            // A piece lies in one of the halves.
            let live = segment.start < self.layout.first;
            if !live && !self.finished {
                break;
            }
            let offset = from.max(segment.start).max(if live { 0 } else { tail });
            let len = usize::try_from(segment.end().saturating_sub(offset)).unwrap_or(max).min(max);
            let mut data = vec![0; len];
            let read = File::open(self.path(*segment))
                .and_then(|file| file.read_exact_at(&mut data, offset - segment.start.min(offset)));
            match read {
                Ok(()) if len > 0 => return Piece::Data { offset, data: data.into() },
                // What can't be read any more is left out.
                _ => from = segment.end(),
            }
        }
        if self.finished { Piece::End { total: self.total.max(from) } } else { Piece::Wait }
    }

    /// The files, to be synced.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.segments.iter().map(|segment| self.path(*segment))
    }

    /// Writes what is to be kept if nothing overtakes it.
    fn write(&mut self, mut data: &[u8], boundary: u64) {
        let mut offset = self.total;
        while !data.is_empty() {
            let written = self.file(offset).and_then(|file| file.write(data));
            match written {
                Ok(len) if len > 0 => {
                    if let Some(segment) = self.segments.last_mut() {
                        segment.len += len as u64;
                    }
                    offset += len as u64;
                    data = &data[len..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                refused => {
                    if self.skip == 0 {
                        let why = refused.map_or_else(|error| error.to_string(), |_| "nothing was written".to_owned());
                        tracing::warn!("output of a task can't be kept in {}: {why}", self.folder.display());
                    }
                    self.open = None;
                    self.skip = boundary;
                    return;
                }
            }
        }
    }

    /// The file for what comes at this offset.
    fn file(&mut self, offset: u64) -> std::io::Result<&mut File> {
        let goes_on = self
            .segments
            .last()
            .is_some_and(|last| last.end() == offset && (last.len == 0 || self.layout.boundary(last.start) != offset));
        if !goes_on || self.open.is_none() {
            self.open = None;
            self.prune(offset);
            let segment = Segment { start: offset, len: 0 };
            fs::DirBuilder::new().recursive(true).create(&self.folder)?;
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(self.path(segment))?;
            self.segments.push(segment);
            self.open = Some(file);
        }
        self.open.as_mut().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Removes what the last half has left behind.
    fn prune(&mut self, total: u64) {
        let (first, tail) = (self.layout.first, self.layout.tail(total));
        let gone = |segment: &Segment| segment.len == 0 || (segment.start >= first && segment.end() <= tail);
        for segment in self.segments.extract_if(.., |segment| gone(segment)) {
            // What stays is removed with the folder.
            let _ = fs::remove_file(path(&self.folder, self.channel, segment));
        }
    }

    fn path(&self, segment: Segment) -> PathBuf {
        path(&self.folder, self.channel, segment)
    }
}

fn path(folder: &Path, channel: Channel, segment: Segment) -> PathBuf {
    folder.join(format!("{}.{}", name(channel), segment.start))
}

const fn name(channel: Channel) -> &'static str {
    match channel {
        Channel::Stdin => "stdin",
        Channel::Stdout => "stdout",
        Channel::Stderr => "stderr",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that is given out from an offset on: ranges of bytes, and where it ends.
    fn all(spool: &Spool, from: u64) -> (Vec<(u64, Vec<u8>)>, Option<u64>) {
        let (mut at, mut ranges) = (from, Vec::<(u64, Vec<u8>)>::new());
        loop {
            match spool.read(at, 100_000) {
                Piece::Data { offset, data } => {
                    at = offset + data.len() as u64;
                    match ranges.last_mut() {
                        Some((start, range)) if *start + range.len() as u64 == offset => range.extend_from_slice(&data),
                        _ => ranges.push((offset, data.to_vec())),
                    }
                }
                Piece::Wait => return (ranges, None),
                Piece::End { total } => return (ranges, Some(total)),
            }
        }
    }

    fn written(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8 ^ (at / 251 % 256) as u8).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_first_and_the_last_half_are_kept_however_it_is_written(
            kept in prop_oneof![0..10_u64, 100_000..600_000_u64],
            pieces in proptest::collection::vec(0..200_000_usize, 0..12),
            known in 0..700_000_u64,
        ) {
            let place = tempfile::tempdir().unwrap();
            let folder = place.path().join("spool");
            let mut spool = Spool::new(&folder, Channel::Stdout, kept);
            let data = written(pieces.iter().sum());
            let mut at = 0;
            for len in pieces {
                spool.push(&data[at..at + len]);
                at += len;
                let on_disk: u64 = spool.segments.iter().map(|segment| segment.len).sum();
                prop_assert!(on_disk <= kept + 2 * PIECE_MIN.max(kept / 16 + 1));
            }
            let (first, last) = (usize::try_from(kept / 2).unwrap(), usize::try_from(kept - kept / 2).unwrap());
            let head = &data[..first.min(data.len())];
            let (live, end) = all(&spool, 0);
            prop_assert_eq!(live.concat(), head, "live");
            prop_assert_eq!(end, None);
            spool.finish();
            let tail = data.len().saturating_sub(last).max(head.len());
            let recovered = Spool::recover(&folder, Channel::Stdout, kept, spool.total());
            for spool in [spool, recovered] {
                let (ranges, end) = all(&spool, 0);
                prop_assert_eq!(ranges.concat(), [head, &data[tail..]].concat());
                prop_assert_eq!(end, Some(data.len() as u64));
                let known = known.min(data.len() as u64);
                for (offset, range) in all(&spool, known).0 {
                    prop_assert!(offset >= known);
                    let offset = usize::try_from(offset).unwrap();
                    prop_assert_eq!(&data[offset..offset + range.len()], range);
                }
            }
        }
    }

    trait Concat {
        fn concat(&self) -> Vec<u8>;
    }

    impl Concat for Vec<(u64, Vec<u8>)> {
        fn concat(&self) -> Vec<u8> {
            self.iter().flat_map(|(_, range)| range.clone()).collect()
        }
    }

    #[test]
    fn what_the_disk_does_not_take_is_left_out_up_to_the_end_of_its_piece() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("spool");
        // A file is where the folder should be.
        fs::write(&folder, "").unwrap();
        let mut spool = Spool::new(&folder, Channel::Stderr, 1 << 20);
        spool.push(b"lost");
        fs::remove_file(&folder).unwrap();
        spool.push(b"lost as well");
        spool.push(&vec![b'x'; usize::try_from(PIECE_MIN).unwrap()]);
        spool.finish();
        let (ranges, end) = all(&spool, 0);
        assert_eq!(ranges, [(PIECE_MIN, vec![b'x'; 16])]);
        assert_eq!(end, Some(PIECE_MIN + 16));
    }

    #[test]
    fn what_is_gone_from_the_disk_is_left_out_and_nothing_known_is_taken_back() {
        let place = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(place.path(), Channel::Stdout, 100);
        spool.push(b"hello");
        fs::remove_file(place.path().join("stdout.0")).unwrap();
        spool.known(9);
        assert_eq!(spool.total(), 5, "the process may still write it");
        spool.finish();
        spool.known(9);
        assert_eq!(all(&spool, 0), (vec![], Some(9)));
    }
}

//! Output of an attempt: how much of it is known, and how much of it is kept.
//!
//! Offsets count what a process wrote, so where one jumps something was left out. A runtime that repeats
//! what is known is heard and nothing is stored twice.

use bytes::Bytes;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::{Channel, Frame, WINDOW};

use super::OutputKnown;
use super::handshake::Refusal;

/// Most output of a channel that waits to be stored, in bytes: a window of this session, and one of the
/// session before, whose end need not have stopped the storing.
const UNSTORED_MAX: u64 = 2 * WINDOW;

/// How much more is taken before the runtime is told: often enough that it never stands still, and seldom
/// enough that small writes do not cost a message each.
const TELL_EVERY: u64 = WINDOW / 4;

/// The output of one attempt.
#[derive(Debug, Default)]
pub(super) struct Output {
    stdout: Progress,
    stderr: Progress,
}

/// One channel.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes from the beginning that are stored or being stored, or were left out.
    known: u64,
    /// Bytes that were stored.
    kept: u64,
    /// Bytes that are being stored.
    unstored: u64,
    /// Where the next frame of the present stream may begin at the earliest.
    position: u64,
    /// How much of the present stream the runtime was told to be taken.
    told: u64,
    ended: bool,
}

/// What a frame brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// What is new, and where it begins.
    pub(super) news: Option<(u64, Bytes)>,
    /// Up to where the runtime is to be told that it is taken, if that is due.
    pub(super) tell: Option<u64>,
}

impl Output {
    /// So much of the attempt's output was stored before.
    pub(super) fn of(task: &Task, known: OutputKnown) -> Self {
        // A runtime leaves out what lies between the first half and the last, and nobody remembers how much
        // that was: what is known beyond the first half may be a single byte of the last one.
        let half = task.job.output.bytes() / 2;
        let progress = |known: u64| Progress { known, kept: known.min(half), ..Progress::default() };
        Self { stdout: progress(known.stdout), stderr: progress(known.stderr) }
    }

    /// A new stream carries it, from the beginning.
    pub(super) const fn begin(&mut self) {
        self.stdout.begin(0);
        self.stderr.begin(0);
    }

    /// A new stream carries what is not known.
    pub(super) const fn resume(&mut self) -> OutputKnown {
        let known = OutputKnown { stdout: self.stdout.known, stderr: self.stderr.known };
        self.stdout.begin(known.stdout);
        self.stderr.begin(known.stderr);
        known
    }

    /// Output came. At most `bound` bytes of a channel are kept, and what is left of the frame in which that
    /// is reached.
    pub(super) fn receive(&mut self, frame: &Frame, bound: u64) -> Result<Taken, Refusal> {
        match self.channel(frame.channel) {
            Some(progress) => progress.receive(frame, bound),
            None => Err(Refusal::protocol("a runtime sent data on stdin")),
        }
    }

    /// This is durable as far as it has to be.
    pub(super) const fn stored(&mut self, channel: Channel, len: u64) {
        if let Some(progress) = self.channel(channel) {
            progress.unstored = progress.unstored.saturating_sub(len);
        }
    }

    /// This could not be stored: it has to come again.
    pub(super) fn not_stored(&mut self, channel: Channel, offset: u64, len: u64) {
        self.stored(channel, len);
        if let Some(progress) = self.channel(channel) {
            progress.known = progress.known.min(offset);
            progress.kept = progress.kept.saturating_sub(len);
        }
    }

    const fn channel(&mut self, channel: Channel) -> Option<&mut Progress> {
        match channel {
            Channel::Stdin => None,
            Channel::Stdout => Some(&mut self.stdout),
            Channel::Stderr => Some(&mut self.stderr),
        }
    }
}

impl Progress {
    const fn begin(&mut self, from: u64) {
        self.position = from;
        self.told = from;
        self.ended = false;
    }

    fn receive(&mut self, frame: &Frame, bound: u64) -> Result<Taken, Refusal> {
        let violation = |what: &str| Err(Refusal::flow(format!("stream {}: {what}", frame.stream)));
        let len = frame.data.len() as u64;
        if self.ended {
            return violation("data came after the end of its channel");
        }
        if frame.offset < self.position {
            return violation("the offset lies before the data so far");
        }
        if len == 0 && !frame.end {
            return violation("a frame carries no data and ends nothing");
        }
        let Some(end) = frame.offset.checked_add(len) else { return violation("the offset is too large") };
        if self.unstored + len > UNSTORED_MAX {
            return violation("more was sent than the window allows");
        }
        self.position = end;
        self.ended = frame.end;
        let due = end - self.told >= TELL_EVERY;
        if due {
            self.told = end;
        }
        Ok(Taken { news: self.news(frame, end, bound), tell: due.then_some(end) })
    }

    fn news(&mut self, frame: &Frame, end: u64, bound: u64) -> Option<(u64, Bytes)> {
        let from = frame.offset.max(self.known);
        if from >= end {
            return None;
        }
        self.known = end;
        if self.kept >= bound {
            return None;
        }
        // At most the length of the frame, which is far below what a `usize` holds.
        let skipped = usize::try_from(from - frame.offset).ok()?;
        let data = frame.data.slice(skipped..);
        self.kept += data.len() as u64;
        self.unstored += data.len() as u64;
        Some((from, data))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use vm_agent_schemas::ids::TaskId;
    use vm_agent_schemas::task::{Job, TaskSource, Terms};
    use vm_agent_schemas::units::ByteSize;

    use super::*;

    const BOUND: u64 = 1000;

    fn frame(offset: u64, data: &'static str, end: bool) -> Frame {
        Frame { stream: 1, channel: Channel::Stdout, offset, end, data: data.into() }
    }

    fn news(output: &mut Output, frame: &Frame) -> Option<(u64, Bytes)> {
        output.receive(frame, BOUND).unwrap().news
    }

    #[test]
    fn what_is_known_is_not_stored_twice_and_gaps_are_allowed() {
        let mut output = Output::default();
        assert_eq!(news(&mut output, &frame(0, "hello", false)), Some((0, "hello".into())));
        output.begin();
        assert_eq!(news(&mut output, &frame(0, "hel", false)), None);
        assert_eq!(news(&mut output, &frame(3, "lo w", false)), Some((5, " w".into())));
        assert_eq!(news(&mut output, &frame(100, "end", true)), Some((100, "end".into())));
        assert_eq!(output.resume(), OutputKnown { stdout: 103, stderr: 0 });
    }

    #[test]
    fn what_could_not_be_stored_comes_again() {
        let mut output = Output::default();
        news(&mut output, &frame(0, "one", false));
        news(&mut output, &frame(3, "two", false));
        output.stored(Channel::Stdout, 3);
        output.not_stored(Channel::Stdout, 3, 3);
        assert_eq!(output.resume().stdout, 3);
        assert_eq!(news(&mut output, &frame(3, "two", false)), Some((3, "two".into())));
    }

    #[test]
    fn order_ends_and_windows_are_kept() {
        let refused = |output: &mut Output, frame: Frame| output.receive(&frame, u64::MAX).is_err();
        let mut output = Output::default();
        news(&mut output, &frame(0, "hello", false));
        assert!(refused(&mut output, frame(4, "x", false)), "before the data so far");
        assert!(refused(&mut output, frame(5, "", false)), "nothing at all");
        assert!(refused(&mut output, frame(u64::MAX, "x", false)), "beyond all numbers");
        assert_eq!(news(&mut output, &frame(5, "", true)), None);
        assert!(refused(&mut output, frame(5, "x", false)), "after the end");
        let mut output = Output::default();
        let piece = Bytes::from(vec![0; 32 * 1024]);
        let piece = |number: u64| Frame { data: piece.clone(), ..frame(number * 32 * 1024, "", false) };
        assert!((0..16).all(|number| !refused(&mut output, piece(number))));
        assert!(refused(&mut output, piece(16)), "the storage is behind by two windows");
        output.stored(Channel::Stdout, 32 * 1024);
        assert!(!refused(&mut output, piece(16)));
    }

    #[test]
    fn the_runtime_is_told_each_quarter_of_a_window() {
        let mut output = Output::default();
        let data = Bytes::from(vec![0; 32 * 1024]);
        let told = (0..4).map(|number| {
            let frame = Frame { data: data.clone(), ..frame(number * 32 * 1024, "", false) };
            output.receive(&frame, u64::MAX).unwrap().tell
        });
        assert_eq!(told.collect::<Vec<_>>(), [None, Some(65536), None, Some(131_072)]);
    }

    #[test]
    fn what_was_left_out_or_could_not_be_stored_takes_no_room() {
        let source = TaskSource::Request { author: "test".to_owned(), key: None };
        let job = Job { output: ByteSize::from_bytes(8), ..Job::exec(["true"]) };
        let task = Task::new(TaskId::generate(), None, source, job, Terms::default(), Timestamp::UNIX_EPOCH);
        let mut output = Output::of(&task, OutputKnown { stdout: 97, stderr: 0 });
        output.resume();
        let take = |output: &mut Output, frame: Frame| output.receive(&frame, 8).unwrap().news.is_some();
        assert!(take(&mut output, frame(97, "xyz", false)), "only the first half and a byte are stored");
        let mut output = Output::default();
        assert!(take(&mut output, frame(0, "12345678", false)));
        output.not_stored(Channel::Stdout, 0, 8);
        output.begin();
        assert!(take(&mut output, frame(0, "12345678", false)), "it is not stored");
    }

    #[test]
    fn only_so_much_is_kept_and_all_is_counted() {
        let mut output = Output::default();
        let take = |output: &mut Output, frame: Frame| output.receive(&frame, 4).unwrap().news.is_some();
        assert!(take(&mut output, frame(0, "hello", false)), "a frame is not cut in two");
        assert!(!take(&mut output, frame(5, "world", false)));
        assert_eq!(output.resume().stdout, 10);
    }
}

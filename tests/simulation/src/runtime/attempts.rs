//! What a runtime knows of the attempts that it was given, and how it tells what they wrote: the first and the
//! last of it, from where it is known.

use fastrand::Rng;
use vm_agent_schemas::task::Report;
use vm_agent_schemas::wire::{Frame, FromRuntime, TaskEnded, TaskOutcome, TaskRef};

use crate::output::{CHANNELS, bytes};

/// Most bytes in a frame here: few, so that connections break in the middle of things.
const FRAME_MAX: u64 = 48;

/// What is known of a task.
#[derive(Debug, Clone)]
pub enum Known {
    /// It has begun.
    Started,
    /// It has ended, and the hub may not know.
    Ended(TaskOutcome),
    /// The hub knows.
    Settled,
}

/// An attempt in the journal, with its spool.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Which.
    pub task: TaskRef,
    /// How far it is.
    pub known: Known,
    /// How much of each channel is kept.
    pub bound: u64,
    /// How much it has written, by channel.
    pub written: [u64; 2],
    feed: Option<Feed>,
}

/// How far its output was sent in a session.
#[derive(Debug, Clone)]
struct Feed {
    /// Nothing when only the end is wanted.
    stream: Option<u32>,
    sent: [u64; 2],
    closed: [bool; 2],
    over: bool,
}

/// What is to be sent of an attempt.
#[derive(Debug)]
pub enum Told {
    /// Output.
    Data(Frame),
    /// Its end.
    End(FromRuntime),
}

impl Attempt {
    /// One that has just come.
    #[must_use]
    pub const fn new(task: TaskRef, known: Known, bound: u64) -> Self {
        Self { task, known, bound, written: [0, 0], feed: None }
    }

    /// Whether the hub is owed something.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !matches!(self.known, Known::Settled)
    }

    /// The session is over, or a new one begins: nobody has asked for the output in it.
    pub fn detach(&mut self) {
        self.feed = None;
    }

    /// The output is asked for, from there.
    pub fn follow(&mut self, stream: Option<u32>, from: [u64; 2]) {
        self.feed = Some(Feed { stream, sent: from, closed: [false; 2], over: false });
    }

    /// What can be sent now.
    pub fn tell(&mut self, rng: &mut Rng) -> Vec<Told> {
        let Self { task, ref known, bound, written, ref mut feed } = *self;
        let outcome = match known {
            Known::Started => None,
            Known::Ended(outcome) => Some(outcome),
            Known::Settled => return Vec::new(),
        };
        let Some(feed) = feed.as_mut().filter(|feed| !feed.over) else { return Vec::new() };
        let mut told = Vec::new();
        for (index, channel) in CHANNELS.into_iter().enumerate() {
            let Some(stream) = feed.stream.filter(|_| !feed.closed[index]) else { continue };
            let (total, sent, head) = (written[index], &mut feed.sent[index], bound / 2);
            let mut send = |from: u64, to: u64, end: bool| {
                let data = bytes(task, channel, from, to);
                told.push(Told::Data(Frame { stream, channel, offset: from, end, data }));
            };
            while *sent < head.min(total) {
                let to = (*sent + rng.u64(1..=FRAME_MAX)).min(head.min(total));
                send(*sent, to, false);
                *sent = to;
            }
            if outcome.is_some() {
                *sent = (*sent).max(total.saturating_sub(bound - head));
                while *sent < total {
                    let to = (*sent + rng.u64(1..=FRAME_MAX)).min(total);
                    send(*sent, to, false);
                    *sent = to;
                }
                send(total, total, true);
                feed.closed[index] = true;
            }
        }
        if let Some(outcome) = outcome {
            feed.over = true;
            let report = Report { stdout: written[0], stderr: written[1], ..Report::default() };
            told.push(Told::End(FromRuntime::TaskEnded(TaskEnded { task, outcome: outcome.clone(), report })));
        }
        told
    }
}

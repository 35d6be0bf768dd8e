//! What a task writes: the end of it is kept for the hub's record, and all of it is sent live as far as
//! somebody takes it. A task never waits for a listener.

use bytes::Bytes;
use vm_agent_schemas::wire::{Channel, Frame};

use crate::outgoing::Outgoing;
use crate::window::room;

/// How much of a task's output is kept, in bytes.
const KEPT: usize = 64 * 1024;
/// How long the kept output may be as JSON: a control character becomes six there, and the message
/// must fit into a text frame.
const KEPT_AS_JSON: usize = 3 * KEPT;

/// The output of one task.
#[derive(Debug, Default)]
pub(crate) struct Output {
    tail: Tail,
    stdout: Live,
    stderr: Live,
    listener: Option<(u32, Outgoing)>,
}

/// How much of one channel the listener was sent.
#[derive(Debug, Default)]
struct Live {
    sent: u64,
    taken: u64,
    dropped: u64,
    finished: bool,
}

impl Output {
    /// From now on the output is sent on this stream. What was written before is not.
    pub(crate) fn attach(&mut self, stream: u32, outgoing: Outgoing) {
        self.listener = Some((stream, outgoing));
        for live in [&mut self.stdout, &mut self.stderr] {
            *live = Live { finished: live.finished, ..Live::default() };
        }
        for channel in [Channel::Stdout, Channel::Stderr] {
            if self.live(channel).finished {
                self.finish(channel);
            }
        }
    }

    /// The listener has taken this much of a channel.
    pub(crate) fn taken(&mut self, channel: Channel, offset: u64) {
        let live = self.live(channel);
        live.taken = live.taken.max(offset);
    }

    /// The task has written something.
    pub(crate) fn push(&mut self, channel: Channel, data: Bytes) {
        self.tail.push(&data);
        let dropped = self.live(channel).dropped;
        // Offsets count what was sent. So that a listener knows of a gap, the output itself tells.
        let gap = (dropped > 0).then(|| Bytes::from(format!("\n[{dropped} bytes of output were left out here]\n")));
        let len = data.len() as u64;
        let sent = match gap {
            Some(gap) => self.send(channel, gap, false).then(|| self.live(channel).dropped = 0).is_some(),
            None => true,
        };
        if !(sent && self.send(channel, data, false)) {
            self.live(channel).dropped += len;
        }
    }

    /// A channel has ended.
    pub(crate) fn finish(&mut self, channel: Channel) {
        self.live(channel).finished = true;
        self.send(channel, Bytes::new(), true);
    }

    /// The end of the output, as text.
    pub(crate) fn text(&self) -> String {
        self.tail.text()
    }

    /// Sends data if the listener has room for it now.
    fn send(&mut self, channel: Channel, data: Bytes, end: bool) -> bool {
        let len = data.len() as u64;
        let Live { sent: offset, taken, .. } = *self.live(channel);
        let Some((stream, outgoing)) = &self.listener else { return false };
        let frame = Frame { stream: *stream, channel, offset, end, data };
        let sent = len <= room(offset, taken) && outgoing.try_send(&frame);
        if sent {
            self.live(channel).sent += len;
        }
        sent
    }

    fn live(&mut self, channel: Channel) -> &mut Live {
        match channel {
            Channel::Stderr => &mut self.stderr,
            Channel::Stdout | Channel::Stdin => &mut self.stdout,
        }
    }
}

/// The last bytes of an output.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn push(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        // Cut seldom: each cut moves what is kept.
        if self.bytes.len() > 2 * KEPT {
            self.bytes.drain(..self.bytes.len() - KEPT);
        }
    }

    fn text(&self) -> String {
        let kept = &self.bytes[self.bytes.len().saturating_sub(KEPT)..];
        let text = String::from_utf8_lossy(kept);
        let (mut plain, mut json) = (0, 0);
        let fits = |character: &char| {
            plain += character.len_utf8();
            json += json_len(*character);
            plain <= KEPT && json <= KEPT_AS_JSON
        };
        let len: usize = text.chars().rev().take_while(fits).map(char::len_utf8).sum();
        text[text.len() - len..].to_owned()
    }
}

/// How many bytes a character takes in a JSON text.
fn json_len(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        control if control < ' ' => 6,
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::Message;
    use vm_agent_schemas::wire::{TEXT_MAX, WINDOW};

    #[test]
    fn the_end_is_kept() {
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(format!("{number}\n").as_bytes());
        }
        let text = tail.text();
        assert_eq!(text.len(), KEPT);
        assert!(text.ends_with("\n99998\n99999\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn whatever_was_written_fits_into_a_message(byte: u8, other: u8, len in 0..3 * KEPT) {
            let mut tail = Tail::default();
            let bytes: Vec<u8> = [byte, other].into_iter().cycle().take(len).collect();
            tail.push(&bytes);
            let text = tail.text();
            prop_assert!(text.len() <= KEPT);
            prop_assert!(serde_json::to_string(&text).unwrap().len() < TEXT_MAX - 1024);
        }
    }

    #[tokio::test]
    async fn a_listener_that_takes_nothing_is_told_later_what_it_missed() {
        let (outgoing, queue) = Outgoing::new("web".parse().unwrap());
        let (sink, mut written) = futures::channel::mpsc::unbounded();
        tokio::spawn(crate::outgoing::write_out(sink, queue));
        let mut output = Output::default();
        output.attach(7, outgoing);
        let full = Bytes::from(vec![b'x'; usize::try_from(WINDOW / 8).unwrap()]);
        for _ in 0..8 {
            output.push(Channel::Stdout, full.clone());
        }
        output.push(Channel::Stdout, Bytes::from_static(b"lost"));
        output.taken(Channel::Stdout, WINDOW);
        output.push(Channel::Stdout, Bytes::from_static(b"back"));
        output.finish(Channel::Stdout);
        let mut seen = Vec::new();
        let mut next = 0;
        loop {
            let Some(Message::Binary(bytes)) = futures::StreamExt::next(&mut written).await else { panic!("no end") };
            let frame = Frame::decode(&bytes).unwrap();
            assert_eq!((frame.stream, frame.offset), (7, next));
            next += frame.data.len() as u64;
            seen.extend_from_slice(&frame.data);
            if frame.end {
                break;
            }
        }
        let after = String::from_utf8(seen.split_off(usize::try_from(WINDOW).unwrap())).unwrap();
        assert_eq!(after, "\n[4 bytes of output were left out here]\nback");
        assert!(output.text().ends_with("xlostback"), "what is kept is whole");
    }
}

//! The streams of one session: which numbers are open, and how far each channel is.
//!
//! Every channel is counted in bytes from its start. A producer may be at most a window ahead of what
//! its consumer has taken, in both directions; so no end ever holds more than a window.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{
    Channel, DATA_MAX, Frame, FromHub, Signal, StreamEnded, StreamOpen, StreamOpened, StreamRef, StreamResize,
    StreamSignal, StreamTaken, StreamTarget, TaskRef, TerminalSize, WINDOW,
};

use super::handshake::Refusal;
use super::tasks::fits;
use super::{ConnId, Effect, Hub, OpenError, StreamKey};
use crate::stream::StreamEvent;

/// Longest path, in bytes: what operating systems take.
const PATH_MAX: usize = 4096;

/// Longest host name, in bytes: what DNS knows.
const HOST_MAX: usize = 255;

/// Most streams of clients in one session. Each can make the hub hold two windows of output for a
/// client that does not read: 64 make 32 MiB, and are more than people and programs use at once.
pub(super) const STREAMS_MAX: usize = 64;

/// Whom a stream serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A client, who takes output when it likes.
    Client(StreamKey),
    /// A task, whose output is taken at once.
    Task(TaskRef),
}

/// What of a target is longer than it can be, with its verb, if anything is.
fn too_large(target: &StreamTarget) -> Option<&'static str> {
    match target {
        StreamTarget::Upload { path } | StreamTarget::Download { path } if path.len() > PATH_MAX => Some("the path is"),
        StreamTarget::Connect { host, .. } if host.len() > HOST_MAX => Some("the host's name is"),
        _ => (!fits(target)).then_some("arguments and environment are"),
    }
}

/// What is at the other end, as far as the rules depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something whose output begins at 0.
    Plain,
    /// A terminal whose output begins at 0.
    Terminal,
    /// A terminal that was kept: its output begins where the runtime says.
    Attached,
    /// A runtime that is to be replaced by the program with this digest.
    Offer(Digest),
}

impl Kind {
    const fn of(target: &StreamTarget) -> Self {
        match target {
            StreamTarget::Terminal { .. } => Self::Terminal,
            StreamTarget::Attach { .. } => Self::Attached,
            StreamTarget::Run { .. }
            | StreamTarget::Upload { .. }
            | StreamTarget::Download { .. }
            | StreamTarget::Connect { .. } => Self::Plain,
        }
    }
}

/// Output: the runtime produces.
#[derive(Debug, Default)]
struct Output {
    received: u64,
    taken: u64,
    ended: bool,
}

/// Input: a client produces, and the hub sees to it that it keeps the rules.
#[derive(Debug)]
struct Input {
    sent: u64,
    taken: u64,
    ended: bool,
}

#[derive(Debug)]
struct Stream {
    owner: Owner,
    kind: Kind,
    opened: bool,
    stdin: Input,
    stdout: Output,
    stderr: Output,
}

/// The streams of one session.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// The number given out last. Numbers begin at 1 and are used once.
    last: u32,
    open: BTreeMap<u32, Stream>,
}

impl Streams {
    /// Opens a stream and answers with its number.
    pub(super) fn open(&mut self, owner: Owner, kind: Kind, stdin: bool) -> u32 {
        self.last += 1;
        let stdin = Input { sent: 0, taken: 0, ended: !stdin };
        self.open.insert(
            self.last,
            Stream { owner, kind, opened: false, stdin, stdout: Output::default(), stderr: Output::default() },
        );
        self.last
    }

    /// Forgets a stream and answers whom it served.
    pub(super) fn close(&mut self, number: u32) -> Option<Owner> {
        self.open.remove(&number).map(|stream| stream.owner)
    }

    /// Forgets the stream of a task.
    pub(super) fn close_task(&mut self, task: TaskRef) {
        self.open.retain(|_, stream| stream.owner != Owner::Task(task));
    }

    /// The clients of all open streams.
    pub(super) fn clients(&self) -> impl Iterator<Item = StreamKey> {
        self.open.values().filter_map(|stream| match stream.owner {
            Owner::Client(key) => Some(key),
            Owner::Task(_) => None,
        })
    }

    /// Whom a stream serves; nothing when it was open once and is not any more, since what was under
    /// way when the hub closed it still comes.
    pub(super) fn owner(&self, number: u32) -> Result<Option<Owner>, Refusal> {
        if number == 0 || number > self.last {
            return Err(Refusal::protocol(format!("stream {number} was never opened")));
        }
        Ok(self.open.get(&number).map(|stream| stream.owner))
    }

    /// Notes that the other end has begun, and answers whom to tell; nobody, the second time.
    pub(super) fn opened(&mut self, opened: StreamOpened) -> Result<Option<StreamKey>, Refusal> {
        let StreamOpened { stream: number, offset } = opened;
        let owner = self.owner(number)?;
        let (Some(stream), Some(Owner::Client(key))) = (self.open.get_mut(&number), owner) else {
            return Ok(None);
        };
        if std::mem::replace(&mut stream.opened, true) {
            return Ok(None);
        }
        if offset > 0 {
            if stream.kind != Kind::Attached || stream.stdout.received > 0 {
                return Err(Refusal::protocol(format!("the output of stream {number} can't begin at {offset}")));
            }
            stream.stdout.received = offset;
            stream.stdout.taken = offset;
        }
        Ok(Some(key))
    }

    /// Whether there is a terminal at the other end.
    fn is_terminal(&self, number: u32) -> bool {
        self.open.get(&number).is_some_and(|stream| matches!(stream.kind, Kind::Terminal | Kind::Attached))
    }

    /// Forgets the streams on which the program with this digest is offered, and answers whom they served.
    pub(super) fn close_offers(&mut self, sha256: &Digest) -> Vec<Owner> {
        let offers = self.open.extract_if(.., |_, stream| stream.kind == Kind::Offer(sha256.clone()));
        offers.map(|(_, stream)| stream.owner).collect()
    }

    /// Counts output that came, and answers whom it is for.
    pub(super) fn output(&mut self, frame: &Frame) -> Result<Option<Owner>, Refusal> {
        let owner = self.owner(frame.stream)?;
        let Some(stream) = self.open.get_mut(&frame.stream) else { return Ok(owner) };
        let output = match frame.channel {
            Channel::Stdout => &mut stream.stdout,
            Channel::Stderr => &mut stream.stderr,
            Channel::Stdin => return Err(Refusal::protocol("a runtime sent data on stdin")),
        };
        output.receive(frame)?;
        Ok(owner)
    }

    /// Counts output that was taken; nothing to tell the producer when it knows as much already.
    pub(super) fn output_taken(&mut self, number: u32, channel: Channel, offset: u64) -> Option<StreamTaken> {
        let stream = self.open.get_mut(&number)?;
        let output = match channel {
            Channel::Stdout => &mut stream.stdout,
            Channel::Stderr => &mut stream.stderr,
            Channel::Stdin => return None,
        };
        if offset <= output.taken || offset > output.received {
            return None;
        }
        output.taken = offset;
        Some(StreamTaken { stream: number, channel, offset })
    }

    /// Counts input of a client. The error says in what it broke the rules.
    pub(super) fn input(&mut self, number: u32, offset: u64, end: bool, len: u64) -> Result<(), &'static str> {
        let Some(stream) = self.open.get_mut(&number) else { return Ok(()) };
        let input = &mut stream.stdin;
        if input.ended {
            return Err("input came after the end of the input");
        }
        if offset != input.sent {
            return Err("the offset of the input does not follow on the input so far");
        }
        if input.sent + len - input.taken > WINDOW {
            return Err("the input runs ahead of what the process has taken by more than the window");
        }
        input.sent += len;
        input.ended = end;
        Ok(())
    }

    /// Counts input that the process was given, and answers whom to tell.
    pub(super) fn input_taken(&mut self, taken: StreamTaken) -> Result<Option<StreamKey>, Refusal> {
        if taken.channel != Channel::Stdin {
            return Err(Refusal::protocol("a runtime takes from stdin only"));
        }
        let owner = self.owner(taken.stream)?;
        let (Some(stream), Some(Owner::Client(key))) = (self.open.get_mut(&taken.stream), owner) else {
            return Ok(None);
        };
        if taken.offset > stream.stdin.sent || taken.offset < stream.stdin.taken {
            return Err(Refusal::flow(format!(
                "stream {} has taken {} bytes of input, of {} sent and {} taken before",
                taken.stream, taken.offset, stream.stdin.sent, stream.stdin.taken
            )));
        }
        let news = taken.offset > stream.stdin.taken;
        stream.stdin.taken = taken.offset;
        Ok(news.then_some(key))
    }
}

impl Output {
    fn receive(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let violation = |what: &str| Err(Refusal::flow(format!("stream {}: {what}", frame.stream)));
        let len = frame.data.len() as u64;
        if self.ended {
            return violation("data came after the end of its channel");
        }
        if frame.offset != self.received {
            return violation("the offset does not follow on the data so far");
        }
        if len == 0 && !frame.end {
            return violation("a frame carries no data and ends nothing");
        }
        if self.received + len - self.taken > WINDOW {
            return violation("more was sent than the window allows");
        }
        self.received += len;
        self.ended = frame.end;
        Ok(())
    }
}

// Streams of clients.
impl Hub {
    pub(super) fn stream_opened(&mut self, conn: ConnId, opened: StreamOpened) -> Result<(), Refusal> {
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        if let Some(key) = session.streams.opened(opened)? {
            let event = StreamEvent::Opened { offset: opened.offset };
            self.effects.push(Effect::Client { key, event });
        }
        Ok(())
    }

    pub(super) fn stream_input_taken(&mut self, conn: ConnId, taken: StreamTaken) -> Result<(), Refusal> {
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        if let Some(key) = session.streams.input_taken(taken)? {
            let event = StreamEvent::Taken { offset: taken.offset };
            self.effects.push(Effect::Client { key, event });
        }
        Ok(())
    }

    pub(super) fn stream_ended(
        &mut self,
        conn: ConnId,
        agent: &AgentName,
        ended: StreamEnded,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        if let Some(Owner::Client(key)) = session.streams.owner(ended.stream)? {
            session.streams.close(ended.stream);
            self.clients.remove(&key);
            self.effects.push(Effect::Client { key, event: StreamEvent::Ended(ended.outcome) });
            self.look_at(agent, now);
        }
        Ok(())
    }

    // Streams, from clients. An event of a client whose stream is over comes too late, and means
    // nothing.

    pub(super) fn open_stream(
        &mut self,
        key: StreamKey,
        agent: &AgentName,
        target: StreamTarget,
        stdin: bool,
        now: Timestamp,
    ) {
        if let Some(what) = too_large(&target) {
            return self.effects.push(Effect::Opening { key, answer: Err(OpenError::TooLarge(what)) });
        }
        let Some((conn, stream)) = self.begin_stream(key, agent, Kind::of(&target), stdin) else { return };
        self.send(conn, FromHub::StreamOpen(StreamOpen { stream, target, stdin }));
        self.look_at(agent, now);
    }

    /// Gives a client a stream, if there can be one, and answers the client. The runtime is to be told.
    pub(super) fn begin_stream(
        &mut self,
        key: StreamKey,
        agent: &AgentName,
        kind: Kind,
        stdin: bool,
    ) -> Option<(ConnId, u32)> {
        let begun = self.try_begin_stream(key, agent, kind, stdin);
        self.effects.push(Effect::Opening { key, answer: begun.map(|_| ()) });
        begun.ok()
    }

    fn try_begin_stream(
        &mut self,
        key: StreamKey,
        agent: &AgentName,
        kind: Kind,
        stdin: bool,
    ) -> Result<(ConnId, u32), OpenError> {
        if self.shutting_down {
            return Err(OpenError::Shutdown);
        }
        let conn = self.live(agent).ok_or(OpenError::Offline)?;
        let session = self.session_mut(conn).ok_or(OpenError::Offline)?;
        if session.streams.clients().count() >= STREAMS_MAX {
            return Err(OpenError::TooMany);
        }
        let stream = session.streams.open(Owner::Client(key), kind, stdin);
        self.clients.insert(key, (conn, stream));
        Ok((conn, stream))
    }

    pub(super) fn input(&mut self, key: StreamKey, offset: u64, end: bool, mut data: Bytes, now: Timestamp) {
        let Some(&(conn, stream)) = self.clients.get(&key) else { return };
        let Some(session) = self.session_mut(conn) else { return };
        if let Err(why) = session.streams.input(stream, offset, end, data.len() as u64) {
            self.effects.push(Effect::Client { key, event: StreamEvent::Lost(why.to_owned()) });
            return self.close_stream(key, now);
        }
        let mut offset = offset;
        loop {
            let data_now = data.split_to(data.len().min(DATA_MAX));
            let last = data.is_empty();
            let len = data_now.len() as u64;
            if len > 0 || end {
                let frame = Frame { stream, channel: Channel::Stdin, offset, end: end && last, data: data_now };
                self.effects.push(Effect::SendData { conn, frame });
            }
            if last {
                return;
            }
            offset += len;
        }
    }

    pub(super) fn taken(&mut self, key: StreamKey, channel: Channel, offset: u64) {
        let Some(&(conn, stream)) = self.clients.get(&key) else { return };
        let Some(session) = self.session_mut(conn) else { return };
        if let Some(taken) = session.streams.output_taken(stream, channel, offset) {
            self.send(conn, FromHub::StreamTaken(taken));
        }
    }

    /// What is no terminal has no size: the wish means nothing there.
    pub(super) fn resize(&mut self, key: StreamKey, size: TerminalSize) {
        if let Some(&(conn, stream)) = self.clients.get(&key)
            && self.session(conn).is_some_and(|session| session.streams.is_terminal(stream))
        {
            self.send(conn, FromHub::StreamResize(StreamResize { stream, size }));
        }
    }

    pub(super) fn signal(&mut self, key: StreamKey, signal: Signal) {
        if let Some(&(conn, stream)) = self.clients.get(&key) {
            self.send(conn, FromHub::StreamSignal(StreamSignal { stream, signal }));
        }
    }

    pub(super) fn close_stream(&mut self, key: StreamKey, now: Timestamp) {
        let Some((conn, stream)) = self.clients.remove(&key) else { return };
        if let Some(session) = self.session_mut(conn) {
            session.streams.close(stream);
            let agent = session.agent.clone();
            self.send(conn, FromHub::StreamClose(StreamRef { stream }));
            self.look_at(&agent, now);
        }
    }
}

//! What the hub is told, and what it answers: plain data, so that every behaviour can be written
//! down as a list of the one and compared with a list of the other.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;
use jiff::Timestamp;
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::ids::{
    Boot, ClaimId, Digest, Epoch, Incarnation, MessageId, Nonce, RequestId, SessionId, TaskId,
};
use vm_agent_schemas::message::{Message, MessageRefused, MessageState};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::{
    Address, Channel, Configuration, Envelope, Frame, FromHub, FromRuntime, HealthReport, RefusalCode, Signal,
    StreamTarget, TaskRef, TerminalReport, TerminalSize, UpgradeFailed, Verify,
};

use super::directory::Directory;
use super::streams::STREAMS_MAX;
use super::upgrade::Offer;
use super::verification::{Shown, VerifyError};
use crate::stream::StreamEvent;

/// One connection, in the adapter's counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// The client's end of a stream, in the adapter's counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey(pub u64);

/// Something that happened to the hub.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "most events are large, and none of them is kept")]
pub enum Event {
    /// A connection was upgraded to a WebSocket.
    Opened {
        /// The connection.
        conn: ConnId,
        /// Who is at the other end.
        peer: SocketAddr,
        /// When the connection was accepted, before TLS and upgrade: from then on its handshake is timed.
        since: Timestamp,
        /// A fresh random value for the challenge.
        challenge: Nonce,
        /// A fresh id for the session that may come of it.
        session: SessionId,
    },
    /// A frame came.
    Received {
        /// On this connection.
        conn: ConnId,
        /// What it says.
        inbound: Inbound,
    },
    /// What was sent on the connection was not read, and there is no room for more.
    Overflowed {
        /// The connection.
        conn: ConnId,
    },
    /// Others wait to come in, there is no more room for connections that have not proven who they are, and
    /// this one is next to go.
    Crowded {
        /// The connection.
        conn: ConnId,
    },
    /// The connection is gone.
    Closed {
        /// The connection.
        conn: ConnId,
    },
    /// Time has passed.
    Tick,
    /// The records of an [`Effect::Store`] are durable.
    Stored(Vec<Record>),
    /// The records of an [`Effect::Store`] could not be stored. The effects after it were not carried
    /// out.
    StoreFailed(Vec<Record>),
    /// This credential, already stored, is the agent's from now on, with this configuration.
    Enroll(Credential, Option<Configuration>),
    /// The agent's machine is that of this claim: what was accepted for another one, and not sent yet,
    /// ends.
    Claimed(AgentName, ClaimId),
    /// The agent's instance is no more.
    Revoke(AgentName),
    /// The agent's machine is down, and another has what is in it: its key opens nothing any more.
    Unbind(AgentName),
    /// The agent has another configuration.
    Configure(AgentName, Configuration),
    /// An accepted, stored task is to be delivered. So much of the present attempt's output is stored.
    Submit(Task, OutputKnown),
    /// Nobody wants this task any more.
    CancelTask {
        /// The task.
        task: TaskId,
        /// Who says so.
        by: String,
    },
    /// Which agents are declared, and who may write to whom.
    Directory(Directory),
    /// The machines of these agents, and of no others, are about to go down: they are given no new task.
    Cordon(BTreeSet<AgentName>),
    /// A client wants a stream to an agent.
    OpenStream {
        /// The client's end.
        key: StreamKey,
        /// The agent.
        agent: AgentName,
        /// What is to be at the agent's end.
        target: StreamTarget,
        /// Whether input will come.
        stdin: bool,
    },
    /// A client's terminal has another size.
    Resize {
        /// The client's end.
        key: StreamKey,
        /// The size.
        size: TerminalSize,
    },
    /// A client has input.
    Input {
        /// The client's end.
        key: StreamKey,
        /// Bytes of input before these.
        offset: u64,
        /// Whether the input ends here.
        end: bool,
        /// The bytes.
        data: Bytes,
    },
    /// A client has taken output.
    Taken {
        /// The client's end.
        key: StreamKey,
        /// Of which channel.
        channel: Channel,
        /// Up to where.
        offset: u64,
    },
    /// A client sends a signal.
    Signal {
        /// The client's end.
        key: StreamKey,
        /// The signal.
        signal: Signal,
    },
    /// A client has left.
    CloseStream {
        /// The client's end.
        key: StreamKey,
    },
    /// The host sends a message to an agent.
    Post(Message),
    /// This message was accepted in an earlier life of the controller, and is stored.
    Restore(Message),
    /// An agent's runtime is to have another key.
    Rotate {
        /// The agent.
        agent: AgentName,
        /// A fresh random value for the challenge.
        challenge: Nonce,
    },
    /// An agent's runtime is to be replaced by a program that the client sends as the stream's input.
    OfferUpgrade {
        /// The client's end.
        key: StreamKey,
        /// The agent.
        agent: AgentName,
        /// The program.
        offer: Offer,
    },
    /// An agent's runtime is to show where it runs, in this session.
    Verify {
        /// What it is asked.
        question: Verify,
        /// The agent.
        agent: AgentName,
        /// The session's epoch.
        epoch: Epoch,
    },
    /// The runtime in this session runs in the agent's machine.
    Trust {
        /// The agent.
        agent: AgentName,
        /// The session's epoch.
        epoch: Epoch,
    },
    /// The runtime in this session runs elsewhere.
    Distrust {
        /// By what the answer is known.
        request: RequestId,
        /// The agent.
        agent: AgentName,
        /// The session's epoch.
        epoch: Epoch,
        /// What tells, as a sentence.
        why: String,
    },
    /// The controller goes down.
    Shutdown,
}

/// How much of an attempt's output is stored, in bytes from the beginning of each channel. What was left
/// out counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputKnown {
    /// Of stdout.
    pub stdout: u64,
    /// Of stderr.
    pub stderr: u64,
}

/// One frame of a runtime.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly every frame is a message, and none is kept")]
pub enum Inbound {
    /// A text frame.
    Message(Envelope<FromRuntime>),
    /// A binary frame.
    Data(Frame),
    /// No frame of this protocol, and why.
    Invalid(String),
}

impl Inbound {
    /// Reads a text frame.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(envelope) => Self::Message(envelope),
            Err(error) => Self::Invalid(describe(&error)),
        }
    }

    /// Reads a binary frame.
    #[must_use]
    pub fn from_binary(bytes: &Bytes) -> Self {
        match Frame::decode(bytes) {
            Ok(frame) => Self::Data(frame),
            Err(error) => Self::Invalid(error.to_string()),
        }
    }
}

/// The parser's text may quote the message, and the message may hold a join token: only what is
/// missing is passed on, and the place.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.starts_with("missing field") {
        format!("a text frame is no message of this protocol: {text}")
    } else {
        format!("a text frame is no message of this protocol (column {})", error.column())
    }
}

/// Something that the hub wants done. Effects are carried out in order. Those that follow a
/// [`Store`](Effect::Store) wait until its record is durable; if it can't be made durable, those of
/// the same answer that [grant](Effect::grants) something are dropped.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a message.
    Send {
        /// On this connection.
        conn: ConnId,
        /// To whom it is addressed.
        to: Address,
        /// What it says.
        body: FromHub,
    },
    /// Pass a message on, in an envelope with its own sender and id.
    Deliver {
        /// On this connection.
        conn: ConnId,
        /// The message.
        message: Message,
    },
    /// Send a binary frame.
    SendData {
        /// On this connection.
        conn: ConnId,
        /// The frame.
        frame: Frame,
    },
    /// Send what is under way, then close the connection.
    Close {
        /// The connection.
        conn: ConnId,
    },
    /// Make a record durable.
    Store(Record),
    /// Tell the controller.
    Notify(Notice),
    /// Answer [`Event::OpenStream`].
    Opening {
        /// The client's end.
        key: StreamKey,
        /// Whether there is such a stream now.
        answer: Result<(), OpenError>,
    },
    /// Answer [`Event::Post`].
    Posted {
        /// The message.
        message: MessageId,
        /// Whom it is for.
        to: Address,
        /// Whether it is stored now.
        answer: Result<(), PostError>,
    },
    /// Tell a client.
    Client {
        /// The client's end.
        key: StreamKey,
        /// What.
        event: StreamEvent,
    },
    /// Answer [`Event::Verify`].
    Shown {
        /// The question.
        request: RequestId,
        /// What the runtime answered, or why it has not.
        answer: Result<Shown, VerifyError>,
    },
    /// Answer [`Event::Distrust`].
    Distrusted {
        /// By what the answer is known.
        request: RequestId,
        /// Whether there was that session, and its key is worth nothing now.
        revoked: bool,
    },
}

impl Effect {
    /// Whether it tells somebody what only a record makes true, and is dropped if that can't be stored. What
    /// is delivered to a runtime is not: its receiver knows a message by its id when it comes again.
    #[must_use]
    pub const fn grants(&self) -> bool {
        match self {
            Self::Send { .. }
            | Self::SendData { .. }
            | Self::Notify(_)
            | Self::Posted { answer: Ok(()), .. }
            | Self::Distrusted { .. } => true,
            Self::Deliver { .. }
            | Self::Close { .. }
            | Self::Store(_)
            | Self::Opening { .. }
            | Self::Posted { .. }
            | Self::Client { .. }
            | Self::Shown { .. } => false,
        }
    }
}

/// What must survive. A record replaces the former one of the same agent, task or message; output is
/// added to what there is of it.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "most records are tasks")]
pub enum Record {
    /// An agent's credential.
    Credential(Credential),
    /// A task. The record of an end makes all output of the task durable that came before it.
    Task(Task),
    /// Output of an attempt. It need not be durable before the task's end is.
    Output {
        /// The attempt.
        task: TaskRef,
        /// Which channel.
        channel: Channel,
        /// Bytes of the channel before these, left out or not.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// A message.
    Message(Message),
}

/// Why a message of the host's goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// It may not, or there is no room for it.
    #[error("{}", .0.reason)]
    Refused(MessageRefused),
    /// It could not be stored. It may be delivered all the same: ask again with the same id.
    #[error("the controller could not store the message")]
    NotStored,
    /// The hub goes down.
    #[error("the controller is going down")]
    Shutdown,
}

/// Why a stream can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The agent has no session.
    #[error("the agent's runtime is not connected")]
    Offline,
    /// The hub goes down.
    #[error("the controller is going down")]
    Shutdown,
    /// The session has as many streams as it may.
    #[error("{STREAMS_MAX} processes are connected to the agent, and there can be no more: end one of them first")]
    TooMany,
    /// What is to be at its other end is longer than anything that could be there.
    #[error("{0} longer than can be sent to an agent; put what is long into a file there")]
    TooLarge(&'static str),
}

/// Something that the controller should know.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A runtime has bound its key to its credential. It has shown the claim's nonce.
    Joined {
        /// The agent.
        agent: AgentName,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A session was accepted.
    SessionOpened {
        /// The agent.
        agent: AgentName,
        /// The session's epoch.
        epoch: Epoch,
    },
    /// A session has ended. This can come for one that was never told as opened, when its record could
    /// not be stored.
    SessionClosed {
        /// The agent.
        agent: AgentName,
        /// The session's epoch.
        epoch: Epoch,
        /// Why.
        why: CloseReason,
    },
    /// A runtime has not been heard for some heartbeats. Its connection is kept.
    SessionSilent {
        /// The agent.
        agent: AgentName,
        /// When it was last heard.
        last_seen: Timestamp,
    },
    /// A silent runtime is heard again.
    SessionHeard {
        /// The agent.
        agent: AgentName,
    },
    /// A connection was refused before it became a session.
    Refused {
        /// The agent that it said to be, if it said so.
        agent: Option<AgentName>,
        /// Why, for machines.
        code: RefusalCode,
        /// Why, for people.
        message: String,
        /// Who.
        peer: SocketAddr,
    },
    /// A health report.
    Health {
        /// The agent.
        agent: AgentName,
        /// The report.
        report: HealthReport,
    },
    /// Lines of a runtime's log.
    Log {
        /// The agent.
        agent: AgentName,
        /// The lines.
        lines: Vec<String>,
        /// Lines missing before them.
        dropped: u64,
    },
    /// The configuration that a runtime now works with.
    Configured {
        /// The agent.
        agent: AgentName,
        /// The configuration's digest; nothing when it has none.
        digest: Option<Digest>,
        /// What of it could not be done, in sentences.
        problems: Vec<String>,
    },
    /// What an agent does has changed: it became busy or idle, or one of its services changed its state.
    Activity {
        /// The agent.
        agent: AgentName,
    },
    /// A task has begun.
    TaskStarted(Task),
    /// An attempt is over and the task is not: there will be another one.
    TaskRetried(Task),
    /// A task is over.
    TaskEnded(Task),
    /// A task wrote something.
    TaskOutput {
        /// The agent.
        agent: AgentName,
        /// The task.
        task: TaskRef,
        /// Where it wrote.
        channel: Channel,
        /// Bytes of the channel before these, left out or not.
        offset: u64,
        /// What it wrote.
        data: Bytes,
    },
    /// A runtime spoke of a task that is not under way: one that is over, or was never given to it.
    TaskUnknown {
        /// The agent.
        agent: AgentName,
        /// The task.
        task: TaskRef,
    },
    /// A message was accepted, was taken, or has become a dead letter: its state tells which.
    Message(Message),
    /// An agent's message went nowhere.
    MessageRefused {
        /// The agent that sent it.
        agent: AgentName,
        /// Whom it was for.
        to: Address,
        /// Which message, and why.
        refused: MessageRefused,
    },
    /// A runtime has another key, which takes the place of the former at its next connection.
    Rotated {
        /// The agent.
        agent: AgentName,
    },
    /// A runtime can't be replaced by another version.
    UpgradeFailed {
        /// The agent.
        agent: AgentName,
        /// Which version, and why.
        failed: UpgradeFailed,
    },
}

impl Notice {
    /// The agent that it is about; nothing for what is about none, or about several.
    #[must_use]
    pub const fn agent(&self) -> Option<&AgentName> {
        match self {
            Self::Joined { agent, .. }
            | Self::SessionOpened { agent, .. }
            | Self::SessionClosed { agent, .. }
            | Self::SessionSilent { agent, .. }
            | Self::SessionHeard { agent }
            | Self::Health { agent, .. }
            | Self::Log { agent, .. }
            | Self::Configured { agent, .. }
            | Self::Activity { agent }
            | Self::TaskOutput { agent, .. }
            | Self::TaskUnknown { agent, .. }
            | Self::MessageRefused { agent, .. }
            | Self::Rotated { agent }
            | Self::UpgradeFailed { agent, .. } => Some(agent),
            Self::TaskStarted(task) | Self::TaskRetried(task) | Self::TaskEnded(task) => task.agent.as_ref(),
            Self::Refused { agent, .. } => agent.as_ref(),
            Self::Message(_) => None,
        }
    }

    /// Whether the notice may be dropped when the controller can't keep up: the sessions tell the same,
    /// or people can do without. Whatever a peer can say as often as it likes is among these.
    #[must_use]
    pub const fn may_be_dropped(&self) -> bool {
        matches!(
            self,
            Self::Health { .. }
                | Self::Log { .. }
                | Self::TaskOutput { .. }
                | Self::Refused { .. }
                | Self::Configured { .. }
                | Self::TaskUnknown { .. }
                | Self::MessageRefused { .. }
                | Self::Message(Message { state: MessageState::Waiting | MessageState::Taken { .. }, .. })
        )
    }

    /// Whether the notice only says that there is something new to see: of several that wait, one is
    /// enough.
    #[must_use]
    pub const fn is_wakeup(&self) -> bool {
        matches!(self, Self::Activity { .. })
    }
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The connection went away.
    Disconnected,
    /// The hub ended it.
    Refused {
        /// Why, for machines.
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disconnected => f.write_str("the connection to the runtime was lost"),
            Self::Refused { message, .. } => f.write_str(message),
        }
    }
}

/// A session, as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionInfo {
    /// The agent.
    pub agent: AgentName,
    /// The incarnation that speaks.
    pub incarnation: Incarnation,
    /// The session's epoch.
    pub epoch: Epoch,
    /// Which start of the runtime this is.
    pub boot: Boot,
    /// When the session was accepted.
    pub connected_at: Timestamp,
    /// When the runtime was last heard.
    pub last_seen: Timestamp,
    /// The runtime's version.
    pub runtime_version: String,
    /// The latest health report.
    pub health: Option<HealthReport>,
    /// The digest of the configuration that the runtime works with; nothing when it has none, or has not
    /// said yet.
    pub configured: Option<Digest>,
    /// Whether it has said that.
    pub told: bool,
    /// What of that configuration could not be done, in sentences.
    pub problems: Vec<String>,
    /// Tasks for the agent that are not over: queued here, sent or running.
    pub tasks: u32,
    /// Those of them that were sent, and may be running.
    pub running: u32,
    /// How many of them may run side by side.
    pub slots: u32,
    /// Open streams of clients.
    pub streams: u32,
    /// Messages that wait for the agent.
    pub messages: u32,
    /// Terminals that the runtime keeps.
    pub terminals: Vec<TerminalReport>,
    /// Whether there are such tasks or streams.
    pub busy: bool,
    /// When the agent was last busy, as of the hub's last look at the clock; when the session was
    /// accepted, if it has not been busy in it.
    pub active_at: Timestamp,
}

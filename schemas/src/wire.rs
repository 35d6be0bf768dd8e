//! The protocol between a runtime and the hub: JSON envelopes in text frames, bulk data in binary
//! frames. `schemas/PROTOCOL.md` tells the same in prose, from the first byte to the last.

mod frame;
mod verify;

pub use frame::{Channel, DATA_MAX, Frame, FrameError, HEADER_LEN};
pub use verify::{Evidence, VERIFY, Verify, answer};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fleet::{FileContent, ServiceEntry};
use crate::ids::{Boot, Digest, Epoch, Incarnation, MessageId, Nonce, Secret, SessionId, TaskId, TerminalId};
use crate::message::{MessageRefused, Post};
use crate::names::{AgentName, FleetName, ServiceName};
use crate::task::{Job, Report};
use crate::units::{ByteSize, Span};

/// The protocol's version. A hub speaks this one and the one before it.
pub const PROTOCOL: u32 = 1;
/// The path of the WebSocket on the hub's address.
pub const HUB_PATH: &str = "/v1/runtime";
/// Largest text frame, in bytes. Bulk data travels in binary frames.
pub const TEXT_MAX: usize = 256 * 1024;
/// How far a producer of stream data may run ahead of what its consumer has taken, in bytes.
pub const WINDOW: u64 = 256 * 1024;
/// How long a connection may take from its opening to an accepted hello.
pub const HANDSHAKE_LIMIT: Span = Span::from_secs(10);

/// One message on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Envelope<B> {
    /// The message's id.
    pub id: MessageId,
    /// Who sent it. The hub trusts the session, not this: a name that is not the session's own ends
    /// the session.
    pub from: Address,
    /// Whom it is for.
    pub to: Address,
    /// When it was sent, in milliseconds since 1970.
    pub timestamp: i64,
    /// What it says.
    #[serde(flatten)]
    pub body: B,
}

/// One end of a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, with = "String")]
pub enum Address {
    /// The controller.
    Host,
    /// Every agent.
    Broadcast,
    /// One agent.
    Agent(AgentName),
}

impl TryFrom<String> for Address {
    type Error = crate::names::InvalidName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "host" => Ok(Self::Host),
            "broadcast" => Ok(Self::Broadcast),
            name => name.parse().map(Self::Agent),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Broadcast => f.write_str("broadcast"),
            Self::Agent(name) => name.fmt(f),
        }
    }
}

impl<B> Envelope<B> {
    /// A message that is sent now.
    pub fn new(from: Address, to: Address, now: Timestamp, body: B) -> Self {
        Self { id: MessageId::generate(), from, to, timestamp: now.as_millisecond(), body }
    }
}

/// What a runtime says to the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "payload")]
pub enum FromRuntime {
    /// The first message of a connection.
    #[serde(rename = "hello")]
    Hello(Hello),
    /// The answer to a challenge.
    #[serde(rename = "proof")]
    Proof(ChallengeProof),
    /// The heartbeat.
    #[serde(rename = "health")]
    Health(HealthReport),
    /// Lines of the runtime's own log.
    #[serde(rename = "log")]
    Log(LogLines),
    /// The configuration that the runtime now works with.
    #[serde(rename = "configured")]
    Configured(Configured),
    /// An attempt has begun, or was begun before the connection and is not settled: it runs, or its end
    /// is not acknowledged. In the latter case the hub answers with `task.follow`.
    #[serde(rename = "task.started")]
    TaskStarted(TaskRef),
    /// An attempt has ended, and all its output has been sent. Sent again in every session until
    /// acknowledged.
    #[serde(rename = "task.ended")]
    TaskEnded(TaskEnded),
    /// A message for somebody, named by the envelope's `to`. Sent again until it is accepted or refused.
    #[serde(rename = "message")]
    Message(Post),
    /// A message has arrived and is kept: the hub may forget it.
    #[serde(rename = "message.taken")]
    MessageTaken(MessageRef),
    /// The other end of a stream has begun.
    #[serde(rename = "stream.opened")]
    StreamOpened(StreamOpened),
    /// The process of a stream has ended, and all its output has been sent.
    #[serde(rename = "stream.ended")]
    StreamEnded(StreamEnded),
    /// How much of a stream's input has been taken.
    #[serde(rename = "stream.taken")]
    StreamTaken(StreamTaken),
    /// The runtime has made itself a new key.
    #[serde(rename = "rotated")]
    Rotated(Rotated),
    /// Another version of the runtime can't take this one's place.
    #[serde(rename = "upgrade.failed")]
    UpgradeFailed(UpgradeFailed),
    /// Where the runtime runs, as far as it can show that.
    #[serde(rename = "evidence")]
    Evidence(Evidence),
}

/// What the hub says to a runtime.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "payload")]
pub enum FromHub {
    /// What the runtime has to sign to prove that it holds its key.
    #[serde(rename = "challenge")]
    Challenge(Challenge),
    /// The session is accepted.
    #[serde(rename = "welcome")]
    Welcome(Welcome),
    /// The session is refused or ended. The connection closes after this.
    #[serde(rename = "refused")]
    Refused(Refused),
    /// The configuration to work with from now on.
    #[serde(rename = "configure")]
    Configure(Configuration),
    /// Run a task. Sent again until `task.started` or `task.ended` comes back.
    #[serde(rename = "task")]
    Task(TaskOrder),
    /// Send the output of an attempt that was begun before this session, from where it is known, and then
    /// its end.
    #[serde(rename = "task.follow")]
    TaskFollow(TaskFollow),
    /// End an attempt: nobody wants it any more. Its end is told all the same.
    #[serde(rename = "task.cancel")]
    TaskCancel(TaskRef),
    /// The end of an attempt and all its output have been stored: the runtime may forget it.
    #[serde(rename = "task.ack")]
    TaskAck(TaskRef),
    /// A message from whom the envelope's `from` names. Sent again until it is taken.
    #[serde(rename = "message")]
    Message(Post),
    /// A message of this runtime's is stored: the runtime may forget it.
    #[serde(rename = "message.accepted")]
    MessageAccepted(MessageRef),
    /// A message of this runtime's goes nowhere, and why: the runtime may forget it.
    #[serde(rename = "message.refused")]
    MessageRefused(MessageRefused),
    /// Begin the other end of a stream of this session.
    #[serde(rename = "stream.open")]
    StreamOpen(StreamOpen),
    /// The terminal of a stream has another size.
    #[serde(rename = "stream.resize")]
    StreamResize(StreamResize),
    /// Send a signal to the process of a stream.
    #[serde(rename = "stream.signal")]
    StreamSignal(StreamSignal),
    /// Nobody listens any more: end what serves a stream. A terminal that is kept goes on without one.
    #[serde(rename = "stream.close")]
    StreamClose(StreamRef),
    /// How much of a stream's output has been taken.
    #[serde(rename = "stream.taken")]
    StreamTaken(StreamTaken),
    /// Make yourself a new key, and prove that you hold it.
    #[serde(rename = "rotate")]
    Rotate(Challenge),
    /// The new key is stored: the next hello uses it, and the old one is void then.
    #[serde(rename = "rotate.ack")]
    RotateAck(RotateAck),
    /// Another version of the runtime is to take this one's place.
    #[serde(rename = "upgrade")]
    Upgrade(Upgrade),
    /// Show that you run in the machine that you speak for. Only a runtime is asked that said in its hello that it
    /// can.
    #[serde(rename = "verify")]
    Verify(Verify),
}

/// The first message of a connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The lowest and the highest protocol version that the runtime speaks.
    pub protocol: (u32, u32),
    /// The fleet that the runtime was seeded for.
    pub fleet: FleetName,
    /// The agent that the runtime is.
    pub agent: AgentName,
    /// The incarnation that it was seeded for.
    pub incarnation: Incarnation,
    /// The nonce that it was seeded with.
    pub nonce: Nonce,
    /// The machine that it runs on, as a digest of what tells this machine from its copies.
    pub machine_id: Digest,
    /// How often the runtime has started in this incarnation.
    pub boot: Boot,
    /// The runtime's Ed25519 public key, base64 (URL alphabet, no padding).
    pub public_key: String,
    /// The join token: only until a `welcome` has bound the public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token: Option<Secret>,
    /// The runtime's own version.
    pub runtime_version: String,
    /// What the runtime can do that not every runtime of this protocol version can, such as [`VERIFY`]. What is not
    /// known is passed over.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub abilities: BTreeSet<String>,
}

/// What the runtime has to sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Challenge {
    /// A random text, used once.
    pub challenge: Nonce,
}

impl Challenge {
    /// The bytes to sign: everything that a proof must not be moved between.
    #[must_use]
    pub fn signed_bytes(&self, hello: &Hello) -> Vec<u8> {
        let parts = [
            "vm-agent hello v1",
            self.challenge.as_str(),
            hello.fleet.as_str(),
            hello.agent.as_str(),
            &hello.incarnation.to_string(),
            hello.nonce.as_str(),
            hello.machine_id.as_str(),
            &hello.boot.to_string(),
        ];
        parts.join("\n").into_bytes()
    }
}

/// The answer to a challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChallengeProof {
    /// The Ed25519 signature over [`Challenge::signed_bytes`], base64 (URL alphabet, no padding).
    pub signature: String,
}

/// The session is accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// The protocol version of this session.
    pub protocol: u32,
    /// The session.
    pub session: SessionId,
    /// The session's epoch: everything of an earlier one is void.
    pub epoch: Epoch,
    /// How often to send `health`, in milliseconds.
    pub heartbeat_ms: u64,
    /// What to work with. Nothing means: with what the runtime works with already, until a `configure`
    /// says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Configuration>,
}

/// What a runtime works with besides its seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Configuration {
    /// The controller's mark for this configuration, which the runtime says back in `configured`. It
    /// tells nothing of the secrets.
    pub digest: Digest,
    /// Environment of everything that the runtime starts.
    pub env: BTreeMap<String, String>,
    /// The agent's labels.
    pub labels: BTreeMap<String, String>,
    /// More environment, which the runtime keeps in memory only and never tells anybody.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    /// Files to write where they differ, by path: absolute, or below the work folder. One that was here
    /// and no longer is is removed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileContent>,
    /// Programs to keep running. One that was here and no longer is is ended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<ServiceName, ServiceEntry>,
}

impl Default for Configuration {
    /// Nothing at all.
    fn default() -> Self {
        Self {
            digest: Digest::of(b""),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            secrets: BTreeMap::new(),
            files: BTreeMap::new(),
            services: BTreeMap::new(),
        }
    }
}

/// The configuration that the runtime works with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Configured {
    /// Its digest; nothing when the runtime has none.
    pub digest: Option<Digest>,
    /// What of it could not be done, in sentences: a file that can't be written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Why a session is refused or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Why, for machines.
    pub code: RefusalCode,
    /// Why, for people.
    pub message: String,
    /// Whether trying again can help.
    pub retry: bool,
}

/// Why a session is refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// A frame that is no message of this protocol, or comes at the wrong time.
    Protocol,
    /// No protocol version in common.
    Version,
    /// Another fleet's runtime.
    Fleet,
    /// No such agent, or one without an instance.
    UnknownAgent,
    /// An incarnation that is over, or a nonce that is not the claim's.
    Incarnation,
    /// A join token that is wrong, used or expired, or none and no key bound.
    JoinToken,
    /// A public key that is not the bound one, or a signature that does not fit.
    Credential,
    /// The credential of another machine: a copy.
    Clone,
    /// A start of the runtime that a later one has replaced.
    StaleBoot,
    /// A newer session of the same runtime has taken its place.
    Superseded,
    /// A message in another's name.
    Impersonation,
    /// The handshake or a heartbeat took too long.
    Silence,
    /// A peer that does not read what it is sent, or sends more than it may.
    Flow,
    /// The agent's credential was revoked.
    Revoked,
    /// It does not run in the machine that it speaks for, or could show where it runs before and now can't.
    Unverified,
    /// The controller is going down; come back.
    Shutdown,
    /// Something of the controller's failed; come back.
    Internal,
}

impl RefusalCode {
    /// Whether a runtime that was refused so should try again.
    #[must_use]
    pub const fn retry(self) -> bool {
        matches!(self, Self::Silence | Self::Flow | Self::Shutdown | Self::Internal | Self::UnknownAgent)
    }

    /// The code as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Version => "version",
            Self::Fleet => "fleet",
            Self::UnknownAgent => "unknown-agent",
            Self::Incarnation => "incarnation",
            Self::JoinToken => "join-token",
            Self::Credential => "credential",
            Self::Clone => "clone",
            Self::StaleBoot => "stale-boot",
            Self::Superseded => "superseded",
            Self::Impersonation => "impersonation",
            Self::Silence => "silence",
            Self::Flow => "flow",
            Self::Revoked => "revoked",
            Self::Unverified => "unverified",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How the machine is, seen from inside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthReport {
    /// Processors.
    pub cpus: u32,
    /// Load over the last minute.
    pub load: f64,
    /// Memory of the machine, in bytes.
    pub memory_total: ByteSize,
    /// Memory in use, in bytes.
    pub memory_used: ByteSize,
    /// Size of the file system that holds the work folder, in bytes.
    pub disk_total: ByteSize,
    /// What of it is in use, in bytes.
    pub disk_used: ByteSize,
    /// Seconds since the machine started.
    pub uptime_secs: u64,
    /// Memory of the runtime itself, in bytes.
    pub runtime_memory: ByteSize,
    /// Tasks that are running.
    pub tasks: u32,
    /// Open streams.
    pub streams: u32,
    /// Terminals that are kept. A report is sent at once when one of them changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terminals: Vec<TerminalReport>,
    /// Each service of the configuration. A report is sent at once when one of them changes its state.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<ServiceName, ServiceReport>,
}

/// How a service is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReport {
    /// What it is doing.
    pub state: ServiceState,
    /// How often it was started again since it first started with its present entry.
    pub restarts: u32,
    /// The share of one processor that its processes took since the last report, in percent.
    pub cpu_percent: f32,
    /// Why it is not as it should be, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// It runs, and its probe has not succeeded yet.
    Starting,
    /// It runs, and works as far as its probe can tell.
    Running,
    /// It ended, or its probe failed too often, and it is started again after a pause.
    Failing,
    /// It ended, and its restart policy leaves it so.
    Ended,
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Failing => "failing",
            Self::Ended => "ended",
        })
    }
}

/// Lines of the runtime's own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLines {
    /// The lines, without line ends, oldest first.
    pub lines: Vec<String>,
    /// Lines that were dropped before these because nobody took them.
    #[serde(default)]
    pub dropped: u64,
}

/// One attempt of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct TaskRef {
    /// The task.
    pub task: TaskId,
    /// Which attempt of it, from 1.
    pub attempt: u32,
}

/// What to run, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Environment, over the agent's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The folder, absolute or below the work folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user that it runs as; nothing means the runtime's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Do a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskOrder {
    /// Which attempt of which task.
    #[serde(flatten)]
    pub task: TaskRef,
    /// The stream on which its output is sent, from its beginning.
    pub stream: u32,
    /// What to do.
    pub job: Job,
    /// How long it may run, in milliseconds.
    pub timeout_ms: u64,
}

/// Send the output of an attempt from where it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskFollow {
    /// Which attempt of which task.
    #[serde(flatten)]
    pub task: TaskRef,
    /// The stream on which to send it; nothing when nobody wants it, and only the end is to be told.
    pub stream: Option<u32>,
    /// How much of stdout is known, in bytes from the beginning.
    pub stdout: u64,
    /// How much of stderr is known, in bytes from the beginning.
    pub stderr: u64,
}

/// An attempt has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskEnded {
    /// Which attempt of which task.
    #[serde(flatten)]
    pub task: TaskRef,
    /// How it ended.
    pub outcome: TaskOutcome,
    /// What it left behind.
    pub report: Report,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "end")]
pub enum TaskOutcome {
    /// The process ended by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal ended the process.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// It ran longer than it may, and was ended.
    TimedOut,
    /// It could not be started.
    NotStarted {
        /// Why.
        reason: String,
    },
    /// It was begun and could not be done: work without a process of its own, or what had to come of it is
    /// missing.
    Failed {
        /// Why.
        reason: String,
    },
    /// Somebody cancelled it. What had begun was ended.
    Canceled,
    /// Its deadline came before it was begun.
    Expired,
    /// It had started, and its end was not seen: the runtime or the machine went down meanwhile.
    Interrupted,
}

impl TaskOutcome {
    /// Whether the task did what it was meant to.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Exited { code: 0 })
    }
}

impl fmt::Display for TaskOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code: 0 } => f.write_str("succeeded"),
            Self::Exited { code } => write!(f, "ended with exit code {code}"),
            Self::Signaled { signal } => write!(f, "was ended by signal {signal}"),
            Self::TimedOut => f.write_str("ran longer than it may"),
            Self::NotStarted { reason } => write!(f, "could not be started: {reason}"),
            Self::Failed { reason } => write!(f, "failed: {reason}"),
            Self::Canceled => f.write_str("was cancelled"),
            Self::Expired => f.write_str("was not begun before its deadline"),
            Self::Interrupted => f.write_str("was interrupted, and may have done its work or not"),
        }
    }
}

/// A stream of this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamRef {
    /// The stream's number, chosen by the hub, used once in a session.
    pub stream: u32,
}

/// Begin the other end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamOpen {
    /// The stream's number.
    pub stream: u32,
    /// What is at the other end.
    pub target: StreamTarget,
    /// Whether input will come. Without, a process reads an empty input.
    pub stdin: bool,
}

/// What can be at the other end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "kind", rename_all_fields = "camelCase")]
pub enum StreamTarget {
    /// A process with pipes. It ends with the stream.
    Run {
        /// What to run.
        run: Run,
    },
    /// A process with a terminal. All its output is stdout.
    Terminal {
        /// What to run; an empty `argv` means the user's own shell.
        run: Run,
        /// The terminal's size.
        size: TerminalSize,
        /// Under this id the terminal outlives the stream and the session, and can be attached to again.
        /// Nothing means that it ends with the stream.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep: Option<TerminalId>,
    },
    /// A terminal that is kept. Whoever was attached to it is detached.
    Attach {
        /// The terminal.
        terminal: TerminalId,
        /// How much of its output is known, in bytes from its beginning. What came after that is sent again,
        /// as far as it is kept: at least the last 256 KiB.
        offset: u64,
        /// The size that it is to have now.
        size: TerminalSize,
    },
    /// A tar archive to unpack: it comes on stdin.
    Upload {
        /// Where to put the archive's one top-level entry: the path that it is to have.
        path: String,
    },
    /// A tar archive with one top-level entry, that is the file or folder: it goes out on stdout.
    Download {
        /// The file or folder.
        path: String,
    },
    /// A TCP connection that the runtime makes: stdin goes to it, stdout comes from it.
    Connect {
        /// The host, as the machine sees it: most often `127.0.0.1`.
        host: String,
        /// The port.
        port: u16,
    },
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

impl Default for TerminalSize {
    /// 80 columns and 24 rows, as terminals had.
    fn default() -> Self {
        Self { cols: 80, rows: 24 }
    }
}

/// The other end of a stream has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamOpened {
    /// The stream's number.
    pub stream: u32,
    /// Where its output begins, in bytes: 0 but for a terminal that is attached to again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The terminal of a stream has another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamResize {
    /// The stream's number.
    pub stream: u32,
    /// The size.
    pub size: TerminalSize,
}

/// A terminal that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TerminalReport {
    /// The terminal.
    pub terminal: TerminalId,
    /// What was run in it, or the beginning of that where it is long.
    pub argv: Vec<String>,
    /// When it was opened, in milliseconds since 1970.
    pub opened_at: i64,
    /// Whether somebody is attached to it.
    pub attached: bool,
    /// Whether what was run in it has ended, and it is kept for its last output and its outcome alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ended: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_false(yes: &bool) -> bool {
    !*yes
}

/// One message between programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageRef {
    /// The message: the `id` of the envelope that it came in.
    pub message: MessageId,
}

/// The runtime has made itself a new key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rotated {
    /// The new Ed25519 public key, base64 (URL alphabet, no padding).
    pub public_key: String,
    /// The new key's signature over [`rotation_bytes`], base64 (URL alphabet, no padding).
    pub signature: String,
}

/// The new key is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotateAck {
    /// The new public key.
    pub public_key: String,
}

/// What a new key has to sign: it is held by this runtime, and was made for this challenge.
#[must_use]
pub fn rotation_bytes(challenge: &Challenge, agent: &AgentName, incarnation: Incarnation, public_key: &str) -> Vec<u8> {
    let incarnation = incarnation.to_string();
    ["vm-agent rotate v1", challenge.challenge.as_str(), agent.as_str(), &incarnation, public_key]
        .join("\n")
        .into_bytes()
}

/// Another version of the runtime is to take this one's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// The version.
    pub version: String,
    /// The program's size, in bytes.
    pub size: ByteSize,
    /// The SHA-256 of the program.
    pub sha256: Digest,
    /// The stream on whose stdin the program comes.
    pub stream: u32,
}

/// Another version of the runtime can't take this one's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeFailed {
    /// The version.
    pub version: String,
    /// The SHA-256 of the program.
    pub sha256: Digest,
    /// Why, in a sentence.
    pub reason: String,
}

/// Send a signal to the process group of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamSignal {
    /// The stream's number.
    pub stream: u32,
    /// The signal.
    pub signal: Signal,
}

/// Signals that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Signal {
    /// Interrupt, as Ctrl-C.
    Int,
    /// Terminate.
    Term,
    /// Kill.
    Kill,
    /// Hang up.
    Hup,
    /// Quit.
    Quit,
}

/// The process of a stream has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamEnded {
    /// The stream's number.
    pub stream: u32,
    /// How it ended.
    pub outcome: TaskOutcome,
}

/// How much of one channel of a stream has been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamTaken {
    /// The stream's number.
    pub stream: u32,
    /// The channel.
    pub channel: Channel,
    /// Bytes taken since the stream began. The producer may send up to this plus [`WINDOW`].
    pub offset: u64,
}

/// What a driver puts into a new incarnation, for its runtime: the content of the file `seed.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    /// The fleet.
    pub fleet: FleetName,
    /// The agent.
    pub agent: AgentName,
    /// The incarnation.
    pub incarnation: Incarnation,
    /// What ties the instance to its claim.
    pub nonce: Nonce,
    /// Where the hub is: `ws://127.0.0.1:9090/v1/runtime`, or `wss://` off this machine.
    pub hub: String,
    /// SHA-256 of the hub's certificate (its whole DER), which alone is trusted with `wss://`.
    pub hub_pin: Option<Digest>,
    /// The join token. It works once, and only while the operation that made it is under way.
    pub join_token: Secret,
}

/// The JSON Schema of the protocol: everything that either side says.
#[must_use]
pub fn json_schema() -> schemars::Schema {
    /// Everything that stands on the wire or seeds what does.
    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Protocol {
        /// Text frames from a runtime to the hub.
        from_runtime: Envelope<FromRuntime>,
        /// Text frames from the hub to a runtime.
        from_hub: Envelope<FromHub>,
        /// The file that seeds a runtime.
        seed: Seed,
    }
    schemars::schema_for!(Protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_reads_as_the_design_shows_it() {
        let text = r#"{"id":"0190c5a8-0000-7000-8000-000000000000","from":"web","to":"host","type":"configured",
                      "timestamp":1234567890,"payload":{"digest":"00"}}"#;
        let envelope: Envelope<FromRuntime> = serde_json::from_str(text).unwrap();
        assert_eq!(envelope.from, Address::Agent("web".parse().unwrap()));
        assert_eq!(
            envelope.body,
            FromRuntime::Configured(Configured { digest: Some("00".to_owned().into()), problems: Vec::new() })
        );
        let back: serde_json::Value = serde_json::to_value(&envelope).unwrap();
        assert_eq!(back["type"], "configured");
        assert_eq!(back["to"], "host");
    }

    #[test]
    fn codes_print_as_they_stand_on_the_wire() {
        for code in [RefusalCode::Clone, RefusalCode::StaleBoot, RefusalCode::JoinToken, RefusalCode::UnknownAgent] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}

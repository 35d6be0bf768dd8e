//! The documents of the HTTP API. Every one of them has `apiVersion` and `kind`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::credential::{ApiToken, Role};
use crate::event::Event;
use crate::fleet::{AgentEntry, DeclaredAgent, Diagnostic, DriverName, PowerState, SourceFile};
use crate::ids::{Digest, Epoch, Incarnation, Life, MessageId, Revision, Secret, TaskId};
use crate::intent::{Override, Pause};
use crate::message::{Message, Post};
use crate::names::{AgentName, FleetName, InstanceName, SnapshotName};
use crate::observe::{Capabilities, Description, InstanceState};
use crate::plan::{ApprovalRequest, Condition, Drift, Fuse, Health, Plan, Rest, Sync, WaitsFor};
use crate::selector::Selector;
use crate::snapshot::{Errand, Keeper, Snapshot};
use crate::task::{Job, Task, Terms};
use crate::units::{ByteSize, Span};
use crate::verification::Verification;
use crate::wire::{Channel, HealthReport, Signal, StreamTarget, TaskOutcome, TerminalSize};

/// The version of these documents.
pub const API_VERSION: &str = "vm-agent/v1";

/// A document: what it is, and what it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Document<T> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// What the document is.
    pub kind: String,
    /// What it says.
    #[serde(flatten)]
    pub content: T,
}

/// Something that is a document of its own.
pub trait Kind {
    /// What it is called.
    const KIND: &'static str;
}

impl<T: Kind> From<T> for Document<T> {
    fn from(content: T) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: T::KIND.to_owned(), content }
    }
}

/// Many of one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct List<T> {
    /// The things.
    pub items: Vec<T>,
}

macro_rules! kinds {
    ($($type:ty => $kind:literal),+ $(,)?) => {
        $(impl Kind for $type {
            const KIND: &'static str = $kind;
        })+
    };
}

kinds! {
    AgentView => "Agent",
    List<AgentView> => "AgentList",
    List<AgentDrift> => "DriftList",
    List<Event> => "EventList",
    List<Override> => "OverrideList",
    List<Task> => "TaskList",
    List<ApiToken> => "TokenList",
    List<AuditEntry> => "AuditList",
    NewToken => "Token",
    FleetView => "Fleet",
    PlanView => "Plan",
    Applied => "Applied",
    Changed => "Changed",
    Resumable => "Pause",
    List<Approval> => "ApprovalList",
    Approval => "Approval",
    List<RevisionView> => "RevisionList",
    RevisionView => "Revision",
    ControllerStatus => "ControllerStatus",
    LogPage => "Log",
    Stats => "Stats",
    Task => "Task",
    DeadLetters => "DeadLetters",
    List<Message> => "MessageList",
    Snapshot => "Snapshot",
    List<SnapshotView> => "SnapshotList",
    Errand => "Errand",
    List<InstanceInfo> => "InstanceList",
    Verification => "Verification",
    Version => "Version",
    Alive => "Alive",
}

/// An agent: what is wanted, what is seen, and what is being done about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Its name.
    pub name: AgentName,
    /// Its driver, as resolved.
    pub driver: Option<DriverName>,
    /// Whether it should run; nothing for an agent that should not exist.
    pub power: Option<PowerState>,
    /// What its instance is seen doing; nothing when it does not exist.
    pub instance: Option<InstanceState>,
    /// Which life of its instance this is.
    pub incarnation: Option<Incarnation>,
    /// Whether it is as wanted.
    pub sync: Sync,
    /// Whether it is well.
    pub health: Health,
    /// Each difference between wanted and seen.
    pub drift: Vec<Drift>,
    /// Why nothing, or not everything, is done about it.
    pub waits_for: Vec<WaitsFor>,
    /// Whether it is looked at and planned for and not touched, because it or the whole fleet is paused.
    pub paused: bool,
    /// Why its machine is to be down although its spec says that it should run.
    pub rests: Option<Rest>,
    /// The overrides in force.
    pub overrides: Vec<Override>,
    /// Named facts.
    pub conditions: Vec<Condition>,
    /// Its runtime's session; nothing when none is connected.
    pub session: Option<SessionView>,
    /// Its effective spec with origins.
    pub wanted: Option<DeclaredAgent>,
    /// The accepted fleet file that was last acted on.
    pub observed_generation: Option<Revision>,
}

/// A runtime's session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// The epoch.
    pub epoch: Epoch,
    /// When it was accepted.
    pub connected_at: Timestamp,
    /// When the runtime was last heard.
    pub last_seen: Timestamp,
    /// The runtime's version.
    pub runtime_version: String,
    /// Its latest health report.
    pub health: Option<HealthReport>,
}

/// An agent's drift.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentDrift {
    /// The agent.
    pub agent: AgentName,
    /// Each difference.
    pub drift: Vec<Drift>,
    /// Why nothing, or not everything, is done about it.
    pub waits_for: Vec<WaitsFor>,
}

/// The accepted fleet file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FleetView {
    /// The fleet's name.
    pub name: FleetName,
    /// Which accepted file; nothing when none was ever accepted.
    pub revision: Option<Revision>,
    /// The files and folders that it was read from.
    pub roots: Vec<PathBuf>,
    /// Each agent that it comes to.
    pub agents: BTreeMap<AgentName, DeclaredAgent>,
    /// The overrides on it.
    pub overrides: Vec<Override>,
}

/// A fleet file, or several that make one fleet, on its way to the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FleetSource {
    /// The files and folders that it was read from, absolute: the controller watches them. None for a
    /// text that came from nowhere on the disk.
    #[serde(default)]
    pub roots: Vec<PathBuf>,
    /// What they say.
    pub files: Vec<SourceFile>,
}

/// A fleet file that was accepted at some time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionView {
    /// Its number.
    pub revision: Revision,
    /// When it was accepted.
    pub at: Timestamp,
    /// Who applied it, or that the watcher did.
    pub author: String,
    /// Whether it is the one in force.
    pub current: bool,
    /// What it changed, in a sentence.
    pub summary: String,
    /// What it said; only when one revision is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<FleetSource>,
}

/// Asks to go back to an earlier revision: what it said becomes the newest one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackRequest {
    /// The revision.
    pub revision: Revision,
    /// Go back only while this is still the plan.
    #[serde(default)]
    pub plan: Option<Digest>,
    /// Say yes to everything in the plan that waits for an approval. Needs `plan`.
    #[serde(default)]
    pub approve: bool,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// Something that waits for a person's yes, of an agent or of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// The digest of what is shown.
    pub id: Digest,
    /// The agent that it is about; nothing when it is about the file.
    pub agent: Option<AgentName>,
    /// What would happen.
    pub what: String,
}

impl From<ApprovalRequest> for Approval {
    fn from(request: ApprovalRequest) -> Self {
        Self { id: request.id, agent: Some(request.agent), what: request.what }
    }
}

/// Asks what would be done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanRequest {
    /// Plan for this file instead of the accepted one.
    pub source: Option<FleetSource>,
}

/// A plan, as a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// The plan.
    #[serde(flatten)]
    pub plan: Plan,
    /// What the file that it is for would newly let guests do to the host, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reach: Vec<String>,
}

/// Asks for a file to be accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplyRequest {
    /// The file.
    pub source: FleetSource,
    /// Accept it only while this is still the plan.
    #[serde(default)]
    pub plan: Option<Digest>,
    /// Say yes to everything in the plan that waits for an approval. Needs `plan`: a yes is to what
    /// was shown.
    #[serde(default)]
    pub approve: bool,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// A file was accepted, or would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Which accepted file it is now. The same text twice is one revision.
    pub revision: Option<Revision>,
    /// What will be done.
    pub plan: Plan,
    /// What this would newly let guests do to the host, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reach: Vec<String>,
    /// Nothing was changed.
    pub dry_run: bool,
}

/// Asks for an agent beside the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateRequest {
    /// What it should be like.
    #[serde(default)]
    pub spec: AgentEntry,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// Asks for a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Its name; without one it is called by the time.
    #[serde(default)]
    pub name: Option<SnapshotName>,
    /// What there is to say about it.
    #[serde(default)]
    pub comment: Option<String>,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// Changes what is said about a snapshot. What is not given stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotChange {
    /// Whether it refuses to be deleted.
    #[serde(default)]
    pub protect: Option<bool>,
    /// What there is to say about it.
    #[serde(default)]
    pub comment: Option<String>,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// A snapshot, and what is known of it besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotView {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// Whether the machine's memory is in it.
    pub memory: bool,
    /// What its files take on this host: what was written since the one before, and the memory. Nothing where the
    /// driver can't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// What keeps it; it goes by itself when nothing does.
    pub kept: BTreeSet<Keeper>,
}

/// Asks for a snapshot to be deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotDeletion {
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// Asks for a machine to go back to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreRequest {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// Take no snapshot of what the machine is now: that is lost then.
    #[serde(default)]
    pub without_safety: bool,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// Asks for a new agent made from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloneRequest {
    /// The new agent's name.
    pub name: AgentName,
    /// The snapshot; without one it is taken now.
    #[serde(default)]
    pub snapshot: Option<SnapshotName>,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// Asks for an instance that others made to become an agent's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportRequest {
    /// The driver whose instance it is.
    pub driver: DriverName,
    /// The instance.
    pub instance: InstanceName,
    /// Why, for everybody who sees it.
    #[serde(default)]
    pub reason: Option<String>,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// An instance, ours or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceInfo {
    /// The driver that it is one of.
    pub driver: DriverName,
    /// Its name there.
    pub name: InstanceName,
    /// What it is doing.
    pub state: InstanceState,
    /// The agent whose it is; nothing for one that is not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentName>,
    /// What the driver tells of it.
    #[serde(flatten)]
    pub description: Description,
    /// Why the driver tells nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Asks for an agent to start, stop, be let alone or go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangeRequest {
    /// How long this should hold against the file. Nothing means one hour for `start` and `stop`, and
    /// until it is cleared for the others.
    #[serde(default)]
    pub lasting: Option<Span>,
    /// Let it hold until it is cleared.
    #[serde(default)]
    pub sticky: bool,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an imperative change came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// The agent.
    pub agent: AgentName,
    /// The override that it made; nothing when the file says the same.
    pub overridden: Option<Override>,
    /// What will be done.
    pub plan: Plan,
    /// Nothing was changed.
    pub dry_run: bool,
}

/// Says yes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApproveRequest {
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// Whether the fleet is paused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resumable {
    /// The pause; nothing when the fleet is not paused.
    pub pause: Option<Pause>,
}

/// Asks the controller to stop every machine, and then itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownRequest {
    /// Delete the machines too.
    #[serde(default)]
    pub destroy: bool,
    /// Change nothing, and answer as if.
    #[serde(default)]
    pub dry_run: bool,
}

/// Asks for a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskRequest {
    /// What is to be done.
    pub job: Job,
    /// On which terms.
    #[serde(default)]
    pub terms: Terms,
    /// The task's id, chosen by who asks: asking twice with one id is asking once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<TaskId>,
    /// What the author calls it, at most 128 characters: asking twice with one key is asking once, and
    /// asking for something else with it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Asks for a task of several agents, or of any one of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TasksRequest {
    /// Whose.
    pub to: TaskTo,
    /// The task.
    pub task: TaskRequest,
}

/// Who is to do a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TaskTo {
    /// Any one agent with these labels that is idle.
    Any(Selector),
    /// Each of the agents that have these labels now.
    Each(Selector),
    /// Each of these agents.
    Agents(Vec<AgentName>),
}

/// A piece of a task's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutputPiece {
    /// Which attempt wrote it.
    pub attempt: u32,
    /// Where: stdout or stderr.
    pub channel: Channel,
    /// How much of that was written before it, in bytes. Where this is more than what came, something is
    /// left out.
    pub offset: u64,
    /// What, in base64 (standard alphabet, padded).
    pub data: String,
}

/// What could not be delivered, keeps failing, or is of unknown fate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetters {
    /// Tasks, latest first.
    pub tasks: Vec<Task>,
    /// Messages, latest first.
    pub messages: Vec<Message>,
}

/// Asks for a message to be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MessageRequest {
    /// To whom.
    pub to: MessageTo,
    /// What is said.
    pub post: Post,
    /// The message's id, chosen by who asks: asking twice with one id is asking once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<MessageId>,
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MessageTo {
    /// One agent.
    Agent(AgentName),
    /// Each agent that has these labels now.
    Each(Selector),
    /// Each agent.
    All,
}

/// The controller itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ControllerStatus {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its fleet.
    pub fleet: FleetName,
    /// Its state folder.
    pub state_dir: PathBuf,
    /// Which life on that folder.
    pub life: Life,
    /// When this life began.
    pub started_at: Timestamp,
    /// Where it listens.
    pub addresses: Addresses,
    /// The accepted fleet file.
    pub file: FileStatus,
    /// The pause of the whole fleet, if it is paused.
    pub paused: Option<Pause>,
    /// Whether it may change anything.
    pub fuse: Fuse,
    /// Its drivers.
    pub drivers: Vec<DriverStatus>,
    /// How many agents there are, by sync.
    pub sync: BTreeMap<String, u32>,
    /// How many agents there are, by health.
    pub health: BTreeMap<String, u32>,
    /// Named facts about the fleet.
    pub conditions: Vec<Condition>,
}

/// Where a controller listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// The unix socket of the API, for programs of the same user.
    pub socket: PathBuf,
    /// The hub.
    pub hub: SocketAddr,
    /// The API.
    pub api: SocketAddr,
    /// The dashboard.
    pub dashboard: SocketAddr,
}

/// The fleet file: what is in force, and what is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileStatus {
    /// The files and folders that it was read from.
    pub roots: Vec<PathBuf>,
    /// Which accepted file is in force.
    pub revision: Option<Revision>,
    /// When it was accepted.
    pub applied_at: Option<Timestamp>,
    /// Who applied it, or that the watcher did.
    pub author: Option<String>,
    /// How what is on the disk stands to what is in force.
    pub state: FileState,
    /// That in a sentence.
    pub message: String,
    /// What is wrong with what is on the disk, place by place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

/// How the fleet file on the disk stands to the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileState {
    /// It is in force.
    InForce,
    /// Nobody watches it: it came from nowhere on the disk, or watching is switched off.
    Unwatched,
    /// It has errors.
    Invalid,
    /// It is gone, or can't be read.
    Missing,
    /// It waits for an approval: it would let guests do more to the host than they may now.
    Held,
    /// It lies where an agent can write, so it is applied only by a person.
    Guarded,
    /// It is another one, and not to be applied: a person went back to an earlier one.
    RolledBack,
}

/// A driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriverStatus {
    /// Its name.
    pub name: DriverName,
    /// Whether it answered the last time it was asked.
    pub answering: bool,
    /// When it last answered.
    pub last_answer: Option<Timestamp>,
    /// What went wrong since.
    pub problem: Option<String>,
    /// How many instances it has, ours or not.
    pub instances: u32,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What `controller.json` in the state folder says to clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ControllerFile {
    /// The controller's process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its fleet.
    pub fleet: FleetName,
    /// Which life on the folder.
    pub life: Life,
    /// Where it listens.
    pub addresses: Addresses,
}

/// Lines of an agent's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogPage {
    /// The lines, oldest first.
    pub lines: Vec<String>,
}

/// Counts since the controller started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Agents known.
    pub agents: u32,
    /// Runtimes connected.
    pub sessions: u32,
    /// Passes of the loop.
    pub passes: u64,
    /// Steps begun.
    pub steps: u64,
    /// Steps that failed or timed out.
    pub failures: u64,
    /// Connections of runtimes that the hub refused or ended, and told why.
    pub refusals: u64,
}

/// A new token: the one time that it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewToken {
    /// What is stored of it.
    pub token: ApiToken,
    /// The token itself.
    pub secret: Secret,
}

/// Asks for a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// Who it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// How long it works; nothing means until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasting: Option<Span>,
}

/// Asks for a token in the place of another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRotation {
    /// How long the old token works beside the new one; nothing means [a day](Self::OVERLAP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Span>,
}

impl TokenRotation {
    /// How long an old token works beside the new one: whoever uses it has a working day to change over.
    pub const OVERLAP: Span = Span::from_secs(24 * 60 * 60);
}

/// A request that changed something, or was to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Its place in the order of all of them.
    pub seq: u64,
    /// When it was answered.
    pub at: Timestamp,
    /// Who made it: a person on the host, or a token by its name.
    pub actor: String,
    /// The HTTP method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The HTTP status of the answer.
    pub status: u16,
}

/// What is running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The program's version.
    pub version: String,
    /// The version of the protocol between runtime and hub.
    pub protocol: u32,
}

/// The controller answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Alive {
    /// Always `ok`: a controller that is not well does not answer.
    pub status: String,
}

/// What a client says on the WebSocket of `exec`, in text frames. The first one is `open`. Input
/// follows in binary frames of stream 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum ExecRequest {
    /// Run this.
    Open {
        /// What is to be at the other end.
        target: StreamTarget,
        /// Whether input will come.
        stdin: bool,
    },
    /// The terminal has another size.
    Resize {
        /// The size.
        size: TerminalSize,
    },
    /// Send a signal to the process group.
    Signal {
        /// The signal.
        signal: Signal,
    },
    /// How much output has been taken, in bytes since the start.
    Taken {
        /// Of which channel.
        channel: Channel,
        /// How much.
        offset: u64,
    },
}

/// What the controller says on the WebSocket of `exec`, in text frames. Output comes in binary
/// frames of stream 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum ExecEvent {
    /// The other end has begun.
    Opened {
        /// Where the output begins, in bytes: 0 but for a terminal that is attached to again.
        offset: u64,
    },
    /// How much input has been taken, in bytes since the start.
    Taken {
        /// How much.
        offset: u64,
    },
    /// The process has ended, and all its output has been sent.
    Ended {
        /// How.
        outcome: TaskOutcome,
    },
    /// It could not be run, or its fate is unknown.
    Failed {
        /// Why.
        problem: Problem,
    },
}

/// An error, as `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// What kind of error, for machines.
    pub code: ProblemCode,
    /// What went wrong, in a sentence.
    pub reason: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remediation: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// What is wrong with a fleet file, place by place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<crate::fleet::Diagnostic>,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    /// The request makes no sense, or its fleet file has errors.
    Invalid,
    /// No credential, or a wrong one.
    Unauthorized,
    /// A credential that may not do this.
    Forbidden,
    /// No such thing.
    NotFound,
    /// It contradicts what is: another fleet's file, a stale plan, a name that is taken.
    Conflict,
    /// Something stands in its way: protection, an approval.
    Blocked,
    /// The agent's runtime is not connected.
    Offline,
    /// The controller is going down.
    Unavailable,
    /// Something of the controller's failed.
    Internal,
}

impl ProblemCode {
    /// The HTTP status that goes with the code.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::Blocked => 409,
            Self::Offline | Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

impl Problem {
    /// An error of this kind.
    pub fn new(code: ProblemCode, reason: impl Into<String>) -> Self {
        Self {
            status: code.status(),
            code,
            reason: reason.into(),
            remediation: None,
            retryable: matches!(code, ProblemCode::Offline | ProblemCode::Unavailable),
            diagnostics: Vec::new(),
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn remedy(mut self, remediation: impl Into<String>) -> Self {
        self.remediation = Some(remediation.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Problem {}

//! Tasks: units of work for a runtime, each with exactly one outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fleet::FileMode;
use crate::ids::{ClaimId, Digest, GroupId, Incarnation, TaskId};
use crate::names::{AgentName, TaskName};
use crate::selector::Selector;
use crate::units::{ByteSize, Span};
use crate::wire::TaskOutcome;

/// How long a task may run when nobody says how long: long enough for a build, short enough that a hung
/// one is noticed the same day.
pub const TIMEOUT: Span = Span::from_secs(3600);

/// How much of each task's output is kept when nobody says how much: 8 MiB, half of it from the beginning
/// and half from the end.
pub const OUTPUT: ByteSize = ByteSize::from_mib(8);

/// Most that a task can ask to keep of its output: 1 GiB.
pub const OUTPUT_MAX: ByteSize = ByteSize::from_gib(1);

/// How many ended attempts a task remembers: the latest.
pub const ATTEMPTS_KEPT: usize = 10;

/// How often a task that may be repeated is begun anew because its machine or runtime went away, beside
/// the attempts that its [`Retry`] grants. What takes its machine down each time must end some day.
pub const LOSSES_MAX: u32 = 5;

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// The task's id.
    pub id: TaskId,
    /// The agent that does it. Nothing while a task of a pool has found none.
    pub agent: Option<AgentName>,
    /// The agents of which any one may do it; nothing for a task of one agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Selector>,
    /// What the tasks that one request made for several agents have in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
    /// Where it comes from.
    pub source: TaskSource,
    /// What is to be done.
    pub job: Job,
    /// On which terms.
    #[serde(default)]
    pub terms: Terms,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How far it is.
    pub state: TaskState,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the present attempt was last heard to begin.
    pub started_at: Option<Timestamp>,
    /// When its end was stored.
    pub ended_at: Option<Timestamp>,
    /// The attempts before this one, oldest first, at most the latest [`ATTEMPTS_KEPT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Attempt>,
    /// How often it was begun anew because its machine or runtime went away.
    #[serde(default)]
    pub losses: u32,
    /// Who asked for it to be cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canceled_by: Option<String>,
    /// What it left behind, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Why it is a dead letter: it could not be delivered, kept failing, or its fate is unknown. A person
    /// replays it or drops it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<String>,
    /// The task that this one does again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<TaskId>,
}

/// What a runtime is to do, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// What.
    pub work: Work,
    /// Environment, over the agent's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The folder, absolute or below the work folder. Nothing means the work folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user that its processes run as; nothing means the runtime's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Which of the agent's secrets it is given; nothing means all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<BTreeSet<String>>,
    /// What its process reads; nothing means an empty input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// How much of each of stdout and stderr is kept, in bytes: half from the beginning and half from the
    /// end.
    #[serde(default = "output")]
    pub output: ByteSize,
    /// Files that it makes, absolute or below its folder, with `*`, `?` and `**`. Each is told of with size
    /// and checksum when it has succeeded; a pattern that finds nothing then makes it fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
}

const fn output() -> ByteSize {
    OUTPUT
}

impl Job {
    /// This work, in the usual way.
    #[must_use]
    pub const fn new(work: Work) -> Self {
        Self {
            work,
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            secrets: None,
            stdin: None,
            output: OUTPUT,
            artifacts: Vec::new(),
        }
    }

    /// A program with its arguments, in the usual way.
    pub fn exec<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self::new(Work::Exec { argv: argv.into_iter().map(Into::into).collect() })
    }
}

/// The kinds of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Work {
    /// Runs a program.
    #[serde(rename = "exec")]
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
    },
    /// Runs a script, which is written to a file that only the user can read, and removed afterwards.
    #[serde(rename = "script")]
    Script {
        /// What runs it: a program that takes the script's path as its first argument, such as `bash`,
        /// `python3` or `node`, with arguments of its own before that.
        interpreter: Vec<String>,
        /// The script.
        script: String,
        /// Arguments for the script.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        args: Vec<String>,
    },
    /// Reads a file: its content is the task's stdout. A file longer than `output` fails it.
    #[serde(rename = "file:read")]
    FileRead {
        /// The file, absolute or below the task's folder.
        path: String,
    },
    /// Writes a file as a whole: nobody ever sees half of it.
    #[serde(rename = "file:write")]
    FileWrite {
        /// The file, absolute or below the task's folder. Missing folders are made.
        path: String,
        /// Its content.
        content: Content,
        /// Its permissions.
        #[serde(default)]
        mode: FileMode,
    },
    /// Clones a git repository. A clone that is there already is left as it is, if it is one of that
    /// repository; anything else in the place fails the task.
    #[serde(rename = "git:clone")]
    GitClone {
        /// The repository.
        url: String,
        /// Where to, absolute or below the task's folder; nothing means the last part of `url`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// The branch or tag to check out; nothing means the repository's own choice.
        #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// How many commits of its history to fetch; nothing means all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        depth: Option<u32>,
    },
    /// Brings a clone up to date. Only a fast-forward is done; anything else fails the task.
    #[serde(rename = "git:pull")]
    GitPull {
        /// The clone, absolute or below the task's folder; nothing means the folder itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// The remote; nothing means the branch's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remote: Option<String>,
        /// The branch; nothing means the one that the present branch follows.
        #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
    },
    /// Pushes a branch. Nothing is ever forced.
    #[serde(rename = "git:push")]
    GitPush {
        /// The clone, absolute or below the task's folder; nothing means the folder itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// The remote; nothing means the branch's own, or `origin`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remote: Option<String>,
        /// What to push, as git writes it; nothing means the present branch.
        #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
    },
    /// Builds a project.
    #[serde(rename = "build")]
    Build {
        /// The command; empty means what the project's files say.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        argv: Vec<String>,
    },
    /// Tests a project.
    #[serde(rename = "test")]
    Test {
        /// The command; empty means what the project's files say.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        argv: Vec<String>,
    },
    /// Deploys a project.
    #[serde(rename = "deploy")]
    Deploy {
        /// The command; empty means what the project's files say.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        argv: Vec<String>,
    },
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Content {
    /// Text in UTF-8.
    Text(String),
    /// Any bytes, in base64 (standard alphabet, padded).
    Base64(String),
}

impl Work {
    /// The kind, as it is written.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Script { .. } => "script",
            Self::FileRead { .. } => "file:read",
            Self::FileWrite { .. } => "file:write",
            Self::GitClone { .. } => "git:clone",
            Self::GitPull { .. } => "git:pull",
            Self::GitPush { .. } => "git:push",
            Self::Build { .. } => "build",
            Self::Test { .. } => "test",
            Self::Deploy { .. } => "deploy",
        }
    }

    /// Whether doing it twice is as good as once, when nobody says otherwise.
    #[must_use]
    pub const fn is_idempotent(&self) -> bool {
        match self {
            Self::FileRead { .. }
            | Self::FileWrite { .. }
            | Self::GitClone { .. }
            | Self::GitPull { .. }
            | Self::GitPush { .. }
            | Self::Build { .. }
            | Self::Test { .. } => true,
            Self::Exec { .. } | Self::Script { .. } | Self::Deploy { .. } => false,
        }
    }
}

impl fmt::Display for Work {
    /// What is done, in a few words, as a person would write it down.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec { argv } => f.write_str(&argv.join(" ")),
            Self::Script { interpreter, .. } => write!(f, "script ({})", interpreter.join(" ")),
            Self::FileRead { path } | Self::FileWrite { path, .. } => write!(f, "{} {path}", self.kind()),
            Self::GitClone { url, .. } => write!(f, "git:clone {url}"),
            Self::GitPull { path, .. } | Self::GitPush { path, .. } => {
                write!(f, "{} {}", self.kind(), path.as_deref().unwrap_or("."))
            }
            Self::Build { argv } | Self::Test { argv } | Self::Deploy { argv } if argv.is_empty() => {
                f.write_str(self.kind())
            }
            Self::Build { argv } | Self::Test { argv } | Self::Deploy { argv } => {
                write!(f, "{}: {}", self.kind(), argv.join(" "))
            }
        }
    }
}

/// How a task is treated by the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Terms {
    /// How long each attempt may run.
    pub timeout: Span,
    /// When it has to be over: nothing is begun after that, and what runs is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Whether doing it twice is as good as once: then what may have begun and was lost is done again.
    /// Nothing means as the kind of work says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotent: Option<bool>,
    /// Which ends are tried again, and how often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Tasks of one agent with the same key run one after the other, in the order in which they were
    /// accepted; so do all those without one. Tasks of different keys may run side by side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { timeout: TIMEOUT, deadline: None, idempotent: None, retry: None, key: None }
    }
}

/// Which ends of a task are tried again, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Retry {
    /// How many attempts there may be in all, the first included.
    pub attempts: u32,
    /// After which ends.
    pub on: BTreeSet<RetryOn>,
    /// The pause before the second attempt; doubled for each further one.
    pub backoff: Span,
    /// The longest pause.
    pub backoff_max: Span,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            on: [RetryOn::Failed, RetryOn::NotStarted].into(),
            backoff: Span::from_secs(1),
            backoff_max: Span::from_secs(300),
        }
    }
}

/// Ends that can be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// An exit code other than 0, a signal, or work that could not be done.
    Failed,
    /// It ran longer than it may.
    TimedOut,
    /// It could not be started.
    NotStarted,
}

/// An attempt that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Which one, from 1.
    pub attempt: u32,
    /// The agent that made it.
    pub agent: Option<AgentName>,
    /// When it was last heard to begin.
    pub started_at: Option<Timestamp>,
    /// When its end was stored.
    pub ended_at: Timestamp,
    /// How it ended.
    pub outcome: TaskOutcome,
}

/// What an ended attempt left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How much it wrote to stdout, in bytes, kept or not.
    pub stdout: u64,
    /// How much it wrote to stderr, in bytes, kept or not.
    pub stderr: u64,
    /// What it used; nothing where that can't be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The files that it was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
}

/// What an attempt used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// How long it ran, in milliseconds.
    pub wall_ms: u64,
    /// Processor time of its processes, in milliseconds.
    pub cpu_ms: u64,
    /// The most memory that its processes held together when looked at, in bytes.
    pub memory_max: ByteSize,
}

/// A file that a task made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// Where it is in the machine, absolute.
    pub path: String,
    /// Its size, in bytes.
    pub size: ByteSize,
    /// The SHA-256 of its content.
    pub sha256: Digest,
}

/// Where a task comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "from")]
pub enum TaskSource {
    /// The fleet file.
    File {
        /// Its name there.
        name: TaskName,
        /// The digest of its wording.
        digest: Digest,
        /// The machine that it is for.
        claim: ClaimId,
        /// The moment that it is for: of its calendar, of the session's beginning, or of the end of the
        /// task that it comes after. Nothing for a task that runs once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        due: Option<Timestamp>,
    },
    /// A person or a program, through the API.
    Request {
        /// Who.
        author: String,
        /// What the author calls it: asking twice with one key is asking once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
}

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state", rename_all_fields = "camelCase")]
pub enum TaskState {
    /// Accepted, and this attempt is handed to nobody yet.
    Queued {
        /// Not before then: an attempt before this one failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<Timestamp>,
    },
    /// Handed to the runtime of this incarnation, or about to be: it may have begun.
    Sent {
        /// The incarnation: with its end the attempt is Interrupted.
        incarnation: Incarnation,
    },
    /// Running in this incarnation.
    Running {
        /// The incarnation: with its end the attempt is Interrupted.
        incarnation: Incarnation,
    },
    /// Over. This never changes again.
    Ended {
        /// How.
        outcome: TaskOutcome,
    },
}

impl TaskState {
    /// Accepted just now.
    pub const QUEUED: Self = Self::Queued { not_before: None };
}

impl Task {
    /// A task that is accepted now.
    #[must_use]
    pub fn new(
        id: TaskId,
        agent: Option<AgentName>,
        source: TaskSource,
        job: Job,
        terms: Terms,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            agent,
            pool: None,
            group: None,
            source,
            job,
            terms,
            attempt: 1,
            state: TaskState::QUEUED,
            created_at: now,
            started_at: None,
            ended_at: None,
            former: Vec::new(),
            losses: 0,
            canceled_by: None,
            report: None,
            dead: None,
            replay_of: None,
        }
    }

    /// How the task ended; nothing while it has not.
    #[must_use]
    pub const fn outcome(&self) -> Option<&TaskOutcome> {
        match &self.state {
            TaskState::Ended { outcome } => Some(outcome),
            TaskState::Queued { .. } | TaskState::Sent { .. } | TaskState::Running { .. } => None,
        }
    }

    /// The incarnation that it was handed to, while it is not over: it may have begun there, and this
    /// attempt can be made nowhere else.
    #[must_use]
    pub const fn handed_to(&self) -> Option<Incarnation> {
        match self.state {
            TaskState::Sent { incarnation } | TaskState::Running { incarnation } => Some(incarnation),
            TaskState::Queued { .. } | TaskState::Ended { .. } => None,
        }
    }

    /// Whether doing it twice is as good as once.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        self.terms.idempotent.unwrap_or_else(|| self.job.work.is_idempotent())
    }
}

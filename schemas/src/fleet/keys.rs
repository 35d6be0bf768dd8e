//! What keys of an agent say that need a type of their own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use super::file::{CommandLine, RestartPolicy};
use super::short::{list_or_map, text_or_map};
use crate::names::AgentName;
use crate::schedule::Cron;
use crate::units::Span;

/// What an agent waits for before it is created or started: other agents, and how far each has to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "DependsOnForms")]
pub struct DependsOn(pub BTreeMap<AgentName, Until>);

/// The forms in which dependencies are written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum DependsOnForms {
    /// Agents that have to be Healthy.
    Names(Vec<AgentName>),
    /// Agents, and how far each has to be.
    Conditions(BTreeMap<AgentName, Until>),
}

impl<'de> Deserialize<'de> for DependsOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let healthy = |names: Vec<AgentName>| names.into_iter().map(|name| (name, Until::Healthy)).collect();
        let expecting = "a list of agents, or agents with how far each has to be";
        list_or_map(deserializer, expecting, healthy).map(Self)
    }
}

/// How far an agent has to be before another may come up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// Its machine runs.
    Started,
    /// It is Healthy.
    #[default]
    Healthy,
    /// Its tasks have all succeeded on its present machine.
    Completed,
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Started => "started",
            Self::Healthy => "Healthy",
            Self::Completed => "done with its tasks",
        })
    }
}

/// What the controller does about one kind of drift.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DriftPolicy {
    /// It removes it.
    #[default]
    Correct,
    /// It shows it and does nothing.
    Warn,
    /// It neither shows it nor does anything.
    Ignore,
}

impl fmt::Display for DriftPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Correct => "correct",
            Self::Warn => "warn",
            Self::Ignore => "ignore",
        })
    }
}

/// What a drift policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DriftField {
    /// Whether the machine runs.
    Power,
    /// Processors.
    Cpus,
    /// Memory.
    Memory,
    /// Disk.
    Disk,
    /// The image that the machine was made from.
    Image,
    /// The driver that made the machine.
    Driver,
    /// Folders of the host.
    Mounts,
    /// `env`, `labels`, `files`, `secrets` and `services`: what the runtime is told. And `packages`, `user`,
    /// `sudo`, `cloudInit` and `networks`: what the machine got at its birth.
    Provisioning,
    /// Tasks of the file.
    Tasks,
}

impl DriftField {
    /// The field as the file writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Cpus => "cpus",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Image => "image",
            Self::Driver => "driver",
            Self::Mounts => "mounts",
            Self::Provisioning => "provisioning",
            Self::Tasks => "tasks",
        }
    }
}

/// When an agent counts as idle. Only what it does counts: a running or queued task, an open session
/// and a busy service keep it up, and looking at it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(with = "IdleForms")]
pub struct Idle {
    /// How long nothing has to happen in it before its machine stops.
    pub after: Span,
}

/// The forms in which idleness is written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum IdleForms {
    /// How long nothing has to happen.
    Short(Span),
    /// The same, by name.
    Long(IdleMap),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IdleMap {
    /// How long nothing has to happen in it before its machine stops.
    after: Span,
}

impl<'de> Deserialize<'de> for Idle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let short = |text: &str| Ok(IdleMap { after: text.parse::<Span>().map_err(|error| error.to_string())? });
        let IdleMap { after } = text_or_map(deserializer, "a length of time such as 30m", short)?;
        Ok(Self { after })
    }
}

/// A folder of the host inside an agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(with = "MountForms")]
pub struct Mount {
    /// The folder on the host: absolute, or relative to the folder of the fleet file.
    pub source: PathBuf,
    /// Whether the agent may change what is in it.
    pub writable: bool,
}

/// The forms in which a mount is written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum MountForms {
    /// The folder on the host, to be read only.
    Short(String),
    /// The folder, and whether the agent may change what is in it.
    Long(MountMap),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MountMap {
    /// The folder on the host: absolute, or relative to the folder of the fleet file.
    source: PathBuf,
    /// Whether the agent may change what is in it.
    #[serde(default)]
    writable: bool,
}

impl<'de> Deserialize<'de> for Mount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let short = |text: &str| Ok(MountMap { source: text.into(), writable: false });
        let MountMap { source, writable } = text_or_map(deserializer, "a folder of the host", short)?;
        Ok(Self { source, writable })
    }
}

/// A file that the runtime writes and keeps as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(with = "FileForms")]
pub struct FileContent {
    /// What is in it.
    pub content: String,
    /// Who may do what with it.
    pub mode: FileMode,
}

/// The forms in which a file is written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum FileForms {
    /// What is in it.
    Short(String),
    /// What is in it, and its mode.
    Long(FileMap),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileMap {
    /// What is in it.
    content: String,
    /// Who may do what with it, in octal digits, in quotes.
    #[serde(default)]
    mode: FileMode,
}

impl<'de> Deserialize<'de> for FileContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let short = |text: &str| Ok(FileMap { content: text.to_owned(), mode: FileMode::default() });
        let FileMap { content, mode } = text_or_map(deserializer, "the content of a file", short)?;
        Ok(Self { content, mode })
    }
}

/// The permissions of a file, as `chmod` takes them: `"0644"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(u32);

/// Why a text is no mode of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a mode: write three or four octal digits in quotes, such as \"0644\"")]
pub struct InvalidMode {
    text: String,
}

impl FileMode {
    /// The permission bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl Default for FileMode {
    fn default() -> Self {
        Self(0o644)
    }
}

impl FromStr for FileMode {
    type Err = InvalidMode;
    fn from_str(text: &str) -> Result<Self, InvalidMode> {
        let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let bits = digits.then(|| u32::from_str_radix(text, 8).ok()).flatten();
        // No file of an agent needs to run as somebody else than who starts it.
        bits.filter(|bits| *bits <= 0o777).map(Self).ok_or_else(|| InvalidMode { text: text.to_owned() })
    }
}

impl TryFrom<String> for FileMode {
    type Error = InvalidMode;
    fn try_from(text: String) -> Result<Self, InvalidMode> {
        text.parse()
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl JsonSchema for FileMode {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "FileMode".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^0?[0-7]{3}$", "examples": ["0644", "0600"]})
    }
}

/// Where a secret's value comes from. The file never holds the value itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", try_from = "SecretMap", into = "SecretMap")]
pub enum SecretSource {
    /// A variable of the controller's environment.
    Env(String),
    /// A file on the host: its content without a line end at its end.
    File(PathBuf),
    /// What a command on the host prints, without a line end at its end.
    Command(CommandLine),
}

/// A secret's source as it is written: exactly one of the keys.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct SecretMap {
    /// A variable of the controller's environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    env: Option<String>,
    /// A file on the host: absolute, or relative to the folder of the fleet file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// A command on the host that prints the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<CommandLine>,
}

impl TryFrom<SecretMap> for SecretSource {
    type Error = &'static str;
    fn try_from(map: SecretMap) -> Result<Self, &'static str> {
        match map {
            SecretMap { env: Some(name), file: None, command: None } => Ok(Self::Env(name)),
            SecretMap { env: None, file: Some(path), command: None } => Ok(Self::File(path)),
            SecretMap { env: None, file: None, command: Some(command) } => Ok(Self::Command(command)),
            _ => Err("a secret comes from exactly one of `env`, `file` and `command`"),
        }
    }
}

impl From<SecretSource> for SecretMap {
    fn from(source: SecretSource) -> Self {
        match source {
            SecretSource::Env(name) => Self { env: Some(name), ..Self::default() },
            SecretSource::File(path) => Self { file: Some(path), ..Self::default() },
            SecretSource::Command(command) => Self { command: Some(command), ..Self::default() },
        }
    }
}

impl fmt::Display for SecretSource {
    /// Where the value comes from, never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "the controller's variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Command(command) => write!(f, "the command `{}`", command.argv().join(" ")),
        }
    }
}

/// A program that runs for as long as the agent does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntry {
    /// What to run: a text is a line for `/bin/sh -c`, a list is a program and its arguments.
    #[schemars(example = &"openclaw gateway", extend("x-cost" = "live: the service starts anew"))]
    pub exec: CommandLine,

    /// Environment for this service alone, over the agent's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live: the service starts anew", "examples" = [{"PORT": "8080"}]))]
    pub env: BTreeMap<String, String>,

    /// The folder it runs in, absolute or below the agent's work folder. Without this key the work
    /// folder itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"src", extend("default" = null, "x-cost" = "live: the service starts anew"))]
    pub cwd: Option<String>,

    /// When it is started again after it ended. The pauses between starts double, up to a minute.
    #[serde(default)]
    #[schemars(example = &"on-failure", extend("x-cost" = "live: the service starts anew"))]
    pub restart: RestartPolicy,

    /// How to tell that it works. Without this key it works while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "default" = null,
        "x-cost" = "live: the service starts anew",
        "examples" = [{"exec": "curl -fs localhost:8080", "every": "10s"}]
    ))]
    pub probe: Option<Probe>,
}

/// How to tell that a service works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// A command that succeeds while the service works.
    #[schemars(example = &"curl -fs localhost:8080", extend("x-cost" = "live: the service starts anew"))]
    pub exec: CommandLine,

    /// The pause between two probes.
    #[serde(default = "probe_every")]
    #[schemars(example = &"5s", extend("x-cost" = "live: the service starts anew"))]
    pub every: Span,

    /// How long one probe may take.
    #[serde(default = "probe_timeout")]
    #[schemars(example = &"2s", extend("x-cost" = "live: the service starts anew"))]
    pub timeout: Span,

    /// Failures in a row after which the service counts as failed, and starts anew as `restart` says.
    #[serde(default = "probe_failures")]
    #[schemars(range(min = 1), example = 5, extend("x-cost" = "live: the service starts anew"))]
    pub failures: u32,
}

const fn probe_every() -> Span {
    Span::from_secs(10)
}

const fn probe_timeout() -> Span {
    Span::from_secs(5)
}

const fn probe_failures() -> u32 {
    3
}

/// A time in which steps may happen that disturb what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    /// When it opens.
    #[schemars(extend("x-cost" = "live"))]
    pub cron: Cron,
    /// How long it stays open.
    #[schemars(example = &"6h", extend("x-cost" = "live"))]
    pub lasts: Span,
}

//! A task as the file declares it: one map of keys, of which its `type` says which belong to it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::file::CommandLine;
use super::keys::FileMode;
use super::resolve::TaskSpec;
use super::short::number_or_map;
use super::when::TaskWhen;
use crate::task::{Content, Job, OUTPUT, Retry, TIMEOUT, Terms, Work};
use crate::units::{ByteSize, Span};

/// A task as the file declares it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "TaskKeys", into = "TaskKeys")]
pub struct TaskEntry(pub(super) TaskSpec);

/// The keys of tasks of all types.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "TaskEntry", extend("allOf" = conditions()))]
pub(super) struct TaskKeys {
    /// What kind of work it is. Each type has keys of its own.
    #[serde(default, rename = "type")]
    #[schemars(example = &"build", extend("x-cost" = "live: a changed task runs again"))]
    kind: WorkType,

    /// What to run: a text is a line for `/bin/sh -c`, a list is a program and its arguments. For
    /// `type: exec`; and for `build`, `test` and `deploy`, which without this key run what the project's
    /// files say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"make deps", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    exec: Option<CommandLine>,

    /// For `type: script`: the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"print('hello')", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    script: Option<String>,

    /// For `type: script`: what runs it, a program that takes the script's path as its first argument.
    /// Arguments of its own come after a blank, as in a script's first line, or in a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "default" = "/bin/sh",
        "x-cost" = "live: a changed task runs again",
        "examples" = ["python3 -u", ["node", "--no-warnings"]]
    ))]
    interpreter: Option<Interpreter>,

    /// For `type: script`: arguments for the script.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = [], "x-cost" = "live: a changed task runs again", "examples" = [["--all"]]))]
    args: Vec<String>,

    /// A path in the agent, absolute or below `cwd`. For `file:read` and `file:write` the file; for
    /// `git:clone` where to, without this key the last part of `url`; for `git:pull` and `git:push` the
    /// clone, without this key `cwd` itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"src", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    path: Option<String>,

    /// For `type: file:write`: what is in the file: a text, or any bytes as `{base64: …}`. Not for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "default" = null,
        "x-cost" = "live: a changed task runs again",
        "examples" = ["hello\n", {"base64": "aGVsbG8K"}]
    ))]
    content: Option<ContentKey>,

    /// For `type: file:write`: who may do what with the file, in octal digits, in quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"0600", extend("default" = "0644", "x-cost" = "live: a changed task runs again"))]
    mode: Option<FileMode>,

    /// For `type: git:clone`: the repository. It has no password in it: that is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        example = &"https://github.com/octocat/Hello-World.git",
        extend("default" = null, "x-cost" = "live: a changed task runs again")
    )]
    url: Option<String>,

    /// For `git:clone`: the branch or tag to check out. For `git:pull`: the branch; for `git:push`: what to
    /// push. Without this key what git itself chooses.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"main", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    reference: Option<String>,

    /// For `type: git:clone`: how many commits of the history to fetch. Without this key all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 1, extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    depth: Option<NonZeroU32>,

    /// For `git:pull` and `git:push`: the remote. Without this key that of the branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"origin", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    remote: Option<String>,

    /// When it runs. `once`: after the agent first connects, and again only when the task changes or the
    /// machine is made anew. `connect`: once for each session of the runtime. `{after: setup}`: once for
    /// each success of that task. `{cron: "0 3 * * * Europe/Berlin"}`: at those moments, in UTC where no
    /// time zone is named.
    #[serde(default)]
    #[schemars(extend("x-cost" = "live", "examples" = ["connect", {"after": "setup"}, {"cron": "0 3 * * *"}]))]
    when: TaskWhen,

    /// Environment for this task alone, over the agent's. Not for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live: a changed task runs again", "examples" = [{"CI": "true"}]))]
    env: BTreeMap<String, String>,

    /// The folder it runs in, absolute or below the agent's work folder. Without this key the work folder
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"src", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    cwd: Option<String>,

    /// The user of the machine that it runs as. Without this key the one that the runtime runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"nobody", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    user: Option<String>,

    /// Which of the agent's secrets it is given. Without this key all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "default" = null,
        "x-cost" = "live: a changed task runs again",
        "examples" = [["GITHUB_TOKEN"], []]
    ))]
    secrets: Option<BTreeSet<String>>,

    /// What its process reads from its standard input. Without this key nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"yes\n", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    stdin: Option<String>,

    /// How much of each of its two outputs is kept: half from the beginning and half from the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"64M", extend("default" = "8M", "x-cost" = "live: a changed task runs again"))]
    output: Option<ByteSize>,

    /// Files that it makes, absolute or below `cwd`, with `*`, `?` and `**`. Each is told of with its size
    /// and its checksum; a pattern that finds nothing makes the task fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = [], "x-cost" = "live: a changed task runs again", "examples" = [["dist/*.tar.gz"]]))]
    artifacts: Vec<String>,

    /// How long each attempt may run before it is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"10m", extend("default" = "1h", "x-cost" = "live: a changed task runs again"))]
    timeout: Option<Span>,

    /// Whether doing it twice is as good as once: then an attempt that was lost together with its machine
    /// is made again. Without this key it is for `file`, `git`, `build` and `test`, and is not for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    idempotent: Option<bool>,

    /// Whether it is tried again when it fails: how many attempts there may be in all, or that with the ends
    /// that are tried again and the pauses between. Without this key there is one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "default" = null,
        "x-cost" = "live: a changed task runs again",
        "examples" = [3, {"attempts": 5, "on": ["failed", "timed-out"], "backoff": "10s"}]
    ))]
    retry: Option<RetryKey>,

    /// Tasks of one agent with the same key run one after the other, and so do all those without one. Tasks
    /// of different keys run side by side, as many as the agent has `slots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"deploy", extend("default" = null, "x-cost" = "live: a changed task runs again"))]
    key: Option<String>,
}

/// The kinds of work, as the file names them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(super) enum WorkType {
    /// Runs a program.
    #[default]
    #[serde(rename = "exec")]
    Exec,
    /// Runs a script.
    #[serde(rename = "script")]
    Script,
    /// Reads a file: its content is the task's output.
    #[serde(rename = "file:read")]
    FileRead,
    /// Writes a file as a whole.
    #[serde(rename = "file:write")]
    FileWrite,
    /// Clones a git repository. A clone that is there already is left as it is.
    #[serde(rename = "git:clone")]
    GitClone,
    /// Brings a clone up to date, by a fast-forward or not at all.
    #[serde(rename = "git:pull")]
    GitPull,
    /// Pushes a branch, and never by force.
    #[serde(rename = "git:push")]
    GitPush,
    /// Builds a project.
    #[serde(rename = "build")]
    Build,
    /// Tests a project.
    #[serde(rename = "test")]
    Test,
    /// Deploys a project.
    #[serde(rename = "deploy")]
    Deploy,
}

/// The keys that every type has.
const COMMON: [&str; 8] = ["type", "when", "cwd", "user", "timeout", "idempotent", "retry", "key"];

impl WorkType {
    const ALL: [Self; 10] = [
        Self::Exec,
        Self::Script,
        Self::FileRead,
        Self::FileWrite,
        Self::GitClone,
        Self::GitPull,
        Self::GitPush,
        Self::Build,
        Self::Test,
        Self::Deploy,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Script => "script",
            Self::FileRead => "file:read",
            Self::FileWrite => "file:write",
            Self::GitClone => "git:clone",
            Self::GitPull => "git:pull",
            Self::GitPush => "git:push",
            Self::Build => "build",
            Self::Test => "test",
            Self::Deploy => "deploy",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The keys that it can't do without.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Exec => &["exec"],
            Self::Script => &["script"],
            Self::FileRead => &["path"],
            Self::FileWrite => &["path", "content"],
            Self::GitClone => &["url"],
            Self::GitPull | Self::GitPush | Self::Build | Self::Test | Self::Deploy => &[],
        }
    }

    /// The other keys that say what is to be done.
    const fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Exec | Self::FileRead => &[],
            Self::Script => &["interpreter", "args"],
            Self::FileWrite => &["mode"],
            Self::GitClone => &["path", "ref", "depth"],
            Self::GitPull | Self::GitPush => &["path", "remote", "ref"],
            Self::Build | Self::Test | Self::Deploy => &["exec"],
        }
    }

    /// The keys about how it is done that not every type has: a file is written by no process.
    const fn manner(self) -> &'static [&'static str] {
        match self {
            Self::FileRead => &["output"],
            Self::FileWrite => &[],
            Self::GitClone | Self::GitPull | Self::GitPush => &["env", "secrets", "output", "artifacts"],
            Self::Exec | Self::Script | Self::Build | Self::Test | Self::Deploy => {
                &["env", "secrets", "output", "artifacts", "stdin"]
            }
        }
    }

    /// All its keys, its own first.
    fn keys(self) -> impl Iterator<Item = &'static str> {
        [self.required(), self.optional(), self.manner(), &COMMON].into_iter().flatten().copied()
    }

    fn has(self, key: &str) -> bool {
        self.keys().any(|own| own == key)
    }
}

/// For the schema: what each type needs, and what does not belong to it.
fn conditions() -> Value {
    let every: BTreeSet<&str> = WorkType::ALL.into_iter().flat_map(WorkType::keys).collect();
    let condition = |kind: WorkType| {
        let foreign = every.iter().filter(|key| !kind.has(key)).map(|key| ((*key).to_owned(), Value::Bool(false)));
        let mut is = json!({"properties": {"type": {"const": kind.as_str()}}});
        if kind != WorkType::default() {
            is["required"] = json!(["type"]);
        }
        let properties: serde_json::Map<String, Value> = foreign.collect();
        json!({"if": is, "then": {"required": kind.required(), "properties": properties}})
    };
    WorkType::ALL.map(condition).to_vec().into()
}

/// What runs a script: a line as after `#!`, or a list of program and arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "an interpreter: a line such as `python3 -u`, or a list of program and arguments")]
enum Interpreter {
    /// A program, and its arguments after blanks.
    Line(String),
    /// A program and its arguments.
    Argv(Vec<String>),
}

impl Interpreter {
    fn argv(self) -> Vec<String> {
        match self {
            Self::Line(line) => line.split_whitespace().map(str::to_owned).collect(),
            Self::Argv(argv) => argv,
        }
    }
}

/// What is in a file that a task writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a text, or {base64: \"…\"}")]
enum ContentKey {
    /// A text.
    Text(String),
    /// Any bytes.
    Bytes(Bytes),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Bytes {
    /// The bytes, in base64 (standard alphabet, padded).
    base64: String,
}

/// How a task is tried again: the number of attempts, or all of it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "RetryForms")]
struct RetryKey(Retry);

/// The forms in which it is written how a task is tried again.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum RetryForms {
    /// How many attempts there may be in all.
    Attempts(#[schemars(range(min = 1, max = 1000))] u32),
    /// The same with the ends that are tried again, and the pauses.
    Long(Retry),
}

impl<'de> Deserialize<'de> for RetryKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let short = |attempts: u64| {
            let attempts = u32::try_from(attempts).map_err(|_| format!("{attempts} are too many attempts"))?;
            Ok(Retry { attempts, ..Retry::default() })
        };
        number_or_map(deserializer, "a number of attempts, or a map such as {attempts: 3, backoff: 10s}", short)
            .map(Self)
    }
}

impl TryFrom<TaskKeys> for TaskEntry {
    type Error = String;

    fn try_from(keys: TaskKeys) -> Result<Self, String> {
        let kind = keys.kind;
        let given = serde_json::to_value(&keys).unwrap_or_default();
        let foreign = given.as_object().into_iter().flat_map(|map| map.keys()).find(|key| !kind.has(key));
        if let Some(key) = foreign {
            return Err(does_not_belong(key, kind));
        }
        let terms = Terms {
            timeout: keys.timeout.unwrap_or(TIMEOUT),
            deadline: None,
            idempotent: keys.idempotent,
            retry: keys.retry.clone().map(|RetryKey(retry)| retry),
            key: keys.key.clone(),
        };
        let when = keys.when.clone();
        Ok(Self(TaskSpec { job: keys.job()?, terms, when }))
    }
}

impl TaskKeys {
    fn job(self) -> Result<Job, String> {
        let work = match self.kind {
            WorkType::Exec => Work::Exec { argv: needed(self.exec, "exec")?.argv() },
            WorkType::Script => Work::Script {
                interpreter: self.interpreter.map_or_else(|| vec!["/bin/sh".to_owned()], Interpreter::argv),
                script: needed(self.script, "script")?,
                args: self.args,
            },
            WorkType::FileRead => Work::FileRead { path: needed(self.path, "path")? },
            WorkType::FileWrite => Work::FileWrite {
                path: needed(self.path, "path")?,
                content: match needed(self.content, "content")? {
                    ContentKey::Text(text) => Content::Text(text),
                    ContentKey::Bytes(Bytes { base64 }) => Content::Base64(base64),
                },
                mode: self.mode.unwrap_or_default(),
            },
            WorkType::GitClone => Work::GitClone {
                url: needed(self.url, "url")?,
                path: self.path,
                reference: self.reference,
                depth: self.depth.map(NonZeroU32::get),
            },
            WorkType::GitPull => Work::GitPull { path: self.path, remote: self.remote, reference: self.reference },
            WorkType::GitPush => Work::GitPush { path: self.path, remote: self.remote, reference: self.reference },
            WorkType::Build => Work::Build { argv: argv(self.exec) },
            WorkType::Test => Work::Test { argv: argv(self.exec) },
            WorkType::Deploy => Work::Deploy { argv: argv(self.exec) },
        };
        Ok(Job {
            work,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            secrets: self.secrets,
            stdin: self.stdin,
            output: self.output.unwrap_or(OUTPUT),
            artifacts: self.artifacts,
        })
    }
}

/// No command is what the project's files say; one of no words is a mistake, and stays one.
fn argv(command: Option<CommandLine>) -> Vec<String> {
    match command.map(|command| command.argv()) {
        None => Vec::new(),
        Some(argv) if argv.is_empty() => vec![String::new()],
        Some(argv) => argv,
    }
}

/// In serde's words, as a key that is missing in any other map.
fn needed<T>(value: Option<T>, key: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("missing field `{key}`"))
}

impl From<TaskEntry> for TaskKeys {
    fn from(TaskEntry(TaskSpec { job, terms, when }): TaskEntry) -> Self {
        let command = |argv: Vec<String>| (!argv.is_empty()).then_some(CommandLine::Argv(argv));
        let of = |kind: WorkType| Self { kind, ..Self::default() };
        let keys = match job.work {
            Work::Exec { argv } => Self { exec: Some(CommandLine::Argv(argv)), ..of(WorkType::Exec) },
            Work::Script { interpreter, script, args } => Self {
                script: Some(script),
                interpreter: Some(Interpreter::Argv(interpreter)),
                args,
                ..of(WorkType::Script)
            },
            Work::FileRead { path } => Self { path: Some(path), ..of(WorkType::FileRead) },
            Work::FileWrite { path, content, mode } => {
                let content = match content {
                    Content::Text(text) => ContentKey::Text(text),
                    Content::Base64(base64) => ContentKey::Bytes(Bytes { base64 }),
                };
                Self { path: Some(path), content: Some(content), mode: Some(mode), ..of(WorkType::FileWrite) }
            }
            Work::GitClone { url, path, reference, depth } => {
                let depth = depth.and_then(NonZeroU32::new);
                Self { url: Some(url), path, reference, depth, ..of(WorkType::GitClone) }
            }
            Work::GitPull { path, remote, reference } => Self { path, remote, reference, ..of(WorkType::GitPull) },
            Work::GitPush { path, remote, reference } => Self { path, remote, reference, ..of(WorkType::GitPush) },
            Work::Build { argv } => Self { exec: command(argv), ..of(WorkType::Build) },
            Work::Test { argv } => Self { exec: command(argv), ..of(WorkType::Test) },
            Work::Deploy { argv } => Self { exec: command(argv), ..of(WorkType::Deploy) },
        };
        Self {
            when,
            env: job.env,
            cwd: job.cwd,
            user: job.user,
            secrets: job.secrets,
            stdin: job.stdin,
            output: (job.output != OUTPUT).then_some(job.output),
            artifacts: job.artifacts,
            timeout: Some(terms.timeout),
            idempotent: terms.idempotent,
            retry: terms.retry.map(RetryKey),
            key: terms.key,
            ..keys
        }
    }
}

const NO_BELONGING: &str = "` does not belong to a task of type ";
const KEYS_ARE: &str = ", whose keys are ";

fn does_not_belong(key: &str, kind: WorkType) -> String {
    let keys: Vec<String> = kind.keys().map(|key| format!("`{key}`")).collect();
    format!("`{key}{NO_BELONGING}{}{KEYS_ARE}{}", kind.as_str(), keys.join(", "))
}

/// The keys that belong to a task, where the sentence is one of [`does_not_belong`].
pub(super) fn belonging(sentence: &str) -> Option<Vec<String>> {
    let (said, keys) = sentence.split_once(KEYS_ARE)?;
    said.contains(NO_BELONGING).then(|| keys.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Of the keys that a map could have those that belong to it: fewer than all where it is a task.
pub(super) fn narrowed(map: &serde_yaml::Mapping, known: &[String]) -> Vec<String> {
    let kind = match map.get("type") {
        Some(kind) => kind.as_str().and_then(WorkType::named),
        None => Some(WorkType::default()),
    };
    match kind.filter(|_| is_task(known)) {
        Some(kind) => kind.keys().map(str::to_owned).collect(),
        None => known.to_vec(),
    }
}

/// Whether these are the keys of a task.
pub(super) fn is_task(known: &[String]) -> bool {
    COMMON.iter().all(|key| known.iter().any(|known| known == key))
}

/// The types of tasks that a key belongs to.
pub(super) fn types_with(key: &str) -> Vec<&'static str> {
    WorkType::ALL.into_iter().filter(|kind| kind.has(key)).map(WorkType::as_str).collect()
}

/// What is taken out with an element: without its type nothing can be said of a task's other keys.
pub(super) fn taken_with(path: &[String]) -> &[String] {
    match path {
        [task @ .., key] if key == "type" && task.len() > 1 && task[task.len() - 2] == "tasks" => task,
        _ => path,
    }
}

#[cfg(test)]
mod tests;

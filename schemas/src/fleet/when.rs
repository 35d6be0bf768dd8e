//! When a task of the file runs.

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::short::text_or_map;
use crate::names::TaskName;
use crate::schedule::Cron;

/// When a task of the file runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(with = "WhenForms")]
pub enum TaskWhen {
    /// Once for each machine and each wording of the task.
    #[default]
    Once,
    /// Once for each session of the runtime.
    Connect,
    /// Once for each success of another task of the agent.
    #[serde(untagged)]
    After(AfterWhen),
    /// At moments in a calendar.
    #[serde(untagged)]
    Cron(CronWhen),
}

impl TaskWhen {
    /// The task that comes before, where one does.
    #[must_use]
    pub const fn after(&self) -> Option<&TaskName> {
        match self {
            Self::After(when) => Some(&when.after),
            Self::Once | Self::Connect | Self::Cron(_) => None,
        }
    }
}

/// After another task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AfterWhen {
    /// The other task, of the same agent.
    pub after: TaskName,
}

/// Moments in a calendar, what becomes of those that were missed, and of those that come while the task
/// runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CronWhen {
    /// The moments.
    pub cron: Cron,
    /// What becomes of moments that passed while the agent could not run.
    #[serde(default)]
    pub missed: Missed,
    /// What becomes of moments that come while the task runs.
    #[serde(default)]
    pub overlap: Overlap,
}

/// What becomes of moments that were missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// They pass.
    #[default]
    Skip,
    /// The task runs once for all of them.
    Once,
}

/// What becomes of moments that come while the task runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// They pass.
    #[default]
    Skip,
    /// The task runs once more for all of them, as soon as it has ended.
    Queue,
}

/// The forms in which the time of a task is written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum WhenForms {
    /// `once` or `connect`.
    Word(WhenWord),
    /// After another task, or at moments in a calendar.
    Map(WhenMap),
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum WhenWord {
    /// Once for each machine and each wording of the task.
    Once,
    /// Once for each session of the runtime.
    Connect,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "minProperties" = 1,
    "not" = {"required": ["after", "cron"]},
    "dependentRequired" = {"missed": ["cron"], "overlap": ["cron"]}
))]
struct WhenMap {
    /// Once for each success of this task, which is another of the same agent.
    after: Option<TaskName>,
    /// At these moments.
    cron: Option<Cron>,
    /// What becomes of moments that passed while the agent could not run: `skip` (the default) lets them
    /// pass, `once` runs the task once for all of them.
    missed: Option<Missed>,
    /// What becomes of moments that come while the task runs: `skip` (the default) lets them pass, `queue`
    /// runs the task once more for all of them, as soon as it has ended.
    overlap: Option<Overlap>,
}

const FORMS: &str = "`once`, `connect`, {after: NAME}, or {cron: \"0 3 * * *\"}";

impl TryFrom<WhenMap> for TaskWhen {
    type Error = String;

    fn try_from(map: WhenMap) -> Result<Self, String> {
        match map {
            WhenMap { after: Some(after), cron: None, missed: None, overlap: None } => {
                Ok(Self::After(AfterWhen { after }))
            }
            WhenMap { after: None, cron: Some(cron), missed, overlap } => {
                let (missed, overlap) = (missed.unwrap_or_default(), overlap.unwrap_or_default());
                Ok(Self::Cron(CronWhen { cron, missed, overlap }))
            }
            WhenMap { after: Some(_), cron: Some(_), .. } => {
                Err("`after` and `cron` exclude each other: write one of them".to_owned())
            }
            WhenMap { after: Some(_), .. } => {
                Err("only a task with `cron` has moments to miss, or that come while it runs".to_owned())
            }
            WhenMap { .. } => Err(format!("this is no time for a task: write {FORMS}")),
        }
    }
}

impl<'de> Deserialize<'de> for TaskWhen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form(TaskWhen);
        impl<'de> Deserialize<'de> for Form {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                WhenMap::deserialize(deserializer)?.try_into().map(Self).map_err(D::Error::custom)
            }
        }
        let short = |text: &str| match text {
            "once" => Ok(Form(TaskWhen::Once)),
            "connect" => Ok(Form(TaskWhen::Connect)),
            other => Err(format!("`{other}` is no time for a task: write {FORMS}")),
        };
        let expecting = "`once`, `connect`, {after: NAME}, or {cron: \"0 3 * * *\"}";
        text_or_map(deserializer, expecting, short).map(|Form(when)| when)
    }
}

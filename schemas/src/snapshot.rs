//! Snapshots: what is kept of a machine's past, what is to be done about it, and what of it may go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Zoned};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{ClaimId, ErrandId};
use crate::names::{AgentName, ScheduleName, SnapshotName};
use crate::schedule::Cron;

/// A snapshot of an agent's machine, as it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its name.
    pub name: SnapshotName,
    /// The agent.
    pub agent: AgentName,
    /// The claim on the instance that it is of, and goes with.
    pub claim: ClaimId,
    /// Why it was taken.
    pub cause: Cause,
    /// What a person said about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Refuses to be deleted.
    pub protect: bool,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Whether the machine ran.
    pub running: bool,
    /// Whether the machine was suspended, and what it would have gone on from is in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
}

impl Snapshot {
    /// Whether the machine's memory is in it.
    #[must_use]
    pub const fn has_memory(&self) -> bool {
        self.running || self.suspended
    }
}

/// What keeps a snapshot. One that nothing keeps goes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keeper {
    /// A person protects it.
    Protected,
    /// A person took it.
    Manual,
    /// It was taken at a point of the machine's life.
    Point,
    /// Its schedule keeps all of its snapshots, or is no longer in the file.
    NoLimit,
    /// It is among the latest ones of its schedule.
    Last,
    /// It is the latest of one of the hours that its schedule keeps.
    Hourly,
    /// It is the latest of one of the days that its schedule keeps.
    Daily,
    /// It is the latest of one of the weeks that its schedule keeps.
    Weekly,
    /// It is among the latest that were taken before the machine went back to another.
    BeforeRestore,
    /// It is the one that the machine went back to last.
    Restored,
    /// A machine is about to be made from it, or to go back to it.
    InUse,
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Protected => "protected",
            Self::Manual => "manual",
            Self::Point => "point",
            Self::NoLimit => "no limit",
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::BeforeRestore => "before restore",
            Self::Restored => "restored",
            Self::InUse => "in use",
        })
    }
}

/// Why a snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum Cause {
    /// Somebody asked for it.
    Person {
        /// Who.
        by: String,
    },
    /// The file says so, for a moment.
    Schedule {
        /// The schedule.
        schedule: ScheduleName,
        /// The moment.
        due: Timestamp,
    },
    /// The file says so, at a point of the machine's life.
    Point {
        /// The point.
        point: Point,
    },
    /// The machine is about to go back to another one.
    Restore {
        /// That one.
        to: SnapshotName,
    },
    /// Another agent is to be made from it.
    Clone {
        /// That agent.
        to: AgentName,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person { by } => write!(f, "{by} asked for it"),
            Self::Schedule { schedule, due } => write!(f, "schedule {schedule}, for {due:.0}"),
            Self::Point { point } => write!(f, "the machine is {point}"),
            Self::Restore { to } => write!(f, "the machine was about to go back to `{to}`"),
            Self::Clone { to } => write!(f, "agent `{to}` was to be made from it"),
        }
    }
}

/// A point of a machine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Point {
    /// It is Healthy for the first time, and those of its tasks have succeeded that run once.
    Provisioned,
}

impl Point {
    /// The point as the fleet file writes it, and the name of the snapshot that is taken at it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioned => "provisioned",
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which snapshots are taken by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotPlan {
    /// Points of the machine's life at which one is taken: `provisioned`, when it is Healthy for the first
    /// time and its tasks have succeeded that run once. Merged with those of the layers below.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(extend("default" = [], "examples" = [["provisioned"]]))]
    pub points: BTreeSet<Point>,

    /// Schedules, by name. Merged with those of the layers below, name by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "examples" = [{"nightly": {"cron": "0 3 * * *", "keep": {"daily": 7}}}]))]
    pub schedules: BTreeMap<ScheduleName, SnapshotSchedule>,
}

impl SnapshotPlan {
    /// Lays another over this one; says whether that says anything.
    pub(crate) fn lay(&mut self, over: &Self) -> bool {
        self.points.extend(&over.points);
        self.schedules.extend(over.schedules.iter().map(|(name, schedule)| (name.clone(), schedule.clone())));
        !over.is_empty()
    }

    /// Whether none is taken by itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty() && self.schedules.is_empty()
    }
}

/// When snapshots are taken, and how many of them are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotSchedule {
    /// The moments. One for which nobody was there is made up for once, by a single snapshot.
    #[schemars(example = &"0 3 * * * Europe/Berlin")]
    pub cron: Cron,

    /// Which of them are kept. Without this key all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// How many snapshots of a schedule are kept. A snapshot that any of these keeps stays, and so does the
/// latest. What a person took or protects is not counted, and stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Keep {
    /// The latest ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), example = 3)]
    pub last: Option<NonZeroU32>,

    /// The latest of each of so many hours that have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), example = 24)]
    pub hourly: Option<NonZeroU32>,

    /// The latest of each of so many days that have any, in the schedule's time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), example = 7)]
    pub daily: Option<NonZeroU32>,

    /// The latest of each of so many weeks that have any; a week begins on Monday.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), example = 4)]
    pub weekly: Option<NonZeroU32>,
}

impl Keep {
    /// What keeps each of one schedule's snapshots, each with the moment that it was taken for. Those that nothing
    /// keeps may go.
    #[must_use]
    pub fn keepers<'a>(
        &self,
        zone: &TimeZone,
        taken: impl IntoIterator<Item = (&'a SnapshotName, Timestamp)>,
    ) -> BTreeMap<&'a SnapshotName, BTreeSet<Keeper>> {
        let mut latest_first: Vec<_> = taken.into_iter().collect();
        latest_first.sort_by(|a, b| (b.1, b.0).cmp(&(a.1, a.0)));
        let at = |moment: Timestamp| moment.to_zoned(zone.clone());
        let latest = latest_first.iter().take(1).map(|(name, _)| *name).collect();
        let by_rule = [
            (Keeper::Last, latest),
            (Keeper::Last, kept_of_each(&latest_first, self.last, |(name, moment)| (*moment, (*name).clone()))),
            // The hour with its offset: that of a clock set back happens twice.
            (
                Keeper::Hourly,
                kept_of_each(&latest_first, self.hourly, |(_, moment)| {
                    let zoned = at(*moment);
                    (zoned.date(), zoned.hour(), zoned.offset())
                }),
            ),
            (Keeper::Daily, kept_of_each(&latest_first, self.daily, |(_, moment)| at(*moment).date())),
            (Keeper::Weekly, kept_of_each(&latest_first, self.weekly, |(_, moment)| monday(&at(*moment)))),
        ];
        let mut keepers: BTreeMap<_, _> = latest_first.iter().map(|(name, _)| (*name, BTreeSet::new())).collect();
        for (keeper, kept) in by_rule {
            kept.into_iter().for_each(|name| keepers.entry(name).or_default().extend([keeper]));
        }
        keepers
    }
}

/// The first of each of so many buckets, in the order in which they come.
fn kept_of_each<'a, K: PartialEq>(
    latest_first: &[(&'a SnapshotName, Timestamp)],
    count: Option<NonZeroU32>,
    bucket: impl Fn(&(&'a SnapshotName, Timestamp)) -> K,
) -> Vec<&'a SnapshotName> {
    let most = count.map_or(0, |count| usize::try_from(count.get()).unwrap_or(usize::MAX));
    let mut kept = Vec::new();
    let mut present = None;
    for entry in latest_first {
        let key = bucket(entry);
        if present.as_ref() == Some(&key) {
            continue;
        }
        if kept.len() >= most {
            break;
        }
        kept.push(entry.0);
        present = Some(key);
    }
    kept
}

fn monday(at: &Zoned) -> Date {
    let since = at.weekday().to_monday_zero_offset();
    at.date().saturating_sub(since.days())
}

/// Something that is to be done with an agent's snapshots. It is stored when it is asked for, and again when
/// it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Errand {
    /// Its own id. Those of one agent are done in the order of their ids.
    pub id: ErrandId,
    /// The agent.
    pub agent: AgentName,
    /// The claim on the machine that it is about.
    pub claim: ClaimId,
    /// What is to be done.
    pub ask: Ask,
    /// Who asked, or that the file did.
    pub by: String,
    /// When.
    pub asked_at: Timestamp,
    /// When it is given up.
    pub until: Timestamp,
    /// The attempts that failed; nothing while none has. What a person asked for has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<Tried>,
    /// How it ended; nothing while it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ErrandEnd>,
}

/// What is to be done with an agent's snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum Ask {
    /// Take one.
    Take {
        /// Its name.
        name: SnapshotName,
        /// Why.
        cause: Cause,
        /// What a person says about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        comment: Option<String>,
    },
    /// Delete one.
    Delete {
        /// Its name.
        name: SnapshotName,
        /// Whether nobody asks for that, but nothing keeps it any more.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unkept: bool,
    },
    /// Bring the machine back to one.
    Restore {
        /// Its name.
        to: SnapshotName,
        /// The snapshot that is taken before; nothing when that is not wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        safety: Option<SnapshotName>,
    },
}

impl Ask {
    /// Whether nobody asks: it follows from the file, or from what is there.
    #[must_use]
    pub const fn asks_itself(&self) -> bool {
        matches!(
            self,
            Self::Take { cause: Cause::Schedule { .. } | Cause::Point { .. }, .. } | Self::Delete { unkept: true, .. }
        )
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Take { name, .. } => write!(f, "take snapshot `{name}`"),
            Self::Delete { name, .. } => write!(f, "delete snapshot `{name}`"),
            Self::Restore { to, .. } => write!(f, "go back to snapshot `{to}`"),
        }
    }
}

/// The attempts of an errand that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tried {
    /// How many.
    pub failures: u32,
    /// No other before this.
    pub not_before: Timestamp,
    /// Why the last one failed, in a sentence.
    pub last: String,
}

/// How an errand ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrandEnd {
    /// When.
    pub at: Timestamp,
    /// Why it was not done, in a sentence; nothing when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests;

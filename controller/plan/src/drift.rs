//! The differences between what is wanted of an agent and what is seen.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vm_agent_schemas::fleet::{DeclaredAgent, DriftPolicy};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::observe::Sizes;
use vm_agent_schemas::plan::{Cost, Drift, DriftClass};
use vm_agent_schemas::wire::Configuration;

use crate::inputs::FileTask;
use crate::situation::Situation;
use crate::table::{Link, Seen, Want};

/// Each difference, in the order in which people read fields.
pub(crate) fn drift_of(situation: &Situation<'_>) -> Vec<Drift> {
    let mut drift = Vec::new();
    drift.extend(existence(situation));
    drift.extend(power(situation));
    if matches!(situation.want, Want::Running | Want::Stopped) && is_ours(situation.seen) {
        birth(situation, &mut drift);
        sizes(situation, &mut drift);
    }
    drift.extend(runtime(situation));
    if situation.want == Want::Running {
        drift.extend(configuration(situation));
        tasks(situation, &mut drift);
    }
    drift
}

const fn is_ours(seen: Seen) -> bool {
    !matches!(seen, Seen::Absent | Seen::Foreign | Seen::Deleted | Seen::Unknown)
}

fn entry(class: DriftClass, path: &str, wanted: impl Into<Value>, observed: impl Into<Value>, cost: Cost) -> Drift {
    Drift { class, path: path.to_owned(), wanted: wanted.into(), observed: observed.into(), cost, policy: DriftPolicy::Correct }
}

fn existence(situation: &Situation<'_>) -> Option<Drift> {
    let drift = |class, wanted: &str, observed: &str, cost| Some(entry(class, "agent", wanted, observed, cost));
    match (situation.want, situation.seen) {
        _ if situation.is_settled() => None,
        (_, Seen::Unknown) => drift(DriftClass::Unknown, "known", "unknown", Cost::Wait),
        (Want::Absent, Seen::Absent | Seen::Foreign) => {
            drift(DriftClass::Unexpected, "absent", "claimed, and gone", Cost::Live)
        }
        (Want::Absent, _) => drift(DriftClass::Unexpected, "absent", "present", Cost::Destroy),
        (_, Seen::Absent) => drift(DriftClass::Missing, "present", "absent", Cost::Create),
        (_, Seen::Foreign) => drift(DriftClass::Missing, "present", "a foreign instance", Cost::Wait),
        (_, Seen::Deleted) => drift(DriftClass::Missing, "present", "deleted, not purged", Cost::Wait),
        _ => None,
    }
}

fn power(situation: &Situation<'_>) -> Option<Drift> {
    let observed = match situation.seen {
        Seen::Starting => "starting",
        Seen::Running => "running",
        Seen::Stopping => "stopping",
        Seen::Stopped | Seen::ShutDown => "stopped",
        Seen::Failed => "failed",
        Seen::Suspended => "suspended",
        Seen::Absent | Seen::Foreign | Seen::Deleted | Seen::Unknown => return None,
    };
    let (wanted, cost) = match (situation.want, situation.seen) {
        (Want::Running, Seen::Running) => return None,
        (Want::Running, _) => ("running", Cost::Start),
        (Want::Stopped | Want::Idle, Seen::Running | Seen::Starting | Seen::Stopping) => ("stopped", Cost::Stop),
        (Want::Stopped | Want::Idle | Want::Absent, _) => return None,
    };
    Some(entry(DriftClass::Power, "power", wanted, observed, cost))
}

/// What only a new machine can have.
fn birth(situation: &Situation<'_>, drift: &mut Vec<Drift>) {
    let (Some(agent), Some(claim), Some(view)) = (situation.wanted, situation.claim, situation.view) else { return };
    let spec = &agent.spec;
    if let Some(driver) = spec.driver.filter(|driver| *driver != claim.driver) {
        let (wanted, observed) = (driver.as_str(), claim.driver.as_str());
        drift.push(entry(DriftClass::Driver, "driver", wanted, observed, Cost::Replace));
    }
    if view.capabilities.images && spec.image != claim.birth.image {
        let (wanted, observed) = (spec.image.as_str(), claim.birth.image.as_str());
        drift.push(entry(DriftClass::Image, "image", wanted, observed, Cost::Replace));
    }
}

fn sizes(situation: &Situation<'_>, drift: &mut Vec<Drift>) {
    let (Some(agent), Some(view), Some(have)) = (situation.wanted, situation.view, situation.sizes()) else { return };
    if !view.capabilities.sizes {
        return;
    }
    let want = Sizes::of(&agent.spec);
    let down = !matches!(situation.seen, Seen::Running | Seen::Starting | Seen::Stopping);
    let cost = if view.capabilities.resize_running || down { Cost::Live } else { Cost::Restart };
    if want.cpus != have.cpus {
        drift.push(entry(DriftClass::Cpus, "cpus", want.cpus, have.cpus, cost));
    }
    if want.memory != have.memory {
        drift.push(entry(DriftClass::Memory, "memory", want.memory.bytes(), have.memory.bytes(), cost));
    }
    if want.disk != have.disk {
        let cost = if want.disk < have.disk { Cost::Replace } else { cost };
        drift.push(entry(DriftClass::Disk, "disk", want.disk.bytes(), have.disk.bytes(), cost));
    }
}

fn runtime(situation: &Situation<'_>) -> Option<Drift> {
    let observed = match (situation.want, situation.seen, situation.link) {
        (Want::Running, Seen::Running, Link::Awaited) => "connecting",
        (Want::Running, Seen::Running, Link::Lost) => "offline",
        (Want::Running, Seen::Running, Link::Unjoined) => {
            return Some(entry(DriftClass::RuntimeOffline, "runtime", "connected", "never joined", Cost::Restart));
        }
        _ => return None,
    };
    Some(entry(DriftClass::RuntimeOffline, "runtime", "connected", observed, Cost::Wait))
}

fn configuration(situation: &Situation<'_>) -> Option<Drift> {
    let (agent, session) = (situation.wanted?, situation.session?);
    if !situation.is_reachable() {
        return None;
    }
    let wanted = configuration_digest(agent);
    let known = session.configured.as_ref();
    (known != Some(&wanted)).then(|| {
        let observed = known.map_or(Value::Null, |digest| json!(digest.short()));
        entry(DriftClass::Provisioning, "env", wanted.short(), observed, Cost::Live)
    })
}

/// What the runtime of an agent should work with, but for the values of its secrets: a plan knows only
/// where they come from.
#[must_use]
pub fn configuration_for(agent: &DeclaredAgent) -> Configuration {
    let spec = &agent.spec;
    Configuration {
        digest: configuration_digest(agent),
        env: spec.env.clone(),
        labels: spec.labels.clone(),
        secrets: BTreeMap::new(),
        files: spec.files.clone(),
        services: spec.services.clone(),
    }
}

/// The mark by which controller and runtime tell whether they mean the same configuration.
fn configuration_digest(agent: &DeclaredAgent) -> Digest {
    let spec = &agent.spec;
    Digest::of_json(&(&spec.env, &spec.labels, &spec.secrets, &spec.files, &spec.services))
}

/// Where a task of the file stands on the present machine.
pub(crate) enum Standing<'a> {
    /// It was never accepted.
    Due,
    /// It is accepted, and not over.
    UnderWay,
    /// It succeeded.
    Done,
    /// It ended otherwise.
    Failed(&'a FileTask),
}

/// The tasks of the file, each with where it stands.
pub(crate) fn standings<'a>(
    situation: &Situation<'a>,
) -> impl Iterator<Item = (&'a vm_agent_schemas::names::TaskName, Standing<'a>)> {
    let (claim, accepted) = (situation.claim, situation.tasks);
    situation.wanted.into_iter().flat_map(|agent| &agent.spec.tasks).map(move |(name, spec)| {
        let digest = spec.digest();
        let same = |task: &&FileTask| {
            task.name == *name && task.digest == digest && claim.is_some_and(|claim| claim.id == task.claim)
        };
        let standing = match accepted.iter().find(same) {
            None => Standing::Due,
            Some(FileTask { outcome: None, .. }) => Standing::UnderWay,
            Some(FileTask { outcome: Some(outcome), .. }) if outcome.is_success() => Standing::Done,
            Some(failed) => Standing::Failed(failed),
        };
        (name, standing)
    })
}

fn tasks(situation: &Situation<'_>, drift: &mut Vec<Drift>) {
    for (name, standing) in standings(situation) {
        let (observed, cost) = match standing {
            Standing::Done => continue,
            Standing::Due => ("not run".to_owned(), Cost::Live),
            Standing::UnderWay => ("under way".to_owned(), Cost::Wait),
            Standing::Failed(task) => (task.outcome.as_ref().map_or_else(String::new, ToString::to_string), Cost::Wait),
        };
        drift.push(entry(DriftClass::Task, &format!("tasks.{name}"), "succeeded", observed, cost));
    }
}

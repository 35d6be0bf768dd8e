//! The differences between what is wanted of an agent and what is seen.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vm_agent_schemas::fleet::{DeclaredAgent, DriftField, DriftPolicy, Provision};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::observe::{MountSupport, Sizes};
use vm_agent_schemas::plan::{Cost, Drift, DriftClass};
use vm_agent_schemas::wire::{Configuration, ServiceReport, ServiceState};

use crate::inputs::Mode;
use crate::situation::Situation;
use crate::standing::{Standing, outages, standings};
use crate::table::{Link, Seen, Want};

/// Each difference, in the order in which people read fields, and what is to be done about it. What is
/// to be ignored is not there.
pub(crate) fn drift_of(situation: &Situation<'_>) -> Vec<Drift> {
    let mut drift = Vec::new();
    drift.extend(existence(situation));
    drift.extend(power(situation));
    if matches!(situation.want, Want::Running | Want::Stopped) && is_ours(situation.seen) {
        birth(situation, &mut drift);
        sizes(situation, &mut drift);
        drift.extend(mounts(situation));
    }
    drift.extend(runtime(situation));
    if situation.want == Want::Running {
        drift.extend(configuration(situation));
        drift.extend(version(situation));
        services(situation, &mut drift);
        tasks(situation, &mut drift);
    }
    drift.retain_mut(|difference| {
        difference.policy = policy(situation, difference.class);
        difference.policy != DriftPolicy::Ignore
    });
    drift
}

/// Whether there is drift of that class that is to be removed.
pub(crate) fn corrects(drift: &[Drift], class: DriftClass) -> bool {
    drift.iter().any(|difference| difference.class == class && difference.policy == DriftPolicy::Correct)
}

fn policy(situation: &Situation<'_>, class: DriftClass) -> DriftPolicy {
    match class {
        DriftClass::Power => power_policy(situation),
        DriftClass::Cpus => situation.policy(DriftField::Cpus),
        DriftClass::Memory => situation.policy(DriftField::Memory),
        DriftClass::Disk => situation.policy(DriftField::Disk),
        DriftClass::Image => situation.policy(DriftField::Image),
        DriftClass::Driver => situation.policy(DriftField::Driver),
        DriftClass::Mounts => situation.policy(DriftField::Mounts),
        DriftClass::Provisioning | DriftClass::Service => situation.policy(DriftField::Provisioning),
        DriftClass::Task => situation.policy(DriftField::Tasks),
        DriftClass::Missing
        | DriftClass::Unexpected
        | DriftClass::RuntimeOffline
        | DriftClass::RuntimeVersion
        | DriftClass::Unknown => DriftPolicy::Correct,
    }
}

/// The policy of power is about what others did to the machine. What a person says, a machine that comes
/// to rest, and one that we ourselves took down, to start it again, are no such thing.
pub(crate) fn power_policy(situation: &Situation<'_>) -> DriftPolicy {
    let by_us = situation.want == Want::Running && situation.seen == Seen::Stopped;
    if situation.told.is_some() || situation.rests.is_some() || situation.inputs.mode != Mode::Up || by_us {
        DriftPolicy::Correct
    } else {
        situation.policy(DriftField::Power)
    }
}

const fn is_ours(seen: Seen) -> bool {
    !matches!(seen, Seen::Absent | Seen::Foreign | Seen::Deleted | Seen::Unknown)
}

fn entry(class: DriftClass, path: &str, wanted: impl Into<Value>, observed: impl Into<Value>, cost: Cost) -> Drift {
    Drift {
        class,
        path: path.to_owned(),
        wanted: wanted.into(),
        observed: observed.into(),
        cost,
        policy: DriftPolicy::Correct,
    }
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
    if !view.capabilities.images {
        return;
    }
    if spec.image != claim.birth.image {
        let (wanted, observed) = (spec.image.as_str(), claim.birth.image.as_str());
        drift.push(entry(DriftClass::Image, "image", wanted, observed, Cost::Replace));
    }
    let (wanted, observed) = (json!(Provision::of(spec)), json!(claim.birth.provision));
    for key in Provision::KEYS {
        let (wanted, observed) = (&wanted[key], &observed[key]);
        if wanted != observed {
            drift.push(entry(DriftClass::Provisioning, key, wanted.clone(), observed.clone(), Cost::Replace));
        }
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

/// Folders of the host, which a machine gets at its start. One that stays down has none.
fn mounts(situation: &Situation<'_>) -> Option<Drift> {
    let (agent, claim) = (situation.wanted?, situation.claim?);
    let starts = || situation.want == Want::Running && power_policy(situation) == DriftPolicy::Correct;
    let cost = match situation.seen {
        _ if situation.unsupported().is_some() => Cost::Wait,
        _ if situation.view?.capabilities.mounts == MountSupport::None || agent.spec.mounts == claim.birth.mounts => {
            return None;
        }
        Seen::Starting | Seen::Running if situation.want == Want::Running => Cost::Restart,
        Seen::Stopped | Seen::ShutDown | Seen::Failed | Seen::Suspended if starts() => Cost::Start,
        _ => return None,
    };
    let (wanted, observed) = (json!(agent.spec.mounts), json!(claim.birth.mounts));
    Some(entry(DriftClass::Mounts, "mounts", wanted, observed, cost))
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

/// What the runtime has not been told yet, and else what of it the runtime could not bring about.
fn configuration(situation: &Situation<'_>) -> Option<Drift> {
    let (agent, session) = (situation.wanted?, situation.session?);
    if !situation.is_reachable() {
        return None;
    }
    let wanted = configuration_digest(agent);
    let known = session.configured.as_ref();
    if known != Some(&wanted) {
        let observed = known.map_or(Value::Null, |digest| json!(digest.short()));
        return Some(entry(DriftClass::Provisioning, "env", wanted.short(), observed, Cost::Live));
    }
    let problems = &session.problems;
    (!problems.is_empty())
        .then(|| entry(DriftClass::Provisioning, "provisioning", "without problems", json!(problems), Cost::Wait))
}

/// A runtime of another version than the one that it may be offered.
fn version(situation: &Situation<'_>) -> Option<Drift> {
    let session = situation.session.filter(|_| situation.is_reachable())?;
    let wanted = situation.inputs.runtimes.get(&situation.claim?.driver)?;
    if session.version == *wanted {
        return None;
    }
    let (observed, cost) = match &session.stays {
        None => (session.version.clone(), Cost::Live),
        Some(reason) => (format!("{}: {reason}", session.version), Cost::Wait),
    };
    Some(entry(DriftClass::RuntimeVersion, "runtime", wanted.as_str(), observed, cost))
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
pub(crate) fn configuration_digest(agent: &DeclaredAgent) -> Digest {
    let spec = &agent.spec;
    Digest::of_json(&(&spec.env, &spec.labels, &spec.secrets, &spec.files, &spec.services))
}

fn tasks(situation: &Situation<'_>, drift: &mut Vec<Drift>) {
    for (name, standing) in standings(situation) {
        let (observed, cost) = match standing {
            Standing::Done => continue,
            Standing::Due(..) => ("not run".to_owned(), Cost::Live),
            Standing::UnderWay => ("under way".to_owned(), Cost::Wait),
            Standing::Failed(task, _) => {
                (task.outcome.as_ref().map_or_else(String::new, ToString::to_string), Cost::Wait)
            }
        };
        drift.push(entry(DriftClass::Task, &format!("tasks.{name}"), "succeeded", observed, cost));
    }
}

fn services(situation: &Situation<'_>, drift: &mut Vec<Drift>) {
    for (name, _, report) in outages(situation) {
        let path = format!("services.{name}");
        drift.push(entry(DriftClass::Service, &path, ServiceState::Running.to_string(), told(report), Cost::Wait));
    }
}

/// How a service is, in words.
pub(crate) fn told(report: Option<&ServiceReport>) -> String {
    match report {
        None => "not heard of yet".to_owned(),
        Some(ServiceReport { state, problem: None, .. }) => state.to_string(),
        Some(ServiceReport { state, problem: Some(problem), .. }) => format!("{state}: {problem}"),
    }
}

//! Errands: what is to be done with snapshots. How one begins, goes on and ends, as changes of the records.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use vm_agent_plan::{FileTask, Wish, effective};
use vm_agent_schemas::api::{CloneRequest, Problem, ProblemCode, RestoreRequest, SnapshotChange, SnapshotRequest};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{CloneOf, PowerState, TaskSpec, TaskWhen};
use vm_agent_schemas::ids::{ClaimId, ErrandId};
use vm_agent_schemas::names::{AgentName, SnapshotName, TaskName};
use vm_agent_schemas::observe::{Capabilities, Claim, CloneSupport, SnapshotSupport};
use vm_agent_schemas::plan::StepAction;
use vm_agent_schemas::snapshot::{Ask, Cause, Errand, ErrandEnd, Snapshot, Tried};
use vm_agent_schemas::wire::TaskOutcome;

use super::intent::{self, Intent, Voice};
use super::job::Job;
use super::records::{Change, Records};

/// The pause after a first failure; it doubles with each.
const PAUSE: Duration = Duration::from_secs(30);
/// The longest pause: some minutes late is not too late for a snapshot.
const PAUSE_MAX: Duration = Duration::from_secs(30 * 60);

/// How long a person's errand may wait for its turn.
const WAITS_FOR: Duration = Duration::from_secs(3600);

/// Most of a snapshot's name that goes into the name of the one that is taken before a restore.
const NAME_PART: usize = 30;

/// Who asks something of an agent's snapshots, and when.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The agent.
    pub agent: &'a AgentName,
    /// What the driver of its machine can do; nothing where it has no machine, or no driver.
    pub capabilities: Option<&'a Capabilities>,
    /// Who.
    pub by: &'a str,
    /// When.
    pub now: Timestamp,
}

impl Asked<'_> {
    fn errand(self, claim: ClaimId, ask: Ask) -> Errand {
        Errand {
            id: ErrandId::generate(),
            agent: self.agent.clone(),
            claim,
            ask,
            by: self.by.to_owned(),
            asked_at: self.now,
            until: self.now.checked_add(WAITS_FOR).unwrap_or(Timestamp::MAX),
            tried: None,
            end: None,
        }
    }

    /// The claim on a machine of which snapshots can be taken.
    fn claim(self, records: &Records) -> Result<&Claim, Problem> {
        let agent = self.agent;
        let Some((claim, capabilities)) = records.claims.get(agent).zip(self.capabilities) else {
            return Err(Problem::new(ProblemCode::Conflict, format!("agent `{agent}` has no machine yet"))
                .remedy(format!("wait for it: vm-agent status {agent}")));
        };
        match capabilities.snapshots {
            SnapshotSupport::Down | SnapshotSupport::Live => Ok(claim),
            SnapshotSupport::None => {
                let reason = format!("driver {} of agent `{agent}` takes no snapshots", claim.driver);
                Err(Problem::new(ProblemCode::Conflict, reason)
                    .remedy("use a driver that makes machines, such as `qemu`"))
            }
        }
    }

    /// A name by the time that nothing has yet.
    fn name(self, records: &Records, begin: &str) -> SnapshotName {
        let begin: String = begin.chars().take(NAME_PART).collect();
        let stamp = self.now.strftime("%Y%m%d-%H%M%S").to_string();
        let numbered = |number: u32| match number {
            0 => format!("{begin}-{stamp}"),
            _ => format!("{begin}-{stamp}-{number}"),
        };
        let names = (0..).filter_map(|number| numbered(number).parse().ok());
        let mut free = names.filter(|name| !is_taken(records, self.agent, name));
        free.next().expect("there are more numbers than snapshots, and each makes a name")
    }
}

/// Has a snapshot taken.
///
/// # Errors
/// When there is no machine, when its driver takes none, and when the name is taken.
pub fn take(records: &Records, asked: Asked<'_>, request: SnapshotRequest) -> Result<Errand, Problem> {
    let claim = asked.claim(records)?;
    let name = match request.name {
        Some(name) if is_taken(records, asked.agent, &name) => {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("`{}` has a snapshot `{name}` already", asked.agent),
            )
            .remedy(format!("take another name, or delete it: vm-agent snapshot rm {} {name}", asked.agent)));
        }
        Some(name) => name,
        None => asked.name(records, "snapshot"),
    };
    let cause = Cause::Person { by: asked.by.to_owned() };
    Ok(asked.errand(claim.id, Ask::Take { name, cause, comment: request.comment }))
}

/// Has a snapshot deleted.
///
/// # Errors
/// When there is none, or it is protected.
pub fn delete(records: &Records, asked: Asked<'_>, name: &SnapshotName) -> Result<Errand, Problem> {
    let (claim, agent) = (asked.claim(records)?, asked.agent);
    if find(records, agent, name)?.protect {
        return Err(Problem::new(ProblemCode::Blocked, format!("snapshot `{name}` of `{agent}` is protected"))
            .remedy(format!("end that first: vm-agent snapshot unprotect {agent} {name}")));
    }
    Ok(asked.errand(claim.id, Ask::Delete { name: name.clone(), unkept: false }))
}

/// Has a machine brought back to a snapshot.
///
/// # Errors
/// When there is none.
pub fn restore(records: &Records, asked: Asked<'_>, request: RestoreRequest) -> Result<Errand, Problem> {
    let (claim, to) = (asked.claim(records)?, request.snapshot);
    find(records, asked.agent, &to)?;
    let safety = (!request.without_safety).then(|| asked.name(records, "before-restore"));
    Ok(asked.errand(claim.id, Ask::Restore { to, safety }))
}

/// What is said about a snapshot, changed.
///
/// # Errors
/// When there is none.
pub fn change(
    records: &Records,
    agent: &AgentName,
    name: &SnapshotName,
    request: SnapshotChange,
) -> Result<Snapshot, Problem> {
    let mut snapshot = find(records, agent, name)?.clone();
    snapshot.protect = request.protect.unwrap_or(snapshot.protect);
    snapshot.comment = request.comment.or(snapshot.comment);
    Ok(snapshot)
}

/// Makes an agent by hand whose machine is made from a snapshot of another's.
///
/// # Errors
/// When there is no such snapshot, when the driver can't, and when the new agent's name is taken.
pub fn clone_agent(
    records: &Records,
    asked: Asked<'_>,
    new: &AgentName,
    request: CloneRequest,
) -> Result<Intent, Problem> {
    let source = asked.agent;
    let wanted = effective(&records.fleet, &records.overrides, asked.now).wanted;
    let declared = wanted.get(source).ok_or_else(|| intent::unknown(source))?;
    let claim = asked.claim(records)?;
    let support = asked.capabilities.map_or(CloneSupport::None, |capabilities| capabilities.clones);
    match (support, &request.snapshot) {
        (CloneSupport::None, _) => {
            let reason = format!("driver {} of agent `{source}` makes no machine from another", claim.driver);
            return Err(Problem::new(ProblemCode::Conflict, reason));
        }
        (CloneSupport::Down, Some(_)) => {
            let reason = format!("driver {} copies only what a machine is now, and no snapshot of it", claim.driver);
            return Err(Problem::new(ProblemCode::Conflict, reason)
                .remedy(format!("leave the snapshot out, or restore it first: vm-agent clone {source} {new}")));
        }
        (CloneSupport::Down, None) | (CloneSupport::Snapshots, _) => {}
    }
    if wanted.contains_key(new) || records.claims.contains_key(new) {
        return Err(Problem::new(ProblemCode::Conflict, format!("there is an agent `{new}` already"))
            .remedy("take another name for the new one"));
    }
    let mut changes = Vec::new();
    let (snapshot, taken_at) = match request.snapshot {
        Some(name) => (name.clone(), find(records, source, &name)?.taken_at),
        None => {
            let name = asked.name(records, "clone");
            let ask = Ask::Take { name: name.clone(), cause: Cause::Clone { to: new.clone() }, comment: None };
            changes.push(Change::Errand(Box::new(asked.errand(claim.id, ask))));
            (name, asked.now)
        }
    };
    let mut agent = declared.as_ref().clone();
    agent.spec.driver = Some(claim.driver);
    agent.spec.power = PowerState::Running;
    // What has been done in the one is done in the other.
    let is_done = |name: &TaskName, spec: &TaskSpec| {
        let digest = spec.digest();
        let of_it = |run: &&FileTask| run.name == *name && run.digest == digest && run.claim == claim.id;
        let mut runs = records.tasks.get(source).into_iter().flatten().filter(of_it);
        let done = |run: &FileTask| run.outcome.as_ref().is_some_and(TaskOutcome::is_success);
        spec.when == TaskWhen::Once && runs.any(|run| done(run) && run.ended_at.is_some_and(|at| at <= taken_at))
    };
    agent.spec.tasks.retain(|name, spec| !is_done(name, spec));
    let left: BTreeSet<TaskName> = agent.spec.tasks.keys().cloned().collect();
    agent.spec.tasks.retain(|_, spec| spec.when.after().is_none_or(|before| left.contains(before)));
    agent.clone_of = Some(CloneOf { agent: source.clone(), snapshot });
    let said = Voice { author: asked.by, reason: None, now: asked.now };
    let made = intent::make(records, new, agent, said)?;
    changes.extend(made.changes);
    Ok(Intent { changes, overridden: made.overridden })
}

fn find<'a>(records: &'a Records, agent: &AgentName, name: &SnapshotName) -> Result<&'a Snapshot, Problem> {
    let known = records.snapshots.get(agent).and_then(|known| known.get(name));
    known.ok_or_else(|| {
        Problem::new(ProblemCode::NotFound, format!("`{agent}` has no snapshot `{name}`"))
            .remedy(format!("see which there are: vm-agent snapshot ls {agent}"))
    })
}

/// Whether an agent has a snapshot of that name, or is about to have one.
fn is_taken(records: &Records, agent: &AgentName, name: &SnapshotName) -> bool {
    let about_to = |errand: &Errand| match &errand.ask {
        Ask::Take { name: other, .. } | Ask::Restore { safety: Some(other), .. } => other == name,
        Ask::Restore { safety: None, .. } | Ask::Delete { .. } => false,
    };
    records.snapshots.get(agent).is_some_and(|known| known.contains_key(name))
        || records.errands.get(agent).into_iter().flatten().any(about_to)
}

/// What the file asks for, as an errand.
pub(super) fn of_file(agent: AgentName, claim: ClaimId, wish: Wish, now: Timestamp) -> Change {
    let Wish { ask, by, until } = wish;
    let id = ErrandId::generate();
    Change::Errand(Box::new(Errand { id, agent, claim, ask, by, asked_at: now, until, tried: None, end: None }))
}

/// The errand that a step belongs to: the first that asks for it.
pub(super) fn of_step<'a>(agent: &AgentName, action: &StepAction, records: &'a Records) -> Option<&'a Errand> {
    records.errands.get(agent)?.iter().find(|errand| match (&errand.ask, action) {
        (Ask::Take { name, .. }, StepAction::Snapshot { name: wanted })
        | (Ask::Restore { safety: Some(name), .. }, StepAction::Snapshot { name: wanted })
        | (Ask::Delete { name, .. }, StepAction::DropSnapshot { name: wanted })
        | (Ask::Restore { to: name, .. }, StepAction::Restore { to: wanted, .. }) => name == wanted,
        _ => false,
    })
}

/// The end of an errand: it is done, or not for this reason.
pub(super) fn ended(errand: &Errand, end: Result<(), String>, now: Timestamp) -> Vec<Change> {
    let failed = end.as_ref().err().map(|problem| {
        let message = format!("{} wanted to {}: {problem}", errand.by, errand.ask);
        Change::Event(NewEvent::of(&errand.agent, EventKind::SnapshotFailed, message))
    });
    let end = Some(ErrandEnd { at: now, problem: end.err() });
    let over = Change::Errand(Box::new(Errand { end, ..errand.clone() }));
    std::iter::once(over).chain(failed).collect()
}

/// What a snapshot that was taken changes.
pub(super) fn taken(job: &Job, name: &SnapshotName, now: Timestamp) -> Vec<Change> {
    let Some(errand) = &job.errand else { return Vec::new() };
    let (cause, comment) = match &errand.ask {
        Ask::Take { cause, comment, .. } => (cause.clone(), comment.clone()),
        Ask::Restore { to, .. } => (Cause::Restore { to: to.clone() }, None),
        Ask::Delete { .. } => return Vec::new(),
    };
    let message = format!("snapshot `{name}` was taken: {cause}");
    let snapshot = Snapshot {
        name: name.clone(),
        agent: errand.agent.clone(),
        claim: job.claim.id,
        cause,
        comment,
        protect: false,
        // What the machine did while it was taken may be in it or not.
        taken_at: job.operation.started_at,
        running: job.ran,
        suspended: job.slept,
    };
    let mut changes = vec![
        Change::Snapshot(Box::new(snapshot)),
        Change::Event(NewEvent::of(&errand.agent, EventKind::SnapshotTaken, message)),
    ];
    if matches!(errand.ask, Ask::Take { .. }) {
        changes.extend(ended(errand, Ok(()), now));
    }
    changes
}

/// What a snapshot that was deleted changes.
pub(super) fn deleted(job: &Job, name: &SnapshotName, now: Timestamp) -> Vec<Change> {
    let agent = &job.operation.agent;
    let message = format!("snapshot `{name}` was deleted");
    let mut changes = vec![
        Change::DropSnapshot(agent.clone(), name.clone()),
        Change::Event(NewEvent::of(agent, EventKind::SnapshotDeleted, message)),
    ];
    changes.extend(job.errand.iter().flat_map(|errand| ended(errand, Ok(()), now)));
    changes
}

/// What a machine's way back changes that it has gone.
pub(super) fn restored(job: &Job, name: &SnapshotName, now: Timestamp) -> Vec<Change> {
    let message = format!("the machine is back at snapshot `{name}`, as incarnation {}", job.claim.incarnation);
    let event = Change::Event(NewEvent::of(&job.operation.agent, EventKind::Restored, message));
    std::iter::once(event).chain(job.errand.iter().flat_map(|errand| ended(errand, Ok(()), now))).collect()
}

/// What an attempt that failed changes. A person is told at once and may try again; what nobody asks for is tried
/// again by itself.
pub(super) fn failed(errand: &Errand, why: &str, now: Timestamp) -> Vec<Change> {
    if !errand.ask.asks_itself() {
        let hint = match &errand.ask {
            Ask::Restore { .. } => "the snapshot before it failed, and nothing was changed: ",
            Ask::Take { .. } | Ask::Delete { .. } => "",
        };
        return ended(errand, Err(format!("{hint}{why}")), now);
    }
    let failures = errand.tried.as_ref().map_or(0, |tried| tried.failures) + 1;
    let pause = PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(PAUSE_MAX);
    let not_before = now.checked_add(pause).unwrap_or(Timestamp::MAX);
    let tried = Some(Tried { failures, not_before, last: why.to_owned() });
    vec![Change::Errand(Box::new(Errand { tried, ..errand.clone() }))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errand(ask: Ask) -> Errand {
        let claim = ClaimId::generate();
        let asked = Asked { agent: &"web".parse().unwrap(), capabilities: None, by: "x", now: Timestamp::UNIX_EPOCH };
        asked.errand(claim, ask)
    }

    fn after_failures(ask: Ask, failures: u32) -> Errand {
        let mut errand = errand(ask);
        for _ in 0..failures {
            let changes = failed(&errand, "the disk is locked", Timestamp::UNIX_EPOCH);
            let Some(Change::Errand(changed)) = changes.into_iter().next() else { panic!("it is written down") };
            errand = *changed;
        }
        errand
    }

    #[test]
    fn what_a_person_asks_for_is_tried_once_and_what_nobody_asks_for_after_longer_and_longer_pauses() {
        let delete = |unkept| Ask::Delete { name: "one".parse().unwrap(), unkept };
        let by_hand = after_failures(delete(false), 1);
        assert!(by_hand.end.unwrap().problem.unwrap().contains("the disk is locked"));
        let pause = |failures| after_failures(delete(true), failures).tried.unwrap().not_before.as_second();
        assert_eq!([pause(1), pause(2), pause(20)], [30, 60, 1800]);
        assert_eq!(after_failures(delete(true), 20).end, None, "until its time is over");
    }
}

//! Taking over instances that others made, and letting them go again.

use jiff::Timestamp;
use vm_agent_schemas::api::{Problem, ProblemCode};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{AgentEntry, DeclaredAgent, DriverName, PowerState, resolve_entry};
use vm_agent_schemas::ids::{ClaimId, Nonce};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Birth, Claim, Description, History, Instance, InstanceState, Proof, Sizes, Standing};

use super::intent::{self, Intent, Voice};
use super::records::{Change, Records};

/// An instance that somebody wants taken over, as its driver shows and describes it.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    pub driver: DriverName,
    pub instance: &'a Instance,
    pub description: &'a Description,
}

/// `import`: the instance becomes the agent's, as it is. An agent that the file does not declare is made by hand,
/// and is protected: nobody deletes by mistake what we have not made.
///
/// # Errors
/// When the agent has an instance already, when the instance is another agent's or only waits to be purged, and
/// when the file wants another driver for the agent.
pub fn import(records: &Records, agent: &AgentName, found: Found<'_>, said: Voice<'_>) -> Result<Intent, Problem> {
    let (name, conflict) = (&found.instance.name, |reason| Problem::new(ProblemCode::Conflict, reason));
    if let Some(claim) = records.claims.get(agent) {
        let known = claim.instance == *name && claim.driver == found.driver;
        return if known { Ok(Intent::default()) } else { Err(conflict(has_one(agent, claim))) };
    }
    if let Some(other) = owner(records, found.driver, found.instance) {
        return Err(conflict(format!("instance `{name}` is that of agent `{}` already", other.agent)));
    }
    if found.instance.state == InstanceState::Deleted {
        return Err(
            conflict(format!("instance `{name}` is deleted, and only holds its name")).remedy("recover it first")
        );
    }
    let (declared, made) = match records.fleet.agents.get(agent) {
        Some(declared) => (declared.as_ref().clone(), Intent::default()),
        None => {
            let spec = by_hand(records, found)?;
            let made = intent::make(records, agent, spec.clone(), said)?;
            (spec, made)
        }
    };
    if let Some(wanted) = declared.spec.driver.filter(|wanted| *wanted != found.driver) {
        return Err(conflict(format!(
            "the fleet file wants `{agent}` on {wanted}, and `{name}` is one of {}",
            found.driver
        ))
        .remedy(format!("write `driver: {}` for it, and apply the file", found.driver)));
    }
    let claim = claim(records, agent, &declared, found, said.now);
    let message = format!("{} wants instance `{name}` of {} taken over", said.author, found.driver);
    let mut changes = made.changes;
    changes.push(Change::Claim(Box::new(claim)));
    changes.push(Change::Event(NewEvent::of(agent, EventKind::Imported, message)));
    Ok(Intent { changes, overridden: made.overridden })
}

/// `release`: the agent is let go, and its instance stays as it is.
///
/// # Errors
/// When there is nothing of it, and when the fleet file declares it: then it would be made anew.
pub fn release(records: &Records, agent: &AgentName, said: Voice<'_>) -> Result<Intent, Problem> {
    if records.fleet.agents.contains_key(agent) {
        let reason = format!("the fleet file declares `{agent}`: without its instance it would be made anew");
        return Err(Problem::new(ProblemCode::Conflict, reason)
            .remedy("write `reconcile: paused` for it to be let alone, or take it out of the file first"));
    }
    let claim = records.claims.get(agent).ok_or_else(|| intent::unknown(agent))?;
    if records.operations.contains_key(agent) {
        return Err(Problem::new(ProblemCode::Conflict, format!("something is being done with `{agent}`"))
            .remedy("wait until it is over"));
    }
    let message = format!("{} let it go; instance `{}` stays as it is", said.author, claim.instance);
    let mut changes = vec![Change::Unclaim(agent.clone())];
    let by_hand = records.overrides.iter().filter(|entry| entry.agent == *agent);
    changes.extend(by_hand.map(|entry| Change::DropOverride(agent.clone(), entry.change.path())));
    changes.push(Change::Event(NewEvent::of(agent, EventKind::Released, message)));
    Ok(Intent { changes, overridden: None })
}

/// Whose an instance is.
#[must_use]
pub fn owner<'a>(records: &'a Records, driver: DriverName, instance: &Instance) -> Option<&'a Claim> {
    records.claims.values().find(|claim| claim.driver == driver && claim.instance == instance.name)
}

fn has_one(agent: &AgentName, claim: &Claim) -> String {
    format!("agent `{agent}` has an instance already: `{}` of {}", claim.instance, claim.driver)
}

/// The spec of an agent that is as the instance is.
fn by_hand(records: &Records, found: Found<'_>) -> Result<DeclaredAgent, Problem> {
    let Description { image, sizes, mounts } = found.description;
    let sizes = sizes.or(found.instance.sizes);
    let entry = AgentEntry {
        driver: Some(found.driver),
        image: image.clone(),
        cpus: sizes.map(|sizes| sizes.cpus),
        memory: sizes.map(|sizes| sizes.memory),
        disk: sizes.map(|sizes| sizes.disk),
        power: Some(power(found.instance.state)),
        protect: Some(true),
        ..AgentEntry::default()
    };
    let mut declared = resolve_entry(&records.fleet, &entry)
        .map_err(|problems| Problem::new(ProblemCode::Invalid, problems.join("; ")))?;
    declared.spec.mounts.clone_from(mounts);
    Ok(declared)
}

/// Whether an instance is to run that is found so.
#[must_use]
pub const fn power(state: InstanceState) -> PowerState {
    match state {
        InstanceState::Running | InstanceState::Starting | InstanceState::Unknown => PowerState::Running,
        InstanceState::Stopping
        | InstanceState::Stopped
        | InstanceState::Failed
        | InstanceState::Suspended
        | InstanceState::Deleted => PowerState::Stopped,
    }
}

fn claim(records: &Records, agent: &AgentName, declared: &DeclaredAgent, found: Found<'_>, now: Timestamp) -> Claim {
    let Description { sizes, mounts, .. } = found.description;
    let sizes = sizes.or(found.instance.sizes).unwrap_or_else(|| Sizes::of(&declared.spec));
    Claim {
        id: ClaimId::generate(),
        fleet: records.fleet.name.clone(),
        agent: agent.clone(),
        driver: found.driver,
        instance: found.instance.name.clone(),
        nonce: Nonce::generate(),
        incarnation: records.incarnations.get(agent).copied().unwrap_or_default().next(),
        created_at: now,
        proof: Proof::Pending,
        standing: if found.instance.state == InstanceState::Running { Standing::Up } else { Standing::Down },
        protect: true,
        left_in_mass: false,
        asleep: false,
        // What it was made from nobody can tell but its driver; what the file says is taken for true.
        birth: Birth { image: declared.spec.image.clone(), sizes, mounts: mounts.clone(), ..Birth::of(&declared.spec) },
        history: History { adopting: true, ..History::default() },
    }
}

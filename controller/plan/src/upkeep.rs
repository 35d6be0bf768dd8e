//! What the records should say that they don't say yet: the part of a pass that changes no machine.

use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::intent::{Override, Pause};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Claim, InstanceState, Operation, Proof};
use vm_agent_schemas::plan::Plan;

use crate::effective::{End, ended_overrides};
use crate::fuse::{BACKOFF_FORGOTTEN, after};
use crate::inputs::{Inputs, Listing, Observed};

/// One thing that the records should say.
#[derive(Debug, Clone, PartialEq)]
pub enum Upkeep {
    /// An override has come to its end.
    EndOverride(Override, End),
    /// The pause of the fleet has come to its time.
    EndPause(Pause),
    /// An instance went down, and nobody stopped it.
    Crashed(AgentName),
    /// A claim that has learnt something: proof, power or protection.
    Claim(Claim),
    /// Failures long enough ago to be forgotten, or of an agent that is gone.
    ForgetBackoff(AgentName),
    /// An operation of an earlier life that can have no effect any more.
    Interrupted(Operation),
    /// A yes that nothing rests on any more.
    DropApproval(Digest),
}

/// Compares records and world. `plan` is the plan for these inputs.
#[must_use]
pub fn upkeep(inputs: &Inputs, plan: &Plan) -> Vec<Upkeep> {
    let mut upkeep = Vec::new();
    let known = |agent: &AgentName| inputs.claims.contains_key(agent);
    for (id, end) in ended_overrides(&inputs.fleet, &inputs.overrides, known, inputs.now) {
        let ended = inputs.overrides.iter().find(|entry| entry.id == id);
        upkeep.extend(ended.map(|entry| Upkeep::EndOverride(entry.clone(), end)));
    }
    let over = |pause: &&Pause| pause.expires_at.is_some_and(|end| end <= inputs.now);
    upkeep.extend(inputs.pause.iter().filter(over).cloned().map(Upkeep::EndPause));
    for claim in inputs.claims.values() {
        let observed = observed(inputs, claim);
        upkeep.extend(learnt(inputs, plan, claim, observed).map(Upkeep::Claim));
        if observed.is_some_and(|observed| is_new_crash(inputs, claim, observed)) {
            upkeep.push(Upkeep::Crashed(claim.agent.clone()));
        }
    }
    for (agent, backoff) in &inputs.backoffs {
        let gone = plan.agent(agent).is_none();
        if gone || after(backoff.failed_at, BACKOFF_FORGOTTEN) <= inputs.now {
            upkeep.push(Upkeep::ForgetBackoff(agent.clone()));
        }
    }
    let over = inputs.operations.values().filter(|operation| inputs.operation(&operation.agent).is_none());
    upkeep.extend(over.cloned().map(Upkeep::Interrupted));
    // While a step is under way the yes that it rests on is not asked for.
    if inputs.operations.is_empty() {
        let unused = inputs.approvals.iter().filter(|id| !plan.granted.contains(id));
        upkeep.extend(unused.cloned().map(Upkeep::DropApproval));
    }
    upkeep
}

/// The instance of a claim, if it is seen and is the one.
fn observed<'a>(inputs: &'a Inputs, claim: &Claim) -> Option<&'a Observed> {
    let Listing::Seen(instances) = &inputs.drivers.get(&claim.driver)?.listing else { return None };
    let observed = instances.get(&claim.instance)?;
    observed.instance.nonce.as_ref().is_none_or(|nonce| *nonce == claim.nonce).then_some(observed)
}

/// The claim with what can be said of it by now; nothing when it says all that already.
fn learnt(inputs: &Inputs, plan: &Plan, claim: &Claim, observed: Option<&Observed>) -> Option<Claim> {
    let mut learnt = claim.clone();
    let read_back = observed.is_some_and(|observed| observed.instance.nonce.is_some());
    // A runtime is heard only after it has shown the claim's nonce.
    let heard = inputs.sessions.get(&claim.agent).is_some_and(|session| session.incarnation == claim.incarnation);
    if read_back || heard {
        learnt.proof = Proof::Confirmed;
    }
    let runs = observed.is_some_and(|observed| observed.instance.state == InstanceState::Running);
    // An operation of an earlier life may have been a stop, whose effect is about to show.
    if runs && !inputs.operations.contains_key(&claim.agent) {
        learnt.power = PowerState::Running;
    }
    if let Some(agent) = plan.agent(&claim.agent).and_then(|agent| agent.wanted.as_ref()) {
        learnt.protect = agent.spec.protect;
    }
    (learnt != *claim).then_some(learnt)
}

/// Whether an instance is down by itself, and its backoff does not know of that yet.
fn is_new_crash(inputs: &Inputs, claim: &Claim, observed: &Observed) -> bool {
    observed.instance.state == InstanceState::Failed
        && claim.power == PowerState::Running
        && inputs.operation(&claim.agent).is_none()
        && inputs.backoffs.get(&claim.agent).is_none_or(|backoff| backoff.failed_at < observed.since)
}

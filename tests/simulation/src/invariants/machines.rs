//! Machines: whose they are, and what becomes of them.

use std::collections::{BTreeMap, BTreeSet};

use vm_agent_daemon::engine::records::{Change, Records};
use vm_agent_plan::{Inputs, Listing, Mode, effective};
use vm_agent_schemas::fleet::Prune;
use vm_agent_schemas::ids::{ClaimId, Digest, Incarnation, Nonce};
use vm_agent_schemas::intent::{Change as Said, Presence};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, InstanceState, Operation, Proof};

use crate::deed::{By, Deed};

use super::{ACCIDENT, Invariant, LEVEL, ONCE, UNKNOWN, hold, invariant, opened, shown};

/// A claim is written before a launch.
#[derive(Debug, Default)]
pub(super) struct ClaimsComeFirst {
    claimed: BTreeSet<Nonce>,
}

impl Invariant for ClaimsComeFirst {
    invariant!(ClaimsComeFirst, ACCIDENT);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Recorded { changes, .. } => {
                let claims = changes.iter().filter_map(|change| match change {
                    Change::Claim(claim) => Some(claim.nonce.clone()),
                    _ => None,
                });
                self.claimed.extend(claims);
                Ok(())
            }
            Deed::Called { agent, instance, nonce, action, records, .. } => {
                let claim = records.claims.get(agent);
                let fits = claim.is_some_and(|claim| claim.nonce == *nonce && claim.instance == *instance);
                hold(fits, || format!("a {action} of {instance} rests on no claim"))
            }
            Deed::Made { instance, nonce, .. } => {
                hold(self.claimed.contains(nonce), || format!("{instance} was made, and never claimed"))
            }
            _ => Ok(()),
        }
    }
}

/// What a person said yes to.
#[derive(Debug)]
struct Yes {
    agent: AgentName,
    claim: Option<ClaimId>,
    /// Whether it was a replacement and not a removal.
    replace: bool,
}

/// A machine is deleted only on proof, when nothing protects it, and when somebody wants that.
#[derive(Debug, Default)]
pub(super) struct NothingGoesByAccident {
    yes: BTreeMap<Digest, Yes>,
}

impl NothingGoesByAccident {
    fn judge(&self, operation: &Operation, inputs: &Inputs, records: &Records) -> Result<(), String> {
        let agent = &operation.agent;
        let Some(claim) = records.claims.get(agent) else { return Err(format!("{agent} is not claimed")) };
        let declared = records.fleet.agents.get(agent);
        let protected = claim.protect || declared.is_some_and(|it| it.spec.protect);
        hold(!protected, || format!("{agent} is protected"))?;
        let read_back = shown(inputs, records, agent).and_then(|it| it.nonce.as_ref()) == Some(&claim.nonce);
        let proven = match claim.proof {
            Proof::Pending => false,
            Proof::Watched { life } => life == records.life,
            Proof::Confirmed => true,
        };
        hold(read_back || proven, || format!("nothing proves that the instance of {agent} is ours"))?;
        let wanted = effective(&records.fleet, &records.overrides, inputs.now).wanted;
        if told(records, agent) {
            return Ok(());
        }
        let yes = |replace: bool| {
            let granted = records.approvals.keys().filter_map(|id| self.yes.get(id));
            granted.into_iter().any(|yes| yes.agent == *agent && yes.claim == Some(claim.id) && yes.replace == replace)
        };
        if wanted.contains_key(agent) {
            return hold(yes(true), || format!("nobody said that {agent} may be made anew"));
        }
        match records.fleet.prune {
            Prune::Never => Err(format!("{agent} is deleted under `prune: never`")),
            Prune::Confirm => hold(yes(false), || format!("nobody said that {agent} may go")),
            Prune::Auto => {
                let leaving = records.claims.keys().filter(|it| {
                    let there = shown(inputs, records, it).is_some();
                    !wanted.contains_key(*it) && !told(records, it) && there
                });
                let leaving = leaving.count();
                let mass = leaving > 2 && leaving * 100 > records.claims.len() * 30;
                hold(yes(false) || !(mass || claim.left_in_mass), || format!("{leaving} agents go at once, unasked"))
            }
        }
    }
}

/// Whether a person said that this very agent should go.
fn told(records: &Records, agent: &AgentName) -> bool {
    let absent = |change: &Said| matches!(change, Said::Presence(Presence::Absent));
    records.mode == Mode::Destroy || records.overrides.iter().any(|it| it.agent == *agent && absent(&it.change))
}

impl Invariant for NothingGoesByAccident {
    invariant!(NothingGoesByAccident, ACCIDENT);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        if let Deed::Approved { request, records } = deed {
            let claim = records.claims.get(&request.agent).map(|claim| claim.id);
            let replace = request.what.contains("make it anew");
            self.yes.insert(request.id.clone(), Yes { agent: request.agent.clone(), claim, replace });
        }
        let mut destroys = opened(deed).into_iter().filter(|(operation, ..)| operation.action == Action::Destroy);
        destroys.try_for_each(|(operation, inputs, records)| self.judge(operation, inputs, records))
    }
}

/// No step is made on an instance that is seen to be somebody else's.
#[derive(Debug)]
pub(super) struct NothingForeignIsTouched;

impl Invariant for NothingForeignIsTouched {
    invariant!(NothingForeignIsTouched, ACCIDENT);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            let Some(claim) = records.claims.get(&operation.agent) else { return Err("a step without a claim".into()) };
            let nonce = shown(inputs, records, &operation.agent).and_then(|it| it.nonce.as_ref());
            // On its way back to a snapshot it may still be what it was.
            let former = claim.history.restoring.as_ref().map(|way| &way.from);
            let foreign = nonce.is_some_and(|nonce| *nonce != claim.nonce && Some(nonce) != former);
            hold(!foreign, || format!("a {} of {}, which is not ours", operation.action, claim.instance))
        })
    }
}

/// There are never two machines for one agent.
#[derive(Debug)]
pub(super) struct AnAgentHasOneMachine;

impl Invariant for AnAgentHasOneMachine {
    invariant!(AnAgentHasOneMachine, LEVEL);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Made { agent, others, .. } = deed else { return Ok(()) };
        hold(others.is_empty(), || format!("{agent} has a machine already, of {others:?}"))
    }
}

/// A driver that does not answer, or does not know, gives nothing to act on.
#[derive(Debug)]
pub(super) struct IgnoranceActsOnNothing;

impl Invariant for IgnoranceActsOnNothing {
    invariant!(IgnoranceActsOnNothing, UNKNOWN);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        if let Deed::Recorded { by: By::Pass(inputs), before, changes, .. } = deed {
            for change in changes.iter() {
                let Change::Unclaim(agent) = change else { continue };
                let Some(claim) = before.claims.get(agent) else { continue };
                let view = inputs.drivers.get(&claim.driver);
                let seen = view.is_some_and(|view| matches!(view.listing, Listing::Seen(_)));
                hold(seen, || format!("the claim of {agent} is dropped though its driver does not answer"))?;
            }
        }
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            let Operation { agent, action, driver, .. } = operation;
            let Some(Listing::Seen(instances)) = inputs.drivers.get(driver).map(|view| &view.listing) else {
                return Err(format!("a {action} of {agent}, and {driver} does not answer"));
            };
            let Some(claim) = records.claims.get(agent) else { return Ok(()) };
            let seen = instances.get(&claim.instance);
            if *action == Action::Create {
                // What an earlier create left half made is finished by another.
                let free = seen.is_none() || claim.proof == Proof::Pending;
                return hold(free, || format!("a create of {agent}, which is there"));
            }
            let known = seen.is_some_and(|it| it.instance.state != InstanceState::Unknown);
            hold(known, || format!("a {action} of {agent}, of which nothing is known"))
        })
    }
}

/// A number of an incarnation is never given twice to a name.
#[derive(Debug, Default)]
pub(super) struct IncarnationsAreNew {
    latest: BTreeMap<AgentName, (ClaimId, Incarnation)>,
}

impl Invariant for IncarnationsAreNew {
    invariant!(IncarnationsAreNew, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Recorded { changes, .. } = deed else { return Ok(()) };
        for change in changes.iter() {
            let Change::Claim(claim) = change else { continue };
            let before = self.latest.insert(claim.agent.clone(), (claim.id, claim.incarnation));
            let new = before.is_none_or(|(id, latest)| {
                // The same machine has another only when it goes back to a snapshot.
                let grows = id != claim.id || claim.history.restoring.is_some();
                (grows && claim.incarnation > latest) || (id == claim.id && claim.incarnation == latest)
            });
            hold(new, || format!("{} has incarnation {} again", claim.agent, claim.incarnation))?;
        }
        Ok(())
    }
}

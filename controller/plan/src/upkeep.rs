//! What the records should say that they don't say yet: the part of a pass that changes no machine.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use vm_agent_schemas::fleet::Mount;
use vm_agent_schemas::ids::{ClaimId, Digest};
use vm_agent_schemas::intent::{Override, Pause};
use vm_agent_schemas::names::{AgentName, ScheduleName};
use vm_agent_schemas::observe::{Backoff, Claim, InstanceState, Operation, Proof, Sizes, Standing, Undone};
use vm_agent_schemas::plan::{AgentPlan, Plan, Sync};
use vm_agent_schemas::snapshot::{Errand, Point};

use crate::clock::{SetBack, after, backoff_set_back, fuse_set_back, override_set_back, pause_set_back};
use crate::effective::{End, effective, ended_overrides};
use crate::fuse::BACKOFF_FORGOTTEN;
use crate::inputs::{Inputs, Mode};
use crate::rest::asleep;
use crate::situation::Situation;
use crate::snapshots::{self, Wish, Wishes, bases, wishes};

/// One thing that the records should say.
#[derive(Debug, Clone, PartialEq)]
pub enum Upkeep {
    /// An override has come to its end.
    EndOverride(Box<Override>, End),
    /// The pause of the fleet has come to its time.
    EndPause(Pause),
    /// An instance went down, and nobody stopped it.
    Crashed(AgentName),
    /// Something has been learnt of a claim's instance.
    Learnt(AgentName, Learnt),
    /// Failures long enough ago to be forgotten, or of an agent that is gone.
    ForgetBackoff(AgentName),
    /// An operation that can have no effect any more, and whose end nobody wrote down.
    Interrupted(Operation),
    /// A yes that nothing rests on any more.
    DropApproval(Digest),
    /// The file asks for something to be done with an agent's snapshots, by this claim.
    Ask(AgentName, ClaimId, Wish),
    /// Something that was to be done with an agent's snapshots is over: done, or not any more for this reason.
    EndErrand(Errand, Result<(), String>),
    /// The clock was set back, and this is to be written down in place of what it is dated later.
    SetBack(SetBack),
}

/// What has been learnt of a claim's instance. What is not said stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learnt {
    /// The claim that it is about: of another claim of the same agent it says nothing.
    pub claim: ClaimId,
    /// How far it is proven to be ours.
    pub proof: Option<Proof>,
    /// What it was brought to.
    pub standing: Option<Standing>,
    /// The sizes that it has been given.
    pub sizes: Option<Sizes>,
    /// Whether the agent is protected.
    pub protect: Option<bool>,
    /// Whether the agent left the file together with too many others.
    pub left_in_mass: Option<bool>,
    /// Whether its machine is to be down for want of work. Said only when it changes.
    pub asleep: Option<bool>,
    /// The folders of the host that it was started with.
    pub mounts: Option<BTreeMap<String, Mount>>,
    /// Schedules for whose moments up to that time snapshots were asked for.
    pub scheduled: Option<(BTreeSet<ScheduleName>, Timestamp)>,
    /// Points at which snapshots were asked for.
    pub points: BTreeSet<Point>,
    /// When it went back to the snapshot that it was on its way to.
    pub restored: Option<Timestamp>,
    /// Whether it has been taken over from whoever made it.
    pub adopted: bool,
}

impl Learnt {
    /// Nothing yet.
    #[must_use]
    pub const fn of(claim: &Claim) -> Self {
        Self {
            claim: claim.id,
            proof: None,
            standing: None,
            sizes: None,
            protect: None,
            left_in_mass: None,
            asleep: None,
            mounts: None,
            scheduled: None,
            points: BTreeSet::new(),
            restored: None,
            adopted: false,
        }
    }

    /// The claim in the light of it; nothing when it is another claim, or says all that already.
    #[must_use]
    pub fn applied_to(&self, claim: &Claim) -> Option<Claim> {
        let mut learnt = claim.clone();
        learnt.proof = self.proof.unwrap_or(claim.proof);
        learnt.standing = self.standing.unwrap_or(claim.standing);
        learnt.birth.sizes = self.sizes.unwrap_or(claim.birth.sizes);
        learnt.protect = self.protect.unwrap_or(claim.protect);
        learnt.left_in_mass = self.left_in_mass.unwrap_or(claim.left_in_mass);
        learnt.asleep = self.asleep.unwrap_or(claim.asleep);
        if let Some(mounts) = &self.mounts {
            learnt.birth.mounts.clone_from(mounts);
        }
        let history = &mut learnt.history;
        if let Some((schedules, at)) = &self.scheduled {
            history.schedules.extend(schedules.iter().map(|name| (name.clone(), *at)));
        }
        history.points.extend(&self.points);
        history.adopting &= !self.adopted;
        if let Some(until) = self.restored
            && let Some(way) = history.restoring.take()
        {
            history.undone = Some(Undone { since: way.taken_at, until });
        }
        (claim.id == self.claim && learnt != *claim).then_some(learnt)
    }
}

/// Compares records and world. `plan` is the plan for these inputs. Once its answer is written down,
/// the same question has no answer any more, but for what an interrupted operation has hidden.
#[must_use]
pub fn upkeep(inputs: &Inputs, plan: &Plan) -> Vec<Upkeep> {
    let mut upkeep = Vec::new();
    upkeep.extend(what_people_said(inputs));
    upkeep.extend(failures(inputs, plan));
    upkeep.extend(claims(inputs, plan));
    upkeep.extend(errands(inputs, plan));
    let over = inputs.operations.values().filter(|operation| inputs.operation(&operation.agent).is_none());
    upkeep.extend(over.cloned().map(Upkeep::Interrupted));
    let unused = inputs.approvals.iter().filter(|(id, agent)| is_unused(inputs, plan, id, agent));
    upkeep.extend(unused.map(|(id, _)| Upkeep::DropApproval(id.clone())));
    upkeep
}

/// Overrides and the pause: what has come to its end, and what is dated later than now.
fn what_people_said(inputs: &Inputs) -> Vec<Upkeep> {
    let known = |agent: &AgentName| inputs.claims.contains_key(agent);
    let ended = ended_overrides(&inputs.fleet, &inputs.overrides, known, inputs.now);
    let of_override = |entry: &Override| match ended.iter().find(|(id, _)| *id == entry.id) {
        Some((_, end)) => Some(Upkeep::EndOverride(Box::new(entry.clone()), *end)),
        None => override_set_back(inputs, entry).map(Upkeep::SetBack),
    };
    let of_pause = |pause: &Pause| match pause.expires_at {
        Some(end) if end <= inputs.now => Some(Upkeep::EndPause(pause.clone())),
        _ => pause_set_back(inputs, pause).map(Upkeep::SetBack),
    };
    inputs.overrides.iter().filter_map(of_override).chain(inputs.pause.iter().filter_map(of_pause)).collect()
}

/// Failures and the fuse. They come before what has failed since.
fn failures(inputs: &Inputs, plan: &Plan) -> impl Iterator<Item = Upkeep> {
    let of_backoff = |(agent, backoff): (&AgentName, &Backoff)| {
        let gone = !inputs.claims.contains_key(agent) && plan.agent(agent).is_none_or(|it| it.wanted.is_none());
        if gone || after(backoff.failed_at, BACKOFF_FORGOTTEN) <= inputs.now {
            Some(Upkeep::ForgetBackoff(agent.clone()))
        } else {
            backoff_set_back(inputs, backoff).map(Upkeep::SetBack)
        }
    };
    inputs.backoffs.iter().filter_map(of_backoff).chain(fuse_set_back(inputs).map(Upkeep::SetBack))
}

/// What is to be learnt of each claim's instance.
fn claims(inputs: &Inputs, plan: &Plan) -> Vec<Upkeep> {
    let mut upkeep = Vec::new();
    let effective = effective(&inputs.fleet, &inputs.overrides, inputs.now);
    for claim in inputs.claims.values() {
        let wanted = effective.wanted.get(&claim.agent);
        let may_sleep = claim.asleep || wanted.is_some_and(|agent| agent.spec.idle.is_some());
        let asleep = may_sleep.then(|| asleep(&Situation::of(inputs, &claim.agent, &effective))).flatten();
        let learnt = learnt(inputs, plan.agent(&claim.agent), claim, asleep);
        if learnt.standing == Some(Standing::Fell) {
            upkeep.push(Upkeep::Crashed(claim.agent.clone()));
        }
        if learnt.applied_to(claim).is_some() {
            upkeep.push(Upkeep::Learnt(claim.agent.clone(), learnt));
        }
    }
    upkeep
}

/// What is over of what was to be done with snapshots, and what the file asks for.
fn errands(inputs: &Inputs, plan: &Plan) -> Vec<Upkeep> {
    let mut upkeep = Vec::new();
    let effective = effective(&inputs.fleet, &inputs.overrides, inputs.now);
    let bases = bases(inputs, &effective);
    for (agent, errands) in &inputs.errands {
        let situation = Situation::of(inputs, agent, &effective);
        let ended = errands.iter().filter_map(|errand| Some((errand, snapshots::end(&situation, errand, &bases)?)));
        upkeep.extend(ended.map(|(errand, end)| Upkeep::EndErrand(errand.clone(), end)));
    }
    let asks = |agent: &AgentName| {
        let is_asked = effective.wanted.get(agent).is_some_and(|it| !it.spec.snapshots.is_empty());
        is_asked || inputs.snapshots.contains_key(agent)
    };
    for claim in inputs.claims.values().filter(|claim| inputs.mode == Mode::Up && asks(&claim.agent)) {
        let situation = Situation::of(inputs, &claim.agent, &effective);
        let health = plan.agent(&claim.agent).map(|it| it.health);
        let Wishes { wishes, schedules, points } = wishes(&situation, health, &bases);
        let scheduled = (!schedules.is_empty()).then_some((schedules, inputs.now));
        let learnt = Learnt { scheduled, points, ..Learnt::of(claim) };
        if learnt.applied_to(claim).is_some() {
            upkeep.push(Upkeep::Learnt(claim.agent.clone(), learnt));
        }
        upkeep.extend(wishes.into_iter().map(|wish| Upkeep::Ask(claim.agent.clone(), claim.id, wish)));
    }
    upkeep
}

/// Whether a yes is void: its agent could have asked for it now, and did not. An agent with a step
/// under way, or of which nothing is known, asks for nothing.
fn is_unused(inputs: &Inputs, plan: &Plan, id: &Digest, agent: &AgentName) -> bool {
    let asks = |agent: &AgentPlan| agent.sync != Sync::Unknown && !inputs.operations.contains_key(&agent.name);
    plan.agent(agent).is_none_or(asks) && !plan.granted.contains(id)
}

fn learnt(inputs: &Inputs, plan: Option<&AgentPlan>, claim: &Claim, asleep: Option<bool>) -> Learnt {
    let observed = inputs.drivers.get(&claim.driver).and_then(|view| view.find(claim));
    let read_back = observed.is_some_and(|observed| observed.instance.nonce.is_some());
    // A runtime is heard only after it has shown the claim's nonce, and an incarnation is one life.
    let heard = inputs.sessions.get(&claim.agent).is_some_and(|session| session.incarnation == claim.incarnation);
    // Nobody may have been there to take note of it when it was.
    let joined = inputs.joined.contains(&claim.agent);
    let proof = match claim.proof {
        _ if read_back || heard || joined => Some(Proof::Confirmed),
        // Whoever looked away, or did not see it, has not watched.
        Proof::Watched { life } if life != inputs.life || observed.is_none() => Some(Proof::Pending),
        _ => None,
    };
    let busy = inputs.operations.contains_key(&claim.agent);
    let standing = match observed.map(|observed| observed.instance.state) {
        // An operation may be a stop, whose effect is about to show.
        _ if busy => None,
        Some(InstanceState::Running) => Some(Standing::Up),
        Some(InstanceState::Failed)
            if claim.standing == Standing::Up && proof.unwrap_or(claim.proof) != Proof::Pending =>
        {
            Some(Standing::Fell)
        }
        _ => None,
    };
    let wanted = plan.and_then(|agent| agent.wanted.as_ref());
    let asked = plan.is_some_and(|agent| agent.held_back);
    let left_in_mass = match wanted {
        Some(_) => Some(false),
        None => asked.then_some(true),
    };
    let protect = wanted.map(|agent| agent.spec.protect);
    Learnt { proof, standing, protect, left_in_mass, asleep, ..Learnt::of(claim) }
}

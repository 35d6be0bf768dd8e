//! What people see: plans, records and sessions put side by side.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use vm_agent_hub::SessionInfo;
use vm_agent_plan::{Inputs, Listing};
use vm_agent_schemas::api::{
    AgentDrift, AgentView, ControllerStatus, DriverStatus, FileStatus, FleetView, SessionView, Stats,
};
use vm_agent_schemas::fleet::{Reconcile, Webhook};
use vm_agent_schemas::ids::Revision;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{AgentPlan, Condition, Plan};

use crate::conditions::{facts_of, file_facts, fleet_facts};
use crate::core::Core;
use crate::engine::records::Records;
use crate::observer::Observer;

/// A moment of the controller: everything that a view is made from.
pub(crate) struct Moment<'a> {
    pub(crate) core: &'a Core,
    pub(crate) inputs: &'a Inputs,
    pub(crate) plan: &'a Plan,
    pub(crate) sessions: &'a [SessionInfo],
}

impl Moment<'_> {
    /// An agent.
    pub(crate) fn agent(&self, agent: &AgentPlan) -> AgentView {
        let revision = self.acted_on();
        let overrides = self.inputs.overrides.iter().filter(|entry| entry.agent == agent.name);
        let session = self.sessions.iter().find(|session| session.agent == agent.name);
        let waiting = session.map_or(0, |session| session.messages);
        AgentView {
            name: agent.name.clone(),
            driver: agent.driver,
            power: agent.wanted.as_ref().map(|wanted| wanted.spec.power),
            instance: agent.observed,
            incarnation: self.inputs.claims.get(&agent.name).map(|claim| claim.incarnation),
            sync: agent.sync,
            health: agent.health,
            drift: agent.drift.clone(),
            waits_for: agent.waits_for.clone(),
            paused: self.inputs.fleet_pause().is_some()
                || agent.wanted.as_ref().is_some_and(|wanted| wanted.spec.reconcile == Reconcile::Paused),
            rests: agent.rests,
            overrides: overrides.cloned().collect(),
            conditions: self.core.conditions.enter(
                Some(&agent.name),
                facts_of(agent, waiting, self.core.verifying.fact(&agent.name)),
                revision,
                self.inputs.now,
            ),
            session: session.map(session_view),
            wanted: agent.wanted.as_deref().cloned(),
            observed_generation: revision,
        }
    }

    /// The controller.
    pub(crate) fn controller(&self, records: &Records) -> ControllerStatus {
        let file = self.core.watch.status(records);
        let conditions = self.fleet_conditions(&file, &records.fleet.webhooks);
        ControllerStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            fleet: records.owner.clone().unwrap_or_default(),
            state_dir: self.core.state_dir.clone(),
            life: records.life,
            started_at: self.core.started_at,
            addresses: self.core.addresses.clone(),
            file,
            paused: records.pause.clone(),
            fuse: self.plan.fuse.clone(),
            drivers: self.core.observers.values().map(driver_status).collect(),
            sync: count(self.plan.agents.iter().map(|agent| agent.sync.to_string())),
            health: count(self.plan.agents.iter().map(|agent| agent.health.to_string())),
            conditions,
        }
    }

    fn fleet_conditions(&self, file: &FileStatus, webhooks: &[Webhook]) -> Vec<Condition> {
        let mut facts = fleet_facts(self.plan, &self.core.observers);
        facts.extend(self.core.networks.fact());
        facts.extend(file_facts(file));
        facts.extend(self.core.webhooks.fact(webhooks));
        self.core.conditions.enter(None, facts, self.acted_on(), self.inputs.now)
    }

    fn acted_on(&self) -> Option<Revision> {
        Some(self.core.acted_on.load(Ordering::Relaxed)).filter(|number| *number > 0).map(Revision)
    }

    pub(crate) fn stats(&self) -> Stats {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Stats {
            agents: count(self.plan.agents.len()),
            sessions: count(self.sessions.len()),
            passes: self.core.passes.load(Ordering::Relaxed),
            steps: self.core.metrics.steps(),
            failures: self.core.metrics.failures(),
            refusals: self.core.hub.closings().refused.values().sum(),
        }
    }
}

/// Each agent that is not as wanted.
pub(crate) fn drift(plan: &Plan) -> Vec<AgentDrift> {
    let drifted = plan.agents.iter().filter(|agent| !agent.drift.is_empty());
    let view = |agent: &AgentPlan| AgentDrift {
        agent: agent.name.clone(),
        drift: agent.drift.clone(),
        waits_for: agent.waits_for.clone(),
    };
    drifted.map(view).collect()
}

/// The accepted fleet file.
pub(crate) fn fleet(records: &Records) -> FleetView {
    let agents = records.fleet.agents.iter();
    FleetView {
        name: records.owner.clone().unwrap_or_default(),
        revision: records.file.as_ref().map(|file| file.revision),
        roots: records.file.as_ref().map(|file| file.source.roots.clone()).unwrap_or_default(),
        agents: agents.map(|(name, agent)| (name.clone(), agent.as_ref().clone())).collect::<BTreeMap<AgentName, _>>(),
        overrides: records.overrides.clone(),
    }
}

fn session_view(session: &SessionInfo) -> SessionView {
    SessionView {
        epoch: session.epoch,
        connected_at: session.connected_at,
        last_seen: session.last_seen,
        runtime_version: session.runtime_version.clone(),
        health: session.health.clone(),
    }
}

fn driver_status(observer: &Observer) -> DriverStatus {
    let sight = observer.sight();
    let (instances, problem) = match &sight.listing {
        Some(Listing::Seen(instances)) => (instances.len(), None),
        Some(Listing::Unanswered { reason, .. }) => (0, Some(reason.clone())),
        None => (0, Some("it has not been asked yet".to_owned())),
    };
    DriverStatus {
        name: observer.name(),
        answering: problem.is_none(),
        last_answer: sight.last_answer,
        problem,
        instances: u32::try_from(instances).unwrap_or(u32::MAX),
        capabilities: observer.driver().capabilities(),
    }
}

fn count(words: impl Iterator<Item = String>) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

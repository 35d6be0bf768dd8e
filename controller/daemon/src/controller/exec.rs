//! Running a process in an agent, which may have to wake first.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use vm_agent_hub::{OpenError, Stream};
use vm_agent_plan::plan;
use vm_agent_schemas::api::{Problem, ProblemCode};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{AgentPlan, Cost, DriftClass, Rest, Sync, WaitsFor};
use vm_agent_schemas::wire::StreamTarget;

use super::{Actor, Controller};
use crate::engine::intent;

/// How long an agent that comes up is not looked at when nothing is told of it.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Controller {
    /// Opens a stream to an agent: to a process or a terminal, for a copy, or to a port. Dropping the stream
    /// ends what serves it, but for a terminal that is kept.
    ///
    /// # Errors
    /// When there is no such agent, nothing to run, its runtime is not connected, or it was asleep and did
    /// not come up in time.
    pub async fn exec(
        &self,
        name: &AgentName,
        target: StreamTarget,
        stdin: bool,
        actor: &Actor,
    ) -> Result<Stream, Problem> {
        self.known(name)?;
        check(&target)?;
        tracing::debug!(agent.name = %name, actor = actor.name, "A stream to an agent is opened");
        self.come_up(name, actor).await?;
        self.core.hub.open_stream(name.clone(), target, stdin).await.map_err(|error| match error {
            OpenError::Offline => intent::offline(&self.core.ledger.records(), name, Timestamp::now()),
            OpenError::Shutdown | OpenError::TooMany => Problem::new(ProblemCode::Unavailable, error.to_string()),
            OpenError::TooLarge(_) => Problem::new(ProblemCode::Invalid, error.to_string()),
        })
    }

    /// Waits until an agent that sleeps when it has nothing to do is there, for as long as it may take. That
    /// it is not is told by the stream that can't be opened.
    async fn come_up(&self, name: &AgentName, actor: &Actor) -> Result<(), Problem> {
        let mut events = self.core.ledger.subscribe();
        let end = Instant::now() + self.time_to_come_up(name);
        while self.rouse(name, actor).await? && Instant::now() < end {
            // Whoever missed some has the more reason to look.
            let told = async { while events.recv().await.is_ok_and(|event| event.agent.as_ref() != Some(name)) {} };
            let _ = timeout(LOOK_AGAIN, told).await;
        }
        Ok(())
    }

    /// Wakes an agent that is asleep. Answers whether an agent that sleeps when it has nothing to do is on its
    /// way, and not there yet.
    async fn rouse(&self, name: &AgentName, actor: &Actor) -> Result<bool, Problem> {
        let records = self.core.ledger.records();
        let inputs = self.core.inputs_with(&records).await;
        let planned = plan(&inputs);
        let Some(agent) = planned.agent(name).filter(|agent| may_sleep(agent)) else { return Ok(false) };
        let connected = inputs.sessions.get(name).is_some_and(|session| session.connected);
        // A machine that a step is about to take down is no place to begin anything.
        if connected && !records.operations.contains_key(name) {
            return Ok(awaits_configuration(agent));
        }
        if agent.rests == Some(Rest::Idle) {
            let changes = intent::awaken(&records, name, &actor.name);
            self.record(changes, Timestamp::now()).await?;
            self.core.wake();
            return Ok(true);
        }
        Ok(matches!(agent.sync, Sync::Drifted | Sync::Reconciling))
    }

    /// How long the driver of an agent may take, from going down to a runtime that is heard.
    fn time_to_come_up(&self, name: &AgentName) -> Duration {
        let records = self.core.ledger.records();
        let driver = records.claims.get(name).and_then(|claim| self.core.observers.get(&claim.driver));
        driver.map_or(Duration::ZERO, |observer| {
            let deadlines = observer.driver().capabilities().deadlines;
            deadlines.stop.get() + deadlines.start.get() + deadlines.connect.get()
        })
    }
}

fn check(target: &StreamTarget) -> Result<(), Problem> {
    let nothing = match target {
        StreamTarget::Run { run } if run.argv.first().is_none_or(String::is_empty) => "there is nothing to run",
        StreamTarget::Upload { path } | StreamTarget::Download { path } if path.is_empty() => "no path is named",
        StreamTarget::Connect { host, port } if host.is_empty() || *port == 0 => "no host and port are named",
        _ => return Ok(()),
    };
    Err(Problem::new(ProblemCode::Invalid, nothing))
}

fn may_sleep(agent: &AgentPlan) -> bool {
    agent.rests == Some(Rest::Idle) || agent.wanted.as_ref().is_some_and(|wanted| wanted.spec.idle.is_some())
}

/// Whether the runtime is about to be told what it works with: a process that began now would lack it.
fn awaits_configuration(agent: &AgentPlan) -> bool {
    let untold =
        |drift: &vm_agent_schemas::plan::Drift| drift.class == DriftClass::Provisioning && drift.cost == Cost::Live;
    let fails = |reason: &WaitsFor| matches!(reason, WaitsFor::Problem { .. });
    agent.sync != Sync::Blocked && agent.drift.iter().any(untold) && !agent.waits_for.iter().any(fails)
}

//! Instances, ours or not: what there is, and what is taken over or let go.

use vm_agent_drivers::DriverError;
use vm_agent_plan::Listing;
use vm_agent_schemas::api::{ChangeRequest, Changed, ImportRequest, InstanceInfo, Problem, ProblemCode};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Claim, Description, Instance};

use super::{Actor, Controller};
use crate::engine::HubCall;
use crate::engine::adopt::{self, Found};
use crate::observer::Observer;
use crate::reconciler::tell;

impl Controller {
    /// Every instance that the drivers see, or that one of them sees, with what can be told of it.
    ///
    /// # Errors
    /// When this controller does not have the driver, or it does not answer.
    pub async fn instances(&self, driver: Option<DriverName>) -> Result<Vec<InstanceInfo>, Problem> {
        let mut all = Vec::new();
        let observers = match driver {
            Some(driver) => vec![self.observer(driver)?],
            None => self.core.observers.values().collect(),
        };
        for observer in observers {
            for instance in self.seen(observer).await? {
                all.push(self.info(observer, instance).await);
            }
        }
        Ok(all)
    }

    /// Has an instance taken over that others made.
    ///
    /// # Errors
    /// When there is no such instance, when its driver takes none over, when it or the agent is not free, and when
    /// the store fails.
    pub async fn import(&self, agent: AgentName, request: ImportRequest, actor: &Actor) -> Result<Changed, Problem> {
        let ImportRequest { driver, instance, reason, dry_run } = request;
        let observer = self.observer(driver)?;
        let seen = self.seen(observer).await?;
        let Some(found) = seen.into_iter().find(|seen| seen.name == instance) else {
            return Err(Problem::new(ProblemCode::NotFound, format!("{driver} has no instance `{instance}`"))
                .remedy("see which there are: vm-agent export"));
        };
        let description = self.describe(observer, &found).await;
        let description = description.map_err(|error| Problem::new(ProblemCode::Conflict, error.to_string()))?;
        self.change(agent, reason.as_deref(), dry_run, actor, |records, agent, voice| {
            adopt::import(records, agent, Found { driver, instance: &found, description: &description }, voice)
        })
        .await
    }

    /// Lets an agent go, and leaves its instance as it is.
    ///
    /// # Errors
    /// When there is nothing of it, when the file declares it, and when the store fails.
    pub async fn release(&self, agent: AgentName, request: ChangeRequest, actor: &Actor) -> Result<Changed, Problem> {
        let (reason, dry_run) = (request.reason.as_deref(), request.dry_run);
        let name = agent.clone();
        let released = self.change(agent, reason, dry_run, actor, adopt::release).await?;
        if !dry_run {
            // Whoever spoke for it is nobody's runtime any more.
            tell(&self.core.hub, HubCall::Revoke(name));
        }
        Ok(released)
    }

    fn observer(&self, driver: DriverName) -> Result<&Observer, Problem> {
        self.core.observers.get(&driver).ok_or_else(|| {
            Problem::new(ProblemCode::NotFound, format!("this controller has no driver {driver}"))
                .remedy("see what it lacks: vm-agent doctor")
        })
    }

    /// What a driver sees now.
    async fn seen(&self, observer: &Observer) -> Result<Vec<Instance>, Problem> {
        let silent = |reason: String| {
            let reason = format!("driver {} does not answer: {reason}", observer.name());
            Problem::new(ProblemCode::Unavailable, reason)
        };
        let sight = observer.fresh().await.ok_or_else(|| silent("nobody looks any more".into()))?;
        match &sight.listing {
            Some(Listing::Seen(seen)) => Ok(seen.values().map(|observed| observed.instance.clone()).collect()),
            Some(Listing::Unanswered { reason, .. }) => Err(silent(reason.clone())),
            None => Err(silent("it has not been asked yet".into())),
        }
    }

    async fn describe(&self, observer: &Observer, instance: &Instance) -> Result<Description, DriverError> {
        let limit = observer.driver().capabilities().deadlines.list.get();
        let described = tokio::time::timeout(limit, observer.driver().describe(&instance.name)).await;
        described.unwrap_or_else(|_| {
            let reason = format!("it told nothing of instance `{}` within {} s", instance.name, limit.as_secs());
            Err(DriverError::Unavailable { driver: observer.name(), reason })
        })
    }

    async fn info(&self, observer: &Observer, instance: Instance) -> InstanceInfo {
        let records = self.core.ledger.records();
        let claim = adopt::owner(&records, observer.name(), &instance).cloned();
        drop(records);
        let (described, problem) = match &claim {
            Some(claim) => (of_claim(claim), None),
            None => match self.describe(observer, &instance).await {
                Ok(described) => (described, None),
                Err(error) => (Description::default(), Some(error.to_string())),
            },
        };
        let description = Description { sizes: instance.sizes.or(described.sizes), ..described };
        let Instance { name, state, .. } = instance;
        InstanceInfo { driver: observer.name(), name, state, agent: claim.map(|it| it.agent), description, problem }
    }
}

/// What we know of an instance of ours.
fn of_claim(claim: &Claim) -> Description {
    let birth = &claim.birth;
    Description { image: Some(birth.image.clone()), sizes: Some(birth.sizes), mounts: birth.mounts.clone() }
}

//! One agent as the plan finds it: what is wanted, what is seen, whose it is, and whether it is well.

use std::sync::Arc;
use std::time::Duration;

use vm_agent_schemas::fleet::{DeclaredAgent, DriverName, PowerState};
use vm_agent_schemas::ids::Life;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Backoff, Claim, InstanceState, Operation, Proof, Sizes, Standing};
use vm_agent_schemas::plan::Health;

use crate::fuse::after;
use crate::inputs::{DriverView, FileTask, Inputs, Listing, Mode, Observed, SessionSeen};
use crate::table::{Link, Seen, Under, Want};

/// Everything about one agent, side by side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub(crate) name: &'a AgentName,
    /// The effective spec; nothing for an agent that should not exist.
    pub(crate) wanted: Option<&'a Arc<DeclaredAgent>>,
    pub(crate) claim: Option<&'a Claim>,
    /// The driver, as resolved; nothing where none can be.
    pub(crate) driver: Option<DriverName>,
    /// The driver's view; nothing where this controller does not have the driver.
    pub(crate) view: Option<&'a DriverView>,
    pub(crate) observed: Option<&'a Observed>,
    pub(crate) operation: Option<&'a Operation>,
    /// The session of the present incarnation.
    pub(crate) session: Option<&'a SessionSeen>,
    pub(crate) tasks: &'a [FileTask],
    pub(crate) backoff: Option<&'a Backoff>,
    /// The controller's life, whose watch alone counts.
    life: Life,
    pub(crate) want: Want,
    pub(crate) seen: Seen,
    pub(crate) link: Link,
}

impl<'a> Situation<'a> {
    pub(crate) fn of(inputs: &'a Inputs, name: &'a AgentName, wanted: Option<&'a Arc<DeclaredAgent>>) -> Self {
        let claim = inputs.claims.get(name);
        let driver = resolve_driver(inputs, wanted, claim);
        let view = driver.and_then(|driver| inputs.drivers.get(&driver));
        let observed = view.and_then(|view| find_instance(inputs, view, name, claim));
        let session =
            inputs.sessions.get(name).filter(|session| claim.is_some_and(|c| c.incarnation == session.incarnation));
        Self {
            name,
            wanted,
            claim,
            driver,
            view,
            observed,
            operation: inputs.operation(name),
            session,
            tasks: inputs.tasks.get(name).map(Vec::as_slice).unwrap_or_default(),
            backoff: inputs.backoffs.get(name),
            life: inputs.life,
            want: want(inputs.mode, wanted),
            seen: see(view, claim, observed),
            link: link(inputs, name, view, observed, session),
        }
    }

    pub(crate) fn under(&self) -> Under {
        if self.operation.is_some() { Under::Way } else { Under::Nothing }
    }

    /// Whether the instance is proven to be the one that the claim speaks of.
    pub(crate) fn is_proven(&self) -> bool {
        let Some(claim) = self.claim else { return false };
        let read_back = self.observed.and_then(|o| o.instance.nonce.as_ref()) == Some(&claim.nonce);
        read_back
            || match claim.proof {
                Proof::Pending => false,
                Proof::Watched { life } => life == self.life,
                Proof::Confirmed => true,
            }
    }

    /// The sizes that the instance has.
    pub(crate) fn sizes(&self) -> Option<Sizes> {
        let claim = self.claim?;
        Some(self.observed.and_then(|o| o.instance.sizes).unwrap_or(claim.birth.sizes))
    }

    /// Whether tasks of the file, and whatever else needs a runtime, can be handed over now.
    pub(crate) fn is_reachable(&self) -> bool {
        self.seen == Seen::Running && self.link == Link::Live
    }

    /// Whether there can be nothing to do: nothing is claimed, and nothing wanted.
    pub(crate) fn is_settled(&self) -> bool {
        match self.want {
            Want::Absent => self.claim.is_none(),
            Want::Idle => self.claim.is_none() || matches!(self.seen, Seen::Absent | Seen::Foreign | Seen::Deleted),
            Want::Running | Want::Stopped => false,
        }
    }

    pub(crate) fn health(&self) -> Health {
        let making = self.operation.is_some_and(|operation| operation.action.brings_up());
        match self.seen {
            Seen::Unknown => Health::Unknown,
            _ if making => Health::Starting,
            Seen::Starting => Health::Starting,
            Seen::Running => match self.link {
                Link::Live if self.is_ailing() => Health::Degraded,
                Link::Live => Health::Healthy,
                Link::Awaited => Health::Starting,
                Link::Lost | Link::Unjoined => Health::Offline,
            },
            Seen::Absent | Seen::Foreign if self.backoff.is_some() => Health::Failed,
            Seen::Failed | Seen::Deleted => Health::Failed,
            Seen::Suspended => Health::Suspended,
            Seen::Absent | Seen::Foreign | Seen::Stopping | Seen::Stopped | Seen::ShutDown => Health::Stopped,
        }
    }

    fn is_ailing(&self) -> bool {
        self.session.is_some_and(|session| session.ailing) || self.failed_tasks().next().is_some()
    }

    /// Tasks of the present wording that did not succeed on the present machine.
    fn failed_tasks(&self) -> impl Iterator<Item = &FileTask> {
        let declared = self.wanted.map(|agent| &agent.spec.tasks);
        self.tasks.iter().filter(move |task| {
            task.outcome.as_ref().is_some_and(|outcome| !outcome.is_success())
                && self.claim.is_some_and(|claim| claim.id == task.claim)
                && declared.and_then(|tasks| tasks.get(&task.name)).is_some_and(|spec| spec.digest() == task.digest)
        })
    }
}

/// The driver of an agent: its claim's, once there is one; else as written; else the first of the
/// usual ones that is there.
fn resolve_driver(inputs: &Inputs, wanted: Option<&Arc<DeclaredAgent>>, claim: Option<&Claim>) -> Option<DriverName> {
    let written = wanted.and_then(|agent| agent.spec.driver);
    let usual = || DriverName::USUAL.into_iter().find(|driver| inputs.drivers.contains_key(driver));
    claim.map(|claim| claim.driver).or(written).or_else(usual)
}

fn find_instance<'a>(
    inputs: &Inputs,
    view: &'a DriverView,
    agent: &AgentName,
    claim: Option<&Claim>,
) -> Option<&'a Observed> {
    let Listing::Seen(instances) = &view.listing else { return None };
    match claim {
        Some(claim) => instances.get(&claim.instance),
        None if instances.is_empty() => None,
        None => instances.get(&inputs.fleet.name.instance_of(agent).ok()?),
    }
}

fn want(mode: Mode, wanted: Option<&Arc<DeclaredAgent>>) -> Want {
    match (mode, wanted) {
        (Mode::Up, Some(agent)) => match agent.spec.power {
            PowerState::Running => Want::Running,
            PowerState::Stopped => Want::Stopped,
        },
        (Mode::Down, _) => Want::Idle,
        (Mode::Up, None) | (Mode::Destroy, _) => Want::Absent,
    }
}

fn see(view: Option<&DriverView>, claim: Option<&Claim>, observed: Option<&Observed>) -> Seen {
    let answers = view.is_some_and(|view| matches!(view.listing, Listing::Seen(_)));
    let Some(observed) = observed else { return if answers { Seen::Absent } else { Seen::Unknown } };
    let instance = &observed.instance;
    match claim {
        Some(claim) if instance.nonce.as_ref().is_none_or(|nonce| *nonce == claim.nonce) => {
            // An instance that never came up yet did not go down by itself either.
            let standing = if claim.proof == Proof::Pending { Standing::Down } else { claim.standing };
            Seen::ours(instance.state, standing)
        }
        None if instance.state == InstanceState::Deleted => Seen::Deleted,
        Some(_) | None => Seen::Foreign,
    }
}

fn link(
    inputs: &Inputs,
    name: &AgentName,
    view: Option<&DriverView>,
    observed: Option<&Observed>,
    session: Option<&SessionSeen>,
) -> Link {
    let heard_within = |limit: Duration, since| after(since, limit) > inputs.now;
    match session {
        Some(session) if heard_within(inputs.silence, session.last_seen) => {
            if session.connected {
                Link::Live
            } else {
                Link::Awaited
            }
        }
        _ => {
            let limit = view.map_or(Duration::ZERO, |view| view.capabilities.deadlines.connect.get());
            // A session that was heard in this very run of the machine is late; one from before has
            // as long as a first one.
            let since = observed.map(|observed| observed.since);
            let silent = session.is_some_and(|s| s.connected && since.is_none_or(|since| s.last_seen >= since));
            match since {
                Some(since) if !silent && heard_within(limit, since) => Link::Awaited,
                _ if session.is_none() && inputs.unjoined.contains(name) => Link::Unjoined,
                _ => Link::Lost,
            }
        }
    }
}

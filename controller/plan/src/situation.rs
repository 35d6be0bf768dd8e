//! One agent as the plan finds it: what is wanted, what is seen, whose it is, and whether it is well.

use std::sync::Arc;
use std::time::Duration;

use vm_agent_schemas::fleet::{DeclaredAgent, DriftField, DriftPolicy, DriverName, PowerState};
use vm_agent_schemas::names::{AgentName, SnapshotName};
use vm_agent_schemas::observe::{
    Action, Backoff, Capabilities, Claim, InstanceState, MountSupport, Operation, Proof, Sizes, Standing,
};
use vm_agent_schemas::plan::{Disturbance, Health, Rest, StepAction, WaitsFor};

use crate::clock::{after, counted_from};
use crate::effective::Effective;
use crate::inputs::{DriverView, FileTask, Inputs, Listing, Mode, Observed, SessionSeen};
use crate::rest::rest_of;
use crate::standing::{Outage, Standing as TaskStanding, outages, standings};
use crate::table::{Link, Seen, Under, Want};

/// Everything about one agent, side by side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub(crate) inputs: &'a Inputs,
    pub(crate) name: &'a AgentName,
    /// The effective spec; nothing for an agent that should not exist.
    pub(crate) wanted: Option<&'a Arc<DeclaredAgent>>,
    /// What a person said of its power, beside the file.
    pub(crate) told: Option<PowerState>,
    /// Whether a person said that this very agent should go.
    pub(crate) dismissed: bool,
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
    /// The agents whose machines are to begin as this one was with a snapshot.
    pub(crate) clones: &'a [(AgentName, SnapshotName)],
    pub(crate) backoff: Option<&'a Backoff>,
    pub(crate) want: Want,
    /// Why the machine is to be down although the spec says that it should run.
    pub(crate) rests: Option<Rest>,
    pub(crate) seen: Seen,
    pub(crate) link: Link,
}

impl<'a> Situation<'a> {
    pub(crate) fn of(inputs: &'a Inputs, name: &'a AgentName, effective: &'a Effective) -> Self {
        let wanted = effective.wanted.get(name);
        let claim = inputs.claims.get(name);
        // An agent that went because a person said so has nothing that could be looked for.
        let concerned = wanted.is_some() || claim.is_some();
        let driver = resolve_driver(inputs, wanted, claim).filter(|_| concerned);
        let view = driver.and_then(|driver| inputs.drivers.get(&driver));
        let observed = view.and_then(|view| find_instance(inputs, view, name, claim));
        let session =
            inputs.sessions.get(name).filter(|session| claim.is_some_and(|c| c.incarnation == session.incarnation));
        let mut situation = Self {
            inputs,
            name,
            wanted,
            told: effective.told.get(name).copied(),
            dismissed: inputs.mode == Mode::Destroy || effective.is_dismissed(name),
            claim,
            driver,
            view,
            observed,
            operation: inputs.operation(name),
            session,
            tasks: inputs.tasks.get(name).map(Vec::as_slice).unwrap_or_default(),
            clones: effective.clones.get(name).map(Vec::as_slice).unwrap_or_default(),
            backoff: inputs.backoffs.get(name),
            want: want(inputs.mode, wanted),
            rests: None,
            seen: if concerned { see(inputs, view, claim, observed) } else { Seen::Absent },
            link: link(inputs, name, view, observed, session),
        };
        situation.rests = rest_of(&situation);
        if situation.rests.is_some() {
            situation.want = Want::Stopped;
        }
        situation
    }

    /// What is wanted, leaving aside that its machine may rest.
    pub(crate) fn want_of_spec(&self) -> Want {
        want(self.inputs.mode, self.wanted)
    }

    /// What to do about drift of that kind.
    pub(crate) fn policy(&self, field: DriftField) -> DriftPolicy {
        self.wanted.and_then(|agent| agent.spec.drift.get(&field)).copied().unwrap_or_default()
    }

    /// Whether the machine is up, or coming up.
    pub(crate) const fn runs(&self) -> bool {
        matches!(self.seen, Seen::Starting | Seen::Running)
    }

    /// What a step would end in a machine that runs.
    pub(crate) fn disturbance(&self, action: &StepAction, drains: bool) -> Option<Disturbance> {
        let takes_down = matches!(action, StepAction::Stop | StepAction::Suspend | StepAction::Destroy);
        let (tasks, sessions) = self.session.map_or((0, 0), |session| (session.running, session.streams));
        (takes_down && self.runs()).then_some(Disturbance { tasks, drains, sessions })
    }

    /// What a step waits for that would end what runs in the machine, and that nobody asked for now: the
    /// tasks under way end first. How long that takes they say themselves.
    pub(crate) fn drain(&self) -> Option<WaitsFor> {
        let session = self.session.filter(|session| session.running > 0 && self.is_reachable())?;
        Some(WaitsFor::Drain { tasks: session.running })
    }

    /// What the spec asks for that the agent's driver can't do.
    pub(crate) fn unsupported(&self) -> Option<&'static str> {
        let (agent, can) = (self.wanted?, &self.view?.capabilities);
        let mounts = self.policy(DriftField::Mounts) == DriftPolicy::Correct;
        let (any, read_only) = (!agent.spec.mounts.is_empty(), agent.spec.mounts.values().any(|mount| !mount.writable));
        // How a machine began that is there is nobody's concern any more.
        let warm = agent.spec.warm && agent.clone_of.is_none() && self.claim.is_none();
        match () {
            () if mounts && any && can.mounts == MountSupport::None => Some("mount folders of the host"),
            () if mounts && read_only && can.mounts == MountSupport::Writable => {
                Some("keep a machine from writing into a folder of the host, unless it says `writable: true`")
            }
            () if warm && !can.warm => Some("start machines warm"),
            () => None,
        }
    }

    pub(crate) fn under(&self) -> Under {
        if self.operation.is_some() { Under::Way } else { Under::Nothing }
    }

    /// Whether the instance is proven to be the one that the claim speaks of.
    pub(crate) fn is_proven(&self) -> bool {
        let Some(claim) = self.claim else { return false };
        let read_back = self.observed.and_then(|o| o.instance.nonce.as_ref()).is_some_and(|nonce| claim.is_of(nonce));
        read_back
            || match claim.proof {
                Proof::Pending => false,
                Proof::Watched { life } => life == self.inputs.life,
                Proof::Confirmed => true,
            }
    }

    /// Whether nobody has ever seen the instance whole, so that it may be what a create that went wrong
    /// has left behind.
    pub(crate) fn is_half_made(&self) -> bool {
        self.claim.is_some_and(|claim| claim.proof == Proof::Pending) && !self.is_proven() && self.session.is_none()
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
        let action = self.operation.map(|operation| operation.action);
        let making = action.is_some_and(Action::brings_up);
        let health = match self.seen {
            Seen::Unknown => Health::Unknown,
            _ if making => Health::Starting,
            Seen::Starting => Health::Starting,
            Seen::Running => match self.link {
                Link::Live => self.health_inside(),
                Link::Awaited => Health::Starting,
                Link::Lost | Link::Unjoined => Health::Offline,
            },
            Seen::Absent | Seen::Foreign if self.backoff.is_some() => Health::Failed,
            Seen::Failed | Seen::Deleted => Health::Failed,
            Seen::Suspended => Health::Suspended,
            Seen::Stopped | Seen::ShutDown if self.rests == Some(Rest::Idle) => Health::Suspended,
            Seen::Absent | Seen::Foreign | Seen::Stopping | Seen::Stopped | Seen::ShutDown => Health::Stopped,
        };
        let going_down = matches!(action, Some(Action::Stop | Action::Suspend | Action::Destroy));
        if going_down && health == Health::Starting { Health::Stopped } else { health }
    }

    /// Whether all is well in a machine whose runtime is heard. What the file says to ignore does not
    /// count.
    fn health_inside(&self) -> Health {
        let counts = |field| self.policy(field) != DriftPolicy::Ignore;
        let session = self.session.filter(|_| counts(DriftField::Provisioning));
        let problems = session.is_some_and(|session| !session.problems.is_empty());
        let out = |of: Outage| session.is_some() && outages(self).any(|(_, outage, _)| outage == of);
        let failed = || standings(self).any(|(_, standing)| matches!(standing, TaskStanding::Failed(..)));
        if self.session.is_some_and(|session| session.ailing)
            || problems
            || out(Outage::Failed)
            || (counts(DriftField::Tasks) && failed())
        {
            Health::Degraded
        } else if out(Outage::Starting) {
            Health::Starting
        } else {
            Health::Healthy
        }
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

fn see(inputs: &Inputs, view: Option<&DriverView>, claim: Option<&Claim>, observed: Option<&Observed>) -> Seen {
    let answers = view.is_some_and(|view| matches!(view.listing, Listing::Seen(_)));
    let Some(observed) = observed else { return if answers { Seen::Absent } else { Seen::Unknown } };
    let instance = &observed.instance;
    match claim {
        Some(claim) if instance.nonce.as_ref().is_none_or(|nonce| claim.is_of(nonce)) => {
            // An instance that never came up yet did not go down by itself either.
            let standing = if claim.proof == Proof::Pending { Standing::Down } else { claim.standing };
            let limit = view.map_or(Duration::MAX, |view| transition(&view.capabilities));
            match instance.state {
                // It does not get on: whatever made or stopped it ended half-way.
                InstanceState::Starting | InstanceState::Stopping
                    if after(counted_from(inputs, observed.since), limit) <= inputs.now =>
                {
                    Seen::Stopped
                }
                state => Seen::ours(state, standing),
            }
        }
        None if instance.state == InstanceState::Deleted => Seen::Deleted,
        Some(_) | None => Seen::Foreign,
    }
}

/// How long an instance may be on its way up or down when no step is under way.
pub(crate) fn transition(capabilities: &Capabilities) -> Duration {
    let deadlines = &capabilities.deadlines;
    deadlines.create.max(deadlines.start).max(deadlines.stop).get()
}

fn link(
    inputs: &Inputs,
    name: &AgentName,
    view: Option<&DriverView>,
    observed: Option<&Observed>,
    session: Option<&SessionSeen>,
) -> Link {
    let heard_within = |limit: Duration, since| after(counted_from(inputs, since), limit) > inputs.now;
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
                // Also one that was heard, and whose key was revoked since.
                _ if inputs.unjoined.contains(name) => Link::Unjoined,
                _ => Link::Lost,
            }
        }
    }
}

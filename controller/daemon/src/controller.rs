//! The controller as its doors see it: every question and every command that there is.

mod credentials;
mod exec;
mod file;
mod instances;
mod isolation;
mod messages;
mod snapshots;
mod tasks;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::broadcast;
use vm_agent_plan::{Inputs, plan};
use vm_agent_schemas::api::{
    AgentDrift, AgentView, Approval, ApproveRequest, ChangeRequest, Changed, ControllerStatus, CreateRequest,
    DownRequest, FileState, Problem, ProblemCode, Resumable, Stats,
};
use vm_agent_schemas::credential::Role;
use vm_agent_schemas::event::Event;
use vm_agent_schemas::fleet::{PowerState, Reconcile};
use vm_agent_schemas::intent::{Override, OverridePath};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{ApprovalRequest, Plan};
use vm_agent_store::{self as store, StoreError};

use crate::core::Core;
use crate::engine::intent::{self, Intent, Voice};
use crate::engine::records::{Change, Records};
use crate::engine::tasks::is_known;
use crate::metrics::Now;
use crate::reconciler::Chain;
use crate::view::{self, Moment};

/// Most events that one answer carries.
const EVENTS_MAX: usize = 10_000;

/// Who asks: for overrides' authors, events and the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The name of the person or the token.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

/// A running controller. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    core: Arc<Core>,
    #[cfg(test)]
    _alive: Option<Arc<(crate::Running, tempfile::TempDir)>>,
}

impl Controller {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            #[cfg(test)]
            _alive: None,
        }
    }

    /// The controller itself.
    ///
    /// # Errors
    /// None so far; doors treat all answers alike.
    pub async fn status(&self) -> Result<ControllerStatus, Problem> {
        let records = self.core.ledger.records();
        Ok(self.look(|moment| moment.controller(&records)).await)
    }

    /// Counts since the controller started.
    ///
    /// # Errors
    /// None so far.
    pub async fn stats(&self) -> Result<Stats, Problem> {
        Ok(self.look(|moment| moment.stats()).await)
    }

    /// Everything counted, in Prometheus' text format.
    ///
    /// # Errors
    /// When the text can't be made.
    pub async fn metrics(&self) -> Result<String, Problem> {
        let records = self.core.ledger.records();
        let overrides: Vec<&'static str> = records.overrides.iter().map(|entry| entry.change.path().as_str()).collect();
        let file_valid = !matches!(self.core.watch.status(&records).state, FileState::Invalid | FileState::Missing);
        let text = self.look(|moment| {
            moment.core.metrics.text(&Now {
                plan: moment.plan,
                overrides: &overrides,
                file_valid,
                sessions: moment.sessions,
                closings: moment.core.hub.closings(),
                pooled: records.pooled.len(),
                store: moment.core.ledger.store().stats(),
            })
        });
        text.await.map_err(|error| internal(&error))
    }

    /// Counts a request that came without a token that works.
    pub(crate) fn turned_away(&self) {
        self.core.metrics.turned_away();
    }

    /// All agents.
    ///
    /// # Errors
    /// None so far.
    pub async fn agents(&self) -> Result<Vec<AgentView>, Problem> {
        Ok(self.look(|moment| moment.plan.agents.iter().map(|agent| moment.agent(agent)).collect()).await)
    }

    /// One agent.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn agent(&self, name: &AgentName) -> Result<AgentView, Problem> {
        let view = self.look(|moment| moment.plan.agent(name).map(|agent| moment.agent(agent))).await;
        view.ok_or_else(|| intent::unknown(name))
    }

    /// Each agent that is not as wanted.
    ///
    /// # Errors
    /// None so far.
    pub async fn drift(&self) -> Result<Vec<AgentDrift>, Problem> {
        Ok(self.look(|moment| view::drift(moment.plan)).await)
    }

    /// Makes an agent beside the file.
    ///
    /// # Errors
    /// When the name or the spec is wrong, when there is another agent of that name, and when the
    /// store fails.
    pub async fn create(&self, name: AgentName, request: CreateRequest, actor: &Actor) -> Result<Changed, Problem> {
        let reason = request.reason.clone();
        let dry_run = request.dry_run;
        self.change(name, reason.as_deref(), dry_run, actor, |records, name, voice| {
            intent::create(records, name, &request, voice)
        })
        .await
    }

    /// Lets an agent go, though the file may declare it.
    ///
    /// # Errors
    /// When there is no such agent, when it is protected, and when the store fails.
    pub async fn destroy(&self, name: AgentName, request: ChangeRequest, actor: &Actor) -> Result<Changed, Problem> {
        self.change(name, request.reason.as_deref(), request.dry_run, actor, intent::destroy).await
    }

    /// Lets an agent run, though the file may say otherwise.
    ///
    /// # Errors
    /// When there is no such agent, and when the store fails.
    pub async fn start(&self, name: AgentName, request: ChangeRequest, actor: &Actor) -> Result<Changed, Problem> {
        self.set_power(name, PowerState::Running, &request, actor).await
    }

    /// Lets an agent rest, though the file may say otherwise.
    ///
    /// # Errors
    /// When there is no such agent, and when the store fails.
    pub async fn stop(&self, name: AgentName, request: ChangeRequest, actor: &Actor) -> Result<Changed, Problem> {
        self.set_power(name, PowerState::Stopped, &request, actor).await
    }

    async fn set_power(
        &self,
        name: AgentName,
        wanted: PowerState,
        request: &ChangeRequest,
        actor: &Actor,
    ) -> Result<Changed, Problem> {
        self.change(name, request.reason.as_deref(), request.dry_run, actor, |records, name, voice| {
            intent::set_power(records, name, wanted, request, voice)
        })
        .await
    }

    /// Decides what a command comes to, writes it unless this is a dry run, and shows the plan.
    async fn change(
        &self,
        agent: AgentName,
        reason: Option<&str>,
        dry_run: bool,
        actor: &Actor,
        decide: impl FnOnce(&Records, &AgentName, Voice<'_>) -> Result<Intent, Problem>,
    ) -> Result<Changed, Problem> {
        let now = Timestamp::now();
        let records = self.core.ledger.records();
        intent::refuse_while_down(&records)?;
        let voice = Voice { author: &actor.name, reason, now };
        let Intent { changes, overridden } = decide(&records, &agent, voice)?;
        let plan = if dry_run {
            let mut hypothetical = records.as_ref().clone();
            changes.into_iter().for_each(|change| hypothetical.apply(change));
            self.plan_with(&hypothetical).await
        } else {
            self.record(changes, now).await?;
            self.core.wake();
            self.plan_with(&self.core.ledger.records()).await
        };
        Ok(Changed { agent, overridden, plan, dry_run })
    }

    /// The overrides in force.
    ///
    /// # Errors
    /// None so far.
    pub async fn overrides(&self) -> Result<Vec<Override>, Problem> {
        Ok(self.core.ledger.records().overrides.clone())
    }

    /// Ends an override before its time.
    ///
    /// # Errors
    /// When there is no such override, and when the store fails.
    pub async fn clear_override(
        &self,
        name: AgentName,
        path: OverridePath,
        request: ChangeRequest,
        actor: &Actor,
    ) -> Result<Changed, Problem> {
        self.change(name, request.reason.as_deref(), request.dry_run, actor, |records, name, voice| {
            intent::clear_override(records, name, path, voice)
        })
        .await
    }

    /// Gives an override another time to end, counted from now.
    ///
    /// # Errors
    /// When there is no such override, when no time is given, and when the store fails.
    pub async fn extend_override(
        &self,
        name: AgentName,
        path: OverridePath,
        request: ChangeRequest,
        actor: &Actor,
    ) -> Result<Changed, Problem> {
        self.change(name, request.reason.as_deref(), request.dry_run, actor, |records, name, voice| {
            intent::extend_override(records, name, path, &request, voice)
        })
        .await
    }

    /// Lets an agent be: it is looked at and planned for, and not touched.
    ///
    /// # Errors
    /// When there is no such agent, and when the store fails.
    pub async fn pause(&self, name: AgentName, request: ChangeRequest, actor: &Actor) -> Result<Changed, Problem> {
        self.set_reconcile(name, Reconcile::Paused, &request, actor).await
    }

    /// Looks after an agent again.
    ///
    /// # Errors
    /// When there is no such agent, and when the store fails.
    pub async fn resume(&self, name: AgentName, request: ChangeRequest, actor: &Actor) -> Result<Changed, Problem> {
        self.set_reconcile(name, Reconcile::Auto, &request, actor).await
    }

    async fn set_reconcile(
        &self,
        name: AgentName,
        wanted: Reconcile,
        request: &ChangeRequest,
        actor: &Actor,
    ) -> Result<Changed, Problem> {
        self.change(name, request.reason.as_deref(), request.dry_run, actor, |records, name, voice| {
            intent::set_reconcile(records, name, wanted, request, voice)
        })
        .await
    }

    /// Lets the whole fleet be, or looks after it again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn pause_fleet(&self, pause: bool, request: ChangeRequest, actor: &Actor) -> Result<Resumable, Problem> {
        let now = Timestamp::now();
        let records = self.core.ledger.records();
        let voice = Voice { author: &actor.name, reason: request.reason.as_deref(), now };
        let (changes, pause) = intent::pause_fleet(&records, pause, &request, voice);
        if !request.dry_run {
            self.record(changes, now).await?;
            self.core.wake();
        }
        Ok(Resumable { pause })
    }

    /// What waits for a person's yes.
    ///
    /// # Errors
    /// None so far.
    pub async fn approvals(&self) -> Result<Vec<Approval>, Problem> {
        let held = self.held();
        let of_agents = self.waiting().await.into_iter().map(Approval::from);
        Ok(held.iter().map(Approval::from).chain(of_agents).collect())
    }

    async fn waiting(&self) -> Vec<ApprovalRequest> {
        self.look(|moment| moment.plan.approvals.clone()).await
    }

    /// Says yes to one thing that waits for it, named by the beginning of its id.
    ///
    /// # Errors
    /// When nothing, or more than one thing, that waits has an id that begins so, and when the store
    /// fails.
    pub async fn approve(&self, id: &str, request: ApproveRequest, actor: &Actor) -> Result<Approval, Problem> {
        let mut waiting = self.waiting().await;
        waiting.retain(|approval| approval.id.as_str().starts_with(id));
        let held = self.held().filter(|held| held.id.as_str().starts_with(id));
        if let (Some(held), []) = (&held, waiting.as_slice()) {
            return self.approve_file(held.clone(), request.dry_run, actor).await;
        }
        let ([approval], None) = (waiting.as_slice(), &held) else {
            let count = waiting.len() + usize::from(held.is_some());
            let reason = match count {
                0 => format!("nothing waits for an approval with the id {id}"),
                _ => format!("{count} things wait for an approval with an id that begins with {id}"),
            };
            let code = if count == 0 { ProblemCode::NotFound } else { ProblemCode::Conflict };
            return Err(Problem::new(code, reason).remedy("see what waits: vm-agent approvals"));
        };
        if !request.dry_run {
            let changes = intent::approve(approval, &actor.name).into();
            self.record(changes, Timestamp::now()).await?;
            self.core.wake();
        }
        Ok(approval.clone().into())
    }

    /// Begins to take the fleet down, and shows the plan for that. The controller follows once every
    /// machine is stopped, or deleted where that was asked for.
    ///
    /// # Errors
    /// When machines are to be deleted and one of them is protected, and when the store fails.
    pub async fn down(&self, request: DownRequest, actor: &Actor) -> Result<Plan, Problem> {
        let mode = intent::down(&self.core.ledger.records(), request.destroy)?;
        let inputs = Inputs { mode, ..self.core.inputs().await };
        let plan = plan(&inputs);
        if !request.dry_run {
            tracing::info!(actor = actor.name, destroy = request.destroy, "The fleet is taken down");
            let changes = intent::go_down(&self.core.ledger.records(), mode, &actor.name);
            self.record(changes, inputs.now).await?;
            self.core.wake();
        }
        Ok(plan)
    }

    /// Events after `since`, of all or of one agent, oldest first, at most `limit`; without `since` the latest `limit`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn events(&self, since: Option<u64>, of: Option<AgentName>, limit: usize) -> Result<Vec<Event>, Problem> {
        let limit = u32::try_from(limit.min(EVENTS_MAX)).unwrap_or(u32::MAX);
        self.read(move |conn| match since {
            Some(seq) => store::events::since(conn, seq, of.as_ref(), limit),
            None => store::events::latest(conn, of.as_ref(), limit),
        })
        .await
    }

    /// Events from now on. Subscribe first, then read [`events`](Self::events), and drop what comes
    /// twice by `seq`.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.core.ledger.subscribe()
    }

    /// The last `tail` lines of an agent's log, of those that came at a time or later.
    ///
    /// # Errors
    /// When there is no such agent, or its log can't be read.
    pub async fn log(&self, name: &AgentName, tail: usize, since: Option<Timestamp>) -> Result<Vec<String>, Problem> {
        self.known(name)?;
        let (logs, agent) = (self.core.logs.clone(), name.clone());
        let read = tokio::task::spawn_blocking(move || logs.tail(&agent, tail, since)).await;
        read.map_err(|error| internal(&error))?.map_err(|error| internal(&error))
    }

    /// Lines of an agent's log from now on.
    ///
    /// # Errors
    /// When there is no such agent, or its log can't be opened.
    pub fn follow_log(&self, name: &AgentName) -> Result<broadcast::Receiver<String>, Problem> {
        self.known(name)?;
        self.core.logs.follow(name).map_err(|error| internal(&error))
    }

    /// Shows a moment of the controller to a view.
    async fn look<T>(&self, view: impl FnOnce(&Moment<'_>) -> T) -> T {
        let inputs = self.core.inputs().await;
        let sessions = self.core.hub.sessions().await;
        let plan = plan(&inputs);
        view(&Moment { core: &self.core, inputs: &inputs, plan: &plan, sessions: &sessions })
    }

    async fn plan_with(&self, records: &Records) -> Plan {
        plan(&self.core.inputs_with(records).await)
    }

    fn known(&self, name: &AgentName) -> Result<(), Problem> {
        let records = self.core.ledger.records();
        let known = is_known(&records, name, Timestamp::now());
        known.then_some(()).ok_or_else(|| intent::missing(&records, name))
    }

    /// That there is or was such an agent: one that the file declares may have been destroyed.
    fn known_or_gone(&self, name: &AgentName) -> Result<(), Problem> {
        let declared = self.core.ledger.records().fleet.agents.contains_key(name);
        if declared { Ok(()) } else { self.known(name) }
    }

    async fn record(&self, changes: Vec<Change>, now: Timestamp) -> Result<(), Problem> {
        self.core.ledger.record(changes, now).await.map_err(|error| internal(&error))
    }

    async fn read<T, F>(&self, job: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.core.ledger.store().read(job).await.map_err(|error| internal(&error))
    }

    async fn write<T, F>(&self, job: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.core.ledger.store().write(job).await.map_err(|error| internal(&error))
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(ProblemCode::Internal, Chain(error).to_string())
}

#[cfg(test)]
impl Controller {
    /// What it is made of.
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// A controller on a folder of its own, with a driver that only pretends.
    pub(crate) async fn for_tests() -> Self {
        use vm_agent_drivers::fake::Fake;
        use vm_agent_schemas::fleet::{DriverName, HubSettings};
        use vm_agent_schemas::net::Listen;

        let folder = tempfile::tempdir().expect("a folder");
        let free = Some(Listen::At(([127, 0, 0, 1], 0).into()));
        let hub = HubSettings { listen: free, api_listen: free, dashboard_listen: free, ..HubSettings::default() };
        let config = crate::Config {
            state_dir: folder.path().join("state"),
            hub,
            fleet: None,
            up: false,
            expects_file: false,
            watch: true,
            host: None,
        };
        let fake = Fake::new(DriverName::Qemu, Fake::capabilities_default());
        let running = crate::Running::start(config, vec![Arc::new(fake)]).await.expect("a controller");
        let controller = running.controller().clone();
        Self { _alive: Some(Arc::new((running, folder))), ..controller }
    }
}

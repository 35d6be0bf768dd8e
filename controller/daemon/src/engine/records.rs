//! What the controller knows and must not forget, and each change of it. Pure data: how it gets to the
//! disk and back is [`disk`](crate::disk)'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use vm_agent_hub::Record;
use vm_agent_plan::{FileTask, Inputs, Learnt, Mode, Shared, note_run};
use vm_agent_schemas::api::FleetSource;
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::event::NewEvent;
use vm_agent_schemas::fleet::Fleet;
use vm_agent_schemas::ids::{ClaimId, Digest, Incarnation, Life, Revision, TaskId};
use vm_agent_schemas::intent::{Override, OverridePath, Pause};
use vm_agent_schemas::names::{AgentName, FleetName, SnapshotName};
use vm_agent_schemas::observe::{Backoff, Claim, Operation};
use vm_agent_schemas::plan::{ApprovalRequest, Fuse};
use vm_agent_schemas::selector::Selector;
use vm_agent_schemas::snapshot::{Errand, Snapshot};
use vm_agent_schemas::task::{Task, TaskSource};

use super::file::Watched;

/// The fuse of a fleet whose fuse never blew. It is the same at any time, as plans are that show it.
pub const NEVER_BLOWN: Fuse = Fuse::Closed { since: Timestamp::UNIX_EPOCH };

/// Everything that survives, as the last change left it.
#[derive(Debug, Clone)]
pub struct Records {
    /// The controller's life.
    pub life: Life,
    /// How often people have said something in this life.
    pub said: u64,
    /// The file spec.
    pub fleet: Arc<Fleet>,
    /// The accepted fleet file.
    pub file: Option<AcceptedFile>,
    /// What is kept of the file on the disk.
    pub watched: Watched,
    /// The fleet that the state folder belongs to, once that is known.
    pub owner: Option<FleetName>,
    /// What people said beside the file.
    pub overrides: Vec<Override>,
    /// What is ours.
    pub claims: Shared<BTreeMap<AgentName, Claim>>,
    /// Who may speak as which agent.
    pub credentials: Shared<BTreeMap<AgentName, Credential>>,
    /// What is under way.
    pub operations: BTreeMap<AgentName, Operation>,
    /// The tasks of the file that were ever accepted.
    pub tasks: Shared<BTreeMap<AgentName, Vec<FileTask>>>,
    /// Tasks by hand that are not over, by the agents that do them.
    pub work: BTreeMap<AgentName, BTreeSet<TaskId>>,
    /// Tasks of a pool that are not over and have no agent.
    pub pooled: BTreeMap<TaskId, Selector>,
    /// The snapshots of each agent's machine.
    pub snapshots: Shared<BTreeMap<AgentName, BTreeMap<SnapshotName, Snapshot>>>,
    /// What is to be done with each agent's snapshots and is not over, in order.
    pub errands: BTreeMap<AgentName, Vec<Errand>>,
    /// What people said yes to, and the agent that each yes is about.
    pub approvals: BTreeMap<Digest, AgentName>,
    /// The latest incarnation of every name that ever had a claim.
    pub incarnations: Shared<BTreeMap<AgentName, Incarnation>>,
    /// Whether the fleet is to run at all.
    pub mode: Mode,
    /// What failed, and when it may be tried again.
    pub backoffs: BTreeMap<AgentName, Backoff>,
    /// The pause of the whole fleet, if somebody paused it.
    pub pause: Option<Pause>,
    /// The fuse.
    pub fuse: Fuse,
}

/// The accepted fleet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedFile {
    /// Its number.
    pub revision: Revision,
    /// What it says, and where it was.
    pub source: FleetSource,
    /// The digest by which two files are the same.
    pub digest: Digest,
    /// Who applied it, or that the watcher did.
    pub author: String,
    /// When it was accepted.
    pub at: Timestamp,
}

/// One change of the records.
#[derive(Debug, Clone)]
pub enum Change {
    /// Write a claim.
    Claim(Box<Claim>),
    /// Learn something of an instance; of another claim than the one that it is about nothing.
    Learnt(AgentName, Learnt),
    /// Drop a claim, with the agent's credential.
    Unclaim(AgentName),
    /// Write a credential.
    Credential(Box<Credential>),
    /// Begin an operation.
    Open(Operation),
    /// End an operation.
    Close(Operation, String),
    /// Write an override.
    Override(Box<Override>),
    /// Drop an override.
    DropOverride(AgentName, OverridePath),
    /// Note a failure.
    Backoff(Backoff),
    /// Forget failures.
    DropBackoff(AgentName),
    /// Take note of a snapshot.
    Snapshot(Box<Snapshot>),
    /// A snapshot is no more.
    DropSnapshot(AgentName, SnapshotName),
    /// Write what is to be done with snapshots: anew, or how far it is, or how it ended.
    Errand(Box<Errand>),
    /// Note a yes.
    Approve(ApprovalRequest, String),
    /// Forget a yes.
    DropApproval(Digest),
    /// Accept a task.
    Task(Box<Task>),
    /// Let a task be a dead letter no more.
    DropDead(TaskId),
    /// Set the fuse.
    Fuse(Fuse),
    /// Take the fleet down, or up again.
    Mode(Mode),
    /// Pause the fleet, or resume it.
    Pause(Option<Pause>),
    /// Keep this of the file on the disk.
    Watched(Watched),
    /// Tell what happened.
    Event(NewEvent),
}

impl Change {
    /// Whether it is of what people say, and so of what may be done at all.
    #[must_use]
    pub const fn is_said(&self) -> bool {
        matches!(self, Self::Override(_) | Self::DropOverride(..) | Self::Approve(..) | Self::Mode(_) | Self::Pause(_))
    }
}

/// A fleet file to be accepted, read and resolved.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// What it says, and where it is.
    pub source: FleetSource,
    /// What that comes to.
    pub fleet: Fleet,
    /// Who applied it, or that the watcher did.
    pub author: String,
    /// What it changes, in a sentence.
    pub summary: String,
}

impl NewFile {
    /// The digest by which two files are the same.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.fleet.digest.clone().unwrap_or_else(|| Digest::of_json(&self.source.files))
    }
}

impl Records {
    /// The records of a controller that has this fleet, and nothing else yet.
    #[must_use]
    pub fn empty(fleet: Fleet) -> Self {
        Self {
            life: Life(1),
            said: 0,
            fleet: Arc::new(fleet),
            file: None,
            watched: Watched::default(),
            owner: None,
            overrides: Vec::new(),
            claims: Shared::default(),
            credentials: Shared::default(),
            operations: BTreeMap::new(),
            tasks: Shared::default(),
            work: BTreeMap::new(),
            pooled: BTreeMap::new(),
            snapshots: Shared::default(),
            errands: BTreeMap::new(),
            approvals: BTreeMap::new(),
            incarnations: Shared::default(),
            mode: Mode::Up,
            backoffs: BTreeMap::new(),
            pause: None,
            fuse: NEVER_BLOWN,
        }
    }

    /// What a plan is made from, as far as the records know it: nothing of what is seen now.
    #[must_use]
    pub fn inputs(&self, now: Timestamp) -> Inputs {
        Inputs {
            fleet: Arc::clone(&self.fleet),
            revision: self.file.as_ref().map(|file| file.revision),
            accepted_at: self.file.as_ref().map(|file| file.at),
            overrides: self.overrides.clone(),
            claims: self.claims.clone(),
            operations: self.operations.clone(),
            tasks: self.tasks.clone(),
            work: self.work.keys().cloned().collect(),
            snapshots: self.snapshots.clone(),
            errands: self.errands.clone(),
            approvals: self.approvals.clone(),
            unjoined: self.unjoined(now),
            joined: self.joined(),
            mode: self.mode,
            backoffs: self.backoffs.clone(),
            fuse: self.fuse.clone(),
            pause: self.pause.clone(),
            said: self.said,
            life: self.life,
            ..Inputs::empty(now)
        }
    }

    /// Agents that no runtime has joined for, and none can any more.
    fn unjoined(&self, now: Timestamp) -> BTreeSet<AgentName> {
        let closed = |credential: &&Credential| {
            credential.binding.is_none() && credential.join.as_ref().is_none_or(|join| join.expires_at <= now)
        };
        self.credentials.values().filter(closed).map(|credential| credential.agent.clone()).collect()
    }

    /// Agents that a runtime has joined for, in the present life of their machine.
    fn joined(&self) -> BTreeSet<AgentName> {
        let joined = self.credentials.values().filter(|credential| {
            let claim = self.claims.get(&credential.agent);
            let fits = |claim: &Claim| claim.incarnation == credential.incarnation && claim.nonce == credential.nonce;
            credential.binding.is_some() && claim.is_some_and(fits)
        });
        joined.map(|credential| credential.agent.clone()).collect()
    }

    /// The claims with the protection that a file gives their agents: it holds from the file's
    /// acceptance on, also when the next file comes before the next pass.
    #[must_use]
    pub fn protections(&self, fleet: &Fleet) -> Vec<Change> {
        let told = |claim: &&Claim| fleet.agents.get(&claim.agent).is_some_and(|it| it.spec.protect != claim.protect);
        let change = |claim: &Claim| Change::Claim(Box::new(Claim { protect: !claim.protect, ..claim.clone() }));
        self.claims.values().filter(told).map(change).collect()
    }

    /// The records once a fleet file is accepted as that revision.
    pub fn accept(&mut self, new: NewFile, revision: Revision, now: Timestamp) {
        self.said += 1;
        let at = self.file.as_ref().filter(|file| file.revision == revision).map_or(now, |file| file.at);
        let known = self.file.take().filter(|file| file.revision == revision);
        let author = known.map_or(new.author.clone(), |file| file.author);
        self.owner = Some(new.fleet.name.clone());
        self.file = Some(AcceptedFile { revision, digest: new.digest(), source: new.source, author, at });
        self.fleet = Arc::new(new.fleet);
    }

    /// Takes note of what the hub has stored by itself.
    pub fn note(&mut self, stored: &[Record]) {
        for record in stored {
            match record {
                Record::Task(task) => self.note_task(task),
                // A credential that was dropped meanwhile stays dropped.
                Record::Credential(credential) => {
                    let entry = self.credentials.get_mut(&credential.agent);
                    if let Some(entry) = entry.filter(|entry| entry.incarnation == credential.incarnation) {
                        *entry = credential.clone();
                    }
                }
                Record::Output { .. } | Record::Message(_) => {}
            }
        }
    }

    /// The records as the change leaves them.
    pub fn apply(&mut self, change: Change) {
        self.said += u64::from(change.is_said());
        match change {
            Change::Claim(claim) => {
                let latest = self.incarnations.entry(claim.agent.clone()).or_default();
                *latest = claim.incarnation.max(*latest);
                self.keep_snapshots(&claim.agent, Some(claim.id));
                self.claims.insert(claim.agent.clone(), *claim);
            }
            Change::Learnt(agent, learnt) => {
                if let Some(claim) = self.claims.get_mut(&agent) {
                    *claim = learnt.applied_to(claim).unwrap_or_else(|| claim.clone());
                }
            }
            Change::Unclaim(agent) => {
                self.claims.remove(&agent);
                self.keep_snapshots(&agent, None);
                self.credentials.remove(&agent);
                self.tasks.remove(&agent);
            }
            Change::Credential(credential) => {
                self.credentials.insert(credential.agent.clone(), *credential);
            }
            Change::Open(operation) => {
                self.operations.insert(operation.agent.clone(), operation);
            }
            Change::Close(operation, _) => {
                if self.operations.get(&operation.agent).is_some_and(|open| open.id == operation.id) {
                    self.operations.remove(&operation.agent);
                }
            }
            Change::Override(entry) => {
                self.drop_override(&entry.agent, entry.change.path());
                // In the order in which the store lists them: a restart changes nothing that is shown.
                let place = self.overrides.partition_point(|other| override_key(other) < override_key(&entry));
                self.overrides.insert(place, *entry);
            }
            Change::DropOverride(agent, path) => self.drop_override(&agent, path),
            Change::Backoff(backoff) => {
                self.backoffs.insert(backoff.agent.clone(), backoff);
            }
            Change::DropBackoff(agent) => {
                self.backoffs.remove(&agent);
            }
            Change::Snapshot(snapshot) => {
                let known = self.snapshots.entry(snapshot.agent.clone()).or_default();
                known.insert(snapshot.name.clone(), *snapshot);
            }
            Change::DropSnapshot(agent, name) => {
                if let Some(known) = self.snapshots.get_mut(&agent) {
                    known.remove(&name);
                }
                self.snapshots.retain(|_, known| !known.is_empty());
            }
            Change::Errand(errand) => self.note_errand(*errand),
            Change::Approve(request, _) => {
                self.approvals.insert(request.id, request.agent);
            }
            Change::DropApproval(id) => {
                self.approvals.remove(&id);
            }
            Change::Task(task) => self.note_task(&task),
            Change::Fuse(fuse) => self.fuse = fuse,
            Change::Mode(mode) => self.mode = mode,
            Change::Pause(pause) => self.pause = pause,
            Change::Watched(watched) => self.watched = watched,
            Change::DropDead(_) | Change::Event(_) => {}
        }
    }

    /// Forgets an agent's snapshots but those of this claim: they went with their machine.
    fn keep_snapshots(&mut self, agent: &AgentName, claim: Option<ClaimId>) {
        if let Some(known) = self.snapshots.get_mut(agent) {
            known.retain(|_, snapshot| Some(snapshot.claim) == claim);
        }
        self.snapshots.retain(|_, known| !known.is_empty());
    }

    fn note_errand(&mut self, errand: Errand) {
        let open = self.errands.entry(errand.agent.clone()).or_default();
        open.retain(|other| other.id != errand.id);
        if errand.end.is_none() {
            open.insert(open.partition_point(|other| other.id < errand.id), errand);
        }
        self.errands.retain(|_, open| !open.is_empty());
    }

    fn drop_override(&mut self, agent: &AgentName, path: OverridePath) {
        self.overrides.retain(|entry| entry.agent != *agent || entry.change.path() != path);
    }

    /// Takes note of a task: how far it is, when it is one of the file, and whether there is work to do.
    pub(crate) fn note_task(&mut self, task: &Task) {
        let Some((agent, entry)) = task.agent.clone().zip(file_task(task)) else { return self.note_work(task) };
        note_run(self.tasks.entry(agent).or_default(), entry);
    }

    fn note_work(&mut self, task: &Task) {
        if task.pool.is_some() {
            // Only such a one goes from agent to agent.
            self.pooled.remove(&task.id);
            self.work.retain(|_, open| !(open.remove(&task.id) && open.is_empty()));
        } else if let Some(agent) = task.agent.as_ref().filter(|_| task.outcome().is_some())
            && let Some(open) = self.work.get_mut(agent)
            && open.remove(&task.id)
            && open.is_empty()
        {
            self.work.remove(agent);
        }
        match (&task.agent, &task.pool) {
            _ if task.outcome().is_some() => {}
            (Some(agent), _) => drop(self.work.entry(agent.clone()).or_default().insert(task.id)),
            (None, Some(selector)) => drop(self.pooled.insert(task.id, selector.clone())),
            (None, None) => {}
        }
    }
}

/// What overrides are listed by.
fn override_key(entry: &Override) -> (&AgentName, &'static str) {
    (&entry.agent, entry.change.path().as_str())
}

/// What a plan needs to know of a task of the file; nothing for one by hand.
fn file_task(task: &Task) -> Option<FileTask> {
    match &task.source {
        TaskSource::File { name, digest, claim, due } => Some(FileTask {
            id: task.id,
            name: name.clone(),
            digest: digest.clone(),
            claim: *claim,
            due: *due,
            accepted_at: task.created_at,
            ended_at: task.ended_at,
            outcome: task.outcome().cloned(),
        }),
        TaskSource::Request { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::fleet::{PowerState, Reconcile};
    use vm_agent_schemas::ids::OverrideId;
    use vm_agent_schemas::intent::{Change as Said, Presence};

    use super::*;

    #[test]
    fn overrides_stand_in_the_order_in_which_the_store_lists_them() {
        let entry = |agent: &str, change: Said| {
            Change::Override(Box::new(Override {
                id: OverrideId::generate(),
                agent: agent.parse().unwrap(),
                change,
                author: "ann".to_owned(),
                reason: None,
                created_at: Timestamp::UNIX_EPOCH,
                expires_at: None,
            }))
        };
        let stopped = || Said::Power { wanted: PowerState::Stopped, covers: PowerState::Running };
        let paused = || Said::Reconcile { wanted: Reconcile::Paused, covers: Reconcile::Auto };
        let mut records = Records::empty(Fleet::default());
        for change in [
            entry("web", stopped()),
            entry("db", paused()),
            entry("db", Said::Presence(Presence::Absent)),
            entry("db", stopped()),
            entry("cache", stopped()),
            entry("web", stopped()),
        ] {
            records.apply(change);
        }
        let listed: Vec<_> = records.overrides.iter().map(override_key).map(|(it, path)| (it.as_str(), path)).collect();
        let stored = [("cache", "power"), ("db", "power"), ("db", "presence"), ("db", "reconcile"), ("web", "power")];
        assert_eq!(listed, stored);
    }

    #[test]
    fn work_is_where_a_task_is_and_a_task_without_an_agent_waits_for_one() {
        let selector: Selector = "team=a".parse().unwrap();
        let source = TaskSource::Request { author: "ann".to_owned(), key: None };
        let job = vm_agent_schemas::task::Job::exec(["make"]);
        let task = Task::new(TaskId::generate(), None, source, job, Default::default(), Timestamp::UNIX_EPOCH);
        let pooled = Task { pool: Some(selector.clone()), ..task };
        let on = |name: &str| Task { agent: Some(name.parse().unwrap()), ..pooled.clone() };
        let mut records = Records::empty(Fleet::default());
        let seen = |records: &mut Records, task: &Task| {
            records.note_task(task);
            let work: Vec<String> = records.work.keys().map(ToString::to_string).collect();
            (work.join(","), records.pooled.len())
        };
        assert_eq!(seen(&mut records, &pooled), (String::new(), 1));
        assert_eq!(seen(&mut records, &on("web")), ("web".to_owned(), 0));
        assert_eq!(seen(&mut records, &pooled), (String::new(), 1));
        assert_eq!(seen(&mut records, &on("db")), ("db".to_owned(), 0));
        let by_hand = Task { id: TaskId::generate(), pool: None, ..on("db") };
        assert_eq!(seen(&mut records, &by_hand), ("db".to_owned(), 0));
        let state = vm_agent_schemas::task::TaskState::Ended { outcome: vm_agent_schemas::wire::TaskOutcome::Canceled };
        assert_eq!(seen(&mut records, &Task { state: state.clone(), ..on("db") }), ("db".to_owned(), 0));
        assert_eq!(seen(&mut records, &Task { state, ..by_hand }), (String::new(), 0));
    }
}

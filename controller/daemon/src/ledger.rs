//! What the controller knows and must not forget: the store's records, with a copy in memory that every
//! pass reads. The copy is never ahead of the disk: a change is made durable first, and changes are
//! made one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::broadcast;
use vm_agent_hub::Record;
use vm_agent_plan::{FileTask, Inputs, Learnt, Mode};
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::event::{Event, NewEvent};
use vm_agent_schemas::fleet::{self, Fleet};
use vm_agent_schemas::ids::{Digest, Incarnation, Life, Revision};
use vm_agent_schemas::intent::{Override, OverridePath, Pause};
use vm_agent_schemas::names::{AgentName, FleetName};
use vm_agent_schemas::observe::{Backoff, Claim, Operation};
use vm_agent_schemas::plan::{ApprovalRequest, Fuse};
use vm_agent_schemas::task::{Task, TaskSource};
use vm_agent_store::{self as store, Store, StoreError};

/// Events kept for people who look later; about a month of an ordinary fleet.
const EVENTS_KEPT: u64 = 100_000;

/// Events a follower may lag behind before it has to read them from the store.
const EVENTS_IN_FLIGHT: usize = 1024;

const FUSE_KEY: &str = "fuse";
const PAUSE_KEY: &str = "pause";
const MODE_KEY: &str = "mode";
const FLEET_KEY: &str = "fleet";

/// The fuse of a fleet whose fuse never blew. It is the same at any time, as plans are that show it.
pub(crate) const NEVER_BLOWN: Fuse = Fuse::Closed { since: Timestamp::UNIX_EPOCH };

/// Everything that survives, as the last change left it.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    /// The controller's life.
    pub(crate) life: Life,
    /// The file spec.
    pub(crate) fleet: Arc<Fleet>,
    /// The accepted fleet file.
    pub(crate) file: Option<AcceptedFile>,
    /// The fleet that the state folder belongs to, once that is known.
    pub(crate) owner: Option<FleetName>,
    /// What people said beside the file.
    pub(crate) overrides: Vec<Override>,
    /// What is ours.
    pub(crate) claims: BTreeMap<AgentName, Claim>,
    /// Who may speak as which agent.
    pub(crate) credentials: BTreeMap<AgentName, Credential>,
    /// What is under way.
    pub(crate) operations: BTreeMap<AgentName, Operation>,
    /// The tasks of the file that were ever accepted.
    pub(crate) tasks: BTreeMap<AgentName, Vec<FileTask>>,
    /// What people said yes to, and the agent that each yes is about.
    pub(crate) approvals: BTreeMap<Digest, AgentName>,
    /// The latest incarnation of every name that ever had a claim.
    pub(crate) incarnations: BTreeMap<AgentName, Incarnation>,
    /// Whether the fleet is to run at all.
    pub(crate) mode: Mode,
    /// What failed, and when it may be tried again.
    pub(crate) backoffs: BTreeMap<AgentName, Backoff>,
    /// The pause of the whole fleet, if somebody paused it.
    pub(crate) pause: Option<Pause>,
    /// The fuse.
    pub(crate) fuse: Fuse,
}

/// The accepted fleet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcceptedFile {
    /// Its number.
    pub(crate) revision: Revision,
    /// Where it was.
    pub(crate) path: Option<PathBuf>,
    /// What it says.
    pub(crate) text: String,
    /// When it was accepted.
    pub(crate) at: Timestamp,
}

/// One change of the records.
#[derive(Debug, Clone)]
pub(crate) enum Change {
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
    /// Note a yes.
    Approve(ApprovalRequest, String),
    /// Forget a yes.
    DropApproval(Digest),
    /// Accept a task.
    Task(Box<Task>),
    /// Set the fuse.
    Fuse(Fuse),
    /// Take the fleet down, or up again.
    Mode(Mode),
    /// Pause the fleet, or resume it.
    Pause(Option<Pause>),
    /// Tell what happened.
    Event(NewEvent),
}

/// A fleet file to be accepted, read and resolved.
#[derive(Debug, Clone)]
pub(crate) struct NewFile {
    /// Where it is.
    pub(crate) path: Option<PathBuf>,
    /// What it says.
    pub(crate) text: String,
    /// What that comes to.
    pub(crate) fleet: Fleet,
    /// Who applied it.
    pub(crate) author: String,
}

/// The records and their store.
#[derive(Debug)]
pub(crate) struct Ledger {
    store: Store,
    records: Mutex<Arc<Records>>,
    /// Held from before a write until its copy in memory is changed: changes don't overtake.
    turn: tokio::sync::Mutex<()>,
    events: broadcast::Sender<Event>,
}

/// Why the ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The accepted fleet file no longer reads: a later version refuses what an earlier one took.
    #[error("the accepted fleet file (revision {revision}) is refused by this version: {problem}")]
    File {
        /// Its number.
        revision: Revision,
        /// What is wrong with it.
        problem: String,
    },
}

impl Ledger {
    /// Reads everything, and begins a new life.
    ///
    /// # Errors
    /// When the store fails, or the accepted fleet file no longer reads.
    pub(crate) async fn open(store: Store) -> Result<Self, LedgerError> {
        let life = store.write(store::meta::next_life).await?;
        Self::read(store, life).await
    }

    /// Reads everything as a controller of that life would find it.
    ///
    /// # Errors
    /// When the store fails, or the accepted fleet file no longer reads.
    pub(crate) async fn read(store: Store, life: Life) -> Result<Self, LedgerError> {
        let (mut records, file) = store.read(move |conn| read(conn, life)).await?;
        if let Some(file) = file {
            let name = file.path.as_ref().map_or_else(|| "fleet.yaml".into(), |path| path.display().to_string());
            let fleet = fleet::parse(&name, &file.text).map_err(|problems| LedgerError::File {
                revision: file.revision,
                problem: problems.first().map_or_else(String::new, ToString::to_string),
            })?;
            records.fleet = Arc::new(fleet);
            records.file =
                Some(AcceptedFile { revision: file.revision, path: file.path, text: file.text, at: file.at });
        }
        let (events, _) = broadcast::channel(EVENTS_IN_FLIGHT);
        let (records, turn) = (Mutex::new(Arc::new(records)), tokio::sync::Mutex::default());
        Ok(Self { store, records, turn, events })
    }

    /// The records as they are now.
    #[must_use]
    pub(crate) fn records(&self) -> Arc<Records> {
        Arc::clone(&self.lock())
    }

    /// The store itself, for what nobody keeps a copy of.
    #[must_use]
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Notes which fleet the state folder belongs to.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn belong_to(&self, fleet: FleetName) -> Result<(), StoreError> {
        let name = fleet.clone();
        self.store.write(move |conn| store::meta::set(conn, FLEET_KEY, name.as_str())).await?;
        Arc::make_mut(&mut self.lock()).owner = Some(fleet);
        Ok(())
    }

    /// Events from now on.
    #[must_use]
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Makes changes durable, all or none, and then known.
    ///
    /// # Errors
    /// When the store fails; then nothing is changed.
    pub(crate) async fn record(&self, changes: Vec<Change>, now: Timestamp) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let (changes, events) = self
            .store
            .write(move |conn| {
                let mut events = Vec::new();
                for change in &changes {
                    events.extend(write(conn, change, now)?);
                }
                Ok((changes, events))
            })
            .await?;
        let mut records = self.lock();
        let known = Arc::make_mut(&mut records);
        changes.into_iter().for_each(|change| known.apply(change));
        drop(records);
        self.tell(events);
        Ok(())
    }

    /// Accepts a fleet file, with changes that belong to it. The same text twice is one revision.
    ///
    /// # Errors
    /// When the store fails; then nothing is changed.
    pub(crate) async fn accept(
        &self,
        new: NewFile,
        mut changes: Vec<Change>,
        now: Timestamp,
    ) -> Result<Revision, StoreError> {
        let _turn = self.turn.lock().await;
        changes.extend(self.protections(&new.fleet));
        let row = store::revisions::NewRevision {
            path: new.path.clone(),
            text: new.text.clone(),
            digest: Digest::of(new.text.as_bytes()),
            author: new.author,
            at: now,
        };
        let name = new.fleet.name.clone();
        let (revision, changes, events) = self
            .store
            .write(move |conn| {
                store::meta::set(conn, FLEET_KEY, name.as_str())?;
                let revision = store::revisions::put(conn, &row)?;
                let mut events = Vec::new();
                for change in &changes {
                    events.extend(write(conn, change, now)?);
                }
                Ok((revision, changes, events))
            })
            .await?;
        let mut records = self.lock();
        let known = Arc::make_mut(&mut records);
        let at = known.file.as_ref().filter(|file| file.revision == revision).map_or(now, |file| file.at);
        known.owner = Some(new.fleet.name.clone());
        known.file = Some(AcceptedFile { revision, path: new.path, text: new.text, at });
        known.fleet = Arc::new(new.fleet);
        changes.into_iter().for_each(|change| known.apply(change));
        drop(records);
        self.tell(events);
        Ok(revision)
    }

    /// The claims with the protection that a file gives their agents: it holds from the file's
    /// acceptance on, also when the next file comes before the next pass.
    fn protections(&self, fleet: &Fleet) -> Vec<Change> {
        let records = self.records();
        let told = |claim: &&Claim| fleet.agents.get(&claim.agent).is_some_and(|it| it.spec.protect != claim.protect);
        let change = |claim: &Claim| Change::Claim(Box::new(Claim { protect: !claim.protect, ..claim.clone() }));
        records.claims.values().filter(told).map(change).collect()
    }

    /// Takes note of records that the hub has stored by itself.
    pub(crate) fn note(&self, stored: &[Record]) {
        let mut records = self.lock();
        let known = Arc::make_mut(&mut records);
        for record in stored {
            match record {
                Record::Task(task) => known.note_task(task),
                // A credential that was dropped meanwhile stays dropped.
                Record::Credential(credential) => {
                    let entry = known.credentials.get_mut(&credential.agent);
                    if let Some(entry) = entry.filter(|entry| entry.incarnation == credential.incarnation) {
                        *entry = credential.clone();
                    }
                }
            }
        }
    }

    /// Drops the oldest events beyond what is kept.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn prune_events(&self) -> Result<(), StoreError> {
        self.store.write(|conn| store::events::prune(conn, EVENTS_KEPT)).await.map(drop)
    }

    fn tell(&self, events: Vec<Event>) {
        for event in events {
            let agent = event.agent.as_ref().map(AgentName::as_str).unwrap_or_default();
            tracing::info!(agent.name = agent, event.kind = event.kind.as_str(), "{}", event.message);
            // Nobody following is no failure.
            let _ = self.events.send(event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Records>> {
        // A change that panicked half-way has changed a copy only.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(
    conn: &rusqlite::Connection,
    life: Life,
) -> Result<(Records, Option<store::revisions::StoredRevision>), StoreError> {
    let mut tasks: BTreeMap<AgentName, Vec<FileTask>> = BTreeMap::new();
    for task in store::tasks::all_from_file(conn)? {
        if let Some(entry) = file_task(&task) {
            tasks.entry(task.agent).or_default().push(entry);
        }
    }
    let owner = store::meta::get(conn, FLEET_KEY)?.and_then(|name| name.parse().ok());
    let records = Records {
        life,
        fleet: Arc::default(),
        file: None,
        owner,
        overrides: store::overrides::all(conn)?,
        claims: store::claims::all(conn)?.into_iter().map(|c| (c.agent.clone(), c)).collect(),
        credentials: store::credentials::all(conn)?.into_iter().map(|c| (c.agent.clone(), c)).collect(),
        operations: store::operations::open_operations(conn)?.into_iter().map(|o| (o.agent.clone(), o)).collect(),
        tasks,
        approvals: store::approvals::all(conn)?.into_iter().map(|approval| (approval.id, approval.agent)).collect(),
        incarnations: store::claims::incarnations(conn)?,
        mode: store::meta::get(conn, MODE_KEY)?.map_or(Mode::Up, |text| mode_of(&text)),
        backoffs: store::backoffs::all(conn)?.into_iter().map(|b| (b.agent.clone(), b)).collect(),
        pause: store::meta::get_json(conn, PAUSE_KEY)?.flatten(),
        fuse: store::meta::get_json(conn, FUSE_KEY)?.unwrap_or(NEVER_BLOWN),
    };
    Ok((records, store::revisions::latest(conn)?))
}

fn write(conn: &rusqlite::Connection, change: &Change, now: Timestamp) -> Result<Option<Event>, StoreError> {
    match change {
        Change::Claim(claim) => store::claims::put(conn, claim)?,
        Change::Learnt(agent, learnt) => {
            if let Some(claim) = store::claims::get(conn, agent)?.and_then(|claim| learnt.applied_to(&claim)) {
                store::claims::put(conn, &claim)?;
            }
        }
        Change::Unclaim(agent) => {
            store::claims::remove(conn, agent)?;
            store::credentials::remove(conn, agent)?;
        }
        Change::Credential(credential) => store::credentials::put(conn, credential)?,
        Change::Open(operation) => store::operations::open(conn, operation)?,
        Change::Close(operation, outcome) => {
            store::operations::close(conn, operation.id, outcome, now)?;
        }
        Change::Override(entry) => store::overrides::put(conn, entry)?,
        Change::DropOverride(agent, path) => {
            store::overrides::remove(conn, agent, *path)?;
        }
        Change::Backoff(backoff) => store::backoffs::put(conn, backoff)?,
        Change::DropBackoff(agent) => {
            store::backoffs::remove(conn, agent)?;
        }
        Change::Approve(request, author) => {
            let ApprovalRequest { id, agent, .. } = request.clone();
            store::approvals::put(conn, &store::approvals::Approval { id, agent, author: author.clone(), at: now })?;
        }
        Change::DropApproval(id) => {
            store::approvals::remove(conn, id)?;
        }
        Change::Task(task) => {
            if store::tasks::get(conn, task.id)?.is_some() {
                return Err(StoreError::AlreadyExists { what: "a task", key: task.id.to_string() });
            }
            store::tasks::put(conn, task)?;
        }
        Change::Fuse(fuse) => store::meta::set_json(conn, FUSE_KEY, fuse)?,
        Change::Mode(mode) => store::meta::set(conn, MODE_KEY, mode_text(*mode))?,
        Change::Pause(pause) => store::meta::set_json(conn, PAUSE_KEY, pause)?,
        Change::Event(event) => return store::events::append(conn, event, now).map(Some),
    }
    Ok(None)
}

impl Records {
    /// The records of a controller that has this fleet, and nothing else yet.
    #[cfg(test)]
    pub(crate) fn empty(fleet: Fleet) -> Self {
        Self {
            life: Life(1),
            fleet: Arc::new(fleet),
            file: None,
            owner: None,
            overrides: Vec::new(),
            claims: BTreeMap::new(),
            credentials: BTreeMap::new(),
            operations: BTreeMap::new(),
            tasks: BTreeMap::new(),
            approvals: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            mode: Mode::Up,
            backoffs: BTreeMap::new(),
            pause: None,
            fuse: NEVER_BLOWN,
        }
    }

    /// What a plan is made from, as far as the records know it: nothing of what is seen now.
    pub(crate) fn inputs(&self, now: Timestamp) -> Inputs {
        Inputs {
            fleet: Arc::clone(&self.fleet),
            revision: self.file.as_ref().map(|file| file.revision),
            overrides: self.overrides.clone(),
            claims: self.claims.clone(),
            operations: self.operations.clone(),
            tasks: self.tasks.clone(),
            approvals: self.approvals.clone(),
            unjoined: self.unjoined(now),
            mode: self.mode,
            backoffs: self.backoffs.clone(),
            fuse: self.fuse.clone(),
            pause: self.pause.clone(),
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

    /// The records as the change leaves them.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Claim(claim) => {
                let latest = self.incarnations.entry(claim.agent.clone()).or_default();
                *latest = claim.incarnation.max(*latest);
                self.claims.insert(claim.agent.clone(), *claim);
            }
            Change::Learnt(agent, learnt) => {
                if let Some(claim) = self.claims.get_mut(&agent) {
                    *claim = learnt.applied_to(claim).unwrap_or_else(|| claim.clone());
                }
            }
            Change::Unclaim(agent) => {
                self.claims.remove(&agent);
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
                self.overrides.push(*entry);
            }
            Change::DropOverride(agent, path) => self.drop_override(&agent, path),
            Change::Backoff(backoff) => {
                self.backoffs.insert(backoff.agent.clone(), backoff);
            }
            Change::DropBackoff(agent) => {
                self.backoffs.remove(&agent);
            }
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
            Change::Event(_) => {}
        }
    }

    fn drop_override(&mut self, agent: &AgentName, path: OverridePath) {
        self.overrides.retain(|entry| entry.agent != *agent || entry.change.path() != path);
    }

    fn note_task(&mut self, task: &Task) {
        let Some(entry) = file_task(task) else { return };
        let known = self.tasks.entry(task.agent.clone()).or_default();
        known.retain(|other| (&other.name, &other.digest, other.claim) != (&entry.name, &entry.digest, entry.claim));
        known.push(entry);
    }
}

const fn mode_text(mode: Mode) -> &'static str {
    match mode {
        Mode::Up => "up",
        Mode::Down => "down",
        Mode::Destroy => "destroy",
    }
}

fn mode_of(text: &str) -> Mode {
    [Mode::Down, Mode::Destroy].into_iter().find(|mode| mode_text(*mode) == text).unwrap_or_default()
}

fn file_task(task: &Task) -> Option<FileTask> {
    match &task.source {
        TaskSource::File { name, digest, claim } => Some(FileTask {
            name: name.clone(),
            digest: digest.clone(),
            claim: *claim,
            outcome: task.outcome().cloned(),
        }),
        TaskSource::Request { .. } => None,
    }
}

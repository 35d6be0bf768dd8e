//! What the controller knows and must not forget: the store's records, with a copy in memory that every
//! pass reads. The copy is never ahead of the disk: a change is made durable first. The store's writer
//! changes the copy after each commit, in the order of the writes, so that many changes share a commit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::broadcast;
use vm_agent_hub::Record;
use vm_agent_schemas::event::Event;
use vm_agent_schemas::ids::{Life, Revision};
use vm_agent_schemas::names::{AgentName, FleetName};
use vm_agent_store::{self as store, Store, StoreError};

use crate::disk::{self, LedgerError};
use crate::engine::records::{Change, NewFile, Records};

/// Events a follower may lag behind before it has to read them from the store.
const EVENTS_IN_FLIGHT: usize = 1024;

/// The records and their store.
#[derive(Debug)]
pub(crate) struct Ledger {
    store: Store,
    known: Arc<Known>,
    /// Changes are written side by side; what rests on what people have said so far is written when nothing
    /// else is under way.
    turn: tokio::sync::RwLock<()>,
}

/// The copy in memory, and who follows it.
#[derive(Debug)]
struct Known {
    records: Mutex<Arc<Records>>,
    events: broadcast::Sender<Event>,
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
        let (records, file) = store.read(move |conn| disk::read(conn, life)).await?;
        let records = match file {
            Some(file) => disk::with_file(records, file)?,
            None => records,
        };
        let (events, _) = broadcast::channel(EVENTS_IN_FLIGHT);
        let known = Arc::new(Known { records: Mutex::new(Arc::new(records)), events });
        Ok(Self { store, known, turn: tokio::sync::RwLock::default() })
    }

    /// The records as they are now. As long as somebody keeps them, the next change is made to a copy of
    /// them all: a short look is for [`Self::look`].
    #[must_use]
    pub(crate) fn records(&self) -> Arc<Records> {
        Arc::clone(&self.known.lock())
    }

    /// Looks at the records as they are now.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Records) -> T) -> T {
        look(&self.known.lock())
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
        self.store.write(move |conn| disk::belong_to(conn, &name)).await?;
        Arc::make_mut(&mut self.known.lock()).owner = Some(fleet);
        Ok(())
    }

    /// Events from now on.
    #[must_use]
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.known.events.subscribe()
    }

    /// Makes changes durable, all or none, and then known.
    ///
    /// # Errors
    /// When the store fails; then nothing is changed.
    pub(crate) async fn record(&self, changes: Vec<Change>, now: Timestamp) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.read().await;
        self.record_in_turn(changes, now).await
    }

    /// The same, unless people have said something since they had said so much. Answers whether it was
    /// done.
    ///
    /// # Errors
    /// When the store fails; then nothing is changed.
    pub(crate) async fn announce(&self, changes: Vec<Change>, said: u64, now: Timestamp) -> Result<bool, StoreError> {
        let _turn = self.turn.write().await;
        let is_last_word = self.look(|records| records.said == said);
        if is_last_word {
            self.record_in_turn(changes, now).await?;
        }
        Ok(is_last_word)
    }

    async fn record_in_turn(&self, changes: Vec<Change>, now: Timestamp) -> Result<(), StoreError> {
        let known = Arc::clone(&self.known);
        let write = move |conn: &Connection| {
            let events = disk::write(conn, &changes, now)?;
            Ok((changes, events))
        };
        let apply =
            |changes: Vec<Change>| |known: &mut Records| changes.into_iter().for_each(|change| known.apply(change));
        let told = self.store.write_then(write, move |(changes, events)| known.take(apply(changes), events)).await?;
        log(&told);
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
        let _turn = self.turn.write().await;
        changes.extend(self.look(|records| records.protections(&new.fleet)));
        let known = Arc::clone(&self.known);
        let write = move |conn: &Connection| {
            let (revision, events) = disk::accept(conn, &new, &changes, now)?;
            Ok((revision, new, changes, events))
        };
        let apply = move |(revision, new, changes, events): (Revision, NewFile, Vec<Change>, Vec<Event>)| {
            let apply = |records: &mut Records| {
                records.accept(new, revision, now);
                changes.into_iter().for_each(|change| records.apply(change));
            };
            (revision, known.take(apply, events))
        };
        let (revision, told) = self.store.write_then(write, apply).await?;
        log(&told);
        Ok(revision)
    }

    /// Stores what the hub wants to survive, with the events that follow from it, and then does `then`. Once
    /// the first of the two futures is over, it has its place in the order.
    ///
    /// # Errors
    /// When the store fails, or a record contradicts what is stored; then nothing is changed.
    pub(crate) async fn note(
        &self,
        records: Arc<Vec<Record>>,
        now: Timestamp,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + Send + 'static, StoreError> {
        let known = Arc::clone(&self.known);
        let write = move |conn: &Connection| {
            let events = disk::note(conn, &records, now)?;
            Ok((records, events))
        };
        let apply = move |(records, events): (Arc<Vec<Record>>, Vec<Event>)| {
            let told = known.take(|known| known.note(&records), events);
            then();
            told
        };
        let written = self.store.queue_write(write, apply).await?;
        Ok(async { written.await.map(|told| log(&told)) })
    }
}

impl Known {
    /// Takes in what has become durable, and tells of it.
    fn take(&self, apply: impl FnOnce(&mut Records), events: Vec<Event>) -> Vec<Event> {
        apply(Arc::make_mut(&mut self.lock()));
        for event in &events {
            // Nobody following is no failure.
            let _ = self.events.send(event.clone());
        }
        events
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Records>> {
        // A change that panicked half-way has changed a copy only.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Not where they are told of: a log that is slow to take them must not hold up the store.
fn log(events: &[Event]) {
    for event in events {
        let agent = event.agent.as_ref().map(AgentName::as_str).unwrap_or_default();
        tracing::info!(agent.name = agent, event.kind = event.kind.as_str(), "{}", event.message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_plan::Mode;
    use vm_agent_schemas::event::{EventKind, NewEvent};

    #[tokio::test]
    async fn what_people_have_said_meanwhile_overtakes_what_was_decided_before() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Store::open(&folder.path().join("state.db")).unwrap()).await.unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let event = || vec![Change::Event(NewEvent::fleet(EventKind::StepStarted, "a step began"))];
        let decided = ledger.records().said;
        ledger.record(event(), now).await.unwrap();
        assert!(ledger.announce(event(), decided, now).await.unwrap());
        ledger.record(vec![Change::Mode(Mode::Down)], now).await.unwrap();
        assert!(!ledger.announce(event(), decided, now).await.unwrap());
        assert_eq!(ledger.store().read(|conn| store::events::latest(conn, None, 10)).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn changes_that_are_made_side_by_side_share_a_commit_and_are_told_in_the_order_of_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Store::open(&folder.path().join("state.db")).unwrap()).await.unwrap();
        let (mut told, before) = (ledger.subscribe(), ledger.store().stats().commits);
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let busy = ledger.store().write(move |_| {
            held.recv().unwrap();
            Ok(())
        });
        let change = |number: u32| {
            let event = NewEvent::fleet(EventKind::StepStarted, number.to_string());
            ledger.record(vec![Change::Event(event)], Timestamp::UNIX_EPOCH)
        };
        let changes = futures::future::join_all((0..20).map(change));
        let (busy, changes, ()) = tokio::join!(busy, changes, async { let_go.send(()).unwrap() });
        assert!(busy.is_ok() && changes.iter().all(Result::is_ok));
        assert!(ledger.store().stats().commits - before <= 2, "that of the one that was busy, and one for the others");
        let told: Vec<String> = std::iter::from_fn(|| told.try_recv().ok()).map(|event| event.message).collect();
        assert_eq!(told, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
    }
}

//! What the controller knows and must not forget: the store's records, with a copy in memory that every
//! pass reads. The copy is never ahead of the disk: a change is made durable first, and changes are
//! made one after the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
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
    records: Mutex<Arc<Records>>,
    /// Held from before a write until its copy in memory is changed: changes don't overtake.
    turn: tokio::sync::Mutex<()>,
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
        self.store.write(move |conn| disk::belong_to(conn, &name)).await?;
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
        self.record_in_turn(changes, now).await
    }

    /// The same, unless people have said something since they had said so much. Answers whether it was
    /// done.
    ///
    /// # Errors
    /// When the store fails; then nothing is changed.
    pub(crate) async fn announce(&self, changes: Vec<Change>, said: u64, now: Timestamp) -> Result<bool, StoreError> {
        let _turn = self.turn.lock().await;
        let is_last_word = self.lock().said == said;
        if is_last_word {
            self.record_in_turn(changes, now).await?;
        }
        Ok(is_last_word)
    }

    async fn record_in_turn(&self, changes: Vec<Change>, now: Timestamp) -> Result<(), StoreError> {
        let (changes, events) = self
            .store
            .write(move |conn| {
                let events = disk::write(conn, &changes, now)?;
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
        changes.extend(self.records().protections(&new.fleet));
        let (revision, new, changes, events) = self
            .store
            .write(move |conn| {
                let (revision, events) = disk::accept(conn, &new, &changes, now)?;
                Ok((revision, new, changes, events))
            })
            .await?;
        let mut records = self.lock();
        let known = Arc::make_mut(&mut records);
        known.accept(new, revision, now);
        changes.into_iter().for_each(|change| known.apply(change));
        drop(records);
        self.tell(events);
        Ok(revision)
    }

    /// Takes note of records that the hub has stored by itself, and tells of the events that were stored with
    /// them.
    pub(crate) fn note(&self, stored: &[Record], events: Vec<Event>) {
        Arc::make_mut(&mut self.lock()).note(stored);
        self.tell(events);
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
        assert_eq!(ledger.store().read(|conn| store::events::latest(conn, 10)).await.unwrap().len(), 2);
    }
}

//! Effects that wait for records to become durable, first in, first out.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;

use super::Storage;
use crate::state::{Effect, Record};

/// What waits for one call of the storage.
struct Held {
    records: Vec<Record>,
    /// What depends on the records.
    dependent: Vec<Effect>,
    /// What only came later, and waits for the sake of order.
    later: Vec<Effect>,
}

/// What came of one call of the storage.
pub(super) struct Released {
    pub(super) records: Vec<Record>,
    pub(super) result: Result<(), String>,
    pub(super) dependent: Vec<Effect>,
    pub(super) later: Vec<Effect>,
}

/// The queue of all effects that can't be carried out yet. Calls of the storage are made at once, so
/// that a storage may make many records durable together.
pub(super) struct Releases {
    storage: Arc<dyn Storage>,
    stores: FuturesOrdered<BoxFuture<'static, Result<(), String>>>,
    held: VecDeque<Held>,
}

impl Releases {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, stores: FuturesOrdered::new(), held: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes in one answer of the hub, and gives back what can be carried out at once.
    pub(super) fn push(&mut self, answer: Vec<Effect>) -> Vec<Effect> {
        let mut at_once = Vec::new();
        let mut depends = false;
        let mut effects = answer.into_iter().peekable();
        while let Some(effect) = effects.next() {
            if let Effect::Store(record) = effect {
                let mut records = vec![record];
                while let Some(Effect::Store(record)) = effects.next_if(|next| matches!(next, Effect::Store(_))) {
                    records.push(record);
                }
                self.stores.push_back(self.storage.store(records.clone()));
                self.held.push_back(Held { records, dependent: Vec::new(), later: Vec::new() });
                depends = true;
                continue;
            }
            match self.held.back_mut() {
                Some(held) if depends => held.dependent.push(effect),
                Some(held) => held.later.push(effect),
                None => at_once.push(effect),
            }
        }
        at_once
    }

    /// The next effects that are released; never, while none are held.
    pub(super) async fn next(&mut self) -> Released {
        match self.stores.next().await {
            Some(result) => {
                let held = self.held.pop_front().expect("each call of the storage has its held effects");
                Released { records: held.records, result, dependent: held.dependent, later: held.later }
            }
            None => std::future::pending().await,
        }
    }
}

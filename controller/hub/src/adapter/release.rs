//! Effects that wait for records to become durable.
//!
//! Effects are ordered in lanes: those for one connection, for one client, or about one agent follow each
//! other, and no lane waits for another. So a record that is slow to become durable holds back only what
//! depends on it, and what comes after that in the same lanes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use vm_agent_schemas::names::AgentName;

use super::Storage;
use crate::state::{ConnId, Effect, Record, StreamKey};

/// What follows each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Lane {
    Conn(ConnId),
    Client(StreamKey),
    Agent(AgentName),
    /// What concerns no one agent.
    Fleet,
}

impl Lane {
    fn of(effect: &Effect) -> Self {
        match effect {
            Effect::Send { conn, .. }
            | Effect::Deliver { conn, .. }
            | Effect::SendData { conn, .. }
            | Effect::Close { conn } => Self::Conn(*conn),
            Effect::Opening { key, .. } | Effect::Client { key, .. } => Self::Client(*key),
            Effect::Notify(notice) => notice.agent().map_or(Self::Fleet, |agent| Self::Agent(agent.clone())),
            Effect::Store(_) | Effect::Posted { .. } | Effect::Shown { .. } | Effect::Distrusted { .. } => Self::Fleet,
        }
    }
}

/// One call of the storage, in the counting of this queue.
type Call = u64;

/// An effect that can't be carried out yet.
struct Held {
    /// The call that it waits for; nothing when it only waits for its turn.
    call: Option<Call>,
    effect: Effect,
}

/// A call that is not answered yet.
struct Pending {
    records: Arc<Vec<Record>>,
    /// Where effects wait for it.
    lanes: Vec<Lane>,
}

/// What came of one call of the storage.
pub(super) struct Released {
    pub(super) records: Vec<Record>,
    pub(super) result: Result<(), String>,
    /// What can be carried out now, in order.
    pub(super) effects: Vec<Effect>,
}

/// All effects that can't be carried out yet. Calls of the storage are made at once, so that a storage may
/// make many records durable together.
pub(super) struct Releases {
    storage: Arc<dyn Storage>,
    stores: FuturesOrdered<BoxFuture<'static, Result<(), String>>>,
    /// The calls that are not answered yet, in order; the first of them is `first`.
    pending: VecDeque<Pending>,
    first: Call,
    /// Lanes in which something waits.
    lanes: HashMap<Lane, VecDeque<Held>>,
}

impl Releases {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, stores: FuturesOrdered::new(), pending: VecDeque::new(), first: 0, lanes: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes in one answer of the hub, and gives back what can be carried out at once.
    pub(super) fn push(&mut self, answer: Vec<Effect>) -> Vec<Effect> {
        let is_store = |effect: &Effect| matches!(effect, Effect::Store(_));
        if self.pending.is_empty() && !answer.iter().any(is_store) {
            return answer;
        }
        let mut at_once = Vec::new();
        let mut call = None;
        let mut effects = answer.into_iter().peekable();
        while let Some(effect) = effects.next() {
            if let Effect::Store(record) = effect {
                let mut records = vec![record];
                while let Some(Effect::Store(record)) = effects.next_if(is_store) {
                    records.push(record);
                }
                call = Some(self.store(records));
            } else {
                at_once.extend(self.hold(call, effect));
            }
        }
        at_once
    }

    fn store(&mut self, records: Vec<Record>) -> Call {
        let records = Arc::new(records);
        self.stores.push_back(self.storage.store(Arc::clone(&records)));
        self.pending.push_back(Pending { records, lanes: Vec::new() });
        self.first + self.pending.len() as Call - 1
    }

    /// Gives the effect back if it need not wait.
    fn hold(&mut self, call: Option<Call>, effect: Effect) -> Option<Effect> {
        let lane = Lane::of(&effect);
        match self.lanes.get_mut(&lane) {
            Some(waiting) => waiting.push_back(Held { call, effect }),
            None if call.is_some() => drop(self.lanes.insert(lane.clone(), [Held { call, effect }].into())),
            None => return Some(effect),
        }
        if call.is_some()
            && let Some(pending) = self.pending.back_mut()
        {
            pending.lanes.push(lane);
        }
        None
    }

    /// The next effects that are released; never, while none are held.
    pub(super) async fn next(&mut self) -> Released {
        let Some(result) = self.stores.next().await else { return std::future::pending().await };
        let Pending { records, lanes } = self.pending.pop_front().expect("each call has its records");
        let call = self.first;
        self.first += 1;
        let mut effects = Vec::new();
        for lane in lanes {
            if let Some(waiting) = self.lanes.get_mut(&lane) {
                if result.is_err() {
                    waiting.retain(|held| held.call != Some(call) || !held.effect.grants());
                }
                while let Some(held) = waiting.pop_front_if(|held| held.call.is_none_or(|it| it < self.first)) {
                    effects.push(held.effect);
                }
                if waiting.is_empty() {
                    self.lanes.remove(&lane);
                }
            }
        }
        // Mostly the storage has let go of them.
        Released { records: Arc::unwrap_or_clone(records), result, effects }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::FutureExt as _;
    use tokio::sync::oneshot;
    use vm_agent_schemas::credential::Credential;
    use vm_agent_schemas::ids::{Boot, Epoch, Incarnation, Nonce};

    use super::*;
    use crate::state::Notice;

    /// A storage whose calls end when they are told to.
    #[derive(Default)]
    struct Slow {
        calls: Mutex<VecDeque<oneshot::Sender<Result<(), String>>>>,
    }

    impl Storage for Slow {
        fn store(&self, _: Arc<Vec<Record>>) -> BoxFuture<'static, Result<(), String>> {
            let (answer, done) = oneshot::channel();
            self.calls.lock().unwrap().push_back(answer);
            async { done.await.unwrap() }.boxed()
        }
    }

    struct Fixture {
        storage: Arc<Slow>,
        releases: Releases,
    }

    impl Fixture {
        fn new() -> Self {
            let storage = Arc::new(Slow::default());
            Self { releases: Releases::new(storage.clone()), storage }
        }

        fn answer(&mut self, result: Result<(), String>) -> Vec<Effect> {
            self.storage.calls.lock().unwrap().pop_front().unwrap().send(result).unwrap();
            self.releases.next().now_or_never().expect("the first call is answered").effects
        }
    }

    fn store() -> Effect {
        Effect::Store(Record::Credential(Credential {
            agent: "web".parse().unwrap(),
            incarnation: Incarnation(1),
            nonce: Nonce::from_text("nonce"),
            join: None,
            binding: None,
            boot: Boot(1),
            epoch: Epoch(1),
        }))
    }

    fn tell(agent: &str) -> Effect {
        Effect::Notify(Notice::Activity { agent: agent.parse().unwrap() })
    }

    const fn close(conn: u64) -> Effect {
        Effect::Close { conn: ConnId(conn) }
    }

    #[test]
    fn what_waits_holds_back_its_own_lane_and_no_other() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.releases.push(vec![close(1), store(), tell("web")]), [close(1)]);
        assert_eq!(fixture.releases.push(vec![tell("web"), tell("db"), close(2)]), [tell("db"), close(2)]);
        assert_eq!(fixture.answer(Ok(())), [tell("web"), tell("web")]);
        assert!(fixture.releases.is_empty() && fixture.releases.lanes.is_empty());
        assert_eq!(fixture.releases.push(vec![tell("web")]), [tell("web")]);
    }

    #[test]
    fn in_a_lane_everything_comes_in_order() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.releases.push(vec![store(), close(1), store(), tell("web")]), []);
        assert_eq!(fixture.releases.push(vec![store(), tell("db"), tell("web"), close(1)]), []);
        assert_eq!(fixture.answer(Ok(())), [close(1)]);
        assert_eq!(fixture.answer(Ok(())), [tell("web")]);
        assert_eq!(fixture.answer(Ok(())), [tell("db"), tell("web"), close(1)]);
    }

    #[test]
    fn what_could_not_be_stored_grants_nothing_and_takes_nothing_else_with_it() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.releases.push(vec![store(), tell("web"), close(1)]), []);
        assert_eq!(fixture.releases.push(vec![tell("web")]), []);
        assert_eq!(fixture.answer(Err("the disk is full".to_owned())), [tell("web"), close(1)]);
        assert!(fixture.releases.lanes.is_empty());
    }
}

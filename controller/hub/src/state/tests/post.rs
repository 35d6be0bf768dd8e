//! Whatever happens to hub, sessions and storage, in whatever order: an accepted message ends taken or dead,
//! a receiver that knows messages by their ids gets each once, and those of one sender in their order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use vm_agent_schemas::ids::{Boot, MessageId};
use vm_agent_schemas::message::{Allow, Message, MessageState, Party, Post};
use vm_agent_schemas::wire::{Address, Challenge, Configured, Envelope, FromHub, FromRuntime, Hello, MessageRef};

use super::world::*;
use crate::state::{ConnId, Directory, Effect, Event, Hub, Inbound, Member, Record};

const AGENTS: [&str; 3] = ["web", "db", "ci"];

#[derive(Debug, Clone, Copy)]
enum Move {
    /// An agent's program sends something: to an agent by its number, or to the host.
    Write {
        from: usize,
        to: usize,
        ttl: u64,
    },
    /// The host sends something.
    Post {
        to: usize,
    },
    /// A runtime connects, in place of its former connection, and sends again what has no answer.
    Connect(usize),
    Lose(usize),
    /// A runtime takes what it was sent first, and says so or loses the connection before that.
    Take {
        agent: usize,
        says: bool,
    },
    Storage {
        works: bool,
    },
    /// The controller dies after so many effects of the next answer, and begins anew from the disk.
    Die {
        after: usize,
    },
    Wait(i64),
}

fn any_move() -> impl Strategy<Value = Move> {
    let agent = 0..AGENTS.len();
    prop_oneof![
        8 => (agent.clone(), 0..=AGENTS.len(), 1..200u64).prop_map(|(from, to, ttl)| Move::Write { from, to, ttl }),
        2 => agent.clone().prop_map(|to| Move::Post { to }),
        5 => agent.clone().prop_map(Move::Connect),
        1 => agent.clone().prop_map(Move::Lose),
        8 => (agent, prop::bool::weighted(0.9)).prop_map(|(agent, says)| Move::Take { agent, says }),
        1 => any::<bool>().prop_map(|works| Move::Storage { works }),
        1 => (0..4usize).prop_map(|after| Move::Die { after }),
        2 => (0..20i64).prop_map(Move::Wait),
    ]
}

/// A runtime that does what it should.
#[derive(Debug, Default)]
struct Runtime {
    conn: Option<u64>,
    /// What it has no answer for, in the order in which it was written.
    outbox: VecDeque<(MessageId, Address, Post)>,
    accepted: BTreeSet<MessageId>,
    /// What it was sent on its connection, and has not taken.
    sent: VecDeque<Message>,
    /// What it keeps, in the order in which it took it.
    kept: Vec<(Address, MessageId)>,
}

struct Simulation {
    hub: Hub,
    now: i64,
    last_conn: u64,
    runtimes: BTreeMap<&'static str, Runtime>,
    /// The disk, in the order in which messages came to it.
    credentials: BTreeMap<String, vm_agent_schemas::credential::Credential>,
    messages: Vec<Message>,
    works: bool,
    /// After so many effects the controller dies.
    dies_after: Option<usize>,
    /// Messages that the host was told as accepted.
    posted: BTreeSet<(MessageId, Address)>,
    /// What each sender wrote to each receiver, in order.
    written: BTreeMap<(Address, Address), Vec<MessageId>>,
}

impl Simulation {
    fn new() -> Self {
        let credentials = AGENTS.map(|agent| (agent.to_owned(), credential(agent, 1))).into();
        let mut simulation = Self {
            hub: Hub::new("default".parse().unwrap(), HEARTBEAT),
            now: 0,
            last_conn: 0,
            runtimes: AGENTS.map(|agent| (agent, Runtime::default())).into(),
            credentials,
            messages: Vec::new(),
            works: true,
            dies_after: None,
            posted: BTreeSet::new(),
            written: BTreeMap::new(),
        };
        simulation.begin();
        simulation
    }

    /// A life of the controller begins.
    fn begin(&mut self) {
        self.hub = Hub::new("default".parse().unwrap(), HEARTBEAT);
        for runtime in self.runtimes.values_mut() {
            runtime.conn = None;
            runtime.sent.clear();
        }
        let all = Party::Labels { labels: "!none".parse().unwrap() };
        let directory = Directory {
            members: AGENTS.map(|agent| (name(agent), Member::default())).into(),
            allow: vec![Allow { from: all.clone(), to: all }],
        };
        self.tell(Event::Directory(directory));
        for credential in self.credentials.clone().into_values() {
            self.tell(Event::Enroll(credential, None));
        }
        for message in self.messages.clone() {
            self.tell(Event::Restore(message));
        }
    }

    fn tell(&mut self, event: Event) {
        let effects = self.hub.handle(event, at(self.now));
        self.carry_out(effects);
    }

    /// Carries effects out as the adapter does, with a storage that is done at once. Neighbouring records are
    /// stored together.
    fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut failed = false;
        let mut effects = effects.into_iter().peekable();
        while let Some(effect) = effects.next() {
            if let Some(left) = &mut self.dies_after {
                if *left == 0 {
                    self.dies_after = None;
                    return self.begin();
                }
                *left -= 1;
            }
            if let Effect::Store(record) = effect {
                let mut records = vec![record];
                while let Some(Effect::Store(record)) = effects.next_if(|next| matches!(next, Effect::Store(_))) {
                    records.push(record);
                }
                failed = !self.works;
                self.store(records);
            } else if !(failed && effect.grants()) {
                self.act(effect);
            }
        }
    }

    fn store(&mut self, records: Vec<Record>) {
        if !self.works {
            return self.tell(Event::StoreFailed(records));
        }
        for record in &records {
            match record {
                Record::Credential(credential) => {
                    self.credentials.insert(credential.agent.to_string(), credential.clone());
                }
                Record::Message(message) => self.store_message(message),
                other => panic!("{other:?}"),
            }
        }
        self.tell(Event::Stored(records));
    }

    /// An end is never taken back, and never changed.
    fn store_message(&mut self, message: &Message) {
        let same = |it: &&mut Message| (it.id, &it.from, &it.to) == (message.id, &message.from, &message.to);
        match self.messages.iter_mut().find(same) {
            Some(known) if known.state == MessageState::Waiting => *known = message.clone(),
            Some(known) => assert!(
                known.state == message.state || message.state == MessageState::Waiting,
                "{known:?} became {message:?}"
            ),
            None => self.messages.push(message.clone()),
        }
    }

    fn act(&mut self, effect: Effect) {
        let by_conn = |runtimes: &mut BTreeMap<&'static str, Runtime>, conn: ConnId| {
            runtimes.iter().find(|(_, it)| it.conn == Some(conn.0)).map(|(agent, _)| *agent)
        };
        match effect {
            Effect::Send { conn, body, .. } => {
                let Some(agent) = by_conn(&mut self.runtimes, conn) else { return };
                self.hear(agent, body);
            }
            Effect::Deliver { conn, message } => {
                if let Some(agent) = by_conn(&mut self.runtimes, conn) {
                    assert_eq!(message.to, Address::Agent(name(agent)));
                    self.runtimes.get_mut(agent).unwrap().sent.push_back(message);
                }
            }
            Effect::Close { conn } => {
                if let Some(agent) = by_conn(&mut self.runtimes, conn) {
                    self.runtimes.get_mut(agent).unwrap().conn = None;
                }
            }
            Effect::Posted { message, to, answer } => {
                if answer.is_ok() {
                    self.posted.insert((message, to));
                }
            }
            Effect::Notify(_) | Effect::Opening { .. } | Effect::Client { .. } => {}
            Effect::SendData { .. } | Effect::Store(_) | Effect::Shown { .. } | Effect::Distrusted { .. } => {
                panic!("{effect:?}")
            }
        }
    }

    fn hear(&mut self, agent: &'static str, body: FromHub) {
        let runtime = self.runtimes.get_mut(agent).unwrap();
        match body {
            FromHub::MessageAccepted(MessageRef { message }) => {
                runtime.outbox.retain(|(id, ..)| *id != message);
                runtime.accepted.insert(message);
            }
            FromHub::MessageRefused(refused) => panic!("nothing here is refused: {refused:?}"),
            FromHub::Challenge(challenge) => {
                let conn = runtime.conn.unwrap();
                let proof = sign(&key(1), &challenge, &hello_of(agent));
                self.say(conn, agent, proof);
            }
            _ => {}
        }
    }

    fn say(&mut self, conn: u64, agent: &str, body: FromRuntime) {
        self.tell(Event::Received { conn: ConnId(conn), inbound: message(agent, body) });
    }

    fn connect(&mut self, agent: &'static str) {
        self.lose(agent);
        self.last_conn += 1;
        let conn = self.last_conn;
        let runtime = self.runtimes.get_mut(agent).unwrap();
        runtime.conn = Some(conn);
        runtime.sent.clear();
        self.tell(Event::Opened {
            conn: ConnId(conn),
            peer: "127.0.0.1:5000".parse().unwrap(),
            since: at(self.now),
            challenge: Challenge { challenge: vm_agent_schemas::ids::Nonce::from_text("c") }.challenge,
            session: vm_agent_schemas::ids::SessionId::generate(),
        });
        self.say(conn, agent, FromRuntime::Hello(hello_of(agent)));
        self.say(conn, agent, FromRuntime::Configured(Configured { digest: None, problems: Vec::new() }));
        for (id, to, post) in self.runtimes[agent].outbox.clone() {
            self.send(agent, conn, id, to, post);
        }
    }

    fn send(&mut self, agent: &str, conn: u64, id: MessageId, to: Address, post: Post) {
        let from = Address::Agent(name(agent));
        let envelope = Envelope { id, from, to, timestamp: 0, body: FromRuntime::Message(post) };
        self.tell(Event::Received { conn: ConnId(conn), inbound: Inbound::Message(envelope) });
    }

    fn lose(&mut self, agent: &str) {
        let runtime = self.runtimes.get_mut(agent).unwrap();
        runtime.sent.clear();
        if let Some(conn) = runtime.conn.take() {
            self.tell(Event::Closed { conn: ConnId(conn) });
        }
    }

    fn take(&mut self, agent: &'static str, says: bool) {
        let runtime = self.runtimes.get_mut(agent).unwrap();
        let Some(message) = runtime.sent.pop_front() else { return };
        let kept = (message.from, message.id);
        if !runtime.kept.contains(&kept) {
            runtime.kept.push(kept);
        }
        match runtime.conn {
            Some(conn) if says => {
                self.say(conn, agent, FromRuntime::MessageTaken(MessageRef { message: message.id }));
            }
            _ => self.lose(agent),
        }
    }

    fn step(&mut self, step: Move) {
        match step {
            Move::Write { from, to, ttl } => {
                let to = AGENTS.get(to).map_or(Address::Host, |agent| Address::Agent(name(agent)));
                let (from, id) = (AGENTS[from], MessageId::generate());
                let post = Post { ttl_ms: Some(ttl * 1000), ..post() };
                self.written.entry((Address::Agent(name(from)), to.clone())).or_default().push(id);
                let runtime = self.runtimes.get_mut(from).unwrap();
                runtime.outbox.push_back((id, to.clone(), post.clone()));
                if let Some(conn) = runtime.conn {
                    self.send(from, conn, id, to, post);
                }
            }
            Move::Post { to } => {
                let (id, to) = (MessageId::generate(), Address::Agent(name(AGENTS[to])));
                let message = Message {
                    id,
                    from: Address::Host,
                    to: to.clone(),
                    subject: String::new(),
                    body: serde_json::Value::Null,
                    in_reply_to: None,
                    author: None,
                    created_at: at(self.now),
                    expires_at: at(self.now + 100),
                    state: MessageState::Waiting,
                };
                self.written.entry((Address::Host, to)).or_default().push(id);
                self.tell(Event::Post(message));
            }
            Move::Connect(agent) => self.connect(AGENTS[agent]),
            Move::Lose(agent) => self.lose(AGENTS[agent]),
            Move::Take { agent, says } => self.take(AGENTS[agent], says),
            Move::Storage { works } => self.works = works,
            Move::Die { after } => self.dies_after = Some(after),
            Move::Wait(seconds) => {
                self.now += seconds;
                self.tell(Event::Tick);
            }
        }
    }

    /// The faults end, and every runtime comes and takes all that it is sent.
    fn come_to_rest(&mut self) {
        self.works = true;
        self.dies_after = None;
        for _ in 0..3 {
            self.now += 1;
            self.tell(Event::Tick);
            for agent in AGENTS {
                if self.runtimes[agent].conn.is_none() || !self.runtimes[agent].outbox.is_empty() {
                    self.connect(agent);
                }
            }
            for agent in AGENTS {
                while !self.runtimes[agent].sent.is_empty() {
                    self.take(agent, true);
                }
            }
        }
    }

    fn check(&self) {
        let accepted = self.runtimes.values().flat_map(|runtime| &runtime.accepted).copied();
        let accepted: BTreeSet<_> = accepted.chain(self.posted.iter().map(|(id, _)| *id)).collect();
        for id in &accepted {
            assert!(self.messages.iter().any(|message| message.id == *id), "{id} was accepted and is lost");
        }
        for runtime in self.runtimes.values() {
            assert!(runtime.outbox.is_empty(), "no answer came: {:?}", runtime.outbox);
        }
        for message in &self.messages {
            let Address::Agent(to) = &message.to else {
                assert!(matches!(message.state, MessageState::Taken { .. }));
                continue;
            };
            let kept = &self.runtimes[to.as_str()].kept;
            match message.state {
                MessageState::Waiting => panic!("it waits though its receiver is there: {message:?}"),
                MessageState::Taken { .. } => assert!(kept.contains(&(message.from.clone(), message.id))),
                MessageState::Dead { .. } => assert!(message.expires_at <= at(self.now), "{message:?}"),
            }
        }
        self.check_order();
    }

    fn check_order(&self) {
        for ((from, to), written) in &self.written {
            let Address::Agent(agent) = to else { continue };
            // A message that the host was told is not stored may come all the same, at any time.
            let accepted = |id| *from != Address::Host || self.posted.contains(&(id, to.clone()));
            let kept = self.runtimes[agent.as_str()].kept.iter();
            let kept = kept.filter(|(sender, id)| sender == from && accepted(*id));
            let places: Vec<_> = kept.map(|(_, id)| written.iter().position(|it| it == id).unwrap()).collect();
            assert!(places.is_sorted(), "from {from} to {to}: {places:?}");
        }
    }
}

fn hello_of(agent: &str) -> Hello {
    Hello { boot: Boot(1), ..hello(agent, 1) }
}

/// A controller that dies before it could store that a message is too late knows it as one that waits.
#[test]
fn what_is_too_late_is_not_sent_by_the_next_controller_after_what_was_written_later() {
    let mut simulation = Simulation::new();
    let (web, ci) = (0, 2);
    for step in [
        Move::Connect(web),
        Move::Write { from: web, to: ci, ttl: 1 },
        Move::Storage { works: false },
        Move::Write { from: web, to: ci, ttl: 30 },
        Move::Wait(1),
        Move::Storage { works: true },
        Move::Connect(ci),
        Move::Take { agent: ci, says: false },
        Move::Die { after: 0 },
        Move::Post { to: web },
        Move::Connect(ci),
    ] {
        simulation.step(step);
    }
    simulation.come_to_rest();
    simulation.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_accepted_message_is_lost_and_none_comes_twice_or_out_of_order(moves in prop::collection::vec(any_move(), 1..120)) {
        let mut simulation = Simulation::new();
        for step in moves {
            simulation.step(step);
        }
        simulation.come_to_rest();
        simulation.check();
    }
}

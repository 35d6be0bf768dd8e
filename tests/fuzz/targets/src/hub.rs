//! Frames of a runtime that may say anything, in any order, to a hub with an honest neighbour.
//!
//! One frame stands in a line: a text frame as it is, a binary frame behind a zero byte. `~N` lets 10^N
//! seconds pass, and `!` ends the connection and begins another.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use vm_agent_hub::state::{
    ConnId, Directory, Effect, Event, Hub, Inbound, Member, Notice, OutputKnown, Record, StreamKey,
};
use vm_agent_schemas::credential::{Credential, JoinToken};
use vm_agent_schemas::ids::{Boot, Digest, Epoch, Incarnation, Nonce, Secret, SessionId, TaskId};
use vm_agent_schemas::message::{Allow, Party};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Job, Task, TaskSource, TaskState, Terms};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{
    Address, Challenge, ChallengeProof, Configuration, Configured, Envelope, FromHub, FromRuntime, Hello, Run,
    StreamTarget, TaskRef,
};

const PROTOCOL: &str = include_str!("../../../../schemas/PROTOCOL.md");

/// What the examples of the protocol say, so that they are a real handshake here, and a real task.
const NONCE: &str = "pcfYyg0Lw1vcrVYXgBgbFw";
const TOKEN: &str = "uD0qWm0fP4r1Jw8e6k3yQ2b7tXc5vN9hZaLsGdRiEoM";
const CHALLENGE: &str = "3q2-7wABAgMEBQYHCAkKCw";
const TASK: &str = "0190c5a8-0000-7000-8000-0000000000bb";
const OTHERS_TASK: &str = "0190c5a8-0000-7000-8000-0000000000bc";

/// More lines than any behaviour takes; a limit, so that no input takes long for its length alone.
const LINES_MAX: usize = 200;

/// The neighbour's connection, and its client's end of a stream.
const NEIGHBOUR: ConnId = ConnId(1);
const NEIGHBOURS_CLIENT: StreamKey = StreamKey(1);
const CLIENT: StreamKey = StreamKey(2);

/// A peer that has said nothing yet.
pub(crate) fn handshake(bytes: &[u8]) {
    let mut world = World::new();
    world.play(bytes);
    world.neighbour_is_well();
}

/// A peer with a session, a task and a stream.
pub(crate) fn session(bytes: &[u8]) {
    let mut world = World::new();
    for example in ["hello", "proof", "configured"] {
        world.line(example_of(example).as_bytes());
    }
    assert!(world.welcome, "the handshake of the protocol's examples is accepted");
    world.open_stream(CLIENT, "web");
    world.play(bytes);
    world.neighbour_is_well();
}

/// The text frame of that type in the protocol's document, on one line.
fn example_of(kind: &str) -> String {
    let blocks = PROTOCOL.split("```json from-runtime\n").skip(1).filter_map(|rest| rest.split("```").next());
    let values = blocks.filter_map(|block| serde_json::from_str::<serde_json::Value>(block).ok());
    let found = values.into_iter().find(|value| value["type"] == kind);
    found.expect("the document has an example of each type").to_string()
}

/// A hub with `web`, whose frames come from outside, and `db`, which is honest and has a session.
struct World {
    hub: Hub,
    now: Timestamp,
    /// The connection of the peer that says anything.
    conn: ConnId,
    /// Whether the peer was ever welcome.
    welcome: bool,
}

impl World {
    fn new() -> Self {
        let now = Timestamp::from_second(1_767_225_600).expect("it is in range");
        let hub = Hub::new("default".parse().expect("a name"), Span::from_secs(30));
        let mut world = Self { hub, now, conn: ConnId(2), welcome: false };
        world.tell(Event::Enroll(credential("web", now), Some(Configuration::default())));
        world.tell(Event::Enroll(credential("db", now), Some(Configuration::default())));
        world.tell(Event::Directory(directory()));
        world.neighbour();
        for (agent, id) in [("web", TASK), ("db", OTHERS_TASK)] {
            world.tell(Event::Submit(task(agent, id, now), OutputKnown::default()));
        }
        let theirs = task_ref(OTHERS_TASK);
        world.neighbour_says(FromRuntime::TaskStarted(theirs));
        world.open_stream(NEIGHBOURS_CLIENT, "db");
        world.connect();
        world
    }

    /// The honest neighbour comes.
    fn neighbour(&mut self) {
        let key = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).expect("any 32 bytes are a seed");
        let hello = Hello {
            protocol: (1, 1),
            fleet: "default".parse().expect("a name"),
            agent: name("db"),
            incarnation: Incarnation(1),
            nonce: Nonce::from_text(NONCE),
            machine_id: Digest::of(b"db"),
            boot: Boot(1),
            public_key: URL_SAFE_NO_PAD.encode(key.public_key()),
            join_token: Some(Secret::from_text(TOKEN)),
            runtime_version: "0.1.0".to_owned(),
            abilities: std::collections::BTreeSet::new(),
        };
        let challenge = Challenge { challenge: Nonce::from_text(CHALLENGE) };
        let signature = URL_SAFE_NO_PAD.encode(key.sign(&challenge.signed_bytes(&hello)));
        self.tell(opened(NEIGHBOUR, self.now));
        self.neighbour_says(FromRuntime::Hello(hello));
        self.neighbour_says(FromRuntime::Proof(ChallengeProof { signature }));
        self.neighbour_says(FromRuntime::Configured(Configured {
            digest: Some(Configuration::default().digest),
            problems: Vec::new(),
        }));
    }

    fn neighbour_says(&mut self, body: FromRuntime) -> Vec<Effect> {
        let envelope = Envelope::new(Address::Agent(name("db")), Address::Host, self.now, body);
        self.tell(Event::Received { conn: NEIGHBOUR, inbound: Inbound::Message(envelope) })
    }

    fn open_stream(&mut self, key: StreamKey, agent: &str) {
        let run = Run { argv: vec!["cat".to_owned()], ..Run::default() };
        self.tell(Event::OpenStream { key, agent: name(agent), target: StreamTarget::Run { run }, stdin: true });
    }

    fn connect(&mut self) {
        self.conn = ConnId(self.conn.0 + 1);
        self.tell(opened(self.conn, self.now));
    }

    fn play(&mut self, bytes: &[u8]) {
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).take(LINES_MAX) {
            self.line(line);
        }
    }

    fn line(&mut self, line: &[u8]) {
        match line {
            b"!" => {
                let told = self.tell(Event::Closed { conn: self.conn });
                self.check(&told);
                self.connect();
            }
            [b'~', digit @ b'0'..=b'5'] => {
                self.now += SignedDuration::from_secs(10_i64.pow(u32::from(digit - b'0')));
                // The neighbour is heard in time, whatever the jump: it is not what is looked at.
                self.neighbour_says(FromRuntime::Log(vm_agent_schemas::wire::LogLines {
                    lines: Vec::new(),
                    dropped: 0,
                }));
                self.tell(Event::Tick);
            }
            [0, frame @ ..] => self.receive(Inbound::from_binary(&Bytes::copy_from_slice(frame))),
            text => self.receive(match str::from_utf8(text) {
                Ok(text) => Inbound::from_text(text),
                Err(_) => Inbound::Invalid("no UTF-8".to_owned()),
            }),
        }
    }

    fn receive(&mut self, inbound: Inbound) {
        let effects = self.tell(Event::Received { conn: self.conn, inbound });
        self.check(&effects);
    }

    /// Tells the hub, makes its records durable at once, and gives all that it wants done.
    fn tell(&mut self, event: Event) -> Vec<Effect> {
        let (mut events, mut all) = (VecDeque::from([event]), Vec::new());
        while let Some(event) = events.pop_front() {
            let effects = self.hub.handle(event, self.now);
            let stored = effects.iter().filter_map(|effect| match effect {
                Effect::Store(record) => Some(record.clone()),
                _ => None,
            });
            let stored: Vec<Record> = stored.collect();
            if !stored.is_empty() {
                events.push_back(Event::Stored(stored));
            }
            all.extend(effects);
        }
        self.welcome |= all
            .iter()
            .any(|effect| matches!(effect, Effect::Send { conn, body: FromHub::Welcome(_), .. } if *conn == self.conn));
        all
    }

    /// Whatever the peer says, it says it as itself, and only to whom it may.
    fn check(&self, effects: &[Effect]) {
        let web = Address::Agent(name("web"));
        for effect in effects {
            match effect {
                Effect::Send { conn, body, .. } => {
                    assert_eq!(*conn, self.conn, "it is answered, and nobody else: {body:?}");
                }
                Effect::SendData { conn, .. } | Effect::Close { conn } => assert_ne!(*conn, NEIGHBOUR, "{effect:?}"),
                Effect::Deliver { conn, message } => {
                    assert!(*conn == self.conn || message.from == web, "{message:?} is told in another's name");
                }
                Effect::Client { key, .. } | Effect::Opening { key, .. } => assert_ne!(*key, NEIGHBOURS_CLIENT),
                Effect::Store(record) => assert!(is_its_own(record), "it changes what is not its own: {record:?}"),
                Effect::Notify(notice) => assert!(!matches!(notice, Notice::TaskEnded(task) if !is_webs(task))),
                Effect::Posted { .. } => panic!("nobody has posted anything"),
                Effect::Shown { .. } | Effect::Distrusted { .. } => panic!("nobody has asked where it runs"),
            }
        }
    }

    /// The neighbour has a session as before, and is served.
    fn neighbour_is_well(&mut self) {
        let answered = self.neighbour_says(FromRuntime::TaskEnded(vm_agent_schemas::wire::TaskEnded {
            task: task_ref(OTHERS_TASK),
            outcome: vm_agent_schemas::wire::TaskOutcome::Exited { code: 0 },
            report: vm_agent_schemas::task::Report::default(),
        }));
        let acknowledged = |effect: &Effect| {
            matches!(effect, Effect::Send { conn: NEIGHBOUR, body: FromHub::TaskAck(task), .. }
                if *task == task_ref(OTHERS_TASK))
        };
        assert!(answered.iter().any(acknowledged), "the neighbour's task ends: {answered:?}");
    }
}

/// Whether a peer that speaks as `web` may bring this about.
fn is_its_own(record: &Record) -> bool {
    match record {
        Record::Credential(credential) => credential.agent == name("web"),
        // That its neighbour's task runs need not be durable at once, and is stored with what comes next.
        Record::Task(task) => is_webs(task) || matches!(task.state, TaskState::Running { .. }),
        Record::Output { task, .. } => *task == task_ref(TASK),
        Record::Message(message) => [&message.from, &message.to].contains(&&Address::Agent(name("web"))),
    }
}

fn is_webs(task: &Task) -> bool {
    task.agent.as_ref() == Some(&name("web"))
}

fn opened(conn: ConnId, now: Timestamp) -> Event {
    Event::Opened {
        conn,
        peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)),
        since: now,
        challenge: Nonce::from_text(CHALLENGE),
        session: SessionId::generate(),
    }
}

fn credential(agent: &str, now: Timestamp) -> Credential {
    let expires_at = now + SignedDuration::from_hours(1);
    Credential {
        agent: name(agent),
        incarnation: Incarnation(1),
        nonce: Nonce::from_text(NONCE),
        join: Some(JoinToken { digest: Secret::from_text(TOKEN).digest(), expires_at }),
        binding: None,
        boot: Boot(0),
        epoch: Epoch(0),
    }
}

fn directory() -> Directory {
    let members = ["web", "db", "tester"].map(|agent| (name(agent), Member::default())).into();
    Directory { members, allow: vec![Allow { from: Party::Agent(name("web")), to: Party::Agent(name("db")) }] }
}

fn task(agent: &str, id: &str, now: Timestamp) -> Task {
    let source = TaskSource::Request { author: "ann".to_owned(), key: None };
    Task::new(task_ref(id).task, Some(name(agent)), source, Job::exec(["true"]), Terms::default(), now)
}

fn task_ref(id: &str) -> TaskRef {
    let task: TaskId = id.parse().expect("an id");
    TaskRef { task, attempt: 1 }
}

fn name(agent: &str) -> AgentName {
    agent.parse().expect("a name")
}

//! A hub with one agent, and a runtime that can be told to do right or wrong.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use vm_agent_schemas::credential::{Credential, JoinToken};
use vm_agent_schemas::ids::{Boot, Digest, Epoch, Incarnation, MessageId, Nonce, RequestId, Secret, SessionId, TaskId};
use vm_agent_schemas::message::Post;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Job, Report, Task, TaskSource, Terms};
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_schemas::wire::{
    Address, Challenge, ChallengeProof, Configuration, Configured, Envelope, Evidence, Frame, FromHub, FromRuntime,
    HealthReport, Hello, LogLines, MessageRef, RefusalCode, Rotated, Run, StreamEnded, StreamOpened, StreamTaken,
    StreamTarget, TaskEnded, TaskOutcome, TaskRef, UpgradeFailed, Welcome,
};

use crate::state::{ConnId, Effect, Event, Hub, Inbound, Notice, OutputKnown, Record};

pub(super) const HEARTBEAT: Span = Span::from_secs(30);

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub(super) fn name(text: &str) -> AgentName {
    text.parse().unwrap()
}

/// The credential of an incarnation that nobody has joined yet.
pub(super) fn credential(agent: &str, incarnation: u64) -> Credential {
    Credential {
        agent: name(agent),
        incarnation: Incarnation(incarnation),
        nonce: Nonce::from_text("nonce"),
        join: Some(JoinToken { digest: Secret::from_text("token").digest(), expires_at: at(600) }),
        binding: None,
        boot: Boot(0),
        epoch: Epoch(0),
    }
}

/// A key made from one byte.
pub(super) fn key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

pub(super) fn public(key: &Ed25519KeyPair) -> String {
    URL_SAFE_NO_PAD.encode(key.public_key())
}

pub(super) fn sign(key: &Ed25519KeyPair, challenge: &Challenge, hello: &Hello) -> FromRuntime {
    let signature = URL_SAFE_NO_PAD.encode(key.sign(&challenge.signed_bytes(hello)));
    FromRuntime::Proof(ChallengeProof { signature })
}

/// The hello of a runtime with the key of that byte.
pub(super) fn hello(agent: &str, seed: u8) -> Hello {
    Hello {
        protocol: (1, 1),
        fleet: "default".parse().unwrap(),
        agent: name(agent),
        incarnation: Incarnation(1),
        nonce: Nonce::from_text("nonce"),
        machine_id: Digest::of(b"machine"),
        boot: Boot(1),
        public_key: public(&key(seed)),
        join_token: Some(Secret::from_text("token")),
        runtime_version: "0.1.0".to_owned(),
        abilities: std::collections::BTreeSet::new(),
    }
}

pub(super) fn run() -> Run {
    Run { argv: vec!["true".to_owned()], ..Run::default() }
}

/// A process with pipes.
pub(super) fn target() -> StreamTarget {
    StreamTarget::Run { run: run() }
}

pub(super) fn task(agent: &str) -> Task {
    let source = TaskSource::Request { author: "test".to_owned(), key: None };
    let terms = Terms { timeout: Span::from_secs(60), ..Terms::default() };
    Task::new(TaskId::generate(), Some(name(agent)), source, Job::exec(["true"]), terms, at(0))
}

/// The task is accepted, and nothing of its output is known.
pub(super) fn submit(task: &Task) -> Event {
    Event::Submit(task.clone(), OutputKnown::default())
}

pub(super) const fn of(task: &Task) -> TaskRef {
    TaskRef { task: task.id, attempt: task.attempt }
}

pub(super) fn ended(task: TaskRef, code: i32) -> FromRuntime {
    FromRuntime::TaskEnded(TaskEnded { task, outcome: TaskOutcome::Exited { code }, report: Report::default() })
}

pub(super) fn post() -> Post {
    Post { subject: "greeting".to_owned(), body: "hello".into(), in_reply_to: None, ttl_ms: None }
}

pub(super) fn health() -> HealthReport {
    HealthReport {
        cpus: 2,
        load: 0.5,
        memory_total: ByteSize::from_gib(2),
        memory_used: ByteSize::from_gib(1),
        disk_total: ByteSize::from_gib(20),
        disk_used: ByteSize::from_gib(2),
        uptime_secs: 60,
        runtime_memory: ByteSize::from_mib(8),
        tasks: 0,
        streams: 0,
        terminals: Vec::new(),
        services: std::collections::BTreeMap::new(),
    }
}

/// One message of each type that a runtime can send.
pub(super) fn every_message() -> Vec<FromRuntime> {
    let task = TaskRef { task: TaskId::generate(), attempt: 1 };
    let outcome = TaskOutcome::Exited { code: 0 };
    vec![
        FromRuntime::Hello(hello("web", 1)),
        FromRuntime::Proof(ChallengeProof { signature: "c2ln".to_owned() }),
        FromRuntime::Health(health()),
        FromRuntime::Log(LogLines { lines: vec!["line".to_owned()], dropped: 0 }),
        FromRuntime::Configured(Configured { digest: Some(Configuration::default().digest), problems: Vec::new() }),
        FromRuntime::TaskStarted(task),
        ended(task, 0),
        FromRuntime::Message(post()),
        FromRuntime::MessageTaken(MessageRef { message: MessageId::generate() }),
        FromRuntime::Rotated(Rotated { public_key: String::new(), signature: String::new() }),
        FromRuntime::UpgradeFailed(UpgradeFailed {
            version: "2".to_owned(),
            sha256: Digest::of(b"program"),
            reason: "it does not run".to_owned(),
        }),
        FromRuntime::Evidence(Evidence { request: RequestId::generate(), machine: None, boot: None, answer: None }),
        FromRuntime::StreamOpened(StreamOpened { stream: 1, offset: 0 }),
        FromRuntime::StreamEnded(StreamEnded { stream: 1, outcome }),
        FromRuntime::StreamTaken(StreamTaken { stream: 1, channel: vm_agent_schemas::wire::Channel::Stdin, offset: 0 }),
    ]
}

pub(super) struct World {
    pub(super) hub: Hub,
    /// Seconds since the test began.
    pub(super) now: i64,
}

impl World {
    /// A hub that expects agents `web` and `db`.
    pub(super) fn new() -> Self {
        let mut world = Self { hub: Hub::new("default".parse().unwrap(), HEARTBEAT), now: 0 };
        for agent in ["web", "db"] {
            world.tell(Event::Enroll(credential(agent, 1), Some(Configuration::default())));
        }
        world
    }

    /// A hub with a session of `web` on connection 1.
    pub(super) fn joined() -> Self {
        let mut world = Self::new();
        world.join(1, &hello("web", 1), 1);
        world
    }

    pub(super) fn tell(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.hub.handle(event, at(self.now));
        let stored = stored(&effects);
        if !stored.is_empty() {
            assert_eq!(self.hub.handle(Event::Stored(stored), at(self.now)), []);
        }
        effects
    }

    pub(super) fn open(&mut self, conn: u64) -> Vec<Effect> {
        self.tell(Event::Opened {
            conn: ConnId(conn),
            peer: "127.0.0.1:5000".parse().unwrap(),
            since: at(self.now),
            challenge: Nonce::from_text(format!("challenge {conn}")),
            session: SessionId::generate(),
        })
    }

    pub(super) fn say(&mut self, conn: u64, from: &str, body: FromRuntime) -> Vec<Effect> {
        self.tell(Event::Received { conn: ConnId(conn), inbound: message(from, body) })
    }

    pub(super) fn data(&mut self, conn: u64, frame: Frame) -> Vec<Effect> {
        self.tell(Event::Received { conn: ConnId(conn), inbound: Inbound::Data(frame) })
    }

    pub(super) fn tick_at(&mut self, now: i64) -> Vec<Effect> {
        self.now = now;
        self.tell(Event::Tick)
    }

    /// Opens a connection, says hello and proves it with the key of that byte.
    pub(super) fn join(&mut self, conn: u64, hello: &Hello, seed: u8) -> Vec<Effect> {
        self.open(conn);
        let agent = hello.agent.as_str();
        let answer = self.say(conn, agent, FromRuntime::Hello(hello.clone()));
        let [Effect::Send { body: FromHub::Challenge(challenge), .. }] = answer.as_slice() else { return answer };
        self.say(conn, agent, sign(&key(seed), challenge, hello))
    }
}

pub(super) fn message(from: &str, body: FromRuntime) -> Inbound {
    let from = from.to_owned().try_into().unwrap();
    Inbound::Message(Envelope::new(from, Address::Host, at(0), body))
}

/// What was sent on a connection.
pub(super) fn sent(effects: &[Effect], conn: u64) -> Vec<FromHub> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { conn: to, body, .. } if *to == ConnId(conn) => Some(body.clone()),
        _ => None,
    });
    sent.collect()
}

pub(super) fn welcome(effects: &[Effect]) -> Option<Welcome> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { body: FromHub::Welcome(welcome), .. } => Some(welcome.clone()),
        _ => None,
    })
}

pub(super) fn notices(effects: &[Effect]) -> Vec<Notice> {
    let notices = effects.iter().filter_map(|effect| match effect {
        Effect::Notify(notice) => Some(notice.clone()),
        _ => None,
    });
    notices.collect()
}

pub(super) fn stored(effects: &[Effect]) -> Vec<Record> {
    let stored = effects.iter().filter_map(|effect| match effect {
        Effect::Store(record) => Some(record.clone()),
        _ => None,
    });
    stored.collect()
}

/// The code with which a connection was refused; it was closed right after.
pub(super) fn refused(effects: &[Effect], conn: u64) -> Option<RefusalCode> {
    let position = effects.iter().position(
        |effect| matches!(effect, Effect::Send { conn: to, body: FromHub::Refused(_), .. } if *to == ConnId(conn)),
    )?;
    assert_eq!(effects.get(position + 1), Some(&Effect::Close { conn: ConnId(conn) }));
    match &effects[position] {
        Effect::Send { body: FromHub::Refused(refused), .. } => {
            assert_eq!(refused.retry, refused.code.retry());
            Some(refused.code)
        }
        _ => None,
    }
}

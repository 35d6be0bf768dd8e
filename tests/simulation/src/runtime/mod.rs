//! What runs in a machine: a runtime with a disk of its own (seed, keys, journal, boxes), which speaks the
//! protocol as `agent/` does.

mod attempts;
mod post;

pub use attempts::{Attempt, Known, Told};
pub use post::{Boxes, Outbound};

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fastrand::Rng;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use vm_agent_schemas::ids::{Boot, Digest};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{
    Challenge, ChallengeProof, Configuration, Configured, FromRuntime, HealthReport, Hello, PROTOCOL, Rotated, Seed,
    TaskOutcome, TaskRef, rotation_bytes,
};

use crate::net::Wire;

/// A runtime, and what lies on its disk.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The seed that the driver handed over last.
    pub seed: Seed,
    key: Arc<Ed25519KeyPair>,
    /// Another key, that takes the place of the first once it was accepted.
    next: Option<NextKey>,
    machine_id: Digest,
    /// Which start this is.
    pub boot: Boot,
    /// Whether a hub has bound its key.
    pub joined: bool,
    /// The attempts, in the order in which they came.
    pub journal: Vec<Attempt>,
    /// Messages.
    pub boxes: Boxes,
    /// Which run of the process this is: what was meant for an earlier one comes too late.
    pub run: u64,
    /// Whether the process runs.
    pub up: bool,
    /// It was refused, and told not to come back.
    pub given_up: bool,
    /// It says nothing, though it is connected.
    pub silent: bool,
    /// The configuration that it works with.
    pub configuration: Option<Configuration>,
    /// The way to the hub.
    pub wire: Option<Wire>,
}

impl Runtime {
    /// The runtime of a machine that has just been made.
    #[must_use]
    pub fn new(seed: Seed, rng: &mut Rng) -> Self {
        let mut bytes = [0; 32];
        rng.fill(&mut bytes);
        let machine_id = Digest::of(&bytes);
        let key = Ed25519KeyPair::from_seed_unchecked(&bytes).expect("any 32 bytes are the seed of a key");
        let key = Arc::new(key);
        Self {
            seed,
            key,
            machine_id,
            boot: Boot(0),
            joined: false,
            next: None,
            journal: Vec::new(),
            boxes: Boxes::default(),
            run: 0,
            up: false,
            given_up: false,
            silent: false,
            configuration: None,
            wire: None,
        }
    }

    /// The same disk in another machine.
    #[must_use]
    pub fn copy(&self, rng: &mut Rng) -> Self {
        let machine_id = Digest::of(&rng.u128(..).to_le_bytes());
        Self { machine_id, ..self.clone() }
    }

    /// Whether both lie in one machine.
    #[must_use]
    pub fn is_same_machine(&self, other: &Self) -> bool {
        self.machine_id == other.machine_id
    }

    /// Whether it is on the machine with this id.
    #[must_use]
    pub fn is_on(&self, machine_id: &Digest) -> bool {
        self.machine_id == *machine_id
    }

    /// The process starts: whatever had begun was interrupted.
    pub fn start(&mut self) {
        self.run += 1;
        self.boot = self.boot.next();
        (self.up, self.given_up, self.silent, self.wire) = (true, false, false, None);
        for attempt in &mut self.journal {
            attempt.detach();
            if matches!(attempt.known, Known::Started) {
                attempt.known = Known::Ended(TaskOutcome::Interrupted);
            }
        }
    }

    /// The process ends.
    pub fn stop(&mut self) {
        self.run += 1;
        (self.up, self.wire) = (false, None);
    }

    /// Its first word.
    #[must_use]
    pub fn hello(&self) -> Hello {
        Hello {
            protocol: (PROTOCOL, PROTOCOL),
            fleet: self.seed.fleet.clone(),
            agent: self.seed.agent.clone(),
            incarnation: self.seed.incarnation,
            nonce: self.seed.nonce.clone(),
            machine_id: self.machine_id.clone(),
            boot: self.boot,
            public_key: encoded(self.key_in_use()),
            join_token: (!self.joined).then(|| self.seed.join_token.clone()),
            runtime_version: "0.1.0".to_owned(),
            abilities: std::collections::BTreeSet::new(),
        }
    }

    /// The answer to a challenge.
    #[must_use]
    pub fn prove(&self, challenge: &Challenge) -> FromRuntime {
        let signature = URL_SAFE_NO_PAD.encode(self.key_in_use().sign(&challenge.signed_bytes(&self.hello())));
        FromRuntime::Proof(ChallengeProof { signature })
    }

    /// The word on the configuration that it works with.
    #[must_use]
    pub fn configured(&self) -> FromRuntime {
        let digest = self.configuration.as_ref().map(|it| it.digest.clone());
        FromRuntime::Configured(Configured { digest, problems: Vec::new() })
    }

    /// The attempts that a new session has to be told of.
    pub fn unsettled(&mut self) -> Vec<FromRuntime> {
        self.journal.iter_mut().for_each(Attempt::detach);
        let open = self.journal.iter().filter(|attempt| attempt.is_open());
        open.map(|attempt| FromRuntime::TaskStarted(attempt.task)).collect()
    }

    /// What is known of an attempt.
    pub fn attempt(&mut self, task: TaskRef) -> Option<&mut Attempt> {
        self.journal.iter_mut().find(|attempt| attempt.task == task)
    }

    /// The attempts that are being made now.
    pub fn running(&self) -> impl Iterator<Item = TaskRef> {
        self.journal.iter().filter(|attempt| matches!(attempt.known, Known::Started)).map(|attempt| attempt.task)
    }

    // Keys.

    /// Makes another key, and proves that it is held.
    pub fn rotate(&mut self, challenge: &Challenge, rng: &mut Rng) -> FromRuntime {
        let key = new_key(rng);
        let public_key = encoded(&key);
        let bytes = rotation_bytes(challenge, &self.seed.agent, self.seed.incarnation, &public_key);
        let signature = URL_SAFE_NO_PAD.encode(key.sign(&bytes));
        self.next = Some(NextKey { key, acknowledged: false });
        FromRuntime::Rotated(Rotated { public_key, signature })
    }

    /// The hub holds the other key.
    pub fn rotated(&mut self, public_key: &str) {
        if let Some(next) = self.next.as_mut().filter(|next| encoded(&next.key) == public_key) {
            next.acknowledged = true;
        }
    }

    /// A session was accepted with the key in use: the one before it is void.
    pub fn welcome(&mut self) {
        self.joined = true;
        if let Some(next) = self.next.take_if(|next| next.acknowledged) {
            self.key = next.key;
        }
    }

    fn key_in_use(&self) -> &Ed25519KeyPair {
        self.next.as_ref().filter(|next| next.acknowledged).map_or(&self.key, |next| &next.key)
    }
}

/// A key that is to take another's place.
#[derive(Debug, Clone)]
struct NextKey {
    key: Arc<Ed25519KeyPair>,
    /// The hub has said that it holds it.
    acknowledged: bool,
}

fn new_key(rng: &mut Rng) -> Arc<Ed25519KeyPair> {
    let mut bytes = [0; 32];
    rng.fill(&mut bytes);
    Arc::new(Ed25519KeyPair::from_seed_unchecked(&bytes).expect("any 32 bytes are the seed of a key"))
}

fn encoded(key: &Ed25519KeyPair) -> String {
    URL_SAFE_NO_PAD.encode(key.public_key())
}

/// A report that all is well.
#[must_use]
pub fn health() -> FromRuntime {
    FromRuntime::Health(HealthReport {
        cpus: 1,
        load: 0.0,
        memory_total: ByteSize::from_gib(1),
        memory_used: ByteSize::from_mib(100),
        disk_total: ByteSize::from_gib(5),
        disk_used: ByteSize::from_gib(1),
        uptime_secs: 60,
        runtime_memory: ByteSize::from_mib(8),
        tasks: 0,
        streams: 0,
        terminals: Vec::new(),
        services: BTreeMap::new(),
    })
}

//! What runs in a machine: a runtime with a disk of its own (seed, key, journal), which speaks the
//! protocol as `agent/` does.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fastrand::Rng;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use vm_agent_schemas::ids::{Boot, Digest};
use vm_agent_schemas::task::Report;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{
    Challenge, ChallengeProof, Configuration, Configured, FromRuntime, HealthReport, Hello, PROTOCOL, Seed, TaskEnded,
    TaskOutcome, TaskRef,
};

use crate::net::Wire;

/// A runtime, and what lies on its disk.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The seed that the driver handed over last.
    pub seed: Seed,
    key: Arc<Ed25519KeyPair>,
    machine_id: Digest,
    /// Which start this is.
    pub boot: Boot,
    /// Whether a hub has bound its key.
    pub joined: bool,
    /// What is known of each task, in the order in which they came.
    pub journal: Vec<(TaskRef, Known)>,
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

/// What is known of a task.
#[derive(Debug, Clone)]
pub enum Known {
    /// It has begun.
    Started,
    /// It has ended, and the hub may not know.
    Ended(TaskOutcome),
    /// The hub knows.
    Settled(TaskOutcome),
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
            journal: Vec::new(),
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

    /// The process starts: whatever had begun was interrupted.
    pub fn start(&mut self) {
        self.run += 1;
        self.boot = self.boot.next();
        (self.up, self.given_up, self.silent, self.wire) = (true, false, false, None);
        for (_, known) in &mut self.journal {
            if matches!(known, Known::Started) {
                *known = Known::Ended(TaskOutcome::Interrupted);
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
            public_key: URL_SAFE_NO_PAD.encode(self.key.public_key()),
            join_token: (!self.joined).then(|| self.seed.join_token.clone()),
            runtime_version: "0.1.0".to_owned(),
        }
    }

    /// The answer to a challenge.
    #[must_use]
    pub fn prove(&self, challenge: &Challenge) -> FromRuntime {
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(&challenge.signed_bytes(&self.hello())));
        FromRuntime::Proof(ChallengeProof { signature })
    }

    /// The word on the configuration that it works with.
    #[must_use]
    pub fn configured(&self) -> FromRuntime {
        let digest = self.configuration.as_ref().map(|it| it.digest.clone());
        FromRuntime::Configured(Configured { digest, problems: Vec::new() })
    }

    /// What a new session has to be told.
    #[must_use]
    pub fn unsettled(&self) -> Vec<FromRuntime> {
        let open = self.journal.iter().filter(|(_, known)| !matches!(known, Known::Settled(_)));
        open.map(|(task, _)| FromRuntime::TaskStarted(*task)).collect()
    }

    /// What is known of a task.
    pub fn known(&mut self, task: TaskRef) -> Option<&mut Known> {
        self.journal.iter_mut().find(|(known, _)| *known == task).map(|(_, known)| known)
    }
}

/// The word that a task is over.
#[must_use]
pub fn ended(task: TaskRef, outcome: TaskOutcome) -> FromRuntime {
    FromRuntime::TaskEnded(TaskEnded { task, outcome, report: Report::default() })
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

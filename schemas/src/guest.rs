//! The channel between a driver and the guest program of a machine: what a driver says before there is a
//! runtime, over a line that needs no network.
//!
//! JSON, one object a line. The channel is at-least-once: the host connects and goes at will, so either side
//! may read the rest of a line whose beginning a former reader took, or an answer that was meant for that
//! one. Hence every request has an id and can be carried out twice, and what is no line of this module is
//! passed over.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ids::{BootId, Digest, Nonce, RequestId, Secret};
use crate::names::InstanceName;
use crate::wire::Seed;

/// The name of the virtio-serial port that is the channel.
pub const CHANNEL_NAME: &str = "vm-agent.0";
/// Where a guest finds the channel.
pub const CHANNEL_DEVICE: &str = "/dev/virtio-ports/vm-agent.0";
/// Longest line, in bytes, without its line break.
pub const LINE_MAX: usize = 256 * 1024;
/// The label of the volume that brings the runtime into a machine. It is the one by which cloud-init finds
/// its NoCloud data, so one volume serves both.
pub const SEED_DISK_LABEL: &str = "CIDATA";
/// The name of the runtime on that volume.
pub const SEED_DISK_RUNTIME: &str = "vm-agent-runtime";
/// The unit of the runtime in a guest.
pub const RUNTIME_UNIT: &str = "vm-agent-runtime.service";
/// The unit that brings about what else the machine is to have, before that; there where there is any such.
pub const PROVISION_UNIT: &str = "vm-agent-provision.service";

/// Where a challenge lies for the runtime of a machine: in memory, and for its user alone.
pub const CHALLENGE_FILE: &str = "/run/vm-agent/challenge";
/// The environment variable that names that file, where it is another.
pub const CHALLENGE_VARIABLE: &str = "VM_AGENT_CHALLENGE_FILE";

/// What the host says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ToGuest {
    /// Be this machine, and run the runtime of this seed. Answered with `Done` or `Failed`.
    Seed(Box<SeedRequest>),
    /// Be ready to be copied, each copy to become another machine: the runtime runs and waits for its seed. Only a
    /// machine that has had no seed can. Answered with `Done` or `Failed`.
    Prepare {
        /// The request.
        id: RequestId,
    },
    /// Show which instance you are. Answered with `Proof`.
    Prove {
        /// The request.
        id: RequestId,
    },
    /// Tell how it goes with the runtime. Answered with `State`.
    Status {
        /// The request.
        id: RequestId,
    },
    /// Lay this where only the runtime of this machine reads it, in the place of what lay there, and show which
    /// instance you are. Answered with `Proof` or `Failed`.
    Challenge {
        /// The request.
        id: RequestId,
        /// What to lay there.
        challenge: Secret,
    },
}

/// A seed on its way into a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedRequest {
    /// The request.
    pub id: RequestId,
    /// The seed.
    pub seed: Seed,
    /// What makes the machine another than its copies.
    pub identity: Identity,
}

/// What tells a machine from its copies, and what a machine that has slept can't know. It is renewed with
/// every boot, restore, clone and warm start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The host name: that of the instance.
    pub hostname: InstanceName,
    /// What `/etc/machine-id` is to hold.
    pub machine_id: MachineId,
    /// The address that the network card is to have; nothing leaves it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The time, as the host has it while it sends this.
    pub time: Timestamp,
    /// Fresh randomness for the kernel.
    pub entropy: Entropy,
}

/// What a guest says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum FromGuest {
    /// The guest program has opened the channel. It is the answer to nothing: a host that connects to a
    /// guest that is up may hear it late or never.
    Ready(Ready),
    /// A request has been carried out.
    Done {
        /// The request.
        id: RequestId,
    },
    /// A request could not be carried out; it may be sent again.
    Failed {
        /// The request.
        id: RequestId,
        /// Why, as a sentence.
        reason: String,
    },
    /// Which instance this is.
    Proof(Proof),
    /// How it goes with the runtime.
    State(State),
}

impl FromGuest {
    /// The request that this answers; nothing for what answers none.
    #[must_use]
    pub const fn answers(&self) -> Option<RequestId> {
        match self {
            Self::Ready(_) => None,
            Self::Done { id } | Self::Failed { id, .. } => Some(*id),
            Self::Proof(proof) => Some(proof.id),
            Self::State(state) => Some(state.id),
        }
    }
}

/// The first word of a guest program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// The guest program's version.
    pub version: String,
    /// The boot.
    pub boot_id: BootId,
    /// The nonce of the seed that the machine holds; nothing before its first.
    pub nonce: Option<Nonce>,
}

/// What shows which instance a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// The request.
    pub id: RequestId,
    /// The nonce of the seed that the machine holds; nothing before its first.
    pub nonce: Option<Nonce>,
    /// What `/etc/machine-id` holds; nothing where it holds no such id.
    pub machine_id: Option<MachineId>,
    /// The boot.
    pub boot_id: BootId,
    /// The hypervisor that the guest sees, in systemd's words, such as `kvm` or `qemu`; nothing where it sees
    /// none or can't tell.
    pub hypervisor: Option<String>,
}

/// What a machine says of itself, asked by another way than its runtime's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The nonce of the seed that the machine holds; nothing before its first.
    pub nonce: Option<Nonce>,
    /// What `/etc/machine-id` holds; nothing where it holds no such id.
    pub machine_id: Option<MachineId>,
    /// The boot.
    pub boot_id: BootId,
    /// The hypervisor that it sees, in systemd's words; nothing where it sees none or can't tell.
    pub hypervisor: Option<String>,
}

impl From<Proof> for Witness {
    fn from(Proof { nonce, machine_id, boot_id, hypervisor, .. }: Proof) -> Self {
        Self { nonce, machine_id, boot_id, hypervisor }
    }
}

/// How it goes with the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The request.
    pub id: RequestId,
    /// How far the machine's boot has come, in systemd's words, such as `starting`, `running` or `degraded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The runtime.
    pub runtime: UnitState,
    /// What brings about what else the machine is to have: `active` once that is there. Nothing where there is
    /// nothing to be brought about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provision: Option<UnitState>,
    /// cloud-init; nothing where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInitState>,
}

/// A unit of systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnitState {
    /// In systemd's words, such as `active`, `failed` or `inactive`.
    pub state: String,
    /// In more of systemd's words, such as `running`, `auto-restart` or `dead`.
    pub detail: String,
    /// How its last run ended, in systemd's words: `success`, `exit-code`, `signal`, ….
    pub result: String,
    /// How often it has been started again.
    pub restarts: u32,
    /// The last lines of its journal, the latest last.
    pub journal: Vec<String>,
}

/// How far cloud-init has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudInitState {
    /// Whether it has ended, well or not.
    pub done: bool,
    /// The stage that it is in; nothing when it is in none.
    pub stage: Option<String>,
    /// What went wrong, in its own words.
    pub errors: Vec<String>,
}

/// Why a text is not a value of this module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct Invalid {
    text: String,
    expected: &'static str,
}

/// The content of `/etc/machine-id`: 128 bits as 32 lower-case hexadecimal digits, not all of them zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(String);

impl MachineId {
    /// A new random one.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is told of it over a network: nobody can tell the id by it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// The same in the form of a UUID, as hardware has one.
    #[must_use]
    pub fn hyphenated(&self) -> String {
        let [a, b, c, d, e] = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| &self.0[from..to]);
        format!("{a}-{b}-{c}-{d}-{e}")
    }
}

impl FromStr for MachineId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits && text.bytes().any(|b| b != b'0') {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid { text: text.to_owned(), expected: "a machine id: 32 lower-case hexadecimal digits" })
        }
    }
}

/// The address of a network card: one that belongs to a single card, as six pairs of lower-case hexadecimal
/// digits with colons between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(String);

impl Mac {
    /// The address of these bytes below the prefix `52:54:00`, which QEMU's cards have.
    #[must_use]
    pub fn of_qemu([a, b, c]: [u8; 3]) -> Self {
        Self(format!("52:54:00:{a:02x}:{b:02x}:{c:02x}"))
    }

    /// The address as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Mac {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.to_ascii_lowercase();
        let is_byte = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
        let six = text.split(':').count() == 6 && text.split(':').all(is_byte);
        let some = text.bytes().any(|b| !matches!(b, b'0' | b':'));
        // The lowest bit of the first byte marks the address of a group.
        let single =
            text.as_bytes().get(1).is_some_and(|b| matches!(b, b'0' | b'2' | b'4' | b'6' | b'8' | b'a' | b'c' | b'e'));
        if six && some && single {
            Ok(Self(text))
        } else {
            Err(Invalid { text, expected: "the address of a network card, such as 52:54:00:12:34:56" })
        }
    }
}

macro_rules! through_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

through_text!(MachineId);
through_text!(Mac);

/// 64 random bytes, in base64 on the channel. What a kernel makes its keys of is nobody's to see, so it does
/// not print itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Entropy([u8; Self::LEN]);

impl Entropy {
    /// How many bytes.
    pub const LEN: usize = 64;

    /// New randomness of the operating system.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; Self::LEN];
        SystemRandom::new()
            .fill(&mut bytes)
            .expect("the operating system gives random bytes, or nothing here is safe to go on with");
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl TryFrom<String> for Entropy {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("entropy is 64 bytes in base64")
    }
}

impl From<Entropy> for String {
    fn from(entropy: Entropy) -> Self {
        STANDARD.encode(entropy.0)
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy(…)")
    }
}

/// A message as its line on the channel, line break included.
pub fn line<T: Serialize>(message: &T) -> Vec<u8> {
    // Our own types serialise to JSON without fail: no maps with keys that are not texts.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Makes messages out of the bytes that the channel brings, however they are cut.
#[derive(Debug)]
pub struct Lines<T> {
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
    /// That line is too long, and passed over up to its end.
    overlong: bool,
    messages: PhantomData<fn() -> T>,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self { rest: Vec::new(), overlong: false, messages: PhantomData }
    }
}

impl<T: DeserializeOwned> Lines<T> {
    /// Takes bytes, and gives what each line that they complete says, in order. Empty lines say nothing.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<T, LineError>> {
        let mut said = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (end, piece) = match piece {
                [line @ .., b'\n'] => (true, line),
                beginning => (false, beginning),
            };
            self.overlong |= self.rest.len() + piece.len() > LINE_MAX;
            if self.overlong {
                self.rest.clear();
            } else {
                self.rest.extend_from_slice(piece);
            }
            if end {
                said.extend(self.complete());
            }
        }
        said
    }

    fn complete(&mut self) -> Option<Result<T, LineError>> {
        if std::mem::take(&mut self.overlong) {
            return Some(Err(LineError::Overlong));
        }
        let line = std::mem::take(&mut self.rest);
        let text = line.trim_ascii();
        let parse = || serde_json::from_slice(text).map_err(|error| LineError::Unknown { column: error.column() });
        (!text.is_empty()).then(parse)
    }
}

/// Why a line says nothing. What stands in it is not shown: it may be a seed, which holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It is too long.
    #[error("a line of the channel has more than {LINE_MAX} bytes")]
    Overlong,
    /// It is no message: the rest of a line that a former reader began, or a word of another version.
    #[error("a line of the channel is no message (from column {column} on)")]
    Unknown {
        /// Where it stops making sense.
        column: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;
    use serde_json::{Value, json};

    fn request() -> ToGuest {
        ToGuest::Seed(Box::new(SeedRequest {
            id: RequestId::generate(),
            seed: Seed {
                fleet: "default".parse().unwrap(),
                agent: "web".parse().unwrap(),
                incarnation: Incarnation(3),
                nonce: Nonce::generate(),
                hub: "wss://10.0.2.2:9090/v1/runtime".to_owned(),
                hub_pin: None,
                join_token: Secret::from_text("hunter2"),
            },
            identity: Identity {
                hostname: "web".parse().unwrap(),
                machine_id: MachineId::generate(),
                mac: Some(Mac::of_qemu([0x12, 0xab, 0])),
                time: "2026-01-02T03:04:05Z".parse().unwrap(),
                entropy: Entropy::generate(),
            },
        }))
    }

    fn status() -> ToGuest {
        ToGuest::Status { id: RequestId::generate() }
    }

    #[test]
    fn a_seed_reads_back_as_it_was_sent_and_names_its_type() {
        let request = request();
        let sent: Value = serde_json::from_slice(&line(&request)).unwrap();
        assert_eq!(sent["type"], "seed");
        assert_eq!(sent["seed"]["joinToken"], "hunter2");
        assert_eq!(sent["identity"]["mac"], "52:54:00:12:ab:00");
        assert_eq!(serde_json::from_value::<ToGuest>(sent).unwrap(), request);
    }

    #[test]
    fn a_seed_on_the_channel_prints_neither_its_token_nor_its_randomness() {
        let request = request();
        let printed = format!("{request:?}");
        let ToGuest::Seed(seed) = request else { panic!("it is a seed") };
        assert!(!printed.contains("hunter2"));
        assert!(!printed.contains(&String::from(seed.identity.entropy.clone())));
        assert!(!printed.contains(&format!("{:?}", seed.identity.entropy.as_bytes())));
    }

    #[test]
    fn a_challenge_is_for_the_machine_alone_and_does_not_print_itself() {
        let (id, challenge) = (RequestId::generate(), Secret::from_text("hunter2"));
        let request = ToGuest::Challenge { id, challenge };
        assert!(!format!("{request:?}").contains("hunter2"));
        let sent: Value = serde_json::from_slice(&line(&request)).unwrap();
        assert_eq!((&sent["type"], &sent["challenge"]), (&json!("challenge"), &json!("hunter2")));
        assert_eq!(Lines::default().push(&line(&request)), [Ok(request)]);
    }

    #[test]
    fn every_answer_names_its_request_and_ready_names_none() {
        let id = RequestId::generate();
        let boot_id = BootId::generate();
        let ready = Ready { version: "1".to_owned(), boot_id, nonce: None };
        assert_eq!(FromGuest::Ready(ready).answers(), None);
        let unit = |state: &str| UnitState {
            state: state.to_owned(),
            detail: "running".to_owned(),
            result: "success".to_owned(),
            restarts: 0,
            journal: vec!["up".to_owned()],
        };
        let answers = [
            FromGuest::Done { id },
            FromGuest::Failed { id, reason: "no".to_owned() },
            FromGuest::Proof(Proof { id, nonce: None, machine_id: None, boot_id, hypervisor: None }),
            FromGuest::State(State { id, system: None, runtime: unit("active"), provision: None, cloud_init: None }),
        ];
        for answer in answers {
            assert_eq!(answer.answers(), Some(id));
            let mut lines = Lines::default();
            assert_eq!(lines.push(&line(&answer)), [Ok(answer)]);
        }
    }

    #[test]
    fn lines_are_read_however_they_are_cut() {
        let sent = [status(), request(), status()];
        let bytes: Vec<u8> = sent.iter().flat_map(line).collect();
        for size in [1, 7, 100, bytes.len()] {
            let mut lines = Lines::default();
            let heard: Vec<_> = bytes.chunks(size).flat_map(|piece| lines.push(piece)).collect();
            assert_eq!(heard, sent.clone().map(Ok));
        }
    }

    #[test]
    fn the_rest_of_a_strangers_line_costs_that_line_alone() {
        let meant = status();
        let bytes = [&line(&request())[40..], b"\r\n\n", &line(&meant)].concat();
        let heard = Lines::default().push(&bytes);
        assert!(matches!(heard[0], Err(LineError::Unknown { .. })), "{heard:?}");
        assert_eq!(heard[1..], [Ok(meant)]);
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut lines = Lines::default();
        for _ in 0..5 {
            assert_eq!(lines.push(&[b'x'; LINE_MAX / 2]), []);
        }
        assert!(lines.rest.capacity() <= 2 * LINE_MAX);
        let meant = status();
        assert_eq!(lines.push(&[b"\n", line(&meant).as_slice()].concat()), [Err(LineError::Overlong), Ok(meant)]);
    }

    #[test]
    fn machine_ids_are_thirty_two_digits_and_not_nothing() {
        assert!(MachineId::generate().as_str().parse::<MachineId>().is_ok());
        for wrong in ["", "uninitialized", &"0".repeat(32), &"A".repeat(32), &"a".repeat(31)] {
            assert!(wrong.parse::<MachineId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cards_have_addresses_of_their_own() {
        assert_eq!("52:54:00:AB:cd:01".parse::<Mac>().unwrap().as_str(), "52:54:00:ab:cd:01");
        for wrong in
            ["", "52:54:00:ab:cd", "53:54:00:ab:cd:01", "00:00:00:00:00:00", "52-54-00-ab-cd-01", "52:54:00:ab:cd:+1"]
        {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn entropy_is_sixty_four_bytes() {
        assert!(serde_json::from_value::<Entropy>(json!("AAAA")).is_err());
        let entropy = Entropy::generate();
        let back: Entropy = serde_json::from_value(serde_json::to_value(&entropy).unwrap()).unwrap();
        assert_eq!(back, entropy);
    }
}

//! The runtime's half of the protocol, as `schemas/PROTOCOL.md` describes it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut as _, Bytes, BytesMut};
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// How far a producer may run ahead of what its consumer has taken, in bytes.
pub(crate) const WINDOW: u64 = 256 * 1024;
/// Most data in one binary frame, in bytes.
pub(crate) const DATA_MAX: u64 = 32 * 1024;
/// Channel numbers in binary frames.
pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;

const HEADER: usize = 14;
const END: u8 = 1;

/// What a driver puts into a machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seed {
    pub(crate) fleet: String,
    pub(crate) agent: String,
    pub(crate) incarnation: u64,
    pub(crate) nonce: String,
    pub(crate) hub: String,
    pub(crate) join_token: String,
}

/// Who a runtime is: its seed and its key.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) seed: Seed,
    key: Ed25519KeyPair,
    machine_id: String,
}

impl Identity {
    /// A machine of its own for a seed: everything follows from the nonce, so nothing needs to be kept.
    pub(crate) fn new(seed: Seed) -> Self {
        let bytes = digest(&SHA256, seed.nonce.as_bytes());
        let key = Ed25519KeyPair::from_seed_unchecked(bytes.as_ref()).expect("any 32 bytes are a seed");
        let machine_id = bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { seed, key, machine_id }
    }

    pub(crate) fn hello(&self) -> Value {
        json!({
            "protocol": [1, 1],
            "fleet": self.seed.fleet,
            "agent": self.seed.agent,
            "incarnation": self.seed.incarnation,
            "nonce": self.seed.nonce,
            "machineId": self.machine_id,
            "boot": 1,
            "publicKey": URL_SAFE_NO_PAD.encode(self.key.public_key()),
            "joinToken": self.seed.join_token,
            "runtimeVersion": "load",
        })
    }

    /// The answer to a challenge.
    pub(crate) fn proof(&self, challenge: &str) -> Value {
        let Seed { fleet, agent, incarnation, nonce, .. } = &self.seed;
        let incarnation = incarnation.to_string();
        let lines = ["vm-agent hello v1", challenge, fleet, agent, &incarnation, nonce, &self.machine_id, "1"];
        let signature = self.key.sign(lines.join("\n").as_bytes());
        json!({"signature": URL_SAFE_NO_PAD.encode(signature)})
    }

    /// A text frame.
    pub(crate) fn message(&self, kind: &str, payload: &Value) -> String {
        let envelope = json!({
            "id": Uuid::now_v7(),
            "from": self.seed.agent,
            "to": "host",
            "timestamp": 0,
            "type": kind,
            "payload": payload,
        });
        envelope.to_string()
    }
}

/// A text frame of the hub.
#[derive(Debug, Deserialize)]
pub(crate) struct Heard {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) payload: Value,
}

/// A heartbeat of a machine that is well.
pub(crate) fn health() -> Value {
    json!({
        "cpus": 2, "load": 0.1, "memoryTotal": 4_294_967_296_u64, "memoryUsed": 1_073_741_824,
        "diskTotal": 42_949_672_960_u64, "diskUsed": 4_294_967_296_u64, "uptimeSecs": 60,
        "runtimeMemory": 8_388_608, "tasks": 0, "streams": 0,
    })
}

/// A binary frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) stream: u32,
    pub(crate) channel: u8,
    pub(crate) offset: u64,
    pub(crate) end: bool,
    pub(crate) data: Bytes,
}

impl Frame {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER + self.data.len());
        bytes.put_u32(self.stream);
        bytes.put_u8(self.channel);
        bytes.put_u8(if self.end { END } else { 0 });
        bytes.put_u64(self.offset);
        bytes.put_slice(&self.data);
        bytes.freeze()
    }

    /// Reads a frame; nothing when it is none.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<HEADER>()?;
        let [s0, s1, s2, s3, channel, flags, offset @ ..] = *header;
        Some(Self {
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            channel,
            offset: u64::from_be_bytes(offset),
            end: flags & END != 0,
            data: bytes.slice(HEADER..),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_the_one_that_the_protocol_shows() {
        let seed = Seed {
            fleet: "default".to_owned(),
            agent: "web".to_owned(),
            incarnation: 1,
            nonce: "pcfYyg0Lw1vcrVYXgBgbFw".to_owned(),
            hub: String::new(),
            join_token: String::new(),
        };
        let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let machine_id = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae".to_owned();
        let identity = Identity { seed, key, machine_id };
        let expected = "u1ONkG7iw4mm7jCgG-OPV7nrBikfOzb7iITGh-ScFgs9Erp3mm9nSb4uy7yNiSiGF7qwkaKl9-keT2Tm9MzbDw";
        assert_eq!(identity.proof("3q2-7wABAgMEBQYHCAkKCw")["signature"], expected);
    }

    #[test]
    fn a_frame_encoded_decodes_the_same() {
        let frame = Frame { stream: 7, channel: STDERR, offset: 1 << 40, end: true, data: Bytes::from_static(b"x") };
        assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        assert_eq!(Frame::decode(&Bytes::from_static(b"short")), None);
    }
}

//! Who may speak: pure decisions over a hello, a credential and a proof.
//!
//! A hello is judged twice, before the challenge and again with the proof: between the two the
//! credential may have changed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::signature::{ED25519, UnparsedPublicKey};
use subtle::ConstantTimeEq;
use vm_agent_schemas::credential::{Binding, Credential};
use vm_agent_schemas::ids::{Digest, Incarnation};
use vm_agent_schemas::names::{AgentName, FleetName};
use vm_agent_schemas::wire::{
    Challenge, ChallengeProof, Hello, PROTOCOL, RefusalCode, Rotated, VERIFY, rotation_bytes,
};

use super::verification::check_abilities;

/// Longest `runtimeVersion`: it is kept and shown, and comes from inside the instance.
pub(super) const VERSION_MAX: usize = 64;

/// Most abilities, and the longest name of one, in bytes: what is not known yet is passed over, and not kept.
const ABILITIES_MAX: usize = 32;

/// Why a connection may not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: RefusalCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::Protocol, message)
    }

    pub(super) fn flow(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::Flow, message)
    }
}

/// Whether a runtime that says this may go on to prove it. Answers with the protocol version that
/// both sides speak.
pub(super) fn check_hello(
    hello: &Hello,
    fleet: &FleetName,
    credential: Option<&Credential>,
    now: Timestamp,
) -> Result<u32, Refusal> {
    let version = common_version(hello.protocol)?;
    check_form(hello)?;
    if hello.fleet != *fleet {
        let message = format!("this hub serves fleet `{fleet}`, and the runtime was seeded for `{}`", hello.fleet);
        return Err(Refusal::new(RefusalCode::Fleet, message));
    }
    let Some(credential) = credential else {
        let message = format!("no runtime is expected for agent `{}`", hello.agent);
        return Err(Refusal::new(RefusalCode::UnknownAgent, message));
    };
    if hello.incarnation != credential.incarnation || hello.nonce != credential.nonce {
        let message = format!(
            "incarnation {} of agent `{}` is not the one that may speak: the current one is {}",
            hello.incarnation, hello.agent, credential.incarnation
        );
        return Err(Refusal::new(RefusalCode::Incarnation, message));
    }
    match &credential.binding {
        Some(binding) => {
            check_binding(hello, binding)?;
            check_abilities(hello.abilities.contains(VERIFY), binding, credential)?;
        }
        None => check_join_token(hello, credential, now)?,
    }
    if hello.boot < credential.boot {
        let message = format!("start {} of the runtime has been replaced by start {}", hello.boot, credential.boot);
        return Err(Refusal::new(RefusalCode::StaleBoot, message));
    }
    Ok(version)
}

fn common_version((low, high): (u32, u32)) -> Result<u32, Refusal> {
    let oldest = PROTOCOL.saturating_sub(1).max(1);
    let version = high.min(PROTOCOL);
    if version >= low && version >= oldest {
        return Ok(version);
    }
    let message = format!("this hub speaks protocol versions {oldest} to {PROTOCOL}, and the runtime {low} to {high}");
    Err(Refusal::new(RefusalCode::Version, message))
}

/// The parts of a hello that are kept or signed have their form: a line end in the machine id would
/// let one signature stand for two hellos.
fn check_form(hello: &Hello) -> Result<(), Refusal> {
    if !is_sha256(&hello.machine_id) {
        return Err(Refusal::protocol("`machineId` is not a SHA-256 digest in 64 lower-case hexadecimal digits"));
    }
    if hello.runtime_version.len() > VERSION_MAX {
        return Err(Refusal::protocol(format!("`runtimeVersion` is longer than {VERSION_MAX} bytes")));
    }
    let long = |ability: &String| ability.len() > ABILITIES_MAX;
    if hello.abilities.len() > ABILITIES_MAX || hello.abilities.iter().any(long) {
        return Err(Refusal::protocol(format!("`abilities` are more than {ABILITIES_MAX}, or longer than that")));
    }
    if decode::<32>(&hello.public_key).is_none() {
        return Err(Refusal::protocol("`publicKey` is not 32 bytes in base64 (URL alphabet, no padding)"));
    }
    Ok(())
}

fn check_binding(hello: &Hello, binding: &Binding) -> Result<(), Refusal> {
    if hello.public_key != binding.public_key && Some(&hello.public_key) != binding.next_key.as_ref() {
        let message = format!("agent `{}` is bound to another public key", hello.agent);
        return Err(Refusal::new(RefusalCode::Credential, message));
    }
    if hello.machine_id != binding.machine_id {
        let message = format!("the credential of agent `{}` is bound to another machine: this is a copy", hello.agent);
        return Err(Refusal::new(RefusalCode::Clone, message));
    }
    Ok(())
}

fn check_join_token(hello: &Hello, credential: &Credential, now: Timestamp) -> Result<(), Refusal> {
    let refuse = |message: &str| Err(Refusal::new(RefusalCode::JoinToken, message));
    let (Some(token), Some(join)) = (&hello.join_token, &credential.join) else {
        return refuse("a runtime that has not joined yet needs a join token that was not used");
    };
    let same = token.digest().as_str().as_bytes().ct_eq(join.digest.as_str().as_bytes());
    if !bool::from(same) {
        return refuse("the join token is not the one that this incarnation was seeded with");
    }
    if now >= join.expires_at {
        return refuse("the join token has expired");
    }
    Ok(())
}

/// Whether the proof shows that the peer holds the key of its hello.
pub(super) fn check_proof(hello: &Hello, challenge: &Challenge, proof: &ChallengeProof) -> Result<(), Refusal> {
    if is_signed(&hello.public_key, &proof.signature, &challenge.signed_bytes(hello)) {
        Ok(())
    } else {
        Err(Refusal::new(RefusalCode::Credential, "the signature does not fit the challenge and the public key"))
    }
}

/// Whether a runtime that was asked for a new key shows that it holds this one.
pub(super) fn check_rotated(
    challenge: &Challenge,
    agent: &AgentName,
    incarnation: Incarnation,
    rotated: &Rotated,
) -> Result<(), Refusal> {
    let bytes = rotation_bytes(challenge, agent, incarnation, &rotated.public_key);
    if is_signed(&rotated.public_key, &rotated.signature, &bytes) {
        Ok(())
    } else {
        Err(Refusal::protocol("the signature does not fit the challenge and the new public key"))
    }
}

fn is_signed(public_key: &str, signature: &str, bytes: &[u8]) -> bool {
    let keys = decode::<32>(public_key).zip(decode::<64>(signature));
    keys.is_some_and(|(key, signature)| UnparsedPublicKey::new(&ED25519, key).verify(bytes, &signature).is_ok())
}

/// The credential once this proven hello is accepted: bound, its join token used up, one epoch on.
/// A new key that it was proven with takes the place of the old one.
pub(super) fn accepted(credential: &Credential, hello: &Hello) -> Credential {
    let bound = credential.binding.clone();
    let verified = bound.as_ref().is_some_and(|binding| binding.verified);
    let next_key = bound.and_then(|binding| binding.next_key).filter(|next_key| *next_key != hello.public_key);
    let (public_key, machine_id) = (hello.public_key.clone(), hello.machine_id.clone());
    let binding = Binding { public_key, next_key, machine_id, verified };
    Credential {
        join: None,
        binding: Some(binding),
        boot: hello.boot,
        epoch: credential.epoch.next(),
        ..credential.clone()
    }
}

/// Whether a digest that came over the wire has the form of one.
pub(super) fn is_sha256(digest: &Digest) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digest.as_str().len() == 64 && digest.as_str().bytes().all(hex)
}

fn decode<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

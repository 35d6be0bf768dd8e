//! How a runtime shows that it runs in the machine that it speaks for.
//!
//! The controller lays a challenge into the machine by another way than the session, and asks over the session for
//! an answer that only somebody who has read it can give. The challenge itself is not on the wire.

use ring::hmac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{BootId, Digest, RequestId, Secret, SessionId};

/// The ability to answer [`Verify`], as a hello names it.
pub const VERIFY: &str = "verify";

/// Show that you run in the machine that you speak for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verify {
    /// The question.
    pub request: RequestId,
    /// SHA-256 of the challenge that it is about. One that lies in the machine from before, or for a later
    /// question, is not it.
    pub challenge: Digest,
}

/// What a runtime knows of where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// The question.
    pub request: RequestId,
    /// SHA-256 of the machine id, without the line break after it; nothing where the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Digest>,
    /// The id that the machine's kernel gave to its present boot; nothing where that can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootId>,
    /// The answer: see [`answer`]. Nothing where the challenge is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Digest>,
}

impl Evidence {
    /// What a runtime answers: it found this challenge, in the session, on this machine and in this boot.
    #[must_use]
    pub fn new(
        question: &Verify,
        challenge: Option<&Secret>,
        session: SessionId,
        machine: Option<Digest>,
        boot: Option<BootId>,
    ) -> Self {
        let answer = match (challenge, &machine, boot) {
            (Some(challenge), Some(machine), Some(boot)) => Some(answer(challenge, session, machine, boot)),
            _ => None,
        };
        Self { request: question.request, machine, boot, answer }
    }
}

/// What only somebody can say who has read the challenge, and only in this session: HMAC-SHA-256 with the challenge's
/// text as the key, in lower-case hexadecimal.
#[must_use]
pub fn answer(challenge: &Secret, session: SessionId, machine: &Digest, boot: BootId) -> Digest {
    let key = hmac::Key::new(hmac::HMAC_SHA256, challenge.expose().as_bytes());
    let parts = ["vm-agent verify v1", &session.to_string(), machine.as_str(), &boot.to_string()];
    let tag = hmac::sign(&key, parts.join("\n").as_bytes());
    let digits = tag.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Digest::from(digits.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_one_that_the_protocol_shows() {
        let session = "0190c5a8-0000-7000-8000-0000000000aa".parse().unwrap();
        let boot = "6c2f9f5c-6a0e-4d25-a8d3-fb5b7d0f6a11".parse().unwrap();
        let machine = Digest::of(b"0123456789abcdef0123456789abcdef");
        let challenge = Secret::from_text("3q2-7wABAgMEBQYHCAkKCw");
        let answer = answer(&challenge, session, &machine, boot);
        assert_eq!(answer.as_str(), "02d4ea1cb7ee4ea72c9fd0734e593251203f519a86136f8b00834c8965b6b6b3");
        let protocol = include_str!("../../PROTOCOL.md");
        for shown in [answer.as_str(), machine.as_str(), challenge.digest().as_str()] {
            assert!(protocol.contains(shown), "the protocol shows {shown}");
        }
    }

    #[test]
    fn nothing_is_answered_of_what_is_not_known() {
        let question = Verify { request: RequestId::generate(), challenge: Digest::of(b"it") };
        let (secret, session) = (Secret::generate(), SessionId::generate());
        let (machine, boot) = (Some(Digest::of(b"machine")), Some(BootId::generate()));
        let answered = |challenge: Option<&Secret>, machine, boot| {
            Evidence::new(&question, challenge, session, machine, boot).answer.is_some()
        };
        assert!(answered(Some(&secret), machine.clone(), boot));
        assert!(!answered(None, machine.clone(), boot));
        assert!(!answered(Some(&secret), None, boot));
        assert!(!answered(Some(&secret), machine, None));
    }
}

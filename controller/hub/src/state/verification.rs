//! Where a runtime runs: what it is asked, and what follows from what was found out.
//!
//! ```text
//!  controller ── challenge ──▶ machine (by its driver)
//!  hub ── verify ──▶ runtime: reads the challenge
//!  hub ◀── evidence ── runtime: answers, for this session alone
//!  controller: compares ── trust / distrust ──▶ hub
//! ```
//!
//! The hub passes questions and answers on, and knows no challenge. What it is told of the outcome holds for the
//! session that was asked, and means nothing once that is over.

use vm_agent_schemas::credential::{Binding, Credential};
use vm_agent_schemas::ids::{Boot, Epoch, RequestId, SessionId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Evidence, FromHub, RefusalCode, Verify};

use super::handshake::{Refusal, is_sha256};
use super::{ConnId, Effect, Hub, Record};

/// What a runtime answered, and in which session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The session.
    pub session: SessionId,
    /// The answer.
    pub evidence: Evidence,
}

/// Why a runtime has not answered where it runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The session that was meant is not there, or ended before it answered.
    #[error("the agent's runtime is not connected")]
    Offline,
    /// The runtime does not know the question.
    #[error("the agent's runtime is version {version}, which can't show where it runs")]
    TooOld {
        /// Its version.
        version: String,
    },
    /// It was asked again meanwhile.
    #[error("the agent's runtime was asked again meanwhile")]
    Overtaken,
}

impl Hub {
    /// Asks the runtime in this session of an agent where it runs.
    pub(super) fn verify(&mut self, question: Verify, agent: &AgentName, epoch: Epoch) {
        let request = question.request;
        let Some((conn, session)) = self.session_of(agent, epoch) else {
            return self.shown(request, Err(VerifyError::Offline));
        };
        if !session.verifies {
            let version = session.runtime_version.clone();
            return self.shown(request, Err(VerifyError::TooOld { version }));
        }
        if let Some(former) = session.asked.replace(request) {
            self.shown(former, Err(VerifyError::Overtaken));
        }
        self.send(conn, FromHub::Verify(question));
    }

    /// A runtime has answered. An answer to a question that nobody asks any more comes too late.
    pub(super) fn evidence(&mut self, conn: ConnId, evidence: Evidence) -> Result<(), Refusal> {
        if [&evidence.machine, &evidence.answer].into_iter().flatten().any(|digest| !is_sha256(digest)) {
            return Err(Refusal::protocol("`machine` and `answer` are 64 lower-case hexadecimal digits"));
        }
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        if let Some(request) = session.asked.take_if(|asked| *asked == evidence.request) {
            let shown = Shown { session: session.id, evidence };
            self.shown(request, Ok(shown));
        }
        Ok(())
    }

    /// The runtime in this session runs where it should.
    pub(super) fn trust(&mut self, agent: &AgentName, epoch: Epoch) {
        if self.session_of(agent, epoch).is_none() {
            return;
        }
        let Some(enrolled) = self.agents.get_mut(agent) else { return };
        if let Some(binding) = enrolled.credential.binding.as_mut().filter(|binding| !binding.verified) {
            binding.verified = true;
            self.effects.push(Effect::Store(Record::Credential(enrolled.credential.clone())));
        }
    }

    /// The runtime in this session does not run in the machine that it speaks for: whoever has its key may be
    /// anywhere. The session ends, and the key opens no other. That a session that is over by now may have ended with its key
    /// still good is no matter: whoever comes with it is asked anew.
    pub(super) fn distrust(&mut self, request: RequestId, agent: &AgentName, epoch: Epoch, why: String) {
        let Some((conn, _)) = self.session_of(agent, epoch) else {
            return self.effects.push(Effect::Distrusted { request, revoked: false });
        };
        self.refuse(conn, Refusal::new(RefusalCode::Unverified, why));
        let Some(enrolled) = self.agents.get_mut(agent) else { return };
        // Whoever spoke chose how often it had been started.
        let credential = &mut enrolled.credential;
        (credential.join, credential.binding, credential.boot) = (None, None, Boot::default());
        self.effects.push(Effect::Store(Record::Credential(credential.clone())));
        self.effects.push(Effect::Distrusted { request, revoked: true });
    }

    /// The key of an agent opens nothing any more: a copy of its machine has it too. Nobody who speaks with it now is
    /// heard either.
    pub(super) fn unbind(&mut self, agent: &AgentName) {
        if let Some(conn) = self.live(agent) {
            self.refuse(conn, Refusal::new(RefusalCode::Unverified, "its machine is being copied, with its key"));
        }
        let Some(enrolled) = self.agents.get_mut(agent) else { return };
        let credential = &mut enrolled.credential;
        (credential.join, credential.binding, credential.boot) = (None, None, Boot::default());
        self.effects.push(Effect::Store(Record::Credential(credential.clone())));
    }

    /// The session of an agent, if it is still the one with this epoch.
    fn session_of(&mut self, agent: &AgentName, epoch: Epoch) -> Option<(ConnId, &mut super::sessions::Session)> {
        let conn = self.live(agent)?;
        self.session_mut(conn).filter(|session| session.epoch == epoch).map(|session| (conn, session))
    }

    pub(super) fn shown(&mut self, request: RequestId, answer: Result<Shown, VerifyError>) {
        self.effects.push(Effect::Shown { request, answer });
    }
}

/// Whether a runtime that says this of itself may take the place of the one that is bound: one that could show where
/// it runs has to be able to, or whoever steals from it would only have to say less.
pub(super) fn check_abilities(verifies: bool, binding: &Binding, credential: &Credential) -> Result<(), Refusal> {
    if binding.verified && !verifies {
        let message =
            format!("the runtime of agent `{}` could show where it runs, and this one can't", credential.agent);
        return Err(Refusal::new(RefusalCode::Unverified, message));
    }
    Ok(())
}

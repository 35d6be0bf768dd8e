//! Isolation is verified, not asserted: each session is asked once where its runtime runs, beside everything else,
//! and again whenever somebody wants to know.
//!
//! A challenge goes into the machine through its driver, and an answer that is made of it comes out of the session.
//! What both come to is decided in [`engine::isolation`](crate::engine::isolation).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Semaphore;
use vm_agent_drivers::DriverError;
use vm_agent_hub::VerifyError;
use vm_agent_schemas::credential::{Credential, JoinToken, Role};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::ids::{Epoch, RequestId, Secret};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Claim;
use vm_agent_schemas::plan::ConditionStatus;
use vm_agent_schemas::units::Span;
use vm_agent_schemas::verification::{Obstacle, Verdict, Verification};
use vm_agent_schemas::wire::Verify;

use crate::conditions::Fact;
use crate::controller::{Actor, Controller};
use crate::core::Core;
use crate::engine::isolation::{ANSWERED_WITHIN, Patience, Question, judge};
use crate::engine::job::{seed_of, target};
use crate::engine::records::Change;
use crate::reconciler::Chain;

/// How long a driver may take to reach into a machine. It takes some tenths of a second.
const REACHED_WITHIN: Duration = Duration::from_secs(30);

/// How long it may take to store that a key is worth nothing.
const STORED_WITHIN: Duration = Duration::from_secs(10);

/// Machines that are asked at a time. A fleet that comes up has better things to do.
const AT_A_TIME: usize = 8;

/// Who revokes credentials of runtimes that were found out, in the audit.
const AUDITED_AS: &str = "controller";

/// What is known of where the runtimes run.
#[derive(Debug)]
pub(crate) struct Verifying {
    agents: Mutex<BTreeMap<AgentName, Entry>>,
    turns: Semaphore,
}

#[derive(Debug, Default)]
struct Entry {
    /// The session that there is; nothing where there is none.
    epoch: Option<Epoch>,
    /// What was found out last: of that session, or that one before it was not in the machine.
    known: Option<Verdict>,
    /// Questions about one machine are put one after the other: each takes the place of the former's challenge.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Default for Verifying {
    fn default() -> Self {
        Self { agents: Mutex::default(), turns: Semaphore::new(AT_A_TIME) }
    }
}

impl Verifying {
    /// A session has begun. That the one before it was not in the machine is remembered until this one is judged.
    fn begin(&self, agent: &AgentName, epoch: Epoch) {
        let mut agents = self.lock();
        let entry = agents.entry(agent.clone()).or_default();
        entry.epoch = Some(epoch);
        entry.known = entry.known.take().filter(|verdict| matches!(verdict, Verdict::NotInMachine { .. }));
    }

    /// A session is over: what was found out of it is of no interest any more, but that it was not in the machine.
    pub(crate) fn closed(&self, agent: &AgentName, epoch: Epoch) {
        let mut agents = self.lock();
        let Some(entry) = agents.get_mut(agent).filter(|entry| entry.epoch == Some(epoch)) else { return };
        entry.epoch = None;
        entry.known = entry.known.take().filter(|verdict| matches!(verdict, Verdict::NotInMachine { .. }));
    }

    /// What is known of agents that there are no more is forgotten.
    pub(crate) fn retain(&self, is: impl Fn(&AgentName) -> bool) {
        self.lock().retain(|agent, _| is(agent));
    }

    fn is_current(&self, agent: &AgentName, epoch: Epoch) -> bool {
        self.lock().get(agent).is_some_and(|entry| entry.epoch == Some(epoch))
    }

    fn end(&self, agent: &AgentName, epoch: Epoch, verdict: Verdict) {
        if let Some(entry) = self.lock().get_mut(agent).filter(|entry| entry.epoch == Some(epoch)) {
            entry.known = Some(verdict);
        }
    }

    fn turn_of(&self, agent: &AgentName) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.lock().entry(agent.clone()).or_default().turn)
    }

    /// What can be said of an agent's isolation.
    pub(crate) fn fact(&self, agent: &AgentName) -> Fact {
        let agents = self.lock();
        let unknown = |reason, message: &str| Fact {
            kind: "IsolationVerified",
            status: ConditionStatus::Unknown,
            reason,
            message: message.to_owned(),
        };
        let entry = agents.get(agent);
        let Some(verdict) = entry.and_then(|entry| entry.known.as_ref()) else {
            return match entry.and_then(|entry| entry.epoch) {
                Some(_) => unknown("Asked", "its runtime is asked where it runs"),
                None => unknown("NoSession", "its runtime is not connected, and only that can show where it runs"),
            };
        };
        let status = match verdict {
            Verdict::Verified { .. } => ConditionStatus::True,
            Verdict::NotInMachine { .. } => ConditionStatus::False,
            Verdict::Unable { obstacle } => match obstacle {
                Obstacle::NoIsolation { .. } | Obstacle::NoHypervisor => ConditionStatus::False,
                Obstacle::NoWayIn { .. }
                | Obstacle::NoWitness { .. }
                | Obstacle::NoSession
                | Obstacle::TooOld { .. }
                | Obstacle::NoAnswer { .. } => ConditionStatus::Unknown,
            },
        };
        let message = match verdict.remedy(agent) {
            Some(remedy) => format!("{verdict}; {remedy}"),
            None => verdict.to_string(),
        };
        Fact { kind: "IsolationVerified", status, reason: verdict.reason(), message }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AgentName, Entry>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session has begun: its runtime is asked where it runs, beside everything else.
pub(crate) fn session_opened(core: &Arc<Core>, agent: &AgentName, epoch: Epoch) {
    core.verifying.begin(agent, epoch);
    let asking = ask_once(Arc::clone(core), agent.clone(), epoch);
    core.jobs.spawn(core.stop.clone().run_until_cancelled_owned(asking));
}

async fn ask_once(core: Arc<Core>, agent: AgentName, epoch: Epoch) {
    let mut patience = Patience::default();
    loop {
        if !core.verifying.is_current(&agent, epoch) {
            return;
        }
        let (verdict, pause) = {
            let turn = core.verifying.turn_of(&agent);
            let _turn = turn.lock().await;
            let verdict = ask(&core, &agent, Some(epoch)).await;
            let (verdict, pause) = patience.after(verdict);
            conclude(&core, &agent, epoch, &verdict).await;
            (verdict, pause)
        };
        tracing::debug!(agent.name = %agent, session.epoch = epoch.0, verdict = verdict.reason(), "Asked where a runtime runs");
        let Some(pause) = pause else { return };
        tokio::time::sleep(pause).await;
    }
}

/// Asks the machine of an agent, and the runtime in this session, and compares what they say.
async fn ask(core: &Core, agent: &AgentName, epoch: Option<Epoch>) -> Verdict {
    match answers(core, agent, epoch).await {
        Ok(verdict) => verdict,
        Err(obstacle) => Verdict::Unable { obstacle },
    }
}

async fn answers(core: &Core, agent: &AgentName, epoch: Option<Epoch>) -> Result<Verdict, Obstacle> {
    let claim = core.ledger.look(|records| records.claims.get(agent).cloned()).ok_or(Obstacle::NoSession)?;
    let observer = core.observers.get(&claim.driver).ok_or(Obstacle::NoWayIn { driver: claim.driver })?;
    if !observer.driver().isolates() {
        return Err(Obstacle::NoIsolation { driver: claim.driver });
    }
    let epoch = epoch.ok_or(Obstacle::NoSession)?;
    let _turn = core.verifying.turns.acquire().await.map_err(|_| Obstacle::NoSession)?;
    let challenge = Secret::generate();
    let target = target(&claim);
    let laid = tokio::time::timeout(REACHED_WITHIN, observer.driver().challenge(&target, &challenge)).await;
    let witness = match laid {
        Ok(Ok(witness)) => witness,
        Ok(Err(DriverError::Unsupported { driver, .. })) => return Err(Obstacle::NoWayIn { driver }),
        Ok(Err(error)) => return Err(Obstacle::NoWitness { reason: Chain(&error).to_string() }),
        Err(_) => {
            let reason = format!("it did not answer within {} s", REACHED_WITHIN.as_secs());
            return Err(Obstacle::NoWitness { reason });
        }
    };
    let question = Verify { request: RequestId::generate(), challenge: challenge.digest() };
    let asked_at = Timestamp::now();
    let shown = tokio::time::timeout(ANSWERED_WITHIN.get(), core.hub.verify(agent.clone(), epoch, question)).await;
    let shown = match shown {
        Ok(Ok(shown)) => shown,
        Ok(Err(VerifyError::TooOld { version })) => return Err(Obstacle::TooOld { version }),
        Ok(Err(VerifyError::Offline | VerifyError::Overtaken)) => return Err(Obstacle::NoSession),
        Err(_) => return Err(unanswered(core, agent, epoch, asked_at).await),
    };
    Ok(judge(
        Question { challenge: &challenge, nonce: &claim.nonce, session: shown.session },
        &witness,
        &shown.evidence,
    ))
}

/// A runtime that was not heard since it was asked may not have heard either.
async fn unanswered(core: &Core, agent: &AgentName, epoch: Epoch, asked_at: Timestamp) -> Obstacle {
    let sessions = core.hub.sessions().await;
    match sessions.iter().find(|session| session.agent == *agent && session.epoch == epoch) {
        None => Obstacle::NoSession,
        Some(session) if session.last_seen > asked_at => Obstacle::NoAnswer { within: ANSWERED_WITHIN },
        Some(_) => Obstacle::NoWitness { reason: "its runtime is silent, and may not have heard the question".into() },
    }
}

/// Does what follows from a verdict.
async fn conclude(core: &Arc<Core>, agent: &AgentName, epoch: Epoch, verdict: &Verdict) {
    core.verifying.end(agent, epoch, verdict.clone());
    match verdict {
        Verdict::Verified { .. } => core.hub.trust(agent.clone(), epoch),
        Verdict::Unable { .. } => {}
        Verdict::NotInMachine { why } => {
            tracing::warn!(agent.name = %agent, session.epoch = epoch.0, %why, "A runtime does not run in its machine");
            let told = NewEvent::of(agent, EventKind::IsolationBroken, verdict.to_string());
            record(core, vec![Change::Event(told)]).await;
            let distrusted = core.hub.distrust(agent.clone(), epoch, verdict.to_string());
            let revoked = tokio::time::timeout(STORED_WITHIN, distrusted).await.unwrap_or(false);
            if revoked {
                let actor = Actor { name: AUDITED_AS.to_owned(), role: Role::Admin };
                let path = format!("/agents/{agent}/credential");
                Controller::new(Arc::clone(core)).audit(&actor, "DELETE", &path, 200, Timestamp::now()).await;
                let reseeding = reseed(Arc::clone(core), agent.clone());
                core.jobs.spawn(core.stop.clone().run_until_cancelled_owned(reseeding));
            }
        }
    }
    core.nudge();
}

/// Gives the machine of an agent whose credential was revoked another seed, so that its own runtime can join anew.
/// Where that can't be handed over, the machine gets one by a stop and a start, as any that no runtime can join from.
async fn reseed(core: Arc<Core>, agent: AgentName) {
    let known = core.ledger.look(|records| {
        let claim = records.claims.get(&agent)?;
        let credential = records.credentials.get(&agent)?;
        let fits = credential.nonce == claim.nonce && credential.binding.is_none();
        fits.then(|| (claim.clone(), credential.clone()))
    });
    let Some((claim, credential)) = known else { return };
    let Some(driver) = core.observers.get(&claim.driver).map(|observer| Arc::clone(observer.driver())) else { return };
    let capabilities = driver.capabilities();
    let token = Secret::generate();
    let connects = Span::from(REACHED_WITHIN + capabilities.deadlines.connect.get());
    let expires_at = Timestamp::now().checked_add(connects.get()).unwrap_or(Timestamp::MAX);
    let join = Some(JoinToken { digest: token.digest(), expires_at });
    admit(&core, &claim, Credential { join, ..credential.clone() }).await;
    let seed = seed_of(&claim, core.hub_address.seen_from(&capabilities), token);
    let target = target(&claim);
    let handed = tokio::time::timeout(REACHED_WITHIN, driver.reseed(&target, &seed)).await;
    let why = match handed {
        Ok(Ok(())) => {
            tracing::info!(agent.name = %agent, "A machine has another seed: its runtime joins anew, with another key");
            return;
        }
        Ok(Err(error)) => Chain(&error).to_string(),
        Err(_) => format!("it did not take one within {} s", REACHED_WITHIN.as_secs()),
    };
    tracing::info!(agent.name = %agent, why, "A machine could not be given another seed as it runs, and is stopped and started for one");
    admit(&core, &claim, credential).await;
    core.wake();
}

/// Lets a runtime join with this credential.
async fn admit(core: &Core, claim: &Claim, credential: Credential) {
    debug_assert_eq!(claim.nonce, credential.nonce, "a credential is that of the claim");
    record(core, vec![Change::Credential(Box::new(credential.clone()))]).await;
    core.hub.enroll(credential, None);
}

async fn record(core: &Core, changes: Vec<Change>) {
    if let Err(error) = core.ledger.record(changes, Timestamp::now()).await {
        tracing::error!(error = %Chain(&error), "What was found out of a runtime could not be recorded");
    }
}

/// Asks now, whatever was found out before, and does what follows.
pub(crate) async fn ask_now(core: &Arc<Core>, agent: &AgentName) -> Verification {
    let turn = core.verifying.turn_of(agent);
    let _turn = turn.lock().await;
    let sessions = core.hub.sessions().await;
    let epoch = sessions.iter().find(|session| session.agent == *agent).map(|session| session.epoch);
    let verdict = ask(core, agent, epoch).await;
    if let Some(epoch) = epoch {
        conclude(core, agent, epoch, &verdict).await;
    }
    Verification::new(agent.clone(), epoch, verdict, Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::fleet::DriverName;
    use vm_agent_schemas::verification::Contradiction;

    fn told(verifying: &Verifying) -> (ConditionStatus, &'static str) {
        let fact = verifying.fact(&"web".parse().unwrap());
        (fact.status, fact.reason)
    }

    #[test]
    fn what_is_known_of_a_session_ends_with_it_but_that_it_was_not_in_the_machine() {
        use ConditionStatus::{False, True, Unknown};
        let (verifying, web) = (Verifying::default(), "web".parse().unwrap());
        assert_eq!(told(&verifying), (Unknown, "NoSession"));
        verifying.begin(&web, Epoch(1));
        assert_eq!(told(&verifying), (Unknown, "Asked"));
        verifying.end(&web, Epoch(1), Verdict::Verified { hypervisor: "kvm".to_owned() });
        assert_eq!(told(&verifying), (True, "Verified"));
        verifying.closed(&web, Epoch(1));
        assert_eq!(told(&verifying), (Unknown, "NoSession"));

        verifying.begin(&web, Epoch(2));
        verifying.end(&web, Epoch(1), Verdict::Verified { hypervisor: "kvm".to_owned() });
        assert_eq!(told(&verifying), (Unknown, "Asked"), "that was about another session");
        verifying.end(&web, Epoch(2), Verdict::NotInMachine { why: Contradiction::NoChallenge });
        verifying.closed(&web, Epoch(2));
        assert_eq!(told(&verifying), (False, "NotInMachine"));
        verifying.begin(&web, Epoch(3));
        assert_eq!(told(&verifying), (False, "NotInMachine"), "it is not known yet who this is");
        verifying.end(&web, Epoch(3), Verdict::Verified { hypervisor: "kvm".to_owned() });
        assert_eq!(told(&verifying), (True, "Verified"));
        verifying.retain(|agent| *agent != web);
        assert_eq!(told(&verifying), (Unknown, "NoSession"));
    }

    #[test]
    fn an_agent_without_a_machine_of_its_own_is_told_to_be_isolated_by_nothing() {
        let (verifying, web) = (Verifying::default(), "web".parse().unwrap());
        verifying.begin(&web, Epoch(1));
        let obstacle = Obstacle::NoIsolation { driver: DriverName::Local };
        verifying.end(&web, Epoch(1), Verdict::Unable { obstacle });
        let fact = verifying.fact(&web);
        assert_eq!((fact.status, fact.reason), (ConditionStatus::False, "NoIsolation"));
        assert!(fact.message.starts_with("driver local isolates nothing"), "{}", fact.message);
    }
}

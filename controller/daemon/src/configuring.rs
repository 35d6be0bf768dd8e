//! Configurations with secrets: their values are found out beside the loop, then go to the runtime.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use vm_agent_hub::configuration_fits;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::SecretSource;
use vm_agent_schemas::ids::{Digest, Epoch};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::Configuration;

use crate::core::Core;
use crate::engine::file::writable;
use crate::engine::records::Change;
use crate::reconciler::Chain;
use crate::secrets::Reader;

/// How long a runtime may take to say that it has what it was sent, before it is sent again.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);

/// The first pause after secrets could not be read; each further one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_secs(2);

/// The longest pause: a person who mended a source waits no longer than this.
const PAUSE_LONGEST: Duration = Duration::from_secs(60);

/// What was last done for each agent. A source is asked once for each session and configuration, and not
/// again in each pass.
#[derive(Debug, Default)]
pub(crate) struct Configuring {
    attempts: Mutex<BTreeMap<AgentName, Attempt>>,
    /// Also whoever else needs a secret reads it so.
    pub(crate) reader: Reader,
}

#[derive(Debug)]
struct Attempt {
    /// One more than that of the attempt before.
    generation: u64,
    digest: Digest,
    session: Epoch,
    /// None before this.
    again_at: Instant,
    failures: u32,
    problem: Option<String>,
}

impl Configuring {
    /// Takes the turn to configure an agent, unless somebody has it, or had it a moment ago. Answers the
    /// attempt's generation.
    fn begin(&self, agent: &AgentName, digest: &Digest, session: Epoch) -> Option<u64> {
        let mut attempts = self.lock();
        let last = attempts.get(agent);
        let generation = last.map_or(0, |attempt| attempt.generation + 1);
        let known = last.filter(|it| it.digest == *digest && it.session == session);
        if known.is_some_and(|attempt| Instant::now() < attempt.again_at) {
            return None;
        }
        let (failures, problem) = known.map_or((0, None), |attempt| (attempt.failures, attempt.problem.clone()));
        let again_at = Instant::now() + ANSWERED_WITHIN;
        let digest = digest.clone();
        attempts.insert(agent.clone(), Attempt { generation, digest, session, again_at, failures, problem });
        Some(generation)
    }

    /// Gives away what an attempt came to, or notes why it came to nothing. Answers whether that is news.
    /// An attempt that another has followed does nothing: what it found out is older.
    fn end<T>(&self, agent: &AgentName, generation: u64, outcome: Result<T, String>, give: impl FnOnce(T)) -> bool {
        let mut attempts = self.lock();
        let Some(attempt) = attempts.get_mut(agent).filter(|it| it.generation == generation) else { return false };
        // Under the lock: nobody can come to the end of a later attempt in between.
        let problem = outcome.map(give).err();
        attempt.failures = if problem.is_some() { attempt.failures + 1 } else { 0 };
        if problem.is_some() {
            let pause = PAUSE_FIRST.saturating_mul(1 << (attempt.failures - 1).min(8)).min(PAUSE_LONGEST);
            attempt.again_at = Instant::now() + pause;
        }
        let news = attempt.problem != problem;
        attempt.problem = problem;
        news
    }

    /// Until when nothing is tried again for an agent whose secrets this attempt could not read.
    fn pauses_until(&self, agent: &AgentName, generation: u64) -> Option<Instant> {
        let attempts = self.lock();
        let attempt = attempts.get(agent).filter(|it| it.generation == generation && it.problem.is_some());
        attempt.map(|attempt| attempt.again_at)
    }

    /// Why agents lack their secrets. `wanted` gives the digest of the configuration that an agent should
    /// have: what was wrong with another is over.
    pub(crate) fn problems(&self, wanted: impl Fn(&AgentName) -> Option<Digest>) -> BTreeMap<AgentName, String> {
        let attempts = self.lock();
        let of = |(agent, attempt): (&AgentName, &Attempt)| {
            let problem = attempt.problem.clone()?;
            (wanted(agent)? == attempt.digest).then(|| (agent.clone(), problem))
        };
        attempts.iter().filter_map(of).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AgentName, Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out what an agent's secrets are, and gives it its configuration with them.
pub(crate) async fn configure(
    core: Arc<Core>,
    agent: AgentName,
    configuration: Configuration,
    sources: BTreeMap<String, SecretSource>,
) {
    let sessions = core.hub.sessions().await;
    let session = sessions.iter().find(|session| session.agent == agent);
    // Who has just connected may have them from before, and is about to say so. That calls for a pass.
    let Some(session) = session.filter(|it| it.told && it.configured.as_ref() != Some(&configuration.digest)) else {
        return;
    };
    let Some(generation) = core.configuring.begin(&agent, &configuration.digest, session.epoch) else { return };
    let writable = Arc::new(writable(&core.ledger.records(), Timestamp::now()));
    let outcome = match core.configuring.reader.resolve(&sources, &writable).await {
        Ok(secrets) => fitting(Configuration { secrets, ..configuration }),
        Err(error) => Err(Chain(&error).to_string()),
    };
    let event = outcome.as_ref().err().map(|problem| NewEvent::of(&agent, EventKind::StepFailed, problem.clone()));
    let give = |configuration| core.hub.configure(agent.clone(), configuration);
    if core.configuring.end(&agent, generation, outcome, give) {
        let changes = event.into_iter().map(Change::Event).collect();
        if let Err(error) = core.ledger.record(changes, Timestamp::now()).await {
            tracing::error!(error = %Chain(&error), "An event could not be recorded");
        }
        core.wake();
    }
    if let Some(until) = core.configuring.pauses_until(&agent, generation) {
        tokio::time::sleep_until(until.into()).await;
        core.wake();
    }
}

fn fitting(configuration: Configuration) -> Result<Configuration, String> {
    let fits = configuration_fits(&configuration);
    fits.then_some(configuration)
        .ok_or_else(|| "its configuration with all secrets is longer than a message may be".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody(_: ()) {
        panic!("there is nothing to give");
    }

    #[test]
    fn a_source_is_asked_once_for_each_session_and_configuration() {
        let (configuring, web) = (Configuring::default(), "web".parse().unwrap());
        let begin = |digest: &[u8], epoch| configuring.begin(&web, &Digest::of(digest), Epoch(epoch)).is_some();
        assert!(begin(b"a", 1));
        assert!(!begin(b"a", 1));
        assert!(begin(b"b", 1));
        assert!(begin(b"b", 2));
    }

    #[test]
    fn a_failure_is_told_once_and_until_it_is_over() {
        let (configuring, web): (_, AgentName) = (Configuring::default(), "web".parse().unwrap());
        let attempt = configuring.begin(&web, &Digest::of(b"a"), Epoch(1)).unwrap();
        assert!(configuring.end(&web, attempt, Err("no such file".into()), nobody));
        assert!(!configuring.end(&web, attempt, Err("no such file".into()), nobody));
        assert!(configuring.pauses_until(&web, attempt).is_some());
        let problems = |digest: &[u8]| configuring.problems(|_| Some(Digest::of(digest)));
        assert_eq!(problems(b"a")[&web], "no such file");
        assert!(problems(b"b").is_empty(), "another configuration has other problems");
        assert!(configuring.problems(|_| None).is_empty(), "it is wanted no more");
        assert!(configuring.end(&web, attempt, Ok(()), |()| {}));
        assert!(problems(b"a").is_empty());
    }

    #[test]
    fn an_attempt_that_another_has_followed_does_nothing() {
        let (configuring, web): (_, AgentName) = (Configuring::default(), "web".parse().unwrap());
        let begin = |digest: &[u8]| configuring.begin(&web, &Digest::of(digest), Epoch(1)).unwrap();
        let (older, newer) = (begin(b"a"), begin(b"b"));
        let mut given = Vec::new();
        configuring.end(&web, newer, Ok("newer"), |values| given.push(values));
        assert!(!configuring.end(&web, older, Ok("older"), |values| given.push(values)));
        assert!(!configuring.end(&web, older, Err("no such file".into()), nobody));
        assert_eq!(given, ["newer"]);
        assert!(configuring.problems(|_| Some(Digest::of(b"b"))).is_empty());
        assert!(configuring.pauses_until(&web, older).is_none());
    }
}

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
use crate::engine::records::Change;
use crate::reconciler::Chain;
use crate::secrets;

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
}

#[derive(Debug)]
struct Attempt {
    digest: Digest,
    session: Epoch,
    /// None before this.
    again_at: Instant,
    failures: u32,
    problem: Option<String>,
}

impl Configuring {
    /// Takes the turn to configure an agent, unless somebody has it, or had it a moment ago.
    fn begin(&self, agent: &AgentName, digest: &Digest, session: Epoch) -> bool {
        let mut attempts = self.lock();
        let known = attempts.get(agent).filter(|it| it.digest == *digest && it.session == session);
        if known.is_some_and(|attempt| Instant::now() < attempt.again_at) {
            return false;
        }
        let (failures, problem) = known.map_or((0, None), |attempt| (attempt.failures, attempt.problem.clone()));
        let again_at = Instant::now() + ANSWERED_WITHIN;
        attempts.insert(agent.clone(), Attempt { digest: digest.clone(), session, again_at, failures, problem });
        true
    }

    /// Notes that secrets could be read, or why not. Answers whether that is news.
    fn end(&self, agent: &AgentName, problem: Option<String>) -> bool {
        let mut attempts = self.lock();
        let Some(attempt) = attempts.get_mut(agent) else { return false };
        attempt.failures = if problem.is_some() { attempt.failures + 1 } else { 0 };
        if problem.is_some() {
            let pause = PAUSE_FIRST.saturating_mul(1 << (attempt.failures - 1).min(8)).min(PAUSE_LONGEST);
            attempt.again_at = Instant::now() + pause;
        }
        let news = attempt.problem != problem;
        attempt.problem = problem;
        news
    }

    /// Until when nothing is tried again for an agent whose secrets could not be read.
    fn pauses_until(&self, agent: &AgentName) -> Option<Instant> {
        self.lock().get(agent).filter(|attempt| attempt.problem.is_some()).map(|attempt| attempt.again_at)
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
    mut configuration: Configuration,
    sources: BTreeMap<String, SecretSource>,
) {
    let sessions = core.hub.sessions().await;
    let session = sessions.iter().find(|session| session.agent == agent);
    // Who has just connected may have them from before, and is about to say so. That calls for a pass.
    let Some(session) = session.filter(|it| it.told && it.configured.as_ref() != Some(&configuration.digest)) else {
        return;
    };
    if !core.configuring.begin(&agent, &configuration.digest, session.epoch) {
        return;
    }
    let problem = match secrets::resolve(&sources).await {
        Ok(values) => {
            configuration.secrets = values;
            let fits = configuration_fits(&configuration);
            if fits {
                core.hub.configure(agent.clone(), configuration);
            }
            (!fits).then(|| "its configuration with all secrets is longer than a message may be".to_owned())
        }
        Err(error) => Some(Chain(&error).to_string()),
    };
    let event = problem.clone().map(|problem| NewEvent::of(&agent, EventKind::StepFailed, problem));
    if core.configuring.end(&agent, problem) {
        let changes = event.into_iter().map(Change::Event).collect();
        if let Err(error) = core.ledger.record(changes, Timestamp::now()).await {
            tracing::error!(error = %Chain(&error), "An event could not be recorded");
        }
        core.wake();
    }
    if let Some(until) = core.configuring.pauses_until(&agent) {
        tokio::time::sleep_until(until.into()).await;
        core.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_asked_once_for_each_session_and_configuration() {
        let (configuring, web) = (Configuring::default(), "web".parse().unwrap());
        let begin = |digest: &[u8], epoch| configuring.begin(&web, &Digest::of(digest), Epoch(epoch));
        assert!(begin(b"a", 1));
        assert!(!begin(b"a", 1));
        assert!(begin(b"b", 1));
        assert!(begin(b"b", 2));
    }

    #[test]
    fn a_failure_is_told_once_and_until_it_is_over() {
        let (configuring, web): (_, AgentName) = (Configuring::default(), "web".parse().unwrap());
        assert!(configuring.begin(&web, &Digest::of(b"a"), Epoch(1)));
        assert!(configuring.end(&web, Some("no such file".into())));
        assert!(!configuring.end(&web, Some("no such file".into())));
        let problems = |digest: &[u8]| configuring.problems(|_| Some(Digest::of(digest)));
        assert_eq!(problems(b"a")[&web], "no such file");
        assert!(problems(b"b").is_empty(), "another configuration has other problems");
        assert!(configuring.problems(|_| None).is_empty(), "it is wanted no more");
        assert!(configuring.end(&web, None));
        assert!(problems(b"a").is_empty());
    }
}

//! Runtimes of another version than the controller's are offered its own: one agent at a time, and never
//! again in this life once a runtime has said that it can't take it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use vm_agent_hub::{Offer, OpenError, Stream, StreamEvent};
use vm_agent_plan::SessionSeen;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{DATA_MAX, TaskOutcome, WINDOW};

use crate::core::Core;
use crate::reconciler::Chain;

/// The version of the controller, and of the runtime that belongs to it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long an offer may take, from the first byte to the runtime's word: a program of some tens of MiB to a
/// machine that is emulated.
const OFFER_LIMIT: Duration = Duration::from_secs(600);

/// When a runtime that has the program, and has not changed over, is offered it again: it may be busy, or have
/// lost it with its machine.
const AGAIN: Duration = Duration::from_secs(600);

/// When an offer is made again that was cut off.
const AGAIN_SOON: Duration = Duration::from_secs(30);

/// What runtimes were offered in this life.
#[derive(Debug, Default)]
pub(crate) struct Upgrading {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// A program is on its way to an agent.
    under_way: bool,
    agents: BTreeMap<AgentName, Offered>,
}

#[derive(Debug)]
struct Offered {
    /// Not again before this.
    again_at: Instant,
    outcome: Outcome,
}

/// What became of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It was cut off.
    Lost,
    /// The runtime has the program, and changes over when it has nothing to do.
    Taken,
    /// The runtime can't, and why.
    Refused(String),
}

impl Upgrading {
    /// Takes the turn to offer an agent's runtime the program, unless somebody has it, or had it for this agent
    /// lately.
    fn begin(&self, agent: &AgentName) -> bool {
        let mut state = self.lock();
        let settled =
            |offered: &Offered| Instant::now() < offered.again_at || matches!(offered.outcome, Outcome::Refused(_));
        if state.under_way || state.agents.get(agent).is_some_and(settled) {
            return false;
        }
        state.under_way = true;
        true
    }

    /// Gives the turn back.
    fn end(&self, agent: &AgentName, outcome: Outcome) {
        let mut state = self.lock();
        state.under_way = false;
        let pause = if outcome == Outcome::Taken { AGAIN } else { AGAIN_SOON };
        let known = state.agents.get(agent);
        // What the runtime itself has said by now is more than how the stream ended.
        if !known.is_some_and(|known| matches!(known.outcome, Outcome::Refused(_))) {
            state.agents.insert(agent.clone(), Offered { again_at: Instant::now() + pause, outcome });
        }
    }

    /// A runtime has said that it can't be replaced.
    pub(crate) fn failed(&self, agent: &AgentName, reason: String) {
        let offered = Offered { again_at: Instant::now(), outcome: Outcome::Refused(reason) };
        self.lock().agents.insert(agent.clone(), offered);
    }

    /// Why runtimes stay as they are.
    pub(crate) fn failures(&self) -> BTreeMap<AgentName, String> {
        let state = self.lock();
        let of = |(agent, offered): (&AgentName, &Offered)| match &offered.outcome {
            Outcome::Refused(reason) => Some((agent.clone(), reason.clone())),
            Outcome::Lost | Outcome::Taken => None,
        };
        state.agents.iter().filter_map(of).collect()
    }

    /// What there is to tell of runtimes that were offered this version and have it now. It is told once.
    pub(crate) fn upgraded(&self, sessions: &BTreeMap<AgentName, SessionSeen>) -> Vec<NewEvent> {
        let mut state = self.lock();
        let is_new = |agent: &AgentName| sessions.get(agent).is_some_and(|it| it.connected && it.version == VERSION);
        let done = state.agents.extract_if(.., |agent, _| is_new(agent));
        let message = || format!("its runtime is version {VERSION} now");
        done.map(|(agent, _)| NewEvent::of(&agent, EventKind::RuntimeUpgraded, message())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a runtime was not offered the program to its end.
#[derive(Debug, thiserror::Error)]
enum OfferError {
    #[error("`{}` can't be read", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the session ended: {0}")]
    Lost(String),
}

/// Offers an agent's runtime the version that belongs to the controller.
pub(crate) async fn upgrade(core: Arc<Core>, agent: AgentName, driver: DriverName) {
    let Some(program) = core.observers.get(&driver).and_then(|it| it.driver().runtime().map(Path::to_owned)) else {
        return;
    };
    if !core.upgrading.begin(&agent) {
        return;
    }
    let outcome = match tokio::time::timeout(OFFER_LIMIT, offer(&core, &agent, &program)).await {
        Ok(Ok(TaskOutcome::Exited { code: 0 })) => Outcome::Taken,
        Ok(Ok(TaskOutcome::Failed { reason })) => Outcome::Refused(reason),
        Ok(Ok(other)) => Outcome::Refused(other.to_string()),
        Ok(Err(error)) => {
            tracing::warn!(agent.name = %agent, error = %Chain(&error), "A runtime could not be offered another version");
            Outcome::Lost
        }
        Err(_) => {
            tracing::warn!(agent.name = %agent, "A runtime did not take another version within {} s", OFFER_LIMIT.as_secs());
            Outcome::Lost
        }
    };
    core.upgrading.end(&agent, outcome);
    core.wake();
}

async fn offer(core: &Core, agent: &AgentName, program: &Path) -> Result<TaskOutcome, OfferError> {
    let unreadable = |source| OfferError::Unreadable { path: program.to_owned(), source };
    // Open all the time: what is sent is what was summed up, though another file may take its place meanwhile.
    let mut file = File::open(program).await.map_err(unreadable)?;
    let (size, sha256) = summed_up(&mut file).await.map_err(unreadable)?;
    let offer = Offer { version: VERSION.to_owned(), size: ByteSize::from_bytes(size), sha256 };
    let stream = core.hub.upgrade(agent.clone(), offer).await?;
    sent(stream, file, size).await.map_err(|error| match error {
        SendError::File(source) => unreadable(source),
        SendError::Lost(why) => OfferError::Lost(why),
    })
}

enum SendError {
    File(io::Error),
    Lost(String),
}

/// The size and the SHA-256 of a file, which is then at its beginning again.
async fn summed_up(file: &mut File) -> io::Result<(u64, Digest)> {
    let (mut sum, mut size) = (Context::new(&SHA256), 0);
    let mut piece = vec![0; 16 * DATA_MAX];
    loop {
        let count = file.read(&mut piece).await?;
        if count == 0 {
            break;
        }
        sum.update(&piece[..count]);
        size += count as u64;
    }
    file.rewind().await?;
    Ok((size, Digest::of_sha256(&sum.finish())))
}

/// Sends a program as the input of a stream, as far ahead of what is taken as it may, and waits for the end.
async fn sent(mut stream: Stream, mut file: File, size: u64) -> Result<TaskOutcome, SendError> {
    let (mut offset, mut taken) = (0, 0);
    loop {
        while offset < size && offset < taken + WINDOW {
            let room = (taken + WINDOW - offset).min(DATA_MAX as u64) as usize;
            let mut piece = vec![0; room];
            let count = file.read(&mut piece).await.map_err(SendError::File)?;
            if count == 0 {
                return Err(SendError::File(io::ErrorKind::UnexpectedEof.into()));
            }
            piece.truncate(count);
            let end = offset + count as u64 == size;
            stream.send(offset, end, Bytes::from(piece));
            offset += count as u64;
        }
        match stream.next().await {
            Some(StreamEvent::Taken { offset }) => taken = offset,
            Some(StreamEvent::Ended(outcome)) => return Ok(outcome),
            Some(StreamEvent::Lost(why)) => return Err(SendError::Lost(why)),
            Some(StreamEvent::Opened { .. } | StreamEvent::Data { .. }) => {}
            None => return Err(SendError::Lost("the stream is over".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_offered_a_version_one_at_a_time_and_not_again_once_they_refused() {
        let upgrading = Upgrading::default();
        let (web, db): (AgentName, AgentName) = ("web".parse().unwrap(), "db".parse().unwrap());
        assert!(upgrading.begin(&web));
        assert!(!upgrading.begin(&db), "one at a time");
        upgrading.end(&web, Outcome::Taken);
        assert!(!upgrading.begin(&web), "it has it");
        assert!(upgrading.begin(&db));
        upgrading.failed(&db, "no room".to_owned());
        upgrading.end(&db, Outcome::Lost);
        assert_eq!(upgrading.failures()[&db], "no room");
        assert!(!upgrading.begin(&db));
    }

    #[tokio::test]
    async fn a_program_is_summed_up_and_read_again_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let program: Vec<u8> = (0..3 * DATA_MAX as u32 * 16).map(|number| number as u8).collect();
        std::fs::write(&path, &program).unwrap();
        let mut file = File::open(&path).await.unwrap();
        let (size, sha256) = summed_up(&mut file).await.unwrap();
        assert_eq!((size, sha256), (program.len() as u64, Digest::of(&program)));
        let mut again = Vec::new();
        file.read_to_end(&mut again).await.unwrap();
        assert!(again == program);
    }
}

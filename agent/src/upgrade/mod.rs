//! Another version of the runtime takes this one's place.
//!
//! ```text
//!  offered ─▶ stored, checked ─▶ nothing to do ─▶ exec ─▶ welcomed ─▶ it is the one from now on
//!                    │                                │
//!                    └──────── fails ─────────────────┴──▶ the old one again, which tells why
//! ```
//!
//! The new program runs as the same process, so whoever looks after the runtime notices nothing. Until it has
//! had a welcome it is on trial: it may be started a few times, and each time it has a minute. Which program
//! is to run is decided by the state on the disk alone, by whichever program was started.

mod state;
mod store;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::wire::{FromRuntime, TaskOutcome, Upgrade, UpgradeFailed};

use crate::folder::{Folder, FolderError};
use crate::outgoing::Outgoing;
use crate::sentence::sentence;
use crate::streams::{Line, Wire, closed, take};
use state::{Run, State, Trial, decide};
use store::UpgradeError;

/// How often it is looked whether there is nothing to do any more, while a version waits for that.
const LOOK: Duration = Duration::from_secs(1);

/// The runtime's hold on its own versions.
#[derive(Debug)]
pub(crate) struct Upgrades {
    versions: PathBuf,
    own: PathBuf,
    state: State,
    /// When a program on trial has to have had its welcome.
    deadline: Option<Instant>,
    /// The version that is stored and waits until there is nothing to do.
    ready: Option<Trial>,
    results: mpsc::UnboundedSender<Offered>,
    offered: mpsc::UnboundedReceiver<Offered>,
}

/// An offer, and what became of it.
#[derive(Debug)]
pub(crate) struct Offered {
    order: Upgrade,
    line: Line,
    stored: Result<PathBuf, UpgradeError>,
}

/// What happens with versions.
#[derive(Debug)]
pub(crate) enum Change {
    /// An offer was stored, or not.
    Offered(Box<Offered>),
    /// A program on trial has had its time.
    Overdue,
    /// It is time to look whether there is nothing to do any more.
    Look,
}

/// Decides which program is to run, at the very start. If that is another one this does not return.
pub(crate) fn start(folder: &Folder) -> Result<Upgrades, FolderError> {
    let (results, offered) = mpsc::unbounded_channel();
    let mut upgrades = Upgrades {
        versions: folder.versions(),
        // What can't be named can't be told from others, and is none of those that are stored.
        own: std::env::current_exe().unwrap_or_default(),
        state: State::load(folder)?,
        deadline: None,
        ready: None,
        results,
        offered,
    };
    loop {
        match decide(&upgrades.state, &upgrades.own) {
            Run::Me => break,
            Run::Exec(path) => {
                if let Some(trial) = &mut upgrades.state.trial {
                    trial.starts += 1;
                    upgrades.state.save()?;
                }
                let error = replace(&path);
                if upgrades.state.trial.is_none() {
                    // A runtime of another version is better than none.
                    tracing::error!("`{}` can't be run: {error}", path.display());
                    break;
                }
                upgrades.state.give_up(&format!("the new version can't be run: {error}"))?;
            }
            Run::RollBack => upgrades.state.give_up("the new version was started 3 times and got no welcome")?,
        }
    }
    let trial = upgrades.state.trial.as_ref().filter(|trial| trial.path == upgrades.own);
    upgrades.deadline = trial.map(|trial| Instant::now() + Duration::from_millis(trial.limit_ms));
    Ok(upgrades)
}

/// Has another program go on as this process, called as this one was. It returns only if that fails.
pub(crate) fn replace(path: &Path) -> std::io::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from(path));
    Command::new(path).arg0(name).args(arguments).exec()
}

impl Upgrades {
    /// Another version is offered: it comes on `wire`.
    pub(crate) fn offer(&mut self, order: Upgrade, wire: Wire, outgoing: &Outgoing, tracker: &TaskTracker) {
        if self.own.starts_with(self.versions.join(order.sha256.as_str())) {
            return wire.line.ended(TaskOutcome::Exited { code: 0 });
        }
        if let Some(failed) = self.state.failed(&order.sha256) {
            let reason = format!("this program was tried before, and failed: {}", failed.reason);
            return refuse(outgoing, &wire.line, order, &reason);
        }
        tracing::info!("version {} of the runtime is offered", order.version);
        let (versions, results) = (self.versions.clone(), self.results.clone());
        tracker.spawn(async move {
            let Wire { line, mut orders, stdin, .. } = wire;
            let Some(inlet) = stdin else { return };
            let (size, sha256) = (order.size, order.sha256.clone());
            let stored = async {
                let path = take(inlet, move |program| store::store(program, &versions, size, &sha256)).await?;
                store::check(&path).await?;
                Ok(path)
            };
            let stored = tokio::select! {
                biased;
                stored = stored => stored,
                // Nobody offers it any more. What has come of it goes with it.
                () = closed(&mut orders) => return,
            };
            // The receiver lives as long as the runtime.
            let _ = results.send(Offered { order, line, stored });
        });
    }

    /// What happens next. May be dropped and called again without loss.
    pub(crate) async fn next(&mut self) -> Change {
        let overdue = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(offered) = self.offered.recv() => Change::Offered(Box::new(offered)),
            () = overdue => Change::Overdue,
            () = sleep(LOOK), if self.ready.is_some() => Change::Look,
        }
    }

    /// Deals with it. Answers with the program that is to go on in this one's place at once.
    pub(crate) fn handle(&mut self, change: Change, outgoing: Option<&Outgoing>) -> Option<PathBuf> {
        match change {
            Change::Offered(offered) => {
                let Offered { order, line, stored } = *offered;
                match stored {
                    Ok(path) => {
                        line.ended(TaskOutcome::Exited { code: 0 });
                        let Upgrade { version, sha256, .. } = order;
                        self.ready = Some(Trial::new(version, sha256, path, self.own.clone()));
                    }
                    Err(error) => {
                        let reason = crate::chain(&error);
                        tracing::warn!("version {} can't be taken into use: {reason}", order.version);
                        match outgoing {
                            Some(outgoing) => refuse(outgoing, &line, order, &reason),
                            None => line.ended(TaskOutcome::Failed { reason: sentence(&reason) }),
                        }
                    }
                }
                None
            }
            Change::Look => None,
            Change::Overdue => {
                self.deadline = None;
                let trial = self.state.trial.clone()?;
                let limit = Duration::from_millis(trial.limit_ms).as_secs();
                let reason = format!("the new version got no welcome within {limit} s, and the old one was put back");
                tracing::error!("{reason}");
                log(self.state.give_up(&reason));
                Some(trial.from)
            }
        }
    }

    /// The program that is to take over, when there is one and nothing else to do. With this it is on trial.
    pub(crate) fn take_over(&mut self) -> Option<PathBuf> {
        let mut trial = self.ready.take()?;
        trial.starts = 1;
        let path = trial.path.clone();
        self.state.trial = Some(trial);
        match self.state.save() {
            Ok(()) => Some(path),
            Err(error) => {
                // Without the note nobody would put the old one back.
                tracing::error!("the new version can't be taken into use: {}", crate::chain(&error));
                self.state.trial = None;
                None
            }
        }
    }

    /// Whether a version waits to take over.
    pub(crate) const fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// The hub has welcomed this program: it has stood its trial. What failed before is told.
    pub(crate) fn welcomed(&mut self, outgoing: &Outgoing) {
        self.deadline = None;
        if let Some(trial) = self.state.trial.take_if(|trial| trial.path == self.own) {
            tracing::info!("version {} of the runtime is in use", trial.version);
            self.state.good = Some(trial.path.clone());
            log(self.state.save());
            store::keep_only(&self.versions, &[&trial.path, &trial.from]);
        }
        for failed in self.state.untold() {
            outgoing.say(FromRuntime::UpgradeFailed(failed));
        }
    }
}

fn refuse(outgoing: &Outgoing, line: &Line, order: Upgrade, reason: &str) {
    let Upgrade { version, sha256, .. } = order;
    let reason = sentence(reason);
    outgoing.say(FromRuntime::UpgradeFailed(UpgradeFailed { version, sha256, reason: reason.clone() }));
    line.ended(TaskOutcome::Failed { reason });
}

fn log(result: Result<(), FolderError>) {
    if let Err(error) = result {
        tracing::error!("{}", crate::chain(&error));
    }
}

/// Whether a text is a SHA-256: it becomes the name of a folder.
fn is_sha256(digest: &Digest) -> bool {
    digest.as_str().len() == 64 && digest.as_str().bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

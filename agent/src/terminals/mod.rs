//! Terminals. One that is kept outlives the stream that opened it, and the session: whoever lost the
//! connection attaches to it again and is sent what came meanwhile.

mod keeper;
mod ring;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::task::TaskTracker;
use vm_agent_schemas::ids::TerminalId;
use vm_agent_schemas::wire::{Run, TaskOutcome, TerminalReport, TerminalSize};

use crate::process::{SpawnError, Surroundings};
use crate::sentence::plain;
use crate::streams::Wire;
use keeper::{Attachment, Keeper, Status};

/// Most terminals that are kept: sixteen hold 16 MiB of output at worst.
const KEPT_MAX: usize = 16;
/// How much of a terminal's command is reported, in bytes.
const ARGV_MAX: usize = 1024;
/// The kind of terminal that programs are told of when nobody says which: what nearly all are like today.
const TERM: &str = "xterm-256color";

/// The terminals that are kept. Dropping them ends their processes.
#[derive(Debug, Default)]
pub(crate) struct Terminals {
    kept: BTreeMap<TerminalId, Kept>,
    changed: Arc<Notify>,
}

/// The hold on one terminal.
#[derive(Debug)]
struct Kept {
    argv: Vec<String>,
    opened_at: i64,
    clients: mpsc::UnboundedSender<Attachment>,
    status: watch::Receiver<Status>,
}

/// Why a terminal can't be had.
#[derive(Debug, thiserror::Error)]
enum TerminalError {
    #[error("{KEPT_MAX} terminals are kept already; end one of them first")]
    TooMany,
    #[error("there is a terminal `{0}` already; attach to it")]
    Taken(TerminalId),
    #[error("there is no terminal `{0}` any more; open a new one")]
    Gone(TerminalId),
    #[error("no terminal could be opened")]
    Open(#[source] std::io::Error),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl Terminals {
    /// Opens a terminal for a stream, and keeps it if it is to have a name.
    pub(crate) fn open(
        &mut self,
        wire: Wire,
        run: Run,
        size: TerminalSize,
        keep: Option<TerminalId>,
        surroundings: &Surroundings,
        tracker: &TaskTracker,
    ) {
        let begun = self.room(keep).and_then(|()| begin(run, size, surroundings));
        let (keeper, status, argv) = match begun {
            Ok(begun) => begun,
            Err(error) => return refuse(&wire, &error),
        };
        let first = Attachment { wire, offset: 0, size: None };
        let inbox = keep.map(|terminal| {
            let (clients, inbox) = mpsc::unbounded_channel();
            let opened_at = Timestamp::now().as_millisecond();
            self.kept.insert(terminal, Kept { argv: told(argv), opened_at, clients, status });
            inbox
        });
        // Of one that is not kept nobody is told.
        let changed = keep.map(|_| Arc::clone(&self.changed)).unwrap_or_default();
        tracker.spawn(async move {
            keeper.run(first, inbox, &changed).await;
            changed.notify_one();
        });
    }

    /// Returns when there is something new to report since the last return.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Attaches a stream to a terminal that is kept.
    pub(crate) fn attach(&self, terminal: TerminalId, wire: Wire, offset: u64, size: TerminalSize) {
        let attachment = Attachment { wire, offset, size: Some(size) };
        let refused = match self.kept.get(&terminal) {
            Some(kept) => kept.clients.send(attachment).err().map(|error| error.0),
            None => Some(attachment),
        };
        if let Some(Attachment { wire, .. }) = refused {
            refuse(&wire, &TerminalError::Gone(terminal));
        }
    }

    /// What is told of those that are kept.
    pub(crate) fn report(&mut self) -> Vec<TerminalReport> {
        self.forget();
        let report = |(&terminal, kept): (&TerminalId, &Kept)| {
            let Status { attached, ended } = *kept.status.borrow();
            TerminalReport { terminal, argv: kept.argv.clone(), opened_at: kept.opened_at, attached, ended }
        };
        self.kept.iter().map(report).collect()
    }

    /// Whether none is kept.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.forget();
        self.kept.is_empty()
    }

    /// Makes sure that one more can be kept. One whose process has ended makes room for it.
    fn room(&mut self, keep: Option<TerminalId>) -> Result<(), TerminalError> {
        let Some(terminal) = keep else { return Ok(()) };
        self.forget();
        if self.kept.contains_key(&terminal) {
            return Err(TerminalError::Taken(terminal));
        }
        if self.kept.len() >= KEPT_MAX {
            let ended = self.kept.iter().find(|(_, kept)| kept.status.borrow().ended);
            let ended = ended.map(|(&terminal, _)| terminal).ok_or(TerminalError::TooMany)?;
            self.kept.remove(&ended);
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.kept.retain(|_, kept| !kept.clients.is_closed());
    }
}

/// As much of a command as is reported: of all terminals together it has to fit into one message.
fn told(argv: Vec<String>) -> Vec<String> {
    let mut room = ARGV_MAX;
    let mut told = Vec::new();
    for argument in argv {
        let argument = plain(&argument);
        if argument.len() >= room {
            told.push(format!("{}…", &argument[..argument.floor_char_boundary(room)]));
            break;
        }
        room -= argument.len() + 1;
        told.push(argument);
    }
    told
}

/// Starts a process on a new terminal.
fn begin(
    mut run: Run,
    size: TerminalSize,
    surroundings: &Surroundings,
) -> Result<(Keeper, watch::Receiver<Status>, Vec<String>), TerminalError> {
    let opening = |error| match error {
        pty_process::Error::Io(error) => TerminalError::Open(error),
        other => TerminalError::Open(std::io::Error::other(other)),
    };
    if !run.env.contains_key("TERM") && !surroundings.env.contains_key("TERM") {
        run.env.insert("TERM".to_owned(), TERM.to_owned());
    }
    let (pty, pts) = pty_process::open().map_err(opening)?;
    pty.resize(pty_process::Size::new(size.rows, size.cols)).map_err(opening)?;
    let (leader, argv) = surroundings.spawn_on(run, pts)?;
    let (keeper, status) = Keeper::new(pty, leader).map_err(TerminalError::Open)?;
    Ok((keeper, status, argv))
}

fn refuse(wire: &Wire, error: &TerminalError) {
    wire.line.ended(TaskOutcome::NotStarted { reason: crate::sentence::sentence(&crate::chain(error)) });
}

#[cfg(test)]
mod tests;

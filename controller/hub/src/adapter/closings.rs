//! Connections that the hub has closed by its own decision, counted by why.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vm_agent_schemas::wire::RefusalCode;

use crate::state::{CloseReason, Notice};

/// How many connections the hub has closed since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closings {
    /// Those that were told why, in a session or before it, by what they were told.
    pub refused: BTreeMap<RefusalCode, u64>,
    /// Those that did not come so far that they could be told.
    pub turned_away: BTreeMap<TurnedAway, u64>,
}

/// Why a connection was closed before it was upgraded to a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TurnedAway {
    /// It took too long.
    Slow,
    /// Others came while it took its time, and there was no more room.
    Crowded,
    /// It came from another machine and did not speak TLS.
    Plain,
    /// The TLS handshake failed.
    Tls,
    /// The upgrade to a WebSocket failed.
    Upgrade,
    /// It went away by itself.
    Lost,
    /// The hub goes down.
    Shutdown,
}

impl TurnedAway {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Crowded => "crowded",
            Self::Plain => "plain",
            Self::Tls => "tls",
            Self::Upgrade => "upgrade",
            Self::Lost => "lost",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The counts that all parts of the adapter share. Unlike notices none of them is ever dropped.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally(Arc<Mutex<Closings>>);

impl Tally {
    pub(super) fn closings(&self) -> Closings {
        self.change(|closings| closings.clone())
    }

    pub(super) fn turned_away(&self, why: TurnedAway) {
        self.change(|closings| *closings.turned_away.entry(why).or_default() += 1);
    }

    /// Counts what a notice tells of a connection that the hub has closed.
    pub(super) fn told(&self, notice: &Notice) {
        if let Notice::Refused { code, .. } | Notice::SessionClosed { why: CloseReason::Refused { code, .. }, .. } =
            notice
        {
            self.change(|closings| *closings.refused.entry(*code).or_default() += 1);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Closings) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

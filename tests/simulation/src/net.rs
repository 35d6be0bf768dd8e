//! Connections between runtimes and the hub: in order, late, and cut at any message.

use std::collections::BTreeMap;

use vm_agent_hub::state::ConnId;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::names::InstanceName;

use crate::clock::Millis;

/// The runtime's end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// Which connection.
    pub conn: ConnId,
    /// Whether the session is accepted.
    pub welcomed: bool,
}

/// Who is at the far end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The runtime in this machine, in that run of it.
    Machine {
        /// The driver.
        driver: DriverName,
        /// The machine.
        instance: InstanceName,
        /// The run.
        run: u64,
    },
    /// A ghost: a copy, or what is left of an earlier life.
    Ghost(usize),
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// Who is at the far end.
    pub peer: Peer,
    /// The controller's life that it leads to.
    pub life: u64,
    /// Frames pass.
    pub open: bool,
    /// When the last frame to the hub arrives: the next does not overtake it.
    pub to_hub: Millis,
    /// When the last frame to the runtime arrives.
    pub to_runtime: Millis,
}

/// All connections.
#[derive(Debug, Default)]
pub struct Net {
    /// By number.
    pub conns: BTreeMap<ConnId, Conn>,
    last: u64,
}

impl Net {
    /// A new connection.
    pub fn connect(&mut self, peer: Peer, life: u64, now: Millis) -> ConnId {
        self.last += 1;
        let id = ConnId(self.last);
        self.conns.insert(id, Conn { peer, life, open: true, to_hub: now, to_runtime: now });
        id
    }

    /// The connection, if frames pass on it.
    #[must_use]
    pub fn open(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(&conn).filter(|conn| conn.open)
    }
}

//! Frames that pass, late and in order, or are lost.

use vm_agent_hub::state::{ConnId, Event as HubEvent, Inbound};
use vm_agent_schemas::ids::{MessageId, Nonce, SessionId};
use vm_agent_schemas::wire::{Address, Envelope, Frame, FromHub, FromRuntime};

use crate::clock::{MINUTE, Millis, SECOND};
use crate::runtime::Outbound;
use crate::world::{Event, World};

impl World {
    pub(super) fn frame_latency(&mut self) -> Millis {
        if !self.calm && self.rng.u8(..50) == 0 { self.rng.u64(..3 * SECOND) } else { self.rng.u64(1..20) }
    }

    pub(super) fn send_to_hub(&mut self, conn: ConnId, body: FromRuntime) {
        self.send_envelope(conn, MessageId::generate(), Address::Host, body);
    }

    /// A program's message goes out under its own id.
    pub(super) fn send_letter(&mut self, conn: ConnId, Outbound { id, to, post }: Outbound) {
        self.send_envelope(conn, id, to, FromRuntime::Message(post));
    }

    fn send_envelope(&mut self, conn: ConnId, id: MessageId, to: Address, body: FromRuntime) {
        let Some(peer) = self.net.open(conn).map(|conn| conn.peer.clone()) else { return };
        let Some(agent) = self.peer(&peer).map(|runtime| runtime.seed.agent.clone()) else { return };
        let envelope = Envelope { id, ..Envelope::new(Address::Agent(agent), to, self.clock.wall(), body) };
        self.send_inbound(conn, Inbound::Message(envelope));
    }

    /// Output goes out.
    pub(super) fn send_data(&mut self, conn: ConnId, frame: Frame) {
        self.send_inbound(conn, Inbound::Data(frame));
    }

    fn send_inbound(&mut self, conn: ConnId, inbound: Inbound) {
        let at = self.clock.mono + self.frame_latency();
        if let Some(entry) = self.net.open(conn) {
            entry.to_hub = entry.to_hub.max(at) + 1;
            let at = entry.to_hub;
            self.at(at, Event::ToHub(conn, Box::new(inbound)));
            self.maybe_cut(conn);
        }
    }

    /// The hub sends a message.
    pub(crate) fn send_to_runtime(&mut self, conn: ConnId, envelope: Envelope<FromHub>) {
        let at = self.clock.mono + self.frame_latency();
        if let Some(entry) = self.net.open(conn) {
            entry.to_runtime = entry.to_runtime.max(at) + 1;
            let at = entry.to_runtime;
            self.at(at, Event::ToRuntime(conn, Box::new(envelope)));
            self.maybe_cut(conn);
        }
    }

    /// Any message may be the last of its connection.
    pub(super) fn maybe_cut(&mut self, conn: ConnId) {
        if !self.calm && self.rng.u8(..60) == 0 {
            self.cut(conn);
        }
    }

    /// No frame passes any more. Both ends learn of it, and not at once.
    pub(crate) fn cut(&mut self, conn: ConnId) {
        let Some(entry) = self.net.open(conn) else { return };
        entry.open = false;
        let (hub, runtime) = if self.calm {
            (20, 20)
        } else {
            // One end may take long to notice.
            let longest = if self.rng.u8(..5) == 0 { 3 * MINUTE } else { SECOND };
            (self.rng.u64(1..longest), self.rng.u64(1..SECOND))
        };
        self.after(hub, Event::ClosedToHub(conn));
        self.after(runtime, Event::ClosedToRuntime(conn));
    }

    /// The controller is gone, and all connections with it.
    pub(crate) fn cut_all(&mut self) {
        let open: Vec<ConnId> = self.net.conns.iter().filter(|(_, conn)| conn.open).map(|(id, _)| *id).collect();
        open.into_iter().for_each(|conn| self.cut(conn));
    }

    /// The hub closes a connection, once what is under way has arrived.
    pub(crate) fn close_from_hub(&mut self, conn: ConnId) {
        if let Some(entry) = self.net.open(conn) {
            let at = entry.to_runtime + 1;
            self.at(at, Event::ClosedToRuntime(conn));
        }
    }

    pub(super) fn opened(&mut self, conn: ConnId) {
        if !self.leads_here(conn) {
            return;
        }
        let challenge = Nonce::from_text(format!("challenge {}", conn.0));
        let (since, session) = (self.clock.wall(), SessionId::generate());
        let peer = ([127, 0, 0, 1], 5000).into();
        self.hub(HubEvent::Opened { conn, peer, since, challenge, session });
    }

    pub(super) fn hub_hears(&mut self, conn: ConnId, inbound: Inbound) {
        if self.net.open(conn).is_some() && self.leads_here(conn) {
            self.hub(HubEvent::Received { conn, inbound });
        }
    }

    pub(super) fn closed_to_runtime(&mut self, conn: ConnId) {
        let Some(entry) = self.net.conns.get_mut(&conn) else { return };
        entry.open = false;
        let peer = entry.peer.clone();
        let Some(runtime) = self.peer(&peer).filter(|it| it.wire.is_some_and(|wire| wire.conn == conn)) else { return };
        runtime.wire = None;
        self.reconnect(peer);
    }
}

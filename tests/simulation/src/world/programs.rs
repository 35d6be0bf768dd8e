//! Programs in the machines, and those on the host: what they say to each other.

use std::sync::Arc;

use serde_json::json;
use vm_agent_hub::state::Event as HubEvent;
use vm_agent_schemas::ids::{MessageId, Nonce};
use vm_agent_schemas::message::{Message, MessageState, Post};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::Address;

use crate::clock::{MINUTE, SECOND};
use crate::deed::Deed;
use crate::net::Peer;
use crate::runtime::Outbound;
use crate::world::{Event, World};

impl World {
    /// Somebody says something to a program or asks for work, or has a runtime make itself another key.
    pub(super) fn talk(&mut self) {
        if self.calm {
            return;
        }
        let delay = self.rng.u64(300..12 * SECOND);
        self.after(delay, Event::Talk);
        let name: AgentName = self.people.some_name(&mut self.rng).parse().expect("it is a name");
        match self.rng.u8(..16) {
            10..16 => {
                if let Some(records) = self.life.as_ref().map(|life| Arc::clone(&life.records)) {
                    self.ask_for_task(&records, &name);
                    if self.rng.u8(..4) == 0 {
                        self.cancel_some_task();
                    }
                }
            }
            0 => {
                let challenge = Nonce::from_text(format!("rotation {}", self.clock.mono));
                self.hub(HubEvent::Rotate { agent: name, challenge });
            }
            1 | 2 => {
                let post = self.words();
                let now = self.clock.wall();
                let ttl = self.rng.u64(SECOND..20 * MINUTE);
                let message = Message {
                    id: MessageId::generate(),
                    from: Address::Host,
                    to: Address::Agent(name),
                    subject: post.subject,
                    body: post.body,
                    in_reply_to: None,
                    author: Some("ana".to_owned()),
                    created_at: now,
                    expires_at: now + std::time::Duration::from_millis(ttl),
                    state: MessageState::Waiting,
                };
                self.hub(HubEvent::Post(message));
            }
            kind => {
                let to = match kind {
                    3 => Address::Host,
                    4 => Address::Broadcast,
                    _ => Address::Agent(name),
                };
                if let Some(peer) = self.some_program() {
                    for _ in 0..self.rng.u8(1..4) {
                        let post = self.words();
                        self.write_message(&peer, to.clone(), post);
                    }
                }
            }
        }
    }

    /// A machine in which something runs.
    fn some_program(&mut self) -> Option<Peer> {
        let (driver, instance) = self.some_machine()?;
        let run = self.runtime_in(driver, &instance).filter(|runtime| runtime.up)?.run;
        Some(Peer::Machine { driver, instance, run })
    }

    /// What is said says which word it is.
    fn words(&mut self) -> Post {
        self.words_said += 1;
        let ttl_ms = if self.rng.u8(..4) == 0 { Some(self.rng.u64(SECOND..5 * MINUTE)) } else { None };
        Post { subject: "word".to_owned(), body: json!(self.words_said), in_reply_to: None, ttl_ms }
    }

    fn write_message(&mut self, peer: &Peer, to: Address, post: Post) {
        let outbound = Outbound { id: MessageId::generate(), to, post };
        let Some(runtime) = self.peer(peer) else { return };
        runtime.boxes.outbox.push(outbound.clone());
        if let Some(wire) = runtime.wire.filter(|wire| wire.welcomed) {
            self.send_letter(wire.conn, outbound);
        }
    }

    /// A program takes the oldest message that has come, and may answer it.
    pub(super) fn program(&mut self, peer: &Peer) {
        let Peer::Machine { .. } = peer else { return };
        let Some(runtime) = self.peer(peer) else { return };
        let nonce = runtime.seed.nonce.clone();
        let Some(message) = runtime.boxes.inbox.pop_front() else { return };
        if !runtime.boxes.inbox.is_empty() {
            self.after(1, Event::Program(peer.clone()));
        }
        self.trace(|| format!("{peer:?} takes word {} from {}", message.body, message.from));
        self.tell(&Deed::Given(Box::new(message.clone()), nonce));
        if !self.calm && self.rng.u8(..3) == 0 {
            let answer = Post { in_reply_to: Some(message.id), ..self.words() };
            self.write_message(peer, message.from, answer);
        }
    }
}

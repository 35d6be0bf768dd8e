//! The task that owns the hub's state: it turns what happens into events, and carries effects out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::Message;
use vm_agent_schemas::ids::{MessageId, Nonce, RequestId, SessionId};
use vm_agent_schemas::message::{self, Post};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{Address, Envelope, FromHub};

use super::closings::Tally;
use super::connection::{Input, Outgoing};
use super::notices::Notices;
use super::release::{Released, Releases};
use super::{ClientSender, Command, Purpose, Storage};
use crate::state::{ConnId, Effect, Event, Hub, Notice, OpenError, PostError, Shown, StreamKey, VerifyError};
use crate::stream::Stream;

/// How often time is looked at, at the least: handshakes are timed in seconds.
const TICK: Duration = Duration::from_secs(1);

/// Ticks in a heartbeat, at the least.
const TICKS_PER_HEARTBEAT: u32 = 4;

/// How long a controller that goes down has to take the last notices.
const LAST_NOTICES: Duration = Duration::from_secs(2);

/// Who waits to hear whether a message of the host's is stored.
type PostAnswer = oneshot::Sender<Result<(), PostError>>;

/// Who waits to hear where a runtime runs.
pub(super) type ShownAnswer = oneshot::Sender<Result<Shown, VerifyError>>;

/// A stream that is being opened.
struct Opening {
    stream: Stream,
    answer: oneshot::Sender<Result<Stream, OpenError>>,
}

pub(super) struct Owner {
    hub: Hub,
    tick: Duration,
    releases: Releases,
    notices: Notices,
    tally: Tally,
    connections: HashMap<ConnId, Outgoing>,
    opening: HashMap<StreamKey, Opening>,
    clients: HashMap<StreamKey, ClientSender>,
    posting: HashMap<(MessageId, Address), Vec<PostAnswer>>,
    verifying: HashMap<RequestId, ShownAnswer>,
    distrusting: HashMap<RequestId, oneshot::Sender<bool>>,
    last_key: u64,
    shutting_down: bool,
}

impl Owner {
    pub(super) fn new(
        hub: Hub,
        heartbeat: Span,
        storage: Arc<dyn Storage>,
        notices: mpsc::Sender<Notice>,
        tally: Tally,
    ) -> Self {
        // An interval of zero panics.
        let tick = (heartbeat.get() / TICKS_PER_HEARTBEAT).clamp(Duration::from_millis(1), TICK);
        Self {
            hub,
            tick,
            releases: Releases::new(storage),
            notices: Notices::new(notices),
            tally,
            connections: HashMap::new(),
            opening: HashMap::new(),
            clients: HashMap::new(),
            posting: HashMap::new(),
            verifying: HashMap::new(),
            distrusting: HashMap::new(),
            last_key: 0,
            shutting_down: false,
        }
    }

    /// Serves until asked to shut down, or until nobody is left who could ask.
    pub(super) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Box<Input>>,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !(self.shutting_down && self.releases.is_empty()) {
            tokio::select! {
                Some(input) = inputs.recv() => self.input(*input),
                command = commands.recv(), if !self.shutting_down => self.command(command.unwrap_or(Command::Shutdown)),
                released = self.releases.next() => self.release(released),
                () = self.notices.pass_on() => {}
                _ = ticks.tick() => self.handle(Event::Tick),
            }
        }
        let _ = tokio::time::timeout(LAST_NOTICES, self.notices.finish()).await;
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Opened { conn, peer, since, outgoing } => {
                self.connections.insert(conn, outgoing);
                let (challenge, session) = (Nonce::generate(), SessionId::generate());
                self.handle(Event::Opened { conn, peer, since, challenge, session });
            }
            Input::Received { conn, inbound } => self.handle(Event::Received { conn, inbound }),
            Input::Closed { conn } => {
                self.connections.remove(&conn);
                self.handle(Event::Closed { conn });
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Event(event) => {
                if let Event::CloseStream { key } = *event {
                    self.clients.remove(&key);
                }
                self.handle(*event);
            }
            Command::Open { agent, purpose, hub, answer } => {
                self.last_key += 1;
                let key = StreamKey(self.last_key);
                let (client, events) = mpsc::unbounded_channel();
                self.clients.insert(key, client);
                self.opening.insert(key, Opening { stream: Stream::new(key, events, hub), answer });
                self.handle(match purpose {
                    Purpose::Target { target, stdin } => Event::OpenStream { key, agent, target, stdin },
                    Purpose::Upgrade(offer) => Event::OfferUpgrade { key, agent, offer },
                });
            }
            Command::Post { message, answer } => {
                self.posting.entry((message.id, message.to.clone())).or_default().push(answer);
                self.handle(Event::Post(*message));
            }
            Command::Verify { question, agent, epoch, answer } => {
                self.verifying.insert(question.request, answer);
                self.handle(Event::Verify { question, agent, epoch });
            }
            Command::Distrust { agent, epoch, why, answer } => {
                let request = RequestId::generate();
                self.distrusting.insert(request, answer);
                self.handle(Event::Distrust { request, agent, epoch, why });
            }
            Command::Sessions(answer) => {
                // Who asked may have left.
                let _ = answer.send(self.hub.sessions());
            }
            Command::Shutdown => {
                self.shutting_down = true;
                self.handle(Event::Shutdown);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let answer = self.hub.handle(event, Timestamp::now());
        let at_once = self.releases.push(answer);
        self.carry_out(at_once);
    }

    fn release(&mut self, released: Released) {
        let Released { records, result, effects } = released;
        self.carry_out(effects);
        self.handle(match result {
            Ok(()) => Event::Stored(records),
            Err(error) => {
                tracing::error!(error, "Could not store what sessions depend on");
                Event::StoreFailed(records)
            }
        });
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { conn, to, body } => self.send(conn, to, body),
                Effect::Deliver { conn, message } => self.deliver(conn, message),
                Effect::SendData { conn, frame } => self.queue(conn, Message::Binary(frame.encode())),
                Effect::Close { conn } => {
                    self.connections.remove(&conn);
                }
                Effect::Notify(notice) => {
                    self.tally.told(&notice);
                    self.notices.push(notice);
                }
                Effect::Opening { key, answer } => self.opened(key, answer),
                Effect::Posted { message, to, answer } => {
                    for asking in self.posting.remove(&(message, to)).unwrap_or_default() {
                        // Who asked may have left.
                        let _ = asking.send(answer.clone());
                    }
                }
                // Who asked may have left, here and below.
                Effect::Shown { request, answer } => {
                    let _ = self.verifying.remove(&request).map(|asking| asking.send(answer));
                }
                Effect::Distrusted { request, revoked } => {
                    let _ = self.distrusting.remove(&request).map(|asking| asking.send(revoked));
                }
                Effect::Client { key, event } => {
                    let last = event.is_last();
                    if let Some(client) = self.clients.get(&key) {
                        // A client that has left is told of by the drop of its stream.
                        let _ = client.send(event);
                    }
                    if last {
                        self.clients.remove(&key);
                    }
                }
                Effect::Store(_) => unreachable!("records go to the storage before effects come here"),
            }
        }
    }

    fn send(&mut self, conn: ConnId, to: Address, body: FromHub) {
        if matches!(body, FromHub::Welcome(_))
            && let Some(outgoing) = self.connections.get_mut(&conn)
        {
            outgoing.proven();
        }
        self.queue(conn, text(&Envelope::new(Address::Host, to, Timestamp::now(), body)));
    }

    /// Its envelope is its sender's: that is how it is known wherever it comes.
    fn deliver(&mut self, conn: ConnId, message: message::Message) {
        let message::Message { id, from, to, subject, body, in_reply_to, created_at, .. } = message;
        let body = FromHub::Message(Post { subject, body, in_reply_to, ttl_ms: None });
        self.queue(conn, text(&Envelope { id, from, to, timestamp: created_at.as_millisecond(), body }));
    }

    fn queue(&mut self, conn: ConnId, message: Message) {
        let full = self.connections.get(&conn).is_some_and(|outgoing| outgoing.send(message).is_err());
        if full {
            // Forgotten here first: its last words have no room either.
            self.connections.remove(&conn);
            self.handle(Event::Overflowed { conn });
        }
    }

    fn opened(&mut self, key: StreamKey, answer: Result<(), OpenError>) {
        let Some(opening) = self.opening.remove(&key) else { return };
        if answer.is_err() {
            self.clients.remove(&key);
        }
        // If nobody waits any more, the stream is dropped, and that closes it.
        let _ = opening.answer.send(answer.map(|()| opening.stream));
    }
}

fn text(envelope: &Envelope<FromHub>) -> Message {
    Message::text(serde_json::to_string(envelope).expect("messages have no keys that are not texts"))
}

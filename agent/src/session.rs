//! A live session: what the hub says becomes events, and the hub's silence one as well.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::SplitStream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::task::AbortOnDropHandle;
use vm_agent_schemas::ids::SessionId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Envelope, Frame, FrameError, FromHub, Refused, Welcome};

use crate::connection::Socket;
use crate::messages::Letter;
use crate::outgoing::{Outgoing, write_out};
use crate::streams::Streams;
use crate::window::FlowError;

/// The shortest heartbeat that is obeyed: a hub's mistake must not keep the machine busy.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);

/// A live session. Dropping it closes the connection and ends the processes of its streams.
pub(crate) struct Session {
    /// What the hub calls it.
    pub(crate) id: SessionId,
    hub: SplitStream<Socket>,
    writer: AbortOnDropHandle<()>,
    /// What goes to the hub.
    pub(crate) outgoing: Outgoing,
    /// The streams that the hub has opened.
    pub(crate) streams: Streams,
    heartbeat: Interval,
    heard: bool,
    since: Instant,
}

/// What happens in a session.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// The hub has said something.
    Said(FromHub),
    /// A message for programs has come.
    Letter(Letter),
    /// Data of a stream has come.
    Data(Frame),
    /// It is time to report health.
    Heartbeat,
    /// The session is over.
    Over(SessionEnd),
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionEnd {
    #[error("the hub closed the connection")]
    Closed,
    #[error("the connection failed")]
    WebSocket(#[source] tungstenite::Error),
    #[error("the hub gave no sign of life for a whole heartbeat")]
    Silent,
    #[error("the hub does not read what it is sent")]
    NotRead,
    #[error("the hub sent a binary frame that is none")]
    Frame(#[from] FrameError),
    #[error("the hub broke the rules of flow control")]
    Flow(#[from] FlowError),
    #[error("the hub ended the session ({}): {}", .0.code, .0.message)]
    Refused(Refused),
}

impl Session {
    /// A session on a socket whose handshake is done.
    pub(crate) fn new(socket: Socket, agent: AgentName, welcome: &Welcome) -> Self {
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms);
        let (sink, hub) = socket.split();
        let (outgoing, queued) = Outgoing::new(agent);
        let writer = AbortOnDropHandle::new(tokio::spawn(write_out(sink, queued)));
        let mut heartbeat = interval(heartbeat.max(HEARTBEAT_MIN));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let id = welcome.session;
        Self { id, hub, writer, outgoing, streams: Streams::default(), heartbeat, heard: true, since: Instant::now() }
    }

    /// How long the session has lasted.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The next event. May be dropped and called again without loss.
    pub(crate) async fn next(&mut self) -> SessionEvent {
        loop {
            tokio::select! {
                message = self.hub.next() => {
                    self.heard = true;
                    if let Some(event) = read(message) {
                        return event;
                    }
                }
                _ = self.heartbeat.tick() => return self.beat(),
                () = self.outgoing.over() => return SessionEvent::Over(SessionEnd::NotRead),
            }
        }
    }

    /// Asks for a sign of life until the next heartbeat, if there was one since the last.
    fn beat(&mut self) -> SessionEvent {
        if !std::mem::take(&mut self.heard) {
            return SessionEvent::Over(SessionEnd::Silent);
        }
        self.outgoing.ping();
        SessionEvent::Heartbeat
    }

    /// Ends the processes of the streams, and closes the connection in the proper way, behind what was
    /// said; gives up after `limit`.
    pub(crate) async fn close(mut self, limit: Duration) {
        self.streams = Streams::default();
        self.outgoing.close();
        let closed = async {
            let _ = (&mut self.writer).await;
            while let Some(Ok(_)) = self.hub.next().await {}
        };
        let _ = tokio::time::timeout(limit, closed).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.outgoing.end();
    }
}

/// What a message of the WebSocket means; nothing when it needs no answer.
fn read(message: Option<Result<Message, tungstenite::Error>>) -> Option<SessionEvent> {
    let over = |end| Some(SessionEvent::Over(end));
    match message {
        Some(Ok(Message::Text(text))) => match serde_json::from_str::<Envelope<FromHub>>(&text) {
            Ok(Envelope { id, from, timestamp, body: FromHub::Message(post), .. }) => {
                Some(SessionEvent::Letter(Letter { id, from, timestamp, post }))
            }
            Ok(envelope) => Some(SessionEvent::Said(envelope.body)),
            Err(error) => {
                // Of the message only the place is told: it may hold secrets.
                tracing::warn!("the hub said something unknown (column {}); ignored", error.column());
                None
            }
        },
        Some(Ok(Message::Binary(bytes))) => match Frame::decode(&bytes) {
            Ok(frame) => Some(SessionEvent::Data(frame)),
            Err(error) => over(error.into()),
        },
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
        Some(Ok(Message::Close(_))) | None => over(SessionEnd::Closed),
        Some(Err(error)) => over(SessionEnd::WebSocket(error)),
    }
}

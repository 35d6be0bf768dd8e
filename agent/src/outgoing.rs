//! What goes to the hub in one session: one queue, so that order is kept, and two budgets, so that
//! neither kind of sender can fill memory or hold up the other.
//!
//! Streams *wait* for a place in the queue, which is how a slow hub slows a process down. The runtime's
//! own loop never waits: what it says has places of its own, and a hub that lets them run out does not
//! read, and loses the session.

use std::sync::Arc;

use futures::{Sink, SinkExt};
use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Address, Envelope, Frame, FromRuntime};

/// Places for frames and messages of streams: half a MiB of data at most.
const STREAM_PLACES: usize = 16;
/// Places for what the runtime itself says.
const OWN_PLACES: usize = 1024;

/// The sending end of a session. Clones share queue and budgets.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    agent: AgentName,
    queue: UnboundedSender<Queued>,
    streams: Arc<Semaphore>,
    own: Arc<Semaphore>,
    over: CancellationToken,
}

/// A message on its way, and the place that it takes up until it is written.
#[derive(Debug)]
pub(crate) struct Queued {
    message: Message,
    _place: OwnedSemaphorePermit,
}

/// A place in the queue that waits for its data.
#[derive(Debug)]
pub(crate) struct Place(OwnedSemaphorePermit);

#[cfg(test)]
impl Queued {
    /// What it says, if that is text.
    pub(crate) fn text(&self) -> Option<&str> {
        self.message.to_text().ok().filter(|_| self.message.is_text())
    }
}

/// The session is over: nothing can be sent in it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl Outgoing {
    /// A sending end, and the queue that [`write_out`] empties.
    pub(crate) fn new(agent: AgentName) -> (Self, UnboundedReceiver<Queued>) {
        let (queue, queued) = unbounded_channel();
        let outgoing = Self {
            agent,
            queue,
            streams: Arc::new(Semaphore::new(STREAM_PLACES)),
            own: Arc::new(Semaphore::new(OWN_PLACES)),
            over: CancellationToken::new(),
        };
        (outgoing, queued)
    }

    /// Says something without waiting. When the hub has left no place for it, the session is over.
    pub(crate) fn say(&self, body: FromRuntime) {
        self.push(self.text(body));
    }

    /// Asks the hub for a sign of life.
    pub(crate) fn ping(&self) {
        self.push(Message::Ping(Bytes::new()));
    }

    /// Closes the WebSocket behind everything said before.
    pub(crate) fn close(&self) {
        self.push(Message::Close(None));
    }

    /// Says something for a stream, behind its data; waits for a place.
    pub(crate) async fn tell(&self, body: FromRuntime) -> Result<(), Gone> {
        self.enqueue(self.text(body)).await
    }

    /// Sends data of a stream; waits for a place.
    pub(crate) async fn send(&self, frame: &Frame) -> Result<(), Gone> {
        self.enqueue(Message::Binary(frame.encode())).await
    }

    /// Waits for a place for data of a stream.
    pub(crate) async fn place(&self) -> Result<Place, Gone> {
        Arc::clone(&self.streams).acquire_owned().await.map(Place).map_err(|_| Gone)
    }

    /// Sends data for which there is a place. When the session is over it goes nowhere.
    pub(crate) fn put(&self, place: Place, frame: &Frame) {
        let _ = self.queue.send(Queued { message: Message::Binary(frame.encode()), _place: place.0 });
    }

    /// Ends the session: whoever waits for a place is told so.
    pub(crate) fn end(&self) {
        self.streams.close();
        self.own.close();
        self.over.cancel();
    }

    /// Returns when the session can't go on.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Passes a message between programs on: it has an id and a receiver of its own.
    pub(crate) fn post(&self, id: MessageId, to: Address, body: FromRuntime) {
        let from = Address::Agent(self.agent.clone());
        self.push(Message::Text(written(&Envelope { id, ..Envelope::new(from, to, Timestamp::now(), body) })));
    }

    fn text(&self, body: FromRuntime) -> Message {
        Message::Text(text(self.agent.clone(), body))
    }

    fn push(&self, message: Message) {
        let place = Arc::clone(&self.own).try_acquire_owned();
        let sent = place.is_ok_and(|place| self.queue.send(Queued { message, _place: place }).is_ok());
        if !sent {
            self.end();
        }
    }

    async fn enqueue(&self, message: Message) -> Result<(), Gone> {
        let place = Arc::clone(&self.streams).acquire_owned().await.map_err(|_| Gone)?;
        self.queue.send(Queued { message, _place: place }).map_err(|_| Gone)
    }
}

/// What a runtime says, as it stands on the wire.
pub(crate) fn text(agent: AgentName, body: FromRuntime) -> Utf8Bytes {
    written(&Envelope::new(Address::Agent(agent), Address::Host, Timestamp::now(), body))
}

fn written(envelope: &Envelope<FromRuntime>) -> Utf8Bytes {
    serde_json::to_string(envelope).expect("messages of the protocol are plain data with texts as keys").into()
}

/// Writes what is queued until the session is over or the connection fails.
pub(crate) async fn write_out(mut sink: impl Sink<Message> + Unpin, mut queued: UnboundedReceiver<Queued>) {
    while let Some(Queued { message, _place }) = queued.recv().await {
        let last = message.is_close();
        let written = match queued.is_empty() {
            true => sink.send(message).await,
            false => sink.feed(message).await,
        };
        if written.is_err() || last {
            break;
        }
    }
    let _ = sink.flush().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::wire::{Channel, StreamOpened};

    fn opened() -> FromRuntime {
        FromRuntime::StreamOpened(StreamOpened { stream: 1, offset: 0 })
    }

    fn frame() -> Frame {
        Frame { stream: 1, channel: Channel::Stdout, offset: 0, end: false, data: Bytes::from_static(b"x") }
    }

    #[tokio::test]
    async fn streams_do_not_take_the_places_of_the_runtime() {
        let (outgoing, mut queued) = Outgoing::new("web".parse().unwrap());
        for _ in 0..STREAM_PLACES {
            outgoing.send(&frame()).await.unwrap();
        }
        outgoing.say(opened());
        let mut last = None;
        while let Ok(item) = queued.try_recv() {
            last = Some(item.message);
        }
        assert!(last.unwrap().is_text(), "what the runtime says stands behind the data");
    }

    #[tokio::test]
    async fn a_hub_that_takes_nothing_loses_the_session() {
        let (outgoing, queued) = Outgoing::new("web".parse().unwrap());
        for _ in 0..=OWN_PLACES {
            outgoing.say(opened());
        }
        outgoing.over().await;
        assert_eq!(outgoing.send(&frame()).await, Err(Gone));
        assert_eq!(queued.len(), OWN_PLACES);
    }
}

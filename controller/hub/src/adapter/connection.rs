//! One connection: reading and writing run side by side, so that neither waits for the other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, error::ProtocolError};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::door::Transport;
use crate::state::{ConnId, Inbound};

/// Most that waits for a peer to read it, in bytes. Windows keep input far below; who fills this has
/// stopped reading.
const OUTGOING_MAX: usize = 4 * 1024 * 1024;

/// What a queued message costs beside its content, in bytes: many small ones fill the queue as well.
const MESSAGE_COST: usize = 64;

/// How long a peer has, once the hub has closed the connection, to read the last words and close its
/// end. Closing earlier could take the refusal from a peer that is still sending.
const LINGER: Duration = Duration::from_secs(3);

type Socket = WebSocketStream<Box<dyn Transport>>;

/// What a connection tells the owner.
pub(super) enum Input {
    Opened { conn: ConnId, peer: SocketAddr, since: Timestamp, outgoing: Outgoing },
    Received { conn: ConnId, inbound: Inbound },
    Closed { conn: ConnId },
}

/// The owner's end of a connection. Dropping it closes the connection once the queue is written, or
/// the peer has had its time.
pub(super) struct Outgoing {
    queue: mpsc::UnboundedSender<Message>,
    queued: Arc<AtomicUsize>,
    unproven: Option<OwnedSemaphorePermit>,
    _closing: DropGuard,
}

/// The peer does not read.
#[derive(Debug)]
pub(super) struct Full;

impl Outgoing {
    /// Queues a message.
    pub(super) fn send(&self, message: Message) -> Result<(), Full> {
        let cost = cost(&message);
        if self.queued.fetch_add(cost, Ordering::Relaxed) + cost > OUTGOING_MAX {
            self.queued.fetch_sub(cost, Ordering::Relaxed);
            return Err(Full);
        }
        // An error means that the peer is gone, of which the reader tells.
        let _ = self.queue.send(message);
        Ok(())
    }

    /// The peer has proven who it is: its place among the unproven is free.
    pub(super) fn proven(&mut self) {
        self.unproven = None;
    }
}

fn cost(message: &Message) -> usize {
    message.len() + MESSAGE_COST
}

/// Serves a connection until it is closed.
pub(super) async fn run(
    socket: Socket,
    conn: ConnId,
    peer: SocketAddr,
    since: Timestamp,
    permit: OwnedSemaphorePermit,
    inputs: mpsc::Sender<Input>,
) {
    let (sink, source) = socket.split();
    let (sender, queue) = mpsc::unbounded_channel();
    let queued = Arc::new(AtomicUsize::new(0));
    let closing = CancellationToken::new();
    let outgoing = Outgoing {
        queue: sender,
        queued: queued.clone(),
        unproven: Some(permit),
        _closing: closing.clone().drop_guard(),
    };
    if inputs.send(Input::Opened { conn, peer, since, outgoing }).await.is_err() {
        return;
    }
    let reading = async {
        read(source, conn, &inputs).await;
        // The owner answers by dropping its end, which ends the writing.
        let _ = inputs.send(Input::Closed { conn }).await;
        Ok(())
    };
    let served = async { tokio::try_join!(reading, write(sink, queue, &queued)) };
    let given_up = async {
        closing.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    let failed = tokio::select! {
        served = served => served.is_err(),
        () = given_up => false,
    };
    if failed {
        let _ = inputs.send(Input::Closed { conn }).await;
    }
}

async fn read(mut source: SplitStream<Socket>, conn: ConnId, inputs: &mpsc::Sender<Input>) {
    while let Some(message) = source.next().await {
        let (inbound, last) = match message {
            Ok(Message::Text(text)) => (Inbound::from_text(&text), false),
            Ok(Message::Binary(bytes)) => (Inbound::from_binary(&bytes), false),
            // Not messages of this protocol: the library answers pings and closes by itself.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => continue,
            Err(error) => match broken_rule(&error) {
                Some(what) => (Inbound::Invalid(what), true),
                None => return,
            },
        };
        if inputs.send(Input::Received { conn, inbound }).await.is_err() {
            return;
        }
        if last {
            // Nothing after this can be read, and the hub refuses the connection: time to be told so.
            return std::future::pending().await;
        }
    }
}

/// What a peer did wrong; nothing when the connection just ended.
fn broken_rule(error: &tungstenite::Error) -> Option<String> {
    use tungstenite::Error;
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::ReceivedAfterClosing) => None,
        Error::Capacity(_) | Error::Protocol(_) | Error::Utf8(_) => Some(error.to_string()),
        _ => None,
    }
}

async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut queue: mpsc::UnboundedReceiver<Message>,
    queued: &AtomicUsize,
) -> Result<(), tungstenite::Error> {
    while let Some(message) = queue.recv().await {
        let mut next = Some(message);
        while let Some(message) = next {
            let cost = cost(&message);
            sink.feed(message).await?;
            queued.fetch_sub(cost, Ordering::Relaxed);
            next = queue.try_recv().ok();
        }
        sink.flush().await?;
    }
    sink.close().await
}

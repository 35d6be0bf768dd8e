//! One connection: one small loop that reads and writes, so that neither waits for the other and a
//! connection where nothing happens costs next to nothing.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use futures::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, error::ProtocolError};

use super::crowd::Place;
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

/// The same when many connections have been closed already and are not gone: those that are refused again and
/// again would hold all file descriptors.
const LINGER_CROWDED: Duration = Duration::from_millis(200);

/// How many closed connections have all of that time.
static LINGERING: Semaphore = Semaphore::const_new(256);

type Socket = WebSocketStream<Box<dyn Transport>>;

/// The way to the owner. In boxes: where a message is sent it stands in the sender's future, which a quiet
/// connection keeps all the time.
pub(super) type Inputs = mpsc::Sender<Box<Input>>;

/// What a connection tells the owner.
pub(super) enum Input {
    Opened { conn: ConnId, peer: SocketAddr, since: Timestamp, outgoing: Outgoing },
    Received { conn: ConnId, inbound: Inbound },
    Closed { conn: ConnId },
}

/// The owner's end of a connection. Dropping it closes the connection once the queue is written, or
/// the peer has had its time.
pub(super) struct Outgoing {
    queue: Arc<Queue>,
    unproven: Option<Place>,
}

/// The peer does not read.
#[derive(Debug)]
pub(super) struct Full;

impl Outgoing {
    /// Queues a message.
    pub(super) fn send(&self, message: Message) -> Result<(), Full> {
        self.queue.push(message)
    }

    /// The peer has proven who it is: its place among the unproven is free.
    pub(super) fn proven(&mut self) {
        self.unproven = None;
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// What waits to be written. Unlike a channel it holds no memory while it is empty.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    writer: AtomicWaker,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Message>,
    cost: usize,
    closed: bool,
}

impl Queue {
    fn push(&self, message: Message) -> Result<(), Full> {
        let mut waiting = self.waiting();
        let cost = waiting.cost + cost(&message);
        if cost > OUTGOING_MAX {
            return Err(Full);
        }
        waiting.cost = cost;
        waiting.messages.push_back(message);
        drop(waiting);
        self.writer.wake();
        Ok(())
    }

    fn close(&self) {
        self.waiting().closed = true;
        self.writer.wake();
    }

    fn poll_closed(&self, cx: &Context<'_>) -> Poll<()> {
        self.writer.register(cx.waker());
        if self.waiting().closed { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The next message; nothing once the queue is closed and empty.
    fn poll_pop(&self, cx: &Context<'_>) -> Poll<Option<Message>> {
        self.writer.register(cx.waker());
        let mut waiting = self.waiting();
        match waiting.messages.pop_front() {
            Some(message) => {
                waiting.cost -= cost(&message);
                Poll::Ready(Some(message))
            }
            None if waiting.closed => Poll::Ready(None),
            None => {
                waiting.messages = VecDeque::new();
                Poll::Pending
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // What is done under the lock leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(message: &Message) -> usize {
    message.len() + MESSAGE_COST
}

/// Serves a connection until it is closed. No `async fn`: what it is given would stand in its future twice.
pub(super) fn run(
    socket: Socket,
    conn: ConnId,
    peer: SocketAddr,
    since: Timestamp,
    place: Place,
    inputs: Inputs,
) -> impl Future<Output = ()> + Send {
    let queue = Arc::new(Queue::default());
    let outgoing = Outgoing { queue: queue.clone(), unproven: Some(place) };
    let opened = Box::new(Input::Opened { conn, peer, since, outgoing });
    let mut link = Link { socket, queue, writing: Writing::Queue, unflushed: false, let_go: false, deaf: false };
    async move {
        if inputs.send(opened).await.is_err() {
            return;
        }
        link.serve(conn, &inputs).await;
        let turn = LINGERING.try_acquire();
        let linger = if turn.is_ok() { LINGER } else { LINGER_CROWDED };
        let _ = tokio::time::timeout(linger, Box::pin(link.finish())).await;
    }
}

/// What comes next on a connection.
enum Step {
    Heard(Result<Message, tungstenite::Error>),
    /// The peer says no more.
    Ended,
    /// The owner says no more.
    LetGo,
    /// All that the owner said is written, and that nothing follows.
    Written,
    /// Nothing can be written any more.
    Failed,
}

#[derive(PartialEq, Eq)]
enum Writing {
    Queue,
    Goodbye,
    Over,
}

struct Link {
    socket: Socket,
    queue: Arc<Queue>,
    writing: Writing,
    unflushed: bool,
    /// Whether the owner says no more. What it has said may still have to be written.
    let_go: bool,
    /// Whether nothing is read any more.
    deaf: bool,
}

impl Link {
    /// Passes on what the peer says, until the owner lets go.
    async fn serve(&mut self, conn: ConnId, inputs: &Inputs) {
        loop {
            let input = match self.step().await {
                Step::Heard(Ok(message)) => match inbound(message) {
                    Some(inbound) => Input::Received { conn, inbound },
                    None => continue,
                },
                Step::Heard(Err(error)) => {
                    // Nothing after this can be read. If the peer broke a rule the hub refuses it, and there is
                    // time to be told so.
                    self.deaf = true;
                    match broken_rule(&error) {
                        Some(what) => Input::Received { conn, inbound: Inbound::Invalid(what) },
                        None => Input::Closed { conn },
                    }
                }
                Step::Ended => Input::Closed { conn },
                Step::Failed => {
                    self.writing = Writing::Over;
                    self.deaf = true;
                    Input::Closed { conn }
                }
                Step::LetGo | Step::Written => return,
            };
            if inputs.send(Box::new(input)).await.is_err() || self.writing == Writing::Over {
                return;
            }
        }
    }

    async fn step(&mut self) -> Step {
        std::future::poll_fn(|cx| {
            // Whether or not anything can be written: a peer that only speaks could go on for ever.
            if !self.let_go && self.queue.poll_closed(cx).is_ready() {
                self.let_go = true;
                return Poll::Ready(Step::LetGo);
            }
            if let Poll::Ready(step) = self.poll_write(cx) {
                return Poll::Ready(step);
            }
            if self.deaf {
                return Poll::Pending;
            }
            let heard = ready!(self.socket.poll_next_unpin(cx));
            self.deaf = heard.is_none();
            Poll::Ready(heard.map_or(Step::Ended, Step::Heard))
        })
        .await
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        while self.writing == Writing::Queue {
            if ready!(self.socket.poll_ready_unpin(cx)).is_err() {
                return Poll::Ready(Step::Failed);
            }
            match self.queue.poll_pop(cx) {
                Poll::Ready(Some(message)) => {
                    if self.socket.start_send_unpin(message).is_err() {
                        return Poll::Ready(Step::Failed);
                    }
                    self.unflushed = true;
                }
                Poll::Ready(None) => self.writing = Writing::Goodbye,
                Poll::Pending if self.unflushed => {
                    if ready!(self.socket.poll_flush_unpin(cx)).is_err() {
                        return Poll::Ready(Step::Failed);
                    }
                    self.unflushed = false;
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.writing == Writing::Over {
            return Poll::Pending;
        }
        let written = ready!(self.socket.poll_close_unpin(cx));
        self.writing = Writing::Over;
        Poll::Ready(if written.is_ok() { Step::Written } else { Step::Failed })
    }

    /// Writes what is left, and waits for the peer to close its end. What it still says is for nobody.
    async fn finish(&mut self) {
        while !(self.deaf && self.writing == Writing::Over) {
            match self.step().await {
                Step::Failed => return,
                Step::Heard(Err(_)) => self.deaf = true,
                Step::Heard(Ok(_)) | Step::Ended | Step::LetGo | Step::Written => {}
            }
        }
    }
}

/// What a message means; nothing for those that are not of this protocol: the library answers pings and
/// closes by itself.
fn inbound(message: Message) -> Option<Inbound> {
    match message {
        Message::Text(text) => Some(Inbound::from_text(&text)),
        Message::Binary(bytes) => Some(Inbound::from_binary(&bytes)),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => None,
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

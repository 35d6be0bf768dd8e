//! A stream with something in an agent (a process, a terminal, an archive, a connection): its input,
//! output and signals over one WebSocket.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hyper::header::{AUTHORIZATION, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{self, Message};
use vm_agent_schemas::api::{ExecEvent, ExecRequest};
use vm_agent_schemas::wire::{Channel, DATA_MAX, Frame, Signal, StreamTarget, TaskOutcome, TerminalSize, WINDOW};

use super::{Connection, problem};
use crate::exit::{CommandError, Exit};

/// Output is acknowledged in pieces of this size: seldom enough to cost nothing, often enough that
/// the sender never runs out of window.
const ACKNOWLEDGE_EVERY: u64 = WINDOW / 4;
/// How long a controller may say nothing at all. It pings every 30 s; after three of them that did not come the
/// connection is lost, though nobody has said so.
const SILENCE_LIMIT: Duration = Duration::from_secs(100);

/// What this side wants beside sending input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Send the process a signal.
    Signal(Signal),
    /// The terminal has another size.
    Resize(TerminalSize),
    /// Let go of what is at the other end.
    LetGo,
}

/// This side of a stream. It can be used for several streams, one after the other.
pub(crate) struct Console<I, O, E> {
    /// What the other end reads; nothing for an empty input.
    stdin: Option<I>,
    /// Where its output goes.
    stdout: Output<O>,
    /// Where its other output goes.
    stderr: Output<E>,
    /// What else this side wants.
    pub(crate) controls: mpsc::Receiver<Control>,
}

impl<I, O, E> Console<I, O, E> {
    pub(crate) fn new(stdin: Option<I>, stdout: O, stderr: E, controls: mpsc::Receiver<Control>) -> Self {
        Self { stdin, stdout: Output::new(stdout), stderr: Output::new(stderr), controls }
    }

    /// The same without anybody who could want anything.
    pub(crate) fn unattended(stdin: Option<I>, stdout: O, stderr: E) -> Self {
        Self::new(stdin, stdout, stderr, mpsc::channel(1).1)
    }

    /// How much of the output has been written, in bytes from its beginning.
    pub(crate) const fn written(&self) -> u64 {
        self.stdout.written
    }
}

/// A connection on which no stream is open yet.
pub(crate) struct Exec {
    socket: WebSocketStream<Box<dyn Connection>>,
}

impl Exec {
    pub(super) async fn open(
        connection: Box<dyn Connection>,
        url: &str,
        authorization: Option<HeaderValue>,
    ) -> Result<Self, CommandError> {
        let mut request = url.into_client_request().map_err(|error| broken(&error))?;
        if let Some(value) = authorization {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        match tokio_tungstenite::client_async(request, connection).await {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                Err(problem(response.status().as_u16(), body).into())
            }
            Err(error) => Err(broken(&error)),
        }
    }

    /// Opens a stream and carries everything both ways until it ends; nothing when this side let go of it
    /// before. `opened` is told where the output begins.
    pub(crate) async fn run<I, O, E>(
        self,
        target: StreamTarget,
        console: &mut Console<I, O, E>,
        mut opened: impl FnMut(u64),
    ) -> Result<Option<TaskOutcome>, CommandError>
    where
        I: AsyncRead + Unpin,
        O: AsyncWrite + Unpin,
        E: AsyncWrite + Unpin,
    {
        let Console { stdin, stdout, stderr, controls } = console;
        let (sink, mut incoming) = self.socket.split();
        let (outgoing, queue) = mpsc::unbounded_channel();
        let session = &mut Session { outgoing, stdout, stderr };
        let mut input = Input { source: stdin, sent: 0, taken: 0 };
        session.request(&ExecRequest::Open { target, stdin: input.source.is_some() });
        // Sending is a future of its own, so that a peer that is slow to read can't keep us from
        // reading, nor the other way round. When it fails the peer has gone, and may have said before
        // how the process ended: reading finds that out.
        let mut sending = std::pin::pin!(send_all(sink, queue));
        let mut sends = true;
        let mut silence = std::pin::pin!(sleep(SILENCE_LIMIT));
        loop {
            tokio::select! {
                // First what is seldom or bounded, so that a flood of output keeps nobody from stopping it; and what
                // has come before its absence is complained of, because writing it may have taken long.
                biased;
                Some(control) = controls.recv() => match control {
                    Control::Signal(signal) => session.request(&ExecRequest::Signal { signal }),
                    Control::Resize(size) => session.request(&ExecRequest::Resize { size }),
                    Control::LetGo => return Ok(None),
                },
                () = &mut sending, if sends => sends = false,
                frame = input.next(), if input.may_send() => session.send(Message::Binary(frame?.encode())),
                message = next_message(&mut incoming) => {
                    match session.take(message?).await? {
                        Progress::Running => {}
                        Progress::Opened(offset) => {
                            session.stdout.begin_at(offset);
                            opened(offset);
                        }
                        Progress::InputTaken(offset) => input.taken = input.taken.max(offset),
                        Progress::Ended(outcome) => return Ok(Some(outcome)),
                    }
                    silence.as_mut().reset(Instant::now() + SILENCE_LIMIT);
                }
                () = &mut silence => {
                    let sentence = format!("nothing was heard for {} s", SILENCE_LIMIT.as_secs());
                    return Err(broken(&sentence));
                }
            }
        }
    }
}

/// What a message changes.
enum Progress {
    Running,
    Opened(u64),
    InputTaken(u64),
    Ended(TaskOutcome),
}

struct Session<'a, O, E> {
    /// What is to be sent. Input in it is bounded by its window, and all else is small.
    outgoing: mpsc::UnboundedSender<Message>,
    stdout: &'a mut Output<O>,
    stderr: &'a mut Output<E>,
}

impl<O: AsyncWrite + Unpin, E: AsyncWrite + Unpin> Session<'_, O, E> {
    fn send(&self, message: Message) {
        // Refused only once sending has failed, and then there is nobody to send to.
        let _ = self.outgoing.send(message);
    }

    fn request(&self, request: &ExecRequest) {
        let text = serde_json::to_string(request).expect("our own requests can be written as JSON");
        self.send(Message::text(text));
    }

    async fn take(&mut self, message: Message) -> Result<Progress, CommandError> {
        match message {
            Message::Text(text) => match serde_json::from_str(&text).map_err(|error| broken(&error))? {
                ExecEvent::Opened { offset } => Ok(Progress::Opened(offset)),
                ExecEvent::Taken { offset } => Ok(Progress::InputTaken(offset)),
                ExecEvent::Ended { outcome } => Ok(Progress::Ended(outcome)),
                ExecEvent::Failed { problem } => Err(problem.into()),
            },
            Message::Binary(bytes) => {
                self.write(&Frame::decode(&bytes).map_err(|error| broken(&error))?).await?;
                Ok(Progress::Running)
            }
            Message::Close(_) => Err(broken(&"it was closed before the end; what became of it is not known")),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(Progress::Running),
        }
    }

    async fn write(&mut self, frame: &Frame) -> Result<(), CommandError> {
        let taken = match frame.channel {
            Channel::Stdout => self.stdout.write(frame).await?,
            Channel::Stderr => self.stderr.write(frame).await?,
            Channel::Stdin => return Err(broken(&"it sent input instead of output")),
        };
        if let Some(offset) = taken {
            self.request(&ExecRequest::Taken { channel: frame.channel, offset });
        }
        Ok(())
    }
}

/// Where one channel of output goes.
struct Output<W> {
    sink: W,
    written: u64,
    acknowledged: u64,
}

impl<W> Output<W> {
    const fn new(sink: W) -> Self {
        Self { sink, written: 0, acknowledged: 0 }
    }

    const fn begin_at(&mut self, offset: u64) {
        self.written = offset;
        self.acknowledged = offset;
    }
}

impl<W: AsyncWrite + Unpin> Output<W> {
    /// Writes a frame's data; answers with the offset when it is time to acknowledge it.
    async fn write(&mut self, frame: &Frame) -> Result<Option<u64>, CommandError> {
        if frame.offset != self.written {
            let sentence = format!("output from {} to {} is missing", self.written, frame.offset);
            return Err(broken(&sentence));
        }
        self.sink.write_all(&frame.data).await?;
        self.sink.flush().await?;
        if frame.end {
            self.sink.shutdown().await?;
        }
        self.written += frame.data.len() as u64;
        let due = self.written - self.acknowledged >= ACKNOWLEDGE_EVERY;
        if due {
            self.acknowledged = self.written;
        }
        Ok(due.then_some(self.written))
    }
}

/// Where the input comes from. Its end takes the source away.
struct Input<'a, I> {
    source: &'a mut Option<I>,
    sent: u64,
    taken: u64,
}

impl<I: AsyncRead + Unpin> Input<'_, I> {
    fn window(&self) -> u64 {
        (self.taken + WINDOW).saturating_sub(self.sent)
    }

    fn may_send(&self) -> bool {
        self.source.is_some() && self.window() > 0
    }

    /// The next piece of input, or its end. A dropped call loses nothing.
    async fn next(&mut self) -> Result<Frame, CommandError> {
        let room = usize::try_from(self.window()).unwrap_or(DATA_MAX).min(DATA_MAX);
        let source = self.source.as_mut().expect("input is asked for only while there is a source");
        let mut buffer = BytesMut::with_capacity(room);
        let count =
            (&mut *source).take(room as u64).read_buf(&mut buffer).await.map_err(|error| input_failed(&error))?;
        let data: Bytes = buffer.freeze();
        let frame = Frame { stream: 0, channel: Channel::Stdin, offset: self.sent, end: count == 0, data };
        self.sent += count as u64;
        if count == 0 {
            *self.source = None;
        }
        Ok(frame)
    }
}

async fn next_message(
    incoming: &mut SplitStream<WebSocketStream<Box<dyn Connection>>>,
) -> Result<Message, CommandError> {
    let message = incoming.next().await;
    let message = message.ok_or_else(|| broken(&"it ended too early; what became of it is not known"))?;
    message.map_err(|error| match error {
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        | tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed
        | tungstenite::Error::Io(_) => broken(&"the controller went away; what became of it is not known"),
        error => broken(&error),
    })
}

async fn send_all(
    mut sink: SplitSink<WebSocketStream<Box<dyn Connection>>, Message>,
    mut queue: mpsc::UnboundedReceiver<Message>,
) {
    while let Some(message) = queue.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

fn broken(reason: &dyn std::fmt::Display) -> CommandError {
    CommandError::new(Exit::UNREACHABLE, format!("the connection broke off: {reason}"))
}

fn input_failed(error: &io::Error) -> CommandError {
    CommandError::io("the input could not be read", error)
}

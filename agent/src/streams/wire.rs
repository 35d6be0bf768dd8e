//! The two ends that a stream has within the runtime: what the session holds of it, and the wire of what
//! serves it. Between them lie the windows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use vm_agent_schemas::wire::{
    Channel, DATA_MAX, Frame, FromRuntime, Signal, StreamEnded, StreamOpened, StreamTaken, TaskOutcome, TerminalSize,
};

use crate::outgoing::{Gone, Outgoing, Place};
use crate::process::Drain;
use crate::window::{FlowError, Intake, room};

/// What the hub tells the end that serves a stream. That nobody tells anything any more means that the
/// session is lost.
#[derive(Debug)]
pub(crate) enum Order {
    /// Send a signal.
    Signal(Signal),
    /// The terminal has another size.
    Resize(TerminalSize),
    /// Nobody listens any more.
    Close,
}

/// The session's hold on one stream.
#[derive(Debug)]
pub(super) struct Hold {
    orders: mpsc::UnboundedSender<Order>,
    stdin: Option<Input>,
    stdout_taken: watch::Sender<u64>,
    stderr_taken: watch::Sender<u64>,
}

/// The way of input to what serves the stream. The window bounds what waits in it.
#[derive(Debug)]
struct Input {
    data: mpsc::UnboundedSender<Inflow>,
    intake: Intake,
    taken: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Inflow {
    Data(Bytes),
    End,
}

/// The end of a stream at which it is served.
#[derive(Debug)]
pub(crate) struct Wire {
    /// For telling how it goes.
    pub(crate) line: Line,
    /// What the hub wants.
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    /// The input, where one comes.
    pub(crate) stdin: Option<Inlet>,
    /// The output.
    pub(crate) stdout: Outlet,
    /// The output beside stdout.
    pub(crate) stderr: Outlet,
}

/// For telling how a stream goes.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    stream: u32,
    outgoing: Outgoing,
}

/// One channel of output, never further ahead than the window.
#[derive(Debug)]
pub(crate) struct Outlet {
    line: Line,
    channel: Channel,
    /// Where it began.
    begun: u64,
    sent: u64,
    taken: watch::Receiver<u64>,
}

/// Leave to send so much at once.
#[derive(Debug)]
pub(crate) struct Room {
    /// How many bytes: at least one, at most one frame.
    pub(crate) len: usize,
    place: Place,
}

/// The input of a stream.
#[derive(Debug)]
pub(crate) struct Inlet {
    line: Line,
    data: mpsc::UnboundedReceiver<Inflow>,
    taken: Arc<AtomicU64>,
}

/// How feeding came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    /// The input has ended.
    Whole,
    /// Whoever gave it is gone.
    Cut,
}

/// The two ends of a stream with this number.
pub(super) fn wire(stream: u32, stdin: bool, outgoing: &Outgoing) -> (Hold, Wire) {
    let line = Line { stream, outgoing: outgoing.clone() };
    let (orders, inbox) = mpsc::unbounded_channel();
    let (stdout_taken, stdout) = Outlet::new(&line, Channel::Stdout);
    let (stderr_taken, stderr) = Outlet::new(&line, Channel::Stderr);
    let (input, inlet) = stdin.then(|| Inlet::new(&line)).unzip();
    let wire = Wire { line, orders: inbox, stdin: inlet, stdout, stderr };
    (Hold { orders, stdin: input, stdout_taken, stderr_taken }, wire)
}

impl Hold {
    /// Whether nothing serves the stream any more.
    pub(super) fn is_over(&self) -> bool {
        self.orders.is_closed()
    }

    pub(super) fn order(&self, order: Order) {
        // Nobody takes it when the stream has ended meanwhile.
        let _ = self.orders.send(order);
    }

    pub(super) fn taken(&self, taken: StreamTaken) {
        match taken.channel {
            Channel::Stdout => drop(self.stdout_taken.send_replace(taken.offset)),
            Channel::Stderr => drop(self.stderr_taken.send_replace(taken.offset)),
            Channel::Stdin => {}
        }
    }

    /// Takes input in.
    pub(super) fn input(&mut self, frame: Frame) -> Result<(), FlowError> {
        let Some(input) = &mut self.stdin else { return Ok(()) };
        input.intake.accept(frame.offset, frame.data.len(), input.taken.load(Ordering::Relaxed))?;
        // Nobody takes it when the stream has ended meanwhile.
        if !frame.data.is_empty() {
            let _ = input.data.send(Inflow::Data(frame.data));
        }
        if frame.end {
            let _ = input.data.send(Inflow::End);
            self.stdin = None;
        }
        Ok(())
    }
}

impl Line {
    /// Says that the stream has begun, with output from `offset` on.
    pub(crate) fn opened(&self, offset: u64) {
        self.outgoing.say(FromRuntime::StreamOpened(StreamOpened { stream: self.stream, offset }));
    }

    /// Says how the stream has ended, without waiting.
    pub(crate) fn ended(&self, outcome: TaskOutcome) {
        self.outgoing.say(FromRuntime::StreamEnded(StreamEnded { stream: self.stream, outcome }));
    }

    /// Says how the stream has ended; waits for a place among other streams. Without a session there is
    /// nobody to tell.
    pub(crate) async fn end(&self, outcome: TaskOutcome) {
        let _ = self.outgoing.tell(FromRuntime::StreamEnded(StreamEnded { stream: self.stream, outcome })).await;
    }
}

impl Outlet {
    fn new(line: &Line, channel: Channel) -> (watch::Sender<u64>, Self) {
        let (sender, taken) = watch::channel(0);
        (sender, Self { line: line.clone(), channel, begun: 0, sent: 0, taken })
    }

    /// Has the output begin at `offset`: as if all before it had been sent and taken.
    pub(crate) const fn begin(&mut self, offset: u64) {
        self.begun = offset;
        self.sent = offset;
    }

    /// How far the output has been sent, in bytes from its beginning.
    pub(crate) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Waits until the window lets something be sent, and answers how much, up to one frame. May be dropped
    /// and called again.
    pub(crate) async fn window(&mut self) -> Result<usize, Gone> {
        let (sent, begun) = (self.sent, self.begun);
        let taken = self.taken.wait_for(|taken| room(sent, begun.max(*taken)) > 0).await.map_err(|_| Gone)?;
        Ok(usize::try_from(room(sent, begun.max(*taken))).unwrap_or(DATA_MAX).min(DATA_MAX))
    }

    /// Waits for leave to send what is there already. May be dropped and called again.
    pub(crate) async fn ready(&mut self) -> Result<Room, Gone> {
        let len = self.window().await?;
        Ok(Room { len, place: self.line.outgoing.place().await? })
    }

    /// Sends data for which there is leave.
    pub(crate) fn send(&mut self, room: Room, data: Bytes) {
        debug_assert!(data.len() <= room.len, "no more is sent than there is room for");
        let frame = self.frame(data, false);
        self.line.outgoing.put(room.place, &frame);
    }

    /// Sends all of `data`, as the window lets it.
    pub(crate) async fn send_all(&mut self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let room = self.ready().await?;
            let piece = data.split_to(room.len.min(data.len()));
            self.send(room, piece);
        }
        Ok(())
    }

    /// Ends the channel.
    pub(crate) async fn end(&mut self) -> Result<(), Gone> {
        let frame = self.frame(Bytes::new(), true);
        self.line.outgoing.send(&frame).await
    }

    /// Sends what a pipe holds to its end.
    pub(crate) async fn pump<R: AsyncRead + Unpin>(mut self, mut drain: Drain<R>) -> Result<(), Gone> {
        loop {
            let room = self.window().await?;
            let Some(data) = drain.read(room).await else { break };
            let frame = self.frame(data, false);
            self.line.outgoing.send(&frame).await?;
        }
        self.end().await
    }

    fn frame(&mut self, data: Bytes, end: bool) -> Frame {
        let offset = self.sent;
        self.sent += data.len() as u64;
        Frame { stream: self.line.stream, channel: self.channel, offset, end, data }
    }
}

impl Inlet {
    fn new(line: &Line) -> (Input, Self) {
        let (data, waiting) = mpsc::unbounded_channel();
        let taken = Arc::new(AtomicU64::new(0));
        let input = Input { data, intake: Intake::default(), taken: Arc::clone(&taken) };
        (input, Self { line: line.clone(), data: waiting, taken })
    }

    /// The next data; nothing at the end of the input.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Gone> {
        match self.data.recv().await {
            Some(Inflow::Data(data)) => Ok(Some(data)),
            Some(Inflow::End) => Ok(None),
            None => Err(Gone),
        }
    }

    /// Tells that so much more has been taken.
    pub(crate) async fn took(&self, len: usize) -> Result<(), Gone> {
        let offset = self.taken.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        let taken = StreamTaken { stream: self.line.stream, channel: Channel::Stdin, offset };
        self.line.outgoing.tell(FromRuntime::StreamTaken(taken)).await
    }

    /// Writes the input into `pipe` until it ends. A pipe that takes no more does not stop the hub: what is
    /// left counts as taken. Before each piece others of the same task may do what the hub ordered before it.
    pub(crate) async fn feed<W: AsyncWrite + Unpin>(&mut self, pipe: &mut W) -> Fed {
        let mut broken = false;
        loop {
            match self.next().await {
                Ok(Some(data)) => {
                    yield_now().await;
                    broken = broken || pipe.write_all(&data).await.is_err();
                    if self.took(data.len()).await.is_err() {
                        return Fed::Cut;
                    }
                }
                Ok(None) => return Fed::Whole,
                Err(Gone) => return Fed::Cut,
            }
        }
    }
}

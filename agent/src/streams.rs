//! The streams of a session: each is a process whose input and output travel as frames. A stream lives
//! no longer than its session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vm_agent_schemas::wire::{
    Channel, DATA_MAX, Frame, FromRuntime, Signal, StreamEnded, StreamOpen, StreamOpened, StreamTaken, StreamTarget,
    TaskOutcome,
};

use crate::outgoing::{Gone, Outgoing};
use crate::process::{Drain, Leader, Process, Surroundings};
use crate::window::{FlowError, Intake, room};

/// How long the processes of a stream may take to end once nobody listens any more.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// The open streams of a session. Dropping them ends their processes.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: HashMap<u32, Stream>,
}

/// The session's hold on one stream.
#[derive(Debug)]
struct Stream {
    orders: mpsc::UnboundedSender<Order>,
    stdin: Option<Input>,
    stdout_taken: watch::Sender<u64>,
    stderr_taken: watch::Sender<u64>,
}

/// The way of input to the process. The window bounds what waits in it.
#[derive(Debug)]
struct Input {
    data: mpsc::UnboundedSender<Bytes>,
    intake: Intake,
    taken: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Order {
    Signal(Signal),
    Close,
}

impl Streams {
    /// How many streams are open.
    pub(crate) fn count(&mut self) -> u32 {
        self.open.retain(|_, stream| !stream.orders.is_closed());
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// Starts the process of a stream.
    pub(crate) fn open(
        &mut self,
        order: &StreamOpen,
        surroundings: &Surroundings,
        outgoing: &Outgoing,
        tracker: &TaskTracker,
    ) {
        let number = order.stream;
        let refuse = |reason| {
            let outcome = TaskOutcome::NotStarted { reason };
            outgoing.say(FromRuntime::StreamEnded(StreamEnded { stream: number, outcome }));
        };
        let StreamTarget::Run { run } = &order.target else {
            return refuse("this runtime serves streams of processes with pipes only".to_owned());
        };
        let process = match surroundings.spawn(run, order.stdin) {
            Ok(process) => process,
            Err(error) => return refuse(error.to_string()),
        };
        outgoing.say(FromRuntime::StreamOpened(StreamOpened { stream: number, offset: 0 }));
        let (stream, served) = connect(number, process, outgoing);
        tracker.spawn(served);
        // Streams that have ended are forgotten when the next one opens.
        self.count();
        self.open.insert(number, stream);
    }

    /// Passes a signal on.
    pub(crate) fn signal(&self, number: u32, signal: Signal) {
        self.order(number, Order::Signal(signal));
    }

    /// Ends a stream's process.
    pub(crate) fn close(&self, number: u32) {
        self.order(number, Order::Close);
    }

    /// Notes how much of a stream's output has been taken.
    pub(crate) fn taken(&self, taken: StreamTaken) {
        let Some(stream) = self.open.get(&taken.stream) else { return };
        match taken.channel {
            Channel::Stdout => drop(stream.stdout_taken.send_replace(taken.offset)),
            Channel::Stderr => drop(stream.stderr_taken.send_replace(taken.offset)),
            Channel::Stdin => {}
        }
    }

    /// Takes input in. What comes for a stream that has ended was under way then, and means nothing.
    pub(crate) fn input(&mut self, frame: Frame) -> Result<(), FlowError> {
        let Some(stream) = self.open.get_mut(&frame.stream) else { return Ok(()) };
        let Some(input) = &mut stream.stdin else { return Ok(()) };
        input.intake.accept(frame.offset, frame.data.len(), input.taken.load(Ordering::Relaxed))?;
        if !frame.data.is_empty() {
            // Nobody takes it when the process has ended meanwhile.
            let _ = input.data.send(frame.data);
        }
        if frame.end {
            stream.stdin = None;
        }
        Ok(())
    }

    fn order(&self, number: u32, order: Order) {
        if let Some(stream) = self.open.get(&number) {
            // Nobody takes it when the process has ended meanwhile.
            let _ = stream.orders.send(order);
        }
    }
}

/// The two ends of a stream: what the session holds, and what serves the process.
fn connect(number: u32, process: Process, outgoing: &Outgoing) -> (Stream, impl Future<Output = ()> + Send + use<>) {
    let Process { leader, stdin, stdout, stderr } = process;
    let ended = CancellationToken::new();
    let (orders, inbox) = mpsc::unbounded_channel();
    let (stdout_taken, stdout_watch) = watch::channel(0);
    let (stderr_taken, stderr_watch) = watch::channel(0);
    let pump = |channel, taken| Pump { stream: number, channel, sent: 0, taken, outgoing: outgoing.clone() };
    let stdout = pump(Channel::Stdout, stdout_watch).run(Drain::new(stdout, ended.clone()));
    let stderr = pump(Channel::Stderr, stderr_watch).run(Drain::new(stderr, ended.clone()));
    let output = async move {
        // Without a session there is nobody to send to.
        let _ = tokio::join!(stdout, stderr);
    };
    let (input, fed) = match stdin {
        Some(pipe) => {
            let (data, waiting) = mpsc::unbounded_channel();
            let taken = Arc::new(AtomicU64::new(0));
            let input = Input { data, intake: Intake::default(), taken: Arc::clone(&taken) };
            (Some(input), Some(feed(number, pipe, waiting, taken, outgoing.clone())))
        }
        None => (None, None),
    };
    let outgoing = outgoing.clone();
    let served = async move {
        let input = async move {
            if let Some(fed) = fed {
                fed.await;
            }
        };
        let process = supervise(leader, inbox, &ended, output);
        let (_, outcome) = tokio::join!(ended.run_until_cancelled(input), process);
        // Without a session there is nobody to tell.
        let _ = outgoing.tell(FromRuntime::StreamEnded(StreamEnded { stream: number, outcome })).await;
    };
    (Stream { orders, stdin: input, stdout_taken, stderr_taken }, served)
}

/// Waits until the process has ended and its output is sent, and obeys orders meanwhile. Once nobody
/// listens any more (the stream is closed, or the session lost) the process is ended.
async fn supervise(
    mut leader: Leader,
    mut orders: mpsc::UnboundedReceiver<Order>,
    ended: &CancellationToken,
    output: impl Future<Output = ()>,
) -> TaskOutcome {
    let mut outcome = None;
    {
        let mut output = std::pin::pin!(output);
        let mut sent = false;
        loop {
            tokio::select! {
                () = &mut output, if !sent => sent = true,
                how = leader.wait(), if outcome.is_none() => {
                    outcome = Some(how);
                    ended.cancel();
                }
                order = orders.recv() => match order {
                    Some(Order::Signal(signal)) => leader.signal(signal),
                    Some(Order::Close) | None => break,
                },
            }
            if sent && let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
    let closed = leader.end(CLOSE_GRACE).await;
    ended.cancel();
    outcome.unwrap_or(closed)
}

/// Sends one channel of a process's output, never further ahead than the window.
struct Pump {
    stream: u32,
    channel: Channel,
    sent: u64,
    taken: watch::Receiver<u64>,
    outgoing: Outgoing,
}

impl Pump {
    async fn run<R: AsyncRead + Unpin>(mut self, mut drain: Drain<R>) -> Result<(), Gone> {
        loop {
            let room = self.room().await?;
            let Some(data) = drain.read(room).await else { break };
            let len = data.len() as u64;
            self.send(data, false).await?;
            self.sent += len;
        }
        self.send(Bytes::new(), true).await
    }

    /// Waits until something may be sent, and says how much, up to one frame.
    async fn room(&mut self) -> Result<usize, Gone> {
        let sent = self.sent;
        let taken = self.taken.wait_for(|taken| room(sent, *taken) > 0).await.map_err(|_| Gone)?;
        Ok(usize::try_from(room(sent, *taken)).unwrap_or(DATA_MAX).min(DATA_MAX))
    }

    async fn send(&self, data: Bytes, end: bool) -> Result<(), Gone> {
        let Self { stream, channel, sent: offset, .. } = *self;
        self.outgoing.send(&Frame { stream, channel, offset, end, data }).await
    }
}

/// Writes input to a process. A process that reads no more does not stop the hub: what is left counts
/// as taken.
async fn feed(
    stream: u32,
    pipe: ChildStdin,
    mut data: mpsc::UnboundedReceiver<Bytes>,
    taken: Arc<AtomicU64>,
    outgoing: Outgoing,
) {
    let mut pipe = Some(pipe);
    while let Some(data) = data.recv().await {
        if let Some(open) = &mut pipe
            && open.write_all(&data).await.is_err()
        {
            pipe = None;
        }
        let len = data.len() as u64;
        let offset = taken.fetch_add(len, Ordering::Relaxed) + len;
        let taken = StreamTaken { stream, channel: Channel::Stdin, offset };
        if outgoing.tell(FromRuntime::StreamTaken(taken)).await.is_err() {
            break;
        }
    }
}

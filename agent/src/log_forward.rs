//! The log: what the runtime says goes to stderr and to the hub, what services write to the hub.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};
use vm_agent_schemas::wire::LogLines;

use crate::sentence::plain;

/// Lines kept for a hub that is not there. Further ones are counted, not kept: the beginning of a
/// trouble tells more than its repetition.
const QUEUE: usize = 256;
/// Places that are left to the runtime's own lines, however much services write.
const RESERVED: usize = 64;
/// Most lines in one message.
const BATCH: usize = 64;
/// The pause between two messages: a service that writes without pause may fill neither the connection nor
/// the controller's disk.
const PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of a line. With [`BATCH`] it keeps a message well within what a text frame may hold.
pub(crate) const LINE_MAX: usize = 1024;

/// Sends the log to stderr, and to the hub what this crate says.
pub(crate) fn install() -> LogQueue {
    let queue = LogQueue::new(QUEUE);
    let forward = Forward { lines: queue.sender.clone() };
    let levels = Targets::new().with_default(Level::WARN).with_target(env!("CARGO_CRATE_NAME"), Level::INFO);
    let own = Targets::new().with_target(env!("CARGO_CRATE_NAME"), Level::INFO);
    let stderr = tracing_subscriber::fmt::layer()
        .compact()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(levels);
    // A subscriber that is there already stays: then its owner decides what is logged.
    let _ = registry().with(stderr).with(forward.with_filter(own)).try_init();
    queue
}

/// The lines that wait for the hub.
#[derive(Debug)]
pub(crate) struct LogQueue {
    lines: Receiver<String>,
    sender: LogSender,
    /// When the next message may go.
    due: Instant,
}

impl LogQueue {
    /// A queue with room for so many lines.
    pub(crate) fn new(size: usize) -> Self {
        let (sender, lines) = channel(size);
        Self { lines, sender: LogSender { lines: sender, dropped: Arc::default() }, due: Instant::now() }
    }

    /// A way into the queue.
    pub(crate) fn sender(&self) -> LogSender {
        self.sender.clone()
    }

    /// The next lines, as soon as there is one. May be dropped and called again without loss.
    pub(crate) async fn next(&mut self) -> LogLines {
        sleep_until(self.due).await;
        let mut lines = Vec::new();
        self.lines.recv_many(&mut lines, BATCH).await;
        self.due = Instant::now() + PAUSE;
        LogLines { lines, dropped: self.sender.dropped.swap(0, Ordering::Relaxed) }
    }
}

/// A way into the queue. Nobody waits for a place in it.
#[derive(Debug, Clone)]
pub(crate) struct LogSender {
    lines: Sender<String>,
    dropped: Arc<AtomicU64>,
}

impl LogSender {
    /// Adds a line of a service, if that leaves enough room for the runtime's own. It is made only then: a
    /// service may write far more than anybody takes.
    pub(crate) fn add(&self, line: impl FnOnce() -> String) {
        if self.lines.capacity() > RESERVED { self.push(&line()) } else { self.drop_one() }
    }

    fn push(&self, line: &str) {
        let mut line = plain(line);
        line.truncate(line.floor_char_boundary(LINE_MAX));
        if self.lines.try_send(line).is_err() {
            self.drop_one();
        }
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// A layer that puts each event into the queue as one line.
#[derive(Debug)]
struct Forward {
    lines: LogSender,
}

impl<S: Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line(format!("{:.3} {}", Timestamp::now(), event.metadata().level()));
        event.record(&mut line);
        self.lines.push(&line.0);
    }
}

/// Message and fields of an event, in one line.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_wait_in_order_and_what_does_not_fit_is_counted() {
        let mut queue = LogQueue::new(2);
        tracing::subscriber::with_default(registry().with(Forward { lines: queue.sender() }), || {
            tracing::info!(task.id = 7, "one");
            tracing::warn!("two");
            tracing::info!("three");
        });
        let LogLines { lines, dropped } = queue.next().await;
        assert!(lines[0].ends_with("Z INFO one task.id=7"), "{}", lines[0]);
        assert!(lines[1].ends_with("Z WARN two"), "{}", lines[1]);
        assert_eq!((lines.len(), dropped), (2, 1));
    }

    #[tokio::test]
    async fn services_leave_room_and_messages_have_their_pause() {
        let mut queue = LogQueue::new(QUEUE);
        let sender = queue.sender();
        for number in 0..QUEUE {
            sender.add(|| format!("service web | {number}\u{1b}"));
        }
        assert_eq!(sender.lines.capacity(), RESERVED);
        sender.push("its own");
        let began = Instant::now();
        let first = queue.next().await;
        assert_eq!((first.lines.len(), first.dropped), (BATCH, RESERVED as u64));
        assert_eq!(first.lines[0], "service web | 0\u{fffd}");
        queue.next().await;
        assert!(began.elapsed() >= PAUSE);
        sender.add(|| "é".repeat(LINE_MAX));
        queue.next().await;
        let LogLines { lines, .. } = queue.next().await;
        assert_eq!(lines.last().unwrap().len(), LINE_MAX);
    }
}

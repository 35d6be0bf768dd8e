//! The runtime's own log: to stderr, and to the hub.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};
use vm_agent_schemas::wire::LogLines;

/// Lines kept for a hub that is not there. Further ones are counted, not kept: the beginning of a
/// trouble tells more than its repetition.
const QUEUE: usize = 256;
/// Most lines in one message.
const BATCH: usize = 64;
/// Most bytes of a line. With [`BATCH`] it keeps a message well within what a text frame may hold.
const LINE_MAX: usize = 1024;

/// Sends the log to stderr, and to the hub what this crate says.
pub(crate) fn install() -> LogQueue {
    let (forward, queue) = forward(QUEUE);
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

fn forward(size: usize) -> (Forward, LogQueue) {
    let (sender, lines) = channel(size);
    let dropped = Arc::new(AtomicU64::new(0));
    (Forward { lines: sender, dropped: Arc::clone(&dropped) }, LogQueue { lines, dropped })
}

/// The lines that wait for the hub.
#[derive(Debug)]
pub(crate) struct LogQueue {
    lines: Receiver<String>,
    dropped: Arc<AtomicU64>,
}

impl LogQueue {
    /// The next lines, as soon as there is one. May be dropped and called again without loss.
    pub(crate) async fn next(&mut self) -> LogLines {
        let mut lines = Vec::new();
        if self.lines.recv_many(&mut lines, BATCH).await == 0 {
            // Nobody logs here any more, so there never will be a line.
            std::future::pending::<()>().await;
        }
        LogLines { lines, dropped: self.dropped.swap(0, Ordering::Relaxed) }
    }
}

/// A layer that puts each event into the queue as one line.
#[derive(Debug)]
struct Forward {
    lines: Sender<String>,
    dropped: Arc<AtomicU64>,
}

impl<S: Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line(format!("{:.3} {}", Timestamp::now(), event.metadata().level()));
        event.record(&mut line);
        let end = line.0.floor_char_boundary(LINE_MAX);
        line.0.truncate(end);
        if self.lines.try_send(line.0).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
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
        let (forward, mut queue) = forward(2);
        tracing::subscriber::with_default(registry().with(forward), || {
            tracing::info!(task.id = 7, "one");
            tracing::warn!("two");
            tracing::info!("three");
        });
        let LogLines { lines, dropped } = queue.next().await;
        assert!(lines[0].ends_with("Z INFO one task.id=7"), "{}", lines[0]);
        assert!(lines[1].ends_with("Z WARN two"), "{}", lines[1]);
        assert_eq!((lines.len(), dropped), (2, 1));
    }
}

//! The streams of a session. What serves them lives no longer than the session, but for terminals that are
//! kept.

mod connect;
mod run;
mod transfer;
mod wire;

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use vm_agent_schemas::wire::{Frame, Signal, StreamOpen, StreamTaken, StreamTarget, TaskOutcome, TerminalSize};

use crate::broken::unbroken;
use crate::outgoing::Outgoing;
use crate::process::Surroundings;
use crate::terminals::Terminals;
use crate::window::FlowError;
pub(crate) use run::CLOSE_GRACE;
pub(crate) use transfer::take;

use wire::Hold;
pub(crate) use wire::{Fed, Inlet, Line, Order, Outlet, Room, Wire};

/// The open streams of a session. Dropping them ends what serves them.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: HashMap<u32, Hold>,
}

/// What streams are made from.
pub(crate) struct Means<'a> {
    /// What processes find around them.
    pub(crate) surroundings: &'a Surroundings,
    /// The terminals that are kept.
    pub(crate) terminals: &'a mut Terminals,
    /// The session.
    pub(crate) outgoing: &'a Outgoing,
    /// Everything that looks after something.
    pub(crate) tracker: &'a TaskTracker,
}

impl Streams {
    /// How many streams are open.
    pub(crate) fn count(&mut self) -> u32 {
        self.open.retain(|_, hold| !hold.is_over());
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// Begins the other end of a stream.
    pub(crate) fn open(&mut self, order: StreamOpen, means: Means<'_>) {
        let Means { surroundings, terminals, outgoing, tracker } = means;
        let wire = self.wire(order.stream, order.stdin, outgoing);
        let work = &surroundings.work;
        match order.target {
            StreamTarget::Run { run } => match surroundings.spawn(&run, order.stdin) {
                Ok(process) => {
                    wire.line.opened(0);
                    serve(tracker, wire.line.clone(), run::serve(process, wire));
                }
                Err(error) => {
                    wire.line.ended(TaskOutcome::NotStarted { reason: crate::sentence::reason(&crate::chain(&error)) });
                }
            },
            StreamTarget::Terminal { run, size, keep } => terminals.open(wire, run, size, keep, surroundings, tracker),
            StreamTarget::Attach { terminal, offset, size } => terminals.attach(terminal, wire, offset, size),
            StreamTarget::Upload { path } => {
                serve(tracker, wire.line.clone(), transfer::upload(work.join(path), wire));
            }
            StreamTarget::Download { path } => {
                serve(tracker, wire.line.clone(), transfer::download(work.join(path), wire));
            }
            StreamTarget::Connect { host, port } => {
                serve(tracker, wire.line.clone(), connect::serve(host, port, wire));
            }
        }
    }

    /// The end of a new stream at which it is to be served.
    pub(crate) fn wire(&mut self, number: u32, stdin: bool, outgoing: &Outgoing) -> Wire {
        // Streams that have ended are forgotten when the next one opens.
        self.count();
        let (hold, wire) = wire::wire(number, stdin, outgoing);
        self.open.insert(number, hold);
        wire
    }

    /// Passes a signal on.
    pub(crate) fn signal(&self, number: u32, signal: Signal) {
        self.order(number, Order::Signal(signal));
    }

    /// Gives the terminal of a stream another size.
    pub(crate) fn resize(&self, number: u32, size: TerminalSize) {
        self.order(number, Order::Resize(size));
    }

    /// Ends a stream: nobody listens any more.
    pub(crate) fn close(&self, number: u32) {
        self.order(number, Order::Close);
    }

    /// Notes how much of a stream's output has been taken.
    pub(crate) fn taken(&self, taken: StreamTaken) {
        if let Some(hold) = self.open.get(&taken.stream) {
            hold.taken(taken);
        }
    }

    /// Takes input in. What comes for a stream that has ended was under way then, and means nothing.
    pub(crate) fn input(&mut self, frame: Frame) -> Result<(), FlowError> {
        self.open.get_mut(&frame.stream).map_or(Ok(()), |hold| hold.input(frame))
    }

    fn order(&self, number: u32, order: Order) {
        if let Some(hold) = self.open.get(&number) {
            hold.order(order);
        }
    }
}

/// Has something serve a stream, and its outcome told.
fn serve(tracker: &TaskTracker, line: Line, served: impl Future<Output = TaskOutcome> + Send + 'static) {
    tracker.spawn(async move {
        let outcome = unbroken(served).await.unwrap_or_else(|broken| failed(&broken.to_string()));
        line.end(outcome).await;
    });
}

/// Goes on until nobody listens any more.
async fn unless_closed(
    mut orders: mpsc::UnboundedReceiver<Order>,
    served: impl Future<Output = TaskOutcome>,
) -> TaskOutcome {
    tokio::select! {
        outcome = served => outcome,
        () = closed(&mut orders) => TaskOutcome::Canceled,
    }
}

/// Returns when nobody listens any more. Signals and sizes mean nothing where there is no process.
pub(crate) async fn closed(orders: &mut mpsc::UnboundedReceiver<Order>) {
    while let Some(Order::Signal(_) | Order::Resize(_)) = orders.recv().await {}
}

fn failed(reason: &str) -> TaskOutcome {
    TaskOutcome::Failed { reason: crate::sentence::sentence(reason) }
}

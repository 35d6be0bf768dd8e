//! Looks after one terminal: its process, what it shows, and the client that is attached to it, if any.
//!
//! All output goes through the ring. A client is sent what it has not got yet, wherever it begins, so that
//! the first one and one that comes back are the same case. As long as somebody is attached, no more is read
//! than the client takes, and the process waits; with nobody there it goes on, and the ring forgets.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pty_process::{OwnedReadPty, OwnedWritePty, Pty};
use rustix::process::kill_process_group;
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use vm_agent_schemas::wire::{Signal, TaskOutcome, TerminalSize};

use super::ring::{KEPT, Ring};
use crate::process::{Drain, Leader, number};
use crate::streams::{CLOSE_GRACE, Fed, Inlet, Line, Order, Outlet, Room, Wire};

/// How long a terminal is kept with nobody attached to it.
pub(super) const UNATTENDED: Duration = Duration::from_secs(24 * 3600);
/// How long it is remembered how a terminal ended while nobody was attached: long enough for whoever lost
/// the connection to come back.
pub(super) const REMEMBERED: Duration = Duration::from_secs(600);
/// How much is read from a terminal at once, in bytes: as much as the kernel ever gives.
const READ: usize = 4096;
/// What a keyboard sends for the end of the input.
const END_OF_TRANSMISSION: [u8; 1] = [4];

/// A client that comes to a terminal.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) wire: Wire,
    /// How much of the output it knows.
    pub(super) offset: u64,
    /// The size that the terminal is to have now; nothing when it has it already.
    pub(super) size: Option<TerminalSize>,
}

/// How a terminal is, for others to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// Whether somebody is attached.
    pub(super) attached: bool,
    /// Whether its process has ended.
    pub(super) ended: bool,
}

/// What looks after a terminal.
pub(super) struct Keeper {
    leader: Leader,
    output: Drain<OwnedReadPty>,
    /// Whether there is more output to come.
    open: bool,
    input: Arc<Mutex<OwnedWritePty>>,
    /// The terminal itself, for its size and its foreground.
    control: OwnedFd,
    /// Cancelled once the process has ended.
    ended: CancellationToken,
    outcome: Option<TaskOutcome>,
    ring: Ring,
    client: Option<Client>,
    /// Since when nobody is attached, or since when it has ended with nobody there.
    alone: Instant,
    status: watch::Sender<Status>,
}

/// Whoever is attached.
struct Client {
    line: Line,
    orders: mpsc::UnboundedReceiver<Order>,
    stdout: Outlet,
    /// Passes on what is typed.
    typing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// What happens with a client.
enum Happening {
    /// It wants something.
    Order(Order),
    /// It can be sent so much.
    Room(Room),
    /// It is gone.
    Gone,
}

impl Keeper {
    /// Looks after a process on a terminal.
    pub(super) fn new(pty: Pty, leader: Leader) -> std::io::Result<(Self, watch::Receiver<Status>)> {
        let control = std::os::fd::AsFd::as_fd(&pty).try_clone_to_owned()?;
        let (reader, writer) = pty.into_split();
        let ended = CancellationToken::new();
        let (status, watched) = watch::channel(Status::default());
        let keeper = Self {
            leader,
            output: Drain::new(reader, ended.clone()),
            open: true,
            input: Arc::new(Mutex::new(writer)),
            control,
            ended,
            outcome: None,
            ring: Ring::new(KEPT),
            client: None,
            alone: Instant::now(),
            status,
        };
        Ok((keeper, watched))
    }

    /// Serves clients until the process has ended and one was told so. Without `inbox` the terminal is not
    /// kept: it ends with its only client. `changed` hears of what others see of it.
    pub(super) async fn run(
        mut self,
        first: Attachment,
        mut inbox: Option<mpsc::UnboundedReceiver<Attachment>>,
        changed: &Notify,
    ) {
        self.attach(first);
        let mut shown = Status::default();
        while self.client.is_some() || inbox.is_some() {
            let status = Status { attached: self.client.is_some(), ended: self.outcome.is_some() };
            if std::mem::replace(&mut shown, status) != status {
                self.status.send_replace(status);
                changed.notify_one();
            }
            let unsent = self.client.as_ref().is_some_and(|client| client.stdout.sent() < self.ring.end());
            if !self.open && !unsent && self.outcome.is_some() && self.client.is_some() {
                return self.tell_end().await;
            }
            let limit = self.alone + if self.outcome.is_some() { REMEMBERED } else { UNATTENDED };
            tokio::select! {
                data = self.output.read(READ), if self.open && !unsent => match data {
                    Some(data) => self.ring.push(&data),
                    None => self.open = false,
                },
                how = self.leader.wait(), if self.outcome.is_none() => self.note_end(how),
                happening = next(&mut self.client, unsent) => self.handle(happening),
                attachment = arrival(&mut inbox) => match attachment {
                    Some(attachment) => self.attach(attachment),
                    // The runtime ends.
                    None => break,
                },
                () = sleep_until(limit), if self.client.is_none() => break,
            }
        }
        self.end().await;
    }

    fn attach(&mut self, attachment: Attachment) {
        let Attachment { wire, offset, size } = attachment;
        if let Some(former) = self.client.take() {
            former.line.ended(TaskOutcome::Failed { reason: "another client attached to this terminal".to_owned() });
        }
        if let Some(size) = size {
            self.resize(size);
        }
        let Wire { line, orders, stdin, mut stdout, stderr: _ } = wire;
        let offset = self.ring.nearest(offset);
        stdout.begin(offset);
        line.opened(offset);
        let input = Arc::clone(&self.input);
        let typing = stdin.map(|inlet| Box::pin(type_in(inlet, input)) as Pin<Box<dyn Future<Output = ()> + Send>>);
        self.client = Some(Client { line, orders, stdout, typing });
    }

    fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Order(Order::Signal(signal)) => self.signal(signal),
            Happening::Order(Order::Resize(size)) => self.resize(size),
            Happening::Order(Order::Close) | Happening::Gone => {
                if let Some(client) = self.client.take() {
                    client.line.ended(TaskOutcome::Canceled);
                }
                self.alone = Instant::now();
            }
            Happening::Room(room) => {
                if let Some(client) = &mut self.client {
                    let data = self.ring.read(client.stdout.sent(), room.len);
                    client.stdout.send(room, data);
                }
            }
        }
    }

    fn note_end(&mut self, outcome: TaskOutcome) {
        self.outcome = Some(outcome);
        self.alone = Instant::now();
        self.ended.cancel();
    }

    /// A signal is for what runs in the foreground, as if it was typed; one that is to end the terminal is for
    /// the process that it was opened for as well.
    fn signal(&self, signal: Signal) {
        if matches!(signal, Signal::Hup | Signal::Kill) {
            self.leader.signal(signal);
        }
        // With nothing in the foreground there is nobody to tell.
        if let Ok(group) = tcgetpgrp(&self.control) {
            let _ = kill_process_group(group, number(signal));
        }
    }

    fn resize(&self, size: TerminalSize) {
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        if let Err(error) = tcsetwinsize(&self.control, size) {
            tracing::warn!("a terminal could not be given another size: {error}");
        }
    }

    /// Tells the client how the process has ended. Without a session there is nobody to tell.
    async fn tell_end(&mut self) {
        if let (Some(mut client), Some(outcome)) = (self.client.take(), self.outcome.take()) {
            let _ = client.stdout.end().await;
            client.line.end(outcome).await;
        }
    }

    /// Ends what runs in the terminal as when the line is cut, and what does not heed that by force.
    async fn end(mut self) {
        if self.outcome.is_none() {
            self.signal(Signal::Hup);
            self.leader.end(CLOSE_GRACE).await;
        }
    }
}

/// What happens next with the client; nothing ever as long as there is none.
async fn next(client: &mut Option<Client>, unsent: bool) -> Happening {
    let Some(client) = client else { return std::future::pending().await };
    loop {
        tokio::select! {
            // What is typed after an order finds it obeyed.
            biased;
            order = client.orders.recv() => return order.map_or(Happening::Gone, Happening::Order),
            room = client.stdout.ready(), if unsent => return room.map_or(Happening::Gone, Happening::Room),
            () = typed(&mut client.typing), if client.typing.is_some() => client.typing = None,
        }
    }
}

async fn typed(typing: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    if let Some(typing) = typing {
        typing.await;
    }
}

/// The next client that comes; nothing when nobody can come any more.
async fn arrival(inbox: &mut Option<mpsc::UnboundedReceiver<Attachment>>) -> Option<Attachment> {
    match inbox {
        Some(inbox) => inbox.recv().await,
        None => std::future::pending().await,
    }
}

/// Types the input. Its end is typed as well: a terminal can't be closed on one side.
async fn type_in(mut inlet: Inlet, terminal: Arc<Mutex<OwnedWritePty>>) {
    let mut terminal = terminal.lock().await;
    if inlet.feed(&mut *terminal).await == Fed::Whole {
        // One that is gone takes nothing more.
        let _ = terminal.write_all(&END_OF_TRANSMISSION).await;
    }
}

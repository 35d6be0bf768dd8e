//! The hub behind sockets: the thin part that listens, reads and writes, and owns the clock.
//!
//! ```text
//!  listener ─▶ connection (one task each) ──inputs──▶ ┌───────┐ ──▶ storage ──▶ held effects ─┐
//!                 ▲                                   │ owner │ ◀─────────────────────────────┘
//!                 └──────────── outgoing queue ────── └───────┘ ──▶ notices, clients
//!  HubHandle, Stream ────────── commands ───────────────▲
//! ```
//!
//! One task owns the [`Hub`](crate::state::Hub) and never waits for a peer: what can't be sent at once
//! is queued within a bound, and who fills the bound is closed.

mod closings;
mod connection;
mod crowd;
mod door;
mod notices;
mod owner;
mod release;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::ids::{ClaimId, Epoch, Nonce, TaskId};
use vm_agent_schemas::message::Message;
use vm_agent_schemas::names::{AgentName, FleetName};
use vm_agent_schemas::task::Task;
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{Configuration, StreamTarget, Verify};

use crate::identity::Identity;
use crate::state::{
    Directory, Event, Hub, Notice, Offer, OpenError, OutputKnown, PostError, Record, SessionInfo, Shown, VerifyError,
};
use crate::stream::{Stream, StreamEvent};
use closings::Tally;
pub use closings::{Closings, TurnedAway};
use crowd::Crowd;
use door::Door;
use owner::{Owner, ShownAnswer};

/// Frames that wait for the owner. A reader that finds no room waits, and so does its peer: TCP
/// carries the pressure back.
const INPUTS: usize = 256;

/// What a hub needs.
pub struct Options {
    /// The fleet whose runtimes may come.
    pub fleet: FleetName,
    /// Where to listen. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// How often a runtime is to send `health`.
    pub heartbeat: Span,
    /// The hub's certificate.
    pub identity: Identity,
    /// Where records are made durable.
    pub storage: Arc<dyn Storage>,
    /// Where the controller is told. When it does not keep up, health reports, logs, refusals and task
    /// output are dropped; everything else waits.
    pub notices: mpsc::Sender<Notice>,
}

/// Makes records durable.
pub trait Storage: Send + Sync + 'static {
    /// Stores records, all or none. Calls are made in the order in which the records must become
    /// durable, and the next call does not wait for the future of the last: an implementation takes a
    /// record's place in the order before it returns.
    fn store(&self, records: Arc<Vec<Record>>) -> BoxFuture<'static, Result<(), String>>;
}

/// Why a hub can't serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address can't be listened on.
    #[error("can't listen for runtimes on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate can't be used.
    #[error("can't use the hub's certificate")]
    Certificate(#[from] rustls::Error),
}

/// What the owner is asked for from inside the controller.
#[derive(Debug)]
pub(crate) enum Command {
    /// Pass this on.
    Event(Box<Event>),
    /// Open a stream.
    Open {
        agent: AgentName,
        purpose: Purpose,
        /// How the stream reaches the owner.
        hub: mpsc::UnboundedSender<Command>,
        answer: oneshot::Sender<Result<Stream, OpenError>>,
    },
    /// Send a message.
    Post { message: Box<Message>, answer: oneshot::Sender<Result<(), PostError>> },
    /// Ask a runtime where it runs.
    Verify { question: Verify, agent: AgentName, epoch: Epoch, answer: ShownAnswer },
    /// Have done with a runtime that runs elsewhere.
    Distrust { agent: AgentName, epoch: Epoch, why: String, answer: oneshot::Sender<bool> },
    /// Tell the sessions.
    Sessions(oneshot::Sender<Vec<SessionInfo>>),
    /// Refuse everyone, and end.
    Shutdown,
}

/// What a stream is opened for.
#[derive(Debug)]
pub(crate) enum Purpose {
    Target { target: StreamTarget, stdin: bool },
    Upgrade(Offer),
}

/// A running hub. Cheap to clone; without any handle and stream left it goes down.
#[derive(Clone)]
pub struct HubHandle {
    commands: mpsc::UnboundedSender<Command>,
    addresses: Arc<[SocketAddr]>,
    stop: CancellationToken,
    tasks: TaskTracker,
    tally: Tally,
    door: Arc<Door>,
}

/// Starts a hub.
///
/// # Errors
/// When an address can't be listened on.
pub async fn serve(options: Options) -> Result<HubHandle, ServeError> {
    let tls = TlsAcceptor::from(Arc::new(options.identity.server_config()?));
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for address in options.listen {
        let failed = |source| ServeError::Listen { address, source };
        // tokio sets SO_REUSEADDR: a controller that comes back does not wait for old connections.
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        addresses.push(listener.local_addr().map_err(failed)?);
        listeners.push(listener);
    }
    let (inputs, from_connections) = mpsc::channel(INPUTS);
    let (commands, from_handles) = mpsc::unbounded_channel();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let tally = Tally::default();
    let crowd = Crowd::new(commands.downgrade());
    let door = Arc::new(Door::new(tls, inputs, tasks.clone(), crowd, tally.clone()));
    for listener in listeners {
        tasks.spawn(stop.clone().run_until_cancelled_owned(door.clone().listen(listener)));
    }
    let hub = Hub::new(options.fleet, options.heartbeat);
    let owner = Owner::new(hub, options.heartbeat, options.storage, options.notices, tally.clone());
    tasks.spawn({
        let stop = stop.clone();
        async move {
            owner.run(from_connections, from_handles).await;
            stop.cancel();
        }
    });
    tasks.close();
    Ok(HubHandle { commands, addresses: addresses.into(), stop, tasks, tally, door })
}

impl HubHandle {
    /// Where the hub listens: the addresses asked for, with the ports they got.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Listens at one more address from now on.
    ///
    /// # Errors
    /// When that can't be listened on.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(Arc::clone(&self.door).listen(listener)));
        Ok(())
    }

    /// The first of the addresses.
    ///
    /// # Panics
    /// When the hub was asked to listen nowhere.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        *self.addresses.first().expect("a hub listens somewhere")
    }

    /// How many connections the hub has closed by its own decision, and why.
    #[must_use]
    pub fn closings(&self) -> Closings {
        self.tally.closings()
    }

    /// Lets the agent's runtime speak with this credential, which is stored already: at the controller's
    /// start, and for each new incarnation. Without a configuration the runtime goes on with the one that
    /// it has, until [`Self::configure`] says otherwise.
    pub fn enroll(&self, credential: Credential, configuration: Option<Configuration>) {
        self.tell(Event::Enroll(credential, configuration));
    }

    /// Says whose machine the agent's is: tasks of the file that were accepted for another one end unsent.
    /// At the controller's start: before the tasks.
    pub fn claimed(&self, agent: AgentName, claim: ClaimId) {
        self.tell(Event::Claimed(agent, claim));
    }

    /// Ends the agent's session, its credential and its tasks: its instance is no more.
    pub fn revoke(&self, agent: AgentName) {
        self.tell(Event::Revoke(agent));
    }

    /// Has the agent's key open nothing any more: another machine has it too.
    pub fn unbind(&self, agent: AgentName) {
        self.tell(Event::Unbind(agent));
    }

    /// Gives the agent another configuration. One with secrets is sent and not kept, and one that is too
    /// large for a message is not sent: [`configuration_fits`](crate::configuration_fits) tells before.
    pub fn configure(&self, agent: AgentName, configuration: Configuration) {
        self.tell(Event::Configure(agent, configuration));
    }

    /// Delivers an accepted, stored task; so much of its present attempt's output is stored. At the
    /// controller's start: every task that is not over, in the order in which they were accepted, and before
    /// the first [`Self::enroll`]. A runtime that spoke of a task before that would be told that it is over.
    pub fn submit(&self, task: Task, known: OutputKnown) {
        self.tell(Event::Submit(task, known));
    }

    /// Cancels a task: one that was not handed to a runtime ends at once, another one when its runtime says
    /// so. A task that is over, or not known, stays as it is.
    pub fn cancel(&self, task: TaskId, by: String) {
        self.tell(Event::CancelTask { task, by });
    }

    /// Says which agents are declared, with their labels and slots, and who may write to whom.
    pub fn directory(&self, directory: Directory) {
        self.tell(Event::Directory(directory));
    }

    /// Sends a message of the host's to an agent, and answers once it is stored. Sending one again with the
    /// same id sends nothing anew.
    ///
    /// # Errors
    /// When it goes nowhere, and why.
    pub async fn post(&self, message: Message) -> Result<(), PostError> {
        let (answer, posted) = oneshot::channel();
        let _ = self.commands.send(Command::Post { message: Box::new(message), answer });
        posted.await.unwrap_or(Err(PostError::Shutdown))
    }

    /// Tells of a stored message that was accepted in an earlier life of the controller. At the controller's
    /// start, in the order in which they were accepted: every one that waits; and, so that they are known when
    /// they are sent again, and may be answered, those that were taken lately. [`Self::directory`] comes before
    /// all [`Self::enroll`], or the first messages would be judged by a directory without agents.
    pub fn restore(&self, message: Message) {
        self.tell(Event::Restore(message));
    }

    /// Has the agent's runtime make itself another key. [`Notice::Rotated`] tells when it is stored.
    pub fn rotate(&self, agent: AgentName) {
        self.tell(Event::Rotate { agent, challenge: Nonce::generate() });
    }

    /// Asks the runtime in this session of an agent where it runs. Waits for ever; the caller holds the deadline.
    ///
    /// # Errors
    /// When the session is over, and when its runtime does not know the question.
    pub async fn verify(&self, agent: AgentName, epoch: Epoch, question: Verify) -> Result<Shown, VerifyError> {
        let (answer, shown) = oneshot::channel();
        let _ = self.commands.send(Command::Verify { question, agent, epoch, answer });
        shown.await.unwrap_or(Err(VerifyError::Offline))
    }

    /// Says that the runtime in this session runs in the agent's machine: from now on one that can't show that does
    /// not speak for the agent.
    pub fn trust(&self, agent: AgentName, epoch: Epoch) {
        self.tell(Event::Trust { agent, epoch });
    }

    /// Says that the runtime in this session runs elsewhere: the session ends, and the key that opened it opens no
    /// other. Answers when that is stored, with whether there was such a session.
    pub async fn distrust(&self, agent: AgentName, epoch: Epoch, why: String) -> bool {
        let (answer, revoked) = oneshot::channel();
        let _ = self.commands.send(Command::Distrust { agent, epoch, why, answer });
        revoked.await.unwrap_or(false)
    }

    /// Offers another version of the runtime. The program is to be sent as the stream's input; the stream
    /// ends when the runtime has it.
    ///
    /// # Errors
    /// When the agent's runtime is not connected, or the hub goes down.
    pub async fn upgrade(&self, agent: AgentName, offer: Offer) -> Result<Stream, OpenError> {
        self.open(agent, Purpose::Upgrade(offer)).await
    }

    /// Gives no new task to these agents, whose machines are about to go down, and to all others again.
    pub fn cordon(&self, agents: BTreeSet<AgentName>) {
        self.tell(Event::Cordon(agents));
    }

    /// Runs a process in an agent.
    ///
    /// # Errors
    /// When the agent's runtime is not connected, or the hub goes down.
    pub async fn open_stream(&self, agent: AgentName, target: StreamTarget, stdin: bool) -> Result<Stream, OpenError> {
        self.open(agent, Purpose::Target { target, stdin }).await
    }

    async fn open(&self, agent: AgentName, purpose: Purpose) -> Result<Stream, OpenError> {
        let (answer, opened) = oneshot::channel();
        let hub = self.commands.clone();
        let _ = self.commands.send(Command::Open { agent, purpose, hub, answer });
        opened.await.unwrap_or(Err(OpenError::Shutdown))
    }

    /// The sessions as they are now; none when the hub has gone down.
    pub async fn sessions(&self) -> Vec<SessionInfo> {
        let (answer, sessions) = oneshot::channel();
        let _ = self.commands.send(Command::Sessions(answer));
        sessions.await.unwrap_or_default()
    }

    /// Tells every runtime that the controller goes down, and waits until that is written and all
    /// records are stored. Peers that do not read are given up on after a few seconds.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let _ = self.commands.send(Command::Shutdown);
        self.tasks.wait().await;
    }

    /// A hub that has gone down has nobody to tell.
    fn tell(&self, event: Event) {
        let _ = self.commands.send(Command::Event(Box::new(event)));
    }
}

/// What a client's end of a stream receives.
type ClientSender = mpsc::UnboundedSender<StreamEvent>;

//! The loop that owns everything: events come in one at a time, and each is handled without waiting.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::task::TaskTracker;
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::wire::{
    Channel, FromHub, FromRuntime, LogLines, MessageRef, RefusalCode, Refused, RotateAck, Seed, Welcome,
};

use crate::RuntimeError;
use crate::backoff::{Backoff, LIVED, REFUSED_PAUSE};
use crate::configuration::InForce;
use crate::connection::Socket;
use crate::evidence::evidence;
use crate::folder::{Folder, FolderError};
use crate::handshake::{OpenError, open};
use crate::health::Health;
use crate::identity::Identity;
use crate::log_forward::LogQueue;
use crate::messages::{Errand, Messages};
use crate::outgoing::Outgoing;
use crate::session::{Session, SessionEnd, SessionEvent};
use crate::streams::Means;
use crate::tasks::{Happening, Stage, Tasks};
use crate::terminals::Terminals;
use crate::upgrade::{Change, Upgrades};

/// How long the hub may take to answer when the runtime closes the connection to go down.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long ending all processes may take when the runtime goes down: their grace and a margin.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs the runtime of a folder until it is told to end.
pub(crate) async fn run(folder: Folder, upgrades: Upgrades, logs: LogQueue) -> Result<End, RuntimeError> {
    let system = |what| move |source| RuntimeError::System { what, source };
    let mut signals = Signals::new().map_err(system("listen for signals"))?;
    let health = Health::new(folder.path()).map_err(system("read the machine's state"))?;
    let mut runtime = Runtime::new(folder, upgrades, logs, health)?;
    tracing::info!(agent.name = %runtime.seed.agent, "the runtime has started in {}", runtime.folder.path().display());
    let end = loop {
        let event = tokio::select! {
            event = signals.next() => event,
            event = runtime.next() => event,
        };
        if let ControlFlow::Break(end) = runtime.handle(event) {
            break end;
        }
        if let Some(program) = runtime.successor() {
            break End::Replaced(program);
        }
    };
    runtime.stop(end).await
}

/// How a runtime ends.
pub(crate) enum End {
    /// It was told to.
    Stopped,
    /// This program goes on in its place.
    Replaced(PathBuf),
}

/// The signals that the runtime obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The guest program sends it when the machine has slept.
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt?, hangup: hangup? })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.hangup.recv() => Event::Awake,
        }
    }
}

/// A runtime has one incarnation as long as it lives.
#[derive(Debug, thiserror::Error)]
#[error("the seed is now that of another incarnation; end this runtime and start it anew")]
struct OtherIncarnation;

struct Runtime {
    folder: Folder,
    identity: Identity,
    upgrades: Upgrades,
    seed: Seed,
    in_force: InForce,
    tasks: Tasks,
    messages: Messages,
    /// The terminals that outlive their streams.
    terminals: Terminals,
    /// Everything that looks after a process.
    processes: TaskTracker,
    health: Health,
    logs: LogQueue,
    link: Link,
    backoff: Backoff,
    /// The incarnation in which the hub has bound the key.
    joined: Option<Incarnation>,
    /// Why the last attempt to connect failed, as it was logged: the same is not logged again.
    trouble: Option<String>,
}

/// How things stand with the hub.
enum Link {
    /// The next attempt has to wait.
    Waiting(Pin<Box<Sleep>>),
    /// An attempt is under way.
    Opening(Pin<Box<dyn Future<Output = Opened>>>),
    /// There is a session.
    Live(Box<Session>),
}

type Opened = Result<Box<(Socket, Welcome)>, OpenError>;

enum Event {
    /// The runtime is to end.
    Stop,
    /// The machine has slept, and whatever it was connected to has let go of it meanwhile.
    Awake,
    /// It is time for the next attempt to connect.
    Due,
    /// An attempt to connect is over.
    Opened(Opened),
    /// Something happened in the session.
    Session(SessionEvent),
    /// Something happened with tasks.
    Task(Happening),
    /// The log has lines for the hub.
    Logged(LogLines),
    /// A service or a terminal that is kept is in another state, of which the hub is told at once.
    Changed,
    /// Something happened with versions of the runtime.
    Upgrade(Change),
    /// There is something to do about messages.
    Errand(Errand),
}

impl Link {
    fn now() -> Self {
        Self::after(Duration::ZERO)
    }

    fn after(pause: Duration) -> Self {
        Self::Waiting(Box::pin(sleep(pause)))
    }

    async fn next(&mut self) -> Event {
        match self {
            Self::Waiting(pause) => {
                pause.await;
                Event::Due
            }
            Self::Opening(attempt) => Event::Opened(attempt.await),
            Self::Live(session) => Event::Session(session.next().await),
        }
    }

    const fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    fn outgoing(&self) -> Option<&Outgoing> {
        match self {
            Self::Live(session) => Some(&session.outgoing),
            Self::Waiting(_) | Self::Opening(_) => None,
        }
    }
}

impl Runtime {
    fn new(folder: Folder, upgrades: Upgrades, logs: LogQueue, health: Health) -> Result<Self, FolderError> {
        let seed = folder.seed()?;
        folder.begin(&seed)?;
        Ok(Self {
            identity: Identity::load(&folder)?,
            upgrades,
            in_force: InForce::nothing(&folder, &seed.nonce, logs.sender())?,
            tasks: Tasks::load(folder.tasks())?,
            messages: Messages::load(&folder)?,
            terminals: Terminals::default(),
            processes: TaskTracker::new(),
            health,
            logs,
            link: Link::now(),
            backoff: Backoff::default(),
            joined: folder.joined()?,
            trouble: None,
            folder,
            seed,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            event = self.link.next() => event,
            happening = self.tasks.next() => Event::Task(happening),
            lines = self.logs.next(), if self.link.is_live() => Event::Logged(lines),
            change = self.upgrades.next() => Event::Upgrade(change),
            errand = self.messages.next() => Event::Errand(errand),
            () = self.in_force.services.changed(), if self.link.is_live() => Event::Changed,
            () = self.terminals.changed(), if self.link.is_live() => Event::Changed,
        }
    }

    fn handle(&mut self, event: Event) -> ControlFlow<End> {
        match event {
            Event::Stop => return ControlFlow::Break(End::Stopped),
            Event::Awake => {
                tracing::info!("told to connect anew");
                self.backoff.reset();
                self.link = Link::now();
            }
            Event::Due => self.connect(),
            Event::Opened(Ok(opened)) => {
                let (socket, welcome) = *opened;
                self.begin(socket, welcome);
            }
            Event::Opened(Err(error)) => self.not_opened(&error),
            Event::Session(event) => self.on_session(event),
            Event::Task(happening) => {
                let (surroundings, tracker) = (&self.in_force.surroundings, &self.processes);
                self.tasks.handle(happening, Stage { surroundings, outgoing: self.link.outgoing(), tracker });
            }
            Event::Logged(lines) => {
                if let Some(outgoing) = self.link.outgoing() {
                    outgoing.say(FromRuntime::Log(lines));
                }
            }
            Event::Changed => self.report(),
            Event::Upgrade(change) => {
                if let Some(program) = self.upgrades.handle(change, self.link.outgoing()) {
                    return ControlFlow::Break(End::Replaced(program));
                }
            }
            Event::Errand(errand) => self.messages.run(errand, self.link.outgoing()),
        }
        ControlFlow::Continue(())
    }

    /// Begins an attempt to connect. The seed is read anew each time: the hub's address may be another
    /// now. A seed that can't be read leaves the last one in force.
    fn connect(&mut self) {
        match self.folder.seed() {
            Ok(seed) if (seed.incarnation, &seed.nonce) == (self.seed.incarnation, &self.seed.nonce) => {
                self.seed = seed;
            }
            Ok(_) => self.complain(&OtherIncarnation),
            Err(error) => self.complain(&error),
        }
        let hello = self.identity.hello(&self.seed, self.joined == Some(self.seed.incarnation));
        let (key, seed) = (Arc::clone(self.identity.keys.current()), self.seed.clone());
        self.link = Link::Opening(Box::pin(async move { open(&key, &seed, hello).await.map(Box::new) }));
    }

    fn not_opened(&mut self, error: &OpenError) {
        self.complain(error);
        let pause = match error {
            OpenError::Refused(refused) => self.pause_after(refused),
            _ => self.backoff.next(random()),
        };
        self.link = Link::after(pause);
    }

    /// A refusal is obeyed: where trying again can't help, it is tried seldom. That the hub knows no
    /// key of ours although it bound one once (its state may come from a copy, or somebody else used the key) is
    /// mended by the join token, if the seed holds one that still works, and with another key: who knows who has that
    /// one.
    fn pause_after(&mut self, refused: &Refused) -> Duration {
        if refused.code == RefusalCode::JoinToken && self.joined.is_some() {
            self.set_joined(None);
            log(self.identity.keys.renew());
            return self.backoff.next(random());
        }
        // With two keys it is the other one that the hub knows.
        let other_key = refused.code == RefusalCode::Credential && self.identity.keys.refused();
        if refused.retry || other_key { self.backoff.next(random()) } else { REFUSED_PAUSE }
    }

    /// Notes whether the hub knows the key. Should the disk refuse, the next start sends a token that is
    /// not needed, or misses one more attempt.
    fn set_joined(&mut self, joined: Option<Incarnation>) {
        if self.joined != joined
            && let Err(error) = self.folder.set_joined(joined)
        {
            tracing::error!("{}", crate::chain(&error));
        }
        self.joined = joined;
    }

    /// Logs why there is no connection, unless that is what was logged last: a hub that is away for a
    /// night fills no disk.
    fn complain(&mut self, error: &dyn Error) {
        let text = crate::chain(error);
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.trouble = Some(text);
        }
    }

    fn begin(&mut self, socket: Socket, welcome: Welcome) {
        tracing::info!(session.id = %welcome.session, session.epoch = welcome.epoch.0, "connected to the hub");
        self.trouble = None;
        self.set_joined(Some(self.seed.incarnation));
        log(self.identity.keys.welcomed());
        let session = Session::new(socket, self.seed.agent.clone(), &welcome);
        let outgoing = session.outgoing.clone();
        self.link = Link::Live(Box::new(session));
        if let Some(configuration) = welcome.configuration {
            self.in_force.apply(configuration, &self.processes);
        }
        outgoing.say(FromRuntime::Configured(self.in_force.told()));
        self.tasks.resume(&outgoing);
        self.messages.begin(&outgoing);
        self.upgrades.welcomed(&outgoing);
    }

    /// The heartbeat: puts right what drifted, and tells how things stand.
    fn beat(&mut self) {
        if self.in_force.mend()
            && let Some(outgoing) = self.link.outgoing()
        {
            outgoing.say(FromRuntime::Configured(self.in_force.told()));
        }
        self.report();
    }

    fn report(&mut self) {
        let Link::Live(session) = &mut self.link else { return };
        let services = self.in_force.services.report();
        let report = self.health.report(self.tasks.count(), session.streams.count(), self.terminals.report(), services);
        session.outgoing.say(FromRuntime::Health(report));
    }

    fn on_session(&mut self, event: SessionEvent) {
        let Link::Live(session) = &mut self.link else { return };
        match event {
            SessionEvent::Said(message) => {
                if let Err(end) = self.on_message(message) {
                    self.session_over(&end);
                }
            }
            SessionEvent::Letter(letter) => self.messages.come(letter, &session.outgoing),
            SessionEvent::Data(frame) if frame.channel == Channel::Stdin => {
                if let Err(error) = session.streams.input(frame) {
                    self.session_over(&error.into());
                }
            }
            SessionEvent::Data(_) => tracing::warn!("the hub sent data on a channel that is the runtime's; ignored"),
            SessionEvent::Heartbeat => self.beat(),
            SessionEvent::Over(end) => self.session_over(&end),
        }
    }

    fn on_message(&mut self, message: FromHub) -> Result<(), SessionEnd> {
        let Link::Live(session) = &mut self.link else { return Ok(()) };
        let outgoing = &session.outgoing;
        match message {
            FromHub::Configure(configuration) => {
                self.in_force.apply(configuration, &self.processes);
                outgoing.say(FromRuntime::Configured(self.in_force.told()));
            }
            FromHub::Task(order) => {
                let (surroundings, tracker) = (&self.in_force.surroundings, &self.processes);
                self.tasks.order(order, Stage { surroundings, outgoing: Some(outgoing), tracker });
            }
            FromHub::TaskAck(task) => self.tasks.acknowledged(task),
            FromHub::StreamOpen(order) => {
                let means = Means {
                    surroundings: &self.in_force.surroundings,
                    terminals: &mut self.terminals,
                    outgoing,
                    tracker: &self.processes,
                };
                session.streams.open(order, means);
            }
            FromHub::MessageAccepted(MessageRef { message }) => self.messages.accepted(message, outgoing),
            FromHub::MessageRefused(refused) => self.messages.refused(refused, outgoing),
            FromHub::StreamResize(order) => session.streams.resize(order.stream, order.size),
            FromHub::StreamSignal(order) => session.streams.signal(order.stream, order.signal),
            FromHub::StreamClose(order) => session.streams.close(order.stream),
            FromHub::StreamTaken(taken) => {
                if !self.tasks.taken(taken) {
                    session.streams.taken(taken);
                }
            }
            FromHub::TaskFollow(follow) => self.tasks.follow(follow, outgoing),
            FromHub::TaskCancel(task) => self.tasks.cancel(task),
            FromHub::Rotate(challenge) => {
                match self.identity.keys.rotate(&challenge, &self.seed.agent, self.seed.incarnation) {
                    Ok(rotated) => outgoing.say(FromRuntime::Rotated(rotated)),
                    // The hub asks again.
                    Err(error) => log(Err(error)),
                }
            }
            FromHub::RotateAck(RotateAck { public_key }) => log(self.identity.keys.acknowledged(&public_key)),
            FromHub::Upgrade(order) => {
                let wire = session.streams.wire(order.stream, true, outgoing);
                self.upgrades.offer(order, wire, outgoing, &self.processes);
            }
            FromHub::Verify(question) => outgoing.say(FromRuntime::Evidence(evidence(&question, session.id))),
            FromHub::Refused(refused) => return Err(SessionEnd::Refused(refused)),
            // A message for programs is an event of its own, because it is more than its body.
            FromHub::Message(_) | FromHub::Challenge(_) | FromHub::Welcome(_) => {
                tracing::warn!("the hub spoke of the handshake after its end; ignored");
            }
        }
        Ok(())
    }

    fn session_over(&mut self, end: &SessionEnd) {
        tracing::warn!("{}", crate::chain(end));
        if let Link::Live(session) = &self.link
            && session.age() >= LIVED
        {
            self.backoff.reset();
        }
        let pause = match end {
            SessionEnd::Refused(refused) => self.pause_after(refused),
            _ => self.backoff.next(random()),
        };
        self.link = Link::after(pause);
    }

    /// The program that is to go on in this one's place, once there is one and nothing to do that would be lost
    /// with this one.
    fn successor(&mut self) -> Option<PathBuf> {
        let streams = match &mut self.link {
            Link::Live(session) => session.streams.count(),
            Link::Waiting(_) | Link::Opening(_) => 0,
        };
        let idle = streams == 0 && self.tasks.count() == 0 && self.terminals.is_empty();
        if self.upgrades.is_ready() && idle { self.upgrades.take_over() } else { None }
    }

    /// Ends all processes and the session. If it was told to end, it leaves the mark of an orderly end.
    async fn stop(mut self, end: End) -> Result<End, RuntimeError> {
        match &end {
            End::Stopped => tracing::info!("told to end"),
            End::Replaced(program) => tracing::info!("`{}` goes on in the place of this program", program.display()),
        }
        self.tasks.stop();
        self.in_force.services.stop();
        self.terminals = Terminals::default();
        if let Link::Live(session) = std::mem::replace(&mut self.link, Link::now()) {
            session.close(CLOSE_LIMIT).await;
        }
        self.processes.close();
        if timeout(STOP_LIMIT, self.processes.wait()).await.is_err() {
            tracing::error!("some processes did not end in time");
        }
        self.tasks.settle().await;
        if matches!(end, End::Stopped) {
            self.folder.mark_stopped()?;
        }
        Ok(end)
    }
}

fn log(result: Result<(), FolderError>) {
    if let Err(error) = result {
        tracing::error!("{}", crate::chain(&error));
    }
}

/// A random number between 0 and 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the wait is the full one.
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

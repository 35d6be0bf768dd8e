//! Simulated runtimes: what would run in the machines that [`Fake`] only pretends to make. They speak
//! the real protocol over real sockets, so the controller can't tell the difference.
//!
//! [`Runtimes`] is told by a fake of each machine that comes up or goes down; tests read from it what each
//! was told, and write how each behaves. [`Peer`] is one connection, for tests that want to say something
//! that no honest runtime would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use vm_agent_drivers::fake::Fake;
use vm_agent_schemas::guest::{MachineId, Witness};
use vm_agent_schemas::ids::{Boot, BootId, Digest, Nonce, Secret, SessionId};
use vm_agent_schemas::names::{AgentName, InstanceName, ServiceName};
use vm_agent_schemas::task::{Job, Report};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{
    Address, ChallengeProof, Channel, Configuration, Configured, Envelope, Evidence, Frame, FromHub, FromRuntime,
    HUB_PATH, HealthReport, Hello, PROTOCOL, Seed, ServiceReport, StreamEnded, StreamOpen, StreamOpened, StreamRef,
    StreamTarget, TaskEnded, TaskFollow, TaskOrder, TaskOutcome, TaskRef, VERIFY, Verify, Welcome,
};

/// The pause before another attempt to connect. Short: a test waits for it.
const RETRY: Duration = Duration::from_millis(20);

/// What lies on the disk of a simulated machine.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The latest seed.
    pub seed: Seed,
    /// The private key of the runtime.
    pub key: [u8; 32],
    /// What tells this machine from a copy of it.
    pub machine_id: Digest,
    /// What the operating system calls itself.
    pub system: MachineId,
    /// How often the runtime has started.
    pub boot: Boot,
}

impl Disk {
    /// The disk of a machine that has just been made.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        let random = Digest::of(Nonce::generate().as_str().as_bytes());
        Self { seed, key: a_key(), machine_id: random, system: MachineId::generate(), boot: Boot(1) }
    }

    /// The hello of a runtime that starts from this disk.
    #[must_use]
    pub fn hello(&self) -> Hello {
        Hello {
            protocol: (PROTOCOL, PROTOCOL),
            fleet: self.seed.fleet.clone(),
            agent: self.seed.agent.clone(),
            incarnation: self.seed.incarnation,
            nonce: self.seed.nonce.clone(),
            machine_id: self.machine_id.clone(),
            boot: self.boot,
            public_key: URL_SAFE_NO_PAD.encode(self.pair().public_key()),
            join_token: Some(self.seed.join_token.clone()),
            runtime_version: "simulated".to_owned(),
            abilities: [VERIFY.to_owned()].into(),
        }
    }

    /// Where the seed says that the hub is.
    ///
    /// # Panics
    /// When the seed names no plain address: simulated runtimes speak no TLS.
    #[must_use]
    pub fn hub(&self) -> SocketAddr {
        let address = self.seed.hub.strip_prefix("ws://").and_then(|rest| rest.strip_suffix(HUB_PATH));
        address.and_then(|address| address.parse().ok()).expect("the hub is on loopback")
    }

    /// The signature of the runtime's key, as a proof carries it.
    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(self.pair().sign(bytes))
    }

    fn pair(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&self.key).expect("any 32 bytes are a seed")
    }
}

/// The private key of a runtime that has just made itself one.
fn a_key() -> [u8; 32] {
    let mut key = [0; 32];
    key.copy_from_slice(&Nonce::generate().as_str().repeat(2).as_bytes()[..32]);
    key
}

/// One connection to a hub.
#[derive(Debug)]
pub struct Peer {
    agent: AgentName,
    socket: WebSocketStream<TcpStream>,
}

impl Peer {
    /// Connects, and says nothing yet.
    ///
    /// # Errors
    /// When there is no hub.
    pub async fn connect(hub: SocketAddr, agent: AgentName) -> Result<Self, Error> {
        let tcp = TcpStream::connect(hub).await?;
        let (socket, _) = client_async(format!("ws://{hub}{HUB_PATH}"), tcp).await?;
        Ok(Self { agent, socket })
    }

    /// Says something. A hub that has gone is found out by [`hear`](Self::hear).
    pub async fn say(&mut self, body: FromRuntime) {
        let from = Address::Agent(self.agent.clone());
        let envelope = Envelope::new(from, Address::Host, Timestamp::now(), body);
        let text = serde_json::to_string(&envelope).expect("messages have no keys that are not texts");
        let _ = self.socket.send(Message::text(text)).await;
    }

    /// Sends bulk data.
    pub async fn send(&mut self, frame: &Frame) {
        let _ = self.socket.send(Message::Binary(frame.encode())).await;
    }

    /// Sends what may be no message at all.
    ///
    /// # Errors
    /// When the hub has closed the connection.
    pub async fn send_raw(&mut self, message: Message) -> Result<(), Error> {
        self.socket.send(message).await
    }

    /// The next piece of bulk data of the hub, messages left out; nothing once the connection is closed.
    pub async fn receive(&mut self) -> Option<Frame> {
        loop {
            match self.socket.next().await?.ok()? {
                Message::Binary(data) => return Some(Frame::decode(&data).expect("the hub keeps the protocol")),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// The next message of the hub, bulk data left out; nothing once the connection is closed.
    pub async fn hear(&mut self) -> Option<FromHub> {
        loop {
            match self.socket.next().await?.ok()? {
                Message::Text(text) => {
                    let envelope: Envelope<FromHub> = serde_json::from_str(&text).expect("the hub keeps the protocol");
                    return Some(envelope.body);
                }
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// Says hello and proves it with the key of the disk. Gives the hub's last word: a welcome or a
    /// refusal.
    pub async fn shake(&mut self, hello: Hello, disk: &Disk) -> Option<FromHub> {
        self.say(FromRuntime::Hello(hello.clone())).await;
        match self.hear().await? {
            FromHub::Challenge(challenge) => {
                let signature = disk.sign(&challenge.signed_bytes(&hello));
                self.say(FromRuntime::Proof(ChallengeProof { signature })).await;
                self.hear().await
            }
            other => Some(other),
        }
    }
}

/// A report of a machine that is well.
#[must_use]
pub fn health() -> HealthReport {
    HealthReport {
        cpus: 2,
        load: 0.1,
        memory_total: ByteSize::from_gib(4),
        memory_used: ByteSize::from_gib(1),
        disk_total: ByteSize::from_gib(40),
        disk_used: ByteSize::from_gib(4),
        uptime_secs: 60,
        runtime_memory: ByteSize::from_mib(8),
        tasks: 0,
        streams: 0,
        terminals: Vec::new(),
        services: BTreeMap::new(),
    }
}

/// How the runtime of a machine behaves, and what it was told and did, through all of its starts.
#[derive(Debug, Clone, Default)]
pub struct Inside {
    /// Whether tasks and processes go on. Else each does at once what it has to.
    pub holds: bool,
    /// The exit code of tasks.
    pub code: i32,
    /// What it tells of its services.
    pub services: BTreeMap<ServiceName, ServiceReport>,
    /// What it tells of its configuration.
    pub problems: Vec<String>,
    /// What it works with: kept while it runs, and not on its disk.
    pub configuration: Option<Configuration>,
    /// The tasks that it began, each with what it worked with then.
    pub began: Vec<(Job, Option<Configuration>)>,
    /// The boot of its machine.
    boot: Option<BootId>,
    /// What was laid into its machine, and not read yet.
    pub challenge: Option<Secret>,
    /// What it knows of attempts.
    journal: BTreeMap<TaskRef, Entry>,
}

/// What a runtime knows of an attempt.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// How it ended; nothing while it has not.
    end: Option<TaskOutcome>,
    /// The stream of its output in the present session, once the hub has said which.
    stream: Option<Option<u32>>,
    /// Whether its end was told in the present session.
    told: bool,
    /// Whether the hub has stored its end.
    settled: bool,
}

impl Inside {
    fn configured(&self) -> FromRuntime {
        let digest = self.configuration.as_ref().map(|configuration| configuration.digest.clone());
        FromRuntime::Configured(Configured { digest, problems: self.problems.clone() })
    }

    /// Another start of the program: what it kept in memory is gone, and what ran has been cut off.
    fn starts_anew(&mut self) {
        self.configuration = None;
        self.journal.values_mut().for_each(|entry| entry.end = entry.end.take().or(Some(TaskOutcome::Interrupted)));
    }

    /// The boot of its machine.
    pub fn boot(&mut self) -> BootId {
        *self.boot.get_or_insert_with(BootId::generate)
    }

    /// Where it runs.
    fn evidence(&mut self, question: &Verify, session: SessionId, system: &MachineId) -> Evidence {
        let challenge = self.challenge.take_if(|challenge| challenge.digest() == question.challenge);
        Evidence::new(question, challenge.as_ref(), session, Some(system.digest()), Some(self.boot()))
    }

    /// What a new session has to be told: every attempt that is not settled.
    fn unsettled(&mut self) -> Vec<FromRuntime> {
        let open = self.journal.iter_mut().filter(|(_, entry)| !entry.settled);
        open.map(|(task, entry)| {
            (entry.stream, entry.told) = (None, false);
            FromRuntime::TaskStarted(*task)
        })
        .collect()
    }

    /// An attempt was ordered: it begins, unless it is known.
    fn order(&mut self, order: TaskOrder) -> FromRuntime {
        let TaskOrder { task, job, stream, .. } = order;
        if !self.journal.contains_key(&task) {
            self.began.push((job, self.configuration.clone()));
        }
        self.follow(task, Some(stream));
        FromRuntime::TaskStarted(task)
    }

    /// The hub has said on which stream it follows an attempt.
    fn follow(&mut self, task: TaskRef, stream: Option<u32>) {
        let entry = self.journal.entry(task).or_default();
        (entry.stream, entry.told) = (Some(stream), false);
    }

    /// The hub has stored the end of an attempt.
    fn settle(&mut self, task: TaskRef) {
        if let Some(entry) = self.journal.get_mut(&task) {
            entry.settled = true;
        }
    }

    /// The hub wants an attempt no more.
    fn cancel(&mut self, task: TaskRef) {
        if let Some(entry) = self.journal.get_mut(&task) {
            entry.end.get_or_insert(TaskOutcome::Canceled);
        }
    }

    /// The attempts whose end is to be told now, each with the stream of its output.
    fn finish(&mut self) -> Vec<(TaskEnded, Option<u32>)> {
        let (holds, code) = (self.holds, self.code);
        let over = self.journal.iter_mut().filter(|(_, entry)| !entry.told && (!holds || entry.end.is_some()));
        over.filter_map(|(task, entry)| {
            let stream = entry.stream?;
            let outcome = entry.end.get_or_insert(TaskOutcome::Exited { code }).clone();
            entry.told = true;
            Some((TaskEnded { task: *task, outcome, report: Report::default() }, stream))
        })
        .collect()
    }
}

/// The runtimes in a fake's machines.
#[derive(Clone, Default)]
pub struct Runtimes {
    machines: Arc<Mutex<BTreeMap<InstanceName, Machine>>>,
}

struct Machine {
    disk: Disk,
    inside: watch::Sender<Inside>,
    process: AbortHandle,
}

impl Runtimes {
    /// Runtimes in all machines that this fake brings up from now on.
    #[must_use]
    pub fn of(fake: &Fake) -> Self {
        let runtimes = Self::default();
        let (up, down) = (runtimes.clone(), runtimes.clone());
        fake.on_up(Arc::new(move |seed| up.up(seed)));
        fake.on_down(Arc::new(move |instance| down.stop(instance.as_str())));
        runtimes
    }

    /// Gives the fake a way into its machines, past their runtimes.
    pub fn let_in(&self, fake: &Fake) {
        let (challenged, reseeded) = (self.clone(), self.clone());
        let challenge = move |instance: &InstanceName, challenge: &Secret| {
            challenged.machine(instance.as_str(), |machine| {
                let mut boot_id = None;
                machine.inside.send_if_modified(|inside| {
                    inside.challenge = Some(challenge.clone());
                    boot_id = Some(inside.boot());
                    false
                });
                Witness {
                    nonce: Some(machine.disk.seed.nonce.clone()),
                    machine_id: Some(machine.disk.system.clone()),
                    boot_id: boot_id.expect("the change was made"),
                    hypervisor: Some("kvm".to_owned()),
                }
            })
        };
        fake.lets_in(Arc::new(challenge), Arc::new(move |seed| reseeded.reseed(seed)));
    }

    /// A machine that runs has another seed: its runtime joins with it, and with another key.
    fn reseed(&self, seed: &Seed) {
        let instance = seed.fleet.instance_of(&seed.agent).expect("the controller has named it so");
        self.machine(instance.as_str(), |machine| {
            machine.process.abort();
            (machine.disk.seed, machine.disk.key) = (seed.clone(), a_key());
            machine.process = tokio::spawn(live(machine.disk.clone(), machine.inside.clone())).abort_handle();
        });
    }

    /// The disk of a machine as it is now.
    ///
    /// # Panics
    /// When there never was such a machine.
    #[must_use]
    pub fn disk(&self, instance: &str) -> Disk {
        self.machine(instance, |machine| machine.disk.clone())
    }

    /// The runtime of a machine as it is now.
    ///
    /// # Panics
    /// When there never was such a machine.
    #[must_use]
    pub fn inside(&self, instance: &str) -> Inside {
        self.machine(instance, |machine| machine.inside.borrow().clone())
    }

    /// Has the runtime of a machine be otherwise from now on.
    ///
    /// # Panics
    /// When there never was such a machine.
    pub fn change(&self, instance: &str, change: impl FnOnce(&mut Inside)) {
        self.machine(instance, |machine| machine.inside.send_modify(change));
    }

    /// Ends the runtime in a machine, which itself goes on.
    pub fn stop(&self, instance: &str) {
        if let Some(machine) = self.lock().get(&name(instance)) {
            machine.process.abort();
        }
    }

    /// Starts the runtime in a machine again.
    ///
    /// # Panics
    /// When there never was such a machine.
    pub fn start(&self, instance: &str) {
        self.machine(instance, |machine| {
            machine.process.abort();
            machine.disk.boot = machine.disk.boot.next();
            machine.boot();
        });
    }

    /// A machine comes up: with the disk that it had, or with a new one when it is another.
    pub fn up(&self, seed: &Seed) {
        let instance = seed.fleet.instance_of(&seed.agent).expect("the controller has named it so");
        let mut machines = self.lock();
        match machines.get_mut(&instance) {
            Some(known) if known.disk.seed.nonce == seed.nonce => {
                known.process.abort();
                known.disk = Disk { seed: seed.clone(), boot: known.disk.boot.next(), ..known.disk.clone() };
                known.boot();
            }
            _ => {
                let (disk, inside) = (Disk::new(seed.clone()), watch::Sender::default());
                let process = tokio::spawn(live(disk.clone(), inside.clone())).abort_handle();
                machines.insert(instance, Machine { disk, inside, process });
            }
        }
    }

    fn machine<T>(&self, instance: &str, look: impl FnOnce(&mut Machine) -> T) -> T {
        look(self.lock().get_mut(&name(instance)).expect("the test means a machine that came up"))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceName, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    fn boot(&mut self) {
        self.inside.send_modify(Inside::starts_anew);
        self.process = tokio::spawn(live(self.disk.clone(), self.inside.clone())).abort_handle();
    }
}

fn name(instance: &str) -> InstanceName {
    instance.parse().expect("the test gives a valid name")
}

/// The life of a runtime: it connects again and again until it is refused for good.
async fn live(disk: Disk, inside: watch::Sender<Inside>) {
    loop {
        if let Ok(mut peer) = Peer::connect(disk.hub(), disk.seed.agent.clone()).await {
            match peer.shake(disk.hello(), &disk).await {
                Some(FromHub::Welcome(welcome)) => {
                    let system = &disk.system;
                    Session { peer: &mut peer, inside: &inside, id: welcome.session, system }.serve(welcome).await;
                }
                Some(FromHub::Refused(refused)) if !refused.retry => return,
                _ => {}
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// One session of a runtime.
struct Session<'a> {
    peer: &'a mut Peer,
    inside: &'a watch::Sender<Inside>,
    id: SessionId,
    system: &'a MachineId,
}

impl Session<'_> {
    /// Goes on until the hub ends it.
    async fn serve(&mut self, welcome: Welcome) {
        let mut heartbeats = tokio::time::interval(Duration::from_millis(welcome.heartbeat_ms));
        let mut changes = self.inside.subscribe();
        let mut held = Vec::new();
        if let Some(configuration) = welcome.configuration {
            self.change(|inside| inside.configuration = Some(configuration));
        }
        self.tell().await;
        for word in self.change(Inside::unsettled) {
            self.peer.say(word).await;
        }
        loop {
            tokio::select! {
                _ = heartbeats.tick() => self.report().await,
                // A test wants it otherwise: what follows from that is said at once.
                _ = changes.changed() => {
                    let ends = self.change(Inside::finish);
                    self.report().await;
                    self.tell().await;
                    self.end(ends).await;
                    if !changes.borrow_and_update().holds {
                        for open in held.drain(..) {
                            self.echo(open).await;
                        }
                    }
                }
                heard = self.peer.hear() => match heard {
                    None => return,
                    Some(FromHub::StreamOpen(open)) => {
                        let stream = open.stream;
                        self.peer.say(FromRuntime::StreamOpened(StreamOpened { stream, offset: 0 })).await;
                        if changes.borrow().holds { held.push(open) } else { self.echo(open).await }
                    }
                    Some(FromHub::StreamClose(StreamRef { stream })) => held.retain(|open| open.stream != stream),
                    Some(message) => self.answer(message).await,
                },
            }
        }
    }

    /// Changes what is inside without being told of it as of a test's wish.
    fn change<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        let mut answer = None;
        self.inside.send_if_modified(|inside| {
            answer = Some(change(inside));
            false
        });
        answer.expect("the change was made")
    }

    async fn tell(&mut self) {
        let configured = self.inside.borrow().configured();
        self.peer.say(configured).await;
    }

    async fn report(&mut self) {
        let services = self.inside.borrow().services.clone();
        self.peer.say(FromRuntime::Health(HealthReport { services, ..health() })).await;
    }

    /// Tells how attempts ended, each after its output, of which there is none.
    async fn end(&mut self, ends: Vec<(TaskEnded, Option<u32>)>) {
        for (ended, stream) in ends {
            for channel in [Channel::Stdout, Channel::Stderr].into_iter().filter(|_| stream.is_some()) {
                let stream = stream.unwrap_or_default();
                self.peer.send(&Frame { stream, channel, offset: 0, end: true, data: Bytes::new() }).await;
            }
            self.peer.say(FromRuntime::TaskEnded(ended)).await;
        }
    }

    async fn answer(&mut self, message: FromHub) {
        match message {
            FromHub::Configure(configuration) => {
                self.change(|inside| inside.configuration = Some(configuration));
                self.tell().await;
            }
            FromHub::Task(order) => {
                let (began, ends) = self.change(|inside| (inside.order(order), inside.finish()));
                self.peer.say(began).await;
                self.end(ends).await;
            }
            FromHub::TaskFollow(TaskFollow { task, stream, .. }) => {
                let ends = self.change(|inside| {
                    inside.follow(task, stream);
                    inside.finish()
                });
                self.end(ends).await;
            }
            FromHub::TaskCancel(task) => {
                let ends = self.change(|inside| {
                    inside.cancel(task);
                    inside.finish()
                });
                self.end(ends).await;
            }
            FromHub::TaskAck(task) => self.change(|inside| inside.settle(task)),
            FromHub::Verify(question) => {
                let evidence = self.change(|inside| inside.evidence(&question, self.id, self.system));
                self.peer.say(FromRuntime::Evidence(evidence)).await;
            }
            _ => {}
        }
    }

    /// A process that says what it was called with.
    async fn echo(&mut self, open: StreamOpen) {
        let stream = open.stream;
        let said = match open.target {
            StreamTarget::Run { run } | StreamTarget::Terminal { run, .. } => run.argv.join(" "),
            StreamTarget::Attach { .. }
            | StreamTarget::Upload { .. }
            | StreamTarget::Download { .. }
            | StreamTarget::Connect { .. } => String::new(),
        };
        for (channel, data) in [(Channel::Stdout, said), (Channel::Stderr, String::new())] {
            self.peer.send(&Frame { stream, channel, offset: 0, end: true, data: data.into() }).await;
        }
        self.peer.say(FromRuntime::StreamEnded(StreamEnded { stream, outcome: TaskOutcome::Exited { code: 0 } })).await;
    }
}

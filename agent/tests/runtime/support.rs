//! A small hub by hand, and a runtime as a real process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::{SinkExt, StreamExt};
use jiff::Timestamp;
use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};
use vm_agent_schemas::guest::CHALLENGE_VARIABLE;
use vm_agent_schemas::ids::{Digest, Epoch, Incarnation, MessageId, Nonce, Secret, SessionId, TaskId};
use vm_agent_schemas::layout::SEED_FILE;
use vm_agent_schemas::task::Job;
use vm_agent_schemas::wire::{
    Address, Challenge, Channel, Configuration, Envelope, Frame, FromHub, FromRuntime, Hello, Run, Seed, StreamOpen,
    StreamTaken, StreamTarget, TaskEnded, TaskFollow, TaskOrder, TaskOutcome, TaskRef, Welcome,
};

/// Longer than anything here takes, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Waits for something that must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// Looks again and again until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A listening hub.
pub(crate) struct Hub {
    listener: TcpListener,
    tls: Option<(TlsAcceptor, Digest)>,
    /// What `welcome` carries.
    pub(crate) configuration: Option<Configuration>,
    pub(crate) heartbeat_ms: u64,
}

impl Hub {
    pub(crate) async fn plain() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, tls: None, configuration: Some(Configuration::default()), heartbeat_ms: 30_000 }
    }

    pub(crate) async fn encrypted() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["hub".to_owned()]).unwrap();
        let pin = Digest::of(made.cert.der());
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Self { tls: Some((TlsAcceptor::from(Arc::new(config)), pin)), ..Self::plain().await }
    }

    pub(crate) fn pin(&self) -> Option<Digest> {
        self.tls.as_ref().map(|(_, pin)| pin.clone())
    }

    /// Writes a seed that leads to this hub.
    pub(crate) fn seed(&self, folder: &Path, pin: Option<Digest>) -> Seed {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        let seed = Seed {
            fleet: "default".parse().unwrap(),
            agent: "web".parse().unwrap(),
            incarnation: Incarnation(1),
            nonce: Nonce::generate(),
            hub: format!("{scheme}://{}/v1/runtime", self.listener.local_addr().unwrap()),
            hub_pin: pin,
            join_token: Secret::generate(),
        };
        write_seed(folder, &seed);
        seed
    }

    /// A connection up to the WebSocket; an error when TLS or WebSocket fail.
    pub(crate) async fn accept(&self) -> Result<Session, String> {
        let (tcp, _) = soon("a connection", self.listener.accept()).await.unwrap();
        let transport: Box<dyn Transport> = match &self.tls {
            Some((tls, _)) => Box::new(tls.accept(tcp).await.map_err(|error| error.to_string())?),
            None => Box::new(tcp),
        };
        let socket = accept_async(transport).await.map_err(|error| error.to_string())?;
        Ok(Session { socket, id: SessionId::generate(), heading: None })
    }

    /// A session with its handshake done and the signature verified.
    pub(crate) async fn session(&self) -> (Session, Hello) {
        let mut session = self.accept().await.unwrap();
        let FromRuntime::Hello(hello) = session.hear().await else { panic!("hello comes first") };
        let challenge = Challenge { challenge: Nonce::generate() };
        session.say(FromHub::Challenge(challenge.clone())).await;
        let FromRuntime::Proof(proof) = session.hear().await else { panic!("proof comes second") };
        let key = URL_SAFE_NO_PAD.decode(&hello.public_key).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(proof.signature).unwrap();
        let verified = UnparsedPublicKey::new(&ED25519, key).verify(&challenge.signed_bytes(&hello), &signature);
        assert!(verified.is_ok(), "the signature fits");
        session.id = SessionId::generate();
        session
            .say(FromHub::Welcome(Welcome {
                protocol: 1,
                session: session.id,
                epoch: Epoch(1),
                heartbeat_ms: self.heartbeat_ms,
                configuration: self.configuration.clone(),
            }))
            .await;
        (session, hello)
    }
}

pub(crate) fn write_seed(folder: &Path, seed: &Seed) {
    std::fs::write(folder.join(SEED_FILE), serde_json::to_vec(seed).unwrap()).unwrap();
}

/// The hub's end of a connection.
pub(crate) struct Session {
    pub(crate) socket: WebSocketStream<Box<dyn Transport>>,
    /// What the runtime was told that it is called.
    pub(crate) id: SessionId,
    /// Id and receiver of the last message.
    pub(crate) heading: Option<(MessageId, Address)>,
}

/// What comes from a runtime.
#[derive(Debug)]
pub(crate) enum Heard {
    Said(FromRuntime),
    Data(Frame),
}

impl Session {
    pub(crate) async fn say(&mut self, body: FromHub) {
        let to = Address::Agent("web".parse().unwrap());
        let envelope = Envelope::new(Address::Host, to, Timestamp::now(), body);
        self.socket.send(Message::text(serde_json::to_string(&envelope).unwrap())).await.unwrap();
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        self.socket.send(Message::Binary(frame.encode())).await.unwrap();
    }

    /// Whatever comes next; nothing when the connection is over.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        loop {
            return match soon("a message", self.socket.next()).await? {
                Ok(Message::Text(text)) => {
                    let envelope: Envelope<FromRuntime> = serde_json::from_str(&text).unwrap();
                    assert_eq!(envelope.from, Address::Agent("web".parse().unwrap()));
                    self.heading = Some((envelope.id, envelope.to));
                    Some(Heard::Said(envelope.body))
                }
                Ok(Message::Binary(bytes)) => Some(Heard::Data(Frame::decode(&bytes).unwrap())),
                Ok(Message::Close(_)) | Err(_) => None,
                Ok(_) => continue,
            };
        }
    }

    /// The next message that is not about health or the log.
    pub(crate) async fn hear(&mut self) -> FromRuntime {
        loop {
            match self.next().await.expect("the connection lives") {
                Heard::Said(FromRuntime::Health(_) | FromRuntime::Log(_)) | Heard::Data(_) => {}
                Heard::Said(said) => return said,
            }
        }
    }

    /// The first message that `want` makes something of. Others are dropped.
    pub(crate) async fn hear_that<T>(&mut self, mut want: impl FnMut(FromRuntime) -> Option<T>) -> T {
        loop {
            if let Heard::Said(said) = self.next().await.expect("the connection lives")
                && let Some(wanted) = want(said)
            {
                return wanted;
            }
        }
    }

    pub(crate) async fn open(&mut self, stream: u32, line: &str, stdin: bool) {
        self.say(FromHub::StreamOpen(StreamOpen { stream, target: StreamTarget::Run { run: shell(line) }, stdin }))
            .await;
    }

    /// What a stream's process writes until it has ended, taken at once, and how it ended. Checks that
    /// every channel arrives in order and ends exactly once.
    pub(crate) async fn follow(&mut self, stream: u32) -> Followed {
        let mut output: BTreeMap<Channel, Vec<u8>> = BTreeMap::new();
        let mut ended = Vec::new();
        let outcome: TaskOutcome = loop {
            match self.next().await.expect("the connection lives") {
                Heard::Data(frame) => {
                    assert_eq!(frame.stream, stream);
                    let channel = output.entry(frame.channel).or_default();
                    assert_eq!(frame.offset, channel.len() as u64, "data arrives in order");
                    assert!(!ended.contains(&frame.channel), "nothing comes after the end");
                    assert!(frame.end || !frame.data.is_empty());
                    channel.extend_from_slice(&frame.data);
                    let offset = channel.len() as u64;
                    if frame.end {
                        ended.push(frame.channel);
                    }
                    self.say(FromHub::StreamTaken(StreamTaken { stream, channel: frame.channel, offset })).await;
                }
                Heard::Said(FromRuntime::StreamEnded(end)) if end.stream == stream => break end.outcome,
                Heard::Said(_) => {}
            }
        };
        ended.sort();
        Followed {
            stdout: output.remove(&Channel::Stdout).unwrap_or_default(),
            stderr: output.remove(&Channel::Stderr).unwrap_or_default(),
            ended,
            outcome,
        }
    }
}

/// What came of a stream.
pub(crate) struct Followed {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) ended: Vec<Channel>,
    pub(crate) outcome: vm_agent_schemas::wire::TaskOutcome,
}

pub(crate) fn shell(line: &str) -> Run {
    Run { argv: ["sh", "-c", line].map(str::to_owned).to_vec(), ..Run::default() }
}

pub(crate) fn order(line: &str, stream: u32) -> TaskOrder {
    job(Job::exec(["sh", "-c", line]), stream)
}

pub(crate) fn job(job: Job, stream: u32) -> TaskOrder {
    let task = TaskRef { task: TaskId::generate(), attempt: 1 };
    TaskOrder { task, stream, job, timeout_ms: 60_000 }
}

/// The hub's record of one attempt: what came of its output, and its end.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Kept {
    /// What came of stdout: where each unbroken range begins, and what is in it.
    pub(crate) stdout: Vec<(u64, Vec<u8>)>,
    /// The same of stderr.
    pub(crate) stderr: Vec<(u64, Vec<u8>)>,
    /// The channels that have ended, and where.
    pub(crate) ended: BTreeMap<Channel, u64>,
    pub(crate) end: Option<TaskEnded>,
}

impl Kept {
    /// How far a channel is known.
    pub(crate) fn known(&self, channel: Channel) -> u64 {
        let ranges = if channel == Channel::Stderr { &self.stderr } else { &self.stdout };
        ranges.last().map_or(0, |(start, range)| start + range.len() as u64)
    }

    /// All of stdout, where nothing was left out.
    pub(crate) fn text(&self) -> String {
        match self.stdout.as_slice() {
            [] => String::new(),
            [(0, text)] => String::from_utf8(text.clone()).unwrap(),
            gaps => panic!("{} ranges", gaps.len()),
        }
    }

    /// All of stderr.
    pub(crate) fn errors(&self) -> String {
        String::from_utf8(self.stderr.iter().flat_map(|(_, text)| text.clone()).collect()).unwrap()
    }

    pub(crate) fn outcome(&self) -> &TaskOutcome {
        &self.end.as_ref().unwrap().outcome
    }

    /// Takes a frame in, as a hub would: in order, within the window, and nothing after the end.
    fn take(&mut self, frame: &Frame) {
        assert!(!self.ended.contains_key(&frame.channel), "nothing comes after the end");
        assert!(frame.end || !frame.data.is_empty());
        let known = self.known(frame.channel);
        assert!(frame.offset >= known, "no byte comes twice");
        let end = frame.offset + frame.data.len() as u64;
        if frame.end {
            self.ended.insert(frame.channel, end);
        }
        let ranges = if frame.channel == Channel::Stderr { &mut self.stderr } else { &mut self.stdout };
        match ranges.last_mut() {
            _ if frame.data.is_empty() => {}
            Some((_, range)) if frame.offset == known => range.extend_from_slice(&frame.data),
            _ => ranges.push((frame.offset, frame.data.to_vec())),
        }
    }
}

impl Session {
    /// Orders a task and takes its output until its end.
    pub(crate) async fn run(&mut self, order: TaskOrder) -> Kept {
        let (task, stream) = (order.task, order.stream);
        self.say(FromHub::Task(order)).await;
        self.keep(task, stream, Kept::default(), |_| false).await
    }

    /// Takes output of an attempt until its end, or until `enough`.
    pub(crate) async fn keep(
        &mut self,
        task: TaskRef,
        stream: u32,
        mut kept: Kept,
        enough: impl Fn(&Kept) -> bool,
    ) -> Kept {
        while kept.end.is_none() && !enough(&kept) {
            match self.next().await.expect("the connection lives") {
                Heard::Data(frame) if frame.stream == stream => {
                    let (channel, offset) = (frame.channel, frame.offset + frame.data.len() as u64);
                    kept.take(&frame);
                    self.say(FromHub::StreamTaken(StreamTaken { stream, channel, offset })).await;
                }
                Heard::Said(FromRuntime::TaskEnded(end)) if end.task == task => {
                    let totals =
                        BTreeMap::from([(Channel::Stdout, end.report.stdout), (Channel::Stderr, end.report.stderr)]);
                    assert_eq!(kept.ended, totals, "both channels end where the report says");
                    kept.end = Some(end);
                }
                _ => {}
            }
        }
        kept
    }

    /// Asks for what is missing of an attempt, and takes it until the end.
    pub(crate) async fn catch_up(&mut self, task: TaskRef, stream: u32, kept: Kept) -> Kept {
        let (stdout, stderr) = (kept.known(Channel::Stdout), kept.known(Channel::Stderr));
        self.say(FromHub::TaskFollow(TaskFollow { task, stream: Some(stream), stdout, stderr })).await;
        let kept = Kept { ended: BTreeMap::new(), ..kept };
        self.keep(task, stream, kept, |_| false).await
    }
}

/// A runtime as a process of its own; it ends with this value, and so does what it started.
pub(crate) struct Runtime {
    pub(crate) child: Child,
    nonce: Nonce,
    /// What it writes to stderr, where that is kept.
    log: Option<std::thread::JoinHandle<String>>,
}

impl Runtime {
    pub(crate) fn start(folder: &Path, seed: &Seed) -> Self {
        Self::start_with(folder, seed, Stdio::inherit())
    }

    /// Where a challenge is looked for by the runtime of this folder.
    pub(crate) fn challenge(folder: &Path) -> PathBuf {
        folder.join("challenge")
    }

    /// Starts one of which [`Self::log`] tells what it said.
    pub(crate) fn start_logged(folder: &Path, seed: &Seed) -> Self {
        let mut runtime = Self::start_with(folder, seed, Stdio::piped());
        let stderr = runtime.child.stderr.take().unwrap();
        runtime.log = Some(std::thread::spawn(|| std::io::read_to_string(stderr).unwrap()));
        runtime
    }

    /// What it wrote to stderr, once it has ended.
    pub(crate) fn log(&mut self) -> String {
        self.log.take().unwrap().join().unwrap()
    }

    fn start_with(folder: &Path, seed: &Seed, stderr: Stdio) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_vm-agent-runtime"))
            .arg(folder)
            .env(CHALLENGE_VARIABLE, Self::challenge(folder))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { child, nonce: seed.nonce.clone(), log: None }
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to end, and waits until it has.
    pub(crate) async fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.end().await
    }

    /// Waits until it has ended.
    pub(crate) async fn end(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        until("the runtime's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// The processes that carry this instance's nonce.
    pub(crate) fn processes(&self) -> Vec<u32> {
        carriers(&self.nonce)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for process in carriers(&self.nonce) {
            if let Some(pid) = rustix::process::Pid::from_raw(process.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn carriers(nonce: &Nonce) -> Vec<u32> {
    let mark = format!("VM_AGENT_INSTANCE={nonce}");
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let environment = std::fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    })
    .collect()
}

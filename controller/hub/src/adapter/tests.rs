//! The hub over real sockets, with a runtime written by hand.

mod exchange;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring::default_provider, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message, http};
use tokio_tungstenite::{WebSocketStream, client_async};
use vm_agent_schemas::credential::{Credential, JoinToken};
use vm_agent_schemas::ids::{Boot, Digest, Epoch, Incarnation, Nonce, Secret, TaskId};
use vm_agent_schemas::task::{Job, Report, Task, TaskSource, TaskState, Terms};
use vm_agent_schemas::wire::{
    ChallengeProof, Channel, DATA_MAX, Frame, FromHub, FromRuntime, HUB_PATH, Hello, RefusalCode, Run, Signal,
    StreamEnded, StreamOpened, StreamTaken, TEXT_MAX, TaskEnded, TaskOutcome, TaskRef, WINDOW,
};

use super::door::Transport;
use super::*;
use vm_agent_schemas::wire::{Address, Envelope};

/// Far longer than anything here takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it should have happened by now")
}

/// A storage that keeps nothing, and can be made to wait or to fail.
struct Memory {
    records: Mutex<Vec<Record>>,
    /// Whether calls go on, and whether they fail.
    open: watch::Sender<bool>,
    failing: Mutex<bool>,
}

impl Storage for Memory {
    fn store(&self, records: Arc<Vec<Record>>) -> BoxFuture<'static, Result<(), String>> {
        if *self.failing.lock().unwrap() {
            return std::future::ready(Err("the disk is full".to_owned())).boxed();
        }
        self.records.lock().unwrap().extend(records.iter().cloned());
        let mut open = self.open.subscribe();
        async move { open.wait_for(|open| *open).await.map(|_| ()).map_err(|error| error.to_string()) }.boxed()
    }
}

struct Fixture {
    hub: HubHandle,
    notices: mpsc::Receiver<Notice>,
    storage: Arc<Memory>,
    pin: Digest,
    _dir: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let pin = identity.pin();
        let (notices, receiver) = mpsc::channel(1000);
        let storage =
            Arc::new(Memory { records: Mutex::default(), open: watch::Sender::new(true), failing: Mutex::new(false) });
        let options = Options {
            fleet: "default".parse().unwrap(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            heartbeat: Span::from_secs(30),
            identity,
            storage: storage.clone(),
            notices,
        };
        let hub = serve(options).await.unwrap();
        for agent in ["web", "db"] {
            hub.enroll(credential(agent), Some(Configuration::default()));
        }
        Self { hub, notices: receiver, storage, pin, _dir: dir }
    }

    /// Waits for a notice.
    async fn notice(&mut self, wanted: impl Fn(&Notice) -> bool) -> Notice {
        let found = async {
            loop {
                let notice = self.notices.recv().await.expect("the hub is there");
                if wanted(&notice) {
                    return notice;
                }
            }
        };
        soon(found).await
    }
}

fn credential(agent: &str) -> Credential {
    let expires_at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    Credential {
        agent: agent.parse().unwrap(),
        incarnation: Incarnation(1),
        nonce: Nonce::from_text("nonce"),
        join: Some(JoinToken { digest: Secret::from_text("token").digest(), expires_at }),
        binding: None,
        boot: Boot(0),
        epoch: Epoch(0),
    }
}

fn task(agent: &str) -> Task {
    let source = TaskSource::Request { author: "test".to_owned(), key: None };
    Task::new(
        TaskId::generate(),
        Some(agent.parse().unwrap()),
        source,
        Job::exec(["cat"]),
        Terms::default(),
        jiff::Timestamp::now(),
    )
}

fn target() -> StreamTarget {
    StreamTarget::Run { run: Run { argv: vec!["cat".to_owned()], ..Run::default() } }
}

type Socket = WebSocketStream<Box<dyn Transport>>;

/// A runtime written by hand.
struct Peer {
    agent: AgentName,
    socket: Socket,
}

impl Peer {
    async fn connect(fixture: &Fixture, agent: &str) -> Self {
        let tcp = TcpStream::connect(fixture.hub.local_addr()).await.unwrap();
        Self::upgrade(Box::new(tcp), agent).await.unwrap()
    }

    async fn upgrade(transport: Box<dyn Transport>, agent: &str) -> Result<Self, Error> {
        let (socket, _) = client_async(format!("ws://hub{HUB_PATH}"), transport).await?;
        Ok(Self { agent: agent.parse().unwrap(), socket })
    }

    /// A session of the runtime with the key of that byte.
    async fn joined(fixture: &Fixture, agent: &str, seed: u8) -> Self {
        let mut peer = Self::connect(fixture, agent).await;
        let answer = peer.shake(seed, b"machine").await;
        assert!(matches!(answer, FromHub::Welcome(_)), "{answer:?}");
        peer
    }

    async fn shake(&mut self, seed: u8, machine: &[u8]) -> FromHub {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        use ring::signature::KeyPair as _;
        let key = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let hello = Hello {
            protocol: (1, 1),
            fleet: "default".parse().unwrap(),
            agent: self.agent.clone(),
            incarnation: Incarnation(1),
            nonce: Nonce::from_text("nonce"),
            machine_id: Digest::of(machine),
            boot: Boot(1),
            public_key: URL_SAFE_NO_PAD.encode(key.public_key()),
            join_token: Some(Secret::from_text("token")),
            runtime_version: "0.1.0".to_owned(),
            abilities: std::collections::BTreeSet::new(),
        };
        self.say(FromRuntime::Hello(hello.clone())).await;
        match self.hear().await {
            FromHub::Challenge(challenge) => {
                let signature = URL_SAFE_NO_PAD.encode(key.sign(&challenge.signed_bytes(&hello)));
                self.say(FromRuntime::Proof(ChallengeProof { signature })).await;
                self.hear().await
            }
            other => other,
        }
    }

    async fn say(&mut self, body: FromRuntime) {
        let from = Address::Agent(self.agent.clone());
        let envelope = Envelope::new(from, Address::Host, jiff::Timestamp::now(), body);
        self.socket.send(Message::text(serde_json::to_string(&envelope).unwrap())).await.unwrap();
    }

    async fn next(&mut self) -> Option<Message> {
        soon(self.socket.next()).await?.ok()
    }

    async fn hear(&mut self) -> FromHub {
        match self.next().await {
            Some(Message::Text(text)) => serde_json::from_str::<Envelope<FromHub>>(&text).unwrap().body,
            other => panic!("no message: {other:?}"),
        }
    }

    async fn data(&mut self) -> Frame {
        match self.next().await {
            Some(Message::Binary(bytes)) => Frame::decode(&bytes).unwrap(),
            other => panic!("no data: {other:?}"),
        }
    }

    /// The code with which the hub refuses; then it closes the connection.
    async fn refusal(&mut self) -> RefusalCode {
        let FromHub::Refused(refused) = self.hear().await else { panic!("it should have been refused") };
        assert!(matches!(self.next().await, Some(Message::Close(_)) | None));
        assert!(self.next().await.is_none());
        refused.code
    }
}

#[tokio::test]
async fn a_runtime_joins_works_and_comes_back() {
    let mut fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    fixture.notice(|it| matches!(it, Notice::Joined { .. })).await;
    fixture.notice(|it| matches!(it, Notice::SessionOpened { .. })).await;
    let task = task("web");
    fixture.hub.submit(task.clone(), OutputKnown::default());
    let FromHub::Task(order) = peer.hear().await else { panic!("no order") };
    assert_eq!(order.task, TaskRef { task: task.id, attempt: 1 });
    peer.say(FromRuntime::TaskStarted(order.task)).await;
    fixture.notice(|it| matches!(it, Notice::TaskStarted(_))).await;
    drop(peer);
    fixture.notice(|it| matches!(it, Notice::SessionClosed { .. })).await;
    assert_eq!(fixture.hub.sessions().await, []);

    let mut peer = Peer::joined(&fixture, "web", 1).await;
    assert_eq!(fixture.hub.sessions().await[0].epoch, Epoch(2));
    let outcome = TaskOutcome::Exited { code: 0 };
    peer.say(FromRuntime::TaskEnded(TaskEnded { task: order.task, outcome, report: Report::default() })).await;
    assert_eq!(peer.hear().await, FromHub::TaskAck(order.task));
    let last = fixture.storage.records.lock().unwrap().last().cloned();
    assert!(matches!(last, Some(Record::Task(Task { state: TaskState::Ended { .. }, .. }))), "{last:?}");
}

#[tokio::test]
async fn a_stolen_key_on_another_machine_is_refused_and_the_session_in_place_lives() {
    let mut fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    let mut thief = Peer::connect(&fixture, "web").await;
    let FromHub::Refused(refused) = thief.shake(1, b"another machine").await else { panic!("the thief got in") };
    assert_eq!(refused.code, RefusalCode::Clone);
    let told = fixture.notice(|it| matches!(it, Notice::Refused { .. })).await;
    assert!(matches!(told, Notice::Refused { code: RefusalCode::Clone, agent: Some(_), .. }), "{told:?}");
    fixture.hub.submit(task("web"), OutputKnown::default());
    assert!(matches!(peer.hear().await, FromHub::Task(_)));
    assert_eq!(fixture.hub.sessions().await[0].epoch, Epoch(1));
}

#[tokio::test]
async fn a_newer_session_closes_the_older() {
    let fixture = Fixture::new().await;
    let mut older = Peer::joined(&fixture, "web", 1).await;
    let _newer = Peer::joined(&fixture, "web", 1).await;
    assert_eq!(older.refusal().await, RefusalCode::Superseded);
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_stored() {
    let fixture = Fixture::new().await;
    let mut db = Peer::joined(&fixture, "db", 2).await;
    fixture.storage.open.send_replace(false);
    let mut web = Peer::connect(&fixture, "web").await;
    let mut shaking = std::pin::pin!(web.shake(1, b"machine"));
    let mut sees_store = std::pin::pin!(async {
        while fixture.storage.records.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    });
    tokio::select! {
        answer = &mut shaking => panic!("too early: {answer:?}"),
        () = soon(&mut sees_store) => {}
    }
    assert_eq!(fixture.hub.sessions().await.len(), 1, "what is not stored does not count");
    assert!(shaking.as_mut().now_or_never().is_none(), "no welcome yet");
    fixture.hub.submit(task("db"), OutputKnown::default());
    fixture.storage.open.send_replace(true);
    assert!(matches!(soon(shaking).await, FromHub::Welcome(_)));
    assert!(matches!(db.hear().await, FromHub::Task(_)));
}

#[tokio::test]
async fn no_task_is_sent_before_it_is_stored_to_whom() {
    let fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    fixture.storage.open.send_replace(false);
    fixture.hub.submit(task("web"), OutputKnown::default());
    let mut hearing = std::pin::pin!(peer.hear());
    let is_sent = |record: &Record| {
        let Record::Task(task) = record else { return false };
        task.state == TaskState::Sent { incarnation: Incarnation(1) }
    };
    let sees_store = async {
        while !fixture.storage.records.lock().unwrap().iter().any(is_sent) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        early = &mut hearing => panic!("too early: {early:?}"),
        () = soon(sees_store) => {}
    }
    // The hub has done all that it does before the record is durable.
    assert_eq!(fixture.hub.sessions().await.len(), 1);
    assert!(hearing.as_mut().now_or_never().is_none(), "no task yet");
    fixture.storage.open.send_replace(true);
    assert!(matches!(soon(hearing).await, FromHub::Task(_)));
}

#[tokio::test]
async fn a_store_that_fails_closes_the_connection_and_the_runtime_comes_back() {
    let mut fixture = Fixture::new().await;
    let mut db = Peer::joined(&fixture, "db", 2).await;
    *fixture.storage.failing.lock().unwrap() = true;
    let mut web = Peer::connect(&fixture, "web").await;
    let FromHub::Refused(refused) = web.shake(1, b"machine").await else { panic!("it can't be welcome") };
    assert_eq!(refused.code, RefusalCode::Internal);
    let opened: AgentName = "web".parse().unwrap();
    let first = fixture.notice(|it| matches!(it, Notice::SessionOpened { agent, .. } | Notice::SessionClosed { agent, .. } if *agent == opened));
    let first = first.await;
    assert_eq!(close_code(&first), Some(RefusalCode::Internal), "it never counted as open: {first:?}");
    *fixture.storage.failing.lock().unwrap() = false;
    Peer::joined(&fixture, "web", 1).await;
    let opened = fixture.notice(|it| matches!(it, Notice::SessionOpened { .. })).await;
    assert!(matches!(opened, Notice::SessionOpened { epoch: Epoch(2), .. }), "{opened:?}");
    fixture.hub.submit(task("db"), OutputKnown::default());
    assert!(matches!(db.hear().await, FromHub::Task(_)), "the others felt nothing");
}

#[tokio::test]
async fn a_stream_carries_both_ways_and_ends() {
    let fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    let mut stream = fixture.hub.open_stream("web".parse().unwrap(), target(), true).await.unwrap();
    let FromHub::StreamOpen(open) = peer.hear().await else { panic!("no stream") };
    peer.say(FromRuntime::StreamOpened(StreamOpened { stream: open.stream, offset: 0 })).await;
    assert_eq!(stream.next().await, Some(StreamEvent::Opened { offset: 0 }));
    stream.send(0, true, "hello".into());
    let frame = peer.data().await;
    assert_eq!((frame.channel, frame.end, &frame.data[..]), (Channel::Stdin, true, &b"hello"[..]));
    let taken = StreamTaken { stream: open.stream, channel: Channel::Stdin, offset: 5 };
    peer.say(FromRuntime::StreamTaken(taken)).await;
    assert_eq!(stream.next().await, Some(StreamEvent::Taken { offset: 5 }));
    let echo = Frame { channel: Channel::Stdout, ..frame };
    peer.socket.send(Message::Binary(echo.encode())).await.unwrap();
    assert!(matches!(stream.next().await, Some(StreamEvent::Data { offset: 0, end: true, .. })));
    stream.taken(Channel::Stdout, 5);
    assert!(matches!(peer.hear().await, FromHub::StreamTaken(StreamTaken { offset: 5, .. })));
    stream.signal(Signal::Term);
    assert!(matches!(peer.hear().await, FromHub::StreamSignal(_)));
    let outcome = TaskOutcome::Exited { code: 0 };
    peer.say(FromRuntime::StreamEnded(StreamEnded { stream: open.stream, outcome: outcome.clone() })).await;
    assert_eq!(stream.next().await, Some(StreamEvent::Ended(outcome)));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_closed_and_one_whose_runtime_goes_is_lost() {
    let fixture = Fixture::new().await;
    let open = || fixture.hub.open_stream("web".parse().unwrap(), target(), true);
    assert_eq!(open().await.unwrap_err(), OpenError::Offline);
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    drop(open().await.unwrap());
    assert!(matches!(peer.hear().await, FromHub::StreamOpen(_)));
    assert!(matches!(peer.hear().await, FromHub::StreamClose(_)));
    let mut stream = open().await.unwrap();
    drop(peer);
    assert!(matches!(soon(stream.next()).await, Some(StreamEvent::Lost(_))));
    fixture.hub.shutdown().await;
    assert_eq!(open().await.unwrap_err(), OpenError::Shutdown);
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_closed_and_others_feel_nothing() {
    let mut fixture = Fixture::new().await;
    let _deaf = Peer::joined(&fixture, "web", 1).await;
    let mut other = Peer::joined(&fixture, "db", 2).await;
    // Far more than its queue and all buffers between hold.
    let fill = async {
        let mut streams = Vec::new();
        loop {
            match fixture.hub.open_stream("web".parse().unwrap(), target(), true).await {
                Ok(stream) => stream.send(0, false, vec![0; usize::try_from(WINDOW).unwrap()].into()),
                Err(error) => return assert_eq!(error, OpenError::Offline),
            }
            streams.push(());
            assert!(streams.len() < 1000, "nothing bounds the queue");
        }
    };
    // A stream that is dropped is closed; what was sent before stays queued.
    soon(fill).await;
    let closed = fixture.notice(|it| matches!(it, Notice::SessionClosed { .. })).await;
    assert_eq!(close_code(&closed), Some(RefusalCode::Flow), "{closed:?}");
    fixture.hub.submit(task("db"), OutputKnown::default());
    assert!(matches!(other.hear().await, FromHub::Task(_)));
}

/// Why a session was closed.
fn close_code(notice: &Notice) -> Option<RefusalCode> {
    match notice {
        Notice::SessionClosed { why: crate::state::CloseReason::Refused { code, .. }, .. } => Some(*code),
        _ => None,
    }
}

#[tokio::test]
async fn frames_that_are_too_large_or_none_are_refused() {
    let fixture = Fixture::new().await;
    let too_long = Message::text("x".repeat(TEXT_MAX + 1));
    let too_much = Message::binary(vec![0; vm_agent_schemas::wire::HEADER_LEN + DATA_MAX + 1]);
    for message in [too_long, too_much, Message::text("{}"), Message::binary(vec![1])] {
        let mut peer = Peer::connect(&fixture, "web").await;
        peer.socket.send(message).await.unwrap();
        let FromHub::Refused(refused) = peer.hear().await else { panic!("it should have been refused") };
        assert_eq!(refused.code, RefusalCode::Protocol);
    }
}

#[tokio::test]
async fn only_runtimes_and_only_one_path_are_served() {
    let fixture = Fixture::new().await;
    let request = |path: &str| format!("ws://hub{path}").into_client_request().unwrap();
    let mut browser = request(HUB_PATH);
    browser.headers_mut().insert("origin", http::HeaderValue::from_static("http://example.org"));
    let cases = [(request("/"), 404), (request("/v1/runtime/"), 404), (browser, 403)];
    for (request, status) in cases {
        let tcp = TcpStream::connect(fixture.hub.local_addr()).await.unwrap();
        match soon(client_async(request, tcp)).await {
            Err(Error::Http(response)) => assert_eq!(response.status().as_u16(), status),
            other => panic!("{other:?}"),
        }
    }
}

/// Trusts one certificate, by its digest.
#[derive(Debug)]
struct Pinned {
    pin: Digest,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Digest::of(end_entity) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("another certificate".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

async fn over_tls(fixture: &Fixture, pin: Digest) -> Result<Peer, Error> {
    let provider = Arc::new(default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin, algorithms }))
        .with_no_client_auth();
    let tcp = TcpStream::connect(fixture.hub.local_addr()).await?;
    let name = ServerName::try_from("any.name").unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    Peer::upgrade(Box::new(tls), "web").await
}

#[tokio::test]
async fn tls_is_served_on_the_same_port_and_the_pin_is_the_certificates() {
    let fixture = Fixture::new().await;
    let mut peer = soon(over_tls(&fixture, fixture.pin.clone())).await.unwrap();
    assert!(matches!(peer.shake(1, b"machine").await, FromHub::Welcome(_)));
    let wrong = soon(over_tls(&fixture, Digest::of(b"another"))).await;
    assert!(matches!(wrong, Err(Error::Io(_))));
}

#[tokio::test]
async fn going_down_tells_everyone_and_ends_in_time() {
    let fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    let mut silent = TcpStream::connect(fixture.hub.local_addr()).await.unwrap();
    silent.write_all(b"GE").await.unwrap();
    let ((), code) = soon(async { tokio::join!(fixture.hub.shutdown(), peer.refusal()) }).await;
    assert_eq!(code, RefusalCode::Shutdown);
    assert!(matches!(soon(silent.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert!(TcpStream::connect(fixture.hub.local_addr()).await.is_err());
    assert_eq!(fixture.hub.sessions().await, []);
}

#[tokio::test]
async fn a_slow_controller_loses_only_what_may_be_dropped() {
    let (sender, mut receiver) = mpsc::channel(1);
    let mut notices = notices::Notices::new(sender);
    let agent: AgentName = "web".parse().unwrap();
    let opened = |epoch| Notice::SessionOpened { agent: agent.clone(), epoch: Epoch(epoch) };
    let log = Notice::Log { agent: agent.clone(), lines: Vec::new(), dropped: 0 };
    for notice in [opened(1), log.clone(), opened(2), log, opened(3)] {
        notices.push(notice);
    }
    let mut received = Vec::new();
    let receive = async {
        for _ in 0..3 {
            received.push(receiver.recv().await.unwrap());
        }
    };
    soon(async { tokio::join!(receive, notices.finish()) }).await;
    assert_eq!(received, [opened(1), opened(2), opened(3)]);
    assert!(receiver.try_recv().is_err());
}

#[tokio::test]
async fn output_is_stored_and_told_and_gone_on_with_in_the_next_session() {
    let mut fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    fixture.hub.submit(task("web"), OutputKnown::default());
    let FromHub::Task(order) = peer.hear().await else { panic!("no order") };
    peer.say(FromRuntime::TaskStarted(order.task)).await;
    let frame = Frame { stream: order.stream, channel: Channel::Stdout, offset: 0, end: false, data: "hello".into() };
    peer.socket.send(Message::Binary(frame.encode())).await.unwrap();
    let told = fixture.notice(|it| matches!(it, Notice::TaskOutput { .. })).await;
    assert!(matches!(told, Notice::TaskOutput { offset: 0, .. }), "{told:?}");
    let last = fixture.storage.records.lock().unwrap().last().cloned();
    assert!(matches!(last, Some(Record::Output { offset: 0, .. })), "{last:?}");
    drop(peer);
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    peer.say(FromRuntime::TaskStarted(order.task)).await;
    let FromHub::TaskFollow(follow) = peer.hear().await else { panic!("nothing to follow") };
    assert_eq!((follow.task, follow.stdout, follow.stderr), (order.task, 5, 0));
}

#[tokio::test]
async fn a_canceled_task_ends_as_its_runtime_says() {
    let mut fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    let task = task("web");
    fixture.hub.submit(task.clone(), OutputKnown::default());
    let FromHub::Task(order) = peer.hear().await else { panic!("no order") };
    fixture.hub.cancel(task.id, "me".to_owned());
    assert_eq!(peer.hear().await, FromHub::TaskCancel(order.task));
    let (task, outcome, report) = (order.task, TaskOutcome::Canceled, Report::default());
    peer.say(FromRuntime::TaskEnded(TaskEnded { task, outcome, report })).await;
    let told = fixture.notice(|it| matches!(it, Notice::TaskEnded(_))).await;
    let Notice::TaskEnded(over) = told else { unreachable!() };
    assert_eq!((over.outcome(), over.canceled_by.as_deref()), (Some(&TaskOutcome::Canceled), Some("me")));
}

#[tokio::test]
async fn a_store_that_takes_its_time_holds_back_nobody_else() {
    let mut fixture = Fixture::new().await;
    let mut web = Peer::joined(&fixture, "web", 1).await;
    let mut db = Peer::joined(&fixture, "db", 2).await;
    fixture.storage.open.send_replace(false);
    fixture.hub.submit(task("web"), OutputKnown::default());
    let stream = fixture.hub.open_stream("db".parse().unwrap(), target(), false).await.unwrap();
    assert!(matches!(db.hear().await, FromHub::StreamOpen(_)), "what depends on no record is sent");
    drop(stream);
    assert!(matches!(db.hear().await, FromHub::StreamClose(_)));
    fixture.storage.open.send_replace(true);
    assert!(matches!(web.hear().await, FromHub::Task(_)));
    fixture.notice(|it| matches!(it, Notice::Activity { agent } if agent.as_str() == "web")).await;
}

/// What a connection takes while nothing happens on it, beside the buffers of the library.
#[tokio::test]
async fn a_connection_that_waits_is_small() {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream: Box<dyn Transport> = Box::new(TcpStream::connect(tcp.local_addr().unwrap()).await.unwrap());
    let role = tokio_tungstenite::tungstenite::protocol::Role::Server;
    let socket = WebSocketStream::from_raw_socket(stream, role, None).await;
    let (commands, _owner) = mpsc::unbounded_channel();
    let peer: std::net::SocketAddr = "127.0.0.1:1".parse().unwrap();
    let place = Crowd::new(commands.downgrade()).enter(peer.ip());
    let (inputs, _receiver) = mpsc::channel(1);
    let waiting = connection::run(socket, crate::state::ConnId(1), peer, jiff::Timestamp::now(), place, inputs);
    assert!(size_of_val(&waiting) <= 1536, "{} bytes", size_of_val(&waiting));
    let session = crate::state::session_size();
    assert!(session <= 1024, "{session} bytes");
}

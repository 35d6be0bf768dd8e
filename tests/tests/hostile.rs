//! Peers that want no good, on real sockets, and an honest runtime beside them: each is told why it is
//! refused, each is counted, and the honest one does its tasks meanwhile.
#![expect(clippy::unwrap_used, reason = "this is a test")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as RawFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use vm_agent_daemon::{Controller, Running};
use vm_agent_schemas::api::{ExecEvent, ExecRequest, ProblemCode, TaskRequest, TokenRequest};
use vm_agent_schemas::credential::Role;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::ids::TokenId;
use vm_agent_schemas::message::{BURST, Post, RefusedCode};
use vm_agent_schemas::task::{Job, Terms};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{
    Address, ChallengeProof, Channel, DATA_MAX, Envelope, Frame, FromHub, FromRuntime, HANDSHAKE_LIMIT, HUB_PATH,
    LogLines, RefusalCode, Run, StreamTarget, TEXT_MAX, TaskOutcome,
};
use vm_agent_tests::fleet_of_fakes::{Disk, Peer, Runtimes, health};
use vm_agent_tests::in_process::{PATIENCE, agent, ann, apply, events, http, qemu, settled, start_with, until};

const FILE: &str = "defaults: {driver: qemu}\nagents: {web: {}, db: {}}\n";

/// What is told of a session whose connection went away by itself.
const LOST: &str = "the connection to the runtime was lost";

/// A controller with the honest `db`, and with `web`, whose runtime is what a test makes of it.
struct Field {
    running: Running,
    runtimes: Runtimes,
    _folder: TempDir,
}

impl Field {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = qemu(Span::from_secs(60));
        let runtimes = Runtimes::of(&fake);
        let running = start_with(&folder.path().join("state"), &[&fake], None).await;
        apply(running.controller(), FILE).await;
        settled(running.controller(), FILE, &["web", "db"]).await;
        runtimes.stop("web");
        let field = Self { running, runtimes, _folder: folder };
        field.web_is_gone().await;
        field
    }

    fn controller(&self) -> &Controller {
        self.running.controller()
    }

    fn disk(&self) -> Disk {
        self.runtimes.disk("web")
    }

    async fn web_is_gone(&self) {
        let gone = async || agent(self.controller(), "web").await?.session.is_none().then_some(());
        until("`web` has no session", gone).await;
    }

    /// A connection as `web`, with a session.
    async fn session(&self) -> Peer {
        let disk = self.disk();
        let mut peer = Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap();
        let welcome = peer.shake(disk.hello(), &disk).await;
        assert!(matches!(welcome, Some(FromHub::Welcome(_))), "{welcome:?}");
        peer
    }

    /// The honest runtime does a task, from the request to its end.
    async fn round_trip(&self) {
        let request = TaskRequest { job: Job::exec(["true"]), terms: Terms::default(), id: None, key: None };
        let task = self.controller().submit_task(&"db".parse().unwrap(), request, &ann()).await.unwrap();
        let ended = async || self.controller().task(task.id).await.ok()?.outcome().cloned();
        assert_eq!(until("the honest task ends", ended).await, TaskOutcome::Exited { code: 0 });
    }

    /// Has something done again and again while the honest runtime does a task, and gives what it came to at
    /// last.
    async fn beside<T>(&self, attack: impl Future<Output = T>) -> T {
        let (outcome, ()) = tokio::join!(attack, self.round_trip());
        outcome
    }

    /// Waits until so many sessions of `web` are told to have been ended by the hub, and not just lost.
    async fn ended(&self, times: usize) {
        let told = async || {
            let events = events(self.controller()).await;
            let ended = events.iter().filter(|it| it.kind == EventKind::RuntimeLost && !it.message.contains(LOST));
            (ended.count() >= times).then_some(())
        };
        until(&format!("{times} ended sessions are told of"), told).await;
    }

    /// Waits until so many refusals are counted.
    async fn counted(&self, refusals: u64) {
        let counted = async || (self.controller().stats().await.ok()?.refusals >= refusals).then_some(());
        until(&format!("{refusals} refusals are counted"), counted).await;
        let metrics = self.controller().metrics().await.unwrap();
        assert!(metrics.contains("vmagent_hub_refusals_total{code="), "{metrics}");
    }

    /// A counter with a label, as it is told to Prometheus.
    async fn metric(&self, name: &str, label: &str) -> u64 {
        let metrics = self.controller().metrics().await.unwrap();
        let start = format!("{name}{{{label}}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&*start));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until so many connections were refused with that code, in a session or before it.
    async fn refused(&self, code: RefusalCode, times: u64) {
        let label = format!("code=\"{code}\"");
        let counted = async || (self.metric("vmagent_hub_refusals_total", &label).await >= times).then_some(());
        until(&format!("{times} refusals are counted as {code}"), counted).await;
    }

    async fn api(&self) -> SocketAddr {
        self.controller().status().await.unwrap().addresses.api
    }

    /// A token for the API.
    async fn token(&self, role: Role) -> (TokenId, String) {
        let request = TokenRequest { name: "hostile".to_owned(), role, lasting: None };
        let new = self.controller().create_token(request, &ann()).await.unwrap();
        (new.token.id, format!("Bearer {}", new.secret.expose()))
    }

    async fn end(self) {
        self.round_trip().await;
        self.running.shut_down().await;
    }
}

/// The code of the refusal that comes, past what came before it.
async fn refusal(peer: &mut Peer) -> RefusalCode {
    loop {
        match peer.hear().await {
            Some(FromHub::Refused(refused)) => {
                assert_eq!(peer.hear().await, None, "the connection is closed");
                return refused.code;
            }
            Some(_) => {}
            None => panic!("it should have been told why"),
        }
    }
}

/// Has a session of `web` do something, and gives the code with which it is refused.
async fn refused_for(field: &Field, attack: impl AsyncFnOnce(&mut Peer)) -> RefusalCode {
    field
        .beside(async {
            let mut peer = field.session().await;
            attack(&mut peer).await;
            refusal(&mut peer).await
        })
        .await
}

#[tokio::test]
async fn what_is_no_message_ends_the_session_and_is_counted() {
    let field = Field::new().await;
    let texts = ["", "{", "[]", "null", "\u{0}", "{\"type\":\"health\"}", &"[".repeat(10_000)];
    for (index, text) in texts.into_iter().enumerate() {
        let code = refused_for(&field, async |peer| peer.send_raw(Message::text(text)).await.unwrap()).await;
        assert_eq!(code, RefusalCode::Protocol, "{text:.20}");
        field.ended(index + 1).await;
    }
    for bytes in [&b""[..], b"short", &[0xFF; 20], &[0; 14 + DATA_MAX + 1]] {
        let code =
            refused_for(&field, async |peer| peer.send_raw(Message::binary(bytes.to_vec())).await.unwrap()).await;
        assert_eq!(code, RefusalCode::Protocol, "{} bytes", bytes.len());
    }
    field.refused(RefusalCode::Protocol, 11).await;
    field.end().await;
}

#[tokio::test]
async fn a_frame_that_is_too_large_is_refused_before_it_has_come() {
    let field = Field::new().await;
    let huge = "x".repeat(8 * TEXT_MAX);
    let code = refused_for(&field, async |peer| {
        // The hub may close before all of it was written.
        let _ = peer.send_raw(Message::text(huge)).await;
    })
    .await;
    assert_eq!(code, RefusalCode::Protocol);
    field.ended(1).await;
    field.end().await;
}

#[tokio::test]
async fn a_message_in_fragments_without_end_is_refused_at_the_size_of_one_message() {
    let field = Field::new().await;
    let code = refused_for(&field, async |peer| {
        let (piece, mut opcode, mut sent) = (vec![b'x'; 1024], OpCode::Data(Data::Text), 0);
        loop {
            let frame = RawFrame::message(piece.clone(), opcode, false);
            if peer.send_raw(Message::Frame(frame)).await.is_err() || sent > 4 * TEXT_MAX {
                return;
            }
            (opcode, sent) = (OpCode::Data(Data::Continue), sent + piece.len());
        }
    })
    .await;
    assert_eq!(code, RefusalCode::Protocol);
    field.ended(1).await;
    field.end().await;
}

#[tokio::test]
async fn a_flood_of_health_and_log_keeps_nobody_else_waiting() {
    let field = Field::new().await;
    let mut peer = field.session().await;
    let lines = LogLines { lines: vec!["x".repeat(1000); 64], dropped: 0 };
    let flood = async {
        loop {
            peer.say(FromRuntime::Health(health())).await;
            peer.say(FromRuntime::Log(lines.clone())).await;
        }
    };
    tokio::select! {
        () = flood => unreachable!("it goes on for ever"),
        () = async { for _ in 0..20 { field.round_trip().await } } => {}
    }
    drop(peer);
    let log = async || {
        let lines = field.controller().log(&"web".parse().unwrap(), 1000, None).await.ok()?;
        lines.iter().any(|line| line.contains("lines are missing here")).then_some(())
    };
    until("it is told how much of the log was left out", log).await;
    field.end().await;
}

#[tokio::test]
async fn a_flood_of_messages_is_refused_by_rate_and_the_session_lives() {
    let field = Field::new().await;
    let flood = async {
        let mut peer = field.session().await;
        for _ in 0..BURST + 50 {
            let post = Post { subject: "flood".to_owned(), body: 1.into(), in_reply_to: None, ttl_ms: None };
            peer.say(FromRuntime::Message(post)).await;
        }
        let (mut accepted, mut refused) = (0, 0);
        while accepted + refused < BURST + 50 {
            match peer.hear().await.expect("the session lives") {
                FromHub::MessageAccepted(_) => accepted += 1,
                FromHub::MessageRefused(it) => {
                    assert_eq!(it.code, RefusedCode::Rate);
                    refused += 1;
                }
                _ => {}
            }
        }
        (accepted, refused)
    };
    let (accepted, refused) = field.beside(flood).await;
    assert!(accepted >= BURST, "{accepted} accepted");
    assert!(refused > 0, "the bucket is empty some time");
    assert_eq!(field.controller().stats().await.unwrap().refusals, 0);
    field.end().await;
}

#[tokio::test]
async fn a_message_in_the_name_of_another_ends_the_session() {
    let field = Field::new().await;
    for name in ["db", "host", "broadcast", "nobody"] {
        let code = refused_for(&field, async |peer| {
            let from = Address::try_from(name.to_owned()).unwrap();
            let envelope = Envelope::new(from, Address::Host, jiff::Timestamp::now(), FromRuntime::Health(health()));
            peer.send_raw(Message::text(serde_json::to_string(&envelope).unwrap())).await.unwrap();
        })
        .await;
        assert_eq!(code, RefusalCode::Impersonation, "{name}");
    }
    field.ended(4).await;
    field.refused(RefusalCode::Impersonation, 4).await;
    assert!(agent(field.controller(), "db").await.unwrap().session.is_some(), "the one it spoke for has a session");
    field.end().await;
}

#[tokio::test]
async fn data_for_streams_that_are_not_there_ends_the_session() {
    let field = Field::new().await;
    for (stream, channel) in [(0, Channel::Stdout), (1, Channel::Stderr), (u32::MAX, Channel::Stdin)] {
        let frame = Frame { stream, channel, offset: 0, end: false, data: "x".into() };
        let code = refused_for(&field, async |peer| peer.send(&frame).await).await;
        assert_eq!(code, RefusalCode::Protocol, "stream {stream}");
    }
    field.ended(3).await;
    field.end().await;
}

#[tokio::test]
async fn versions_without_a_common_one_and_replayed_proofs_and_tokens_are_refused_by_their_names() {
    let field = Field::new().await;
    let disk = field.disk();
    let connect = async || Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap();

    for versions in [(0, 0), (2, 9), (9, 1), (u32::MAX, u32::MAX)] {
        let mut hello = disk.hello();
        hello.protocol = versions;
        let answer = connect().await.shake(hello, &disk).await;
        assert!(matches!(&answer, Some(FromHub::Refused(it)) if it.code == RefusalCode::Version), "{answer:?}");
    }

    let thief = Disk::new(disk.seed.clone());
    let answer = field.beside(async { connect().await.shake(thief.hello(), &thief).await }).await;
    assert!(matches!(&answer, Some(FromHub::Refused(it)) if it.code == RefusalCode::Credential), "{answer:?}");

    // A proof that was good for one connection is none on another.
    let proof = |challenge: &vm_agent_schemas::wire::Challenge| disk.sign(&challenge.signed_bytes(&disk.hello()));
    let mut heard = connect().await;
    heard.say(FromRuntime::Hello(disk.hello())).await;
    let Some(FromHub::Challenge(first)) = heard.hear().await else { panic!("it should have been challenged") };
    let mut replaying = connect().await;
    replaying.say(FromRuntime::Hello(disk.hello())).await;
    let Some(FromHub::Challenge(second)) = replaying.hear().await else { panic!("it should have been challenged") };
    assert_ne!(first, second);
    replaying.say(FromRuntime::Proof(ChallengeProof { signature: proof(&first) })).await;
    assert_eq!(refusal(&mut replaying).await, RefusalCode::Credential);
    heard.say(FromRuntime::Proof(ChallengeProof { signature: proof(&first) })).await;
    assert!(matches!(heard.hear().await, Some(FromHub::Welcome(_))), "where it was made for, it is good");

    field.counted(6).await;
    field.end().await;
}

#[tokio::test]
async fn a_thousand_half_open_connections_hold_the_door_shut_for_nobody() {
    let field = Field::new().await;
    let hub = field.disk().hub();
    let mut slow = TcpStream::connect(hub).await.unwrap();
    slow.write_all(format!("GET {HUB_PATH} HTTP/1.1\r\nHost: hub\r\n").as_bytes()).await.unwrap();
    let mut half_open = Vec::new();
    for _ in 0..1000 {
        half_open.push(TcpStream::connect(hub).await.unwrap());
    }
    // Whoever is honest gets in while they stand there, long before any of them has had its time.
    let asked = Instant::now();
    field.beside(field.session()).await;
    assert!(asked.elapsed() < HANDSHAKE_LIMIT.get() / 2, "{:?}", asked.elapsed());
    let mut oldest = half_open.swap_remove(0);
    assert!(!matches!(oldest.read(&mut [0]).await, Ok(1..)), "nothing is said to such a peer");
    assert!(!matches!(slow.read(&mut [0]).await, Ok(1..)), "nor to one whose header never ends");
    assert!(field.metric("vmagent_hub_turned_away_total", "reason=\"crowded\"").await >= 700);
    drop(half_open);
    field.end().await;
}

#[tokio::test]
async fn a_handshake_that_trickles_in_ends_in_its_time_and_is_counted() {
    let field = Field::new().await;
    let mut slow = TcpStream::connect(field.disk().hub()).await.unwrap();
    slow.write_all(format!("GET {HUB_PATH} HTTP/1.1\r\nHost: hub\r\n").as_bytes()).await.unwrap();
    let trickle = async {
        loop {
            // A header that never ends, a byte at a time, and not so many of them that this itself is an offence.
            if slow.write_all(b"X").await.is_err() {
                return;
            }
            let mut byte = [0];
            tokio::select! {
                closed = slow.read(&mut byte) => return assert!(!matches!(closed, Ok(1..)), "nothing is said to such a peer"),
                () = tokio::time::sleep(Duration::from_millis(300)) => {}
            }
        }
    };
    field.beside(trickle).await;
    let counted = async || (field.metric("vmagent_hub_turned_away_total", "reason=\"slow\"").await == 1).then_some(());
    until("it is counted", counted).await;
    // One that is upgraded, and says nothing, can be told why.
    let disk = field.disk();
    let mut silent = Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap();
    assert_eq!(field.beside(refusal(&mut silent)).await, RefusalCode::Silence);
    field.refused(RefusalCode::Silence, 1).await;
    field.end().await;
}

#[tokio::test]
async fn a_runtime_that_does_not_read_is_ended_with_its_reason_and_holds_up_nobody() {
    let field = Field::new().await;
    let mut peer = field.session().await;
    let flood = async {
        // Each is answered, and no answer is read: sockets and queue fill up, and the connection is closed.
        let post = || Post { subject: "flood".to_owned(), body: 1.into(), in_reply_to: None, ttl_ms: None };
        let text = || {
            let from = Address::Agent("web".parse().unwrap());
            let envelope = Envelope::new(from, Address::Host, jiff::Timestamp::now(), FromRuntime::Message(post()));
            Message::text(serde_json::to_string(&envelope).unwrap())
        };
        while peer.send_raw(text()).await.is_ok() {}
    };
    field.beside(async { tokio::time::timeout(PATIENCE, flood).await.expect("it is closed") }).await;
    field.ended(1).await;
    field.refused(RefusalCode::Flow, 1).await;
    field.end().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_events_holds_up_nobody() {
    let field = Field::new().await;
    let (_, token) = field.token(Role::Read).await;
    let address = field.api().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /events?follow=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        clients.push(client);
    }
    for _ in 0..50 {
        field.round_trip().await;
    }
    // What it did not read is kept in the journal, and not for it.
    let newest = events(field.controller()).await.last().unwrap().seq;
    let mut late = String::new();
    let caught_up = async {
        while !late.contains(&format!("id: {newest}\n")) {
            let mut piece = vec![0; 64 * 1024];
            let read = clients[0].read(&mut piece).await.unwrap();
            assert!(read > 0, "the stream goes on");
            late.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    };
    tokio::time::timeout(PATIENCE, caught_up).await.expect("who reads again misses nothing");
    drop(clients);
    field.end().await;
}

#[tokio::test]
async fn connections_to_the_api_without_a_token_keep_out_nobody() {
    let field = Field::new().await;
    let (_, token) = field.token(Role::Read).await;
    let address = field.api().await;
    let mut idle = Vec::new();
    for _ in 0..700 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let asked = Instant::now();
    let (status, _) = field.beside(http(address, "GET", "/agents", Some(&token), "")).await;
    assert_eq!(status, 200);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert!(!matches!(idle[0].read(&mut [0]).await, Ok(1..)), "the oldest has made room");
    field.end().await;
}

#[tokio::test]
async fn a_token_that_is_revoked_ends_the_process_that_it_opened() {
    let field = Field::new().await;
    field.runtimes.change("db", |inside| inside.holds = true);
    let (id, token) = field.token(Role::Exec).await;
    let address = field.api().await;
    let mut request = format!("ws://{address}/agents/db/exec").into_client_request().unwrap();
    request.headers_mut().insert("authorization", token.parse().unwrap());
    let tcp = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = client_async(request, tcp).await.unwrap();
    let run = Run { argv: vec!["hang".to_owned()], ..Run::default() };
    let open = ExecRequest::Open { target: StreamTarget::Run { run }, stdin: false };
    socket.send(Message::text(serde_json::to_string(&open).unwrap())).await.unwrap();
    let mut said = async || {
        loop {
            match tokio::time::timeout(PATIENCE, socket.next()).await.expect("it is told in time") {
                Some(Ok(Message::Text(text))) => return serde_json::from_str::<ExecEvent>(&text).unwrap(),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    assert!(matches!(said().await, ExecEvent::Opened { .. }));
    field.controller().revoke_token(id, &ann()).await.unwrap();
    let end = said().await;
    assert!(matches!(&end, ExecEvent::Failed { problem } if problem.code == ProblemCode::Unauthorized), "{end:?}");
    let ended = async || {
        let metrics = field.controller().metrics().await.ok()?;
        metrics.contains("\nvmagent_hub_streams 0\n").then_some(())
    };
    until("the process is ended", ended).await;
    field.runtimes.change("db", |inside| inside.holds = false);
    field.end().await;
}

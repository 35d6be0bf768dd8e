//! Every door has a lock, and every lock is tried: the API's routes over TCP, and the hub's protocol.

use std::path::Path;

use futures::StreamExt as _;
use jiff::Timestamp;
use vm_agent_daemon::{Controller, Running};
use vm_agent_drivers::fake::{Fake, On};
use vm_agent_hub::StreamEvent;
use vm_agent_schemas::api::TokenRequest;
use vm_agent_schemas::credential::Role;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::ids::{Digest, Incarnation, MessageId, Nonce, RequestId, Secret, TaskId};
use vm_agent_schemas::message::Post;
use vm_agent_schemas::observe::{Capabilities, Deadlines};
use vm_agent_schemas::task::Report;
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{
    ChallengeProof, Channel, Configured, Evidence, FromHub, FromRuntime, Hello, LogLines, MessageRef, RefusalCode,
    Rotated, Run, StreamEnded, StreamOpened, StreamTaken, StreamTarget, TaskEnded, TaskOutcome, TaskRef, UpgradeFailed,
};
use vm_agent_tests::fleet_of_fakes::{Disk, Peer, Runtimes, health};
use vm_agent_tests::in_process::{
    after, agent, ann, apply, becomes, capabilities, events, http, qemu, settled, start, until,
};

const FILE: &str = "defaults: {driver: qemu}\nagents: {web: {}}\n";

async fn with_web(state: &Path) -> (Running, Fake, Runtimes) {
    let fake = qemu(Span::from_secs(60));
    let runtimes = Runtimes::of(&fake);
    let running = start(state, &[&fake]).await;
    apply(running.controller(), FILE).await;
    settled(running.controller(), FILE, &["web"]).await;
    (running, fake, runtimes)
}

#[tokio::test]
async fn every_route_of_the_api_refuses_a_missing_a_wrong_and_a_revoked_token() {
    let folder = tempfile::tempdir().unwrap();
    let (running, fake, _runtimes) = with_web(folder.path()).await;
    let controller = running.controller();
    let token = controller
        .create_token(TokenRequest { name: "test".to_owned(), role: Role::Admin, lasting: None }, &ann())
        .await
        .unwrap();
    let revoked = format!("Bearer {}", token.secret.expose());
    let addresses = controller.status().await.unwrap().addresses;
    assert_eq!(http(addresses.api, "GET", "/agents", Some(&revoked), "").await.0, 200);
    controller.revoke_token(token.token.id, &ann()).await.unwrap();

    let before = fake.mutating_calls();
    let document = vm_agent_daemon::http::openapi();
    // Side by side: each answer to a wrong token is kept back for a moment.
    let mut tried = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "web").replace("{id}", &TaskId::generate().to_string());
        for method in methods.as_object().unwrap().keys() {
            for authorization in [None, Some("Bearer wrong"), Some("Basic d3Jvbmc6"), Some(&*revoked)] {
                for port in [addresses.api, addresses.dashboard] {
                    let (path, secret) = (path.clone(), &token.secret);
                    tried.push(async move {
                        let (status, body) = http(port, &method.to_uppercase(), &path, authorization, "{}").await;
                        assert_eq!(status, 401, "{method} {path} with {authorization:?}: {body}");
                        assert!(!body.contains(secret.expose()));
                    });
                }
            }
        }
    }
    assert!(tried.len() >= 25 * 4 * 2, "the document describes the whole API");
    futures::stream::iter(tried).buffer_unordered(64).collect::<Vec<()>>().await;
    assert_eq!(fake.mutating_calls(), before);
    assert_eq!(controller.overrides().await.unwrap(), []);
    running.shut_down().await;
}

/// Every message that a runtime can send, with what an honest one would put into it.
fn messages(disk: &Disk) -> Vec<FromRuntime> {
    let task = TaskRef { task: TaskId::generate(), attempt: 1 };
    let outcome = TaskOutcome::Exited { code: 0 };
    let post = Post { subject: "forged".to_owned(), body: 1.into(), in_reply_to: None, ttl_ms: None };
    let messages = vec![
        FromRuntime::Hello(disk.hello()),
        FromRuntime::Proof(ChallengeProof { signature: "A".repeat(86) }),
        FromRuntime::Health(health()),
        FromRuntime::Log(LogLines { lines: vec!["forged".to_owned()], dropped: 0 }),
        FromRuntime::Configured(Configured { digest: Some(Digest::of(b"")), problems: Vec::new() }),
        FromRuntime::TaskStarted(task),
        FromRuntime::TaskEnded(TaskEnded { task, outcome: outcome.clone(), report: Report::default() }),
        FromRuntime::Message(post),
        FromRuntime::MessageTaken(MessageRef { message: MessageId::generate() }),
        FromRuntime::StreamOpened(StreamOpened { stream: 1, offset: 0 }),
        FromRuntime::StreamEnded(StreamEnded { stream: 1, outcome }),
        FromRuntime::StreamTaken(StreamTaken { stream: 1, channel: Channel::Stdin, offset: 1 }),
        FromRuntime::Rotated(Rotated { public_key: "A".repeat(43), signature: "A".repeat(86) }),
        FromRuntime::UpgradeFailed(UpgradeFailed {
            version: "9".to_owned(),
            sha256: Digest::of(b""),
            reason: "forged".to_owned(),
        }),
        FromRuntime::Evidence(Evidence { request: RequestId::generate(), machine: None, boot: None, answer: None }),
    ];
    // A new type of message does not compile until it stands in the list above.
    for message in &messages {
        match message {
            FromRuntime::Hello(_)
            | FromRuntime::Proof(_)
            | FromRuntime::Health(_)
            | FromRuntime::Log(_)
            | FromRuntime::Configured(_)
            | FromRuntime::TaskStarted(_)
            | FromRuntime::TaskEnded(_)
            | FromRuntime::StreamOpened(_)
            | FromRuntime::StreamEnded(_)
            | FromRuntime::StreamTaken(_)
            | FromRuntime::Message(_)
            | FromRuntime::MessageTaken(_)
            | FromRuntime::Rotated(_)
            | FromRuntime::UpgradeFailed(_)
            | FromRuntime::Evidence(_) => {}
        }
    }
    messages
}

/// The code with which a peer is refused; after it the connection is closed.
async fn refusal(peer: &mut Peer) -> RefusalCode {
    let Some(FromHub::Refused(refused)) = peer.hear().await else { panic!("it should have been refused") };
    assert_eq!(peer.hear().await, None, "the connection is closed");
    refused.code
}

async fn connect(disk: &Disk) -> Peer {
    Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap()
}

#[tokio::test]
async fn no_message_is_taken_from_a_connection_that_has_not_proven_who_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (running, _fake, runtimes) = with_web(folder.path()).await;
    let disk = runtimes.disk("web");
    let before = session(running.controller()).await;
    for message in messages(&disk) {
        let mut peer = connect(&disk).await;
        if !matches!(message, FromRuntime::Hello(_)) {
            peer.say(message.clone()).await;
            assert_eq!(refusal(&mut peer).await, RefusalCode::Protocol, "{message:?} comes first");
            peer = connect(&disk).await;
        }
        peer.say(FromRuntime::Hello(disk.hello())).await;
        assert!(matches!(peer.hear().await, Some(FromHub::Challenge(_))));
        peer.say(message.clone()).await;
        let expected =
            if matches!(message, FromRuntime::Proof(_)) { RefusalCode::Credential } else { RefusalCode::Protocol };
        assert_eq!(refusal(&mut peer).await, expected, "{message:?} without the key");
    }
    assert_eq!(session(running.controller()).await, before);
    let log = running.controller().log(&"web".parse().unwrap(), 100, None).await.unwrap();
    assert!(!log.iter().any(|line| line.contains("forged")), "{log:?}");
    running.shut_down().await;
}

/// The epoch of the agent's session.
async fn session(controller: &Controller) -> Option<u64> {
    agent(controller, "web").await?.session.map(|session| session.epoch.0)
}

/// Shakes hands with a hello that is wrong somewhere.
async fn shake(disk: &Disk, wrong: impl FnOnce(&mut Hello)) -> Option<FromHub> {
    let mut hello = disk.hello();
    wrong(&mut hello);
    let mut peer = Peer::connect(disk.hub(), hello.agent.clone()).await.unwrap();
    peer.shake(hello, disk).await
}

fn code(answer: Option<FromHub>) -> RefusalCode {
    match answer {
        Some(FromHub::Refused(refused)) => refused.code,
        other => panic!("it should have been refused: {other:?}"),
    }
}

/// Has the runtime say something, as a person would.
async fn exec(controller: &Controller) -> String {
    let run = Run { argv: vec!["still".into(), "here".into()], ..Run::default() };
    let target = StreamTarget::Run { run };
    let mut stream = controller.exec(&"web".parse().unwrap(), target, false, &ann()).await.unwrap();
    let mut said = Vec::new();
    loop {
        match stream.next().await {
            Some(StreamEvent::Data { channel: Channel::Stdout, data, .. }) => said.extend_from_slice(&data),
            Some(StreamEvent::Ended(TaskOutcome::Exited { code: 0 })) => return String::from_utf8(said).unwrap(),
            Some(StreamEvent::Ended(_) | StreamEvent::Lost(_)) | None => panic!("it should have ended well"),
            Some(_) => {}
        }
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_hello_is_refused_by_its_name_and_the_rightful_session_lives() {
    let folder = tempfile::tempdir().unwrap();
    let (running, _fake, runtimes) = with_web(folder.path()).await;
    let controller = running.controller();
    let disk = runtimes.disk("web");
    let before = session(controller).await;
    let fresh = Disk::new(disk.seed.clone());

    assert_eq!(code(shake(&fresh, |_| {}).await), RefusalCode::Credential, "a used join token and another key");
    assert_eq!(code(shake(&disk, |it| it.nonce = Nonce::generate()).await), RefusalCode::Incarnation);
    assert_eq!(code(shake(&disk, |it| it.incarnation = Incarnation(0)).await), RefusalCode::Incarnation);
    assert_eq!(code(shake(&disk, |it| it.incarnation = Incarnation(2)).await), RefusalCode::Incarnation);
    assert_eq!(code(shake(&disk, |it| it.fleet = "other".parse().unwrap()).await), RefusalCode::Fleet);
    assert_eq!(code(shake(&disk, |it| it.agent = "db".parse().unwrap()).await), RefusalCode::UnknownAgent);
    assert_eq!(code(shake(&disk, |it| it.protocol = (7, 9)).await), RefusalCode::Version);
    assert_eq!(code(shake(&disk, |it| it.boot.0 -= 1).await), RefusalCode::StaleBoot);
    // Everything stolen but the machine: the key, the seed, and all that is known.
    assert_eq!(code(shake(&disk, |it| it.machine_id = Digest::of(b"a copy")).await), RefusalCode::Clone);

    assert_eq!(session(controller).await, before, "the same session, not one that came back");
    assert_eq!(exec(controller).await, "still here");
    let refused = async || {
        let told = events(controller).await;
        let told = told.iter().filter(|event| event.kind == EventKind::RuntimeRefused);
        (told.filter(|event| event.message.contains("(clone)")).count() == 1).then_some(())
    };
    until("the clone is told", refused).await;
    running.shut_down().await;
}

#[tokio::test]
async fn a_join_token_that_is_wrong_missing_expired_or_of_an_earlier_attempt_joins_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let usual = capabilities(Span::from_secs(1));
    let deadlines = Deadlines { connect: Span::from_secs(1), ..usual.deadlines };
    let fake = Fake::new(vm_agent_schemas::fleet::DriverName::Qemu, Capabilities { deadlines, ..usual });
    // Nobody starts in these machines: the seeds are left for others.
    let seeds = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = std::sync::Arc::clone(&seeds);
    fake.on_up(std::sync::Arc::new(move |seed| kept.lock().unwrap().push(seed.clone())));
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let began = Timestamp::now();
    apply(controller, FILE).await;
    becomes(controller, "web", |it| it.instance.is_some()).await;
    let disk = Disk::new(seeds.lock().unwrap()[0].clone());
    assert_eq!(code(shake(&disk, |it| it.join_token = None).await), RefusalCode::JoinToken);
    let wrong = Some(Secret::generate());
    assert_eq!(code(shake(&disk, |it| it.join_token = wrong).await), RefusalCode::JoinToken);
    let expired = after(began, Span::from_secs(4));
    until("the token has expired", async || (Timestamp::now() > expired).then_some(())).await;
    assert_eq!(code(shake(&disk, |_| {}).await), RefusalCode::JoinToken);

    // Another start of the same machine brings another token, and only that one counts.
    fake.script(On::start("web").once(), vm_agent_drivers::fake::Behaviour::Succeed);
    fake.crash("web");
    let started = async || seeds.lock().unwrap().get(1).cloned();
    let second = Disk { seed: until("it is started again", started).await, ..disk.clone() };
    assert_eq!(code(shake(&disk, |_| {}).await), RefusalCode::JoinToken);
    let mut peer = connect(&second).await;
    assert!(matches!(peer.shake(second.hello(), &second).await, Some(FromHub::Welcome(_))));
    let thief = Disk::new(second.seed.clone());
    assert_eq!(code(shake(&thief, |_| {}).await), RefusalCode::Credential, "a token joins once");
    running.shut_down().await;
}

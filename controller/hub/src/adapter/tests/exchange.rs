//! Messages, new keys and new versions over real sockets.

use serde_json::Value;
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{Allow, BURST, Message as Letter, MessageState, Party, Post, RefusedCode};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{MessageRef, Rotated, Upgrade, rotation_bytes};

use super::*;
use crate::state::Member;

fn name(agent: &str) -> AgentName {
    agent.parse().unwrap()
}

/// `web` and `db` are declared, and `web` may write to `db`.
fn declare(fixture: &Fixture) {
    let members = ["web", "db"].map(|agent| (name(agent), Member::default())).into();
    let allow = vec![Allow { from: Party::Agent(name("web")), to: Party::Agent(name("db")) }];
    fixture.hub.directory(Directory { members, allow });
}

/// A session whose runtime is ready.
async fn ready(fixture: &Fixture, agent: &str, seed: u8) -> Peer {
    let mut peer = Peer::joined(fixture, agent, seed).await;
    let configured = vm_agent_schemas::wire::Configured { digest: None, problems: Vec::new() };
    peer.say(FromRuntime::Configured(configured)).await;
    peer
}

fn post(body: Value) -> Post {
    Post { subject: "greeting".to_owned(), body, in_reply_to: None, ttl_ms: None }
}

impl Peer {
    async fn write(&mut self, to: Address, id: MessageId, post: Post) {
        let from = Address::Agent(self.agent.clone());
        let envelope = Envelope { id, from, to, timestamp: 0, body: FromRuntime::Message(post) };
        self.socket.send(Message::text(serde_json::to_string(&envelope).unwrap())).await.unwrap();
    }

    async fn envelope(&mut self) -> Envelope<FromHub> {
        match self.next().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("no message: {other:?}"),
        }
    }
}

impl Fixture {
    fn letters(&self) -> Vec<Letter> {
        let records = self.storage.records.lock().unwrap();
        let letters = records.iter().filter_map(|record| match record {
            Record::Message(letter) => Some(letter.clone()),
            _ => None,
        });
        letters.collect()
    }
}

fn from_host() -> Letter {
    let now = jiff::Timestamp::now();
    Letter {
        id: MessageId::generate(),
        from: Address::Host,
        to: Address::Agent(name("db")),
        subject: "news".to_owned(),
        body: Value::Null,
        in_reply_to: None,
        author: None,
        created_at: now,
        expires_at: now + jiff::SignedDuration::from_hours(1),
        state: MessageState::Waiting,
    }
}

#[tokio::test]
async fn a_message_passes_between_runtimes_in_its_senders_name_and_outlives_the_controller() {
    let fixture = Fixture::new().await;
    declare(&fixture);
    let mut web = ready(&fixture, "web", 1).await;
    let ids = [MessageId::generate(), MessageId::generate()];
    for id in ids {
        web.write(Address::Agent(name("db")), id, post("hello".into())).await;
        assert_eq!(web.hear().await, FromHub::MessageAccepted(MessageRef { message: id }));
    }
    let mut db = ready(&fixture, "db", 2).await;
    for id in ids {
        let envelope = db.envelope().await;
        assert_eq!((envelope.id, envelope.from, envelope.to), (id, web_address(), Address::Agent(name("db"))));
        assert_eq!(envelope.body, FromHub::Message(post("hello".into())));
    }
    db.say(FromRuntime::MessageTaken(MessageRef { message: ids[0] })).await;
    let mut stored = fixture.notices;
    let taken = async {
        while !matches!(stored.recv().await, Some(Notice::Message(Letter { state: MessageState::Taken { .. }, .. }))) {}
    };
    soon(taken).await;

    let next = Fixture::new().await;
    declare(&next);
    for letter in fixture.storage.records.lock().unwrap().iter().filter_map(|record| match record {
        Record::Message(letter) if letter.id == ids[1] => Some(letter.clone()),
        _ => None,
    }) {
        next.hub.restore(letter);
    }
    let mut db = ready(&next, "db", 2).await;
    assert_eq!(db.envelope().await.id, ids[1], "only what was not taken");
}

fn web_address() -> Address {
    Address::Agent(name("web"))
}

#[tokio::test]
async fn the_host_hears_whether_its_message_is_stored() {
    let fixture = Fixture::new().await;
    declare(&fixture);
    let mut db = ready(&fixture, "db", 2).await;
    let letter = from_host();
    assert_eq!(fixture.hub.post(letter.clone()).await, Ok(()));
    assert_eq!(fixture.letters(), std::slice::from_ref(&letter));
    let envelope = db.envelope().await;
    assert_eq!((envelope.id, envelope.from), (letter.id, Address::Host));
    let unknown = Letter { to: Address::Agent(name("nobody")), ..from_host() };
    assert!(matches!(fixture.hub.post(unknown).await, Err(PostError::Refused(it)) if it.code == RefusedCode::Unknown));
    *fixture.storage.failing.lock().unwrap() = true;
    assert_eq!(fixture.hub.post(from_host()).await, Err(PostError::NotStored));
    *fixture.storage.failing.lock().unwrap() = false;
    fixture.hub.shutdown().await;
    assert_eq!(fixture.hub.post(from_host()).await, Err(PostError::Shutdown));
}

#[tokio::test]
async fn who_floods_the_hub_with_messages_is_refused_and_others_feel_nothing() {
    let fixture = Fixture::new().await;
    declare(&fixture);
    let (mut web, mut db) = (ready(&fixture, "web", 1).await, ready(&fixture, "db", 2).await);
    let flood = async {
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..5 * BURST {
            web.write(Address::Host, MessageId::generate(), post(Value::Null)).await;
            match web.hear().await {
                FromHub::MessageAccepted(_) => accepted += 1,
                FromHub::MessageRefused(it) => {
                    assert_eq!(it.code, RefusedCode::Rate);
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        (accepted, refused)
    };
    let other = async {
        let id = MessageId::generate();
        db.write(Address::Host, id, post(Value::Null)).await;
        assert_eq!(db.hear().await, FromHub::MessageAccepted(MessageRef { message: id }));
    };
    let ((accepted, refused), ()) = tokio::join!(flood, other);
    assert!(accepted >= BURST, "{accepted} accepted, {refused} refused");
    assert_eq!(fixture.hub.sessions().await.len(), 2);
}

#[tokio::test]
async fn a_body_that_fits_no_frame_ends_its_senders_session_alone() {
    let fixture = Fixture::new().await;
    declare(&fixture);
    let (mut web, mut db) = (ready(&fixture, "web", 1).await, ready(&fixture, "db", 2).await);
    web.write(Address::Host, MessageId::generate(), post("x".repeat(TEXT_MAX).into())).await;
    assert_eq!(web.refusal().await, RefusalCode::Protocol);
    let id = MessageId::generate();
    db.write(Address::Host, id, post(Value::Null)).await;
    assert_eq!(db.hear().await, FromHub::MessageAccepted(MessageRef { message: id }));
}

#[tokio::test]
async fn a_runtime_gets_a_new_key_and_the_old_one_is_void_once_it_is_used() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use ring::signature::KeyPair as _;
    let mut fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    fixture.hub.rotate(name("web"));
    let FromHub::Rotate(challenge) = peer.hear().await else { panic!("no challenge") };
    let key = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let public_key = URL_SAFE_NO_PAD.encode(key.public_key());
    let bytes = rotation_bytes(&challenge, &name("web"), Incarnation(1), &public_key);
    let signature = URL_SAFE_NO_PAD.encode(key.sign(&bytes));
    peer.say(FromRuntime::Rotated(Rotated { public_key: public_key.clone(), signature })).await;
    let FromHub::RotateAck(ack) = peer.hear().await else { panic!("no acknowledgement") };
    assert_eq!(ack.public_key, public_key);
    fixture.notice(|it| matches!(it, Notice::Rotated { .. })).await;
    let _new = Peer::joined(&fixture, "web", 9).await;
    let mut old = Peer::connect(&fixture, "web").await;
    let FromHub::Refused(refused) = old.shake(1, b"machine").await else { panic!("the old key still holds") };
    assert_eq!(refused.code, RefusalCode::Credential);
}

#[tokio::test]
async fn a_new_version_goes_in_as_a_stream() {
    let fixture = Fixture::new().await;
    let mut peer = Peer::joined(&fixture, "web", 1).await;
    let offer = Offer { version: "2".to_owned(), size: ByteSize::from_bytes(7), sha256: Digest::of(b"program") };
    let mut stream = fixture.hub.upgrade(name("web"), offer.clone()).await.unwrap();
    let FromHub::Upgrade(Upgrade { sha256, stream: number, .. }) = peer.hear().await else { panic!("no offer") };
    assert_eq!(sha256, offer.sha256);
    stream.send(0, true, "program".into());
    let frame = peer.data().await;
    assert_eq!((frame.stream, frame.end, &frame.data[..]), (number, true, &b"program"[..]));
    let outcome = TaskOutcome::Exited { code: 0 };
    peer.say(FromRuntime::StreamEnded(StreamEnded { stream: number, outcome: outcome.clone() })).await;
    assert_eq!(stream.next().await, Some(StreamEvent::Ended(outcome)));
}

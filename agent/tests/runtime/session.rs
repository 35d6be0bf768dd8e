//! How a runtime comes into a session and stays in it.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::support::{Heard, Hub, Runtime, Session, order, soon, until, write_seed};
use vm_agent_schemas::ids::{Digest, Nonce, RequestId, Secret};
use vm_agent_schemas::layout::{LOCK_FILE, STOPPED_FILE};
use vm_agent_schemas::wire::{
    Challenge, Configuration, FromHub, FromRuntime, RefusalCode, Refused, RotateAck, Rotated, Seed, VERIFY, Verify,
    answer, rotation_bytes,
};

#[tokio::test]
async fn a_runtime_joins_and_is_who_its_seed_says() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    let configuration = Configuration { digest: Digest::of(b"first"), ..Configuration::default() };
    hub.configuration = Some(configuration.clone());
    let seed = hub.seed(place.path(), None);
    let runtime = Runtime::start(place.path(), &seed);
    let (mut session, hello) = hub.session().await;
    assert_eq!((&hello.agent, &hello.nonce, hello.incarnation), (&seed.agent, &seed.nonce, seed.incarnation));
    assert_eq!(hello.join_token, Some(seed.join_token));
    let pid = fs::read_to_string(place.path().join(LOCK_FILE)).unwrap();
    assert_eq!(pid, runtime.child.id().to_string());
    let (mut configured, mut health) = (None, None);
    while configured.is_none() || health.is_none() {
        match session.next().await {
            Some(Heard::Said(FromRuntime::Configured(told))) => configured = told.digest,
            Some(Heard::Said(FromRuntime::Health(report))) => health = Some(report),
            Some(_) => {}
            None => panic!("the connection was lost"),
        }
    }
    assert_eq!(configured, Some(configuration.digest));
    assert!(health.is_some_and(|report| report.cpus > 0 && report.runtime_memory.bytes() > 0));
    let other = Configuration { digest: Digest::of(b"other"), ..Configuration::default() };
    session.say(FromHub::Configure(other.clone())).await;
    let configured = session.hear_that(|said| match said {
        FromRuntime::Configured(told) => told.digest,
        _ => None,
    });
    assert_eq!(configured.await, other.digest);
}

#[tokio::test]
async fn the_join_token_is_sent_until_the_first_welcome_and_again_when_the_hub_asks_for_it() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    drop(hub.accept().await.unwrap());
    let (session, hello) = hub.session().await;
    assert_eq!(hello.join_token, Some(seed.join_token.clone()), "the first attempt came to nothing");
    drop(session);
    let (_, again) = hub.session().await;
    assert_eq!(again.join_token, None);
    assert_eq!((again.public_key, again.boot), (hello.public_key.clone(), hello.boot));
    runtime.kill();
    let _runtime = Runtime::start(place.path(), &seed);
    let mut session = hub.accept().await.unwrap();
    let FromRuntime::Hello(restarted) = session.hear().await else { panic!("hello comes first") };
    assert_eq!(restarted.join_token, None);
    assert_eq!((restarted.public_key, restarted.boot), (hello.public_key, hello.boot.next()));
    let message = "no key is bound".to_owned();
    session.say(FromHub::Refused(Refused { code: RefusalCode::JoinToken, message, retry: true })).await;
    let (_, joined) = hub.session().await;
    assert_eq!(joined.join_token, Some(seed.join_token));
}

#[tokio::test]
async fn a_runtime_whose_key_the_hub_knows_no_more_joins_with_another() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (session, first) = hub.session().await;
    drop(session);
    let mut session = hub.accept().await.unwrap();
    let FromRuntime::Hello(again) = session.hear().await else { panic!("hello comes first") };
    assert_eq!((&again.public_key, again.join_token), (&first.public_key, None));
    write_seed(place.path(), &Seed { join_token: Secret::generate(), ..seed.clone() });
    let message = "no key is bound".to_owned();
    session.say(FromHub::Refused(Refused { code: RefusalCode::JoinToken, message, retry: false })).await;
    let (_, joined) = hub.session().await;
    assert_ne!(joined.public_key, first.public_key, "somebody else may have that one");
    assert!(joined.join_token.is_some_and(|token| token != seed.join_token), "it is the one of the new seed");
}

#[tokio::test]
async fn a_runtime_shows_where_it_runs_by_what_was_laid_into_its_machine() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, hello) = hub.session().await;
    assert!(hello.abilities.contains(VERIFY));
    let challenge = Secret::generate();
    let question = || Verify { request: RequestId::generate(), challenge: challenge.digest() };
    let mut ask = async |question: Verify| {
        session.say(FromHub::Verify(question.clone())).await;
        let evidence = session.hear_that(|said| match said {
            FromRuntime::Evidence(evidence) if evidence.request == question.request => Some(evidence),
            _ => None,
        });
        (evidence.await, session.id)
    };
    assert_eq!(ask(question()).await.0.answer, None, "there is nothing yet");
    let file = Runtime::challenge(place.path());
    fs::write(&file, challenge.expose()).unwrap();
    let (evidence, session) = ask(question()).await;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().parse().unwrap();
    assert_eq!(evidence.boot, Some(boot));
    let expected = evidence.machine.as_ref().map(|machine| answer(&challenge, session, machine, boot));
    assert_eq!(evidence.answer, expected);
    assert!(!file.exists(), "a challenge is used once");
}

#[tokio::test]
async fn the_pinned_certificate_is_trusted() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::encrypted().await;
    let seed = hub.seed(place.path(), hub.pin());
    let _runtime = Runtime::start(place.path(), &seed);
    let (_, hello) = hub.session().await;
    assert_eq!(hello.nonce, seed.nonce);
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_not_spoken_to_until_the_seed_is_right() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::encrypted().await;
    let seed = hub.seed(place.path(), Some(Digest::of(b"another certificate")));
    let _runtime = Runtime::start(place.path(), &seed);
    assert!(hub.accept().await.is_err());
    write_seed(place.path(), &Seed { hub_pin: hub.pin(), ..seed });
    // The seed is read anew at each attempt; one may have been under way.
    let heard = async { while hub.accept().await.is_err() {} };
    soon("an attempt with the right pin", heard).await;
}

#[tokio::test]
async fn a_hub_that_falls_silent_is_left() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    hub.heartbeat_ms = 100;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    // Nobody reads from this session, so no ping is answered.
    let _silent = hub.session().await;
    hub.session().await;
}

#[tokio::test]
async fn a_second_runtime_on_the_same_folder_does_not_start() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let _first = Runtime::start(place.path(), &seed);
    let _session = hub.session().await;
    let mut second = Runtime::start(place.path(), &seed);
    assert_eq!(second.end().await.code(), Some(1));
}

#[tokio::test]
async fn a_runtime_that_is_told_to_end_takes_its_processes_along_and_says_that_it_was_asked() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    session.open(1, "trap '' TERM; echo up; while :; do sleep 0.1; done", false).await;
    session.say(FromHub::Task(order("sleep 1000 & sleep 1000", 2))).await;
    until("all processes", || runtime.processes().len() >= 4).await;
    // The shell of the stream must have set its trap.
    while !matches!(session.next().await, Some(Heard::Data(_))) {}
    let closing = async { while session.next().await.is_some() {} };
    let (status, ()) = tokio::join!(runtime.terminate(), closing);
    assert!(status.success());
    assert!(place.path().join(STOPPED_FILE).exists());
    assert_eq!(runtime.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn the_loss_of_a_session_ends_its_streams_and_not_its_tasks() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    let order = order("exec sleep 1000", 1);
    session.open(2, "exec sleep 1000", false).await;
    session.say(FromHub::Task(order.clone())).await;
    until("both processes", || runtime.processes().len() == 2).await;
    drop(session);
    let (mut session, _) = hub.session().await;
    let started = session.hear_that(|said| match said {
        FromRuntime::TaskStarted(task) => Some(task),
        _ => None,
    });
    assert_eq!(started.await, order.task);
    until("the stream's end", || runtime.processes().len() == 1).await;
    // Numbers begin anew in a session: this stream is not the task's.
    session.open(1, "head -c 1000000 /dev/zero", false).await;
    assert_eq!(session.follow(1).await.stdout.len(), 1_000_000);
}

/// Has the runtime make a new key, up to the hub's having stored it.
async fn rotate(session: &mut Session, seed: &Seed) -> String {
    let challenge = Challenge { challenge: Nonce::generate() };
    session.say(FromHub::Rotate(challenge.clone())).await;
    let rotated = session.hear_that(|said| match said {
        FromRuntime::Rotated(rotated) => Some(rotated),
        _ => None,
    });
    let Rotated { public_key, signature } = rotated.await;
    let key = UnparsedPublicKey::new(&ED25519, URL_SAFE_NO_PAD.decode(&public_key).unwrap());
    let signed = rotation_bytes(&challenge, &seed.agent, seed.incarnation, &public_key);
    assert!(key.verify(&signed, &URL_SAFE_NO_PAD.decode(signature).unwrap()).is_ok());
    session.say(FromHub::RotateAck(RotateAck { public_key: public_key.clone() })).await;
    // What is said after it is answered after it.
    session.open(1, "exit 0", false).await;
    session.follow(1).await;
    public_key
}

#[tokio::test]
async fn a_new_key_is_used_from_the_next_hello_on() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let (mut session, hello) = hub.session().await;
    let new = rotate(&mut session, &seed).await;
    assert_ne!(hello.public_key, new);
    // Acknowledged, and then a crash.
    runtime.kill();
    let _runtime = Runtime::start(place.path(), &seed);
    drop(session);
    let (session, hello) = hub.session().await;
    assert_eq!(hello.public_key, new);
    drop(session);
    assert_eq!(hub.session().await.1.public_key, new);
}

#[tokio::test]
async fn a_hub_that_does_not_know_the_new_key_gets_the_old_one() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, hello) = hub.session().await;
    let (old, new) = (hello.public_key, rotate(&mut session, &seed).await);
    drop(session);
    let mut session = hub.accept().await.unwrap();
    let FromRuntime::Hello(hello) = session.hear().await else { panic!("hello comes first") };
    assert_eq!(hello.public_key, new);
    let message = "another key is bound".to_owned();
    session.say(FromHub::Refused(Refused { code: RefusalCode::Credential, message, retry: false })).await;
    assert_eq!(hub.session().await.1.public_key, old);
}

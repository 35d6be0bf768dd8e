use vm_agent_schemas::credential::JoinToken;
use vm_agent_schemas::ids::{Boot, Digest, Epoch, Incarnation, Nonce, Secret};
use vm_agent_schemas::wire::{Channel, Configuration, Frame, FromHub, FromRuntime, Hello, RefusalCode};

use super::world::*;
use crate::state::{CloseReason, ConnId, Effect, Event, Inbound, Notice, Record};

/// A hello that differs from the right one in something.
type Change = fn(&mut Hello);

#[test]
fn a_join_stores_the_binding_before_it_welcomes() {
    let mut world = World::new();
    let effects = world.join(1, &hello("web", 1), 1);
    let [
        Effect::Store(Record::Credential(credential)),
        Effect::Send { body: FromHub::Welcome(welcome), .. },
        rest @ ..,
    ] = effects.as_slice()
    else {
        panic!("{effects:?}");
    };
    assert_eq!(credential.join, None);
    assert_eq!(credential.binding.as_ref().unwrap().public_key, hello("web", 1).public_key);
    assert_eq!((credential.epoch, credential.boot), (Epoch(1), Boot(1)));
    assert_eq!((welcome.epoch, welcome.protocol, welcome.heartbeat_ms), (Epoch(1), 1, 30_000));
    let (agent, incarnation) = (name("web"), Incarnation(1));
    let expected = [
        Effect::Notify(Notice::Joined { agent: agent.clone(), incarnation }),
        Effect::Notify(Notice::SessionOpened { agent, epoch: Epoch(1) }),
    ];
    assert_eq!(rest, expected);
}

#[test]
fn a_session_counts_from_when_it_is_durable() {
    let mut world = World::new();
    world.open(1);
    world.say(1, "web", FromRuntime::Hello(hello("web", 1)));
    let challenge = vm_agent_schemas::wire::Challenge { challenge: Nonce::from_text("challenge 1") };
    let proof = message("web", sign(&key(1), &challenge, &hello("web", 1)));
    let effects = world.hub.handle(Event::Received { conn: ConnId(1), inbound: proof }, at(0));
    assert_eq!(world.hub.sessions(), []);
    world.hub.handle(Event::Stored(stored(&effects)), at(0));
    assert_eq!(world.hub.sessions()[0].epoch, Epoch(1));
}

#[test]
fn a_hello_that_does_not_fit_is_refused_with_its_code() {
    let cases: [(Change, RefusalCode); 13] = [
        (|it| it.protocol = (2, 3), RefusalCode::Version),
        (|it| it.protocol = (1, 0), RefusalCode::Version),
        (|it| it.fleet = "other".parse().unwrap(), RefusalCode::Fleet),
        (|it| it.incarnation = Incarnation(0), RefusalCode::Incarnation),
        (|it| it.incarnation = Incarnation(2), RefusalCode::Incarnation),
        (|it| it.nonce = Nonce::from_text("another"), RefusalCode::Incarnation),
        (|it| it.join_token = None, RefusalCode::JoinToken),
        (|it| it.join_token = Some(Secret::from_text("guess")), RefusalCode::JoinToken),
        (|it| it.machine_id = "a\nb".to_owned().into(), RefusalCode::Protocol),
        (|it| it.machine_id = "A".repeat(64).into(), RefusalCode::Protocol),
        (|it| it.public_key = "short".to_owned(), RefusalCode::Protocol),
        (|it| it.runtime_version = "x".repeat(65), RefusalCode::Protocol),
        (|it| it.agent = name("nobody"), RefusalCode::UnknownAgent),
    ];
    for (change, code) in cases {
        let mut world = World::new();
        let mut hello = hello("web", 1);
        change(&mut hello);
        let effects = world.join(1, &hello, 1);
        assert_eq!(refused(&effects, 1), Some(code), "{hello:?}");
        let [Notice::Refused { agent, code: told, .. }] = &notices(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!((agent.as_ref(), *told), (Some(&hello.agent), code));
        assert_eq!(stored(&effects), []);
        assert_eq!(world.hub.sessions(), []);
    }
}

#[test]
fn a_runtime_that_speaks_later_versions_too_is_welcome() {
    let later = Hello { protocol: (1, 9), ..hello("web", 1) };
    assert_eq!(welcome(&World::new().join(1, &later, 1)).unwrap().protocol, 1);
}

#[test]
fn an_expired_join_token_is_refused() {
    let mut world = World::new();
    world.now = 600;
    assert_eq!(refused(&world.join(1, &hello("web", 1), 1), 1), Some(RefusalCode::JoinToken));
}

#[test]
fn a_proof_with_another_key_is_refused_and_binds_nothing() {
    let mut world = World::new();
    let effects = world.join(1, &hello("web", 1), 2);
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Credential));
    assert_eq!(stored(&effects), []);
    assert!(welcome(&world.join(2, &hello("web", 1), 1)).is_some());
}

#[test]
fn a_proof_is_worth_nothing_on_another_connection() {
    let mut world = World::new();
    let hello = hello("web", 1);
    world.open(1);
    let answer = world.say(1, "web", FromRuntime::Hello(hello.clone()));
    let [FromHub::Challenge(challenge)] = &sent(&answer, 1)[..] else { panic!("{answer:?}") };
    let proof = sign(&key(1), challenge, &hello);
    world.open(2);
    world.say(2, "web", FromRuntime::Hello(hello));
    assert_eq!(refused(&world.say(2, "web", proof), 2), Some(RefusalCode::Credential));
}

#[test]
fn what_is_bound_can_not_be_taken_over_and_the_session_in_place_stays() {
    let elsewhere: Change = |it| it.machine_id = Digest::of(b"another machine");
    let stale: Change = |it| it.boot = Boot(0);
    let cases: [(Change, u8, RefusalCode); 4] = [
        (|_| {}, 2, RefusalCode::Credential),
        (elsewhere, 2, RefusalCode::Credential),
        (elsewhere, 1, RefusalCode::Clone),
        (stale, 1, RefusalCode::StaleBoot),
    ];
    for (change, seed, code) in cases {
        let mut world = World::joined();
        let before = world.hub.sessions();
        let mut hello = hello("web", seed);
        change(&mut hello);
        let effects = world.join(2, &hello, seed);
        assert_eq!(refused(&effects, 2), Some(code));
        assert_eq!(sent(&effects, 1), []);
        assert_eq!(world.hub.sessions(), before);
    }
}

#[test]
fn a_join_token_works_once() {
    let mut world = World::joined();
    assert_eq!(refused(&world.join(2, &hello("web", 2), 2), 2), Some(RefusalCode::Credential));
}

#[test]
fn a_runtime_whose_welcome_was_lost_comes_back_with_its_token_and_is_known_by_its_key() {
    let mut world = World::joined();
    world.tell(Event::Closed { conn: ConnId(1) });
    let effects = world.join(2, &hello("web", 1), 1);
    assert_eq!(welcome(&effects).unwrap().epoch, Epoch(2));
    assert!(!notices(&effects).iter().any(|notice| matches!(notice, Notice::Joined { .. })));
}

#[test]
fn a_newer_session_takes_the_place_of_the_older() {
    let mut world = World::joined();
    let again = Hello { boot: Boot(2), join_token: None, ..hello("web", 1) };
    let effects = world.join(2, &again, 1);
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Superseded));
    assert_eq!(welcome(&effects).unwrap().epoch, Epoch(2));
    let store = effects.iter().position(|effect| matches!(effect, Effect::Store(_))).unwrap();
    let close = effects.iter().position(|effect| *effect == Effect::Close { conn: ConnId(1) }).unwrap();
    assert!(close < store, "taking away does not wait for the disk");
    let [Record::Credential(credential)] = &stored(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(credential.boot, Boot(2));
    assert_eq!(world.hub.sessions().len(), 1);
    assert_eq!(world.say(1, "web", FromRuntime::Health(health())), [], "the older connection means nothing now");
}

#[test]
fn a_runtime_that_connects_again_and_again_is_slowed_down_and_no_other_is() {
    let mut world = World::new();
    let join = |world: &mut World, conn: u64, agent: &str| world.join(conn, &hello(agent, 1), 1);
    for conn in 1..=120 {
        assert!(welcome(&join(&mut world, conn, "web")).is_some(), "{conn}");
    }
    assert_eq!(refused(&join(&mut world, 121, "web"), 121), Some(RefusalCode::Flow));
    assert!(welcome(&join(&mut world, 122, "db")).is_some());
    world.now = 1;
    assert!(welcome(&join(&mut world, 123, "web")).is_some(), "it gets in again");
}

#[test]
fn a_message_in_anothers_name_ends_the_connection() {
    let mut world = World::joined();
    let effects = world.say(1, "db", FromRuntime::Health(health()));
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Impersonation));
    for from in ["host", "broadcast", "db"] {
        let mut world = World::new();
        world.open(1);
        let effects = world.say(1, from, FromRuntime::Hello(hello("web", 1)));
        assert_eq!(refused(&effects, 1), Some(RefusalCode::Impersonation), "{from}");
    }
}

#[test]
fn before_a_session_every_message_but_the_expected_is_refused() {
    let schema = serde_json::to_value(vm_agent_schemas::wire::json_schema()).unwrap();
    let known = super::protocol::message_types(&schema, "FromRuntime");
    let messages = every_message();
    assert_eq!(known, super::protocol::types_of(&messages), "one message of each type");
    for proving in [false, true] {
        for body in every_message() {
            let expected = matches!((&body, proving), (FromRuntime::Hello(_), false) | (FromRuntime::Proof(_), true));
            let mut world = World::new();
            world.open(1);
            if proving {
                world.say(1, "web", FromRuntime::Hello(hello("web", 1)));
            }
            let effects = world.say(1, "web", body.clone());
            let code = refused(&effects, 1);
            // The proof here is none: it is expected, and refused for what it is.
            let forged = proving && matches!(body, FromRuntime::Proof(_));
            let wanted = if forged { Some(RefusalCode::Credential) } else { Some(RefusalCode::Protocol) };
            assert_eq!(code, wanted.filter(|_| forged || !expected), "{body:?}");
            assert_eq!(stored(&effects), []);
        }
    }
}

#[test]
fn before_a_session_data_and_garbage_are_refused() {
    let frame = Frame { stream: 1, channel: Channel::Stdout, offset: 0, end: false, data: vec![1].into() };
    for inbound in [Inbound::Data(frame), Inbound::from_text("{"), Inbound::from_binary(&vec![1].into())] {
        let mut world = World::new();
        world.open(1);
        let effects = world.tell(Event::Received { conn: ConnId(1), inbound });
        assert_eq!(refused(&effects, 1), Some(RefusalCode::Protocol));
    }
}

#[test]
fn garbage_is_refused_without_quoting_it() {
    let text = r#"{"id":"x","type":"hello","payload":{"joinToken":"hunter2"}}"#;
    let Inbound::Invalid(why) = Inbound::from_text(text) else { panic!("that is no message") };
    assert!(!why.contains("hunter2"), "{why}");
}

#[test]
fn a_second_hello_ends_the_session() {
    let mut world = World::joined();
    let effects = world.say(1, "web", FromRuntime::Hello(hello("web", 1)));
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Protocol));
    let [Notice::SessionClosed { why: CloseReason::Refused { code, .. }, .. }] = &notices(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(*code, RefusalCode::Protocol);
}

#[test]
fn a_new_incarnation_ends_the_session_of_the_old() {
    let mut world = World::joined();
    let effects = world.tell(Event::Enroll(credential("web", 2), Some(Configuration::default())));
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Incarnation));
    assert_eq!(refused(&world.join(2, &hello("web", 1), 1), 2), Some(RefusalCode::Incarnation));
    let next = Hello { incarnation: Incarnation(2), ..hello("web", 3) };
    assert!(welcome(&world.join(3, &next, 3)).is_some());
}

#[test]
fn a_credential_that_changes_between_hello_and_proof_is_judged_again() {
    let mut world = World::new();
    let first = hello("web", 1);
    world.open(1);
    let answer = world.say(1, "web", FromRuntime::Hello(first.clone()));
    let [FromHub::Challenge(challenge)] = &sent(&answer, 1)[..] else { panic!("{answer:?}") };
    assert!(welcome(&world.join(2, &hello("web", 2), 2)).is_some());
    let effects = world.say(1, "web", sign(&key(1), challenge, &first));
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Credential));
    assert_eq!(sent(&effects, 2), []);
}

#[test]
fn enrolling_what_is_known_changes_only_configuration_and_join_token() {
    let mut world = World::joined();
    assert_eq!(world.tell(Event::Enroll(credential("web", 1), Some(Configuration::default()))), []);
    let configuration = Configuration { env: [("A".to_owned(), "1".to_owned())].into(), ..Default::default() };
    let effects = world.tell(Event::Enroll(credential("web", 1), Some(configuration.clone())));
    assert_eq!(sent(&effects, 1), [FromHub::Configure(configuration)]);
    assert_eq!(world.hub.sessions().len(), 1);

    let mut reseeded = credential("db", 1);
    reseeded.join = Some(JoinToken { digest: Secret::from_text("fresh").digest(), expires_at: at(600) });
    world.tell(Event::Enroll(reseeded, Some(Configuration::default())));
    let fresh = Hello { join_token: Some(Secret::from_text("fresh")), ..hello("db", 5) };
    assert!(welcome(&world.join(2, &fresh, 5)).is_some());
}

#[test]
fn a_key_that_a_copy_has_too_opens_nothing_until_its_machine_has_joined_with_another() {
    let mut world = World::joined();
    let effects = world.tell(Event::Unbind(name("web")));
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Unverified));
    let [Record::Credential(stored)] = &stored(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((&stored.join, &stored.binding), (&None, &None));
    assert!(refused(&world.join(2, &hello("web", 1), 1), 2).is_some());

    let mut fresh = credential("web", 1);
    fresh.join = Some(JoinToken { digest: Secret::from_text("fresh").digest(), expires_at: at(600) });
    world.tell(Event::Enroll(fresh, None));
    assert!(refused(&world.join(3, &hello("web", 1), 1), 3).is_some(), "the old key does not open it again");
    let fresh = Hello { join_token: Some(Secret::from_text("fresh")), ..hello("web", 5) };
    assert!(welcome(&world.join(4, &fresh, 5)).is_some());
}

#[test]
fn revoking_ends_the_session_and_the_agent_is_unknown_then() {
    let mut world = World::joined();
    assert_eq!(refused(&world.tell(Event::Revoke(name("web"))), 1), Some(RefusalCode::Revoked));
    assert_eq!(refused(&world.join(2, &hello("web", 1), 1), 2), Some(RefusalCode::UnknownAgent));
}

#[test]
fn a_session_that_could_not_be_stored_ends_and_the_runtime_can_come_back() {
    let mut world = World::new();
    let effects = world.join(1, &hello("web", 1), 1);
    let failed = world.tell(Event::StoreFailed(stored(&effects)));
    assert_eq!(refused(&failed, 1), Some(RefusalCode::Internal));
    let again = world.join(2, &hello("web", 1), 1);
    assert_eq!(welcome(&again).unwrap().epoch, Epoch(2));
    let [Record::Credential(credential)] = &stored(&again)[..] else { panic!("{again:?}") };
    assert!(credential.binding.is_some() && credential.join.is_none(), "the record is whole");
}

#[test]
fn a_join_that_could_not_be_stored_leaves_the_door_to_a_machine_that_is_made_anew() {
    let mut world = World::new();
    world.open(1);
    world.say(1, "web", FromRuntime::Hello(hello("web", 1)));
    let challenge = vm_agent_schemas::wire::Challenge { challenge: Nonce::from_text("challenge 1") };
    let proof = message("web", sign(&key(1), &challenge, &hello("web", 1)));
    let effects = world.hub.handle(Event::Received { conn: ConnId(1), inbound: proof }, at(0));
    world.hub.handle(Event::StoreFailed(stored(&effects)), at(0));
    world.tell(Event::Enroll(credential("web", 1), None));
    let joined = world.join(2, &hello("web", 2), 2);
    assert_eq!(welcome(&joined).unwrap().epoch, Epoch(2));
    assert!(notices(&joined).iter().any(|notice| matches!(notice, Notice::Joined { .. })));
}

#[test]
fn going_down_refuses_everyone_and_those_who_come_later() {
    let mut world = World::joined();
    world.open(2);
    let effects = world.tell(Event::Shutdown);
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Shutdown));
    assert_eq!(refused(&effects, 2), Some(RefusalCode::Shutdown));
    assert_eq!(refused(&world.open(3), 3), Some(RefusalCode::Shutdown));
}

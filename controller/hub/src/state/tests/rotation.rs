use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::ids::{Boot, Incarnation, Nonce};
use vm_agent_schemas::wire::{Challenge, FromHub, FromRuntime, RefusalCode, RotateAck, Rotated, rotation_bytes};

use super::world::*;
use crate::state::{ConnId, Effect, Event, Hub, Notice, Record};

const OLD: u8 = 1;
const NEW: u8 = 7;

fn challenge(text: &str) -> Challenge {
    Challenge { challenge: Nonce::from_text(text) }
}

fn rotate(world: &mut World, challenge: &str) -> Vec<Effect> {
    world.tell(Event::Rotate { agent: name("web"), challenge: Nonce::from_text(challenge) })
}

/// The answer of `web` with the new key of that byte.
fn rotated(challenge: &Challenge, seed: u8) -> FromRuntime {
    let key = key(seed);
    let bytes = rotation_bytes(challenge, &name("web"), Incarnation(1), &public(&key));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(&bytes));
    FromRuntime::Rotated(Rotated { public_key: public(&key), signature })
}

/// `web` with a stored new key, and what was said of that.
fn with_new_key() -> (World, Vec<Effect>) {
    let mut world = World::joined();
    rotate(&mut world, "fresh");
    let effects = world.say(1, "web", rotated(&challenge("fresh"), NEW));
    (world, effects)
}

/// Whether `web` gets in with the key of that byte on this connection.
fn gets_in(world: &mut World, conn: u64, seed: u8) -> Option<RefusalCode> {
    refused(&world.join(conn, &hello("web", seed), seed), conn)
}

#[test]
fn a_new_key_is_proven_stored_and_then_acknowledged() {
    let mut world = World::joined();
    assert_eq!(sent(&rotate(&mut world, "fresh"), 1), [FromHub::Rotate(challenge("fresh"))]);
    let effects = world.say(1, "web", rotated(&challenge("fresh"), NEW));
    let [
        Effect::Store(Record::Credential(credential)),
        Effect::Send { body: FromHub::RotateAck(RotateAck { public_key }), .. },
        Effect::Notify(Notice::Rotated { agent }),
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    let binding = credential.binding.as_ref().unwrap();
    assert_eq!(binding.public_key, public(&key(OLD)), "until it is used, the old one holds");
    assert_eq!((binding.next_key.as_ref(), public_key), (Some(&public(&key(NEW))), &public(&key(NEW))));
    assert_eq!(*agent, name("web"));
}

#[test]
fn the_first_hello_with_the_new_key_voids_the_old_one() {
    let (mut world, _) = with_new_key();
    let effects = world.join(2, &hello("web", NEW), NEW);
    assert!(welcome(&effects).is_some());
    let binding = stored(&effects).into_iter().find_map(|record| match record {
        Record::Credential(credential) => credential.binding,
        _ => None,
    });
    let binding = binding.unwrap();
    assert_eq!((binding.public_key, binding.next_key), (public(&key(NEW)), None));
    assert_eq!(gets_in(&mut world, 3, OLD), Some(RefusalCode::Credential));
    assert_eq!(gets_in(&mut world, 4, NEW), None);
}

#[test]
fn a_runtime_that_missed_the_acknowledgement_comes_with_the_old_key_and_may_still_use_the_new_one() {
    let (mut world, _) = with_new_key();
    assert_eq!(gets_in(&mut world, 2, OLD), None);
    assert_eq!(gets_in(&mut world, 3, NEW), None);
    assert_eq!(gets_in(&mut world, 4, OLD), Some(RefusalCode::Credential));
}

#[test]
fn the_new_key_is_bound_to_the_machine_as_well() {
    let (mut world, _) = with_new_key();
    let copy = vm_agent_schemas::wire::Hello {
        machine_id: vm_agent_schemas::ids::Digest::of(b"another machine"),
        ..hello("web", NEW)
    };
    assert_eq!(refused(&world.join(2, &copy, NEW), 2), Some(RefusalCode::Clone));
    assert_eq!(world.hub.sessions().len(), 1, "the session in place lives");
}

#[test]
fn a_key_that_could_not_be_stored_is_not_acknowledged_and_the_old_one_holds() {
    let mut world = World::joined();
    rotate(&mut world, "fresh");
    let inbound = message("web", rotated(&challenge("fresh"), NEW));
    let effects = world.hub.handle(Event::Received { conn: ConnId(1), inbound }, at(0));
    let Effect::Store(record) = &effects[0] else { panic!("{effects:?}") };
    assert!(effects[1..].iter().all(Effect::grants), "what follows depends on it: {effects:?}");
    let failed = world.hub.handle(Event::StoreFailed(vec![record.clone()]), at(0));
    assert_eq!(refused(&failed, 1), Some(RefusalCode::Internal));
    assert_eq!(gets_in(&mut world, 2, OLD), None);
}

/// The hub dies before or after the record was stored, and begins anew from the disk.
#[test]
fn after_a_restart_those_keys_hold_that_are_stored() {
    let (_, effects) = with_new_key();
    let [Record::Credential(with_next)] = &stored(&effects)[..] else { panic!("{effects:?}") };
    let mut binding = with_next.binding.clone().unwrap();
    binding.next_key = None;
    let without_next = Credential { binding: Some(binding), ..with_next.clone() };
    let cases = [
        (&without_next, OLD, None),
        (&without_next, NEW, Some(RefusalCode::Credential)),
        (with_next, OLD, None),
        (with_next, NEW, None),
    ];
    for (credential, seed, expected) in cases {
        let mut world = World { hub: Hub::new("default".parse().unwrap(), HEARTBEAT), now: 0 };
        world.tell(Event::Enroll(credential.clone(), None));
        assert_eq!(gets_in(&mut world, 1, seed), expected, "{seed}");
    }
}

#[test]
fn a_wrong_answer_to_rotate_ends_the_session_and_changes_nothing() {
    let right = challenge("fresh");
    let stale = challenge("stale");
    let of_another = {
        let FromRuntime::Rotated(Rotated { signature, .. }) = rotated(&right, NEW) else { panic!() };
        FromRuntime::Rotated(Rotated { public_key: public(&key(8)), signature })
    };
    let nonsense = FromRuntime::Rotated(Rotated { public_key: "key".to_owned(), signature: "c2ln".to_owned() });
    let cases = [
        ("another challenge", rotated(&stale, NEW)),
        ("another key's signature", of_another),
        ("no key", nonsense),
        ("the old key", rotated(&right, OLD)),
    ];
    for (what, answer) in cases {
        let mut world = World::joined();
        rotate(&mut world, "fresh");
        let effects = world.say(1, "web", answer);
        assert_eq!(refused(&effects, 1), Some(RefusalCode::Protocol), "{what}");
        assert_eq!(stored(&effects), [], "{what}");
        assert_eq!(gets_in(&mut world, 2, NEW), Some(RefusalCode::Credential), "{what}");
        assert_eq!(gets_in(&mut world, 3, OLD), None, "{what}");
    }
}

#[test]
fn a_key_that_nobody_asked_for_is_refused() {
    let mut world = World::joined();
    let effects = world.say(1, "web", rotated(&challenge("fresh"), NEW));
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Protocol));
    let (mut world, _) = with_new_key();
    let effects = world.say(1, "web", rotated(&challenge("fresh"), 9));
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Protocol), "a challenge is answered once");
}

#[test]
fn a_runtime_is_asked_for_one_key_at_a_time_and_only_while_it_is_there() {
    let mut world = World::joined();
    assert_eq!(rotate(&mut world, "first").len(), 1);
    assert_eq!(rotate(&mut world, "second"), []);
    assert_eq!(refused(&world.say(1, "web", rotated(&challenge("first"), NEW)), 1), None);
    assert_eq!(sent(&rotate(&mut world, "third"), 1), [FromHub::Rotate(challenge("third"))]);
    world.tell(Event::Closed { conn: ConnId(1) });
    assert_eq!(rotate(&mut world, "fourth"), []);
    let hello = vm_agent_schemas::wire::Hello { boot: Boot(2), ..hello("web", NEW) };
    assert!(welcome(&world.join(2, &hello, NEW)).is_some());
}

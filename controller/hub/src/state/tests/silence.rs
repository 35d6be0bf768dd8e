use vm_agent_schemas::ids::Epoch;
use vm_agent_schemas::wire::{FromRuntime, RefusalCode};

use super::world::*;
use crate::state::{Event, Notice};

/// Ticks every second until then, and gathers what happens.
fn tick_until(world: &mut World, end: i64) -> Vec<crate::state::Effect> {
    let mut effects = Vec::new();
    while world.now < end {
        effects.extend(world.tick_at(world.now + 1));
    }
    effects
}

#[test]
fn a_handshake_has_its_limit() {
    let mut world = World::new();
    world.open(1);
    world.open(2);
    world.say(2, "web", FromRuntime::Hello(hello("web", 1)));
    assert_eq!(tick_until(&mut world, 10), []);
    let effects = tick_until(&mut world, 11);
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Silence));
    assert_eq!(refused(&effects, 2), Some(RefusalCode::Silence));
}

#[test]
fn silence_is_told_and_long_silence_closes() {
    let mut world = World::joined();
    assert_eq!(tick_until(&mut world, 75), []);
    let silent = Notice::SessionSilent { agent: name("web"), last_seen: at(0) };
    assert_eq!(notices(&tick_until(&mut world, 76)), [silent]);
    assert_eq!(tick_until(&mut world, 300), [], "it is told once");
    assert_eq!(world.hub.sessions()[0].last_seen, at(0), "a tick is no sign of life");
    assert_eq!(refused(&tick_until(&mut world, 301), 1), Some(RefusalCode::Silence));
}

#[test]
fn every_frame_is_a_sign_of_life() {
    let mut world = World::joined();
    tick_until(&mut world, 100);
    let effects = world.say(1, "web", FromRuntime::Health(health()));
    assert_eq!(notices(&effects)[0], Notice::SessionHeard { agent: name("web") });
    let session = world.hub.sessions().remove(0);
    assert_eq!((session.last_seen, session.health), (at(100), Some(health())));
    assert_eq!(tick_until(&mut world, 170), []);
}

#[test]
fn a_host_that_slept_gives_grace() {
    let mut world = World::joined();
    tick_until(&mut world, 10);
    assert_eq!(world.tick_at(5000), [], "nobody could be heard meanwhile");
    assert_eq!(tick_until(&mut world, 5074), []);
    assert_eq!(refused(&tick_until(&mut world, 5075), 1), Some(RefusalCode::Silence));
}

#[test]
fn a_clock_set_back_blames_nobody() {
    let mut world = World::joined();
    tick_until(&mut world, 10);
    assert_eq!(world.tick_at(-5000), []);
    assert_eq!(world.hub.sessions()[0].epoch, Epoch(1));
}

#[test]
fn a_peer_that_does_not_read_is_closed() {
    let mut world = World::joined();
    let effects = world.tell(Event::Overflowed { conn: crate::state::ConnId(1) });
    assert_eq!(refused(&effects, 1), Some(RefusalCode::Flow));
    assert_eq!(world.hub.sessions(), []);
}

use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{
    Channel, FromHub, FromRuntime, RefusalCode, StreamEnded, StreamTaken, TaskOutcome, Upgrade, UpgradeFailed,
};

use super::world::*;
use crate::state::reports::PROBLEM_MAX;
use crate::state::{ConnId, Effect, Event, Notice, Offer, OpenError, StreamKey};
use crate::stream::StreamEvent;

const KEY: StreamKey = StreamKey(7);

fn offer(program: &[u8]) -> Offer {
    let size = ByteSize::from_bytes(program.len() as u64);
    Offer { version: "0.2.0".to_owned(), size, sha256: Digest::of(program) }
}

fn offered(world: &mut World, agent: &str) -> Vec<Effect> {
    world.tell(Event::OfferUpgrade { key: KEY, agent: name(agent), offer: offer(b"program") })
}

fn failed(program: &[u8]) -> UpgradeFailed {
    let reason = "the new version got no welcome".to_owned();
    UpgradeFailed { version: "0.2.0".to_owned(), sha256: Digest::of(program), reason }
}

fn events(effects: &[Effect]) -> Vec<StreamEvent> {
    let events = effects.iter().filter_map(|effect| match effect {
        Effect::Client { key: KEY, event } => Some(event.clone()),
        _ => None,
    });
    events.collect()
}

#[test]
fn the_program_goes_in_as_the_input_of_a_stream() {
    let mut world = World::joined();
    let effects = offered(&mut world, "web");
    assert_eq!(effects[0], Effect::Opening { key: KEY, answer: Ok(()) });
    let Offer { version, size, sha256 } = offer(b"program");
    assert_eq!(sent(&effects, 1), [FromHub::Upgrade(Upgrade { version, size, sha256, stream: 1 })]);
    assert!(world.hub.sessions()[0].busy, "it is not put to sleep meanwhile");
    let effects = world.tell(Event::Input { key: KEY, offset: 0, end: true, data: "program".into() });
    assert!(matches!(&effects[..], [Effect::SendData { conn: ConnId(1), frame }] if frame.end && frame.stream == 1));
    let taken = FromRuntime::StreamTaken(StreamTaken { stream: 1, channel: Channel::Stdin, offset: 7 });
    assert_eq!(events(&world.say(1, "web", taken)), [StreamEvent::Taken { offset: 7 }]);
    let outcome = TaskOutcome::Exited { code: 0 };
    let ended = FromRuntime::StreamEnded(StreamEnded { stream: 1, outcome: outcome.clone() });
    assert_eq!(events(&world.say(1, "web", ended)), [StreamEvent::Ended(outcome)]);
}

#[test]
fn an_upgrade_needs_a_session() {
    let mut world = World::joined();
    assert_eq!(offered(&mut world, "db"), [Effect::Opening { key: KEY, answer: Err(OpenError::Offline) }]);
}

#[test]
fn a_runtime_that_can_not_be_replaced_ends_the_stream_of_that_program() {
    let mut world = World::joined();
    offered(&mut world, "web");
    let another = world.say(1, "web", FromRuntime::UpgradeFailed(failed(b"another")));
    assert_eq!(events(&another), []);
    let effects = world.say(1, "web", FromRuntime::UpgradeFailed(failed(b"program")));
    let outcome = TaskOutcome::Failed { reason: failed(b"program").reason };
    assert_eq!(events(&effects), [StreamEvent::Ended(outcome)]);
    let told = Notice::UpgradeFailed { agent: name("web"), failed: failed(b"program") };
    assert!(notices(&effects).contains(&told));
    assert!(!world.hub.sessions()[0].busy);
    let late = world.tell(Event::Input { key: KEY, offset: 0, end: true, data: "program".into() });
    assert_eq!(late, [], "the program need not come");
}

#[test]
fn an_old_runtime_that_was_put_back_tells_why() {
    let mut world = World::joined();
    offered(&mut world, "web");
    world.join(2, &hello("web", 1), 1);
    let effects = world.say(2, "web", FromRuntime::UpgradeFailed(failed(b"program")));
    assert_eq!(notices(&effects), [Notice::UpgradeFailed { agent: name("web"), failed: failed(b"program") }]);
}

#[test]
fn what_a_runtime_says_of_an_upgrade_is_bounded_and_plain_text() {
    let long = UpgradeFailed { reason: "x".repeat(PROBLEM_MAX + 1), ..failed(b"") };
    let lines = UpgradeFailed { reason: "a\nb".to_owned(), ..failed(b"") };
    let version = UpgradeFailed { version: "1".repeat(65), ..failed(b"") };
    let digest = UpgradeFailed { sha256: "00".to_owned().into(), ..failed(b"") };
    for failed in [long, lines, version, digest] {
        let effects = World::joined().say(1, "web", FromRuntime::UpgradeFailed(failed.clone()));
        assert_eq!(refused(&effects, 1), Some(RefusalCode::Protocol), "{failed:?}");
    }
}

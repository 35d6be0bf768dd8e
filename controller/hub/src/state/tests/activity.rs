//! Who is busy, since when not, and when the controller is told.

use std::collections::BTreeMap;

use vm_agent_schemas::wire::{FromRuntime, HealthReport, ServiceReport, ServiceState, StreamEnded, TaskOutcome};

use super::world::*;
use crate::state::{ConnId, Effect, Event, Notice, SessionInfo, StreamKey};

fn activity() -> Notice {
    Notice::Activity { agent: name("web") }
}

fn told(effects: &[Effect]) -> usize {
    notices(effects).iter().filter(|notice| **notice == activity()).count()
}

fn info(world: &World) -> SessionInfo {
    world.hub.sessions().remove(0)
}

fn counts(world: &World) -> (bool, u32, u32) {
    let SessionInfo { busy, tasks, streams, .. } = info(world);
    (busy, tasks, streams)
}

fn open(key: u64) -> Event {
    Event::OpenStream { key: StreamKey(key), agent: name("web"), target: target(), stdin: true }
}

fn services(states: &[(&str, ServiceState)]) -> HealthReport {
    let report = |state| ServiceReport { state, restarts: 0, cpu_percent: 0.0, problem: None };
    let services = states.iter().map(|(name, state)| (name.parse().unwrap(), report(*state)));
    HealthReport { services: services.collect(), ..health() }
}

#[test]
fn an_agent_to_which_nothing_happened_is_idle_since_it_connected() {
    let mut world = World::new();
    world.now = 5;
    assert_eq!(told(&world.join(1, &hello("web", 1), 1)), 0);
    world.tick_at(20);
    world.say(1, "web", FromRuntime::Health(health()));
    assert_eq!((counts(&world), info(&world).active_at), ((false, 0, 0), at(5)));
}

#[test]
fn a_stream_makes_an_agent_busy_until_it_is_closed_or_ends() {
    let mut world = World::joined();
    world.now = 10;
    assert_eq!(told(&world.tell(open(1))), 1);
    assert_eq!(told(&world.tell(open(2))), 0, "it is busy already");
    assert_eq!(counts(&world), (true, 0, 2));
    assert_eq!(told(&world.tick_at(20)), 0);
    assert_eq!(info(&world).active_at, at(20), "it still is");
    world.now = 30;
    assert_eq!(told(&world.tell(Event::CloseStream { key: StreamKey(1) })), 0);
    let outcome = TaskOutcome::Exited { code: 0 };
    assert_eq!(told(&world.say(1, "web", FromRuntime::StreamEnded(StreamEnded { stream: 2, outcome }))), 1);
    world.tick_at(40);
    assert_eq!((counts(&world), info(&world).active_at), ((false, 0, 0), at(30)));
}

#[test]
fn a_client_that_breaks_the_rules_leaves_the_agent_idle() {
    let mut world = World::joined();
    world.tell(open(1));
    let wrong = Event::Input { key: StreamKey(1), offset: 7, end: false, data: "x".into() };
    assert_eq!((told(&world.tell(wrong)), counts(&world)), (1, (false, 0, 0)));
}

#[test]
fn tasks_make_an_agent_busy_from_when_they_are_queued_until_the_last_has_ended() {
    let mut world = World::joined();
    let (first, second) = (task("web"), task("web"));
    assert_eq!(told(&world.tell(submit(&first))), 1);
    assert_eq!(told(&world.tell(submit(&second))), 0);
    assert_eq!(counts(&world), (true, 2, 0));
    assert_eq!(told(&world.say(1, "web", FromRuntime::TaskStarted(of(&first)))), 0);
    assert_eq!(told(&world.say(1, "web", ended(of(&first), 0))), 0);
    assert_eq!(counts(&world), (true, 1, 0));
    world.now = 8;
    assert_eq!(told(&world.say(1, "web", ended(of(&second), 0))), 1);
    assert_eq!((counts(&world), info(&world).active_at), ((false, 0, 0), at(8)));
}

#[test]
fn a_task_that_is_given_up_leaves_the_agent_idle() {
    let mut world = World::joined();
    world.tell(submit(&task("web")));
    let mut effects = Vec::new();
    while world.now < 130 {
        world.say(1, "web", FromRuntime::Health(health()));
        effects.extend(world.tick_at(world.now + 1));
    }
    assert_eq!((told(&effects), counts(&world)), (1, (false, 0, 0)));
}

#[test]
fn an_agent_that_connects_to_work_is_busy_at_once() {
    let mut world = World::new();
    world.tell(submit(&task("web")));
    assert_eq!((told(&world.join(1, &hello("web", 1), 1)), counts(&world)), (1, (true, 1, 0)));
    world.tell(Event::Closed { conn: ConnId(1) });
    assert_eq!(told(&world.join(2, &hello("web", 1), 1)), 1, "and again in each session");
}

#[test]
fn a_service_in_another_state_is_told_and_the_same_states_are_not() {
    let mut world = World::joined();
    let mut say = |report: &HealthReport| told(&world.say(1, "web", FromRuntime::Health(report.clone())));
    assert_eq!(say(&health()), 0);
    let starting = services(&[("gateway", ServiceState::Starting)]);
    assert_eq!((say(&starting), say(&starting)), (1, 0));
    let running = services(&[("gateway", ServiceState::Running)]);
    assert_eq!((say(&running), say(&running)), (1, 0));
    assert_eq!(say(&health()), 1, "it is gone");
    assert_eq!(info(&world).health.unwrap().services, BTreeMap::new());
}

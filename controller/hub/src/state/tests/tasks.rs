use std::collections::BTreeSet;

use vm_agent_schemas::ids::{ClaimId, Digest, Incarnation};
use vm_agent_schemas::task::{Report, Task, TaskSource, TaskState};
use vm_agent_schemas::wire::{Configuration, FromHub, FromRuntime, Hello, TEXT_MAX, TaskOrder, TaskOutcome};

use super::world::*;
use crate::state::{ConnId, Effect, Event, Hub, Notice, Record};

fn order(effects: &[Effect], conn: u64) -> Option<TaskOrder> {
    sent(effects, conn).into_iter().find_map(|body| match body {
        FromHub::Task(order) => Some(order),
        _ => None,
    })
}

fn end_of(effects: &[Effect]) -> Option<(TaskOutcome, Option<Report>)> {
    let ended = notices(effects).into_iter().find_map(|notice| match notice {
        Notice::TaskEnded(task) => Some(task),
        _ => None,
    })?;
    assert!(stored(effects).contains(&Record::Task(ended.clone())), "what is told is stored");
    Some((ended.outcome()?.clone(), ended.report))
}

fn reconnect(world: &mut World, conn: u64) -> Vec<Effect> {
    world.tell(Event::Closed { conn: ConnId(conn - 1) });
    world.join(conn, &hello("web", 1), 1)
}

/// A session with a task that was sent.
fn with_task() -> (World, Task) {
    let mut world = World::joined();
    let task = task("web");
    let effects = world.tell(submit(&task));
    assert_eq!(order(&effects, 1).unwrap().task, of(&task));
    (world, task)
}

#[test]
fn a_task_of_the_file_that_was_not_sent_ends_with_the_machine_that_it_was_for() {
    let source =
        |claim| TaskSource::File { name: "setup".parse().unwrap(), digest: Digest::of(b"setup"), claim, due: None };
    let (former, present) = (ClaimId::generate(), ClaimId::generate());
    let mut world = World::new();
    world.tell(Event::Claimed(name("web"), former));
    world.tell(submit(&Task { source: source(former), ..task("web") }));
    let own = task("web");
    world.tell(submit(&own));
    let ended = world.tell(Event::Claimed(name("web"), present));
    assert!(matches!(end_of(&ended), Some((TaskOutcome::NotStarted { .. }, _))));
    // One that a crash has kept from its end.
    let late = world.tell(submit(&Task { source: source(former), ..task("web") }));
    assert!(matches!(end_of(&late), Some((TaskOutcome::NotStarted { .. }, _))));
    let joined = world.join(1, &hello("web", 1), 1);
    assert_eq!(
        order(&joined, 1).map(|order| order.task),
        Some(of(&own)),
        "what a person asked for waits for any machine"
    );
}

#[test]
fn a_task_of_the_file_that_was_lost_is_not_repeated_on_the_next_machine() {
    let (former, present) = (ClaimId::generate(), ClaimId::generate());
    let source =
        TaskSource::File { name: "setup".parse().unwrap(), digest: Digest::of(b"setup"), claim: former, due: None };
    let mut repeatable = Task { source, ..task("web") };
    repeatable.terms.idempotent = Some(true);
    let mut world = World::joined();
    world.tell(Event::Claimed(name("web"), former));
    assert!(order(&world.tell(submit(&repeatable)), 1).is_some());
    world.tell(Event::Claimed(name("web"), present));
    let ended = world.tell(Event::Enroll(credential("web", 2), None));
    assert!(matches!(end_of(&ended), Some((TaskOutcome::Interrupted, _))), "{ended:?}");
}

#[test]
fn a_task_runs_and_its_end_is_stored_before_it_is_acknowledged() {
    let (mut world, task) = with_task();
    world.now = 5;
    let started = world.say(1, "web", FromRuntime::TaskStarted(of(&task)));
    let running =
        Task { state: TaskState::Running { incarnation: Incarnation(1) }, started_at: Some(at(5)), ..task.clone() };
    assert_eq!(started, [Effect::Notify(Notice::TaskStarted(running.clone()))]);
    assert_eq!(world.tick_at(6), [Effect::Store(Record::Task(running.clone()))], "nothing waits for this record");

    world.now = 9;
    let effects = world.say(1, "web", ended(of(&task), 0));
    let over = Task {
        state: TaskState::Ended { outcome: TaskOutcome::Exited { code: 0 } },
        ended_at: Some(at(9)),
        report: Some(Report::default()),
        ..running
    };
    let [Effect::Store(record), Effect::Notify(notice), Effect::Send { body, .. }, activity] = effects.as_slice()
    else {
        panic!("{effects:?}");
    };
    assert_eq!(*record, Record::Task(over.clone()));
    assert_eq!(*notice, Notice::TaskEnded(over));
    assert_eq!(*body, FromHub::TaskAck(of(&task)));
    assert_eq!(*activity, Effect::Notify(Notice::Activity { agent: name("web") }));
}

#[test]
fn an_end_is_told_once_however_slowly_it_is_stored() {
    let (mut world, task) = with_task();
    world.say(1, "web", FromRuntime::TaskStarted(of(&task)));
    let end = || Event::Received { conn: ConnId(1), inbound: message("web", ended(of(&task), 0)) };
    let over = world.hub.handle(end(), at(1));
    assert!(end_of(&over).is_some());
    // Its record is still on its way.
    world.now = 2;
    let again =
        [world.hub.handle(Event::Tick, at(2)), world.hub.handle(end(), at(2)), reconnect(&mut world, 2)].concat();
    assert!(end_of(&again).is_none(), "{again:?}");
    world.tell(Event::Stored(stored(&over)));
    assert_eq!(world.tick_at(4), []);
}

#[test]
fn that_a_task_is_sent_is_stored_before_it_is_each_time() {
    let mut world = World::joined();
    let task = task("web");
    let is_sent = Task { state: TaskState::Sent { incarnation: Incarnation(1) }, ..task.clone() };
    let effects = world.tell(submit(&task));
    let [Effect::Store(record), Effect::Send { body: FromHub::Task(order), .. }, _] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    assert_eq!((record, order.task), (&Record::Task(is_sent.clone()), of(&task)));
    // The first record may have failed.
    let again = reconnect(&mut world, 2);
    let [.., Effect::Store(record), Effect::Send { body: FromHub::Task(order), .. }, _] = again.as_slice() else {
        panic!("{again:?}");
    };
    assert_eq!((record, order.task), (&Record::Task(is_sent), of(&task)));
}

#[test]
fn what_was_sent_before_a_restart_is_sent_again_to_the_same_incarnation_before_all_else() {
    for submitted_first in [false, true] {
        let mut world = World { hub: Hub::new("default".parse().unwrap(), HEARTBEAT), now: 0 };
        let queued = task("web");
        let is_sent = Task { state: TaskState::Sent { incarnation: Incarnation(1) }, ..task("web") };
        let submits = [&queued, &is_sent].map(submit);
        let enroll = Event::Enroll(credential("web", 1), Some(Configuration::default()));
        let mut events = Vec::from(submits);
        events.insert(if submitted_first { 2 } else { 0 }, enroll);
        for event in events {
            assert_eq!(world.tell(event), []);
        }
        assert_eq!(order(&world.join(1, &hello("web", 1), 1), 1).unwrap().task, of(&is_sent));
        let effects = world.say(1, "web", ended(of(&is_sent), 0));
        assert_eq!(end_of(&effects).unwrap().0, TaskOutcome::Exited { code: 0 });
        assert_eq!(order(&effects, 1).unwrap().task, of(&queued));
    }
}

#[test]
fn a_cordoned_agent_gets_no_new_task_until_it_is_free_again() {
    let (mut world, first) = with_task();
    let second = task("web");
    assert_eq!(world.tell(Event::Cordon([name("web")].into())), []);
    assert_eq!(order(&world.tell(submit(&second)), 1), None);
    // What was sent before goes on, and is sent again.
    assert_eq!(order(&reconnect(&mut world, 2), 2).unwrap().task, of(&first));
    assert_eq!(order(&world.say(2, "web", ended(of(&first), 0)), 2), None);
    assert_eq!(order(&world.tell(Event::Cordon(BTreeSet::new())), 2).unwrap().task, of(&second));
}

#[test]
fn tasks_go_one_at_a_time_in_the_order_in_which_they_were_accepted() {
    let (mut world, first) = with_task();
    let (second, third) = (task("web"), task("web"));
    for later in [&second, &third] {
        assert_eq!(world.tell(submit(later)), []);
    }
    world.say(1, "web", FromRuntime::TaskStarted(of(&first)));
    let effects = world.say(1, "web", ended(of(&first), 1));
    assert_eq!(order(&effects, 1).unwrap().task, of(&second));
    let effects = world.say(1, "web", ended(of(&second), 0));
    assert_eq!(order(&effects, 1).unwrap().task, of(&third));
}

#[test]
fn a_task_waits_for_its_agent() {
    let mut world = World::new();
    let early = task("web");
    assert_eq!(world.tell(submit(&early)), []);
    assert_eq!(order(&world.join(1, &hello("web", 1), 1), 1).unwrap().task, of(&early));
    let unborn = task("unborn");
    assert_eq!(world.tell(submit(&unborn)), []);
}

#[test]
fn a_task_that_was_not_heard_of_is_sent_again_and_one_that_runs_is_not() {
    let (mut world, task) = with_task();
    assert_eq!(order(&reconnect(&mut world, 2), 2).unwrap().task, of(&task));
    world.say(2, "web", FromRuntime::TaskStarted(of(&task)));
    assert_eq!(order(&reconnect(&mut world, 3), 3), None);
    let again = world.say(3, "web", FromRuntime::TaskStarted(of(&task)));
    assert_eq!((notices(&again), stored(&again)), (vec![], vec![]), "no news");
    assert_eq!(end_of(&world.say(3, "web", ended(of(&task), 0))).unwrap().0, TaskOutcome::Exited { code: 0 });
}

#[test]
fn an_end_that_comes_twice_is_acknowledged_twice_and_changes_nothing() {
    let (mut world, task) = with_task();
    world.say(1, "web", ended(of(&task), 0));
    let effects = world.say(1, "web", ended(of(&task), 7));
    assert_eq!(sent(&effects, 1), [FromHub::TaskAck(of(&task))]);
    assert_eq!(stored(&effects), []);
    assert_eq!(notices(&effects), [Notice::TaskUnknown { agent: name("web"), task: of(&task) }]);
}

#[test]
fn an_end_that_was_not_stored_is_not_forgotten() {
    let (mut world, task) = with_task();
    let end = Event::Received { conn: ConnId(1), inbound: message("web", ended(of(&task), 0)) };
    let effects = world.hub.handle(end, at(1));
    let record = stored(&effects);
    world.tell(Event::StoreFailed(record.clone()));
    assert_eq!(stored(&world.hub.handle(Event::Tick, at(2))), record, "it is stored again by and by");
    world.join(2, &hello("web", 1), 1);
    let again = Event::Received { conn: ConnId(2), inbound: message("web", ended(of(&task), 7)) };
    let again = world.hub.handle(again, at(2));
    assert_eq!(stored(&again), record, "the first end counts");
    assert!(matches!(again[0], Effect::Store(_)), "stored before it is acknowledged");
    world.tell(Event::Stored(record));
    assert_eq!(stored(&world.say(2, "web", ended(of(&task), 7))), [], "now it is forgotten");
}

#[test]
fn what_could_not_be_stored_is_stored_before_the_next_session_gets_a_task() {
    let (mut world, first) = with_task();
    let second = task("web");
    world.tell(submit(&second));
    let end = Event::Received { conn: ConnId(1), inbound: message("web", ended(of(&first), 0)) };
    let records = stored(&world.hub.handle(end, at(1)));
    world.tell(Event::StoreFailed(records));
    let joined = stored(&world.join(2, &hello("web", 1), 1));
    let tasks = joined.into_iter().filter_map(|record| match record {
        Record::Task(task) => Some((task.id, task.outcome().is_some())),
        _ => None,
    });
    let tasks = tasks.collect::<Vec<_>>();
    assert_eq!(tasks[0], (first.id, true));
    assert!(tasks[1..].iter().all(|task| *task == (second.id, false)), "{tasks:?}");
}

#[test]
fn an_unknown_end_is_acknowledged_and_dropped() {
    let mut world = World::joined();
    let stranger = of(&task("web"));
    let effects = world.say(1, "web", ended(stranger, 0));
    assert_eq!(sent(&effects, 1), [FromHub::TaskAck(stranger)]);
    assert_eq!(stored(&effects), []);
}

#[test]
fn another_agents_task_can_not_be_ended() {
    let (mut world, task) = with_task();
    world.join(2, &hello("db", 2), 2);
    let effects = world.say(2, "db", ended(of(&task), 0));
    assert_eq!(stored(&effects), []);
    assert!(end_of(&world.say(1, "web", ended(of(&task), 0))).is_some());
}

#[test]
fn the_end_of_an_incarnation_interrupts_what_may_have_begun() {
    for started in [false, true] {
        let (mut world, first) = with_task();
        let second = task("web");
        world.tell(submit(&second));
        if started {
            world.say(1, "web", FromRuntime::TaskStarted(of(&first)));
        }
        let effects = world.tell(Event::Enroll(credential("web", 2), Some(Configuration::default())));
        assert_eq!(end_of(&effects).unwrap().0, TaskOutcome::Interrupted, "started: {started}");
        assert_eq!(stored(&effects).len(), 1, "what was never sent waits for the next incarnation");
        let next = Hello { incarnation: Incarnation(2), ..hello("web", 3) };
        assert_eq!(order(&world.join(2, &next, 3), 2).unwrap().task, of(&second));
    }
}

#[test]
fn a_task_of_an_incarnation_that_is_over_is_interrupted_at_the_start() {
    let incarnation = Incarnation(2);
    let states = [TaskState::Sent { incarnation }, TaskState::Running { incarnation }];
    let cases = states.into_iter().flat_map(|state| [(false, state.clone()), (true, state)]);
    for (enrolled_first, state) in cases {
        let mut world = World::new();
        let enroll = |agent| Event::Enroll(credential(agent, 3), Some(Configuration::default()));
        let events = [enroll("late"), submit(&Task { state, ..task("late") })];
        let [first, second] = if enrolled_first {
            events
        } else {
            let [enroll, submit] = events;
            [submit, enroll]
        };
        assert_eq!(world.tell(first), []);
        assert_eq!(end_of(&world.tell(second)).unwrap().0, TaskOutcome::Interrupted);
    }
}

#[test]
fn the_tasks_of_a_removed_agent_end() {
    let (mut world, running) = with_task();
    let queued = task("web");
    world.tell(submit(&queued));
    world.say(1, "web", FromRuntime::TaskStarted(of(&running)));
    let effects = world.tell(Event::Revoke(name("web")));
    let outcomes = stored(&effects).into_iter().map(|record| match record {
        Record::Task(task) => (task.id, task.outcome().cloned().unwrap()),
        other => panic!("{other:?}"),
    });
    let outcomes = outcomes.collect::<Vec<_>>();
    assert_eq!(outcomes[0], (running.id, TaskOutcome::Interrupted));
    assert!(matches!(&outcomes[1], (id, TaskOutcome::NotStarted { .. }) if *id == queued.id));
}

#[test]
fn a_task_that_its_runtime_has_forgotten_does_not_wedge_the_queue() {
    for started in [false, true] {
        let (mut world, forgotten) = with_task();
        let next = task("web");
        world.tell(submit(&next));
        if started {
            world.say(1, "web", FromRuntime::TaskStarted(of(&forgotten)));
        }
        let mut effects = Vec::new();
        while end_of(&effects).is_none() {
            assert!(world.now < 200);
            world.now += 1;
            world.say(1, "web", FromRuntime::Health(health()));
            effects = world.tell(Event::Tick);
        }
        assert_eq!(world.now, 120, "its timeout and a minute");
        assert_eq!(end_of(&effects).unwrap().0, TaskOutcome::Interrupted);
        assert_eq!(order(&effects, 1).unwrap().task, of(&next));
    }
}

#[test]
fn a_runtime_that_was_away_has_time_to_tell_of_its_tasks() {
    let (mut world, task) = with_task();
    world.say(1, "web", FromRuntime::TaskStarted(of(&task)));
    world.tell(Event::Closed { conn: ConnId(1) });
    world.tick_at(1000);
    world.tick_at(1001);
    world.join(2, &hello("web", 1), 1);
    assert_eq!(world.tick_at(1002), []);
    assert!(end_of(&world.say(2, "web", ended(of(&task), 0))).is_some());
}

#[test]
fn a_task_that_fits_no_message_is_not_started_and_the_next_is_sent() {
    let mut world = World::joined();
    let mut large = task("web");
    large.job.stdin = Some("x".repeat(TEXT_MAX));
    let effects = world.tell(submit(&large));
    assert!(matches!(end_of(&effects), Some((TaskOutcome::NotStarted { .. }, _))));
    assert!(order(&world.tell(submit(&task("web"))), 1).is_some());
}

#[test]
fn a_task_waits_for_the_configuration_that_comes_after_the_welcome() {
    let configured = |digest: Option<&[u8]>| {
        let digest = digest.map(Digest::of);
        FromRuntime::Configured(vm_agent_schemas::wire::Configured { digest, problems: Vec::new() })
    };
    let mut world = World::new();
    // With secrets in it the hub keeps none.
    world.tell(Event::Enroll(credential("late", 1), None));
    let task = task("late");
    world.tell(submit(&task));
    assert_eq!(order(&world.join(1, &hello("late", 1), 1), 1), None);
    assert_eq!(order(&world.say(1, "late", configured(None)), 1), None, "it has none yet");
    let told = world.say(1, "late", configured(Some(b"secrets")));
    assert_eq!(order(&told, 1).map(|order| order.task), Some(of(&task)));
    assert_eq!(order(&world.say(1, "late", configured(Some(b"others"))), 1), None, "it is sent once");
}

//! Attempts, slots, keys, cancelling, the pool, and what tasks write.

use std::collections::BTreeMap;

use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::task::{Retry, Task, TaskState, Terms};
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_schemas::wire::{
    Channel, Configuration, Frame, FromHub, FromRuntime, Hello, StreamTaken, TaskFollow, TaskOrder, TaskOutcome,
    TaskRef,
};

use super::world::*;
use crate::state::{ConnId, Directory, Effect, Event, Member, Notice, OutputKnown, Record, StreamKey};

fn orders(effects: &[Effect], conn: u64) -> Vec<TaskOrder> {
    let orders = sent(effects, conn).into_iter().filter_map(|body| match body {
        FromHub::Task(order) => Some(order),
        _ => None,
    });
    orders.collect()
}

fn ordered(effects: &[Effect], conn: u64) -> Vec<TaskRef> {
    orders(effects, conn).into_iter().map(|order| order.task).collect()
}

/// The last record of the only task that was stored.
fn record(effects: &[Effect]) -> Task {
    match stored(effects).pop() {
        Some(Record::Task(task)) => task,
        other => panic!("{other:?} in {effects:?}"),
    }
}

fn with_terms(terms: Terms) -> Task {
    Task { terms, ..task("web") }
}

fn with_key(key: &str) -> Task {
    with_terms(Terms { key: Some(key.to_owned()), ..Terms::default() })
}

fn idempotent() -> Terms {
    Terms { idempotent: Some(true), ..Terms::default() }
}

fn follow(task: TaskRef, stream: Option<u32>, stdout: u64) -> FromHub {
    FromHub::TaskFollow(TaskFollow { task, stream, stdout, stderr: 0 })
}

const fn again(task: TaskRef) -> TaskRef {
    TaskRef { attempt: task.attempt + 1, ..task }
}

#[test]
fn tasks_of_different_keys_run_side_by_side_as_far_as_there_are_slots() {
    let mut world = World::joined();
    let tasks: Vec<Task> = ["a", "b", "a", "c", "d", "e"].map(with_key).into();
    let sent: Vec<_> = tasks.iter().flat_map(|task| ordered(&world.tell(submit(task)), 1)).collect();
    assert_eq!(sent, [0, 1, 3, 4].map(|number| of(&tasks[number])), "four slots, and one of each key");
    let session = world.hub.sessions().remove(0);
    assert_eq!((session.tasks, session.running, session.slots), (6, 4, 4));
    assert_eq!(ordered(&world.say(1, "web", ended(of(&tasks[0]), 0)), 1), [of(&tasks[2])], "the oldest that may");
    let slots = |slots| {
        let members = [(name("web"), Member { labels: BTreeMap::new(), slots })].into();
        Event::Directory(Directory { members, allow: Vec::new() })
    };
    assert_eq!(ordered(&world.tell(slots(5)), 1), [of(&tasks[5])]);
    world.tell(slots(1));
    let last = with_key("z");
    assert_eq!(ordered(&world.tell(submit(&last)), 1), []);
    for number in [1, 2, 3, 4] {
        assert_eq!(ordered(&world.say(1, "web", ended(of(&tasks[number]), 0)), 1), []);
    }
    assert_eq!(ordered(&world.say(1, "web", ended(of(&tasks[5]), 0)), 1), [of(&last)]);
}

#[test]
fn a_task_that_waits_for_its_retry_holds_back_those_of_its_key() {
    let mut world = World::joined();
    let retry = Retry { backoff: Span::from_secs(10), ..Retry::default() };
    let first = with_terms(Terms { retry: Some(retry), key: Some("a".to_owned()), ..Terms::default() });
    let (second, other) = (with_key("a"), with_key("b"));
    world.tell(submit(&first));
    assert_eq!(ordered(&world.tell(submit(&second)), 1), []);
    let failed = world.say(1, "web", ended(of(&first), 1));
    assert_eq!(record(&failed).state, TaskState::Queued { not_before: Some(at(10)) });
    assert!(notices(&failed).iter().any(|notice| matches!(notice, Notice::TaskRetried(task) if task.attempt == 2)));
    assert_eq!(sent(&failed, 1), [FromHub::TaskAck(of(&first))]);
    assert_eq!(ordered(&world.tell(submit(&other)), 1), [of(&other)]);
    assert_eq!(ordered(&world.tick_at(9), 1), []);
    assert_eq!(ordered(&world.tick_at(10), 1), [again(of(&first))]);
    assert_eq!(ordered(&world.say(1, "web", ended(again(of(&first)), 0)), 1), [of(&second)]);
}

#[test]
fn what_was_not_begun_by_its_deadline_expires() {
    let mut world = World::new();
    let late = with_terms(Terms { deadline: Some(at(50)), ..Terms::default() });
    world.tell(submit(&late));
    assert_eq!(world.tick_at(49), []);
    let expired = record(&world.tick_at(50));
    assert_eq!((expired.outcome(), expired.dead.is_some()), (Some(&TaskOutcome::Expired), true));
    assert_eq!(ordered(&world.join(1, &hello("web", 1), 1), 1), []);
    let soon = with_terms(Terms { deadline: Some(at(80)), ..Terms::default() });
    assert_eq!(orders(&world.tell(submit(&soon)), 1)[0].timeout_ms, 30_000, "it may run until then");
    let over = with_terms(Terms { deadline: Some(at(50)), key: Some("x".to_owned()), ..Terms::default() });
    assert_eq!(record(&world.tell(submit(&over))).outcome(), Some(&TaskOutcome::Expired), "it is not even sent");
}

#[test]
fn what_waits_is_cancelled_at_once_and_what_may_run_by_its_runtime() {
    let mut world = World::joined();
    let (running, waiting) = (task("web"), task("web"));
    world.tell(submit(&running));
    world.tell(submit(&waiting));
    let cancel = |task: &Task| Event::CancelTask { task: task.id, by: "me".to_owned() };
    let canceled = record(&world.tell(cancel(&waiting)));
    assert_eq!((canceled.outcome(), canceled.canceled_by.as_deref()), (Some(&TaskOutcome::Canceled), Some("me")));
    assert_eq!(world.tell(cancel(&waiting)), []);
    let effects = world.tell(cancel(&running));
    assert_eq!(record(&effects).canceled_by.as_deref(), Some("me"));
    assert_eq!(sent(&effects, 1), [FromHub::TaskCancel(of(&running))]);
    assert_eq!(world.tell(cancel(&running)), [], "once");
    // Nobody knows whether the order arrived.
    world.tell(Event::Closed { conn: ConnId(1) });
    let joined = sent(&world.join(2, &hello("web", 1), 1), 2);
    assert!(matches!(joined.as_slice(), [_, FromHub::Task(_), FromHub::TaskCancel(_)]), "{joined:?}");
    world.say(2, "web", FromRuntime::TaskStarted(of(&running)));
    world.tell(Event::Closed { conn: ConnId(2) });
    world.join(3, &hello("web", 1), 1);
    let told = sent(&world.say(3, "web", FromRuntime::TaskStarted(of(&running))), 3);
    assert_eq!(told, [follow(of(&running), Some(1), 0), FromHub::TaskCancel(of(&running))]);
    let faster = record(&world.say(3, "web", ended(of(&running), 0)));
    assert_eq!(faster.outcome(), Some(&TaskOutcome::Exited { code: 0 }));
}

#[test]
fn what_may_be_repeated_is_done_again_by_the_next_incarnation() {
    let mut world = World::joined();
    let repeated = with_terms(idempotent());
    world.tell(submit(&repeated));
    let lost = record(&world.tell(Event::Enroll(credential("web", 2), Some(Configuration::default()))));
    assert_eq!((lost.attempt, lost.losses, &lost.state), (2, 1, &TaskState::QUEUED));
    let next = Hello { incarnation: Incarnation(2), ..hello("web", 3) };
    assert_eq!(ordered(&world.join(2, &next, 3), 2), [again(of(&repeated))]);
    // What the first incarnation may still have to say comes too late.
    let late = sent(&world.say(2, "web", ended(of(&repeated), 0)), 2);
    assert_eq!(late, [FromHub::TaskAck(of(&repeated))]);
    let stale = sent(&world.say(2, "web", FromRuntime::TaskStarted(of(&repeated))), 2);
    assert_eq!(stale, [follow(of(&repeated), None, 0), FromHub::TaskCancel(of(&repeated))]);
    assert_eq!(world.hub.sessions()[0].running, 1);
}

#[test]
fn what_ends_with_its_agent_is_a_dead_letter() {
    let mut world = World::joined();
    let (running, waiting) = (task("web"), task("web"));
    world.tell(submit(&running));
    world.tell(submit(&waiting));
    let over = stored(&world.tell(Event::Revoke(name("web"))));
    assert_eq!(over.len(), 2);
    assert!(over.iter().all(|record| matches!(record, Record::Task(Task { dead: Some(_), .. }))), "{over:?}");
}

#[test]
fn a_runtime_goes_on_with_its_output_from_where_it_is_known() {
    let mut world = World::joined();
    let task = task("web");
    let stream = orders(&world.tell(submit(&task)), 1)[0].stream;
    world.say(1, "web", FromRuntime::TaskStarted(of(&task)));
    let frame = |stream, offset, data: &'static str| Frame {
        stream,
        channel: Channel::Stdout,
        offset,
        end: false,
        data: data.into(),
    };
    let effects = world.data(1, frame(stream, 0, "hello"));
    let (agent, channel, data) = (name("web"), Channel::Stdout, bytes::Bytes::from("hello"));
    let record = Record::Output { task: of(&task), channel, offset: 0, data: data.clone() };
    let notice = Notice::TaskOutput { agent, task: of(&task), channel, offset: 0, data };
    assert_eq!(effects, [Effect::Store(record), Effect::Notify(notice)]);
    world.tell(Event::Closed { conn: ConnId(1) });
    world.join(2, &hello("web", 1), 1);
    let told = world.say(2, "web", FromRuntime::TaskStarted(of(&task)));
    assert_eq!(sent(&told, 2), [follow(of(&task), Some(1), 5)]);
    assert_eq!(world.say(2, "web", FromRuntime::TaskStarted(of(&task))), [], "once in a session");
    assert_eq!(stored(&world.data(2, frame(1, 5, " world"))).len(), 1);
}

#[test]
fn a_new_controller_goes_on_with_what_is_stored() {
    let mut world = World::new();
    let task = Task { state: TaskState::Running { incarnation: Incarnation(1) }, ..task("web") };
    world.tell(Event::Submit(task.clone(), OutputKnown { stdout: 7, stderr: 0 }));
    assert_eq!(ordered(&world.join(1, &hello("web", 1), 1), 1), [], "it runs");
    let told = world.say(1, "web", FromRuntime::TaskStarted(of(&task)));
    assert_eq!((sent(&told, 1), notices(&told)), (vec![follow(of(&task), Some(1), 7)], vec![]));
}

#[test]
fn output_is_stored_before_it_is_taken_and_asked_for_again_if_it_could_not_be() {
    let mut world = World::joined();
    let task = task("web");
    let stream = orders(&world.tell(submit(&task)), 1)[0].stream;
    let piece = bytes::Bytes::from(vec![0; 32 * 1024]);
    let frame = |number: u64| Frame {
        stream,
        channel: Channel::Stderr,
        offset: number * 32 * 1024,
        end: false,
        data: piece.clone(),
    };
    world.data(1, frame(0));
    let effects = world.data(1, frame(1));
    let taken = StreamTaken { stream, channel: Channel::Stderr, offset: 64 * 1024 };
    let [Effect::Store(_), Effect::Notify(_), Effect::Send { body, .. }] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    assert_eq!(*body, FromHub::StreamTaken(taken));
    let inbound = crate::state::Inbound::Data(frame(2));
    let records = stored(&world.hub.handle(Event::Received { conn: ConnId(1), inbound }, at(0)));
    let failed = world.tell(Event::StoreFailed(records));
    assert!(refused(&failed, 1).is_some(), "the runtime comes back");
    world.join(2, &hello("web", 1), 1);
    // Nothing was heard of its beginning, so it is ordered again, and its output comes from the beginning.
    let mut again = frame(0);
    again.stream = 1;
    assert_eq!(stored(&world.data(2, again)), [], "what is known is not stored twice");
}

#[test]
fn no_more_output_is_stored_than_the_job_wants_kept() {
    let mut world = World::joined();
    let mut small = task("web");
    small.job.output = ByteSize::from_bytes(3);
    let stream = orders(&world.tell(submit(&small)), 1)[0].stream;
    let frame = |offset| Frame { stream, channel: Channel::Stdout, offset, end: false, data: "four".into() };
    assert_eq!(stored(&world.data(1, frame(0))).len(), 1);
    assert_eq!(stored(&world.data(1, frame(4))).len(), 0);
}

#[test]
fn what_has_begun_is_stored_by_and_by_and_only_if_it_goes_on() {
    let mut world = World::joined();
    let (short, long) = (with_key("a"), with_key("b"));
    for task in [&short, &long] {
        world.tell(submit(task));
        assert_eq!(stored(&world.say(1, "web", FromRuntime::TaskStarted(of(task)))), []);
    }
    world.say(1, "web", ended(of(&short), 0));
    let begun = record(&world.tick_at(1));
    assert_eq!((begun.id, &begun.state), (long.id, &TaskState::Running { incarnation: Incarnation(1) }));
    assert_eq!(world.tick_at(2), []);
}

// The pool.

fn directory() -> Event {
    let member = |label: &str| Member { labels: [("team".to_owned(), label.to_owned())].into(), ..Member::default() };
    let members = [(name("web"), member("build")), (name("db"), member("build"))].into();
    Event::Directory(Directory { members, allow: Vec::new() })
}

fn pooled(terms: Terms) -> Task {
    Task { agent: None, pool: Some("team=build".parse().unwrap()), ..with_terms(terms) }
}

#[test]
fn a_task_of_the_pool_goes_to_an_agent_that_fits_and_has_nothing_to_do() {
    let mut world = World::joined();
    world.tell(directory());
    world.join(2, &hello("db", 2), 2);
    world.tell(submit(&task("db")));
    let tasks = [0; 3].map(|_| pooled(Terms::default()));
    let effects = world.tell(submit(&tasks[0]));
    assert_eq!((ordered(&effects, 1), ordered(&effects, 2)), (vec![of(&tasks[0])], vec![]));
    let given = record(&effects);
    assert_eq!((given.agent, given.state), (Some(name("web")), TaskState::Sent { incarnation: Incarnation(1) }));
    assert!(notices(&effects).contains(&Notice::Activity { agent: name("web") }));
    for task in &tasks[1..] {
        assert_eq!(world.tell(submit(task)), [], "one at a time, though there are slots");
    }
    assert_eq!(ordered(&world.say(1, "web", ended(of(&tasks[0]), 0)), 1), [of(&tasks[1])]);
    // A client's stream keeps an agent from taking more.
    world.tell(Event::OpenStream { key: StreamKey(1), agent: name("web"), target: target(), stdin: false });
    assert_eq!(ordered(&world.say(1, "web", ended(of(&tasks[1]), 0)), 1), []);
    assert_eq!(ordered(&world.tell(Event::CloseStream { key: StreamKey(1) }), 1), [of(&tasks[2])]);
}

#[test]
fn nobody_takes_from_the_pool_who_does_not_fit_or_is_cordoned() {
    let mut world = World::joined();
    let task = pooled(Terms::default());
    assert_eq!(world.tell(submit(&task)), [], "it is not known who has which labels");
    world.tell(Event::Cordon([name("web")].into()));
    assert_eq!(ordered(&world.tell(directory()), 1), []);
    assert_eq!(ordered(&world.tell(Event::Cordon([].into())), 1), [of(&task)]);
}

#[test]
fn a_task_of_the_pool_that_is_tried_again_may_go_elsewhere() {
    let mut world = World::joined();
    world.tell(directory());
    let retry = Some(Retry { backoff: Span::from_secs(10), ..Retry::default() });
    let task = pooled(Terms { retry, ..Terms::default() });
    world.tell(submit(&task));
    let failed = record(&world.say(1, "web", ended(of(&task), 1)));
    assert_eq!((failed.agent, failed.former[0].agent.as_ref()), (None, Some(&name("web"))));
    world.tell(submit(&self::task("web")));
    world.join(2, &hello("db", 2), 2);
    assert_eq!(ordered(&world.tick_at(10), 2), [again(of(&task))]);
}

#[test]
fn an_agent_that_is_away_too_long_loses_what_may_be_repeated() {
    for (terms, goes_on) in [(idempotent(), true), (Terms::default(), false)] {
        let mut world = World::joined();
        world.tell(directory());
        let task = pooled(terms);
        world.tell(submit(&task));
        world.say(1, "web", FromRuntime::TaskStarted(of(&task)));
        world.join(2, &hello("db", 2), 2);
        world.tick_at(1);
        world.tell(Event::Closed { conn: ConnId(1) });
        for now in [20, 40, 60] {
            world.say(2, "db", FromRuntime::Health(health()));
            assert_eq!(ordered(&world.tick_at(now), 2), []);
        }
        let taken = ordered(&world.tick_at(61), 2);
        assert_eq!(taken, if goes_on { vec![again(of(&task))] } else { vec![] });
        // The first agent comes back: what it does is its own if nobody else does it, and else nobody's.
        world.join(3, &hello("web", 1), 1);
        let told = sent(&world.say(3, "web", FromRuntime::TaskStarted(of(&task))), 3);
        if goes_on {
            assert_eq!(told, [follow(of(&task), None, 0), FromHub::TaskCancel(of(&task))]);
            assert_eq!(sent(&world.say(3, "web", ended(of(&task), 0)), 3), [FromHub::TaskAck(of(&task))]);
            assert_eq!(record(&world.say(2, "db", ended(again(of(&task)), 7))).attempt, 2);
        } else {
            assert_eq!(told, [follow(of(&task), Some(1), 0)]);
        }
    }
}

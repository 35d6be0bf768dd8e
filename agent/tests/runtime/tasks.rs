//! Tasks run once, and their end is told until it is acknowledged.

use std::fs;

use crate::support::{Heard, Hub, Runtime, Session, order, until};
use vm_agent_schemas::task::Job;
use vm_agent_schemas::wire::{FromHub, FromRuntime, TaskEnded, TaskOrder, TaskOutcome};

async fn ended(session: &mut Session) -> TaskEnded {
    session
        .hear_that(|said| match said {
            FromRuntime::TaskEnded(ended) => Some(ended),
            _ => None,
        })
        .await
}

async fn started(session: &mut Session, order: &TaskOrder) {
    let task = session.hear_that(|said| match said {
        FromRuntime::TaskStarted(task) => Some(task),
        _ => None,
    });
    assert_eq!(task.await, order.task);
}

#[tokio::test]
async fn a_task_ordered_twice_runs_once() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    let order = order("echo ran >> ran; echo said; until test -e go; do sleep 0.01; done", 1);
    session.say(FromHub::Task(order.clone())).await;
    session.say(FromHub::Task(TaskOrder { stream: 2, ..order.clone() })).await;
    started(&mut session, &order).await;
    started(&mut session, &order).await;
    fs::write(place.path().join("work/go"), "").unwrap();
    let first = ended(&mut session).await;
    assert_eq!(first.outcome, TaskOutcome::Exited { code: 0 });
    session.say(FromHub::Task(order.clone())).await;
    assert_eq!(ended(&mut session).await, first);
    session.say(FromHub::TaskAck(order.task)).await;
    session.say(FromHub::Task(order)).await;
    assert_eq!(ended(&mut session).await.outcome, first.outcome);
    assert_eq!(fs::read_to_string(place.path().join("work/ran")).unwrap(), "ran\n");
}

#[tokio::test]
async fn output_is_sent_live_on_the_orders_stream_before_the_end_is_told() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    session.say(FromHub::Task(order("echo out; echo err >&2", 5))).await;
    let mut live = Vec::new();
    let mut ends = 0;
    loop {
        match session.next().await.unwrap() {
            Heard::Data(frame) => {
                assert_eq!(frame.stream, 5);
                ends += u32::from(frame.end);
                live.push(String::from_utf8(frame.data.to_vec()).unwrap());
            }
            Heard::Said(FromRuntime::TaskEnded(_)) => break,
            Heard::Said(_) => {}
        }
    }
    live.retain(|text| !text.is_empty());
    live.sort();
    assert_eq!(live, ["err\n", "out\n"]);
    assert_eq!(ends, 2);
}

#[tokio::test]
async fn a_task_does_not_wait_for_a_hub_that_takes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    session.say(FromHub::Task(order("seq 1 1000000", 1))).await;
    let ended = ended(&mut session).await;
    assert_eq!(ended.outcome, TaskOutcome::Exited { code: 0 });
}

#[tokio::test]
async fn a_task_is_ended_at_its_timeout() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    session.say(FromHub::Task(TaskOrder { timeout_ms: 300, ..order("sleep 1000 & sleep 1000", 1) })).await;
    assert_eq!(ended(&mut session).await.outcome, TaskOutcome::TimedOut);
    assert_eq!(runtime.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_task_whose_program_is_missing_ends_with_the_reason() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    let mut order = order("", 1);
    order.job = Job::exec(["no-such-program"]);
    session.say(FromHub::Task(order)).await;
    let reason = "there is no program `no-such-program`".to_owned();
    assert_eq!(ended(&mut session).await.outcome, TaskOutcome::NotStarted { reason });
}

#[tokio::test]
async fn a_task_under_way_when_the_runtime_is_killed_ends_as_interrupted_and_does_not_run_again() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    let order = order("echo ran >> ran; sleep 1000 & sleep 1000", 1);
    session.say(FromHub::Task(order.clone())).await;
    until("the task's work", || place.path().join("work/ran").exists()).await;
    runtime.kill();
    let restarted = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    until("the end of what was left", || restarted.processes().is_empty()).await;
    session.say(FromHub::Task(order.clone())).await;
    for _ in 0..2 {
        let ended = ended(&mut session).await;
        assert_eq!((ended.task, ended.outcome), (order.task, TaskOutcome::Interrupted));
    }
    assert_eq!(fs::read_to_string(place.path().join("work/ran")).unwrap(), "ran\n");
}

#[tokio::test]
async fn an_end_is_told_after_each_reconnect_and_restart_until_it_is_acknowledged() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    let order = order("until test -e go; do sleep 0.01; done; echo late; exit 3", 1);
    session.say(FromHub::Task(order.clone())).await;
    started(&mut session, &order).await;
    drop(session);
    // It ends while nobody is there.
    fs::write(place.path().join("work/go"), "").unwrap();
    let journal = place.path().join(format!("tasks/{}.json", order.task.task));
    until("the end in the journal", || fs::read_to_string(&journal).is_ok_and(|text| text.contains("ended"))).await;
    let (mut session, _) = hub.session().await;
    let first = ended(&mut session).await;
    assert_eq!((first.task, &first.outcome), (order.task, &TaskOutcome::Exited { code: 3 }));
    drop(session);
    let (mut session, _) = hub.session().await;
    assert_eq!(ended(&mut session).await, first);
    runtime.kill();
    let _restarted = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    assert_eq!(ended(&mut session).await, first);
    session.say(FromHub::TaskAck(order.task)).await;
    until("the journal to be settled", || !fs::read_to_string(&journal).unwrap().contains("ended")).await;
    drop(session);
    let (mut session, _) = hub.session().await;
    // A stream's end comes behind whatever a session begins with.
    session.open(1, "exit 0", false).await;
    session
        .hear_that(|said| match said {
            FromRuntime::TaskEnded(_) | FromRuntime::TaskStarted(_) => panic!("it was acknowledged"),
            FromRuntime::StreamEnded(_) => Some(()),
            _ => None,
        })
        .await;
}

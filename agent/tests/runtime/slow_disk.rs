//! A disk that hangs holds up what waits for it, and nothing else. A pipe in the place of a file hangs whoever opens
//! it, until there is a reader.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::support::{Heard, Hub, Kept, Runtime, Session, order};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use vm_agent_schemas::wire::{Channel, FromHub, FromRuntime, TaskOutcome};

/// Has whoever writes this file wait.
fn hang(file: &Path) {
    mknodat(CWD, file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Lets it go on, as long as the answer lives.
fn release(file: &Path) -> OwnedFd {
    open(file, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap()
}

/// A runtime that reports every second: it also wants to hear from the hub as often, however busy the machine is.
async fn runtime(folder: &Path) -> (Runtime, Session) {
    let mut hub = Hub::plain().await;
    hub.heartbeat_ms = 1000;
    let seed = hub.seed(folder, None);
    let runtime = Runtime::start(folder, &seed);
    let session = hub.session().await.0;
    (runtime, session)
}

/// Hears the heart beat, and nothing of tasks.
async fn beats(session: &mut Session) {
    let mut count = 0;
    while count < 3 {
        match session.next().await.expect("the connection lives") {
            Heard::Said(FromRuntime::Health(_)) => count += 1,
            Heard::Said(FromRuntime::TaskStarted(_) | FromRuntime::TaskEnded(_)) => panic!("it is not on the disk"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_attempt_waits_for_the_journal_and_the_heart_does_not() {
    let place = tempfile::tempdir().unwrap();
    let (runtime, mut session) = runtime(place.path()).await;
    let order = order("touch ran", 1);
    let file = place.path().join(format!("tasks/{}.json.new", order.task.task));
    hang(&file);
    session.say(FromHub::Task(order.clone())).await;
    beats(&mut session).await;
    assert!(!place.path().join("work/ran").exists() && runtime.processes().is_empty());
    // What goes into a pipe is on no disk, and so it is not begun.
    let _reader = release(&file);
    let kept = session.keep(order.task, 1, Kept::default(), |_| false).await;
    assert!(matches!(kept.outcome(), TaskOutcome::NotStarted { .. }), "{}", kept.outcome());
    assert!(!place.path().join("work/ran").exists());
}

#[tokio::test]
async fn an_attempt_that_is_cancelled_before_it_is_in_the_journal_never_runs() {
    let place = tempfile::tempdir().unwrap();
    let (_runtime, mut session) = runtime(place.path()).await;
    let (first, second) = (order("true", 1), order("touch ran", 2));
    let file = place.path().join(format!("tasks/{}.json.new", first.task.task));
    hang(&file);
    for order in [&first, &second] {
        session.say(FromHub::Task(order.clone())).await;
    }
    session.say(FromHub::TaskCancel(second.task)).await;
    beats(&mut session).await;
    let _reader = release(&file);
    let kept = session.keep(second.task, 2, Kept::default(), |_| false).await;
    assert_eq!(kept.outcome(), &TaskOutcome::Canceled);
    assert!(!place.path().join("work/ran").exists());
}

#[tokio::test]
async fn output_that_waits_for_the_disk_holds_up_no_heart_and_no_other_task() {
    let place = tempfile::tempdir().unwrap();
    let (_runtime, mut session) = runtime(place.path()).await;
    let slow = order("until test -e go; do sleep 0.01; done; echo said; until test -e end; do sleep 0.01; done", 1);
    session.say(FromHub::Task(slow.clone())).await;
    let work = |name: &str| place.path().join("work").join(name);
    let begun = session.hear_that(|said| matches!(said, FromRuntime::TaskStarted(_)).then_some(()));
    begun.await;
    let file = place.path().join(format!("tasks/{}.1/stdout.0", slow.task.task));
    fs::create_dir(file.parent().unwrap()).unwrap();
    hang(&file);
    fs::write(work("go"), "").unwrap();
    beats(&mut session).await;
    let other = session.run(order("echo other", 2)).await;
    assert_eq!((other.text().as_str(), other.outcome()), ("other\n", &TaskOutcome::Exited { code: 0 }));
    let _reader = release(&file);
    fs::remove_file(&file).unwrap();
    fs::write(work("end"), "").unwrap();
    let kept = session.keep(slow.task, 1, Kept::default(), |_| false).await;
    assert_eq!((kept.outcome(), kept.ended[&Channel::Stdout]), (&TaskOutcome::Exited { code: 0 }, 5));
}

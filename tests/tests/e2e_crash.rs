//! Things that die, freeze and come back, one at a time.

use rustix::process::Signal;
use vm_agent_schemas::api::List;
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::ids::Life;
use vm_agent_schemas::plan::{Health, Sync, WaitsFor};
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::TaskOutcome;
use vm_agent_tests::e2e::Fleet;

const TWO: &str = "defaults: {driver: local}\nagents:\n  web: {}\n  db: {}\n";

fn of<'a>(events: &'a [Event], agent: &'a str) -> impl Iterator<Item = EventKind> + 'a {
    events.iter().filter(move |event| event.agent.as_ref().is_some_and(|name| name.as_str() == agent)).map(|e| e.kind)
}

/// What happened to an agent's instance.
fn story(events: &[Event], agent: &str) -> Vec<EventKind> {
    let told = [EventKind::InstanceFailed, EventKind::StepStarted, EventKind::StepSucceeded, EventKind::StepFailed];
    of(events, agent).filter(|kind| told.contains(kind)).collect()
}

/// The story of one crash.
const MENDED: [EventKind; 3] = [EventKind::InstanceFailed, EventKind::StepStarted, EventKind::StepSucceeded];

#[test]
fn a_runtime_that_was_killed_is_healed_after_a_pause() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let db = fleet.runtimes()["db"].clone();
    let mut seen_failed = false;
    // Each failure doubles the pause: on a busy machine the first one may be over before it is seen.
    for _ in 0..5 {
        let last = fleet.last_event();
        let killed = fleet.runtimes()["web"].clone();
        killed.send(Signal::KILL);
        fleet.wait_for_event(last, EventKind::InstanceFailed, Some("web"));
        let down = fleet.agent("web");
        let paused = down.waits_for.iter().any(|reason| matches!(reason, WaitsFor::Backoff { .. }));
        seen_failed |= down.health == Health::Failed && paused;

        fleet.wait_until_well();
        let events = fleet.events_since(last);
        assert_eq!(story(&events, "web"), MENDED, "{events:?}");
        assert_ne!(fleet.runtimes()["web"], killed);
        if seen_failed {
            break;
        }
    }
    assert!(seen_failed, "the pause is to be seen: Failed, and waiting for the backoff");
    assert_eq!(fleet.runtimes()["db"], db, "it had nothing to do with that");
    fleet.finish();
}

#[test]
fn what_a_killed_runtime_ran_ends_with_it_and_is_not_run_again() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let id = fleet.ok(&["task", "web", "--", "echo run >> runs; sleep 1000 & sleep 1000"]).trim().to_owned();
    let runs = fleet.instance("web").join("work/runs");
    let sleeps =
        || fleet.processes().iter().filter(|process| process.command.first().is_some_and(|w| w == "sleep")).count();
    fleet.wait_for("the task", || (runs.exists() && sleeps() == 2).then_some(()));
    fleet.runtimes()["web"].send(Signal::KILL);
    fleet.wait_for("the end of what the task began", || (sleeps() == 0).then_some(()));
    let task = fleet.wait_for("the task's outcome", || {
        let tasks: List<Task> = fleet.document(&["task", "web"]);
        tasks.items.into_iter().find(|task| task.id.to_string() == id && task.outcome().is_some())
    });
    assert_eq!(task.outcome(), Some(&TaskOutcome::Interrupted));
    fleet.wait_until_well();
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "run\n");
    assert_eq!(sleeps(), 0);
    fleet.finish();
}

#[test]
fn when_all_runtimes_die_at_once_the_fuse_blows_and_all_is_healed_later() {
    let fleet = Fleet::new("defaults: {driver: local}\nagents:\n  a: {replicas: 20}\n");
    fleet.up();
    let before = fleet.runtimes();
    assert_eq!(before.len(), 20);
    let last = fleet.last_event();
    before.values().for_each(|runtime| runtime.send(Signal::KILL));
    fleet.wait_for_event(last, EventKind::FuseBlown, None);
    let status = fleet.status();
    assert!(status.fuse.is_blown(), "{status:?}");
    let table = fleet.ok(&["status"]);
    assert!(table.lines().any(|line| line.starts_with("Fuse") && line.contains("blown")), "{table}");

    fleet.wait_for_event(last, EventKind::FuseClosed, None);
    fleet.wait_until_well();
    assert!(!fleet.status().fuse.is_blown());
    let after = fleet.runtimes();
    assert!(before.keys().eq(after.keys()), "each agent once: {after:?}");
    let events = fleet.events_since(last);
    for (name, runtime) in &before {
        assert_ne!(after[name], *runtime);
        assert_eq!(story(&events, name), MENDED, "{name}: {events:?}");
    }
    fleet.finish();
}

#[test]
fn a_runtime_that_is_frozen_is_offline_and_not_replaced() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let before = fleet.runtimes();
    let last = fleet.last_event();
    before["web"].send(Signal::STOP);
    let frozen = fleet.wait_for_agent("web", "Offline", |agent| agent.health == Health::Offline);
    assert_eq!(frozen.incarnation, fleet.agents()["db"].incarnation);
    // The loop goes on around it: two whole steps of another agent.
    fleet.ok(&["stop", "db"]);
    fleet.ok(&["start", "db"]);
    let events = fleet.events_since(last);
    assert!(!of(&events, "web").any(|kind| kind == EventKind::StepStarted), "{events:?}");
    assert_eq!(fleet.agent("web").health, Health::Offline);
    assert_eq!(fleet.runtimes()["web"], before["web"]);

    before["web"].send(Signal::CONT);
    fleet.wait_until_well();
    assert_eq!(fleet.runtimes()["web"], before["web"]);
    let events = fleet.events_since(last);
    assert!(!of(&events, "web").any(|kind| kind == EventKind::StepStarted), "{events:?}");
    assert_eq!(fleet.ok(&["exec", "web", "--", "echo back"]), "back\n");
    fleet.finish();
}

#[test]
fn a_controller_that_was_killed_goes_on_where_it_was() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    fleet.ok(&["stop", "db", "--for", "1h", "--reason", "a rest"]);
    let (status, before) = (fleet.status(), fleet.runtimes());
    let overrides = fleet.agent("db").overrides;
    assert_eq!(overrides.len(), 1);
    let events = fleet.events_since(0);
    assert_eq!(status.life, Life(1));

    fleet.kill_controller();
    assert_eq!(fleet.run(&["list"]).code, 8, "nobody is there to answer");
    assert_eq!(fleet.runtimes(), before, "runtimes need no controller to live");
    fleet.up();

    assert_eq!(fleet.status().life, status.life.next());
    assert_eq!(fleet.status().addresses, status.addresses, "port 0 is the same port again");
    let db = fleet.agent("db");
    assert_eq!(db.overrides, overrides);
    assert_eq!((db.power, db.sync, db.health), (Some(PowerState::Stopped), Sync::Synced, Health::Stopped));
    fleet.wait_until_well();
    assert_eq!(fleet.runtimes(), before);

    let told = fleet.events_since(0);
    assert_eq!(told[..events.len()], events, "what happened before is still told");
    assert!(told.is_sorted_by(|one, next| one.seq < next.seq), "{told:?}");
    let later = &told[events.len()..];
    assert_eq!(later[0].kind, EventKind::ControllerStarted);
    assert!(later.iter().all(|event| event.kind != EventKind::StepStarted), "{later:?}");
    fleet.finish();
}

#[test]
fn a_task_survives_the_controller_that_accepted_it() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let runs = fleet.instance("web").join("work/runs");
    let go = fleet.instance("web").join("work/go");
    fleet.ok(&["task", "web", "--", "echo run >> runs; until test -e go; do sleep 0.05; done; echo done"]);
    fleet.wait_for("the task", || runs.exists().then_some(()));
    fleet.kill_controller();
    std::fs::write(go, "").unwrap();
    fleet.up();
    let task = fleet.wait_for("the task's outcome", || {
        let tasks: List<Task> = fleet.document(&["task", "web"]);
        tasks.items.into_iter().find(|task| task.outcome().is_some())
    });
    assert_eq!(task.outcome(), Some(&TaskOutcome::Exited { code: 0 }));
    assert_eq!(fleet.ok(&["task", "output", &task.id.to_string()]), "done\n");
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "run\n");
    fleet.finish();
}

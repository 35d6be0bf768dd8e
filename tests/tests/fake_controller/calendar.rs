//! Tasks that run at moments in a calendar.
//!
//! Nobody waits for a moment here: a machine that was made long enough ago has always just had one of
//! those that come each minute.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use vm_agent_daemon::{Controller, Running};
use vm_agent_drivers::fake::{Call, Fake};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::plan::{DriftClass, Health, Rest, StepAction, Sync, WaitsFor};
use vm_agent_schemas::task::{Task, TaskSource};
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{agent, apply, becomes, count, is_well, pass, qemu, settled, start, until};

const PLAIN: &str = "defaults: {driver: qemu}\nagents: {web: {}}\n";

fn with_task(keys: &str, when: &str) -> String {
    format!(
        "defaults: {{driver: qemu}}\nagents: {{web: {{{keys}tasks: {{tick: {{exec: tock, when: {{{when}}}}}}}}}}}\n"
    )
}

const EACH_MINUTE: &str = "cron: '* * * * *'";

/// Lets the claims in a state folder, whose controller is down, have been written an hour earlier.
fn age(state: &Path) {
    let conn = rusqlite::Connection::open(state.join("state.db")).unwrap();
    let claims = vm_agent_store::claims::all(&conn).unwrap();
    for mut claim in claims {
        claim.created_at = claim.created_at.checked_sub(jiff::SignedDuration::from_hours(1)).unwrap();
        vm_agent_store::claims::put(&conn, &claim).unwrap();
    }
}

/// A controller with a machine that is an hour old.
async fn an_hour_later(text: &str) -> (tempfile::TempDir, Fake, Runtimes, Running) {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), text).await;
    settled(running.controller(), text, &["web"]).await;
    running.shut_down().await;
    age(folder.path());
    let running = start(folder.path(), &[&fake]).await;
    (folder, fake, runtimes, running)
}

async fn tasks(controller: &Controller) -> Vec<Task> {
    controller.tasks_of(&"web".parse().unwrap(), 1000).await.unwrap()
}

/// The moments for which tasks were accepted.
async fn moments(controller: &Controller) -> Vec<Timestamp> {
    let due = |task: Task| match task.source {
        TaskSource::File { due, .. } => due.expect("a task on a schedule has its moment"),
        TaskSource::Request { .. } => panic!("nobody asked for a task by hand"),
    };
    tasks(controller).await.into_iter().map(due).collect()
}

#[tokio::test]
async fn a_task_on_a_schedule_is_no_drift_before_its_moment() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    // The only leap days are far from any run of this test but one in four years, at its first minute.
    let text = with_task("", "cron: '0 0 29 2 *'");
    let applied = apply(running.controller(), &text).await;
    assert!(applied.plan.steps.iter().all(|step| step.action == StepAction::Create), "{:?}", applied.plan.steps);
    settled(running.controller(), &text, &["web"]).await;
    let web = agent(running.controller(), "web").await.unwrap();
    assert_eq!((web.sync, web.drift, web.waits_for), (Sync::Synced, Vec::new(), Vec::new()));
    assert_eq!(tasks(running.controller()).await, []);
    running.shut_down().await;
}

#[tokio::test]
async fn a_task_runs_once_for_each_of_its_moments() {
    let (_folder, _fake, runtimes, running) = an_hour_later(PLAIN).await;
    let controller = running.controller();
    let text = with_task("", EACH_MINUTE);
    apply(controller, &text).await;
    until("it has run", async || tasks(controller).await.first().and_then(|task| task.outcome().cloned())).await;
    for _ in 0..5 {
        pass(controller, &text).await;
    }
    becomes(controller, "web", is_well).await;
    // Should a minute have gone by meanwhile, that was another moment.
    let moments = moments(controller).await;
    assert_eq!(moments.iter().collect::<BTreeSet<_>>().len(), moments.len(), "{moments:?}");
    assert!(moments.len() <= 2 && moments.iter().all(|at| at.as_second() % 60 == 0), "{moments:?}");
    assert_eq!(runtimes.inside("web").began.len(), moments.len());
    running.shut_down().await;
}

#[tokio::test]
async fn a_run_that_failed_is_shown_until_the_next_one() {
    let (_folder, _fake, runtimes, running) = an_hour_later(PLAIN).await;
    let controller = running.controller();
    until("its runtime is back", async || agent(controller, "web").await.filter(is_well)).await;
    runtimes.change("web", |inside| inside.code = 7);
    apply(controller, &with_task("", EACH_MINUTE)).await;
    let web = becomes(controller, "web", |it| it.health == Health::Degraded).await;
    assert_eq!(web.sync, Sync::Blocked);
    let [WaitsFor::TaskFailed { next, outcome, .. }] = &web.waits_for[..] else { panic!("{:?}", web.waits_for) };
    assert!(next.is_some_and(|next| next.as_second() % 60 == 0), "{next:?}");
    assert_eq!(outcome, "ended with exit code 7");
    assert!(web.drift.iter().all(|drift| drift.class == DriftClass::Task && drift.path == "tasks.tick"));
    running.shut_down().await;
}

#[tokio::test]
async fn a_moment_wakes_a_sleeper_and_a_restart_repeats_nothing() {
    let (folder, fake, runtimes, running) = an_hour_later(PLAIN).await;
    let controller = running.controller();
    // Longer than this test may take between two moments, so that it sleeps for one reason only: it did.
    apply(controller, "defaults: {driver: qemu}\nagents: {web: {idle: 1s}}\n").await;
    becomes(controller, "web", |it| it.sync == Sync::Synced && it.rests == Some(Rest::Idle)).await;
    apply(controller, &with_task("idle: 1s, ", EACH_MINUTE)).await;
    until("it has run", async || tasks(controller).await.first().and_then(|task| task.outcome().cloned())).await;
    assert!(count(controller, EventKind::AgentAwake, "web").await >= 1);
    becomes(controller, "web", |it| it.sync == Sync::Synced && it.rests == Some(Rest::Idle)).await;
    running.shut_down().await;

    let running = start(folder.path(), &[&fake]).await;
    for _ in 0..3 {
        pass(running.controller(), &with_task("idle: 1s, ", EACH_MINUTE)).await;
    }
    becomes(running.controller(), "web", |it| it.sync == Sync::Synced && it.rests == Some(Rest::Idle)).await;
    let moments = moments(running.controller()).await;
    assert_eq!(moments.iter().collect::<BTreeSet<_>>().len(), moments.len(), "{moments:?}");
    assert_eq!(runtimes.inside("web").began.len(), moments.len());
    assert_eq!(fake.calls_on(Call::Create, "web"), 1);
    running.shut_down().await;
}

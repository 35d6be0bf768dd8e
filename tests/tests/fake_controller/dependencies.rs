//! Agents come up after those that they depend on are as far as they should be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_agent_daemon::Running;
use vm_agent_drivers::fake::{Call, Fake};
use vm_agent_schemas::fleet::Until;
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::plan::{Health, Rest, Sync, WaitsFor};
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{agent, apply, becomes, pass, qemu, start, until, well};

/// A controller, and `db` whose runtime is as the test wants it from its very start.
struct Stage {
    _folder: tempfile::TempDir,
    fake: Fake,
    runtimes: Runtimes,
    running: Running,
}

impl Stage {
    /// `web` depends on `db`. Before `absent` is unset `db` has no runtime, and its tasks are held.
    async fn with(web: &str, db: &str, absent: bool) -> (Self, String) {
        let folder = tempfile::tempdir().unwrap();
        let fake = qemu(Span::from_secs(60));
        let runtimes = Runtimes::of(&fake);
        let (up, first) = (runtimes.clone(), AtomicBool::new(true));
        fake.on_up(Arc::new(move |seed| {
            up.up(seed);
            if seed.agent.as_str() == "db" && first.swap(false, Ordering::Relaxed) {
                up.change("db", |inside| inside.holds = true);
                if absent {
                    up.stop("db");
                }
            }
        }));
        let running = start(folder.path(), &[&fake]).await;
        let text = format!("defaults: {{driver: qemu}}\nagents: {{db: {{{db}}}, web: {{dependsOn: {web}}}}}\n");
        apply(running.controller(), &text).await;
        (Self { _folder: folder, fake, runtimes, running }, text)
    }

    /// Waits until `web` waits for `db`, and sees that this is so for good.
    async fn waits(&self, wanted: Until, text: &str) {
        let waits = |it: &vm_agent_schemas::api::AgentView| matches!(&it.waits_for[..], [WaitsFor::Dependency { agent, until }] if agent.as_str() == "db" && *until == wanted);
        becomes(self.running.controller(), "web", |it| it.sync == Sync::Blocked && waits(it)).await;
        pass(self.running.controller(), text).await;
        assert!(waits(&agent(self.running.controller(), "web").await.unwrap()));
        assert_eq!(self.fake.calls_on(Call::Create, "web"), 0);
    }
}

#[tokio::test]
async fn started_asks_for_a_running_machine_only() {
    let (stage, _) = Stage::with("{db: started}", "", true).await;
    well(stage.running.controller(), &["web"]).await;
    let db = agent(stage.running.controller(), "db").await.unwrap();
    assert_eq!((db.instance, db.health), (Some(InstanceState::Running), Health::Starting));
    stage.running.shut_down().await;
}

#[tokio::test]
async fn healthy_asks_for_a_runtime_that_says_that_all_is_well() {
    for web in ["[db]", "{db: healthy}"] {
        let (stage, text) = Stage::with(web, "", true).await;
        until("db runs", async || (!stage.fake.instances().is_empty()).then_some(())).await;
        stage.waits(Until::Healthy, &text).await;
        stage.runtimes.start("db");
        well(stage.running.controller(), &["db", "web"]).await;
        stage.running.shut_down().await;
    }
}

#[tokio::test]
async fn completed_asks_for_tasks_that_have_succeeded() {
    let (stage, text) = Stage::with("{db: completed}", "tasks: {seed: {exec: fill}, index: {exec: more}}", false).await;
    let controller = stage.running.controller();
    until("a task runs", async || {
        agent(controller, "db").await.filter(|it| it.session.is_some() && !it.waits_for.is_empty())
    })
    .await;
    stage.waits(Until::Completed, &text).await;
    // One that failed has not succeeded.
    stage.runtimes.change("db", |inside| (inside.code, inside.holds) = (1, false));
    becomes(controller, "db", |it| it.health == Health::Degraded).await;
    stage.waits(Until::Completed, &text).await;
    stage.runtimes.change("db", |inside| inside.code = 0);
    // What is worded otherwise runs again.
    let mended = text.replace("fill", "fill --anew").replace("more", "more --anew");
    apply(controller, &mended).await;
    well(controller, &["db", "web"]).await;
    stage.running.shut_down().await;
}

#[tokio::test]
async fn an_agent_that_sleeps_is_as_far_as_it_needs_to_be() {
    for (until, tasks) in [("started", ""), ("healthy", ""), ("completed", ", tasks: {seed: {exec: fill}}")] {
        let folder = tempfile::tempdir().unwrap();
        let fake = qemu(Span::from_secs(60));
        let _runtimes = Runtimes::of(&fake);
        let running = start(folder.path(), &[&fake]).await;
        let db = format!("defaults: {{driver: qemu}}\nagents: {{db: {{idle: 1s{tasks}}}");
        apply(running.controller(), &format!("{db}}}\n")).await;
        becomes(running.controller(), "db", |it| it.sync == Sync::Synced && it.rests == Some(Rest::Idle)).await;
        apply(running.controller(), &format!("{db}, web: {{dependsOn: {{db: {until}}}}}}}\n")).await;
        well(running.controller(), &["web"]).await;
        assert_eq!(fake.calls_on(Call::Start, "db"), 0);
        running.shut_down().await;
    }
}

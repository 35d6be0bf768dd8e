//! A controller that goes down and comes back finds everything as it was, and makes nothing twice.

use std::time::{Duration, Instant};

use vm_agent_drivers::fake::{Behaviour, Call, Fake, On};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::observe::Capabilities;
use vm_agent_schemas::plan::{Health, Sync, WaitsFor};
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{
    ann, apply, becomes, capabilities, count, gone, pass, qemu, settled, start, stored, until, well,
};

const FILE: &str = "defaults: {driver: qemu}\nagents: {db: {}, web: {}}\n";

/// A fake whose calls may go on without the controller that made them.
fn outliving(limit: Span, calls_outlive_controller: bool) -> Fake {
    Fake::new(DriverName::Qemu, Capabilities { calls_outlive_controller, ..capabilities(limit) })
}

#[tokio::test]
async fn an_undisturbed_fleet_is_taken_over_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let runtimes = Runtimes::of(&fake);
    let mut running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), FILE).await;
    settled(running.controller(), FILE, &["db", "web"]).await;
    let (calls, instances) = (fake.mutating_calls(), fake.instances());
    for life in 2..5 {
        running.shut_down().await;
        running = start(folder.path(), &[&fake]).await;
        let controller = running.controller();
        let back = |it: &vm_agent_schemas::api::AgentView| it.session.as_ref().is_some_and(|it| it.epoch.0 >= life);
        for name in ["db", "web"] {
            becomes(controller, name, back).await;
        }
        well(controller, &["db", "web"]).await;
        pass(controller, FILE).await;
        assert_eq!((fake.mutating_calls(), fake.instances()), (calls, instances.clone()));
        assert_eq!(controller.status().await.unwrap().life.0, life);
    }
    assert_eq!(runtimes.disk("web").boot.0, 1, "no machine was started again");
    running.shut_down().await;
}

#[tokio::test]
async fn what_happens_while_the_controller_goes_down_is_written_down_and_its_own_end_comes_last() {
    const AGENTS: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let names: Vec<String> = (0..AGENTS).map(|number| format!("a{number}")).collect();
    let file = format!("defaults: {{driver: qemu}}\nagents: {{{}}}\n", names.join(": {}, ") + ": {}");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), &file).await;
    settled(running.controller(), &file, &names).await;
    running.shut_down().await;
    // Each session ended with the hub.
    let events: Vec<String> = stored(folder.path()).into_iter().filter(|row| row.starts_with("events: ")).collect();
    let of = |kind: EventKind| events.iter().filter(|row| row.contains(kind.as_str())).count();
    assert_eq!((of(EventKind::RuntimeLost), of(EventKind::ControllerStopped)), (AGENTS, 1));
    assert!(events.last().unwrap().contains(EventKind::ControllerStopped.as_str()), "{:?}", events.last());
}

#[tokio::test]
async fn a_create_that_may_go_on_without_us_is_waited_for_until_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let fake = outliving(Span::from_secs(5), true);
    let _runtimes = Runtimes::of(&fake);
    fake.script(On::create("web"), Behaviour::Hang);
    let running = start(folder.path(), &[&fake]).await;
    let asked = Instant::now();
    apply(running.controller(), FILE).await;
    well(running.controller(), &["db"]).await;
    assert_eq!(fake.calls_on(Call::Create, "web"), 1);
    running.shut_down().await;

    fake.clear_script();
    let running = start(folder.path(), &[&fake]).await;
    let web = becomes(running.controller(), "web", |it| it.sync == Sync::Reconciling).await;
    assert!(matches!(web.waits_for[..], [WaitsFor::Operation { .. }]), "{:?}", web.waits_for);
    until("it is tried again", async || (fake.calls_on(Call::Create, "web") == 2).then_some(())).await;
    assert!(asked.elapsed() >= Duration::from_secs(5), "{:?}", asked.elapsed());
    well(running.controller(), &["db", "web"]).await;
    assert_eq!(count(running.controller(), EventKind::StepInterrupted, "web").await, 1);
    assert_eq!((fake.calls(Call::Create), fake.instances().len()), (3, 2));
    running.shut_down().await;
}

#[tokio::test]
async fn a_create_that_worked_without_us_is_not_made_again() {
    for outlives in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let fake = outliving(Span::from_secs(3), outlives);
        let runtimes = Runtimes::of(&fake);
        fake.script(On::create("web"), Behaviour::HangAfterEffect);
        let running = start(folder.path(), &[&fake]).await;
        apply(running.controller(), FILE).await;
        until("it is made", async || (fake.instances().len() == 2).then_some(())).await;
        running.shut_down().await;
        let running = start(folder.path(), &[&fake]).await;
        well(running.controller(), &["db", "web"]).await;
        let told = async || (count(running.controller(), EventKind::StepInterrupted, "web").await == 1).then_some(());
        until("the end of the operation is told", told).await;
        assert_eq!((fake.mutating_calls(), fake.instances().len()), (2, 2), "outlives: {outlives}");
        assert_eq!(runtimes.disk("web").seed.incarnation.0, 1);
        running.shut_down().await;
    }
}

#[tokio::test]
async fn a_create_that_ended_with_us_is_made_again_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fake = outliving(Span::from_secs(3600), false);
    let _runtimes = Runtimes::of(&fake);
    fake.script(On::create("web"), Behaviour::Hang);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), FILE).await;
    until("it has begun", async || (fake.calls_on(Call::Create, "web") == 1).then_some(())).await;
    running.shut_down().await;
    assert_eq!(fake.under_way(), 0);

    fake.clear_script();
    let running = start(folder.path(), &[&fake]).await;
    well(running.controller(), &["db", "web"]).await;
    assert_eq!(count(running.controller(), EventKind::StepInterrupted, "web").await, 1);
    assert_eq!((fake.calls_on(Call::Create, "web"), fake.instances().len()), (2, 2));
    running.shut_down().await;
}

#[tokio::test]
async fn a_destroy_and_a_stop_that_were_cut_off_are_carried_through() {
    let folder = tempfile::tempdir().unwrap();
    let fake = outliving(Span::from_secs(3600), false);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["db", "web"]).await;
    fake.script(On::destroy("web"), Behaviour::HangAfterEffect);
    controller.destroy("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    until("it is deleted", async || (fake.instances().len() == 1).then_some(())).await;
    controller.stop("db".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    running.shut_down().await;

    fake.clear_script();
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    gone(controller, "web").await;
    becomes(controller, "db", |it| (it.sync, it.health) == (Sync::Synced, Health::Stopped)).await;
    assert_eq!((fake.calls(Call::Destroy), fake.calls(Call::Create), fake.instances().len()), (1, 2, 1));
    running.shut_down().await;
}

#[tokio::test]
async fn down_stops_every_machine_and_up_starts_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), FILE).await;
    settled(running.controller(), FILE, &["db", "web"]).await;
    let plan = running.controller().down(Default::default(), &ann()).await.unwrap();
    assert_eq!(plan.steps.len(), 2);
    running.stopped().await;
    running.shut_down().await;
    assert_eq!((fake.calls(Call::Stop), fake.calls(Call::Destroy)), (2, 0));

    let running = start(folder.path(), &[&fake]).await;
    well(running.controller(), &["db", "web"]).await;
    assert_eq!((fake.calls(Call::Start), fake.calls(Call::Create)), (2, 2));
    let request = vm_agent_schemas::api::DownRequest { destroy: true, dry_run: false };
    let plan = running.controller().down(request, &ann()).await.unwrap();
    assert_eq!(plan.steps.len(), 2);
    running.stopped().await;
    running.shut_down().await;
    assert_eq!(fake.instances(), []);
}

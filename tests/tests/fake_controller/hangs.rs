//! Drivers that hang: nobody but the agent concerned feels it, and ignorance acts on nothing.

use vm_agent_drivers::fake::{Behaviour, Call, Fake, On};
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::observe::{Capabilities, Deadlines};
use vm_agent_schemas::plan::{ConditionStatus, Health, Sync, WaitsFor};
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{
    ann, apply, becomes, capabilities, count, events, gone, is_well, pass, qemu, settled, start, well,
};

const TEN: [&str; 10] = ["a-1", "a-2", "a-3", "a-4", "a-5", "a-6", "a-7", "a-8", "a-9", "a-10"];

#[tokio::test]
async fn a_hung_create_delays_no_other_agent_and_is_tried_again_after_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(5));
    let _runtimes = Runtimes::of(&fake);
    fake.script(On::create("sick"), Behaviour::Hang);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, "defaults: {driver: qemu}\nagents: {sick: {}, a: {replicas: 10}}\n").await;
    well(controller, &TEN).await;
    assert_eq!((fake.under_way(), fake.calls_on(Call::Create, "sick")), (1, 1), "it hangs all the while");
    assert_eq!(count(controller, EventKind::StepTimedOut, "sick").await, 0);

    let waits = |it: &vm_agent_schemas::api::AgentView| matches!(it.waits_for[..], [WaitsFor::Backoff { .. }]);
    let listings = fake.calls(Call::List);
    let sick = becomes(controller, "sick", waits).await;
    let [WaitsFor::Backoff { failures: 1, last, .. }] = &sick.waits_for[..] else { panic!("{:?}", sick.waits_for) };
    assert!(last.contains("longer than 5 s"), "{last}");
    assert!(fake.calls(Call::List) > listings, "it is looked at again");
    assert_eq!(count(controller, EventKind::StepTimedOut, "sick").await, 1);
    assert_eq!(sick.health, Health::Failed);

    fake.clear_script();
    well(controller, &["sick"]).await;
    assert_eq!(fake.calls_on(Call::Create, "sick"), 2);
    running.shut_down().await;
}

#[tokio::test]
async fn a_create_that_hangs_is_given_up_once_its_agent_is_to_be_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(3600));
    let _runtimes = Runtimes::of(&fake);
    fake.script(On::create("sick"), Behaviour::Hang);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, "defaults: {driver: qemu}\nagents: {sick: {}, web: {}}\n").await;
    well(controller, &["web"]).await;
    assert_eq!((fake.under_way(), fake.calls_on(Call::Create, "sick")), (1, 1), "it hangs all the while");
    controller.destroy("sick".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    gone(controller, "sick").await;
    assert_eq!(fake.under_way(), 0);
    assert_eq!(count(controller, EventKind::StepGivenUp, "sick").await, 1);
    assert_eq!(count(controller, EventKind::StepFailed, "sick").await, 0);
    running.shut_down().await;
}

#[tokio::test]
async fn a_create_that_has_worked_and_hangs_makes_no_second_instance() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(2));
    let _runtimes = Runtimes::of(&fake);
    fake.script(On::create("web"), Behaviour::HangAfterEffect);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), "defaults: {driver: qemu}\nagents: {web: {}}\n").await;
    well(running.controller(), &["web"]).await;
    assert_eq!((fake.calls(Call::Create), fake.mutating_calls(), fake.instances().len()), (1, 1, 1));
    assert_eq!(count(running.controller(), EventKind::StepSucceeded, "web").await, 1);
    running.shut_down().await;
}

#[tokio::test]
async fn a_create_that_leaves_half_an_instance_is_finished_and_not_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let runtimes = Runtimes::of(&fake);
    fake.script(On::create("web").once(), Behaviour::FailAfterEffect("timed out waiting".into()));
    fake.script(On::create("db").once(), Behaviour::Fail("no room".into()));
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), "defaults: {driver: qemu}\nagents: {web: {}, db: {}}\n").await;
    well(running.controller(), &["web", "db"]).await;
    assert_eq!((fake.calls_on(Call::Create, "web"), fake.calls_on(Call::Create, "db")), (1, 2));
    assert_eq!(runtimes.disk("db").seed.incarnation.0, 1);
    running.shut_down().await;
}

/// A fake whose listings may take a second.
fn soon_listed(name: DriverName) -> Fake {
    let usual = capabilities(Span::from_secs(2));
    Fake::new(name, Capabilities { deadlines: Deadlines { list: Span::from_secs(1), ..usual.deadlines }, ..usual })
}

#[tokio::test]
async fn while_a_driver_does_not_answer_all_is_unknown_and_nothing_is_done() {
    const FILE: &str = "defaults: {driver: qemu}\nagents: {a: {replicas: 10}}\n";
    const MORE: &str = "defaults: {driver: qemu}\nprune: auto\nagents: {a: {replicas: 9}, new: {}}\n";
    for silence in [Behaviour::Hang, Behaviour::Fail("the daemon is down".into())] {
        let folder = tempfile::tempdir().unwrap();
        let fake = soon_listed(DriverName::Qemu);
        let runtimes = Runtimes::of(&fake);
        let running = start(folder.path(), &[&fake]).await;
        let controller = running.controller();
        apply(controller, FILE).await;
        settled(controller, FILE, &TEN).await;

        fake.script(On::list(), silence);
        // What a runtime tells makes the controller look.
        runtimes.stop("a-1");
        for name in TEN {
            let view = becomes(controller, name, |it| it.sync == Sync::Unknown).await;
            assert_eq!((view.health, view.instance), (Health::Unknown, None), "{name}");
            assert!(matches!(view.waits_for[..], [WaitsFor::Driver { .. }]), "{:?}", view.waits_for);
        }
        let before = fake.mutating_calls();
        apply(controller, MORE).await;
        controller.stop("a-2".parse().unwrap(), Default::default(), &ann()).await.unwrap();
        for _ in 0..3 {
            pass(controller, MORE).await;
        }
        assert_eq!(fake.mutating_calls(), before);
        let status = controller.status().await.unwrap();
        let silent: Vec<_> = status.conditions.iter().filter(|it| it.kind == "DriversAnswer").collect();
        assert_eq!(silent.len(), 1);
        assert_eq!((silent[0].status, &*silent[0].reason), (ConditionStatus::False, "Stalled"));
        assert!(!events(controller).await.iter().any(|event| event.kind == EventKind::StepFailed));

        fake.clear_script();
        runtimes.start("a-1");
        becomes(controller, "a-2", |it| (it.sync, it.health) == (Sync::Synced, Health::Stopped)).await;
        well(controller, &["a-1", "a-3", "a-9", "new"]).await;
        gone(controller, "a-10").await;
        let told = |kind| move |event: &&Event| event.kind == kind && event.agent.is_none();
        let events = events(controller).await;
        assert_eq!(events.iter().filter(told(EventKind::DriverLost)).count(), 1);
        assert_eq!(events.iter().filter(told(EventKind::DriverBack)).count(), 1);
        running.shut_down().await;
    }
}

#[tokio::test]
async fn a_hung_driver_is_felt_by_its_own_agents_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (hung, well_off) = (soon_listed(DriverName::Multipass), soon_listed(DriverName::Qemu));
    let (_theirs, _others) = (Runtimes::of(&hung), Runtimes::of(&well_off));
    hung.script(On::list(), Behaviour::Hang);
    let running = start(folder.path(), &[&hung, &well_off]).await;
    let controller = running.controller();
    apply(controller, "agents: {there: {driver: multipass}, a: {driver: qemu, replicas: 10}}\n").await;
    well(controller, &TEN).await;
    let there = vm_agent_tests::in_process::agent(controller, "there").await.unwrap();
    assert_eq!((there.sync, there.health), (Sync::Unknown, Health::Unknown));
    assert_eq!(hung.mutating_calls(), 0);

    hung.clear_script();
    hung.script(On::every(Call::Create), Behaviour::HangAfterEffect);
    becomes(controller, "there", |it| it.sync == Sync::Reconciling).await;
    controller.stop("a-1".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    becomes(controller, "a-1", |it| it.health == Health::Stopped && it.sync == Sync::Synced).await;
    becomes(controller, "there", is_well).await;
    assert_eq!(hung.mutating_calls(), 1);
    running.shut_down().await;
}

//! What an undisturbed fleet costs, and how much happens at once.

use std::time::Duration;

use vm_agent_drivers::fake::{Behaviour, Call, Fake, On};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::observe::Capabilities;
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{apply, becomes, capabilities, pass, qemu, settled, start, well};

#[tokio::test]
async fn without_drift_no_pass_changes_anything() {
    const FILE: &str =
        "defaults: {driver: qemu, env: {A: b}}\nagents: {web: {tasks: {once: {exec: 'true'}}}, db: {}}\n";
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), FILE).await;
    settled(running.controller(), FILE, &["web", "db"]).await;
    let (before, stored) = (fake.mutating_calls(), vm_agent_tests::in_process::stored(folder.path()));
    for _ in 0..25 {
        pass(running.controller(), FILE).await;
    }
    assert_eq!(fake.mutating_calls(), before);
    assert_eq!(before, 2, "one create for each");
    assert_eq!(vm_agent_tests::in_process::stored(folder.path()), stored);
    running.shut_down().await;
}

async fn most_at_once(lanes: u32, limits: &str) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(DriverName::Qemu, Capabilities { lanes, ..capabilities(Span::from_secs(60)) });
    let _runtimes = Runtimes::of(&fake);
    fake.script(On::every(Call::Create), Behaviour::Delay(Duration::from_millis(50)));
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), &format!("defaults: {{driver: qemu}}\nagents: {{a: {{replicas: 12}}}}\n{limits}"))
        .await;
    let names: Vec<String> = (1..=12).map(|index| format!("a-{index}")).collect();
    well(running.controller(), &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    running.shut_down().await;
    fake.most_under_way()
}

#[tokio::test]
async fn no_more_steps_run_at_once_than_the_driver_bears_or_the_file_allows() {
    assert_eq!(most_at_once(4, "").await, 4);
    assert_eq!(most_at_once(4, "limits: {parallelism: 2}\n").await, 2);
    assert_eq!(most_at_once(3, "limits: {parallelism: 9}\n").await, 3);
}

#[tokio::test]
async fn a_crash_is_mended_and_a_shutdown_from_inside_is_left_to_the_policy() {
    const FILE: &str = "defaults: {driver: qemu, restart: on-failure}\nagents: {web: {}, db: {}}\n";
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), FILE).await;
    settled(running.controller(), FILE, &["web", "db"]).await;
    // The runtime's end is what makes the controller look at once.
    fake.crash("web");
    fake.set_state("db", vm_agent_schemas::observe::InstanceState::Stopped);
    becomes(running.controller(), "web", |it| it.session.as_ref().is_some_and(|session| session.epoch.0 == 2)).await;
    well(running.controller(), &["web"]).await;
    let db = becomes(running.controller(), "db", |it| !it.waits_for.is_empty()).await;
    assert_eq!(db.waits_for, [vm_agent_schemas::plan::WaitsFor::RestartPolicy]);
    assert_eq!((fake.calls_on(Call::Start, "web"), fake.calls_on(Call::Start, "db")), (1, 0));
    assert_eq!(runtimes.disk("web").boot.0, 2);
    running.shut_down().await;
}

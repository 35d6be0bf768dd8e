//! Snapshots, the way back to them and agents made from them, from the command to the driver.

use vm_agent_daemon::Controller;
use vm_agent_drivers::fake::{Behaviour, Call, Fake, On};
use vm_agent_schemas::api::{
    ChangeRequest, CloneRequest, ProblemCode, RestoreRequest, SnapshotChange, SnapshotRequest,
};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::names::{AgentName, SnapshotName};
use vm_agent_schemas::observe::{Capabilities, SnapshotSupport};
use vm_agent_schemas::snapshot::{Cause, Errand, ErrandEnd};
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{
    agent, ann, apply, becomes, capabilities, count, is_well, settled, start, until, well,
};

const FILE: &str = "defaults: {driver: qemu}\nagents: {web: {}}\n";

fn fake(snapshots: SnapshotSupport) -> Fake {
    let limit = Span::from_secs(20);
    let able = Capabilities { snapshots, clone_from_snapshot: true, ..capabilities(limit) };
    Fake::new(DriverName::Qemu, able)
}

fn web() -> AgentName {
    "web".parse().unwrap()
}

fn called(name: &str) -> SnapshotRequest {
    SnapshotRequest { name: Some(name.parse().unwrap()), ..SnapshotRequest::default() }
}

fn back_to(name: &str) -> RestoreRequest {
    RestoreRequest { snapshot: name.parse().unwrap(), without_safety: false, dry_run: false }
}

/// Waits until an errand is over.
async fn over(controller: &Controller, asked: &Errand) -> ErrandEnd {
    until("the errand is over", async || controller.errand(asked.id).await.unwrap().end).await
}

async fn names(controller: &Controller) -> Vec<String> {
    let all = controller.snapshots(Some(&web())).await.unwrap();
    all.iter().map(|snapshot| snapshot.name.to_string()).collect()
}

#[tokio::test]
async fn a_machine_goes_back_to_a_snapshot_as_a_new_incarnation_and_what_it_was_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let fake = fake(SnapshotSupport::Live);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web"]).await;
    let asked = controller.take_snapshot(&web(), called("one"), &ann()).await.unwrap();
    assert_eq!(over(controller, &asked).await.problem, None);
    assert_eq!((fake.calls(Call::Stop), fake.calls(Call::Snapshot)), (0, 1), "it went on running");
    let taken = controller.snapshots(None).await.unwrap();
    assert!(taken[0].running && taken[0].cause == Cause::Person { by: ann().name }, "{taken:?}");

    let asked = controller.restore(&web(), back_to("one"), &ann()).await.unwrap();
    assert_eq!(over(controller, &asked).await.problem, None);
    let is_back = |it: &vm_agent_schemas::api::AgentView| it.incarnation == Some(Incarnation(2)) && is_well(it);
    becomes(controller, "web", is_back).await;
    assert_eq!(fake.calls(Call::Restore), 1);
    let kept = names(controller).await;
    assert!(kept[0] == "one" && kept[1].starts_with("before-restore-"), "{kept:?}");
    assert_eq!(count(controller, EventKind::Restored, "web").await, 1);
    running.shut_down().await;

    let running = start(folder.path(), &[&fake]).await;
    assert_eq!(names(running.controller()).await, kept, "the next life knows them");
    running.shut_down().await;
}

#[tokio::test]
async fn a_restore_that_a_dead_controller_had_begun_is_finished_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let fake = fake(SnapshotSupport::Down);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web"]).await;
    let asked = controller.take_snapshot(&web(), called("one"), &ann()).await.unwrap();
    assert_eq!(over(controller, &asked).await.problem, None);
    assert_eq!(fake.calls(Call::Stop), 1, "it was down for it");
    well(controller, &["web"]).await;
    fake.script(On::call(Call::Restore, "web").once(), Behaviour::Hang);
    let asked = controller.restore(&web(), back_to("one"), &ann()).await.unwrap();
    until("the restore is under way", async || (fake.calls(Call::Restore) > 0).then_some(())).await;
    running.shut_down().await;

    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    assert_eq!(over(controller, &asked).await.problem, None);
    becomes(controller, "web", |it| it.incarnation == Some(Incarnation(2)) && is_well(it)).await;
    assert_eq!(fake.instances().len(), 1);
    running.shut_down().await;
}

#[tokio::test]
async fn a_person_is_told_at_once_why_a_snapshot_failed_and_no_machine_is_touched_without_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let fake = fake(SnapshotSupport::Live);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web"]).await;
    let asked = controller.take_snapshot(&web(), called("one"), &ann()).await.unwrap();
    over(controller, &asked).await;
    fake.script(On::call(Call::Snapshot, "web"), Behaviour::Fail("the disk is full".into()));
    let asked = controller.take_snapshot(&web(), called("two"), &ann()).await.unwrap();
    let problem = over(controller, &asked).await.problem.unwrap();
    assert!(problem.contains("the disk is full"), "{problem}");
    let asked = controller.restore(&web(), back_to("one"), &ann()).await.unwrap();
    let problem = over(controller, &asked).await.problem.unwrap();
    assert!(problem.contains("nothing was changed") && problem.contains("the disk is full"), "{problem}");
    assert_eq!((fake.calls(Call::Stop), fake.calls(Call::Restore)), (0, 0));
    well(controller, &["web"]).await;
    running.shut_down().await;
}

#[tokio::test]
async fn what_can_not_be_asked_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let fake = fake(SnapshotSupport::Live);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web"]).await;
    let one: SnapshotName = "one".parse().unwrap();
    let missing = controller.restore(&web(), back_to("one"), &ann()).await.unwrap_err();
    assert_eq!(missing.code, ProblemCode::NotFound);
    let asked = controller.take_snapshot(&web(), called("one"), &ann()).await.unwrap();
    let twice = controller.take_snapshot(&web(), called("one"), &ann()).await.unwrap_err();
    assert_eq!(twice.code, ProblemCode::Conflict);
    over(controller, &asked).await;
    let protect = SnapshotChange { protect: Some(true), comment: Some("keep".into()) };
    controller.change_snapshot(&web(), &one, protect, &ann()).await.unwrap();
    let refused = controller.delete_snapshot(&web(), &one, &ann()).await.unwrap_err();
    assert_eq!(refused.code, ProblemCode::Blocked);
    assert!(refused.remediation.unwrap().contains("unprotect"));
    let release = SnapshotChange { protect: Some(false), comment: None };
    controller.change_snapshot(&web(), &one, release, &ann()).await.unwrap();
    let asked = controller.delete_snapshot(&web(), &one, &ann()).await.unwrap();
    assert_eq!(over(controller, &asked).await.problem, None);
    assert_eq!(names(controller).await, [""; 0]);
    running.shut_down().await;
}

#[tokio::test]
async fn a_clone_is_an_agent_of_its_own_that_waits_for_its_snapshot_and_does_again_nothing_that_was_done() {
    const TASK: &str = "defaults: {driver: qemu}\nagents: {web: {tasks: {setup: {exec: make}}}}\n";
    let folder = tempfile::tempdir().unwrap();
    let fake = fake(SnapshotSupport::Live);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, TASK).await;
    settled(controller, TASK, &["web"]).await;
    let request = CloneRequest { name: "twin".parse().unwrap(), snapshot: None, dry_run: false };
    controller.clone_agent(&web(), request.clone(), &ann()).await.unwrap();
    let twin = becomes(controller, "twin", is_well).await;
    assert!(twin.wanted.unwrap().spec.tasks.is_empty(), "the snapshot has it done");
    let snapshots = controller.snapshots(None).await.unwrap();
    assert_eq!(snapshots[0].cause, Cause::Clone { to: "twin".parse().unwrap() });
    assert_eq!(fake.instances().len(), 2);
    let nonces: Vec<_> = fake.instances().into_iter().map(|instance| instance.nonce).collect();
    assert_ne!(nonces[0], nonces[1]);
    let twice = controller.clone_agent(&web(), request, &ann()).await.unwrap_err();
    assert_eq!(twice.code, ProblemCode::Conflict);
    controller.destroy(web(), ChangeRequest::default(), &ann()).await.unwrap();
    until("the first is gone", async || {
        agent(controller, "web").await.is_none_or(|it| it.instance.is_none()).then_some(())
    })
    .await;
    well(controller, &["twin"]).await;
    running.shut_down().await;
}

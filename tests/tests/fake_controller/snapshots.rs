//! Snapshots, the way back to them and agents made from them, from the command to the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_agent_daemon::Controller;
use vm_agent_drivers::fake::{Behaviour, Call, Fake, On, SNAPSHOT_SIZE};
use vm_agent_schemas::api::{
    AgentView, ChangeRequest, CloneRequest, DownRequest, ProblemCode, RestoreRequest, SnapshotChange, SnapshotDeletion,
    SnapshotRequest,
};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::names::{AgentName, SnapshotName};
use vm_agent_schemas::observe::{Capabilities, CloneSupport, InstanceState, SnapshotSupport};
use vm_agent_schemas::plan::{SnapshotLoss, Sync};
use vm_agent_schemas::snapshot::{Ask, Cause, Errand, ErrandEnd, Keeper};
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{
    agent, ann, apply, becomes, capabilities, count, is_well, settled, start, until, well,
};

const FILE: &str = "defaults: {driver: qemu}\nagents: {web: {}}\n";

fn fake(snapshots: SnapshotSupport) -> Fake {
    let limit = Span::from_secs(20);
    let clones = if snapshots == SnapshotSupport::Live { CloneSupport::Snapshots } else { CloneSupport::Down };
    let able = Capabilities { snapshots, clones, ..capabilities(limit) };
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
    all.iter().map(|it| it.snapshot.name.to_string()).collect()
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
    let one = &taken[0];
    assert_eq!((one.snapshot.running, &one.snapshot.cause), (true, &Cause::Person { by: ann().name }));
    assert_eq!((one.memory, one.size, &one.kept), (true, Some(SNAPSHOT_SIZE), &[Keeper::Manual].into()));

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
async fn an_agent_that_a_person_stopped_goes_back_without_coming_up_and_starts_as_the_new_incarnation() {
    let folder = tempfile::tempdir().unwrap();
    let fake = fake(SnapshotSupport::Live);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web"]).await;
    let asked = controller.take_snapshot(&web(), called("one"), &ann()).await.unwrap();
    over(controller, &asked).await;
    controller.stop(web(), ChangeRequest::default(), &ann()).await.unwrap();
    becomes(controller, "web", |it| it.instance == Some(InstanceState::Stopped)).await;
    let comes_up = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&comes_up);
    fake.on_up(Arc::new(move |_| noted.store(true, Ordering::Relaxed)));

    let asked = controller.restore(&web(), back_to("one"), &ann()).await.unwrap();
    assert_eq!(over(controller, &asked).await.problem, None);
    let is_back = |it: &AgentView| it.incarnation == Some(Incarnation(2)) && it.sync == Sync::Synced;
    let web = becomes(controller, "web", is_back).await;
    assert_eq!(web.instance, Some(InstanceState::Stopped));
    assert!(!comes_up.load(Ordering::Relaxed));
    let _runtimes = Runtimes::of(&fake);
    controller.start(self::web(), ChangeRequest::default(), &ann()).await.unwrap();
    becomes(controller, "web", |it| it.incarnation == Some(Incarnation(2)) && is_well(it)).await;
    running.shut_down().await;
}

#[tokio::test]
async fn whoever_would_destroy_an_agent_is_told_of_its_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let fake = fake(SnapshotSupport::Live);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web"]).await;
    for name in ["one", "two"] {
        let asked = controller.take_snapshot(&web(), called(name), &ann()).await.unwrap();
        over(controller, &asked).await;
    }
    let protect = SnapshotChange { protect: Some(true), ..SnapshotChange::default() };
    controller.change_snapshot(&web(), &"one".parse().unwrap(), protect, &ann()).await.unwrap();
    let both = Some(SnapshotLoss { snapshots: 2, protected: 1 });
    let request = ChangeRequest { dry_run: true, ..ChangeRequest::default() };
    let would = controller.destroy(web(), request, &ann()).await.unwrap();
    assert_eq!(would.plan.steps.iter().map(|step| step.loses).collect::<Vec<_>>(), [both]);
    let down = controller.down(DownRequest { destroy: true, dry_run: true }, &ann()).await.unwrap();
    assert_eq!(down.steps.iter().map(|step| step.loses).collect::<Vec<_>>(), [both]);
    running.shut_down().await;
}

#[tokio::test]
async fn a_snapshot_that_nothing_keeps_and_that_can_not_be_deleted_is_tried_again_later() {
    let folder = tempfile::tempdir().unwrap();
    let fake = fake(SnapshotSupport::Live);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web"]).await;
    fake.script(On::call(Call::DeleteSnapshot, "web"), Behaviour::Fail("the disk is locked".into()));
    let request = CloneRequest { name: "twin".parse().unwrap(), snapshot: None, dry_run: false };
    controller.clone_agent(&web(), request, &ann()).await.unwrap();
    well(controller, &["twin"]).await;
    until("its deletion fails", async || (count(controller, EventKind::StepFailed, "web").await > 0).then_some(()))
        .await;
    for name in ["one", "two"] {
        let asked = controller.take_snapshot(&web(), called(name), &ann()).await.unwrap();
        assert_eq!(over(controller, &asked).await.problem, None, "everything else goes on");
    }
    assert_eq!(fake.calls(Call::DeleteSnapshot), 1);
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
    let protect = SnapshotChange { protect: Some(true), comment: Some("keep".into()), dry_run: false };
    let would = SnapshotChange { dry_run: true, ..protect.clone() };
    assert!(controller.change_snapshot(&web(), &one, would, &ann()).await.unwrap().protect);
    assert!(!controller.snapshots(Some(&web())).await.unwrap()[0].snapshot.protect, "nothing is changed");
    controller.change_snapshot(&web(), &one, protect, &ann()).await.unwrap();
    let really = SnapshotDeletion::default();
    let refused = controller.delete_snapshot(&web(), &one, really, &ann()).await.unwrap_err();
    assert_eq!(refused.code, ProblemCode::Blocked);
    assert!(refused.remediation.unwrap().contains("unprotect"));
    let release = SnapshotChange { protect: Some(false), ..SnapshotChange::default() };
    controller.change_snapshot(&web(), &one, release, &ann()).await.unwrap();
    let dry_run = SnapshotDeletion { dry_run: true };
    let would = controller.delete_snapshot(&web(), &one, dry_run, &ann()).await.unwrap();
    assert_eq!(would.ask, Ask::Delete { name: one.clone(), unkept: false });
    assert_eq!(controller.errand(would.id).await.unwrap_err().code, ProblemCode::NotFound, "nobody was asked");
    assert_eq!((names(controller).await, fake.calls(Call::DeleteSnapshot)), (vec!["one".to_owned()], 0));
    let asked = controller.delete_snapshot(&web(), &one, really, &ann()).await.unwrap();
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
    until("its snapshot has gone", async || names(controller).await.is_empty().then_some(())).await;
    assert_eq!((fake.calls(Call::Snapshot), fake.calls(Call::DeleteSnapshot)), (1, 1));
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

//! Nothing is destroyed by accident: what leaves the file, what is protected, and what only a new
//! machine can have.

use vm_agent_drivers::fake::{Behaviour, Call, On};
use vm_agent_schemas::api::ProblemCode;
use vm_agent_schemas::plan::{Sync, WaitsFor};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{FromHub, RefusalCode};
use vm_agent_tests::fleet_of_fakes::{Peer, Runtimes};
use vm_agent_tests::in_process::{agent, ann, apply, approve, becomes, gone, pass, qemu, settled, start, until, well};

const BOTH: &str = "defaults: {driver: qemu}\nagents: {db: {}, web: {}}\n";
const WITHOUT: &str = "defaults: {driver: qemu}\nagents: {db: {}}\n";

fn asks(view: &vm_agent_schemas::api::AgentView) -> bool {
    view.sync == Sync::Blocked && view.waits_for.iter().any(|it| matches!(it, WaitsFor::Approval { .. }))
}

#[tokio::test]
async fn an_agent_that_leaves_the_file_waits_for_a_yes_to_exactly_that() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, BOTH).await;
    settled(controller, BOTH, &["db", "web"]).await;

    let shown = apply(controller, WITHOUT).await;
    becomes(controller, "web", asks).await;
    for _ in 0..3 {
        pass(controller, WITHOUT).await;
    }
    assert_eq!(fake.calls(Call::Destroy), 0);
    assert_eq!(shown.plan.approvals.len(), 1);
    assert!(shown.plan.approvals[0].what.contains("delete `web` and its data"));

    // Another plan than the one that was shown is not what the yes is to.
    let stale = approve(controller, BOTH, &shown).await.unwrap_err();
    assert_eq!(stale.code, ProblemCode::Conflict);
    let blind = vm_agent_schemas::api::ApplyRequest { approve: true, ..vm_agent_tests::in_process::file(WITHOUT) };
    assert_eq!(controller.apply(blind, &ann()).await.unwrap_err().code, ProblemCode::Invalid);
    assert_eq!(fake.calls(Call::Destroy), 0);

    approve(controller, WITHOUT, &shown).await.unwrap();
    gone(controller, "web").await;
    assert_eq!((fake.calls_on(Call::Destroy, "web"), fake.calls(Call::Destroy)), (1, 1));
    running.shut_down().await;
}

#[tokio::test]
async fn a_yes_is_void_once_the_file_has_changed_its_mind() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, BOTH).await;
    settled(controller, BOTH, &["db", "web"]).await;
    fake.script(On::destroy("web"), Behaviour::Fail("busy".into()));
    let shown = apply(controller, WITHOUT).await;
    approve(controller, WITHOUT, &shown).await.unwrap();
    becomes(controller, "web", |it| matches!(it.waits_for[..], [WaitsFor::Backoff { .. }])).await;
    apply(controller, BOTH).await;
    pass(controller, BOTH).await;
    fake.clear_script();
    apply(controller, WITHOUT).await;
    becomes(controller, "web", asks).await;
    for _ in 0..3 {
        pass(controller, WITHOUT).await;
    }
    assert_eq!(fake.calls(Call::Destroy), 1, "only the one that was meant");
    running.shut_down().await;
}

#[tokio::test]
async fn what_is_protected_is_deleted_by_no_yes_and_no_command() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let protected = "defaults: {driver: qemu}\nagents: {db: {}, web: {protect: true}}\n";
    apply(controller, protected).await;
    settled(controller, protected, &["db", "web"]).await;
    let replaced = "defaults: {driver: qemu}\nprune: auto\nagents: {db: {}, web: {protect: true, image: debian}}\n";
    let without = "defaults: {driver: qemu}\nprune: auto\nagents: {db: {}}\n";
    for text in [replaced, without] {
        let shown = apply(controller, text).await;
        approve(controller, text, &shown).await.unwrap();
        pass(controller, text).await;
        let web = agent(controller, "web").await.unwrap();
        assert_eq!(web.waits_for, [WaitsFor::Protected], "{text}");
    }
    let refused = controller.destroy("web".parse().unwrap(), Default::default(), &ann()).await.unwrap_err();
    assert_eq!(refused.code, ProblemCode::Blocked);
    assert_eq!(fake.calls(Call::Destroy), 0);
    running.shut_down().await;
}

/// `protect` holds from the moment that the file with it is accepted, whatever comes next.
#[tokio::test]
async fn protection_that_was_applied_and_left_again_at_once_still_holds() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, BOTH).await;
    settled(controller, BOTH, &["db", "web"]).await;
    apply(controller, "defaults: {driver: qemu}\nagents: {db: {}, web: {protect: true}}\n").await;
    let without = "defaults: {driver: qemu}\nprune: auto\nagents: {db: {}}\n";
    apply(controller, without).await;
    for _ in 0..3 {
        pass(controller, without).await;
    }
    assert_eq!(agent(controller, "web").await.map(|web| web.waits_for), Some(vec![WaitsFor::Protected]));
    assert_eq!(fake.calls(Call::Destroy), 0);
    running.shut_down().await;
}

#[tokio::test]
async fn pruning_by_itself_lets_few_go_and_asks_about_many() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let of = |count: u32| format!("defaults: {{driver: qemu}}\nprune: auto\nagents: {{a: {{replicas: {count}}}}}\n");
    apply(controller, &of(10)).await;
    well(controller, &["a-1", "a-2", "a-3", "a-4", "a-5", "a-6", "a-7", "a-8", "a-9", "a-10"]).await;
    apply(controller, &of(8)).await;
    for name in ["a-9", "a-10"] {
        gone(controller, name).await;
    }
    let shown = apply(controller, &of(4)).await;
    assert_eq!(shown.plan.approvals.len(), 4);
    becomes(controller, "a-8", asks).await;
    pass(controller, &of(4)).await;
    assert_eq!(fake.calls(Call::Destroy), 2);
    approve(controller, &of(4), &shown).await.unwrap();
    for name in ["a-5", "a-6", "a-7", "a-8"] {
        gone(controller, name).await;
    }
    assert_eq!(fake.calls(Call::Destroy), 6);
    running.shut_down().await;
}

#[tokio::test]
async fn another_image_waits_for_a_yes_and_then_another_machine_joins() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, BOTH).await;
    settled(controller, BOTH, &["db", "web"]).await;
    let old = runtimes.disk("web");
    let other = "defaults: {driver: qemu}\nagents: {db: {}, web: {image: debian}}\n";
    let shown = apply(controller, other).await;
    becomes(controller, "web", asks).await;
    pass(controller, other).await;
    assert_eq!(fake.calls(Call::Destroy), 0);

    approve(controller, other, &shown).await.unwrap();
    until("another machine is up", async || (runtimes.disk("web").seed.nonce != old.seed.nonce).then_some(())).await;
    well(controller, &["web"]).await;
    assert_eq!((fake.calls_on(Call::Destroy, "web"), fake.calls_on(Call::Create, "web")), (1, 2));
    let before = agent(controller, "web").await.unwrap().session.map(|session| session.epoch);
    let mut peer = Peer::connect(old.hub(), old.seed.agent.clone()).await.unwrap();
    let Some(FromHub::Refused(refused)) = peer.shake(old.hello(), &old).await else { panic!("the old one got in") };
    assert_eq!(refused.code, RefusalCode::Incarnation);
    assert_eq!(agent(controller, "web").await.unwrap().session.map(|session| session.epoch), before);
    pass(controller, other).await;
    assert_eq!(fake.calls(Call::Destroy), 1, "one yes is one replacement");
    running.shut_down().await;
}

//! Instances that are not ours are never touched, whatever their name.

use vm_agent_drivers::fake::{Behaviour, Call, Fake, NonceSight, On};
use vm_agent_schemas::api::{AgentView, ImportRequest, ProblemCode};
use vm_agent_schemas::fleet::{DriverName, PowerState};
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Instance, InstanceState, Sizes};
use vm_agent_schemas::plan::{Sync, WaitsFor};
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{agent, ann, apply, approve, becomes, gone, pass, qemu, settled, start, until, well};

const FILE: &str = "defaults: {driver: qemu}\nagents: {web: {}, db: {}}\n";

fn strangers(state: InstanceState, nonce: Option<&str>) -> Instance {
    Instance { name: "web".parse().unwrap(), state, nonce: nonce.map(Nonce::from_text), sizes: None, snapshots: None }
}

#[tokio::test]
async fn an_instance_that_is_not_ours_blocks_its_agent_and_is_never_touched() {
    let cases = [
        (InstanceState::Running, Some("another"), "rename or delete instance `web`"),
        (InstanceState::Stopped, None, "rename or delete instance `web`"),
        (InstanceState::Deleted, None, "`multipass delete --purge web`"),
    ];
    for (state, nonce, sentence) in cases {
        let folder = tempfile::tempdir().unwrap();
        let fake = qemu(Span::from_secs(60));
        let _runtimes = Runtimes::of(&fake);
        fake.put(strangers(state, nonce));
        let running = start(folder.path(), &[&fake]).await;
        let controller = running.controller();
        apply(controller, FILE).await;
        let web = becomes(controller, "web", |it| it.sync == Sync::Blocked).await;
        let told = web.waits_for.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert!(told.contains(sentence), "{told}");
        well(controller, &["db"]).await;

        controller.stop("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
        pass(controller, FILE).await;
        controller.destroy("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
        pass(controller, FILE).await;
        let down = vm_agent_schemas::api::DownRequest { destroy: true, dry_run: false };
        let plan = controller.down(down, &ann()).await.unwrap();
        assert!(plan.steps.iter().all(|step| step.agent.as_str() != "web"));
        running.stopped().await;
        running.shut_down().await;
        assert_eq!(fake.instances(), [strangers(state, nonce)]);
        let touched = [Call::Create, Call::Start, Call::Stop, Call::Resize, Call::Destroy];
        assert!(touched.into_iter().all(|call| fake.calls_on(call, "web") == 0), "{state:?}");
    }
}

#[tokio::test]
async fn an_instance_that_takes_the_place_of_ours_is_not_ours() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web", "db"]).await;
    fake.put(strangers(InstanceState::Running, Some("another")));
    runtimes.stop("web");
    becomes(controller, "web", |it| matches!(it.waits_for[..], [WaitsFor::ForeignInstance { .. }])).await;
    let without = "defaults: {driver: qemu}\nagents: {db: {}}\n";
    // The plan changes once more when the hub has heard that the runtime is gone.
    until("the plan that was shown still is the plan", async || {
        let applied = apply(controller, without).await;
        approve(controller, without, &applied).await.ok()
    })
    .await;
    gone(controller, "web").await;
    assert_eq!(fake.calls_on(Call::Destroy, "web"), 0);
    assert!(fake.instances().contains(&strangers(InstanceState::Running, Some("another"))));
    running.shut_down().await;
}

/// Where listings show no nonce, only a runtime can tell whose an instance is: the one of this very
/// machine, and not of one before.
#[tokio::test]
async fn the_runtime_of_an_earlier_machine_proves_nothing_of_a_later_one() {
    let folder = tempfile::tempdir().unwrap();
    let fake: Fake = qemu(Span::from_secs(60));
    fake.show_nonces(NonceSight::Hidden);
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["web", "db"]).await;
    controller.destroy("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    gone(controller, "web").await;

    fake.script(On::create("web"), Behaviour::Fail("no room".into()));
    controller.create("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    becomes(controller, "web", |it| matches!(it.waits_for[..], [WaitsFor::Backoff { .. }])).await;
    fake.put(strangers(InstanceState::Running, None));
    becomes(controller, "web", |it| it.instance.is_some()).await;
    controller.destroy("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    for _ in 0..3 {
        pass(controller, FILE).await;
    }
    let web = agent(controller, "web").await.unwrap();
    assert_eq!(fake.calls_on(Call::Destroy, "web"), 1, "only the first machine was deleted: {:?}", web.waits_for);
    assert!(web.waits_for.contains(&WaitsFor::Proof), "{:?}", web.waits_for);
    running.shut_down().await;
}

fn taken_over(instance: &str) -> ImportRequest {
    ImportRequest { driver: DriverName::Qemu, instance: instance.parse().unwrap(), reason: None, dry_run: false }
}

#[tokio::test]
async fn an_instance_that_somebody_takes_over_becomes_the_agent_of_the_file_that_it_blocked() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    fake.put(strangers(InstanceState::Running, None));
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    becomes(controller, "web", |it| it.sync == Sync::Blocked).await;
    let rehearsed = ImportRequest { dry_run: true, ..taken_over("web") };
    controller.import("web".parse().unwrap(), rehearsed, &ann()).await.unwrap();
    assert_eq!(fake.calls_on(Call::Create, "web"), 0, "a rehearsal changes nothing");

    fake.script(On::create("web"), Behaviour::Fail("no way in".into()));
    controller.import("web".parse().unwrap(), taken_over("web"), &ann()).await.unwrap();
    becomes(controller, "web", |it| matches!(it.waits_for[..], [WaitsFor::Backoff { .. }])).await;
    fake.clear_script();
    well(controller, &["web", "db"]).await;
    assert!(fake.calls_on(Call::Create, "web") > 1, "it was tried again, and taken over");
    assert_eq!((fake.calls_on(Call::Stop, "web"), fake.calls_on(Call::Destroy, "web")), (0, 0));
    let refused = controller.import("db".parse().unwrap(), taken_over("web"), &ann()).await.unwrap_err();
    assert_eq!(refused.code, ProblemCode::Conflict);
    let refused = controller.release("web".parse().unwrap(), Default::default(), &ann()).await.unwrap_err();
    assert!(refused.reason.contains("made anew"), "{}", refused.reason);
    running.shut_down().await;
}

#[tokio::test]
async fn an_instance_taken_over_beside_the_file_is_protected_and_stays_when_it_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let sizes = Sizes { cpus: 3, memory: ByteSize::from_gib(7), disk: ByteSize::from_gib(9) };
    fake.put(Instance {
        name: "old-vm".parse().unwrap(),
        sizes: Some(sizes),
        ..strangers(InstanceState::Stopped, None)
    });
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, "agents: {}\n").await;
    let name = || "old".parse::<AgentName>().unwrap();
    let missing = controller.import(name(), taken_over("older"), &ann()).await.unwrap_err();
    assert_eq!(missing.code, ProblemCode::NotFound);

    controller.import(name(), taken_over("old-vm"), &ann()).await.unwrap();
    // It is up once it is taken over, and goes down again as it was found.
    let is_over = |it: &AgentView| fake.calls_on(Call::Stop, "old-vm") == 1 && it.sync == Sync::Synced;
    let old = becomes(controller, "old", is_over).await;
    let spec = &old.wanted.as_ref().unwrap().spec;
    assert_eq!((Sizes::of(spec), spec.protect, spec.power), (sizes, true, PowerState::Stopped));
    let refused = controller.destroy(name(), Default::default(), &ann()).await.unwrap_err();
    assert_eq!(refused.code, ProblemCode::Blocked);
    let listed = controller.instances(None).await.unwrap();
    assert_eq!(listed[0].agent, Some(name()));

    controller.release(name(), Default::default(), &ann()).await.unwrap();
    gone(controller, "old").await;
    assert_eq!(fake.calls_on(Call::Destroy, "old-vm"), 0);
    assert_eq!(fake.instances()[0].name.as_str(), "old-vm");
    assert_eq!(controller.instances(None).await.unwrap()[0].agent, None);
    running.shut_down().await;
}

#[tokio::test]
async fn an_instance_that_was_never_taken_over_is_let_go_and_never_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    fake.put(Instance { name: "old-vm".parse().unwrap(), ..strangers(InstanceState::Running, None) });
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let declared = "defaults: {driver: qemu}\nagents: {old: {protect: false}}\n";
    apply(controller, "agents: {}\n").await;
    fake.script(On::create("old-vm"), Behaviour::Fail("no way in".into()));
    controller.import("old".parse().unwrap(), taken_over("old-vm"), &ann()).await.unwrap();
    becomes(controller, "old", |it| matches!(it.waits_for[..], [WaitsFor::Backoff { .. }])).await;
    fake.remove("old-vm");
    let old = becomes(controller, "old", |it| matches!(it.waits_for[..], [WaitsFor::Problem { .. }, ..])).await;
    assert!(old.waits_for[0].to_string().contains("is gone"), "{:?}", old.waits_for);
    apply(controller, declared).await;
    controller.destroy("old".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    gone(controller, "old").await;
    assert_eq!(fake.calls_on(Call::Destroy, "old-vm"), 0);
    running.shut_down().await;
}

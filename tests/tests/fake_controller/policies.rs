//! What becomes of a difference that the file says not to remove.

use vm_agent_drivers::fake::Call;
use vm_agent_schemas::fleet::DriftPolicy;
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::plan::{DriftClass, Health, Sync};
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{agent, ann, apply, becomes, pass, qemu, settled, start, well};

fn file(web: &str) -> String {
    format!("defaults: {{driver: qemu}}\nagents: {{web: {{{web}}}}}\n")
}

#[tokio::test]
async fn what_is_only_warned_of_is_shown_and_counts_as_synced_and_what_is_ignored_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, &file("memory: 1G")).await;
    settled(controller, &file("memory: 1G"), &["web"]).await;

    let warned = file("memory: 2G, drift: {memory: warn}");
    apply(controller, &warned).await;
    pass(controller, &warned).await;
    let web = agent(controller, "web").await.unwrap();
    let [drift] = &web.drift[..] else { panic!("{:?}", web.drift) };
    assert_eq!((drift.class, drift.policy, &*drift.path), (DriftClass::Memory, DriftPolicy::Warn, "memory"));
    assert_eq!((web.sync, web.health, web.waits_for), (Sync::Synced, Health::Healthy, Vec::new()));
    assert_eq!(controller.drift().await.unwrap().len(), 1);

    let ignored = file("memory: 2G, drift: {memory: ignore}");
    apply(controller, &ignored).await;
    pass(controller, &ignored).await;
    let web = agent(controller, "web").await.unwrap();
    assert_eq!((web.sync, web.drift), (Sync::Synced, Vec::new()));
    assert_eq!(controller.drift().await.unwrap(), []);
    assert_eq!(fake.mutating_calls(), 1);

    // What comes up anyway for another reason takes nothing along that is not to be corrected.
    let other = file("memory: 2G, cpus: 2, drift: {memory: ignore}");
    apply(controller, &other).await;
    settled(controller, &other, &["web"]).await;
    let [instance] = &fake.instances()[..] else { panic!("{:?}", fake.instances()) };
    let sizes = instance.sizes.unwrap();
    assert_eq!((sizes.cpus, sizes.memory), (2, vm_agent_schemas::units::ByteSize::from_gib(1)));

    apply(controller, &file("memory: 2G, cpus: 2")).await;
    well(controller, &["web"]).await;
    assert_eq!(fake.calls(Call::Resize), 2);
    running.shut_down().await;
}

#[tokio::test]
async fn a_machine_whose_power_is_nobodys_business_stays_down_until_a_person_starts_it() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let cases = [("ignore", 0, InstanceState::Stopped), ("warn", 1, InstanceState::Failed)];
    for (policy, shown, state) in cases {
        let text = file(&format!("drift: {{power: {policy}}}"));
        apply(controller, &text).await;
        settled(controller, &text, &["web"]).await;
        let before = fake.mutating_calls();
        fake.set_state("web", state);
        becomes(controller, "web", |it| it.instance == Some(state)).await;
        pass(controller, &text).await;
        let web = agent(controller, "web").await.unwrap();
        assert_eq!((web.sync, web.drift.len(), fake.mutating_calls()), (Sync::Synced, shown, before), "{web:?}");
        controller.start("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
        well(controller, &["web"]).await;
        // A person's stop acts as ever.
        controller.stop("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
        becomes(controller, "web", |it| (it.sync, it.health) == (Sync::Synced, Health::Stopped)).await;
        controller.start("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
        well(controller, &["web"]).await;
    }
    running.shut_down().await;
}

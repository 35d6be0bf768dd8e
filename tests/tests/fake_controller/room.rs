//! The host has so much room, and machines that find none wait until some is free.

use vm_agent_drivers::fake::Call;
use vm_agent_schemas::api::AgentView;
use vm_agent_schemas::observe::Host;
use vm_agent_schemas::plan::{Resource, Sync, WaitsFor};
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{agent, ann, apply, becomes, is_well, pass, qemu, settled, start_on, until, well};

const HEARTBEAT: Option<Span> = Some(Span::from_secs(1));

fn gib(count: u64) -> u64 {
    ByteSize::from_gib(count).bytes()
}

fn host(memory: u64) -> Option<Host> {
    Some(Host { cpus: 2, memory: ByteSize::from_gib(memory) })
}

fn lacks(view: &AgentView) -> Option<(Resource, u64, u64)> {
    view.waits_for.iter().find_map(|reason| match reason {
        WaitsFor::Capacity { resource, needs, free } => Some((*resource, *needs, *free)),
        _ => None,
    })
}

#[tokio::test]
async fn a_machine_waits_for_room_and_a_smaller_one_goes_ahead() {
    const FILE: &str = "defaults: {driver: qemu, memory: 4G}\nagents: {a: {}, b: {}, c: {}, d: {memory: 512M}}\n";
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    // A tenth is the host's own.
    let running = start_on(folder.path(), &[&fake], HEARTBEAT, host(10)).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["a", "b", "d"]).await;
    let c = agent(controller, "c").await.unwrap();
    assert_eq!((c.sync, lacks(&c)), (Sync::Blocked, Some((Resource::Memory, gib(4), gib(1) / 2))));
    assert!(c.waits_for[0].to_string().contains("room on the host"), "{}", c.waits_for[0]);
    assert_eq!(fake.calls(Call::Create), 3);

    controller.stop("a".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    well(controller, &["b", "c", "d"]).await;
    // Nobody makes room for who comes back.
    controller.start("a".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    let a = becomes(controller, "a", |it| lacks(it).is_some()).await;
    assert_eq!(lacks(&a), Some((Resource::Memory, gib(4), gib(1) / 2)));
    pass(controller, FILE).await;
    assert_eq!((fake.calls(Call::Create), fake.calls(Call::Start), fake.calls(Call::Stop)), (4, 0, 1));
    running.shut_down().await;
}

#[tokio::test]
async fn the_files_own_limit_counts_for_more_than_the_hosts_memory() {
    const AGENTS: &str = "defaults: {driver: qemu, memory: 4G}\nagents: {a: {}, b: {}}\n";
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start_on(folder.path(), &[&fake], HEARTBEAT, host(4)).await;
    let controller = running.controller();
    apply(controller, AGENTS).await;
    // More than there is at all.
    let a = becomes(controller, "a", |it| lacks(it).is_some()).await;
    let budget = gib(4) - gib(4) / 10;
    assert_eq!((lacks(&a), fake.calls(Call::Create)), (Some((Resource::Memory, gib(4), budget)), 0));
    apply(controller, &format!("{AGENTS}limits: {{memory: 6G}}\n")).await;
    well(controller, &["a"]).await;
    let b = becomes(controller, "b", |it| lacks(it).is_some()).await;
    assert_eq!(lacks(&b), Some((Resource::Memory, gib(4), gib(2))));
    apply(controller, &format!("{AGENTS}limits: {{memory: 8G}}\n")).await;
    well(controller, &["a", "b"]).await;
    // A machine that is to grow beyond it stays as it is, and up.
    let grown = format!("{}limits: {{memory: 8G}}\n", AGENTS.replace("a: {}", "a: {memory: 5G}"));
    apply(controller, &grown).await;
    becomes(controller, "a", |it| lacks(it).is_some()).await;
    pass(controller, &grown).await;
    assert_eq!(fake.calls(Call::Stop), 0);
    controller.stop("b".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    until("it has grown", async || (fake.calls_on(Call::Resize, "a") == 1).then_some(())).await;
    becomes(controller, "a", is_well).await;
    running.shut_down().await;
}

#[tokio::test]
async fn processors_and_disk_count_where_the_file_says_so() {
    const FILE: &str = "defaults: {driver: qemu, memory: 1G, cpus: 2, disk: 10G}\nagents: {a: {}, b: {}, c: {}}\n";
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start_on(folder.path(), &[&fake], HEARTBEAT, host(64)).await;
    let controller = running.controller();
    apply(controller, &format!("{FILE}limits: {{cpus: 3}}\n")).await;
    well(controller, &["a"]).await;
    let b = becomes(controller, "b", |it| lacks(it).is_some()).await;
    assert_eq!(lacks(&b), Some((Resource::Cpus, 2, 1)));
    apply(controller, &format!("{FILE}limits: {{disk: 25G}}\n")).await;
    well(controller, &["a", "b"]).await;
    let c = becomes(controller, "c", |it| lacks(it).is_some()).await;
    assert_eq!(lacks(&c), Some((Resource::Disk, gib(10), gib(5))));
    // A disk stays taken when its machine stops.
    controller.stop("a".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    becomes(controller, "a", |it| it.sync == Sync::Synced).await;
    pass(controller, &format!("{FILE}limits: {{disk: 25G}}\n")).await;
    assert_eq!(fake.calls(Call::Create), 2);
    apply(controller, FILE).await;
    well(controller, &["c"]).await;
    running.shut_down().await;
}

//! Runtimes of another version are offered that of the controller.

use std::sync::Arc;

use tokio::sync::mpsc;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::plan::{Cost, DriftClass, Sync};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{
    Channel, Configured, FromHub, FromRuntime, Hello, Seed, StreamEnded, StreamTaken, TaskOutcome, UpgradeFailed,
    WINDOW,
};
use vm_agent_tests::fleet_of_fakes::{Disk, Peer, health};
use vm_agent_tests::in_process::{apply, becomes, is_well, qemu, start, told};

const FILE: &str = "defaults: {driver: qemu}\nagents: {web: {}}\n";

/// A runtime of this version has connected, and works with what it was given.
async fn connected(disk: &mut Disk, version: &str) -> Peer {
    let mut peer = Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap();
    disk.boot = disk.boot.next();
    let hello = Hello { runtime_version: version.to_owned(), ..disk.hello() };
    let Some(FromHub::Welcome(welcome)) = peer.shake(hello, disk).await else { panic!("it is welcome") };
    let digest = welcome.configuration.map(|configuration| configuration.digest);
    peer.say(FromRuntime::Configured(Configured { digest, problems: Vec::new() })).await;
    peer.say(FromRuntime::Health(health())).await;
    peer
}

/// The version that the runtime is offered.
async fn offered(peer: &mut Peer) -> vm_agent_schemas::wire::Upgrade {
    loop {
        if let FromHub::Upgrade(upgrade) = peer.hear().await.expect("the session goes on") {
            return upgrade;
        }
    }
}

#[tokio::test]
async fn a_runtime_of_another_version_is_given_the_controllers_and_one_that_refuses_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let program: Vec<u8> = (0..3 * WINDOW).map(|number| (number % 251) as u8).collect();
    let path = folder.path().join("program");
    std::fs::write(&path, &program).unwrap();
    let fake = qemu(Span::from_secs(60)).with_runtime(path);
    let (seeds, mut seeded) = mpsc::unbounded_channel();
    fake.on_up(Arc::new(move |seed: &Seed| seeds.send(seed.clone()).unwrap()));
    let running = start(&folder.path().join("state"), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    let mut disk = Disk::new(seeded.recv().await.unwrap());

    let mut peer = connected(&mut disk, "0.0.9").await;
    let upgrade = offered(&mut peer).await;
    let web = becomes(controller, "web", |it| it.drift.iter().any(|it| it.class == DriftClass::RuntimeVersion)).await;
    assert_eq!((web.drift[0].observed.as_str(), web.drift[0].cost), (Some("0.0.9"), Cost::Live));
    assert_eq!((upgrade.size.bytes(), &upgrade.sha256), (program.len() as u64, &Digest::of(&program)));
    let mut received = Vec::new();
    loop {
        let frame = peer.receive().await.unwrap();
        assert_eq!(
            (frame.stream, frame.channel, frame.offset),
            (upgrade.stream, Channel::Stdin, received.len() as u64)
        );
        received.extend_from_slice(&frame.data);
        let (stream, offset) = (upgrade.stream, received.len() as u64);
        peer.say(FromRuntime::StreamTaken(StreamTaken { stream, channel: Channel::Stdin, offset })).await;
        if frame.end {
            break;
        }
    }
    assert!(received == program);
    let (stream, outcome) = (upgrade.stream, TaskOutcome::Exited { code: 0 });
    peer.say(FromRuntime::StreamEnded(StreamEnded { stream, outcome })).await;
    drop(peer);

    let peer = connected(&mut disk, &upgrade.version).await;
    told(controller, EventKind::RuntimeUpgraded, "web", 1).await;
    becomes(controller, "web", is_well).await;
    drop(peer);

    // Somebody put the old one back, and it does not bear the new one.
    let mut peer = connected(&mut disk, "0.0.9").await;
    let upgrade = offered(&mut peer).await;
    let (version, sha256, reason) = (upgrade.version, upgrade.sha256, "it does not start".to_owned());
    peer.say(FromRuntime::UpgradeFailed(UpgradeFailed { version, sha256, reason })).await;
    told(controller, EventKind::UpgradeFailed, "web", 1).await;
    let web = becomes(controller, "web", |it| it.sync == Sync::Blocked).await;
    assert_eq!((web.drift[0].observed.as_str(), web.drift[0].cost), (Some("0.0.9: it does not start"), Cost::Wait));
    let mut peer = connected(&mut disk, "0.0.9").await;
    apply(controller, &format!("{FILE}limits: {{parallelism: 2}}\n")).await;
    becomes(controller, "web", |it| it.session.is_some() && it.sync == Sync::Blocked).await;
    running.shut_down().await;
    while let Some(message) = peer.hear().await {
        assert!(!matches!(message, FromHub::Upgrade(_)), "it is not offered again");
    }
}

//! Isolation is verified, not asserted: what speaks for an agent has to run in the agent's machine.

use std::path::Path;

use vm_agent_daemon::{Controller, Running};
use vm_agent_drivers::fake::{Behaviour, Call, Fake, On};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::{Boot, BootId, Secret, SessionId};
use vm_agent_schemas::observe::{Capabilities, Deadlines};
use vm_agent_schemas::plan::ConditionStatus;
use vm_agent_schemas::units::Span;
use vm_agent_schemas::verification::{Contradiction, Obstacle, Verdict, Verification};
use vm_agent_schemas::wire::{Configured, Evidence, FromHub, FromRuntime, Hello, RefusalCode};
use vm_agent_tests::fleet_of_fakes::{Disk, Peer, Runtimes, health};
use vm_agent_tests::in_process::{agent, apply, becomes, capabilities, is_well, pass, settled, start, told, until};

const FILE: &str = "defaults: {driver: qemu}\nagents: {web: {}}\n";

/// A fleet whose driver has a way into its machines, or none.
async fn fleet(state: &Path, way_in: bool) -> (Running, Fake, Runtimes) {
    let usual = capabilities(Span::from_secs(60));
    let deadlines = Deadlines { connect: Span::from_secs(2), ..usual.deadlines };
    let fake = Fake::new(DriverName::Qemu, Capabilities { deadlines, ..usual });
    let runtimes = Runtimes::of(&fake);
    if way_in {
        runtimes.let_in(&fake);
    }
    let running = start(state, &[&fake]).await;
    apply(running.controller(), FILE).await;
    settled(running.controller(), FILE, &["web"]).await;
    (running, fake, runtimes)
}

/// What the condition says.
async fn isolation(controller: &Controller) -> (ConditionStatus, String) {
    let web = agent(controller, "web").await.expect("there is such an agent");
    let condition = web.conditions.into_iter().find(|it| it.kind == "IsolationVerified").expect("it is told");
    (condition.status, condition.reason)
}

async fn is_told(controller: &Controller, status: ConditionStatus, reason: &str) {
    let wanted = (status, reason.to_owned());
    until(reason, async || (isolation(controller).await == wanted).then_some(())).await;
}

async fn verify(controller: &Controller) -> Verification {
    controller.verify(&"web".parse().unwrap()).await.unwrap()
}

#[tokio::test]
async fn each_session_is_verified_once_by_itself_and_whenever_somebody_asks() {
    let folder = tempfile::tempdir().unwrap();
    let (running, fake, runtimes) = fleet(folder.path(), true).await;
    let controller = running.controller();
    is_told(controller, ConditionStatus::True, "Verified").await;
    for _ in 0..3 {
        pass(controller, FILE).await;
    }
    assert_eq!(fake.calls(Call::Challenge), 1, "a pass asks nobody");
    let asked = verify(controller).await;
    assert_eq!(asked.verdict, Verdict::Verified { hypervisor: "kvm".to_owned() });
    assert_eq!((asked.epoch.map(|epoch| epoch.0), fake.calls(Call::Challenge)), (Some(1), 2));

    runtimes.start("web");
    until("another session is asked", async || (fake.calls(Call::Challenge) == 3).then_some(())).await;
    is_told(controller, ConditionStatus::True, "Verified").await;
    runtimes.stop("web");
    is_told(controller, ConditionStatus::Unknown, "NoSession").await;
    let offline = verify(controller).await;
    assert_eq!(offline.verdict, Verdict::Unable { obstacle: Obstacle::NoSession });
    assert_eq!(fake.calls(Call::Challenge), 3);
    running.shut_down().await;
}

/// What was stolen from a machine, in a runtime elsewhere: it says to be a later start of the same runtime.
async fn thief(disk: &Disk) -> (Peer, SessionId) {
    let mut peer = Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap();
    let hello = Hello { boot: Boot(1000), join_token: None, ..disk.hello() };
    let Some(FromHub::Welcome(welcome)) = peer.shake(hello, disk).await else { panic!("it has all that it takes") };
    let digest = welcome.configuration.map(|configuration| configuration.digest);
    peer.say(FromRuntime::Configured(Configured { digest, problems: Vec::new() })).await;
    peer.say(FromRuntime::Health(health())).await;
    (peer, welcome.session)
}

async fn refusal(disk: &Disk, change: impl FnOnce(&mut Hello)) -> RefusalCode {
    let mut peer = Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap();
    let mut hello = Hello { boot: Boot(1001), ..disk.hello() };
    change(&mut hello);
    match peer.shake(hello, disk).await {
        Some(FromHub::Refused(refused)) => refused.code,
        other => panic!("it is refused: {other:?}"),
    }
}

/// Answers the question of where it runs with this, and gives the hub's last word.
async fn answer(peer: &mut Peer, evidence: impl Fn(&vm_agent_schemas::wire::Verify) -> Evidence) -> RefusalCode {
    loop {
        match peer.hear().await.expect("it is told why") {
            FromHub::Verify(question) => peer.say(FromRuntime::Evidence(evidence(&question))).await,
            FromHub::Refused(refused) => return refused.code,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_runtime_with_stolen_files_is_found_out_and_the_real_one_gets_back_in() {
    let folder = tempfile::tempdir().unwrap();
    let (running, fake, runtimes) = fleet(folder.path(), true).await;
    let controller = running.controller();
    is_told(controller, ConditionStatus::True, "Verified").await;
    // Everything that lies on the machine's disk, and that is known of it: its boot, too.
    let stolen = runtimes.disk("web");
    let boot = Some(runtimes.inside("web").boot());
    assert_eq!(refusal(&stolen, |hello| hello.abilities.clear()).await, RefusalCode::Unverified, "it can't say less");

    let (mut peer, session) = thief(&stolen).await;
    let lie = |question: &vm_agent_schemas::wire::Verify| {
        Evidence::new(question, Some(&Secret::generate()), session, Some(stolen.system.digest()), boot)
    };
    assert_eq!(answer(&mut peer, lie).await, RefusalCode::Unverified);
    assert_eq!(peer.hear().await, None, "the connection is closed");
    told(controller, EventKind::IsolationBroken, "web", 1).await;
    let first = refusal(&stolen, |_| {}).await;
    assert!(matches!(first, RefusalCode::JoinToken | RefusalCode::Credential), "{first}");

    // The machine has gone on all the time.
    is_told(controller, ConditionStatus::True, "Verified").await;
    becomes(controller, "web", is_well).await;
    assert_eq!((fake.calls(Call::Reseed), fake.calls(Call::Stop), fake.calls(Call::Start)), (1, 0, 0));
    assert_eq!(refusal(&stolen, |_| {}).await, RefusalCode::Credential, "the stolen key is worth nothing");
    assert!(verify(controller).await.verdict.is_verified());
    let audited = controller.audited(None, 100).await.unwrap();
    let revoked = |line: &&vm_agent_schemas::api::AuditEntry| line.path == "/agents/web/credential";
    assert_eq!(audited.iter().filter(revoked).count(), 1, "{audited:?}");
    running.shut_down().await;
}

#[tokio::test]
async fn somebody_who_asks_finds_out_a_thief_too_and_a_machine_that_takes_no_seed_is_started_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let (running, fake, runtimes) = fleet(folder.path(), true).await;
    let controller = running.controller();
    is_told(controller, ConditionStatus::True, "Verified").await;
    let stolen = runtimes.disk("web");
    // The machine is busy when it is asked for the first time.
    fake.script(On::every(Call::Challenge).once(), Behaviour::Fail("its guest program is busy".to_owned()));
    fake.script(On::every(Call::Reseed), Behaviour::Fail("its guest program is old".to_owned()));
    let (mut peer, _) = thief(&stolen).await;
    is_told(controller, ConditionStatus::Unknown, "NoWitness").await;
    let elsewhere = |question: &vm_agent_schemas::wire::Verify| {
        Evidence::new(question, None, SessionId::generate(), Some(stolen.system.digest()), Some(BootId::generate()))
    };
    let (asked, refused) = tokio::join!(verify(controller), answer(&mut peer, elsewhere));
    assert_eq!(asked.verdict, Verdict::NotInMachine { why: Contradiction::OtherBoot });
    assert_eq!(refused, RefusalCode::Unverified);
    assert_eq!(isolation(controller).await.1, "NotInMachine");

    is_told(controller, ConditionStatus::True, "Verified").await;
    becomes(controller, "web", is_well).await;
    assert_eq!((fake.calls(Call::Stop), fake.calls(Call::Start)), (1, 1));
    running.shut_down().await;
}

#[tokio::test]
async fn where_nobody_can_tell_the_session_goes_on_and_the_condition_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (running, fake, runtimes) = fleet(folder.path(), false).await;
    let controller = running.controller();
    is_told(controller, ConditionStatus::Unknown, "NoWayIn").await;
    let asked = verify(controller).await;
    assert_eq!(asked.verdict, Verdict::Unable { obstacle: Obstacle::NoWayIn { driver: DriverName::Qemu } });

    // A runtime of a version before this question.
    runtimes.let_in(&fake);
    runtimes.stop("web");
    let disk = runtimes.disk("web");
    let mut peer = Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap();
    let mut hello = Hello { boot: Boot(2), ..disk.hello() };
    hello.abilities.clear();
    assert!(matches!(peer.shake(hello, &disk).await, Some(FromHub::Welcome(_))));
    is_told(controller, ConditionStatus::Unknown, "RuntimeTooOld").await;
    let asked = verify(controller).await;
    assert_eq!(asked.verdict.reason(), "RuntimeTooOld");
    assert!(asked.remediation.unwrap().contains("upgraded"));
    assert!(agent(controller, "web").await.unwrap().session.is_some());
    running.shut_down().await;
}

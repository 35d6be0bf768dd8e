//! What people say beside the file wins, visibly, and ends.

use vm_agent_drivers::fake::Call;
use vm_agent_schemas::api::{AgentView, ChangeRequest, CreateRequest};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::intent::OverridePath;
use vm_agent_schemas::plan::{Health, Sync};
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{
    agent, ann, apply, becomes, count, gone, is_gone, pass, qemu, settled, start, told, until, well,
};

const FILE: &str = "defaults: {driver: qemu}\nagents: {db: {}, web: {}}\n";
const RESTS: &str = "defaults: {driver: qemu}\nagents: {db: {}, web: {power: stopped}}\n";

fn rests(view: &AgentView) -> bool {
    (view.sync, view.health) == (Sync::Synced, Health::Stopped)
}

fn lasting(seconds: u64) -> ChangeRequest {
    let reason = Some("a look inside".to_owned());
    ChangeRequest { lasting: Some(Span::from_secs(seconds)), reason, ..Default::default() }
}

#[tokio::test]
async fn a_stop_holds_for_its_time_and_then_the_file_counts_again() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["db", "web"]).await;
    controller.stop("web".parse().unwrap(), lasting(2), &ann()).await.unwrap();
    let web = becomes(controller, "web", rests).await;
    let [entry] = &web.overrides[..] else { panic!("{:?}", web.overrides) };
    assert_eq!((&*entry.author, entry.reason.as_deref()), ("ann", Some("a look inside")));
    well(controller, &["web"]).await;
    told(controller, EventKind::OverrideExpired, "web", 1).await;
    assert_eq!(agent(controller, "web").await.unwrap().overrides, []);
    assert_eq!((fake.calls_on(Call::Stop, "web"), fake.calls_on(Call::Start, "web")), (1, 1));
    running.shut_down().await;
}

#[tokio::test]
async fn a_stop_ends_when_the_file_changes_what_it_covers() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    apply(controller, FILE).await;
    settled(controller, FILE, &["db", "web"]).await;
    controller.stop("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    becomes(controller, "web", rests).await;
    // An edit of something else leaves it in force.
    apply(controller, "defaults: {driver: qemu}\nagents: {db: {}, web: {labels: {a: b}}}\n").await;
    pass(controller, FILE).await;
    assert_eq!(agent(controller, "web").await.unwrap().overrides.len(), 1);

    apply(controller, RESTS).await;
    told(controller, EventKind::OverrideSuperseded, "web", 1).await;
    // The store tells of it a moment before memory knows.
    becomes(controller, "web", |it| it.overrides.is_empty()).await;
    assert_eq!(fake.calls_on(Call::Start, "web"), 0);
    apply(controller, FILE).await;
    well(controller, &["web"]).await;
    // A command that says what the file says leaves nothing behind.
    controller.stop("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    let changed = controller.start("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    assert_eq!((changed.overridden, controller.overrides().await.unwrap()), (None, Vec::new()));
    well(controller, &["web"]).await;
    running.shut_down().await;
}

#[tokio::test]
async fn what_people_said_survives_a_restart_of_the_controller() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), FILE).await;
    settled(running.controller(), FILE, &["db", "web"]).await;
    running.controller().stop("web".parse().unwrap(), lasting(3), &ann()).await.unwrap();
    let by_hand = CreateRequest { spec: serde_json::from_str(r#"{"driver":"qemu"}"#).unwrap(), ..Default::default() };
    running.controller().create("hand".parse().unwrap(), by_hand, &ann()).await.unwrap();
    running.controller().destroy("db".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    becomes(running.controller(), "web", rests).await;
    well(running.controller(), &["hand"]).await;
    gone(running.controller(), "db").await;
    let before = running.controller().overrides().await.unwrap();
    running.shut_down().await;

    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let after = controller.overrides().await.unwrap();
    assert_eq!(after.iter().filter(|it| it.agent.as_str() != "web").count(), 2);
    assert!(after.iter().all(|entry| before.contains(entry)), "{after:?}");
    well(controller, &["hand", "web"]).await;
    assert_eq!(count(controller, EventKind::OverrideExpired, "web").await, 1);
    assert!(is_gone(controller, "db").await);
    assert_eq!((fake.calls_on(Call::Create, "hand"), fake.calls_on(Call::Create, "db")), (1, 1));
    running.shut_down().await;
}

#[tokio::test]
async fn what_was_made_or_destroyed_by_hand_stays_so_whatever_file_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let auto = format!("{FILE}prune: auto\n");
    apply(controller, FILE).await;
    settled(controller, FILE, &["db", "web"]).await;
    let spec = serde_json::from_str(r#"{"driver":"qemu","labels":{"by":"hand"}}"#).unwrap();
    let by_hand = CreateRequest { spec, ..Default::default() };
    controller.create("hand".parse().unwrap(), by_hand, &ann()).await.unwrap();
    well(controller, &["hand"]).await;
    controller.destroy("db".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    gone(controller, "db").await;
    for text in [&auto, FILE, RESTS, &auto] {
        let applied = apply(controller, text).await;
        assert_eq!(applied.plan.approvals, []);
        pass(controller, text).await;
    }
    well(controller, &["hand", "web"]).await;
    assert!(is_gone(controller, "db").await);
    assert_eq!((fake.calls_on(Call::Destroy, "hand"), fake.calls_on(Call::Create, "db")), (0, 1));

    controller.create("db".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    well(controller, &["db"]).await;
    controller.destroy("hand".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    gone(controller, "hand").await;
    until("nothing is left to say", async || controller.overrides().await.unwrap().is_empty().then_some(())).await;
    running.shut_down().await;
}

#[tokio::test]
async fn an_override_that_is_extended_outlives_its_first_end_and_ends_when_it_is_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), FILE).await;
    settled(running.controller(), FILE, &["db", "web"]).await;
    let (web, power) = ("web".parse().unwrap(), OverridePath::Power);
    for name in ["db", "web"] {
        running.controller().stop(name.parse().unwrap(), lasting(2), &ann()).await.unwrap();
    }
    let extended = running.controller().extend_override(web, power, lasting(3600), &ann()).await.unwrap();
    let entry = extended.overridden.unwrap();
    assert_eq!(entry.expires_at.unwrap().duration_since(entry.created_at).as_secs(), 3600);
    assert_eq!(entry.reason.as_deref(), Some("a look inside"));
    running.shut_down().await;

    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    told(controller, EventKind::OverrideExpired, "db", 1).await;
    well(controller, &["db"]).await;
    let web = becomes(controller, "web", rests).await;
    assert_eq!(web.overrides, [entry]);
    controller.clear_override("web".parse().unwrap(), power, Default::default(), &ann()).await.unwrap();
    well(controller, &["db", "web"]).await;
    told(controller, EventKind::OverrideCleared, "web", 1).await;
    assert_eq!((fake.calls_on(Call::Stop, "web"), fake.calls_on(Call::Start, "web")), (1, 1));
    let gone = controller.clear_override("web".parse().unwrap(), power, Default::default(), &ann()).await;
    assert_eq!(gone.unwrap_err().code, vm_agent_schemas::api::ProblemCode::NotFound);
    running.shut_down().await;
}

//! What would disturb what runs waits for its window.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use vm_agent_drivers::fake::{Call, Fake};
use vm_agent_schemas::api::AgentView;
use vm_agent_schemas::plan::{Health, Sync, WaitsFor};
use vm_agent_schemas::schedule::Cron;
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{ann, apply, becomes, gone, pass, qemu, settled, start, until, well};

const OPEN: &str = "* * * * *";

/// A schedule whose next moment is half a day from now.
fn closed() -> String {
    let opens = Timestamp::now().to_zoned(TimeZone::UTC).checked_add(jiff::Span::new().hours(12)).unwrap();
    format!("{} {} * * *", opens.minute(), opens.hour())
}

fn file(window: &str, agents: &str) -> String {
    format!(
        "defaults: {{driver: qemu}}\nprune: auto\nwindows: [{{cron: '{window}', lasts: 1h}}]\nagents: {{{agents}}}\n"
    )
}

fn calls(fake: &Fake) -> [usize; 5] {
    [Call::Create, Call::Start, Call::Stop, Call::Resize, Call::Destroy].map(|call| fake.calls(call))
}

fn waits_for_window(view: &AgentView) -> Option<Option<Timestamp>> {
    view.waits_for.iter().find_map(|reason| match reason {
        WaitsFor::Window { opens } => Some(*opens),
        _ => None,
    })
}

#[tokio::test]
async fn outside_a_window_the_file_disturbs_nothing_that_runs() {
    const BEFORE: &str = "big: {}, gone: {}, off: {}, crash: {}, hand: {}";
    const AFTER: &str = "big: {memory: 2G, env: {A: b}}, off: {power: stopped}, crash: {}, hand: {}, new: {}";
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let closed = closed();
    let (before, after) = (file(&closed, BEFORE), file(&closed, AFTER));
    apply(controller, &before).await;
    settled(controller, &before, &["big", "gone", "off", "crash", "hand"]).await;

    apply(controller, &after).await;
    // What disturbs nothing goes on.
    well(controller, &["new"]).await;
    let knows = || runtimes.inside("big").configuration.is_some_and(|it| it.env.contains_key("A"));
    until("the environment has come", async || knows().then_some(())).await;
    fake.crash("crash");
    until("it is started again", async || (fake.calls_on(Call::Start, "crash") == 1).then_some(())).await;
    // So does what a person says.
    controller.stop("hand".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    becomes(controller, "hand", |it| (it.sync, it.health) == (Sync::Synced, Health::Stopped)).await;
    let opens = closed.parse::<Cron>().unwrap().next_after(Timestamp::now());
    for name in ["big", "off", "gone"] {
        let view = becomes(controller, name, |it| waits_for_window(it).is_some()).await;
        assert_eq!((view.sync, waits_for_window(&view)), (Sync::Blocked, Some(opens)), "{name}");
        assert_eq!(view.health, Health::Healthy, "{name}");
    }
    pass(controller, &after).await;
    assert_eq!(calls(&fake), [6, 1, 1, 0, 0]);

    apply(controller, &file(OPEN, AFTER)).await;
    well(controller, &["big", "new"]).await;
    becomes(controller, "off", |it| (it.sync, it.health) == (Sync::Synced, Health::Stopped)).await;
    gone(controller, "gone").await;
    assert_eq!(calls(&fake), [6, 2, 3, 1, 1]);
    running.shut_down().await;
}

#[tokio::test]
async fn idleness_and_age_wait_for_no_window() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    apply(running.controller(), &file(&closed(), "aged: {ttl: 1s}, idle: {idle: 1s}")).await;
    for name in ["aged", "idle"] {
        becomes(running.controller(), name, |it| it.sync == Sync::Synced && it.rests.is_some()).await;
        assert_eq!(fake.calls_on(Call::Stop, name), 1);
    }
    running.shut_down().await;
}

#[tokio::test]
async fn a_machine_that_a_person_stopped_is_resized_outside_of_windows() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let closed = closed();
    apply(controller, &file(&closed, "web: {}")).await;
    settled(controller, &file(&closed, "web: {}"), &["web"]).await;
    apply(controller, &file(&closed, "web: {memory: 2G}")).await;
    becomes(controller, "web", |it| waits_for_window(it).is_some()).await;
    controller.stop("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    becomes(controller, "web", |it| (it.sync, it.health) == (Sync::Synced, Health::Stopped)).await;
    assert_eq!(fake.calls_on(Call::Resize, "web"), 1);
    controller.start("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    well(controller, &["web"]).await;
    assert_eq!(calls(&fake), [1, 1, 1, 1, 0]);
    running.shut_down().await;
}

//! A store that can't be written: what is not durable has no effect, and nothing is lost.

use vm_agent_drivers::fake::{Behaviour, Call, On};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{ann, apply, count, file, qemu, start, until, well};

const FILE: &str = "defaults: {driver: qemu}\nagents: {db: {}, web: {}}\n";

#[tokio::test]
async fn nothing_is_done_that_could_not_be_written_down_and_what_was_done_is_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    // Another writer keeps the database to itself, for longer than the store waits.
    let other = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = controller.apply(file(FILE), &ann()).await.unwrap_err();
    assert_eq!(refused.code, vm_agent_schemas::api::ProblemCode::Internal, "{refused:?}");
    assert_eq!((fake.mutating_calls(), controller.agents().await.unwrap().len()), (0, 0));
    other.execute_batch("ROLLBACK").unwrap();

    fake.script(On::create("web"), Behaviour::Delay(std::time::Duration::from_millis(300)));
    apply(controller, FILE).await;
    until("web is being made", async || (fake.calls_on(Call::Create, "web") == 1).then_some(())).await;
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    until("web is made", async || (fake.instances().len() == 2).then_some(())).await;
    let refused = controller.stop("db".parse().unwrap(), Default::default(), &ann()).await.unwrap_err();
    assert_eq!(refused.code, vm_agent_schemas::api::ProblemCode::Internal, "{refused:?}");
    assert_eq!((fake.calls(Call::Stop), controller.overrides().await.unwrap()), (0, Vec::new()));
    other.execute_batch("ROLLBACK").unwrap();
    well(controller, &["db", "web"]).await;
    let told = async || (count(controller, EventKind::StepSucceeded, "web").await == 1).then_some(());
    until("the step's end is written down", told).await;
    assert_eq!((fake.calls(Call::Create), fake.mutating_calls()), (2, 2));
    running.shut_down().await;
}

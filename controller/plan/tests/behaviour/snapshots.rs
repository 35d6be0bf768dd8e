use vm_agent_plan::{Inputs, wake_at};
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::names::SnapshotName;
use vm_agent_schemas::observe::{InstanceState, SnapshotSupport};
use vm_agent_schemas::plan::{Cost, Rest, Step, WaitsFor};
use vm_agent_schemas::snapshot::{Ask, Cause};

use crate::{agent, settled, steps, words, world};

const DAY: i64 = 86_400;

fn name(text: &str) -> SnapshotName {
    text.parse().expect("the test's name is right")
}

fn take(inputs: &mut Inputs, snapshot: &str) {
    let cause = Cause::Person { by: "ann".into() };
    world::ask(inputs, "web", Ask::Take { name: name(snapshot), cause, comment: None });
}

fn restore(inputs: &mut Inputs, to: &str) {
    world::ask(inputs, "web", Ask::Restore { to: name(to), safety: Some(name("before")) });
}

/// The driver can't take snapshots of what runs.
fn only_down(inputs: &mut Inputs) {
    inputs.drivers.values_mut().for_each(|view| view.capabilities.snapshots = SnapshotSupport::Down);
}

fn taken(inputs: &Inputs) -> Vec<String> {
    let known = inputs.snapshots.get(&world::name("web"));
    known.into_iter().flat_map(|known| known.keys()).map(ToString::to_string).collect()
}

fn busy(inputs: &mut Inputs) {
    world::session(inputs, "web").running = 1;
}

#[test]
fn a_machine_goes_on_running_while_a_snapshot_of_it_is_taken_where_the_driver_can() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    busy(&mut inputs);
    let snapshot = &steps(&inputs, "web")[0];
    assert_eq!((snapshot.cost, snapshot.disturbs, snapshot.waits_for.len()), (Cost::Live, None, 0));
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot");
    assert_eq!(taken(&inputs), ["one"]);
    assert!(inputs.errands.values().all(Vec::is_empty), "it is over");
}

#[test]
fn a_driver_that_takes_none_of_what_runs_has_the_machine_down_for_it_and_up_again() {
    let mut inputs = settled("agents: {web: {}}");
    only_down(&mut inputs);
    take(&mut inputs, "one");
    busy(&mut inputs);
    assert_eq!(words(&steps(&inputs, "web")), "stop (snapshot) (start)", "whom a person asks does not wait");
    assert_eq!(words(&world::converge(&mut inputs)), "stop snapshot start");
}

#[test]
fn what_the_file_asks_for_disturbs_no_task_and_waits_for_its_window() {
    let text = "windows: [{cron: '0 22 * * *', lasts: 8h}]
agents: {web: {snapshots: {points: [provisioned]}}}";
    let mut inputs = settled("agents: {web: {}}");
    only_down(&mut inputs);
    world::edit(&mut inputs, text);
    world::converge(&mut inputs);
    assert_eq!(taken(&inputs), [""; 0]);
    let stop = &steps(&inputs, "web")[0];
    assert!(matches!(stop.waits_for[..], [WaitsFor::Window { .. }]), "{stop:?}");
    world::edit(&mut inputs, "agents: {web: {snapshots: {points: [provisioned]}}}");
    busy(&mut inputs);
    assert!(matches!(steps(&inputs, "web")[0].waits_for[..], [WaitsFor::Drain { tasks: 1 }]));
}

#[test]
fn of_a_machine_that_is_to_be_down_the_snapshot_is_taken_then_and_it_stays_down() {
    let mut inputs = settled("agents: {web: {power: stopped}}");
    only_down(&mut inputs);
    take(&mut inputs, "one");
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot");
}

#[test]
fn a_machine_goes_back_after_a_snapshot_of_what_it_was_and_is_another_incarnation() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    world::pass_time(&mut inputs, 10);
    restore(&mut inputs, "one");
    busy(&mut inputs);
    assert_eq!(words(&steps(&inputs, "web")), "snapshot (stop) (restore)", "whom a person asks does not wait");
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot stop restore");
    assert_eq!(taken(&inputs), ["before", "one"]);
    assert_eq!(inputs.claims[&world::name("web")].incarnation, Incarnation(2));
}

#[test]
fn a_machine_that_should_be_down_is_down_again_after_it_went_back() {
    let mut inputs = settled("agents: {web: {power: stopped}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    restore(&mut inputs, "one");
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot restore stop");
}

#[test]
fn a_machine_on_its_way_back_gets_there_before_anything_else() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    let web = world::name("web");
    world::observe(&mut inputs, &web, InstanceState::Running);
    let claim = inputs.claims.get_mut(&web).expect("it is claimed");
    let from = claim.nonce.clone();
    claim.nonce = vm_agent_schemas::ids::Nonce::from_text("new");
    let way = vm_agent_schemas::observe::Restoring { snapshot: name("one"), taken_at: inputs.now, from };
    inputs.claims.get_mut(&web).expect("it is claimed").history.restoring = Some(way);
    world::edit(&mut inputs, "agents: {web: {memory: 2G}}");
    assert_eq!(words(&steps(&inputs, "web")), "stop (restore)", "its instance is still the one from before");
    world::edit(&mut inputs, "agents: {}");
    assert_eq!(steps(&inputs, "web")[0].action.word(), "destroy", "it need not get there in order to go");
}

#[test]
fn a_task_of_the_file_runs_again_when_the_machine_went_back_to_before_its_end() {
    let text = "agents: {web: {tasks: {setup: {exec: make}}}}";
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "bare");
    world::converge(&mut inputs);
    world::pass_time(&mut inputs, 10);
    world::edit(&mut inputs, text);
    assert_eq!(words(&world::converge(&mut inputs)), "task");
    world::pass_time(&mut inputs, 10);
    take(&mut inputs, "set-up");
    world::converge(&mut inputs);
    world::pass_time(&mut inputs, 10);
    world::ask(&mut inputs, "web", Ask::Restore { to: name("set-up"), safety: None });
    assert_eq!(words(&world::converge(&mut inputs)), "stop restore", "it had ended by then");
    world::pass_time(&mut inputs, 10);
    world::ask(&mut inputs, "web", Ask::Restore { to: name("bare"), safety: None });
    assert_eq!(words(&world::converge(&mut inputs)), "stop restore task", "that machine has never seen it");
    assert_eq!(words(&world::converge(&mut inputs)), "", "once");
}

#[test]
fn a_point_of_a_machines_life_has_one_snapshot_once_its_tasks_have_succeeded() {
    let text = "agents: {web: {tasks: {setup: {exec: make}}, snapshots: {points: [provisioned]}}}";
    let mut inputs = world::inputs_of(text);
    assert_eq!(words(&world::converge(&mut inputs)), "create task snapshot");
    assert_eq!(taken(&inputs), ["provisioned"]);
    inputs.snapshots.clear();
    assert_eq!(words(&world::converge(&mut inputs)), "", "a person deleted it");
}

const NIGHTLY: &str = "agents: {web: {snapshots: {schedules: {nightly: {cron: '0 3 * * *', keep: {last: 2}}}}}}";

#[test]
fn a_schedule_takes_one_for_its_moment_and_keeps_what_it_says() {
    let mut inputs = settled(NIGHTLY);
    for _ in 0..4 {
        let next = wake_at(&inputs).expect("the schedule has a next moment");
        assert!(next.duration_since(inputs.now).as_secs() <= DAY, "{next}");
        world::pass_time(&mut inputs, DAY);
        let done: Vec<Step> = world::converge(&mut inputs);
        assert_eq!(done.first().map(|step| step.action.word()), Some("snapshot"));
        assert_eq!(words(&world::converge(&mut inputs)), "", "for one moment one snapshot");
    }
    assert_eq!(taken(&inputs).len(), 2);
}

#[test]
fn a_host_that_slept_makes_up_for_all_that_it_missed_by_one() {
    let mut inputs = settled(NIGHTLY);
    world::pass_time(&mut inputs, 30 * DAY);
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot");
}

#[test]
fn what_a_person_took_or_protects_is_never_deleted_by_a_schedule() {
    let mut inputs = settled(NIGHTLY);
    take(&mut inputs, "mine");
    world::converge(&mut inputs);
    world::pass_time(&mut inputs, DAY);
    world::converge(&mut inputs);
    let first = taken(&inputs).into_iter().find(|name| name.starts_with("nightly")).expect("one was taken");
    let known = inputs.snapshots.get_mut(&world::name("web")).expect("it has some");
    known.get_mut(first.as_str()).expect("it is one of them").protect = true;
    for _ in 0..4 {
        world::pass_time(&mut inputs, DAY);
        world::converge(&mut inputs);
    }
    let left = taken(&inputs);
    assert!(left.contains(&"mine".to_owned()) && left.contains(&first), "{left:?}");
    assert_eq!(left.len(), 4);
}

#[test]
fn a_machine_that_was_down_since_its_last_snapshot_has_no_other() {
    let mut inputs = settled(&NIGHTLY.replace("snapshots", "power: stopped, snapshots"));
    world::pass_time(&mut inputs, DAY);
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot");
    world::pass_time(&mut inputs, DAY);
    assert_eq!(words(&world::converge(&mut inputs)), "");
}

#[test]
fn a_driver_that_takes_none_is_told_of_and_everything_else_goes_on() {
    let mut inputs = world::inputs_of(NIGHTLY);
    inputs.drivers.values_mut().for_each(|view| view.capabilities.snapshots = SnapshotSupport::None);
    assert_eq!(words(&world::converge(&mut inputs)), "create");
    let web = agent(&inputs, "web");
    assert!(matches!(&web.waits_for[..], [WaitsFor::Unsupported { what }] if what == "take snapshots"), "{web:?}");
    take(&mut inputs, "one");
    assert_eq!(words(&world::converge(&mut inputs)), "");
    assert!(inputs.errands.values().all(Vec::is_empty), "nobody waits for ever");
}

#[test]
fn an_errand_ends_with_its_machine_and_at_its_time() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    inputs.claims.get_mut(&world::name("web")).expect("it is claimed").id = vm_agent_schemas::ids::ClaimId::generate();
    assert_eq!(words(&world::converge(&mut inputs)), "");
    assert!(inputs.errands.values().all(Vec::is_empty));
    take(&mut inputs, "two");
    world::pass_time(&mut inputs, 2 * 3600);
    assert_eq!(words(&world::converge(&mut inputs)), "");
    assert!(inputs.errands.values().all(Vec::is_empty));
}

#[test]
fn an_agent_without_work_keeps_its_memory_where_the_driver_can() {
    let mut inputs = settled("agents: {web: {idle: 10m}}");
    inputs.drivers.values_mut().for_each(|view| view.capabilities.suspend = true);
    world::pass_time(&mut inputs, 600);
    assert_eq!(words(&world::converge(&mut inputs)), "suspend");
    assert_eq!(agent(&inputs, "web").rests, Some(Rest::Idle));
    inputs.work = [world::name("web")].into();
    assert_eq!(words(&world::converge(&mut inputs)), "start");
}

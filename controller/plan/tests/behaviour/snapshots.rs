use std::collections::BTreeSet;

use jiff::SignedDuration;
use proptest::prelude::*;
use vm_agent_plan::{Inputs, after_failure, kept, plan, wake_at};
use vm_agent_schemas::fleet::{CloneOf, DeclaredAgent, PowerState, Reconcile};
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::intent::{Change, Presence};
use vm_agent_schemas::names::SnapshotName;
use vm_agent_schemas::observe::{CloneSupport, InstanceState, SnapshotSupport, Standing};
use vm_agent_schemas::plan::{Cost, Rest, SnapshotLoss, Step, StepAction, Sync, WaitsFor};
use vm_agent_schemas::snapshot::{Ask, Cause, Keeper, Point, Snapshot};

use crate::{agent, say, settled, steps, words, world};

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
fn a_machine_that_should_be_down_stays_down_as_it_goes_back() {
    let mut inputs = settled("agents: {web: {power: stopped}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    restore(&mut inputs, "one");
    let back = steps(&inputs, "web").pop().expect("it goes back");
    assert_eq!((back.action, back.cost), (StepAction::Restore { to: name("one"), stays_down: true }, Cost::Live));
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot restore");
    assert_eq!(inputs.claims[&world::name("web")].standing, Standing::Down);
}

#[test]
fn a_machine_that_an_override_is_about_to_stop_is_stopped_to_go_back_and_stays_so_until_it_ends() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    say(&mut inputs, "web", Change::Power { wanted: PowerState::Stopped, covers: PowerState::Running });
    restore(&mut inputs, "one");
    let costs: Vec<Cost> = steps(&inputs, "web").iter().map(|step| step.cost).collect();
    assert_eq!(costs, [Cost::Live, Cost::Stop, Cost::Live]);
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot stop restore");
    world::pass_time(&mut inputs, 3600);
    assert_eq!(words(&world::converge(&mut inputs)), "start");
}

#[test]
fn a_machine_that_slept_for_want_of_work_is_awake_once_it_is_back() {
    let mut inputs = settled("agents: {web: {idle: 10m}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    world::pass_time(&mut inputs, 600);
    assert_eq!(words(&world::converge(&mut inputs)), "stop");
    restore(&mut inputs, "one");
    let back = steps(&inputs, "web").pop().expect("it goes back");
    assert_eq!(back.action, StepAction::Restore { to: name("one"), stays_down: false });
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

/// An agent that sleeps, with a driver that takes snapshots only of what is down.
fn asleep(text: &str) -> Inputs {
    let mut inputs = settled(text);
    inputs.drivers.values_mut().for_each(|view| view.capabilities.suspend = true);
    only_down(&mut inputs);
    world::pass_time(&mut inputs, 600);
    assert_eq!(words(&world::converge(&mut inputs)), "suspend");
    inputs
}

#[test]
fn a_machine_that_sleeps_is_woken_to_go_down_in_order_where_the_driver_takes_none_of_it() {
    let mut inputs = asleep("agents: {web: {idle: 10m}}");
    take(&mut inputs, "one");
    assert_eq!(words(&steps(&inputs, "web")), "start (stop) (snapshot)");
    assert_eq!(words(&world::converge(&mut inputs)), "start stop snapshot start");
    assert_eq!(taken(&inputs), ["one"]);
    world::pass_time(&mut inputs, 600);
    assert_eq!(words(&world::converge(&mut inputs)), "suspend", "it sleeps again, with nothing to be woken for");
}

#[test]
fn a_machine_that_is_about_to_sleep_goes_down_for_its_snapshot_instead() {
    let mut inputs = settled("agents: {web: {idle: 10m}}");
    inputs.drivers.values_mut().for_each(|view| view.capabilities.suspend = true);
    only_down(&mut inputs);
    world::pass_time(&mut inputs, 600);
    take(&mut inputs, "one");
    assert_eq!(words(&world::converge(&mut inputs)), "stop snapshot");
    assert_eq!((taken(&inputs).as_slice(), agent(&inputs, "web").rests), (&["one".to_owned()][..], Some(Rest::Idle)));
}

#[test]
fn a_machine_that_sleeps_and_has_work_is_up_once_its_snapshot_is_taken() {
    let mut inputs = asleep("agents: {web: {idle: 10m}}");
    take(&mut inputs, "one");
    inputs.work = [world::name("web")].into();
    assert_eq!(words(&world::converge(&mut inputs)), "start stop snapshot start");
}

/// Has the machine go back so many times, and a minute pass each time.
fn go_back_and_forth(inputs: &mut Inputs, to: &str, safeties: &[&str]) {
    for safety in safeties {
        world::pass_time(inputs, 60);
        world::ask(inputs, "web", Ask::Restore { to: name(to), safety: Some(name(safety)) });
        world::converge(inputs);
    }
}

#[test]
fn of_the_snapshots_before_restores_the_latest_three_stay() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    go_back_and_forth(&mut inputs, "one", &["b-1", "b-2", "b-3"]);
    assert_eq!(taken(&inputs), ["b-1", "b-2", "b-3", "one"]);
    go_back_and_forth(&mut inputs, "one", &["b-4", "b-5"]);
    assert_eq!(taken(&inputs), ["b-3", "b-4", "b-5", "one"]);
}

#[test]
fn the_way_back_that_was_taken_last_stays_and_one_that_is_protected_is_none_of_the_three() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    go_back_and_forth(&mut inputs, "one", &["b-1", "b-2", "b-3"]);
    go_back_and_forth(&mut inputs, "b-1", &["b-4"]);
    assert_eq!(taken(&inputs), ["b-1", "b-2", "b-3", "b-4", "one"], "somebody may want to go back to it again");
    snapshot(&mut inputs, "b-2").protect = true;
    go_back_and_forth(&mut inputs, "one", &["b-5", "b-6"]);
    assert_eq!(taken(&inputs), ["b-2", "b-4", "b-5", "b-6", "one"]);
}

#[test]
fn a_clock_that_was_set_back_makes_the_way_back_of_now_no_old_one() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    go_back_and_forth(&mut inputs, "one", &["b-1", "b-2", "b-3"]);
    inputs.now -= SignedDuration::from_hours(24);
    go_back_and_forth(&mut inputs, "one", &["b-4"]);
    assert_eq!(taken(&inputs), ["b-2", "b-3", "b-4", "one"]);
}

fn snapshot<'a>(inputs: &'a mut Inputs, of: &str) -> &'a mut Snapshot {
    let known = inputs.snapshots.get_mut(&world::name("web")).expect("it has some");
    known.get_mut(of).expect("it is one of them")
}

/// Somebody wants an agent made from a snapshot of `web`.
fn clone(inputs: &mut Inputs, new: &str, base: &str) {
    let web = inputs.fleet.agents[&world::name("web")].as_ref().clone();
    let clone_of = Some(CloneOf { agent: world::name("web"), snapshot: name(base) });
    say(inputs, new, Change::Presence(Presence::Present(DeclaredAgent { clone_of, ..web })));
}

fn keepers(inputs: &Inputs, of: &str) -> String {
    let words = |keepers: &BTreeSet<Keeper>| keepers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    words(&kept(inputs)[&(world::name("web"), name(of))])
}

#[test]
fn the_snapshot_of_a_clone_goes_once_its_machine_is_there_and_none_that_somebody_took() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "mine");
    world::converge(&mut inputs);
    clone(&mut inputs, "other", "mine");
    clone(&mut inputs, "twin", "clone-1");
    let cause = Cause::Clone { to: world::name("twin") };
    world::ask(&mut inputs, "web", Ask::Take { name: name("clone-1"), cause, comment: None });
    // Nothing can be made on the host as it is.
    inputs.host =
        Some(vm_agent_schemas::observe::Host { cpus: 1, memory: vm_agent_schemas::units::ByteSize::from_mib(1) });
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot");
    assert_eq!((keepers(&inputs, "clone-1"), keepers(&inputs, "mine")), ("in use".into(), "manual, in use".into()));
    inputs.host = None;
    let done = world::converge(&mut inputs);
    assert_eq!(words(&done), "create create dropSnapshot");
    assert_eq!(done[2].action.snapshot(), Some(&name("clone-1")));
    assert_eq!(taken(&inputs), ["mine"]);
    assert_eq!(keepers(&inputs, "mine"), "manual");
}

/// Somebody wants a copy of `web`, with a driver that copies only what is down.
fn copy(inputs: &mut Inputs, reconcile: Reconcile) {
    for view in inputs.drivers.values_mut() {
        (view.capabilities.snapshots, view.capabilities.clones) = (SnapshotSupport::Down, CloneSupport::Down);
    }
    clone(inputs, "twin", "clone-1");
    say(inputs, "twin", Change::Reconcile { wanted: reconcile, covers: Reconcile::Auto });
    let cause = Cause::Clone { to: world::name("twin") };
    world::ask(inputs, "web", Ask::Take { name: name("clone-1"), cause, comment: None });
}

#[test]
fn a_machine_stays_down_until_its_copy_is_made_where_only_what_is_down_is_copied() {
    let mut inputs = settled("agents: {web: {}}");
    copy(&mut inputs, Reconcile::Auto);
    let done = world::converge(&mut inputs);
    assert_eq!(words(&done), "stop snapshot create dropSnapshot start");
    assert_eq!(done.iter().map(|step| step.agent.as_str()).collect::<Vec<_>>(), ["web", "web", "twin", "web", "web"]);
}

#[test]
fn a_machine_stays_down_for_no_copy_that_takes_too_long() {
    let mut inputs = settled("agents: {web: {}}");
    copy(&mut inputs, Reconcile::Paused);
    assert_eq!(words(&world::converge(&mut inputs)), "stop snapshot");
    let (web, twin) = (agent(&inputs, "web"), world::name("twin"));
    assert_eq!((web.waits_for.as_slice(), web.sync), (&[WaitsFor::Clone { agent: twin }][..], Sync::Reconciling));
    let begun = inputs.now;
    let done = loop {
        inputs.now = wake_at(&inputs).expect("it does not wait for ever");
        let done = world::converge(&mut inputs);
        if !done.is_empty() {
            break done;
        }
    };
    assert_eq!((words(&done).as_str(), inputs.now.duration_since(begun).as_mins()), ("start", 30));
    say(&mut inputs, "twin", Change::Reconcile { wanted: Reconcile::Auto, covers: Reconcile::Auto });
    assert_eq!(words(&world::converge(&mut inputs)), "", "it has run since, and is no longer what it was");
    let twin = agent(&inputs, "twin");
    assert!(
        matches!(&twin.waits_for[..], [WaitsFor::Problem { what }] if what.contains("clone once more")),
        "{twin:?}"
    );
}

#[test]
fn a_machine_stays_down_for_no_copy_that_went_wrong() {
    let mut inputs = settled("agents: {web: {}}");
    copy(&mut inputs, Reconcile::Paused);
    assert_eq!(words(&world::converge(&mut inputs)), "stop snapshot");
    let twin = world::name("twin");
    let failure = after_failure(&twin, None, None, "the disk is full".into(), 0.5, inputs.now);
    inputs.backoffs.insert(twin, failure);
    assert_eq!(words(&world::converge(&mut inputs)), "start");
}

#[test]
fn a_clone_that_nobody_wants_any_more_keeps_no_snapshot() {
    let mut inputs = settled("agents: {web: {}}");
    let cause = Cause::Clone { to: world::name("twin") };
    world::ask(&mut inputs, "web", Ask::Take { name: name("clone-1"), cause, comment: None });
    assert_eq!(words(&world::converge(&mut inputs)), "snapshot dropSnapshot");
}

#[test]
fn what_somebody_keeps_before_its_turn_to_go_has_come_is_not_deleted() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "one");
    world::converge(&mut inputs);
    let ways: [fn(&mut Inputs); 2] = [|it| snapshot(it, "b-1").protect = true, |it| restore(it, "b-1")];
    for keep in ways {
        let mut inputs = inputs.clone();
        go_back_and_forth(&mut inputs, "one", &["b-1"]);
        let unkept = Ask::Delete { name: name("b-1"), unkept: true };
        world::ask(&mut inputs, "web", unkept);
        keep(&mut inputs);
        world::converge(&mut inputs);
        assert!(taken(&inputs).contains(&"b-1".to_owned()) && inputs.errands.values().all(Vec::is_empty));
        world::ask(&mut inputs, "web", Ask::Delete { name: name("b-1"), unkept: false });
        world::converge(&mut inputs);
        assert!(!taken(&inputs).contains(&"b-1".to_owned()), "whom a person asks does not judge");
    }
}

#[test]
fn no_clone_is_replaced_whose_base_is_gone() {
    let mut inputs = settled("agents: {web: {}}");
    take(&mut inputs, "mine");
    clone(&mut inputs, "twin", "mine");
    world::converge(&mut inputs);
    inputs.claims.get_mut(&world::name("twin")).expect("it is made").birth.image = "another".into();
    let asked = plan(&inputs).approvals;
    inputs.approvals = asked.into_iter().map(|request| (request.id, request.agent)).collect();
    assert_eq!(words(&steps(&inputs, "twin")), "destroy (create)");
    inputs.snapshots.clear();
    let destroy = &steps(&inputs, "twin")[0];
    assert!(matches!(&destroy.waits_for[..], [WaitsFor::Problem { what }] if what.contains("is gone")), "{destroy:?}");
}

#[test]
fn each_snapshot_is_told_what_keeps_it() {
    let mut inputs = settled(&NIGHTLY.replace("schedules", "points: [provisioned], schedules"));
    take(&mut inputs, "mine");
    world::converge(&mut inputs);
    for _ in 0..2 {
        world::pass_time(&mut inputs, DAY);
        world::converge(&mut inputs);
    }
    go_back_and_forth(&mut inputs, "mine", &["before"]);
    let nightly = taken(&inputs).into_iter().find(|name| name.starts_with("nightly")).expect("some were taken");
    let told = |inputs: &Inputs| {
        let told = ["mine", "provisioned", nightly.as_str(), "before"].map(|name| keepers(inputs, name));
        told.join("; ")
    };
    assert_eq!(told(&inputs), "manual; point; last; before restore");
    snapshot(&mut inputs, "before").protect = true;
    world::edit(&mut inputs, "agents: {web: {}}");
    assert_eq!(told(&inputs), "manual; point; no limit; protected");
}

#[test]
fn whoever_deletes_a_machine_is_told_of_its_snapshots_and_says_yes_to_those_that_are_protected() {
    let mut inputs = settled("agents: {web: {}}");
    let gone = |inputs: &Inputs| {
        let mut left = inputs.clone();
        world::edit(&mut left, "agents: {}");
        let (plan, destroy) = (plan(&left), steps(&left, "web").remove(0));
        assert_eq!(destroy.action, StepAction::Destroy);
        let request = plan.approvals[0].clone();
        (destroy.loses, request.what, request.id)
    };
    let (none, what, id) = gone(&inputs);
    assert_eq!((none, what.split(": ").next()), (None, Some("delete `web` and its data")));
    take(&mut inputs, "one");
    take(&mut inputs, "two");
    world::converge(&mut inputs);
    let (two, what, same) = gone(&inputs);
    assert_eq!(two, Some(SnapshotLoss { snapshots: 2, protected: 0 }));
    assert!(what.contains("(2 snapshots go with it)"), "{what}");
    assert_eq!(same, id, "what comes and goes by itself makes no yes void");
    snapshot(&mut inputs, "two").protect = true;
    let (two, what, other) = gone(&inputs);
    assert_eq!(two, Some(SnapshotLoss { snapshots: 2, protected: 1 }));
    assert!(what.contains("(2 snapshots go with it, 1 of them protected)"), "{what}");
    assert_ne!(other, id);
    let restart = steps(&inputs, "web").into_iter().find_map(|step| step.loses);
    assert_eq!(restart, None);
}

fn any_cause() -> impl Strategy<Value = Cause> {
    prop_oneof![
        2 => Just(Cause::Person { by: "ann".into() }),
        1 => Just(Cause::Point { point: Point::Provisioned }),
        4 => (0..20_i64).prop_map(|day| Cause::Schedule {
            schedule: "nightly".parse().expect("it is a name"),
            due: world::at(-day * DAY),
        }),
        4 => Just(Cause::Restore { to: name("one") }),
        2 => Just(Cause::Clone { to: world::name("twin") }),
    ]
}

proptest! {
    #[test]
    fn what_is_kept_stays_and_the_rest_goes_once_and_for_all(
        all in proptest::collection::vec((any_cause(), -40..4_i64, proptest::bool::weighted(0.2)), 0..25),
        back_at in proptest::option::of(0..25_usize),
    ) {
        let mut inputs = settled(NIGHTLY);
        let web = world::name("web");
        let claim = inputs.claims[&web].id;
        for (index, (cause, hours, protect)) in all.iter().enumerate() {
            let snapshot = Snapshot {
                name: name(&format!("s-{index}")),
                agent: web.clone(),
                claim,
                cause: cause.clone(),
                comment: None,
                protect: *protect,
                taken_at: inputs.now + SignedDuration::from_hours(*hours),
                running: true,
                suspended: false,
            };
            inputs.snapshots.entry(web.clone()).or_default().insert(snapshot.name.clone(), snapshot);
        }
        let before = inputs.snapshots.get(&web).cloned().unwrap_or_default();
        if let Some(at) = back_at.and_then(|at| before.get(format!("s-{at}").as_str())) {
            let undone = vm_agent_schemas::observe::Undone { since: at.taken_at, until: inputs.now };
            inputs.claims.get_mut(&web).expect("it is claimed").history.undone = Some(undone);
        }
        let told = kept(&inputs);
        world::converge(&mut inputs);
        let after = inputs.snapshots.get(&web).cloned().unwrap_or_default();
        for (name, snapshot) in &before {
            let keepers = &told[&(web.clone(), name.clone())];
            prop_assert_eq!(!keepers.is_empty(), after.contains_key(name), "{:?}: {:?}", snapshot, keepers);
            let stays = snapshot.protect || matches!(snapshot.cause, Cause::Person { .. } | Cause::Point { .. });
            prop_assert!(!stays || after.contains_key(name), "{snapshot:?}");
        }
        let counted = |of: fn(&Cause) -> bool| after.values().filter(|it| of(&it.cause) && !it.protect).count();
        let had = |of: fn(&Cause) -> bool| before.values().filter(|it| of(&it.cause) && !it.protect).count();
        let is_restore = |cause: &Cause| matches!(cause, Cause::Restore { .. });
        let moments: BTreeSet<_> = before.values().map(|it| it.taken_at).collect();
        let twice = before.len() - moments.len();
        prop_assert!(counted(is_restore) >= had(is_restore).min(3));
        prop_assert!(counted(is_restore) <= 4 + twice, "three, and the one that it is back at");
        prop_assert_eq!(counted(|cause| matches!(cause, Cause::Clone { .. })), 0);
        let is_nightly = |cause: &Cause| matches!(cause, Cause::Schedule { .. });
        prop_assert!(counted(is_nightly) >= had(is_nightly).min(2));
    }
}

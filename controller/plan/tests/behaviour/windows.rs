use vm_agent_plan::Inputs;
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::intent::{Change, Presence};
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::plan::{Disturbance, Sync, WaitsFor};

use crate::{agent, say, settled, steps, words, world};

/// The world begins at 08:00.
const CLOSED: &str = "windows: [{cron: '0 22 * * *', lasts: 8h}]\n";
const OPEN: &str = "windows: [{cron: '0 7 * * *', lasts: 2h}]\n";

fn opens() -> WaitsFor {
    WaitsFor::Window { opens: Some(world::at(14 * 3600)) }
}

#[test]
fn a_restart_that_the_file_asks_for_waits_for_the_next_window_and_what_is_live_does_not() {
    let mut inputs = settled("agents: {web: {cpus: 1}}");
    world::edit(&mut inputs, &format!("{CLOSED}agents: {{web: {{cpus: 2, env: {{A: b}}}}}}"));
    let planned = steps(&inputs, "web");
    assert_eq!(words(&planned), "configure (stop) (resize) (start)");
    assert_eq!(planned[1].waits_for, [opens()]);
    world::converge(&mut inputs);
    assert_eq!(words(&steps(&inputs, "web")), "(stop) (resize) (start)");
    assert_eq!(agent(&inputs, "web").sync, Sync::Blocked);
    world::pass_time(&mut inputs, 14 * 3600);
    assert_eq!(words(&steps(&inputs, "web")), "stop (resize) (start)");
}

#[test]
fn in_a_window_a_restart_comes_before_what_is_live() {
    let mut inputs = settled("agents: {web: {cpus: 1}}");
    world::edit(&mut inputs, &format!("{OPEN}agents: {{web: {{cpus: 2, env: {{A: b}}}}}}"));
    assert_eq!(words(&steps(&inputs, "web")), "stop (resize) (start) (configure)");
}

#[test]
fn a_machine_that_does_not_run_is_resized_outside_all_windows() {
    let mut inputs = settled("agents: {web: {cpus: 1, power: stopped}}");
    world::edit(&mut inputs, &format!("{CLOSED}agents: {{web: {{cpus: 2, power: stopped}}}}"));
    assert_eq!(words(&steps(&inputs, "web")), "resize");
}

#[test]
fn the_file_stops_a_machine_in_a_window_and_a_person_at_once() {
    let running = format!("{CLOSED}agents: {{web: {{}}}}");
    let mut by_file = settled(&running);
    world::edit(&mut by_file, &format!("{CLOSED}agents: {{web: {{power: stopped}}}}"));
    assert_eq!(words(&steps(&by_file, "web")), "(stop)");
    let mut by_person = settled(&running);
    say(&mut by_person, "web", Change::Power { wanted: PowerState::Stopped, covers: PowerState::Running });
    assert_eq!(words(&steps(&by_person, "web")), "stop");
}

#[test]
fn a_pruned_machine_goes_in_a_window_and_one_that_a_person_dismissed_at_once() {
    let two = format!("{CLOSED}prune: auto\nagents: {{web: {{}}, db: {{}}}}");
    let mut pruned = settled(&two);
    world::edit(&mut pruned, &format!("{CLOSED}prune: auto\nagents: {{db: {{}}}}"));
    assert_eq!(steps(&pruned, "web")[0].waits_for, [opens()]);
    let mut dismissed = settled(&two);
    say(&mut dismissed, "web", Change::Presence(Presence::Absent));
    assert_eq!(words(&steps(&dismissed, "web")), "destroy");
    world::observe(&mut pruned, &world::name("web"), InstanceState::Stopped);
    assert_eq!(words(&steps(&pruned, "web")), "destroy", "what does not run is not disturbed");
}

#[test]
fn an_approved_replacement_waits_for_a_window_and_holds_nothing_else_up() {
    let mut inputs = settled("agents: {web: {image: a}}");
    world::edit(&mut inputs, &format!("{CLOSED}agents: {{web: {{image: b, env: {{A: b}}}}}}"));
    let asked = vm_agent_plan::plan(&inputs);
    inputs.approvals = asked.approvals.iter().map(|request| (request.id.clone(), request.agent.clone())).collect();
    assert_eq!(words(&steps(&inputs, "web")), "configure (destroy) (create)");
    world::pass_time(&mut inputs, 14 * 3600);
    assert_eq!(words(&steps(&inputs, "web")), "destroy (create)");
}

#[test]
fn a_runtime_that_never_joined_is_given_a_new_seed_in_a_window() {
    let mut inputs = settled(&format!("{CLOSED}agents: {{web: {{}}}}"));
    inputs.sessions.clear();
    inputs.unjoined.insert(world::name("web"));
    world::pass_time(&mut inputs, 300);
    assert_eq!(words(&steps(&inputs, "web")), "(stop) (start)");
}

#[test]
fn a_step_that_takes_a_running_machine_down_says_what_it_ends() {
    let mut inputs = settled("agents: {web: {cpus: 1}}");
    world::session(&mut inputs, "web").running = 2;
    world::session(&mut inputs, "web").streams = 1;
    world::edit(&mut inputs, "agents: {web: {cpus: 2}}");
    let disturbs: Vec<_> = steps(&inputs, "web").iter().map(|step| step.disturbs).collect();
    assert_eq!(disturbs, [Some(Disturbance { tasks: 2, drains: true, sessions: 1 }), None, None]);
}

#[test]
fn what_the_file_wants_down_goes_down_when_the_tasks_in_it_have_ended_and_begins_no_new_one() {
    let mut inputs = settled("agents: {web: {cpus: 1}}");
    world::session(&mut inputs, "web").running = 1;
    world::edit(&mut inputs, "agents: {web: {cpus: 2}}");
    assert_eq!(steps(&inputs, "web")[0].waits_for, [WaitsFor::Drain { tasks: 1 }]);
    let cordoned = |inputs: &Inputs| vm_agent_plan::plan(inputs).agent(&world::name("web")).unwrap().cordoned;
    assert!(cordoned(&inputs));
    world::session(&mut inputs, "web").running = 0;
    assert_eq!(words(&steps(&inputs, "web")), "stop (resize) (start)");
    assert!(cordoned(&inputs), "a task that began now would be cut off");
}

#[test]
fn a_closed_window_lets_tasks_begin() {
    let mut inputs = settled("agents: {web: {cpus: 1}}");
    world::session(&mut inputs, "web").running = 1;
    world::edit(&mut inputs, &format!("{CLOSED}agents: {{web: {{cpus: 2}}}}"));
    assert!(!vm_agent_plan::plan(&inputs).agent(&world::name("web")).unwrap().cordoned);
}

#[test]
fn what_a_person_wants_down_goes_down_now() {
    let mut inputs = settled("agents: {web: {}}");
    world::session(&mut inputs, "web").running = 1;
    say(&mut inputs, "web", Change::Power { wanted: PowerState::Stopped, covers: PowerState::Running });
    assert_eq!(words(&steps(&inputs, "web")), "stop");
}

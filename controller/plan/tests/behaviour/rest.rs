use vm_agent_plan::Inputs;
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::intent::Change;
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::plan::{Cost, Health, Rest, Sync};

use crate::{agent, say, settled, steps, words, world};

/// Something that happens, and its name.
type Happening<'a> = (&'a str, &'a dyn Fn(&mut Inputs));

const IDLE: &str = "agents: {web: {idle: 10m}}";

fn asleep(text: &str) -> Inputs {
    let mut inputs = settled(text);
    world::pass_time(&mut inputs, 600);
    world::converge(&mut inputs);
    inputs
}

fn start() -> Change {
    Change::Power { wanted: PowerState::Running, covers: PowerState::Running }
}

#[test]
fn an_agent_in_which_nothing_happens_is_stopped_and_shown_as_suspended() {
    let mut inputs = settled(IDLE);
    world::pass_time(&mut inputs, 599);
    assert_eq!(words(&steps(&inputs, "web")), "");
    world::pass_time(&mut inputs, 1);
    let stop = &steps(&inputs, "web")[0];
    assert_eq!((stop.reason.as_str(), stop.cost, stop.waits_for.len()), ("it is idle", Cost::Stop, 0));
    world::converge(&mut inputs);
    let web = agent(&inputs, "web");
    assert_eq!(web.observed, Some(InstanceState::Stopped));
    assert_eq!((web.rests, web.health, web.sync), (Some(Rest::Idle), Health::Suspended, Sync::Synced));
    assert!(inputs.claims[&world::name("web")].asleep);
}

#[test]
fn an_agent_that_is_busy_has_a_service_at_work_or_has_work_does_not_sleep() {
    let keep_up: [Happening<'_>; 5] = [
        ("a session", &|inputs| world::session(inputs, "web").busy = true),
        ("a service", &|inputs| {
            world::session(inputs, "web").services.values_mut().for_each(|service| service.cpu_percent = 6.0);
        }),
        ("work", &|inputs| inputs.work = [world::name("web")].into()),
        ("a person", &|inputs| say(inputs, "web", start())),
        ("a new session", &|inputs| world::session(inputs, "web").active_at = inputs.now),
    ];
    for (what, keep_up) in keep_up {
        let mut inputs = settled("agents: {web: {idle: 10m, services: {gateway: {exec: serve}}}}");
        world::pass_time(&mut inputs, 590);
        keep_up(&mut inputs);
        world::pass_time(&mut inputs, 20);
        assert_eq!(words(&world::converge(&mut inputs)), "", "{what}");
        assert_eq!(agent(&inputs, "web").rests, None, "{what}");
    }
}

#[test]
fn looking_at_an_agent_does_not_keep_it_up_nor_does_a_quiet_service() {
    let inputs = asleep("agents: {web: {idle: 10m, services: {gateway: {exec: serve}}}}");
    assert_eq!(agent(&inputs, "web").rests, Some(Rest::Idle));
}

#[test]
fn an_agent_wakes_for_work_for_a_person_and_when_the_file_lets_it() {
    let wake: [Happening<'_>; 3] = [
        ("work", &|inputs| inputs.work = [world::name("web")].into()),
        ("a person", &|inputs| say(inputs, "web", start())),
        ("the file", &|inputs| world::edit(inputs, "agents: {web: {}}")),
    ];
    for (what, wake) in wake {
        let mut inputs = asleep(IDLE);
        wake(&mut inputs);
        assert_eq!(words(&world::converge(&mut inputs)), "start", "{what}");
        assert!(!inputs.claims[&world::name("web")].asleep, "{what}");
        assert_eq!(agent(&inputs, "web").health, Health::Healthy, "{what}");
    }
}

#[test]
fn an_agent_wakes_for_a_new_task_of_the_file_and_the_task_runs() {
    let mut inputs = asleep(IDLE);
    world::edit(&mut inputs, "agents: {web: {idle: 10m, tasks: {setup: {exec: make}}}}");
    assert_eq!(words(&steps(&inputs, "web")), "start task", "the task is accepted while it sleeps");
    world::converge(&mut inputs);
    let web = agent(&inputs, "web");
    assert_eq!((web.sync, web.health), (Sync::Synced, Health::Healthy));
}

#[test]
fn a_moment_wakes_an_agent_however_long_its_machine_takes_to_come_up() {
    let mut inputs = asleep("agents: {web: {idle: 5m, tasks: {tidy: {exec: tidy, when: {cron: '20 8 * * *'}}}}}");
    world::pass_time(&mut inputs, 600);
    let ready: Vec<_> = vm_agent_plan::plan(&inputs).ready().cloned().collect();
    assert_eq!(words(&ready), "start task");
    // The task is accepted at once, and the machine comes up long after its moment.
    world::act(&mut inputs, &ready[1]);
    world::pass_time(&mut inputs, 300);
    assert_eq!(words(&world::converge(&mut inputs)), "start");
    let tasks = &inputs.tasks[&world::name("web")];
    assert_eq!(tasks.len(), 1);
    assert!(tasks[0].outcome.is_some());
    world::pass_time(&mut inputs, 300);
    assert_eq!(words(&world::converge(&mut inputs)), "stop", "then it sleeps again");
}

#[test]
fn a_tasks_policy_that_runs_no_tasks_lets_the_agent_sleep() {
    let mut inputs = asleep(IDLE);
    world::edit(&mut inputs, "agents: {web: {idle: 10m, tasks: {setup: {exec: make}}, drift: {tasks: ignore}}}");
    assert_eq!(words(&steps(&inputs, "web")), "");
}

#[test]
fn an_agent_that_slept_while_the_host_did_has_slept_no_time_at_all() {
    let mut inputs = settled(IDLE);
    world::pass_time(&mut inputs, 8 * 3600);
    inputs.resumed_at = Some(inputs.now);
    assert_eq!(words(&steps(&inputs, "web")), "");
    world::pass_time(&mut inputs, 600);
    assert_eq!(words(&steps(&inputs, "web")), "stop");
}

#[test]
fn a_machine_that_is_too_old_is_stopped_once_nothing_runs_in_it_and_never_deleted() {
    let mut inputs = settled("agents: {web: {ttl: 1h}}");
    world::session(&mut inputs, "web").busy = true;
    world::pass_time(&mut inputs, 3600);
    assert_eq!(words(&steps(&inputs, "web")), "");
    world::session(&mut inputs, "web").busy = false;
    assert_eq!(steps(&inputs, "web")[0].reason, "its time to live is over");
    assert_eq!(words(&world::converge(&mut inputs)), "stop");
    let web = agent(&inputs, "web");
    assert_eq!((web.rests, web.health, web.sync), (Some(Rest::Aged), Health::Stopped, Sync::Synced));
}

#[test]
fn work_does_not_wake_an_aged_machine_and_a_person_does() {
    let mut inputs = settled("agents: {web: {ttl: 1h}}");
    world::pass_time(&mut inputs, 3600);
    world::converge(&mut inputs);
    inputs.work.insert(world::name("web"));
    assert_eq!(words(&world::converge(&mut inputs)), "");
    say(&mut inputs, "web", start());
    assert_eq!(words(&world::converge(&mut inputs)), "start");
    inputs.work.clear();
    world::pass_time(&mut inputs, 3600);
    assert_eq!(words(&world::converge(&mut inputs)), "stop", "its age is that of its claim");
}

#[test]
fn an_aged_machine_whose_runtime_may_yet_connect_is_left_until_it_has() {
    let mut inputs = settled("agents: {web: {ttl: 1h}}");
    world::pass_time(&mut inputs, 3600);
    world::session(&mut inputs, "web").connected = false;
    assert_eq!(words(&steps(&inputs, "web")), "");
    inputs.now += jiff::SignedDuration::from_secs(300);
    assert_eq!(words(&steps(&inputs, "web")), "stop", "nobody is there any more");
}

/// Lets a stop of the agent be under way.
fn goes_down(inputs: &mut Inputs) {
    let web = world::name("web");
    let operation = vm_agent_schemas::observe::Operation {
        id: vm_agent_schemas::ids::OperationId::generate(),
        agent: web.clone(),
        driver: world::DRIVER,
        action: vm_agent_schemas::observe::Action::Stop,
        snapshot: None,
        started_at: inputs.now,
        deadline: world::at(60),
        life: inputs.life,
    };
    inputs.operations.insert(web, operation);
}

#[test]
fn an_agent_that_is_woken_while_it_goes_down_stays_awake() {
    for woken in [true, false] {
        let mut inputs = settled(IDLE);
        world::pass_time(&mut inputs, 600);
        let web = world::name("web");
        inputs.claims.get_mut(&web).unwrap().asleep = !woken;
        goes_down(&mut inputs);
        let upkeep = vm_agent_plan::upkeep(&inputs, &vm_agent_plan::plan(&inputs));
        assert_eq!(upkeep, [], "its runtime, still heard and quiet, changes nothing of it");
        assert_eq!(agent(&inputs, "web").rests, (!woken).then_some(Rest::Idle));
    }
}

#[test]
fn a_machine_that_goes_down_is_not_starting() {
    let mut inputs = settled(IDLE);
    goes_down(&mut inputs);
    assert_eq!(agent(&inputs, "web").health, Health::Healthy);
    world::session(&mut inputs, "web").connected = false;
    assert_eq!(agent(&inputs, "web").health, Health::Stopped);
}

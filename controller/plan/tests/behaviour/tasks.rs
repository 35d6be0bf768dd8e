use jiff::Timestamp;
use vm_agent_plan::{FileTask, Inputs, RUNS_KNOWN, note_run, wake_at};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::plan::{Health, StepAction, WaitsFor};
use vm_agent_schemas::wire::TaskOutcome;

use crate::{agent, settled, steps, words, world};

/// The runs of a task of `web`, in the order in which they were accepted.
fn runs<'a>(inputs: &'a Inputs, task: &str) -> Vec<&'a FileTask> {
    inputs.tasks.get(&world::name("web")).into_iter().flatten().filter(|run| run.name.as_str() == task).collect()
}

/// Lets the latest run of a task be under way again, or end.
fn set(inputs: &mut Inputs, task: &str, code: Option<i32>) {
    let now = inputs.now;
    let known = inputs.tasks.get_mut(&world::name("web")).expect("it has tasks");
    let run = known.iter_mut().rfind(|run| run.name.as_str() == task).expect("it has run");
    (run.outcome, run.ended_at) = (None, None);
    if let Some(code) = code {
        world::end(run, code, now);
    }
}

fn reconnect(inputs: &mut Inputs) {
    let agent = agent(inputs, "web").wanted.expect("it is wanted");
    world::session(inputs, "web").connected = false;
    world::connect(inputs, &world::name("web"), &agent);
}

/// Lets the first step of `web` alone be carried out.
fn begin_first(inputs: &mut Inputs) {
    let step = steps(inputs, "web").remove(0);
    world::act(inputs, &step);
}

/// Which tasks should run now, and why.
fn due(inputs: &Inputs) -> Vec<(String, String, Option<Timestamp>)> {
    let of_task = |step: vm_agent_schemas::plan::Step| match step.action {
        StepAction::Task { task, due } => Some((task.to_string(), step.reason, due)),
        _ => None,
    };
    steps(inputs, "web").into_iter().filter_map(of_task).collect()
}

#[test]
fn a_task_for_each_session_runs_once_in_each() {
    let mut inputs = settled("agents: {web: {tasks: {greet: {exec: hi, when: connect}}}}");
    assert_eq!(runs(&inputs, "greet").len(), 1);
    assert_eq!(runs(&inputs, "greet")[0].due, Some(world::at(0)));
    world::pass_time(&mut inputs, 60);
    assert_eq!(words(&steps(&inputs, "web")), "");
    reconnect(&mut inputs);
    assert_eq!(due(&inputs), [("greet".into(), "its runtime has connected".into(), Some(world::at(60)))]);
    world::converge(&mut inputs);
    assert_eq!(runs(&inputs, "greet").len(), 2);
}

#[test]
fn of_sessions_that_come_while_it_runs_a_task_runs_for_the_last_alone() {
    let mut inputs = settled("agents: {web: {tasks: {greet: {exec: hi, when: connect}}}}");
    for _ in 0..3 {
        world::pass_time(&mut inputs, 60);
        reconnect(&mut inputs);
        set(&mut inputs, "greet", None);
        assert_eq!(due(&inputs), []);
    }
    set(&mut inputs, "greet", Some(0));
    assert_eq!(due(&inputs)[0].2, Some(world::at(180)));
    world::converge(&mut inputs);
    assert_eq!(runs(&inputs, "greet").len(), 2);
}

#[test]
fn a_session_that_is_lost_is_nothing_to_run_for() {
    let mut inputs = settled("agents: {web: {}}");
    world::session(&mut inputs, "web").connected = false;
    world::edit(&mut inputs, "agents: {web: {tasks: {greet: {exec: hi, when: connect}}}}");
    assert_eq!(due(&inputs), []);
}

#[test]
fn a_task_for_each_session_wakes_no_agent_and_runs_when_something_else_does() {
    let text = "agents: {web: {idle: 10m, tasks: {greet: {exec: hi, when: connect}}}}";
    let mut inputs = settled(text);
    world::pass_time(&mut inputs, 600);
    assert_eq!(words(&world::converge(&mut inputs)), "stop");
    world::edit(&mut inputs, &text.replace("hi", "hello"));
    assert_eq!(words(&steps(&inputs, "web")), "", "a changed one does not either");
    inputs.work.insert(world::name("web"));
    assert_eq!(words(&world::converge(&mut inputs)), "start task");
}

#[test]
fn a_task_that_comes_after_another_runs_once_for_each_success() {
    let text =
        "agents: {web: {tasks: {tick: {exec: t, when: {cron: '*/2 * * * *'}}, tock: {exec: t, when: {after: tick}}}}}";
    let mut inputs = settled(text);
    assert_eq!(runs(&inputs, "tock").len(), 0);
    for round in 1..=3 {
        world::pass_time(&mut inputs, 120);
        let moment = inputs.now;
        begin_first(&mut inputs);
        assert_eq!(due(&inputs), [("tock".into(), "task tick has succeeded".into(), Some(moment))]);
        world::converge(&mut inputs);
        assert_eq!((runs(&inputs, "tick").len(), runs(&inputs, "tock").len()), (round, round));
    }
    world::pass_time(&mut inputs, 120);
    begin_first(&mut inputs);
    set(&mut inputs, "tick", Some(1));
    assert_eq!(due(&inputs), [], "a failure is no success");
}

#[test]
fn successes_that_come_while_it_runs_are_each_followed_in_their_order() {
    let text =
        "agents: {web: {tasks: {tick: {exec: t, when: {cron: '*/2 * * * *'}}, tock: {exec: t, when: {after: tick}}}}}";
    let mut inputs = settled(text);
    world::pass_time(&mut inputs, 120);
    world::converge(&mut inputs);
    set(&mut inputs, "tock", None);
    for _ in 0..2 {
        world::pass_time(&mut inputs, 120);
        world::converge(&mut inputs);
    }
    assert_eq!((runs(&inputs, "tick").len(), runs(&inputs, "tock").len()), (3, 1));
    set(&mut inputs, "tock", Some(1));
    world::converge(&mut inputs);
    let followed: Vec<_> = runs(&inputs, "tock").iter().map(|run| run.due).collect();
    assert_eq!(followed, [120, 240, 360].map(|second| Some(world::at(second))));
}

#[test]
fn what_is_new_follows_the_latest_success_alone_and_what_changed_follows_it_again() {
    let alone = "tick: {exec: t, when: {cron: '*/2 * * * *'}}";
    let mut inputs = settled(&format!("agents: {{web: {{tasks: {{{alone}}}}}}}"));
    for _ in 0..3 {
        world::pass_time(&mut inputs, 120);
        world::converge(&mut inputs);
    }
    for wording in ["a", "b"] {
        let text = format!("agents: {{web: {{tasks: {{{alone}, tock: {{exec: {wording}, when: {{after: tick}}}}}}}}}}");
        world::edit(&mut inputs, &text);
        world::converge(&mut inputs);
        let latest = runs(&inputs, "tick").last().and_then(|run| run.ended_at);
        assert_eq!(runs(&inputs, "tock").last().and_then(|run| run.due), latest);
    }
    assert_eq!(runs(&inputs, "tock").len(), 2);
}

#[test]
fn after_a_clock_that_was_set_back_each_success_is_still_followed_once() {
    let text = "agents: {web: {tasks: {greet: {exec: t, when: connect}, tock: {exec: t, when: {after: greet}}}}}";
    let mut inputs = settled(text);
    for jump in [600, -300, -200, 50] {
        inputs.now += jiff::SignedDuration::from_secs(jump);
        inputs.resumed_at = Some(inputs.now);
        reconnect(&mut inputs);
        world::converge(&mut inputs);
        world::converge(&mut inputs);
    }
    assert_eq!((runs(&inputs, "greet").len(), runs(&inputs, "tock").len()), (5, 5));
}

#[test]
fn what_comes_after_a_task_that_runs_once_belongs_to_what_has_to_be_completed() {
    let text = "agents: {seed: {tasks: {load: {exec: l}, index: {exec: i, when: {after: load}}, \
                hi: {exec: h, when: connect}, ho: {exec: h, when: {after: hi}}}}, web: {dependsOn: {seed: completed}}}";
    let mut inputs = settled(text);
    assert_eq!(inputs.tasks[&world::name("seed")].len(), 4);
    inputs.claims.remove(&world::name("web"));
    world::instances(&mut inputs).retain(|name, _| name.as_str() != "web");
    let fail = |inputs: &mut Inputs, task: &str| {
        let runs = inputs.tasks.get_mut(&world::name("seed")).expect("it has tasks");
        runs.iter_mut().filter(|run| run.name.as_str() == task).for_each(|run| world::end(run, 1, world::at(0)));
    };
    fail(&mut inputs, "ho");
    world::session(&mut inputs, "seed").ailing = false;
    assert_eq!(agent(&inputs, "seed").health, Health::Degraded);
    inputs
        .tasks
        .get_mut(&world::name("seed"))
        .unwrap()
        .retain(|run| run.name.as_str() != "ho" && run.name.as_str() != "index");
    assert_eq!(words(&steps(&inputs, "web")), "(create)", "`index` has not run");
    world::converge(&mut inputs);
    assert!(inputs.claims.contains_key(&world::name("web")));
}

#[test]
fn moments_that_come_while_a_task_runs_pass_or_wait_for_its_end() {
    for (overlap, left) in [("skip", 1), ("queue", 2)] {
        let when = format!("{{cron: '*/2 * * * *', overlap: {overlap}}}");
        let mut inputs = settled(&format!("agents: {{web: {{tasks: {{tick: {{exec: t, when: {when}}}}}}}}}"));
        world::pass_time(&mut inputs, 120);
        world::converge(&mut inputs);
        set(&mut inputs, "tick", None);
        world::pass_time(&mut inputs, 310);
        assert_eq!(words(&steps(&inputs, "web")), "");
        assert_eq!(agent(&inputs, "web").waits_for, [WaitsFor::TaskRunning { task: "tick".parse().unwrap() }]);
        set(&mut inputs, "tick", Some(0));
        world::converge(&mut inputs);
        assert_eq!(runs(&inputs, "tick").len(), left, "{overlap}");
        assert_eq!(wake_at(&inputs).map(|at| at <= world::at(480)), Some(true));
        world::pass_time(&mut inputs, 50);
        world::converge(&mut inputs);
        assert_eq!(runs(&inputs, "tick").len(), left + 1, "{overlap}: the next moment comes as ever");
    }
}

#[test]
fn a_moment_from_before_the_file_asked_for_a_task_is_none_of_its() {
    let text = "agents: {web: {tasks: {tick: {exec: t, when: {cron: '*/2 * * * *'}}}}}";
    let mut inputs = settled("agents: {web: {}}");
    let accept = |inputs: &mut Inputs, text: &str| {
        world::edit(inputs, text);
        inputs.accepted_at = Some(inputs.now);
    };
    world::pass_time(&mut inputs, 125);
    accept(&mut inputs, text);
    assert_eq!(due(&inputs), []);
    assert_eq!(wake_at(&inputs).map(|at| at <= world::at(240)), Some(true));
    world::pass_time(&mut inputs, 115);
    world::converge(&mut inputs);
    assert_eq!(runs(&inputs, "tick").len(), 1);
    world::pass_time(&mut inputs, 121);
    accept(&mut inputs, &text.replace("web:", "db: {}, web:"));
    assert_eq!(due(&inputs).len(), 1, "a file that asks for it as before takes nothing away");
}

#[test]
fn a_task_that_is_to_be_tried_again_is_under_way() {
    let mut inputs = settled("agents: {web: {tasks: {setup: {exec: make, retry: 3}}}}");
    set(&mut inputs, "setup", None);
    assert_eq!(agent(&inputs, "web").health, Health::Healthy);
    assert_eq!(words(&steps(&inputs, "web")), "");
    set(&mut inputs, "setup", Some(1));
    assert_eq!(agent(&inputs, "web").health, Health::Degraded);
}

/// Does the latest run of a task again, as a person has it done.
fn replay(inputs: &mut Inputs, task: &str, code: i32) {
    let now = inputs.now;
    let mut again = FileTask { id: TaskId::generate(), accepted_at: now, ..runs(inputs, task)[0].clone() };
    world::end(&mut again, code, now);
    note_run(inputs.tasks.get_mut(&world::name("web")).expect("it has tasks"), again);
}

#[test]
fn a_task_that_failed_and_was_done_again_counts_as_the_last_time_it_was_done() {
    let text = "agents: {web: {tasks: {setup: {exec: make}, after: {exec: a, when: {after: setup}}}}}";
    let mut inputs = settled(text);
    let tasks = inputs.tasks.get_mut(&world::name("web")).expect("it has tasks");
    tasks.retain(|run| run.name.as_str() == "setup");
    set(&mut inputs, "setup", Some(1));
    assert_eq!((agent(&inputs, "web").health, due(&inputs)), (Health::Degraded, vec![]));
    world::pass_time(&mut inputs, 5);
    replay(&mut inputs, "setup", 1);
    assert_eq!((agent(&inputs, "web").health, due(&inputs)), (Health::Degraded, vec![]));
    world::pass_time(&mut inputs, 5);
    replay(&mut inputs, "setup", 0);
    let followed = vec![("after".to_owned(), "task setup has succeeded".to_owned(), Some(inputs.now))];
    assert_eq!(due(&inputs), followed);
    world::converge(&mut inputs);
    assert_eq!(agent(&inputs, "web").health, Health::Healthy);
}

#[test]
fn an_old_run_that_is_done_again_has_nothing_followed_twice() {
    let text =
        "agents: {web: {tasks: {tick: {exec: t, when: {cron: '*/2 * * * *'}}, tock: {exec: t, when: {after: tick}}}}}";
    let mut inputs = settled(text);
    for _ in 0..3 {
        world::pass_time(&mut inputs, 120);
        world::converge(&mut inputs);
    }
    replay(&mut inputs, "tock", 0);
    assert_eq!(due(&inputs), []);
    world::pass_time(&mut inputs, 120);
    begin_first(&mut inputs);
    assert_eq!(due(&inputs).len(), 1, "the next success is followed");
}

#[test]
fn runs_are_known_in_their_order_each_once_and_only_the_latest() {
    let inputs = settled("agents: {web: {tasks: {setup: {exec: make}}}}");
    let first = runs(&inputs, "setup")[0].clone();
    let run = |n: usize| FileTask { id: TaskId::generate(), due: Some(world::at(n as i64)), ..first.clone() };
    let other = FileTask { name: "other".parse().unwrap(), ..run(0) };
    let mut known = vec![];
    note_run(&mut known, other.clone());
    let all: Vec<FileTask> = (0..RUNS_KNOWN + 3).map(run).collect();
    all.iter().for_each(|run| note_run(&mut known, FileTask { outcome: None, ..run.clone() }));
    let ended = FileTask { outcome: Some(TaskOutcome::Canceled), ..all[5].clone() };
    note_run(&mut known, ended.clone());
    assert_eq!(known.len(), RUNS_KNOWN + 1);
    assert_eq!(known[0], other);
    assert_eq!(known[1].due, Some(world::at(3)));
    assert_eq!(known[3], ended);
}

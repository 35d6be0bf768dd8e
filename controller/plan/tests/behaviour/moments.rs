use vm_agent_schemas::plan::{Health, Sync, WaitsFor};
use vm_agent_schemas::wire::TaskOutcome;

use crate::{agent, settled, steps, words, world};

/// The world begins at 08:00.
const TIDY: &str = "agents: {web: {tasks: {tidy: {exec: tidy, when: {cron: '30 8 * * *'}}}}}";

#[test]
fn a_moment_that_is_to_come_is_no_drift_and_one_that_has_come_runs_the_task_once() {
    let mut inputs = settled(TIDY);
    assert_eq!(agent(&inputs, "web").sync, Sync::Synced);
    assert!(inputs.tasks.is_empty());
    world::pass_time(&mut inputs, 1790);
    assert_eq!(vm_agent_plan::wake_at(&inputs), Some(world::at(1800)));
    world::pass_time(&mut inputs, 10);
    assert_eq!(steps(&inputs, "web")[0].reason, "its moment has come");
    assert_eq!(words(&world::converge(&mut inputs)), "task");
    world::pass_time(&mut inputs, 30);
    assert_eq!(words(&world::converge(&mut inputs)), "");
}

#[test]
fn one_run_is_under_way_at_a_time() {
    let mut inputs = settled("agents: {web: {tasks: {tidy: {exec: tidy, when: {cron: '* * * * *'}}}}}");
    world::pass_time(&mut inputs, 60);
    world::converge(&mut inputs);
    inputs.tasks.get_mut(&world::name("web")).unwrap()[0].outcome = None;
    world::pass_time(&mut inputs, 60);
    assert_eq!(words(&steps(&inputs, "web")), "");
    assert!(matches!(agent(&inputs, "web").waits_for[..], [WaitsFor::TaskRunning { .. }]));
}

#[test]
fn a_run_that_failed_stays_failed_until_the_next() {
    let mut inputs = settled(TIDY);
    world::pass_time(&mut inputs, 1800);
    world::converge(&mut inputs);
    inputs.tasks.get_mut(&world::name("web")).unwrap()[0].outcome = Some(TaskOutcome::Exited { code: 1 });
    world::pass_time(&mut inputs, 3600);
    let web = agent(&inputs, "web");
    assert_eq!((web.health, web.sync), (Health::Degraded, Sync::Blocked));
    let told = web.waits_for[0].to_string();
    assert!(told.ends_with("it runs again at 2027-01-16T08:30:00Z"), "{told}");
    world::pass_time(&mut inputs, 23 * 3600);
    assert_eq!(words(&world::converge(&mut inputs)), "task");
    assert_eq!(agent(&inputs, "web").health, Health::Healthy);
}

#[test]
fn an_agent_that_could_not_run_at_a_moment_makes_up_for_it_only_where_that_is_asked_for() {
    for (missed, runs) in [("skip", 1), ("once", 2)] {
        let text = "agents: {web: {tasks: {tidy: {exec: tidy, when: {cron: '30 * * * *', missed: MISSED}}}}}";
        let mut inputs = settled(&text.replace("MISSED", missed));
        world::pass_time(&mut inputs, 1800);
        world::converge(&mut inputs);
        world::pass_time(&mut inputs, 9 * 3600 + 300);
        world::converge(&mut inputs);
        assert_eq!(inputs.tasks[&world::name("web")].len(), runs, "{missed}");
    }
}

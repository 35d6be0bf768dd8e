use vm_agent_schemas::fleet::Until;
use vm_agent_schemas::plan::WaitsFor;

use crate::{settled, steps, words, world};

#[test]
fn an_agent_comes_up_once_another_has_started_though_its_runtime_is_not_heard() {
    let mut inputs = settled("agents: {db: {}}");
    inputs.sessions.clear();
    world::edit(&mut inputs, "agents: {db: {}, web: {dependsOn: {db: started}}, app: {dependsOn: [db]}}");
    assert_eq!(words(&steps(&inputs, "web")), "create");
    let healthy = WaitsFor::Dependency { agent: world::name("db"), until: Until::Healthy };
    assert_eq!(steps(&inputs, "app")[0].waits_for, [healthy]);
}

#[test]
fn an_agent_comes_up_once_another_is_done_with_its_tasks() {
    let text = "agents: {seed: {tasks: {load: {exec: load}, nightly: {exec: x, when: {cron: '0 3 * * *'}}}}, \
                web: {dependsOn: {seed: completed}}}";
    let mut inputs = world::inputs_of(text);
    assert_eq!(words(&steps(&inputs, "web")), "(create)");
    world::carry_out(&mut inputs);
    assert_eq!(words(&steps(&inputs, "web")), "(create)", "its machine is there, and its task is not done");
    world::carry_out(&mut inputs);
    assert_eq!(words(&steps(&inputs, "web")), "create", "a moment that is to come holds nobody up");
}

#[test]
fn an_agent_that_sleeps_is_ready_for_those_that_need_it() {
    let mut inputs = settled("agents: {db: {idle: 10m}}");
    world::pass_time(&mut inputs, 600);
    world::converge(&mut inputs);
    assert!(inputs.claims[&world::name("db")].asleep);
    world::edit(&mut inputs, "agents: {db: {idle: 10m}, web: {dependsOn: [db]}}");
    assert_eq!(words(&steps(&inputs, "web")), "create");
}

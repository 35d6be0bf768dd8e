use vm_agent_schemas::fleet::DriftPolicy;
use vm_agent_schemas::plan::{DriftClass, Health, Sync, WaitsFor};
use vm_agent_schemas::wire::ServiceState;

use crate::{agent, settled, steps, words, world};

fn with(restart: &str, state: ServiceState, problem: Option<&str>) -> vm_agent_plan::Inputs {
    let mut inputs =
        settled(&format!("agents: {{web: {{services: {{gateway: {{exec: serve, restart: {restart}}}}}}}}}"));
    for service in world::session(&mut inputs, "web").services.values_mut() {
        service.state = state;
        service.problem = problem.map(str::to_owned);
    }
    inputs
}

#[test]
fn a_service_that_fails_is_drift_degrades_its_agent_and_is_told() {
    let inputs = with("always", ServiceState::Failing, Some("it ended with 1"));
    let web = agent(&inputs, "web");
    assert_eq!((web.health, web.sync), (Health::Degraded, Sync::Blocked));
    let drift = &web.drift[0];
    assert_eq!((drift.class, drift.path.as_str()), (DriftClass::Service, "services.gateway"));
    assert_eq!((drift.wanted.as_str(), drift.observed.as_str()), (Some("running"), Some("failing: it ended with 1")));
    assert_eq!(web.waits_for, [WaitsFor::Problem { what: "service `gateway` is failing: it ended with 1".into() }]);
    assert_eq!(words(&steps(&inputs, "web")), "");
}

#[test]
fn a_service_that_comes_up_is_starting() {
    let web = agent(&with("always", ServiceState::Starting, None), "web");
    assert_eq!((web.health, web.sync), (Health::Starting, Sync::Reconciling));
    let mut unheard = with("always", ServiceState::Running, None);
    world::session(&mut unheard, "web").services.clear();
    assert_eq!(agent(&unheard, "web").health, Health::Starting, "its runtime has not told of it yet");
}

#[test]
fn a_service_that_ended_well_and_is_not_to_start_again_is_no_drift() {
    for restart in ["never", "on-failure"] {
        let web = agent(&with(restart, ServiceState::Ended, None), "web");
        assert_eq!((web.health, web.drift.len()), (Health::Healthy, 0), "{restart}");
    }
    assert_eq!(agent(&with("never", ServiceState::Ended, Some("it ended with 1")), "web").health, Health::Degraded);
    assert_eq!(agent(&with("always", ServiceState::Ended, None), "web").health, Health::Degraded);
}

#[test]
fn a_runtime_of_another_version_is_offered_the_controllers_and_one_that_can_not_take_it_says_why() {
    let mut inputs = settled("agents: {web: {}}");
    assert_eq!(words(&steps(&inputs, "web")), "", "its driver has no runtime to offer");
    inputs.runtimes.insert(world::DRIVER, "0.2.0".to_owned());
    let web = agent(&inputs, "web");
    let drift = &web.drift[0];
    assert_eq!((drift.class, drift.path.as_str(), web.sync), (DriftClass::RuntimeVersion, "runtime", Sync::Drifted));
    assert_eq!((drift.wanted.as_str(), drift.observed.as_str()), (Some("0.2.0"), Some("0.1.0")));
    assert_eq!(words(&steps(&inputs, "web")), "upgrade");

    world::session(&mut inputs, "web").stays = Some("it does not start".to_owned());
    let web = agent(&inputs, "web");
    assert_eq!((web.drift[0].observed.as_str(), web.sync), (Some("0.1.0: it does not start"), Sync::Blocked));
    assert_eq!(words(&steps(&inputs, "web")), "");

    world::session(&mut inputs, "web").version = "0.2.0".to_owned();
    assert_eq!(agent(&inputs, "web").sync, Sync::Synced);
}

#[test]
fn what_the_runtime_could_not_bring_about_is_drift() {
    let mut inputs = settled("agents: {web: {files: {notes: hello}}}");
    world::session(&mut inputs, "web").problems = vec!["notes: the disk is full".into()];
    let web = agent(&inputs, "web");
    assert_eq!((web.health, web.sync), (Health::Degraded, Sync::Blocked));
    assert_eq!(web.drift[0].class, DriftClass::Provisioning);
    assert_eq!(web.drift[0].observed, serde_json::json!(["notes: the disk is full"]));
    assert_eq!(words(&steps(&inputs, "web")), "", "telling it the same again would not help");
}

#[test]
fn problems_that_the_file_ignores_degrade_nobody_and_warnings_do() {
    for (policy, health) in [(DriftPolicy::Ignore, Health::Healthy), (DriftPolicy::Warn, Health::Degraded)] {
        let mut inputs = settled(&format!("agents: {{web: {{drift: {{provisioning: {policy}}}}}}}"));
        world::session(&mut inputs, "web").problems = vec!["notes: the disk is full".into()];
        let web = agent(&inputs, "web");
        assert_eq!((web.health, web.sync), (health, Sync::Synced));
        assert!(web.waits_for.is_empty());
    }
}

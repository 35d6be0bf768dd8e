//! What a runtime tells of itself, and what becomes of secrets on their way to it.

use vm_agent_schemas::ids::{Digest, Secret};
use vm_agent_schemas::wire::{
    Configuration, Configured, FromHub, FromRuntime, HealthReport, RefusalCode, ServiceReport, ServiceState, TEXT_MAX,
};

use super::world::*;
use crate::state::reports::{PROBLEM_MAX, PROBLEMS_MAX, SERVICES_MAX};
use crate::state::{ConnId, Event, Notice, configuration_fits};

fn configured(problems: Vec<String>) -> FromRuntime {
    FromRuntime::Configured(Configured { digest: Some(Digest::of(b"mark")), problems })
}

fn service(cpu_percent: f32, problem: Option<String>) -> ServiceReport {
    ServiceReport { state: ServiceState::Failing, restarts: 1, cpu_percent, problem }
}

fn health_with(services: usize, report: &ServiceReport) -> FromRuntime {
    let services = (0..services).map(|number| (format!("s{number}").parse().unwrap(), report.clone())).collect();
    FromRuntime::Health(HealthReport { services, ..health() })
}

fn verdict(body: FromRuntime) -> Option<RefusalCode> {
    refused(&World::joined().say(1, "web", body), 1)
}

#[test]
fn the_problems_of_a_configuration_are_kept_until_they_are_told_anew() {
    let mut world = World::joined();
    let problems = vec!["`/etc/motd` can't be written: permission denied".to_owned()];
    let effects = world.say(1, "web", configured(problems.clone()));
    let digest = Some(Digest::of(b"mark"));
    let notice = Notice::Configured { agent: name("web"), digest: digest.clone(), problems: problems.clone() };
    assert_eq!(notices(&effects), [notice]);
    let session = world.hub.sessions().remove(0);
    assert_eq!((session.configured, session.problems), (digest, problems));
    world.say(1, "web", configured(Vec::new()));
    assert_eq!(world.hub.sessions()[0].problems, Vec::<String>::new());
}

#[test]
fn a_runtime_without_a_configuration_says_so() {
    let mut world = World::joined();
    assert!(!world.hub.sessions()[0].told, "it has not said anything yet");
    world.say(1, "web", configured(Vec::new()));
    let none = FromRuntime::Configured(Configured { digest: None, problems: Vec::new() });
    assert_eq!(refused(&world.say(1, "web", none), 1), None);
    let session = world.hub.sessions().remove(0);
    assert_eq!((session.told, session.configured), (true, None));
}

#[test]
fn what_can_be_no_problem_of_a_configuration_is_refused() {
    let long = |len| "é".repeat(len);
    assert_eq!(verdict(configured(vec![long(PROBLEM_MAX); PROBLEMS_MAX])), None);
    let protocol = Some(RefusalCode::Protocol);
    assert_eq!(verdict(configured(vec![long(PROBLEM_MAX + 1)])), protocol);
    assert_eq!(verdict(configured(vec![String::new(); PROBLEMS_MAX + 1])), protocol);
    assert_eq!(verdict(configured(vec!["\u{1b}[2J".to_owned()])), protocol);
    let digest = Some("no digest".to_owned().into());
    assert_eq!(verdict(FromRuntime::Configured(Configured { digest, problems: Vec::new() })), protocol);
}

#[test]
fn what_can_be_no_service_is_refused() {
    let problem = |len| Some("p".repeat(len));
    assert_eq!(verdict(health_with(SERVICES_MAX, &service(250.0, problem(PROBLEM_MAX)))), None);
    let protocol = Some(RefusalCode::Protocol);
    assert_eq!(verdict(health_with(SERVICES_MAX + 1, &service(0.0, None))), protocol);
    assert_eq!(verdict(health_with(1, &service(0.0, problem(PROBLEM_MAX + 1)))), protocol);
    assert_eq!(verdict(health_with(1, &service(0.0, Some("two\nlines".to_owned())))), protocol);
    for nonsense in [-1.0, f32::INFINITY, f32::NAN] {
        assert_eq!(verdict(health_with(1, &service(nonsense, None))), protocol, "{nonsense}");
    }
}

#[test]
fn secrets_go_to_the_runtime_and_stay_nowhere() {
    let secrets = [("TOKEN".to_owned(), Secret::from_text("hunter2"))].into();
    let configuration = Configuration { secrets, ..Configuration::default() };
    let mut world = World::joined();
    let effects = world.tell(Event::Configure(name("web"), configuration.clone()));
    assert_eq!(sent(&effects, 1), [FromHub::Configure(configuration.clone())]);
    assert!(!format!("{effects:?}").contains("hunter2"), "what is done can be logged");
    assert_eq!(
        sent(&world.tell(Event::Configure(name("web"), configuration.clone())), 1).len(),
        1,
        "sent, not compared"
    );
    world.tell(Event::Enroll(credential("web", 2), Some(configuration)));
    let mut hello = hello("web", 1);
    hello.incarnation = vm_agent_schemas::ids::Incarnation(2);
    let accepted = world.join(2, &hello, 1);
    assert_eq!(welcome(&accepted).unwrap().configuration, None, "it goes on with what it has");
    world.tell(Event::Closed { conn: ConnId(2) });
    // `Secret` hides itself: what is looked for here is that nothing holds one.
    assert!(!format!("{:?}", world.hub).contains("Secret("));
}

#[test]
fn a_configuration_that_no_message_can_hold_is_not_sent() {
    let secrets = [("TOKEN".to_owned(), Secret::from_text("x".repeat(TEXT_MAX)))].into();
    let large = Configuration { secrets, ..Configuration::default() };
    assert!(!configuration_fits(&large) && configuration_fits(&Configuration::default()));
    let mut world = World::joined();
    assert_eq!(world.tell(Event::Configure(name("web"), large)), []);
    assert_eq!(world.hub.sessions().len(), 1);
}

use jiff::SignedDuration;
use vm_agent_plan::{Inputs, after_failure};
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::intent::{Change, Pause};
use vm_agent_schemas::plan::{Fuse, Health};

use crate::{agent, say, settled, steps, words, world};

const HOURS: SignedDuration = SignedDuration::from_hours(5);

/// The clock is set back by hours, and everything that is seen and heard is seen and heard anew.
fn set_back(inputs: &mut Inputs) {
    inputs.now -= HOURS;
    inputs.resumed_at = Some(inputs.now);
    let now = inputs.now;
    world::instances(inputs).values_mut().for_each(|observed| observed.since = now);
    inputs.sessions.values_mut().filter(|session| session.connected).for_each(|session| session.last_seen = now);
}

#[test]
fn a_runtime_that_the_host_slept_with_is_given_time_to_be_heard() {
    let mut inputs = settled("agents: {web: {}}");
    inputs.now += HOURS;
    assert_eq!(agent(&inputs, "web").health, Health::Offline);
    inputs.resumed_at = Some(inputs.now);
    assert_eq!(agent(&inputs, "web").health, Health::Healthy);
    inputs.now += SignedDuration::from_secs(76);
    assert_eq!(agent(&inputs, "web").health, Health::Offline);
}

#[test]
fn a_machine_that_came_up_before_the_host_slept_is_given_time_to_connect() {
    let mut inputs = settled("agents: {web: {}}");
    inputs.sessions.clear();
    inputs.now += HOURS;
    inputs.resumed_at = Some(inputs.now);
    assert_eq!(agent(&inputs, "web").health, Health::Starting);
}

#[test]
fn a_runtime_that_was_lost_before_the_clock_was_set_back_is_lost_soon_after() {
    let mut inputs = settled("agents: {web: {}}");
    world::session(&mut inputs, "web").connected = false;
    set_back(&mut inputs);
    inputs.now += SignedDuration::from_secs(76);
    assert_eq!(agent(&inputs, "web").health, Health::Offline);
}

#[test]
fn a_backoff_from_before_the_clock_was_set_back_lasts_its_own_pause_and_no_longer() {
    let mut inputs = world::inputs_of("agents: {web: {}}");
    let web = world::name("web");
    inputs.backoffs.insert(web.clone(), after_failure(&web, None, None, "it failed".into(), 0.5, inputs.now));
    set_back(&mut inputs);
    world::converge(&mut inputs);
    assert!(inputs.claims.is_empty(), "it waits");
    inputs.now += SignedDuration::from_secs(2);
    assert_eq!(words(&world::converge(&mut inputs)), "create");
}

#[test]
fn failures_from_before_the_clock_was_set_back_do_not_blow_the_fuse_and_a_blown_one_is_not_blown_for_hours() {
    let mut inputs = world::inputs_of("agents: {web: {replicas: 4}}");
    for agent in inputs.fleet.agents.keys() {
        let failure =
            after_failure(agent, None, None, "it failed".into(), 0.5, inputs.now - SignedDuration::from_secs(300));
        inputs.backoffs.insert(agent.clone(), failure);
    }
    set_back(&mut inputs);
    world::converge(&mut inputs);
    assert!(!vm_agent_plan::plan(&inputs).fuse.is_blown());

    let mut inputs = world::inputs_of("agents: {web: {}}");
    inputs.fuse = Fuse::Blown { since: inputs.now, failed: 3, of: 3 };
    set_back(&mut inputs);
    world::converge(&mut inputs);
    inputs.now += SignedDuration::from_secs(15);
    assert_eq!(words(&steps(&inputs, "web")), "create", "it may be tried again");
}

#[test]
fn what_a_person_said_for_an_hour_holds_for_an_hour() {
    let mut inputs = settled("agents: {web: {}}");
    say(&mut inputs, "web", Change::Power { wanted: PowerState::Stopped, covers: PowerState::Running });
    let (created_at, end) = (inputs.now, Some(inputs.now + SignedDuration::from_hours(1)));
    inputs.pause = Some(Pause { author: "ana".into(), reason: None, created_at, expires_at: end });
    set_back(&mut inputs);
    world::converge(&mut inputs);
    assert_eq!(inputs.overrides[0].expires_at, Some(inputs.now + SignedDuration::from_hours(1)));
    world::pass_time(&mut inputs, 3600);
    world::converge(&mut inputs);
    assert!(inputs.overrides.is_empty() && inputs.pause.is_none());
}

#[test]
fn nothing_is_due_again_when_the_clock_was_set_back() {
    for missed in ["skip", "once"] {
        let text = "agents: {web: {tasks: {tidy: {exec: tidy, when: {cron: '30 * * * *', missed: MISSED}}}}}";
        let mut inputs = settled(&text.replace("MISSED", missed));
        world::pass_time(&mut inputs, 1800);
        world::converge(&mut inputs);
        set_back(&mut inputs);
        for _ in 0..5 * 60 {
            assert_eq!(words(&world::converge(&mut inputs)), "", "{missed}");
            world::pass_time(&mut inputs, 60);
        }
        world::pass_time(&mut inputs, 3600);
        assert_eq!(words(&world::converge(&mut inputs)), "task", "{missed}");
    }
}

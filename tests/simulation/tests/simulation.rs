//! Thousands of worlds, and that they are what they should be.

use std::time::Duration;

use vm_agent_simulation::run;

/// Runs with a seed for each core's minute; more with `VM_AGENT_SIM_SEEDS`.
const SEEDS: u64 = 1500;

/// The test ends early on a machine that is slow, rather than late.
const LIMIT: Duration = Duration::from_secs(150);

#[test]
fn every_promise_holds_in_every_world() {
    let more =
        std::env::var("VM_AGENT_SIM_SEEDS").ok().map(|text| text.parse().expect("VM_AGENT_SIM_SEEDS is a number"));
    let limit = more.is_none().then_some(LIMIT);
    match run::many(0, more.unwrap_or(SEEDS), limit) {
        Ok(tally) => {
            println!("seeds from 0: {tally}");
            assert!(tally.seeds >= 50, "a simulation that slow shows nothing: {tally}");
        }
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn a_seed_says_everything() {
    let mut lines = 0;
    for seed in 0..20 {
        let (_, once) = run::traced(seed);
        let (_, again) = run::traced(seed);
        let differs = once.iter().zip(&again).position(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed} went another way");
        assert_eq!(once.len(), again.len(), "seed {seed} went on for longer");
        lines += once.len();
    }
    assert!(lines > 2_000, "what does nothing says nothing: {lines} lines");
}

/// Everything that people can be told happens somewhere: else a world has become so calm that it shows
/// nothing.
#[test]
fn the_worlds_are_troubled_enough() {
    let mut missing: Vec<&str> = [
        "DriverLost",
        "FleetPaused",
        "FuseBlown",
        "FuseClosed",
        "InstanceFailed",
        "OverrideCleared",
        "OverrideExpired",
        "OverrideSuperseded",
        "OverrideSet",
        "RuntimeJoined",
        "RuntimeLost",
        "RuntimeRefused",
        "StepFailed",
        "StepGivenUp",
        "StepInterrupted",
        "StepSucceeded",
        "StepTimedOut",
        "TaskAccepted",
        "TaskEnded",
        "TaskStarted",
        "TaskRetried",
        "(attempt 3)",
        "somebody cancels a task",
        "tasks: Any",
        "tasks: Each",
        "MessageDead",
        "takes word",
        "a message is refused (Denied)",
        "has another key",
        "Approved",
        "the fleet is down",
        "somebody else was here",
        "it is half made",
        "the host sleeps",
        "stale-boot",
        "clone",
        "incarnation",
        "destroy succeeded",
        "resize succeeded",
        "to replace it",
        "was interrupted",
    ]
    .into();
    for seed in 0..400 {
        let (_, lines) = run::traced(seed);
        missing.retain(|what| !lines.iter().any(|line| line.contains(what)));
        if missing.is_empty() {
            return;
        }
    }
    panic!("no world of 400 shows {missing:?}");
}

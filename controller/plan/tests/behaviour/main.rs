//! What a plan comes to for the keys of a fleet file that are about more than this moment.

#[path = "../world/mod.rs"]
mod world;

mod budget;
mod clock;
mod dependencies;
mod drift;
mod inside;
mod moments;
mod presence;
mod rest;
mod snapshots;
mod tasks;
mod windows;

use vm_agent_plan::{Inputs, plan};
use vm_agent_schemas::intent::{Change, Override};
use vm_agent_schemas::plan::{AgentPlan, Step};

/// A fleet that is as its file says.
fn settled(text: &str) -> Inputs {
    let mut inputs = world::inputs_of(text);
    world::converge(&mut inputs);
    inputs
}

/// What the plan says of an agent.
fn agent(inputs: &Inputs, agent: &str) -> AgentPlan {
    plan(inputs).agent(&world::name(agent)).expect("the plan knows it").clone()
}

/// The steps of an agent, in order.
fn steps(inputs: &Inputs, agent: &str) -> Vec<Step> {
    plan(inputs).steps.into_iter().filter(|step| step.agent.as_str() == agent).collect()
}

/// The words of steps: those that may begin, and in brackets those that may not.
fn words(steps: &[Step]) -> String {
    let word = |step: &Step| match step.waits_for.is_empty() {
        true => step.action.word().to_owned(),
        false => format!("({})", step.action.word()),
    };
    steps.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// A person says something of an agent, for an hour.
fn say(inputs: &mut Inputs, agent: &str, change: Change) {
    inputs.overrides.push(Override {
        id: vm_agent_schemas::ids::OverrideId::generate(),
        agent: world::name(agent),
        change,
        author: "ana".into(),
        reason: None,
        created_at: inputs.now,
        expires_at: Some(inputs.now + jiff::SignedDuration::from_hours(1)),
    });
}

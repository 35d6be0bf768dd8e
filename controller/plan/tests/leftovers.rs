//! What earlier lives and failed steps have left behind.

mod world;

use jiff::Timestamp;
use vm_agent_plan::{Inputs, Upkeep, plan, upkeep, wake_at};
use vm_agent_schemas::ids::{Life, OperationId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, InstanceState, Operation, Proof};
use vm_agent_schemas::plan::{StepAction, WaitsFor};

use world::{DRIVER, at, inputs_of, instances, observe, settled};

fn web() -> AgentName {
    world::name("web")
}

/// A create of `web` under way until second 60, and nothing to be seen of it.
fn making(life: Life) -> Inputs {
    let mut inputs = inputs_of("agents: {web: {driver: qemu}}");
    inputs.life = Life(2);
    let (started_at, deadline) = (at(0), at(60));
    let (id, agent, action) = (OperationId::generate(), web(), Action::Create);
    let snapshot = None;
    inputs
        .operations
        .insert(web(), Operation { id, agent, driver: DRIVER, action, snapshot, started_at, deadline, life });
    inputs
}

fn begins(inputs: &Inputs) -> Option<StepAction> {
    plan(inputs).ready().next().map(|step| step.action.clone())
}

fn looked_at(inputs: &mut Inputs, when: Timestamp) {
    inputs.drivers.get_mut(&DRIVER).expect("the model has a driver").looked_at = Some(when);
}

#[test]
fn a_step_of_this_life_is_under_way_until_it_ends_whatever_the_clock_says() {
    let mut inputs = making(Life(2));
    inputs.now = at(1_000_000);
    looked_at(&mut inputs, at(1_000_000));
    assert_eq!(begins(&inputs), None);
}

#[test]
fn a_step_of_an_earlier_life_is_over_once_it_was_looked_at_after_its_deadline() {
    let mut inputs = making(Life(1));
    inputs.now = at(61);
    looked_at(&mut inputs, at(59));
    assert_eq!(begins(&inputs), None, "what was seen before may be of no machine yet");
    looked_at(&mut inputs, at(60));
    assert_eq!(begins(&inputs), Some(StepAction::Create));
}

/// `web` exists, is on its way up since second 0, and has never shown that it is ours.
fn half_made() -> Inputs {
    let mut inputs = settled(inputs_of("agents: {web: {driver: qemu}}"));
    inputs.claims.get_mut(&web()).expect("it was made").proof = Proof::Pending;
    inputs.sessions.clear();
    observe(&mut inputs, &web(), InstanceState::Starting);
    instances(&mut inputs).values_mut().for_each(|observed| observed.instance.nonce = None);
    inputs
}

#[test]
fn what_a_create_left_half_made_is_finished_by_a_create_when_it_does_not_get_on() {
    let mut inputs = half_made();
    assert_eq!(begins(&inputs), None);
    inputs.now = wake_at(&inputs).unwrap();
    assert_eq!(begins(&inputs), Some(StepAction::Create));
}

#[test]
fn what_is_half_made_and_not_wanted_is_not_deleted_without_proof() {
    let mut inputs = half_made();
    inputs.fleet = inputs_of("{agents: {}, prune: auto}").fleet;
    inputs.now = wake_at(&inputs).unwrap();
    let plan = plan(&inputs);
    let [step] = plan.steps.as_slice() else { panic!("{:?}", plan.steps) };
    assert_eq!((&step.action, step.waits_for.as_slice()), (&StepAction::Destroy, [WaitsFor::Proof].as_slice()));
}

#[test]
fn a_join_that_nobody_took_note_of_proves_what_is_half_made() {
    let mut inputs = half_made();
    inputs.joined.insert(web());
    let kept = upkeep(&inputs, &plan(&inputs));
    let proves = |it: &Upkeep| matches!(it, Upkeep::Learnt(_, learnt) if learnt.proof == Some(Proof::Confirmed));
    assert!(kept.iter().any(proves), "{kept:?}");
}

//! From one agent's situation to the steps that would set it right, in order, before anything is said
//! about when they may begin.

use vm_agent_schemas::fleet::{AgentSpec, Reconcile};
use vm_agent_schemas::observe::{Action, Sizes};
use vm_agent_schemas::plan::{Cost, Drift, DriftClass, StepAction, WaitsFor};

use crate::drift::{Standing, standings};
use crate::guard::Guard;
use crate::inputs::{Inputs, Listing};
use crate::situation::Situation;
use crate::table::{Decision, Link, Seen, Want, decide};

/// What would be done about one agent.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    pub(crate) steps: Vec<Move>,
    /// Why nothing, or not everything, is done.
    pub(crate) waits_for: Vec<WaitsFor>,
    /// Whether what is waited for comes by itself and soon.
    pub(crate) settling: bool,
}

/// One step, before scheduling.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) action: StepAction,
    pub(crate) reason: String,
    pub(crate) cost: Cost,
    pub(crate) waits_for: Vec<WaitsFor>,
}

impl Moves {
    fn push(&mut self, action: StepAction, reason: impl Into<String>, cost: Cost) {
        let waits_for = if self.steps.is_empty() { Vec::new() } else { vec![WaitsFor::EarlierStep] };
        self.steps.push(Move { action, reason: reason.into(), cost, waits_for });
    }

    fn wait(&mut self, waits_for: WaitsFor) {
        self.waits_for.push(waits_for);
    }
}

/// The steps for one agent.
pub(crate) fn moves_of(inputs: &Inputs, situation: &Situation<'_>, drift: &[Drift], guard: &mut Guard<'_>) -> Moves {
    let mut moves = Moves::default();
    if situation.is_settled() {
        return moves;
    }
    if let Some(driver) = missing_driver(situation) {
        moves.wait(driver);
        return moves;
    }
    let restart = situation.wanted.map(|agent| agent.spec.restart).unwrap_or_default();
    match decide(situation.want, situation.seen, situation.link, situation.under(), restart) {
        Decision::AwaitOperation => {
            moves.settling = true;
            moves.waits_for.extend(
                situation.operation.map(|operation| WaitsFor::Operation { id: operation.id, action: operation.action }),
            );
            return moves;
        }
        Decision::AwaitKnowledge => {
            moves.wait(unknown(situation));
            return moves;
        }
        Decision::BlockedByForeign | Decision::BlockedByTombstone => {
            moves.waits_for.extend(obstacle(situation));
            return moves;
        }
        Decision::Forget => {
            moves.push(StepAction::Forget, "its instance is gone and no longer wanted", Cost::Live);
            return moves;
        }
        Decision::Act(Action::Destroy) => {
            let reason = if situation.wanted.is_some() { "the fleet is taken down" } else { "it is not wanted" };
            moves.push(StepAction::Destroy, reason, Cost::Destroy);
            moves.steps[0].waits_for.extend(guard.removal(situation));
            return moves;
        }
        Decision::AwaitTransition => {
            moves.settling = true;
            let state = situation.observed.map(|observed| observed.instance.state);
            moves.waits_for.extend(state.map(|state| WaitsFor::Transition { state }));
        }
        Decision::AwaitRuntime => {
            moves.settling = situation.link == Link::Awaited;
            moves.wait(WaitsFor::Runtime);
        }
        Decision::Restart => {
            moves.push(StepAction::Stop, "its runtime never joined, and can't any more", Cost::Restart);
            resize(situation, drift, &mut moves);
            moves.push(StepAction::Start, "with a new seed", Cost::Restart);
        }
        Decision::BlockedByPolicy => moves.wait(WaitsFor::RestartPolicy),
        Decision::Act(Action::Create) => create(situation, &mut moves),
        Decision::Act(Action::Start) => {
            resize(situation, drift, &mut moves);
            moves.push(StepAction::Start, start_reason(situation.seen), Cost::Start);
        }
        Decision::Act(Action::Stop) => {
            moves.push(StepAction::Stop, "it should not run", Cost::Stop);
            resize(situation, drift, &mut moves);
        }
        Decision::Act(Action::Resize) | Decision::Nothing => resize_in_rest(situation, drift, &mut moves),
    }
    if situation.want == Want::Running {
        live(situation, drift, &mut moves);
    }
    replace(inputs, situation, drift, guard, &mut moves);
    prove(situation, &mut moves);
    ask_first(situation, guard, &mut moves);
    moves
}

fn missing_driver(situation: &Situation<'_>) -> Option<WaitsFor> {
    match (situation.driver, situation.view) {
        (None, _) => Some(WaitsFor::NoDriver),
        (Some(driver), None) => Some(WaitsFor::DriverMissing { driver }),
        (Some(_), Some(_)) => None,
    }
}

fn unknown(situation: &Situation<'_>) -> WaitsFor {
    match (situation.driver, situation.view.map(|view| &view.listing)) {
        (Some(driver), Some(Listing::Unanswered { since, reason })) => {
            WaitsFor::Driver { driver, since: *since, reason: reason.clone() }
        }
        _ => WaitsFor::UnknownState,
    }
}

fn obstacle(situation: &Situation<'_>) -> Option<WaitsFor> {
    let instance = situation.observed?.instance.name.clone();
    Some(match situation.seen {
        Seen::Deleted => WaitsFor::Tombstone { instance },
        _ => WaitsFor::ForeignInstance { instance },
    })
}

fn start_reason(seen: Seen) -> &'static str {
    match seen {
        Seen::Failed => "it should run, and crashed",
        Seen::ShutDown => "it should run, and was shut down",
        Seen::Suspended => "it should run, and is suspended",
        _ => "it should run",
    }
}

fn create(situation: &Situation<'_>, moves: &mut Moves) {
    let reason = if situation.claim.is_some() { "its instance is gone" } else { "it does not exist" };
    moves.push(StepAction::Create, reason, Cost::Create);
    if situation.want == Want::Stopped {
        moves.push(StepAction::Stop, "it should not run", Cost::Stop);
    }
}

/// The sizes that an instance can be given: its disk never shrinks.
fn reachable_sizes(spec: &AgentSpec, have: &Sizes) -> Sizes {
    let want = Sizes::of(spec);
    Sizes { disk: want.disk.max(have.disk), ..want }
}

/// A resize of an instance that is down, or that can be resized as it runs.
fn resize(situation: &Situation<'_>, drift: &[Drift], moves: &mut Moves) {
    if let Some((to, reason)) = resize_to(situation, drift) {
        moves.push(StepAction::Resize { to }, reason, Cost::Live);
    }
}

/// A resize of an instance whose power is as it should be.
fn resize_in_rest(situation: &Situation<'_>, drift: &[Drift], moves: &mut Moves) {
    let Some((to, reason)) = resize_to(situation, drift) else { return };
    let live = situation.view.is_some_and(|view| view.capabilities.resize_running);
    if live || situation.want == Want::Stopped {
        moves.push(StepAction::Resize { to }, reason, Cost::Live);
    } else {
        moves.push(StepAction::Stop, format!("to resize: {reason}"), Cost::Restart);
        moves.push(StepAction::Resize { to }, reason, Cost::Restart);
        moves.push(StepAction::Start, "it should run", Cost::Restart);
    }
}

fn resize_to(situation: &Situation<'_>, drift: &[Drift]) -> Option<(Sizes, String)> {
    let (spec, have) = (&situation.wanted?.spec, situation.sizes()?);
    let sized = |d: &&Drift| matches!(d.class, DriftClass::Cpus | DriftClass::Memory | DriftClass::Disk);
    let to = reachable_sizes(spec, &have);
    if to == have {
        return None;
    }
    let paths: Vec<&str> = drift.iter().filter(sized).filter(|d| d.cost != Cost::Replace).map(|d| &*d.path).collect();
    (!paths.is_empty()).then(|| (to, format!("{} changed", paths.join(", "))))
}

/// What the runtime is told and given to do.
fn live(situation: &Situation<'_>, drift: &[Drift], moves: &mut Moves) {
    let reachable = situation.is_reachable();
    if drift.iter().any(|d| d.class == DriftClass::Provisioning) {
        moves.push(StepAction::Configure, "its environment or labels changed", Cost::Live);
    }
    for (name, standing) in standings(situation) {
        match standing {
            Standing::Done => {}
            Standing::Due => {
                let waits_for_runtime = !reachable && moves.steps.is_empty();
                moves.push(StepAction::Task { task: name.clone() }, "it has not run on this machine", Cost::Live);
                if waits_for_runtime && let Some(step) = moves.steps.last_mut() {
                    step.waits_for.push(WaitsFor::Runtime);
                }
            }
            Standing::UnderWay => {
                moves.settling = true;
                moves.wait(WaitsFor::TaskRunning { task: name.clone() });
            }
            Standing::Failed(task) => {
                let outcome = task.outcome.as_ref().map_or_else(String::new, ToString::to_string);
                moves.wait(WaitsFor::TaskFailed { task: name.clone(), outcome, next: None });
            }
        }
    }
}

/// The replacement of an instance by one that has what only birth can give. Approved, it comes before
/// all else; until then everything else goes on beside it.
fn replace(inputs: &Inputs, situation: &Situation<'_>, drift: &[Drift], guard: &mut Guard<'_>, moves: &mut Moves) {
    let reasons: Vec<String> = drift
        .iter()
        .filter(|d| d.cost == Cost::Replace)
        .map(|d| format!("{} {} -> {}", d.path, d.observed, d.wanted))
        .collect();
    if reasons.is_empty() {
        return;
    }
    let why = reasons.join(", ");
    let waits_for = guard.replacement(situation, &why);
    let approved = waits_for.is_none();
    let waits_for = waits_for.or_else(|| successor_obstacle(inputs, situation));
    let mut replacement = Moves::default();
    replacement.push(StepAction::Destroy, format!("to replace it: {why}"), Cost::Replace);
    replacement.push(StepAction::Create, format!("to replace it: {why}"), Cost::Create);
    replacement.steps[0].waits_for.extend(waits_for);
    if approved && replacement.steps[0].waits_for.is_empty() {
        moves.steps = replacement.steps;
    } else {
        moves.steps.extend(replacement.steps);
    }
}

/// What stands in the way of the machine that is to replace this one, while that one still exists: a
/// driver that is not there or does not answer, or a name that is taken.
fn successor_obstacle(inputs: &Inputs, situation: &Situation<'_>) -> Option<WaitsFor> {
    let driver = situation.wanted?.spec.driver.filter(|driver| Some(*driver) != situation.driver)?;
    match inputs.drivers.get(&driver).map(|view| &view.listing) {
        None => Some(WaitsFor::DriverMissing { driver }),
        Some(Listing::Unanswered { since, reason }) => {
            Some(WaitsFor::Driver { driver, since: *since, reason: reason.clone() })
        }
        Some(Listing::Seen(instances)) => {
            let instance = situation.claim?.instance.clone();
            instances.contains_key(&instance).then_some(WaitsFor::ForeignInstance { instance })
        }
    }
}

/// Under `reconcile: manual` a person says yes to each step on the machine.
fn ask_first(situation: &Situation<'_>, guard: &mut Guard<'_>, moves: &mut Moves) {
    if situation.wanted.is_some_and(|agent| agent.spec.reconcile == Reconcile::Manual) && situation.want != Want::Idle {
        let next = moves.steps.iter_mut().find(|step| step.action.on_instance().is_some() && step.waits_for.is_empty());
        if let Some(step) = next {
            step.waits_for.extend(guard.step(situation, &step.action, &step.reason));
        }
    }
}

/// Whatever touches an instance waits until the instance is proven to be ours.
fn prove(situation: &Situation<'_>, moves: &mut Moves) {
    if situation.observed.is_some() && !situation.is_proven() {
        let touching = moves.steps.iter_mut().filter(|step| step.action.on_instance().is_some());
        touching.filter(|step| step.waits_for.is_empty()).for_each(|step| step.waits_for.push(WaitsFor::Proof));
    }
}

//! From one agent's situation to the steps that would set it right, in order, before anything is said
//! about when they may begin.

use vm_agent_schemas::fleet::{DriftField, DriftPolicy, Reconcile, RestartPolicy};
use vm_agent_schemas::ids::OperationId;
use vm_agent_schemas::observe::{Action, Sizes, SnapshotSupport};
use vm_agent_schemas::plan::{Cost, Drift, DriftClass, Rest, StepAction, WaitsFor};

use crate::drift::{corrects, power_policy, told};
use crate::guard::Guard;
use crate::inputs::Listing;
use crate::rest::is_occupied;
use crate::situation::Situation;
use crate::snapshots::{awaited_clone, awaited_snapshot, errand_moves, needs_it_down};
use crate::standing::{Outage, Standing, outages, standings};
use crate::table::{Decision, Link, Seen, Under, Want, decide};
use crate::windows::{Windows, is_disruptive};

/// What would be done about one agent.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    pub(crate) steps: Vec<Move>,
    /// Why nothing, or not everything, is done.
    pub(crate) waits_for: Vec<WaitsFor>,
    /// Whether what is waited for comes by itself and soon.
    pub(crate) settling: bool,
    /// The step under way, where it brings up what is to be deleted: nobody needs what it would come to.
    pub(crate) moot: Option<OperationId>,
}

/// One step, before scheduling.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) action: StepAction,
    pub(crate) reason: String,
    pub(crate) cost: Cost,
    pub(crate) waits_for: Vec<WaitsFor>,
    /// Whether a person asks for this very step, now.
    pub(crate) asked: bool,
}

impl Moves {
    pub(crate) fn push(&mut self, action: StepAction, reason: impl Into<String>, cost: Cost) {
        let waits_for = if self.steps.is_empty() { Vec::new() } else { vec![WaitsFor::EarlierStep] };
        self.steps.push(Move { action, reason: reason.into(), cost, waits_for, asked: false });
    }

    fn wait(&mut self, waits_for: WaitsFor) {
        self.waits_for.push(waits_for);
    }

    /// A person asks for these steps, now.
    pub(crate) fn asked(&mut self) {
        self.steps.iter_mut().for_each(|step| step.asked = true);
    }

    /// These steps before those on the machine that are here.
    fn prepend(&mut self, others: Self) {
        if others.steps.is_empty() {
            return;
        }
        for step in self.steps.iter_mut().filter(|step| step.action.on_instance().is_some()) {
            if !step.waits_for.contains(&WaitsFor::EarlierStep) {
                step.waits_for.push(WaitsFor::EarlierStep);
            }
        }
        self.steps.splice(0..0, others.steps);
    }

    /// These steps after those that are here.
    fn append(&mut self, others: Self) {
        for step in others.steps {
            self.push(step.action, step.reason, step.cost);
        }
    }
}

/// The steps for one agent.
pub(crate) fn moves_of(situation: &Situation<'_>, drift: &[Drift], guard: &mut Guard<'_>, windows: Windows) -> Moves {
    let mut moves = Moves::default();
    if situation.is_settled() {
        return moves;
    }
    if let Some(driver) = missing_driver(situation) {
        moves.wait(driver);
        return moves;
    }
    if takes_over(situation, &mut moves) {
        return moves;
    }
    let restart = situation.wanted.map(|agent| agent.spec.restart).unwrap_or_default();
    let decision = decide(situation.want, situation.seen, situation.link, situation.under(), restart);
    moves.moot = moot(situation, guard);
    if alone(situation, decision, guard, &mut moves) {
        hold(situation, windows, &mut moves);
        return moves;
    }
    let errand = errand_moves(situation);
    if errand.steps.iter().any(|step| matches!(step.action, StepAction::Restore { .. })) {
        // What differs now is not what will differ then.
        moves = errand;
        prove(situation, &mut moves);
        return moves;
    }
    let mut again = power(situation, drift, decision, &mut moves);
    let snapshots = situation.wanted.filter(|agent| !agent.spec.snapshots.is_empty());
    let unable = snapshots.and(situation.view).filter(|view| view.capabilities.snapshots == SnapshotSupport::None);
    let unsupported = situation.unsupported().into_iter().chain(unable.map(|_| "take snapshots"));
    moves.waits_for.extend(unsupported.map(|what| WaitsFor::Unsupported { what: what.to_owned() }));
    // What can be done in place comes after a restart, unless that has to wait.
    let later = windows.hold(situation).is_some().then(|| std::mem::take(&mut again.steps));
    moves.append(again);
    if situation.want == Want::Running {
        live(situation, drift, &mut moves);
    }
    moves.steps.extend(later.into_iter().flatten());
    replace(situation, drift, guard, windows, &mut moves);
    moves.prepend(errand);
    prove(situation, &mut moves);
    ask_first(situation, guard, &mut moves);
    hold(situation, windows, &mut moves);
    moves
}

/// What is done about an instance of somebody else's that is to become the agent's. Answers whether it is such a
/// one, and nobody is at it: then nothing else is done, and it is never deleted.
fn takes_over(situation: &Situation<'_>, moves: &mut Moves) -> bool {
    let Some(claim) = situation.claim.filter(|claim| claim.history.adopting) else { return false };
    if situation.operation.is_some() || situation.seen == Seen::Unknown {
        return false;
    }
    match situation.seen {
        _ if situation.wanted.is_none() => {
            moves.push(StepAction::Forget, "it was never taken over, and is no longer wanted", Cost::Live);
        }
        Seen::Absent | Seen::Deleted => {
            let what = format!("instance `{}`, which is to be taken over, is gone", claim.instance);
            moves.wait(WaitsFor::Problem { what });
        }
        _ => moves.push(StepAction::Create, "it is taken over", Cost::Live),
    }
    moves.asked();
    true
}

/// The step under way, where it brings up what would be deleted at once if there was none. One that goes on by itself
/// can't be given up.
fn moot(situation: &Situation<'_>, guard: &mut Guard<'_>) -> Option<OperationId> {
    let operation = situation.operation.filter(|operation| operation.action.brings_up())?;
    situation.view.filter(|view| !view.capabilities.calls_outlive_controller)?;
    let unhindered = decide(situation.want, situation.seen, situation.link, Under::Nothing, RestartPolicy::default());
    let goes = match unhindered {
        Decision::Forget => true,
        Decision::Act(Action::Destroy) => guard.removal(situation).is_none(),
        _ => false,
    };
    goes.then_some(operation.id)
}

/// What is done or waited for so that nothing else can be done beside it. Answers whether that is so.
fn alone(situation: &Situation<'_>, decision: Decision, guard: &mut Guard<'_>, moves: &mut Moves) -> bool {
    match decision {
        Decision::AwaitOperation => {
            moves.settling = true;
            moves.waits_for.extend(
                situation.operation.map(|operation| WaitsFor::Operation { id: operation.id, action: operation.action }),
            );
        }
        Decision::AwaitKnowledge => moves.wait(unknown(situation)),
        Decision::BlockedByForeign | Decision::BlockedByTombstone => moves.waits_for.extend(obstacle(situation)),
        Decision::Forget => {
            moves.push(StepAction::Forget, "its instance is gone and no longer wanted", Cost::Live);
        }
        Decision::Act(Action::Destroy) => {
            let reason = if situation.wanted.is_some() { "the fleet is taken down" } else { "it is not wanted" };
            moves.push(StepAction::Destroy, reason, Cost::Destroy);
            moves.steps[0].waits_for.extend(guard.removal(situation));
        }
        _ => return false,
    }
    true
}

/// What is done or waited for so that the machine has the power and the sizes that it should. Answers the
/// steps that take down what runs only to start it again.
fn power(situation: &Situation<'_>, drift: &[Drift], decision: Decision, moves: &mut Moves) -> Moves {
    let mut again = Moves::default();
    match decision {
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
            again.push(StepAction::Stop, "its runtime never joined, and can't any more", Cost::Restart);
            resize(situation, drift, &mut again);
            again.push(StepAction::Start, "with a new seed", Cost::Restart);
        }
        Decision::Act(Action::Create) => create(situation, moves),
        // Only a create finishes what a create has left half made. It acts on no instance but its own.
        Decision::Act(Action::Start) if situation.is_half_made() => {
            moves.push(StepAction::Create, "it is half made", Cost::Create);
        }
        Decision::Act(Action::Start) if awaited_clone(situation).is_some() => {
            moves.settling = true;
            moves.waits_for.extend(awaited_clone(situation).map(|agent| WaitsFor::Clone { agent: agent.clone() }));
        }
        Decision::Act(Action::Start) if corrects(drift, DriftClass::Power) => {
            resize(situation, drift, moves);
            moves.push(StepAction::Start, start_reason(situation), Cost::Start);
        }
        Decision::Act(Action::Stop) if corrects(drift, DriftClass::Power) => {
            let down = if suspends(situation) { StepAction::Suspend } else { StepAction::Stop };
            moves.push(down, stop_reason(situation), Cost::Stop);
            resize(situation, drift, moves);
        }
        Decision::BlockedByPolicy if corrects(drift, DriftClass::Power) => moves.wait(WaitsFor::RestartPolicy),
        // Its power is as it should be, or is left as it is.
        _ => again = in_rest(situation, drift, moves),
    }
    again
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

fn start_reason(situation: &Situation<'_>) -> &'static str {
    let idles = situation.wanted.is_some_and(|agent| agent.spec.idle.is_some());
    match situation.seen {
        Seen::Failed => "it should run, and crashed",
        Seen::ShutDown => "it should run, and was shut down",
        Seen::Suspended => "it should run, and is suspended",
        _ if idles && situation.told.is_none() && is_occupied(situation) => "there is work for it",
        _ => "it should run",
    }
}

fn stop_reason(situation: &Situation<'_>) -> String {
    situation.rests.map_or_else(|| "it should not run".to_owned(), |rest| rest.to_string())
}

/// Whether a machine that is to rest keeps its memory: it wakes in no time, with all that ran in it.
fn suspends(situation: &Situation<'_>) -> bool {
    situation.rests == Some(Rest::Idle)
        && situation.view.is_some_and(|view| view.capabilities.suspend)
        && !needs_it_down(situation)
}

fn create(situation: &Situation<'_>, moves: &mut Moves) {
    let had_one = situation.claim.is_some() && !situation.is_half_made();
    let reason = if had_one { "its instance is gone" } else { "it does not exist" };
    moves.push(StepAction::Create, reason, Cost::Create);
    moves.steps[0].waits_for.extend(situation.wanted.and_then(|agent| awaited_snapshot(situation, agent)));
    if situation.want == Want::Stopped && power_policy(situation) == DriftPolicy::Correct {
        moves.push(StepAction::Stop, "it should not run", Cost::Stop);
    }
}

/// A resize of an instance that is down, or that can be resized as it runs.
fn resize(situation: &Situation<'_>, drift: &[Drift], moves: &mut Moves) {
    if let Some((to, reason)) = resize_to(situation, drift) {
        moves.push(StepAction::Resize { to }, reason, Cost::Live);
    }
}

/// What is done about an instance whose power stays as it is; answers what needs a restart.
fn in_rest(situation: &Situation<'_>, drift: &[Drift], moves: &mut Moves) -> Moves {
    let mut again = Moves::default();
    let in_place = !situation.runs() || situation.view.is_some_and(|view| view.capabilities.resize_running);
    if in_place {
        resize(situation, drift, moves);
    }
    let resized = resize_to(situation, drift).filter(|_| !in_place);
    let remounted = drift.iter().any(|d| d.class == DriftClass::Mounts && d.cost == Cost::Restart && is_corrected(d));
    if situation.want != Want::Running || !situation.runs() || (resized.is_none() && !remounted) {
        return again;
    }
    let resizes = resized.iter().map(|(_, reason)| format!("to resize: {reason}"));
    let why: Vec<String> = resizes.chain(remounted.then(|| "to mount: mounts changed".to_owned())).collect();
    again.push(StepAction::Stop, why.join(", and "), Cost::Restart);
    if let Some((to, reason)) = resized {
        again.push(StepAction::Resize { to }, reason, Cost::Restart);
    }
    again.push(StepAction::Start, "it should run", Cost::Restart);
    again
}

/// The sizes that an instance is to be given, and why. Its disk never shrinks, and what is not to be
/// corrected stays as it is.
fn resize_to(situation: &Situation<'_>, drift: &[Drift]) -> Option<(Sizes, String)> {
    let (want, mut to) = (Sizes::of(&situation.wanted?.spec), situation.sizes()?);
    let mut paths = Vec::new();
    for difference in drift.iter().filter(|d| d.policy == DriftPolicy::Correct && d.cost != Cost::Replace) {
        match difference.class {
            DriftClass::Cpus => to.cpus = want.cpus,
            DriftClass::Memory => to.memory = want.memory,
            DriftClass::Disk => to.disk = want.disk,
            _ => continue,
        }
        paths.push(difference.path.as_str());
    }
    (!paths.is_empty()).then(|| (to, format!("{} changed", paths.join(", "))))
}

/// What the runtime is told and given to do, and what in the machine does not work.
fn live(situation: &Situation<'_>, drift: &[Drift], moves: &mut Moves) {
    if drift.iter().any(|d| d.class == DriftClass::Provisioning && d.cost == Cost::Live && is_corrected(d)) {
        moves.push(StepAction::Configure, "what its runtime works with changed", Cost::Live);
    }
    if let Some(version) = drift.iter().find(|d| d.class == DriftClass::RuntimeVersion) {
        upgrade(version, moves);
    }
    if situation.policy(DriftField::Provisioning) == DriftPolicy::Correct {
        problems(situation, moves);
    }
    if situation.policy(DriftField::Tasks) == DriftPolicy::Correct {
        tasks(situation, moves);
    }
}

fn upgrade(version: &Drift, moves: &mut Moves) {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let (wanted, observed) = (text(&version.wanted), text(&version.observed));
    if version.cost == Cost::Live {
        let reason = format!("its runtime is version {observed}, and version {wanted} belongs to the controller");
        moves.push(StepAction::Upgrade, reason, Cost::Live);
    } else {
        moves.wait(WaitsFor::Problem {
            what: format!("its runtime can't become version {wanted} and stays {observed}"),
        });
    }
}

fn is_corrected(drift: &Drift) -> bool {
    drift.policy == DriftPolicy::Correct
}

fn problems(situation: &Situation<'_>, moves: &mut Moves) {
    for (name, outage, report) in outages(situation) {
        match outage {
            Outage::Starting => moves.settling = true,
            Outage::Failed => moves.wait(WaitsFor::Problem { what: format!("service `{name}` is {}", told(report)) }),
        }
    }
    let session = situation.session.filter(|_| situation.is_reachable());
    for problem in session.into_iter().flat_map(|session| &session.problems) {
        moves.wait(WaitsFor::Problem { what: problem.clone() });
    }
}

fn tasks(situation: &Situation<'_>, moves: &mut Moves) {
    // While an agent sleeps its tasks are accepted for the moment when it has woken: those with moments
    // would have missed them by then.
    let asleep = situation.claim.is_some_and(|claim| claim.asleep);
    for (name, standing) in standings(situation) {
        match standing {
            Standing::Done => {}
            Standing::Due(cause, due) => {
                let waits_for_runtime = !situation.is_reachable() && moves.steps.is_empty();
                moves.push(StepAction::Task { task: name.clone(), due }, cause.to_string(), Cost::Live);
                let Some(step) = moves.steps.last_mut() else { continue };
                if asleep {
                    step.waits_for.clear();
                } else if waits_for_runtime {
                    step.waits_for.push(WaitsFor::Runtime);
                }
            }
            Standing::UnderWay => {
                moves.settling = true;
                moves.wait(WaitsFor::TaskRunning { task: name.clone() });
            }
            Standing::Failed(task, next) => {
                let outcome = task.outcome.as_ref().map_or_else(String::new, ToString::to_string);
                moves.wait(WaitsFor::TaskFailed { task: name.clone(), outcome, next });
            }
        }
    }
}

/// The replacement of an instance by one that has what only birth can give. Approved, it comes before
/// all else; until then everything else goes on beside it.
fn replace(situation: &Situation<'_>, drift: &[Drift], guard: &mut Guard<'_>, windows: Windows, moves: &mut Moves) {
    let reasons: Vec<String> = drift
        .iter()
        .filter(|d| d.cost == Cost::Replace && is_corrected(d))
        .map(|d| format!("{} {} -> {}", d.path, d.observed, d.wanted))
        .collect();
    if reasons.is_empty() {
        return;
    }
    let why = reasons.join(", ");
    let waits_for = guard.replacement(situation, &why);
    let waits_for = waits_for.or_else(|| successor_obstacle(situation));
    let may_begin = waits_for.is_none() && windows.hold(situation).is_none();
    let mut replacement = Moves::default();
    replacement.push(StepAction::Destroy, format!("to replace it: {why}"), Cost::Replace);
    replacement.push(StepAction::Create, format!("to replace it: {why}"), Cost::Create);
    replacement.steps[0].waits_for.extend(waits_for);
    if may_begin {
        moves.steps = replacement.steps;
    } else {
        moves.steps.extend(replacement.steps);
    }
}

/// What stands in the way of the machine that is to replace this one, while that one still exists: a
/// snapshot that it would be made from and is gone, a driver that is not there or does not answer, or a
/// name that is taken.
fn successor_obstacle(situation: &Situation<'_>) -> Option<WaitsFor> {
    if let Some(gone) = situation.wanted.and_then(|agent| awaited_snapshot(situation, agent)) {
        return Some(gone);
    }
    let driver = situation.wanted?.spec.driver.filter(|driver| Some(*driver) != situation.driver)?;
    match situation.inputs.drivers.get(&driver).map(|view| &view.listing) {
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
        if let Some(step) = next.filter(|step| !step.asked) {
            step.waits_for.extend(guard.step(situation, &step.action, &step.reason));
        }
    }
}

/// What disturbs a machine that runs waits until it may.
fn hold(situation: &Situation<'_>, windows: Windows, moves: &mut Moves) {
    let Some(window) = windows.hold(situation) else { return };
    for step in &mut moves.steps {
        if is_disruptive(situation, step) {
            step.waits_for.push(window.clone());
        }
    }
}

/// Whatever touches an instance waits until the instance is proven to be ours.
fn prove(situation: &Situation<'_>, moves: &mut Moves) {
    if situation.observed.is_some() && !situation.is_proven() {
        let touches = |step: &&mut Move| step.action.on_instance().is_some_and(|action| action != Action::Create);
        let touching = moves.steps.iter_mut().filter(touches);
        touching.filter(|step| step.waits_for.is_empty()).for_each(|step| step.waits_for.push(WaitsFor::Proof));
    }
}

//! Snapshots: what the file asks for by itself, what is over, and what is done next on one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use vm_agent_schemas::fleet::{CloneOf, DeclaredAgent};
use vm_agent_schemas::names::{AgentName, ScheduleName, SnapshotName};
use vm_agent_schemas::observe::{Claim, CloneSupport, InstanceState, Proof, SnapshotSupport};
use vm_agent_schemas::plan::{Cost, Health, Rest, SnapshotLoss, StepAction, WaitsFor};
use vm_agent_schemas::snapshot::{Ask, Cause, Errand, Keeper, Point, Snapshot, SnapshotSchedule};

use crate::clock::after;
use crate::effective::{Effective, effective};
use crate::inputs::{Inputs, Observed};
use crate::moves::Moves;
use crate::situation::Situation;
use crate::standing::is_completed;
use crate::table::{Seen, Want};

/// How long the file's own errands are tried. The next moment of a schedule makes a new one.
pub(crate) const TRIED_FOR: Duration = Duration::from_secs(6 * 3600);

/// Most of a schedule's name that goes into those of its snapshots.
const NAME_PART: usize = 40;

/// How many of the snapshots stay that were taken before a machine went back to another: as many ways back from a
/// way back as anybody still knows the meaning of.
const BEFORE_RESTORE: usize = 3;

/// How long a machine stays down for a copy of it that is to be made. It is made within some minutes.
const HELD_FOR: Duration = Duration::from_secs(30 * 60);

/// The steps of what is to be done next with the machine's snapshots. They come before all others on it.
pub(crate) fn errand_moves(situation: &Situation<'_>) -> Moves {
    let mut moves = Moves::default();
    let Some(claim) = situation.claim else { return moves };
    if let Some(way) = &claim.history.restoring {
        let to = last_restore(situation).unwrap_or(&way.snapshot);
        go_back(situation, to, "it is on its way back", &mut moves);
        moves.asked();
        return moves;
    }
    let Some(errand) = next(situation) else { return moves };
    match &errand.ask {
        Ask::Take { name, cause, .. } => {
            take(situation, name, &cause.to_string(), &mut moves);
            let goes_down = moves.steps.first().is_some_and(|step| step.action == StepAction::Stop);
            if goes_down && situation.want != Want::Running {
                // It is about to go down anyway.
                return Moves::default();
            }
            if goes_down {
                moves.push(StepAction::Start, "it should run", Cost::Restart);
            }
        }
        Ask::Delete { name, .. } if exists(situation) => {
            moves.push(StepAction::DropSnapshot { name: name.clone() }, errand.by.clone(), Cost::Live);
        }
        Ask::Delete { .. } => {}
        Ask::Restore { to, safety } => {
            if let Some(name) = safety.as_ref().filter(|name| !has(situation, name)) {
                take(situation, name, &format!("before it goes back to `{to}`"), &mut moves);
            }
            go_back(situation, to, &format!("{} wants it back", errand.by), &mut moves);
        }
    }
    // What nothing keeps any more goes without a yes of its own.
    if !errand.ask.asks_itself() || matches!(errand.ask, Ask::Delete { .. }) {
        moves.asked();
    }
    moves
}

/// What a machine waits for that is to be made from a snapshot which is not there, or which the driver can make nothing
/// of any more.
pub(crate) fn awaited_snapshot(situation: &Situation<'_>, agent: &DeclaredAgent) -> Option<WaitsFor> {
    let CloneOf { agent, snapshot } = agent.clone_of.as_ref()?;
    let inputs = situation.inputs;
    if let Some(known) = inputs.snapshots.get(agent).and_then(|known| known.get(snapshot)) {
        let view = situation.view.filter(|view| view.capabilities.clones == CloneSupport::Down)?;
        let source = inputs.claims.get(agent).and_then(|claim| view.find(claim));
        return (!source.is_some_and(|source| is_still(source, known))).then(|| WaitsFor::Problem {
            what: format!(
                "agent `{agent}` is no longer what it was with snapshot `{snapshot}`, which it is to be made from, and driver \
                 {} copies only what a machine is: destroy it, and clone once more",
                situation.driver.map_or_else(String::new, |driver| driver.to_string())
            ),
        });
    }
    let takes = |errand: &Errand| matches!(&errand.ask, Ask::Take { name, .. } if name == snapshot);
    Some(if inputs.errands.get(agent).into_iter().flatten().any(takes) {
        WaitsFor::Snapshot { agent: agent.clone(), name: snapshot.clone() }
    } else {
        WaitsFor::Problem {
            what: format!("snapshot `{snapshot}` of agent `{agent}`, which it is to be made from, is gone"),
        }
    })
}

/// The agent whose machine is about to be made as a copy of this one, which stays down for that: once it has run, it is
/// no longer what it is to be a copy of. It does so neither for ever nor for one that went wrong.
pub(crate) fn awaited_clone<'a>(situation: &Situation<'a>) -> Option<&'a AgentName> {
    let (inputs, observed) = (situation.inputs, situation.observed?);
    let unmade = |name: &AgentName| inputs.claims.get(name).is_none_or(|claim| claim.proof == Proof::Pending);
    let mut held = held_for(situation).filter(|(_, snapshot)| after(snapshot.taken_at, HELD_FOR) > inputs.now);
    held.find(|(name, snapshot)| is_still(observed, snapshot) && unmade(name) && !inputs.backoffs.contains_key(*name))
        .map(|(name, _)| name)
}

/// Those for whom this one may stay down, each with the snapshot that is to be its beginning.
fn held_for<'a>(situation: &Situation<'a>) -> impl Iterator<Item = (&'a AgentName, &'a Snapshot)> + use<'a> {
    let copies = situation.view.is_some_and(|view| view.capabilities.clones == CloneSupport::Down);
    let known = situation.inputs.snapshots.get(situation.name).filter(|_| copies);
    situation.clones.iter().filter_map(move |(name, snapshot)| Some((name, known?.get(snapshot)?)))
}

/// Whether a machine is still what it was when a snapshot of it was taken.
fn is_still(observed: &Observed, snapshot: &Snapshot) -> bool {
    observed.instance.state == InstanceState::Stopped && !snapshot.running && snapshot.taken_at >= observed.since
}

/// Whether a snapshot is to be taken which the driver takes only of what is down.
pub(crate) fn needs_it_down(situation: &Situation<'_>) -> bool {
    let takes = next(situation).is_some_and(|errand| matches!(errand.ask, Ask::Take { .. }));
    takes && support(situation) == SnapshotSupport::Down
}

fn take(situation: &Situation<'_>, name: &SnapshotName, reason: &str, moves: &mut Moves) {
    let snapshot = StepAction::Snapshot { name: name.clone() };
    match (situation.seen, support(situation)) {
        (Seen::Running, SnapshotSupport::Live) => moves.push(snapshot, reason, Cost::Live),
        (Seen::Running, SnapshotSupport::Down) => {
            moves.push(StepAction::Stop, format!("for a snapshot: {reason}"), Cost::Restart);
            moves.push(snapshot, reason, Cost::Restart);
        }
        // What sleeps is not down, and its disk is not whole without its memory.
        (Seen::Suspended, SnapshotSupport::Down) => {
            moves.push(StepAction::Start, format!("to go down for a snapshot: {reason}"), Cost::Start);
            moves.push(StepAction::Stop, format!("for a snapshot: {reason}"), Cost::Restart);
            moves.push(snapshot, reason, Cost::Restart);
        }
        (Seen::Suspended, SnapshotSupport::Live)
        | (Seen::Stopped | Seen::ShutDown | Seen::Failed, SnapshotSupport::Down | SnapshotSupport::Live) => {
            moves.push(snapshot, reason, Cost::Live);
        }
        _ => {}
    }
}

fn go_back(situation: &Situation<'_>, to: &SnapshotName, reason: &str, moves: &mut Moves) {
    if !exists(situation) {
        return;
    }
    // One that slept for want of work is awake once it is back.
    let stays_down = situation.want != Want::Running && situation.rests != Some(Rest::Idle);
    let (stop, restore) = if stays_down { (Cost::Stop, Cost::Live) } else { (Cost::Restart, Cost::Restart) };
    if situation.runs() && moves.steps.iter().all(|step| step.action != StepAction::Stop) {
        moves.push(StepAction::Stop, format!("{reason}: to `{to}`"), stop);
    }
    moves.push(StepAction::Restore { to: to.clone(), stays_down }, reason, restore);
}

/// Whether there is a machine with which something can be done now.
const fn exists(situation: &Situation<'_>) -> bool {
    matches!(situation.seen, Seen::Running | Seen::Stopped | Seen::ShutDown | Seen::Failed | Seen::Suspended)
}

pub(crate) fn support(situation: &Situation<'_>) -> SnapshotSupport {
    situation.view.map_or(SnapshotSupport::None, |view| view.capabilities.snapshots)
}

/// What is to be done with the agent's snapshots and is not over, in order.
fn open<'a>(situation: &Situation<'a>) -> &'a [Errand] {
    situation.inputs.errands.get(situation.name).map(Vec::as_slice).unwrap_or_default()
}

/// The first that may be tried now.
fn next<'a>(situation: &Situation<'a>) -> Option<&'a Errand> {
    let claim = situation.claim?;
    open(situation).iter().find(|errand| {
        let rested = errand.tried.as_ref().is_none_or(|tried| tried.not_before <= situation.inputs.now);
        errand.claim == claim.id && rested
    })
}

fn last_restore<'a>(situation: &Situation<'a>) -> Option<&'a SnapshotName> {
    open(situation).iter().rev().find_map(|errand| match &errand.ask {
        Ask::Restore { to, .. } => Some(to),
        _ => None,
    })
}

fn has(situation: &Situation<'_>, name: &SnapshotName) -> bool {
    situation.inputs.snapshots.get(situation.name).is_some_and(|known| known.contains_key(name))
}

/// Why something is over that was to be done with the agent's snapshots: it is done, or can't be any more.
pub(crate) fn end(situation: &Situation<'_>, errand: &Errand, bases: &Bases) -> Option<Result<(), String>> {
    let Some(claim) = situation.claim.filter(|claim| claim.id == errand.claim) else {
        return Some(Err("its machine is gone".to_owned()));
    };
    let on_its_way = claim.history.restoring.is_some();
    let overtaken = |id| open(situation).iter().any(|other| other.id > id && matches!(other.ask, Ask::Restore { .. }));
    match &errand.ask {
        Ask::Take { name, .. } if has(situation, name) => return Some(Ok(())),
        Ask::Delete { name, .. } if !has(situation, name) => return Some(Ok(())),
        Ask::Restore { .. } if overtaken(errand.id) => {
            return Some(Err("somebody wants it back to another one since".to_owned()));
        }
        Ask::Restore { to, .. } if !on_its_way && !has(situation, to) => {
            return Some(Err(format!("there is no snapshot `{to}` any more")));
        }
        _ => {}
    }
    if situation.operation.is_some() || on_its_way {
        return None;
    }
    // Somebody protects it since, say.
    if matches!(&errand.ask, Ask::Delete { name, unkept: true } if is_kept(situation, name, bases)) {
        return Some(Ok(()));
    }
    if situation.view.is_some() && support(situation) == SnapshotSupport::None {
        return Some(Err(format!("driver {} takes no snapshots", claim.driver)));
    }
    (errand.until <= situation.inputs.now).then(|| {
        let last = errand.tried.as_ref().map(|tried| format!("; the last attempt: {}", tried.last));
        Err(format!("it could not be done in time{}", last.unwrap_or_default()))
    })
}

/// Something that the file asks for by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// What.
    pub ask: Ask,
    /// Who asks.
    pub by: String,
    /// When it is given up.
    pub until: Timestamp,
}

/// What the file asks for with the agent's snapshots, and what the claim is to remember of it: the schedules
/// whose moment has come, and the points that are reached.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) wishes: Vec<Wish>,
    pub(crate) schedules: BTreeSet<ScheduleName>,
    pub(crate) points: BTreeSet<Point>,
}

pub(crate) fn wishes(situation: &Situation<'_>, health: Option<Health>, bases: &Bases) -> Wishes {
    let mut all = Wishes::default();
    let (Some(agent), Some(claim)) = (situation.wanted, situation.claim) else { return all };
    if support(situation) == SnapshotSupport::None || claim.history.restoring.is_some() {
        return all;
    }
    let now = situation.inputs.now;
    let wish = |ask, by: String| Wish { ask, by, until: after(now, TRIED_FOR) };
    for (name, schedule) in &agent.spec.snapshots.schedules {
        if is_being_taken(situation, name) {
            continue;
        }
        if let Some(due) = due(claim, name, schedule, now).filter(|_| exists(situation)) {
            all.schedules.insert(name.clone());
            if !is_unchanged(situation) {
                let cause = Cause::Schedule { schedule: name.clone(), due };
                let ask = Ask::Take { name: name_for(name, due), cause, comment: None };
                all.wishes.push(wish(ask, format!("schedule {name}")));
            }
        }
    }
    let unkept = keepers(situation, bases).into_iter().filter(|(_, keepers)| keepers.is_empty());
    let unkept = unkept.map(|(snapshot, _)| snapshot).filter(|_| exists(situation));
    for snapshot in unkept.filter(|it| !is_being_deleted(situation, &it.name)) {
        let by = match &snapshot.cause {
            Cause::Schedule { schedule, .. } => format!("schedule {schedule}"),
            _ => "retention".to_owned(),
        };
        all.wishes.push(wish(Ask::Delete { name: snapshot.name.clone(), unkept: true }, by));
    }
    let provisioned = health == Some(Health::Healthy) && is_completed(situation);
    for point in agent.spec.snapshots.points.iter().filter(|point| !claim.history.points.contains(point)) {
        if *point == Point::Provisioned && provisioned {
            all.points.insert(*point);
            let Ok(name) = point.as_str().parse() else { continue };
            let ask = Ask::Take { name, cause: Cause::Point { point: *point }, comment: None };
            all.wishes.push(wish(ask, "the fleet file".to_owned()));
        }
    }
    all
}

/// When the file may ask for something because time goes by, or a machine stays down for a copy no longer.
pub(crate) fn turns<'a>(situation: Situation<'a>) -> impl Iterator<Item = Timestamp> + use<'a> {
    let schedules = situation.wanted.into_iter().flat_map(|agent| &agent.spec.snapshots.schedules);
    let held = held_for(&situation).map(|(_, snapshot)| after(snapshot.taken_at, HELD_FOR));
    schedules.filter_map(move |(name, schedule)| schedule.cron.next_after(since(situation.claim?, name))).chain(held)
}

fn since(claim: &Claim, schedule: &ScheduleName) -> Timestamp {
    claim.history.schedules.get(schedule).copied().unwrap_or(claim.created_at)
}

/// The first moment for which no snapshot was asked for. Those that came after it while nobody was there are
/// made up for by the same one.
fn due(claim: &Claim, name: &ScheduleName, schedule: &SnapshotSchedule, now: Timestamp) -> Option<Timestamp> {
    schedule.cron.next_after(since(claim, name)).filter(|moment| *moment <= now)
}

/// Whether the machine has been down ever since its latest snapshot.
fn is_unchanged(situation: &Situation<'_>) -> bool {
    let Some(observed) = situation.observed.filter(|_| situation.seen != Seen::Running) else { return false };
    snapshots(situation).any(|snapshot| !snapshot.running && snapshot.taken_at >= observed.since)
}

fn is_being_taken(situation: &Situation<'_>, schedule: &ScheduleName) -> bool {
    open(situation).iter().any(|errand| match &errand.ask {
        Ask::Take { cause: Cause::Schedule { schedule: of, .. }, .. } => of == schedule,
        _ => false,
    })
}

fn is_being_deleted(situation: &Situation<'_>, name: &SnapshotName) -> bool {
    open(situation).iter().any(|errand| matches!(&errand.ask, Ask::Delete { name: other, .. } if other == name))
}

/// Snapshots that machines are still to be made from, each with the agent whose it is.
pub(crate) type Bases = BTreeSet<(AgentName, SnapshotName)>;

/// The snapshots that agents wait for to be made from. One whose machine was there once never needs its base again:
/// what a driver makes of a snapshot is a machine of its own.
pub(crate) fn bases(inputs: &Inputs, effective: &Effective) -> Bases {
    let clones = effective.wanted.iter().filter_map(|(name, agent)| Some((name, agent.clone_of.as_ref()?)));
    let waiting = clones.filter(|(name, _)| !is_made(&Situation::of(inputs, name, effective)));
    waiting.map(|(_, CloneOf { agent, snapshot })| (agent.clone(), snapshot.clone())).collect()
}

/// Whether the agent's machine is there, and known to be whole.
fn is_made(situation: &Situation<'_>) -> bool {
    let shown = situation.claim.is_some_and(|claim| claim.proof != Proof::Pending) && situation.is_proven();
    shown && situation.operation.is_none() && exists(situation)
}

/// What keeps each snapshot, by agent and name. One that nothing keeps is about to go.
#[must_use]
pub fn kept(inputs: &Inputs) -> BTreeMap<(AgentName, SnapshotName), BTreeSet<Keeper>> {
    let effective = effective(&inputs.fleet, &inputs.overrides, inputs.now);
    let bases = bases(inputs, &effective);
    let mut kept = BTreeMap::new();
    for agent in inputs.snapshots.keys() {
        let keepers = keepers(&Situation::of(inputs, agent, &effective), &bases);
        kept.extend(keepers.into_iter().map(|(snapshot, keepers)| ((agent.clone(), snapshot.name.clone()), keepers)));
    }
    kept
}

fn snapshots<'a>(situation: &Situation<'a>) -> impl Iterator<Item = &'a Snapshot> + Clone + use<'a> {
    situation.inputs.snapshots.get(situation.name).into_iter().flat_map(|known| known.values())
}

/// What keeps each of the agent's snapshots. Those that somebody protects are not counted among those of their
/// schedule, and stay beside them.
fn keepers<'a>(situation: &Situation<'a>, bases: &Bases) -> Vec<(&'a Snapshot, BTreeSet<Keeper>)> {
    let schedules = situation.wanted.map(|agent| &agent.spec.snapshots.schedules);
    let is_limited = |schedule| schedules.and_then(|all| all.get(schedule)?.keep).is_some();
    let mut counted: BTreeMap<&SnapshotName, BTreeSet<Keeper>> = BTreeMap::new();
    for (name, schedule) in schedules.into_iter().flatten() {
        let Some(keep) = schedule.keep else { continue };
        let zone = schedule.cron.zone().unwrap_or(TimeZone::UTC);
        let taken = snapshots(situation).filter(|snapshot| !snapshot.protect);
        let taken = taken.filter_map(|snapshot| match &snapshot.cause {
            Cause::Schedule { schedule, due } if schedule == name => Some((&snapshot.name, *due)),
            _ => None,
        });
        counted.extend(keep.keepers(&zone, taken));
    }
    counted.extend(before_restores(situation));
    let keepers = |snapshot: &'a Snapshot| {
        let mut keepers = counted.get(&snapshot.name).cloned().unwrap_or_default();
        keepers.extend(snapshot.protect.then_some(Keeper::Protected));
        keepers.extend(is_in_use(situation, &snapshot.name, bases).then_some(Keeper::InUse));
        keepers.extend(match &snapshot.cause {
            Cause::Person { .. } => Some(Keeper::Manual),
            Cause::Point { .. } => Some(Keeper::Point),
            Cause::Schedule { schedule, .. } if !is_limited(schedule) => Some(Keeper::NoLimit),
            Cause::Schedule { .. } | Cause::Restore { .. } | Cause::Clone { .. } => None,
        });
        (snapshot, keepers)
    };
    snapshots(situation).map(keepers).collect()
}

fn is_kept(situation: &Situation<'_>, name: &SnapshotName, bases: &Bases) -> bool {
    keepers(situation, bases).iter().any(|(snapshot, keepers)| snapshot.name == *name && !keepers.is_empty())
}

/// What keeps those that were taken before the machine went back: the latest, and the one that it is back at, which
/// somebody may want to go back to once more.
fn before_restores<'a>(situation: &Situation<'a>) -> impl Iterator<Item = (&'a SnapshotName, BTreeSet<Keeper>)> {
    let (now, undone) = (situation.inputs.now, situation.claim.and_then(|claim| claim.history.undone));
    let is_back_at = |it: &&Snapshot| undone.is_some_and(|undone| undone.since == it.taken_at);
    let of_restores = snapshots(situation).filter(|it| matches!(it.cause, Cause::Restore { .. }));
    let (back_at, mut taken): (Vec<_>, Vec<_>) = of_restores.partition(is_back_at);
    taken.retain(|it| !it.protect);
    // One from the future is older: the clock has been set back since.
    taken.sort_by_key(|it| std::cmp::Reverse((it.taken_at <= now, it.taken_at)));
    let latest = taken.into_iter().take(BEFORE_RESTORE).map(|it| (&it.name, [Keeper::BeforeRestore].into()));
    back_at.into_iter().map(|it| (&it.name, [Keeper::Restored].into())).chain(latest)
}

/// Whether the machine is about to go back to a snapshot, or rests on its being there when it does, or another is
/// about to be made from it.
fn is_in_use(situation: &Situation<'_>, name: &SnapshotName, bases: &Bases) -> bool {
    let on_its_way = situation.claim.and_then(|claim| claim.history.restoring.as_ref());
    let is_asked_for = |errand: &Errand| match &errand.ask {
        Ask::Restore { to, safety } => to == name || safety.as_ref() == Some(name),
        Ask::Take { .. } | Ask::Delete { .. } => false,
    };
    on_its_way.is_some_and(|way| way.snapshot == *name)
        || open(situation).iter().any(is_asked_for)
        || bases.contains(&(situation.name.clone(), name.clone()))
}

/// The snapshots that would go with the agent's machine.
pub(crate) fn loss(situation: &Situation<'_>) -> Option<SnapshotLoss> {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let all = count(snapshots(situation).count());
    let protected = count(snapshots(situation).filter(|snapshot| snapshot.protect).count());
    (all > 0).then_some(SnapshotLoss { snapshots: all, protected })
}

/// The name of a schedule's snapshot: the same for the same moment, so that it is taken once.
fn name_for(schedule: &ScheduleName, due: Timestamp) -> SnapshotName {
    let part: String = schedule.as_str().chars().take(NAME_PART).collect();
    let name = format!("{part}-{}", due.strftime("%Y%m%d-%H%M%S"));
    name.parse().expect("a name goes on with digits and hyphens, and this one is short enough")
}

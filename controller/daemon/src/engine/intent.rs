//! What people say beside the file, turned into changes of the records: pure functions, so that a dry
//! run is the same decision without the writing.

use jiff::Timestamp;
use vm_agent_plan::{End, Learnt, Mode};
use vm_agent_schemas::api::{ChangeRequest, CreateRequest, Problem, ProblemCode, TaskRequest};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{AgentSpec, DeclaredAgent, PowerState, Reconcile, resolve_entry};
use vm_agent_schemas::ids::{OverrideId, TaskId};
use vm_agent_schemas::intent::{Change as Said, Override, OverridePath, Pause, Presence};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Claim, Standing};
use vm_agent_schemas::plan::{ApprovalRequest, Plan};
use vm_agent_schemas::task::{Task, TaskSource};
use vm_agent_schemas::units::Span;

use super::records::{Change, Records};

/// How long `start` and `stop` hold against the file unless told otherwise: as long as a person
/// usually looks at something, and not so long that it is forgotten.
const HOLDS: Span = Span::from_secs(3600);

/// What a command comes to.
#[derive(Debug, Default)]
pub struct Intent {
    pub changes: Vec<Change>,
    /// The override that it made; nothing when the file says the same.
    pub overridden: Option<Override>,
}

/// Who said it, and when.
#[derive(Debug, Clone, Copy)]
pub struct Voice<'a> {
    pub author: &'a str,
    pub reason: Option<&'a str>,
    pub now: Timestamp,
}

impl Voice<'_> {
    fn entry(self, agent: &AgentName, change: Said, expires_at: Option<Timestamp>) -> Override {
        Override {
            id: OverrideId::generate(),
            agent: agent.clone(),
            change,
            author: self.author.to_owned(),
            reason: self.reason.map(str::to_owned),
            created_at: self.now,
            expires_at,
        }
    }

    /// When what is said ends.
    fn end(self, request: &ChangeRequest, usually: Option<Span>) -> Option<Timestamp> {
        let holds = request.lasting.or(usually).filter(|_| !request.sticky)?;
        self.now.checked_add(holds.get()).ok()
    }

    fn because(self) -> String {
        self.reason.map(|reason| format!(": {reason}")).unwrap_or_default()
    }
}

/// What a plan comes to, for a sentence.
#[must_use]
pub fn summary(plan: &Plan) -> String {
    let summary = plan.summary();
    format!("{} to create, {} to change, {} to destroy", summary.create, summary.change, summary.destroy)
}

/// Refuses what a person says of one agent while the whole fleet goes down.
///
/// # Errors
/// While it does.
pub fn refuse_while_down(records: &Records) -> Result<(), Problem> {
    if records.mode == Mode::Up {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::Conflict, "the fleet is being taken down").remedy("bring it up again: vm-agent up"))
}

/// `down`: what the fleet is brought to.
///
/// # Errors
/// When machines are to be deleted and one of them is protected.
pub fn down(records: &Records, destroy: bool) -> Result<Mode, Problem> {
    match protected(records).filter(|_| destroy) {
        Some(agent) => Err(refuse_protected(&agent)),
        None if destroy => Ok(Mode::Destroy),
        None => Ok(Mode::Down),
    }
}

/// What `down` changes. A fleet that is destroyed has nothing left that could be overridden.
#[must_use]
pub fn go_down(records: &Records, mode: Mode, author: &str) -> Vec<Change> {
    let ended = records.overrides.iter().filter(|_| mode == Mode::Destroy);
    let end = |entry: &Override| {
        let message = format!("{author} destroyed the fleet");
        [
            Change::DropOverride(entry.agent.clone(), entry.change.path()),
            Change::Event(NewEvent::of(&entry.agent, EventKind::OverrideCleared, message)),
        ]
    };
    ended.flat_map(end).chain([Change::Mode(mode)]).collect()
}

/// A task by hand.
#[must_use]
pub fn task(agent: &AgentName, id: TaskId, request: TaskRequest, author: &str, now: Timestamp) -> Task {
    let source = TaskSource::Request { author: author.to_owned(), key: request.key };
    Task::new(id, Some(agent.clone()), source, request.job, request.terms, now)
}

/// `start` and `stop`.
///
/// # Errors
/// When there is no such agent.
pub fn set_power(
    records: &Records,
    agent: &AgentName,
    wanted: PowerState,
    request: &ChangeRequest,
    said: Voice<'_>,
) -> Result<Intent, Problem> {
    let covers = written(records, agent, |spec| spec.power).ok_or_else(|| missing(records, agent))?;
    // A person who starts an agent has seen its failures, and may do what its restart policy leaves to
    // people. Does its machine run already, then the next look at it says so.
    let mut changes = vec![Change::DropBackoff(agent.clone())];
    if let Some(claim) = records.claims.get(agent).filter(|_| wanted == PowerState::Running) {
        let learnt = Learnt { standing: Some(Standing::Down), asleep: Some(false), ..Learnt::of(claim) };
        changes.push(Change::Learnt(agent.clone(), learnt));
        if claim.asleep {
            let message = format!("{} started it", said.author);
            changes.push(Change::Event(NewEvent::of(agent, EventKind::AgentAwake, message)));
        }
    }
    // An agent that rests is down although the file says that it should run, and one that waits for a
    // window runs although it says that it should not.
    let otherwise = match wanted {
        PowerState::Running => rests(records, agent, said.now),
        PowerState::Stopped => !records.fleet.windows.is_empty() && stands(records, agent),
    };
    if wanted == covers && !otherwise {
        changes.extend(clear(records, agent, OverridePath::Power, said));
        return Ok(Intent { changes, overridden: None });
    }
    let expires_at = said.end(request, Some(HOLDS));
    let entry = said.entry(agent, Said::Power { wanted, covers }, expires_at);
    let message = format!("{} wants it {wanted} {}{}", said.author, until(expires_at), said.because());
    changes.push(Change::Override(Box::new(entry.clone())));
    changes.push(Change::Event(NewEvent::of(agent, EventKind::OverrideSet, message)));
    Ok(Intent { changes, overridden: Some(entry) })
}

/// Whether an agent's machine was last known to be up.
fn stands(records: &Records, agent: &AgentName) -> bool {
    records.claims.get(agent).is_some_and(|claim| claim.standing == Standing::Up)
}

/// Whether an agent is asleep, or its time to live is over.
fn rests(records: &Records, agent: &AgentName, now: Timestamp) -> bool {
    let ttl = written(records, agent, |spec| spec.ttl).flatten();
    let end = |claim: &Claim| ttl.and_then(|ttl| claim.created_at.checked_add(ttl.get()).ok());
    records.claims.get(agent).is_some_and(|claim| claim.asleep || end(claim).is_some_and(|end| end <= now))
}

/// Work has come for an agent that is asleep: the changes that wake it. None when it is not.
#[must_use]
pub fn awaken(records: &Records, agent: &AgentName, author: &str) -> Vec<Change> {
    let Some(claim) = records.claims.get(agent).filter(|claim| claim.asleep) else { return Vec::new() };
    let learnt = Learnt { asleep: Some(false), ..Learnt::of(claim) };
    let event = NewEvent::of(agent, EventKind::AgentAwake, format!("{author} wants to run something in it"));
    vec![Change::Learnt(agent.clone(), learnt), Change::Event(event)]
}

/// `pause` and `resume` of one agent.
pub fn set_reconcile(
    records: &Records,
    agent: &AgentName,
    wanted: Reconcile,
    request: &ChangeRequest,
    said: Voice<'_>,
) -> Result<Intent, Problem> {
    let covers = written(records, agent, |spec| spec.reconcile).ok_or_else(|| missing(records, agent))?;
    // To resume is to go back to what the file says, be that `auto` or `manual`.
    let resumes = wanted == Reconcile::Auto && covers != Reconcile::Paused;
    if wanted == covers || resumes {
        return Ok(Intent { changes: clear(records, agent, OverridePath::Reconcile, said), overridden: None });
    }
    let expires_at = said.end(request, None);
    let entry = said.entry(agent, Said::Reconcile { wanted, covers }, expires_at);
    let verb = if wanted == Reconcile::Paused { "paused" } else { "resumed" };
    let message = format!("{} {verb} it {}{}", said.author, until(expires_at), said.because());
    let changes = vec![
        Change::Override(Box::new(entry.clone())),
        Change::Event(NewEvent::of(agent, EventKind::OverrideSet, message)),
    ];
    Ok(Intent { changes, overridden: Some(entry) })
}

/// `pause` and `resume` of the whole fleet: the changes, and the pause as they leave it.
pub fn pause_fleet(
    records: &Records,
    pause: bool,
    request: &ChangeRequest,
    said: Voice<'_>,
) -> (Vec<Change>, Option<Pause>) {
    if !pause && records.pause.is_none() {
        return (Vec::new(), None);
    }
    let (kind, verb) = if pause { (EventKind::FleetPaused, "paused") } else { (EventKind::FleetResumed, "resumed") };
    let expires_at = said.end(request, None);
    let entry = pause.then(|| Pause {
        author: said.author.to_owned(),
        reason: said.reason.map(str::to_owned),
        created_at: said.now,
        expires_at,
    });
    let lasting = if pause { format!(" {}", until(expires_at)) } else { String::new() };
    let message = format!("{} {verb} the fleet{lasting}{}", said.author, said.because());
    (vec![Change::Pause(entry.clone()), Change::Event(NewEvent::fleet(kind, message))], entry)
}

/// `override clear`. The end of an agent made by hand is its destruction, which is asked for by name.
pub fn clear_override(
    records: &Records,
    agent: &AgentName,
    path: OverridePath,
    said: Voice<'_>,
) -> Result<Intent, Problem> {
    let entry = find(records, agent, path)?;
    if matches!(entry.change, Said::Presence(Presence::Present(_))) {
        return Err(Problem::new(ProblemCode::Conflict, format!("agent `{agent}` exists only by this override"))
            .remedy(format!("vm-agent destroy {agent}")));
    }
    Ok(Intent { changes: clear(records, agent, path, said), overridden: None })
}

/// `override extend`.
pub fn extend_override(
    records: &Records,
    agent: &AgentName,
    path: OverridePath,
    request: &ChangeRequest,
    said: Voice<'_>,
) -> Result<Intent, Problem> {
    let known = find(records, agent, path)?;
    if request.lasting.is_none() && !request.sticky {
        return Err(
            Problem::new(ProblemCode::Invalid, "how long shall it hold?").remedy("give --for SPAN, or --sticky")
        );
    }
    let entry = Override { expires_at: said.end(request, None), ..known.clone() };
    let message = format!("{} lets the override of {} hold {}", said.author, known.author, until(entry.expires_at));
    let changes = vec![
        Change::Override(Box::new(entry.clone())),
        Change::Event(NewEvent::of(agent, EventKind::OverrideSet, message)),
    ];
    Ok(Intent { changes, overridden: Some(entry) })
}

/// A yes, as changes.
pub fn approve(approval: &ApprovalRequest, author: &str) -> [Change; 2] {
    let message = format!("{author} said yes: {}", approval.what);
    let event = NewEvent { kind: EventKind::Approved, agent: Some(approval.agent.clone()), message };
    [Change::Approve(approval.clone(), author.to_owned()), Change::Event(event)]
}

fn find<'a>(records: &'a Records, agent: &AgentName, path: OverridePath) -> Result<&'a Override, Problem> {
    let found = records.overrides.iter().find(|entry| entry.agent == *agent && entry.change.path() == path);
    found.ok_or_else(|| {
        let reason = format!("nothing overrides the {} of `{agent}`", path.as_str());
        Problem::new(ProblemCode::NotFound, reason).remedy("see what is overridden: vm-agent override ls")
    })
}

fn until(end: Option<Timestamp>) -> String {
    end.map_or_else(|| "until it is cleared".to_owned(), |at| format!("until {at:.0}"))
}

/// `create`: an agent beside the file.
pub fn create(
    records: &Records,
    agent: &AgentName,
    request: &CreateRequest,
    said: Voice<'_>,
) -> Result<Intent, Problem> {
    let spec = resolve_entry(&records.fleet, &request.spec)
        .map_err(|problems| Problem::new(ProblemCode::Invalid, problems.join("; ")))?;
    make(records, agent, spec, said)
}

/// `create` and `clone`: an agent beside the file, with this spec.
pub fn make(records: &Records, agent: &AgentName, spec: DeclaredAgent, said: Voice<'_>) -> Result<Intent, Problem> {
    if let Err(error) = records.fleet.name.instance_of(agent) {
        return Err(Problem::new(ProblemCode::Invalid, format!("the instance of `{agent}` can't be named: {error}")));
    }
    let present = presence(records, agent);
    if records.fleet.agents.contains_key(agent) {
        return match present {
            // The file says the same: what stood against it goes.
            Some(Presence::Absent) => {
                Ok(Intent { changes: clear(records, agent, OverridePath::Presence, said), overridden: None })
            }
            _ => Err(Problem::new(ProblemCode::Conflict, format!("agent `{agent}` is declared in the fleet file"))
                .remedy("edit the file and apply it")),
        };
    }
    match present {
        Some(Presence::Present(known)) if known.spec == spec.spec => Ok(Intent::default()),
        Some(Presence::Present(_)) => {
            Err(Problem::new(ProblemCode::Conflict, format!("agent `{agent}` was made by hand, with another spec"))
                .remedy(format!("destroy it first: vm-agent destroy {agent}")))
        }
        Some(Presence::Absent) | None => {
            let entry = said.entry(agent, Said::Presence(Presence::Present(spec)), None);
            let message = format!("{} made it by hand{}", said.author, said.because());
            let changes = vec![
                Change::Override(Box::new(entry.clone())),
                Change::Event(NewEvent::of(agent, EventKind::OverrideSet, message)),
            ];
            Ok(Intent { changes, overridden: Some(entry) })
        }
    }
}

/// `destroy`: the agent goes, though the file may declare it.
pub fn destroy(records: &Records, agent: &AgentName, said: Voice<'_>) -> Result<Intent, Problem> {
    let declared = records.fleet.agents.get(agent);
    let claim = records.claims.get(agent);
    let present = presence(records, agent);
    let exists = declared.is_some() || claim.is_some() || matches!(present, Some(Presence::Present(_)));
    if !exists {
        return Err(unknown(agent));
    }
    if claim.is_some_and(|claim| claim.protect) || declared.is_some_and(|agent| agent.spec.protect) {
        return Err(refuse_protected(agent));
    }
    if matches!(present, Some(Presence::Absent)) {
        return Ok(Intent::default());
    }
    let entry = said.entry(agent, Said::Presence(Presence::Absent), None);
    let message = format!("{} wants it gone{}", said.author, said.because());
    let mut changes = vec![
        Change::DropBackoff(agent.clone()),
        Change::DropOverride(agent.clone(), OverridePath::Power),
        Change::DropOverride(agent.clone(), OverridePath::Reconcile),
    ];
    changes.push(Change::Override(Box::new(entry.clone())));
    changes.push(Change::Event(NewEvent::of(agent, EventKind::OverrideSet, message)));
    Ok(Intent { changes, overridden: Some(entry) })
}

/// An agent whose machine may not be deleted, if there is one.
fn protected(records: &Records) -> Option<AgentName> {
    let claimed = records.claims.values().filter(|claim| claim.protect).map(|claim| &claim.agent);
    let declared = records.fleet.agents.iter().filter(|(_, agent)| agent.spec.protect).map(|(name, _)| name);
    claimed.chain(declared).next().cloned()
}

fn refuse_protected(agent: &AgentName) -> Problem {
    Problem::new(ProblemCode::Blocked, format!("agent `{agent}` is protected"))
        .remedy("set `protect: false` in the fleet file and apply it first")
}

/// The end of an override, as changes.
pub fn ended(entry: &Override, end: End) -> Vec<Change> {
    let drop = Change::DropOverride(entry.agent.clone(), entry.change.path());
    let (kind, message) = match end {
        End::Expired => (EventKind::OverrideExpired, format!("the override of {} came to its time", entry.author)),
        End::Superseded => {
            (EventKind::OverrideSuperseded, format!("the file changed what the override of {} covered", entry.author))
        }
        // What was asked for is done; that was told when it was.
        End::Done => return vec![drop],
    };
    vec![drop, Change::Event(NewEvent::of(&entry.agent, kind, message))]
}

fn clear(records: &Records, agent: &AgentName, path: OverridePath, said: Voice<'_>) -> Vec<Change> {
    let known = records.overrides.iter().any(|entry| entry.agent == *agent && entry.change.path() == path);
    if !known {
        return Vec::new();
    }
    let message = format!("{} says what the file says{}", said.author, said.because());
    vec![
        Change::DropOverride(agent.clone(), path),
        Change::Event(NewEvent::of(agent, EventKind::OverrideCleared, message)),
    ]
}

fn presence<'a>(records: &'a Records, agent: &AgentName) -> Option<&'a Presence> {
    records.overrides.iter().filter(|entry| entry.agent == *agent).find_map(|entry| match &entry.change {
        Said::Presence(presence) => Some(presence),
        Said::Power { .. } | Said::Reconcile { .. } => None,
    })
}

/// What an agent has without an override of that field: the file's value, or that of the spec that it
/// was made by hand with.
fn written<T>(records: &Records, agent: &AgentName, field: impl Fn(&AgentSpec) -> T) -> Option<T> {
    match presence(records, agent) {
        Some(Presence::Absent) => None,
        Some(Presence::Present(made)) => Some(field(&made.spec)),
        None => records.fleet.agents.get(agent).map(|declared| field(&declared.spec)),
    }
}

/// Why nothing can be asked of an agent that is not wanted: the file declares it and somebody destroyed it, or
/// there is none.
pub fn missing(records: &Records, agent: &AgentName) -> Problem {
    let is_absence = |entry: &&Override| matches!(entry.change, Said::Presence(Presence::Absent));
    let said = records.overrides.iter().filter(|entry| entry.agent == *agent).find(is_absence);
    match said.filter(|_| records.fleet.agents.contains_key(agent)) {
        Some(said) => Problem::new(ProblemCode::NotFound, format!("agent `{agent}` was destroyed by {}", said.author))
            .remedy(format!("bring it back: vm-agent create {agent}")),
        None => unknown(agent),
    }
}

/// Why nobody answers for an agent, and what would help.
pub fn offline(records: &Records, agent: &AgentName, now: Timestamp) -> Problem {
    let wanted = vm_agent_plan::effective(&records.fleet, &records.overrides, now).wanted;
    if wanted.get(agent).is_none_or(|agent| agent.spec.power != PowerState::Stopped) {
        return Problem::new(ProblemCode::Offline, format!("the runtime of `{agent}` is not connected"))
            .remedy(format!("see what it waits for: vm-agent why {agent}"));
    }
    let said = find(records, agent, OverridePath::Power).ok();
    let by = said.map_or_else(|| "as the fleet file says".to_owned(), |said| format!("by {}", said.author));
    Problem::new(ProblemCode::Offline, format!("agent `{agent}` is stopped, {by}"))
        .remedy(format!("start it: vm-agent start {agent}"))
}

pub fn unknown(agent: &AgentName) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("there is no agent `{agent}`"))
        .remedy("see which there are: vm-agent list")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::fleet::parse;

    fn records(text: &str) -> Records {
        Records::empty(parse("fleet.yaml", text).unwrap())
    }

    fn web() -> AgentName {
        "web".parse().unwrap()
    }

    fn voice() -> Voice<'static> {
        Voice { author: "ana", reason: Some("flaky"), now: Timestamp::UNIX_EPOCH }
    }

    fn apply(records: &mut Records, intent: Intent) {
        intent.changes.into_iter().for_each(|change| records.apply(change));
    }

    #[test]
    fn a_command_that_says_what_the_file_says_clears_the_override() {
        let mut records = records("agents: {web: {}}");
        let stop = set_power(&records, &web(), PowerState::Stopped, &ChangeRequest::default(), voice()).unwrap();
        assert!(stop.overridden.is_some());
        apply(&mut records, stop);
        assert_eq!(records.overrides.len(), 1);
        let start = set_power(&records, &web(), PowerState::Running, &ChangeRequest::default(), voice()).unwrap();
        assert!(start.overridden.is_none());
        apply(&mut records, start);
        assert!(records.overrides.is_empty());
    }

    #[test]
    fn who_is_not_heard_because_it_is_stopped_is_told_to_be() {
        let mut records = records("agents: {web: {}, off: {power: stopped}}");
        let told =
            |records: &Records, agent: &str| offline(records, &agent.parse().unwrap(), Timestamp::UNIX_EPOCH).reason;
        assert_eq!(told(&records, "web"), "the runtime of `web` is not connected");
        assert_eq!(told(&records, "off"), "agent `off` is stopped, as the fleet file says");
        let stop = set_power(&records, &web(), PowerState::Stopped, &ChangeRequest::default(), voice()).unwrap();
        apply(&mut records, stop);
        assert_eq!(told(&records, "web"), "agent `web` is stopped, by ana");
    }

    #[test]
    fn stop_holds_for_an_hour_unless_told_otherwise() {
        let records = records("agents: {web: {}}");
        let end = |request: ChangeRequest| {
            let intent = set_power(&records, &web(), PowerState::Stopped, &request, voice()).unwrap();
            intent.overridden.unwrap().expires_at.map(Timestamp::as_second)
        };
        assert_eq!(end(ChangeRequest::default()), Some(3600));
        assert_eq!(end(ChangeRequest { lasting: Some(Span::from_secs(20)), ..Default::default() }), Some(20));
        assert_eq!(end(ChangeRequest { sticky: true, ..Default::default() }), None);
    }

    #[test]
    fn there_is_one_override_for_each_path() {
        let mut records = records("agents: {web: {}}");
        for _ in 0..3 {
            let stop = set_power(&records, &web(), PowerState::Stopped, &ChangeRequest::default(), voice()).unwrap();
            apply(&mut records, stop);
        }
        let pause = set_reconcile(&records, &web(), Reconcile::Paused, &ChangeRequest::default(), voice()).unwrap();
        apply(&mut records, pause);
        assert_eq!(records.overrides.len(), 2);
    }

    #[test]
    fn a_declared_agent_can_not_be_made_by_hand_and_one_by_hand_is_made_once() {
        let mut records = records("agents: {web: {}}");
        let request = CreateRequest::default();
        let refused = create(&records, &web(), &request, voice()).unwrap_err();
        assert_eq!(refused.code, ProblemCode::Conflict);
        let other: AgentName = "other".parse().unwrap();
        let made = create(&records, &other, &request, voice()).unwrap();
        apply(&mut records, made);
        assert!(create(&records, &other, &request, voice()).unwrap().changes.is_empty());
    }

    #[test]
    fn a_destroyed_agent_comes_back_when_it_is_created_again() {
        let mut records = records("agents: {web: {}}");
        let gone = destroy(&records, &web(), voice()).unwrap();
        apply(&mut records, gone);
        let start = set_power(&records, &web(), PowerState::Running, &ChangeRequest::default(), voice());
        assert_eq!(start.unwrap_err().reason, "agent `web` was destroyed by ana");
        let back = create(&records, &web(), &CreateRequest::default(), voice()).unwrap();
        apply(&mut records, back);
        assert!(records.overrides.is_empty());
    }

    #[test]
    fn overrides_end_with_the_fleet_that_is_destroyed_and_outlive_one_that_is_stopped() {
        let mut records = records("agents: {web: {}}");
        let gone = destroy(&records, &web(), voice()).unwrap();
        apply(&mut records, gone);
        for (mode, left) in [(Mode::Down, 1), (Mode::Destroy, 0)] {
            go_down(&records, mode, "ana").into_iter().for_each(|change| records.apply(change));
            assert_eq!((records.mode, records.overrides.len()), (mode, left));
        }
    }

    #[test]
    fn the_protected_are_not_destroyed_and_the_unknown_are_named() {
        let protected = records("agents: {web: {protect: true}}");
        assert_eq!(destroy(&protected, &web(), voice()).unwrap_err().code, ProblemCode::Blocked);
        assert_eq!(super::protected(&protected), Some(web()));
        assert_eq!(super::protected(&records("agents: {web: {}}")), None);
        let nobody = records("agents: {}");
        assert_eq!(destroy(&nobody, &web(), voice()).unwrap_err().code, ProblemCode::NotFound);
    }

    #[test]
    fn resuming_goes_back_to_what_the_file_says() {
        let mut records = records("agents: {web: {reconcile: manual}}");
        let pause = set_reconcile(&records, &web(), Reconcile::Paused, &ChangeRequest::default(), voice()).unwrap();
        apply(&mut records, pause);
        let resume = set_reconcile(&records, &web(), Reconcile::Auto, &ChangeRequest::default(), voice()).unwrap();
        assert!(resume.overridden.is_none());
        apply(&mut records, resume);
        assert!(records.overrides.is_empty());
    }

    #[test]
    fn a_paused_fleet_is_resumed_once() {
        let mut records = records("agents: {web: {}}");
        let (changes, pause) = pause_fleet(&records, true, &ChangeRequest::default(), voice());
        assert_eq!(pause.unwrap().author, "ana");
        changes.into_iter().for_each(|change| records.apply(change));
        let (changes, pause) = pause_fleet(&records, false, &ChangeRequest::default(), voice());
        assert!(pause.is_none() && changes.len() == 2);
        changes.into_iter().for_each(|change| records.apply(change));
        assert!(pause_fleet(&records, false, &ChangeRequest::default(), voice()).0.is_empty());
    }

    #[test]
    fn an_override_is_extended_from_now_and_never_for_no_time() {
        let mut records = records("agents: {web: {}}");
        let path = OverridePath::Power;
        let missing = extend_override(&records, &web(), path, &ChangeRequest::default(), voice()).unwrap_err();
        assert_eq!(missing.code, ProblemCode::NotFound);
        let stop = set_power(&records, &web(), PowerState::Stopped, &ChangeRequest::default(), voice()).unwrap();
        apply(&mut records, stop);
        let endless = extend_override(&records, &web(), path, &ChangeRequest::default(), voice()).unwrap_err();
        assert_eq!(endless.code, ProblemCode::Invalid);
        let longer = ChangeRequest { lasting: Some(Span::from_secs(7200)), ..Default::default() };
        let extended = extend_override(&records, &web(), path, &longer, voice()).unwrap();
        assert_eq!(extended.overridden.unwrap().expires_at.unwrap().as_second(), 7200);
    }
}

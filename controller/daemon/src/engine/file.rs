//! The fleet file: how it gets into force, and what becomes of a change of it on the disk.
//!
//! A person's `apply` says yes to all that the file says. What the watcher finds nobody has said yes to:
//! [`judge`] holds back what a person has to see first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vm_agent_plan::{Mode, effective};
use vm_agent_schemas::api::{Approval, FileState, FileStatus, FleetSource, Problem, ProblemCode};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{self, Diagnostic, Fleet};
use vm_agent_schemas::ids::{Digest, Revision};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::Plan;

use super::intent::{approve, summary};
use super::reach::widened;
use super::records::{AcceptedFile, Change, Records};

/// Who applies what nobody applied by hand.
pub const WATCHER: &str = "file watch";

/// Most things that one sentence names; more are counted. What an approval is to is named whole.
const NAMED: usize = 20;

/// What the controller keeps of the file on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// The file that was on the disk when a person went back to an earlier one: it is not to be applied
    /// until it changes.
    pub passed_over: Option<Digest>,
    /// What was last told of the file, so that each thing is told once.
    pub told: Option<Digest>,
}

/// What stands on the disk.
#[derive(Debug)]
pub enum OnDisk {
    /// Nothing that can be read, and why.
    Lost(String),
    /// Nothing that is a fleet.
    Refused(Vec<Diagnostic>),
    /// A fleet.
    Fleet(FleetSource, Box<Fleet>),
}

impl OnDisk {
    /// What the texts come to.
    #[must_use]
    pub fn of(source: FleetSource) -> Self {
        match fleet::parse_all(&source.files) {
            Ok(fleet) => Self::Fleet(source, Box::new(fleet)),
            Err(diagnostics) => Self::Refused(diagnostics),
        }
    }

    /// The digest by which two files are the same; nothing when there is no fleet.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Fleet(_, fleet) => fleet.digest.as_ref(),
            Self::Lost(_) | Self::Refused(_) => None,
        }
    }
}

/// A way in which guests can write what the watcher reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// What they can write.
    pub place: PathBuf,
    /// Who can.
    pub agent: AgentName,
}

/// The folders of the host that agents may write, each with one of those that may: by the specs in force,
/// and by what machines were last started with.
#[must_use]
pub fn writable(records: &Records, now: Timestamp) -> BTreeMap<PathBuf, AgentName> {
    let wanted = effective(&records.fleet, &records.overrides, now).wanted;
    let specs = wanted.iter().map(|(name, agent)| (name, &agent.spec.mounts));
    let births = records.claims.iter().map(|(name, claim)| (name, &claim.birth.mounts));
    let mounts = specs.chain(births).flat_map(|(name, mounts)| mounts.values().map(move |mount| (name, mount)));
    mounts.filter(|(_, mount)| mount.writable).map(|(name, mount)| (mount.source.clone(), name.clone())).collect()
}

/// The first of the places that lies in a folder that an agent may write. All paths are without links.
#[must_use]
pub fn exposure<'a>(
    places: impl IntoIterator<Item = &'a Path>,
    writable: &BTreeMap<PathBuf, AgentName>,
) -> Option<Exposure> {
    places.into_iter().find_map(|place| {
        let agent = place.ancestors().find_map(|folder| writable.get(folder))?;
        Some(Exposure { place: place.to_owned(), agent: agent.clone() })
    })
}

/// A file that waits for an approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The digest of the file and of what it would newly let guests do.
    pub id: Digest,
    /// That, in sentences.
    pub reach: Vec<String>,
}

impl Held {
    /// What the yes would be to, in a sentence that names everything, or the first things.
    fn what(&self, whole: bool) -> String {
        let reach = if whole { self.reach.join("; ") } else { listed(&self.reach) };
        format!("the changed file would let more be done to this host: {reach}")
    }
}

impl From<&Held> for Approval {
    fn from(held: &Held) -> Self {
        Self { id: held.id.clone(), agent: None, what: held.what(true) }
    }
}

/// How the file on the disk stands to the one in force, and so what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is in force. Can guests write it, then nothing else that it may say is applied unseen.
    InForce(Option<Exposure>),
    /// A person went back to an earlier one.
    PassedOver,
    /// It is to be applied.
    Apply,
    /// It waits for an approval.
    Held(Held),
    /// It is applied by a person only.
    Guarded(Exposure),
    /// It is of another fleet, said in a sentence.
    OtherFleet(String),
    /// It has errors.
    Invalid(Vec<Diagnostic>),
    /// It is gone or can't be read, and why.
    Missing(String),
}

/// What becomes of what stands on the disk.
#[must_use]
pub fn judge(records: &Records, disk: &OnDisk, exposed: Option<Exposure>) -> Verdict {
    let fleet = match disk {
        OnDisk::Lost(why) => return Verdict::Missing(why.clone()),
        OnDisk::Refused(diagnostics) => return Verdict::Invalid(diagnostics.clone()),
        OnDisk::Fleet(_, fleet) => fleet,
    };
    if let Err(problem) = belongs(records, fleet) {
        return Verdict::OtherFleet(problem.reason);
    }
    let Some(digest) = &fleet.digest else { return Verdict::Missing("it has no text".to_owned()) };
    if records.file.as_ref().is_some_and(|file| file.digest == *digest) {
        return Verdict::InForce(exposed);
    }
    if records.watched.passed_over.as_ref() == Some(digest) {
        return Verdict::PassedOver;
    }
    if let Some(exposed) = exposed {
        return Verdict::Guarded(exposed);
    }
    let reach: Vec<String> = widened(&records.fleet, fleet).iter().map(ToString::to_string).collect();
    if reach.is_empty() {
        return Verdict::Apply;
    }
    Verdict::Held(Held { id: Digest::of_json(&(digest, &reach)), reach })
}

impl Verdict {
    /// The state that people see.
    #[must_use]
    pub const fn state(&self) -> FileState {
        match self {
            Self::InForce(_) | Self::Apply => FileState::InForce,
            Self::PassedOver => FileState::RolledBack,
            Self::Held(_) => FileState::Held,
            Self::Guarded(_) => FileState::Guarded,
            Self::OtherFleet(_) | Self::Invalid(_) => FileState::Invalid,
            Self::Missing(_) => FileState::Missing,
        }
    }

    /// The verdict in a sentence.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::InForce(None) | Self::Apply => "the file on the disk is in force".to_owned(),
            Self::InForce(Some(Exposure { place, agent })) => format!(
                "the file on the disk is in force; agent `{agent}` can write {}, so that a change of it is applied \
                 by a person only",
                place.display()
            ),
            Self::PassedOver => {
                "a person went back to an earlier file: the one on the disk is applied when it changes".to_owned()
            }
            Self::Held(held) => {
                format!("{}; to say yes: vm-agent approve {}", held.what(false), held.id.short())
            }
            Self::Guarded(Exposure { place, agent }) => format!(
                "the file changed and is not applied, because agent `{agent}` can write {}: look at it, and apply it \
                 with vm-agent apply",
                place.display()
            ),
            Self::OtherFleet(why) => format!("{why}; the accepted file stays in force"),
            Self::Invalid(diagnostics) => first_of(diagnostics),
            Self::Missing(why) => format!("{why}; the accepted file stays in force"),
        }
    }

    /// What people are told of it; nothing when all is well.
    #[must_use]
    pub fn event(&self) -> Option<NewEvent> {
        let kind = match self {
            Self::InForce(_) | Self::PassedOver | Self::Apply => return None,
            Self::Held(_) | Self::Guarded(_) => EventKind::FileHeld,
            Self::OtherFleet(_) | Self::Invalid(_) => EventKind::FileRejected,
            Self::Missing(_) => EventKind::FileLost,
        };
        Some(NewEvent::fleet(kind, self.message()))
    }

    /// What tells one thing to be told from another; nothing when there is nothing to be told.
    #[must_use]
    pub fn mark(&self) -> Option<Digest> {
        self.event().map(|event| Digest::of_json(&(event.kind, event.message, self.diagnostics())))
    }

    fn diagnostics(&self) -> &[Diagnostic] {
        if let Self::Invalid(diagnostics) = self { diagnostics } else { &[] }
    }
}

/// What has to be seen twice before it counts: many programs write a file in several goes, and for a
/// moment it is empty, not there, or half, which may well read as a fleet of fewer agents.
#[must_use]
pub fn doubt(records: &Records, disk: &OnDisk, verdict: &Verdict) -> Option<Digest> {
    match (verdict, disk) {
        (Verdict::Missing(_) | Verdict::Invalid(_) | Verdict::OtherFleet(_), _) => verdict.mark(),
        (Verdict::Apply, OnDisk::Fleet(_, fleet)) => {
            let loses_some = records.fleet.agents.keys().any(|name| !fleet.agents.contains_key(name));
            fleet.digest.clone().filter(|_| loses_some)
        }
        _ => None,
    }
}

/// What there is to tell of a verdict, after what was told before: each thing once, and its end.
#[must_use]
pub fn told(watched: &Watched, verdict: &Verdict) -> Vec<Change> {
    let mark = verdict.mark();
    // Once the disk has said what is in force, whatever it says next is a change.
    let passed_over = watched.passed_over.clone().filter(|_| !matches!(verdict, Verdict::InForce(_)));
    let known = Watched { told: mark.clone(), passed_over };
    if mark == watched.told {
        return if known == *watched { Vec::new() } else { vec![Change::Watched(known)] };
    }
    let restored = match verdict {
        Verdict::PassedOver => "the file on the disk is again the one that a person went back from",
        _ => "the file on the disk says again what is in force",
    };
    let event = verdict.event().unwrap_or_else(|| NewEvent::fleet(EventKind::FileRestored, restored));
    vec![Change::Watched(known), Change::Event(event)]
}

/// What people see of the file. Nothing found yet counts as what was left behind.
#[must_use]
pub fn status(records: &Records, watching: bool, found: Option<&Verdict>) -> FileStatus {
    let file = records.file.as_ref();
    let unwatched = match file {
        None => Some("no fleet file was accepted yet"),
        Some(file) if file.source.roots.is_empty() => Some("it came from no file on the disk, so nobody watches it"),
        Some(_) if !watching => Some("nobody watches the file: watching is switched off"),
        Some(_) => None,
    };
    let past = records.watched.passed_over.as_ref().filter(|past| file.is_some_and(|file| file.digest != **past));
    let left = if past.is_some() { Verdict::PassedOver } else { Verdict::InForce(None) };
    let verdict = found.unwrap_or(&left);
    FileStatus {
        roots: roots(records).to_vec(),
        revision: file.map(|file| file.revision),
        applied_at: file.map(|file| file.at),
        author: file.map(|file| file.author.clone()),
        state: if unwatched.is_some() { FileState::Unwatched } else { verdict.state() },
        message: unwatched.map_or_else(|| verdict.message(), str::to_owned),
        diagnostics: if unwatched.is_some() { Vec::new() } else { verdict.diagnostics().to_vec() },
    }
}

/// The files and folders that the file in force was read from.
#[must_use]
pub fn roots(records: &Records) -> &[PathBuf] {
    records.file.as_ref().map(|file| file.source.roots.as_slice()).unwrap_or_default()
}

/// How a file comes to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A person applies it.
    Applied { by: String },
    /// A person goes back to what that revision said, past the file that is on the disk.
    RolledBack { by: String, to: Revision, past: Option<Digest> },
    /// The watcher found it.
    Changed,
    /// The watcher found it, and a person said yes to it.
    Approved { by: String, held: Held },
}

impl Cause {
    /// The revision's author.
    #[must_use]
    pub fn author(&self) -> &str {
        match self {
            Self::Applied { by } | Self::RolledBack { by, .. } | Self::Approved { by, .. } => by,
            Self::Changed => WATCHER,
        }
    }

    /// What it changes, in a sentence for the history.
    #[must_use]
    pub fn summary(&self, plan: &Plan) -> String {
        match self {
            Self::RolledBack { to, .. } => format!("back to revision {to}: {}", summary(plan)),
            _ => summary(plan),
        }
    }

    /// Who wants the fleet as a file says wants it up. A change of the file brings nothing up that is being
    /// taken down.
    const fn wants_it_up(&self) -> bool {
        matches!(self, Self::Applied { .. } | Self::RolledBack { .. })
    }

    fn event(&self, records: &Records, roots: &[PathBuf], plan: &Plan) -> NewEvent {
        let (kind, message) = match self {
            Self::Applied { by } => {
                let moved = moved(records.file.as_ref(), roots);
                (EventKind::FleetApplied, format!("{by} applied a fleet file{moved}: {}", summary(plan)))
            }
            Self::RolledBack { by, to, .. } => {
                (EventKind::FleetRolledBack, format!("{by} went back to revision {to}: {}", summary(plan)))
            }
            Self::Changed => (EventKind::FleetApplied, format!("the file changed: {}{}", summary(plan), waiting(plan))),
            Self::Approved { by, .. } => {
                let message = format!("the file changed, and {by} said yes: {}{}", summary(plan), waiting(plan));
                (EventKind::FleetApplied, message)
            }
        };
        NewEvent::fleet(kind, message)
    }
}

/// On what terms a person wants a file accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Only while this is the plan.
    pub plan: Option<Digest>,
    /// With a yes to everything in the plan that waits for one.
    pub approve: bool,
}

/// The changes that go with the acceptance of a file. `plan` is the plan for the records with that file.
///
/// # Errors
/// When the plan is no longer the one that was shown, and for a yes to no plan in particular.
pub fn accept(
    records: &Records,
    source: &FleetSource,
    fleet: &Fleet,
    plan: &Plan,
    terms: &Terms,
    cause: &Cause,
) -> Result<Vec<Change>, Problem> {
    if terms.plan.as_ref().is_some_and(|shown| *shown != plan.id) {
        return Err(Problem::new(ProblemCode::Conflict, "the plan is stale: since it was made, something changed")
            .remedy("look at the new plan: vm-agent plan"));
    }
    if terms.approve && terms.plan.is_none() {
        return Err(Problem::new(ProblemCode::Invalid, "a yes needs the id of the plan that it is to"));
    }
    let mut changes = Vec::new();
    if cause.wants_it_up() {
        changes.push(Change::Mode(Mode::Up));
    }
    if terms.approve {
        changes.extend(plan.approvals.iter().flat_map(|approval| approve(approval, cause.author())));
    }
    if let Cause::Approved { by, held } = cause {
        let message = format!("{by} said yes: {}", held.what(false));
        changes.push(Change::Event(NewEvent::fleet(EventKind::Approved, message)));
    }
    changes.push(Change::Watched(match cause {
        Cause::RolledBack { past, .. } => Watched { passed_over: past.clone(), told: records.watched.told.clone() },
        _ => Watched::default(),
    }));
    let is_new = records.file.as_ref().is_none_or(|file| Some(&file.digest) != fleet.digest.as_ref());
    if is_new {
        // A person who changed the file has dealt with what failed.
        changes.extend(records.backoffs.keys().cloned().map(Change::DropBackoff));
    }
    if is_new || roots(records) != source.roots {
        changes.push(Change::Event(cause.event(records, &source.roots, plan)));
    }
    Ok(changes)
}

/// Refuses a fleet that this controller does not look after.
///
/// # Errors
/// When it is another.
pub fn belongs(records: &Records, fleet: &Fleet) -> Result<(), Problem> {
    let owner = records.owner.clone().unwrap_or_default();
    if fleet.name == owner {
        return Ok(());
    }
    let reason = format!("this controller looks after fleet `{owner}`, and the file is of fleet `{}`", fleet.name);
    Err(Problem::new(ProblemCode::Conflict, reason).remedy("start another controller with a --state-dir of its own"))
}

/// Where the file is, when it was elsewhere before.
fn moved(before: Option<&AcceptedFile>, roots: &[PathBuf]) -> String {
    let Some(before) = before.map(|file| &file.source.roots).filter(|before| *before != roots) else {
        return String::new();
    };
    format!(" from {}, before from {}", places(roots), places(before))
}

fn places(roots: &[PathBuf]) -> String {
    if roots.is_empty() {
        return "no file on the disk".to_owned();
    }
    roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What of a plan waits for a person's yes.
fn waiting(plan: &Plan) -> String {
    if plan.approvals.is_empty() {
        return String::new();
    }
    let waiting: Vec<String> =
        plan.approvals.iter().map(|approval| format!("{} of {}", approval.id.short(), approval.agent)).collect();
    format!("; these wait for an approval: {}", listed(&waiting))
}

/// The first diagnostic on one line, and how many more there are.
fn first_of(diagnostics: &[Diagnostic]) -> String {
    let Some(first) = diagnostics.first() else { return "the file is no fleet".to_owned() };
    let place = first.place.map(|place| format!(":{}:{}", place.line, place.column)).unwrap_or_default();
    let path = if first.path.is_empty() { String::new() } else { format!("{}: ", first.path) };
    let hint = first.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    let more = match diagnostics.len() - 1 {
        0 => String::new(),
        1 => "; and 1 more error".to_owned(),
        more => format!("; and {more} more errors"),
    };
    format!("{}{place}: {path}{}{hint}{more}; the accepted file stays in force", first.file, first.message)
}

fn listed(things: &[String]) -> String {
    let mut text = things.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if things.len() > NAMED {
        text.push_str(&format!("; and {} more", things.len() - NAMED));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::records::NewFile;
    use vm_agent_schemas::fleet::SourceFile;
    use vm_agent_schemas::plan::Fuse;

    const BEFORE: &str = "agents: {web: {}, db: {}}";

    fn source(text: &str) -> FleetSource {
        let path = PathBuf::from("/f/fleet.yaml");
        let file = SourceFile { name: "fleet.yaml".into(), path: Some(path.clone()), text: text.into() };
        FleetSource { roots: vec![path], files: vec![file] }
    }

    fn disk(text: &str) -> OnDisk {
        OnDisk::of(source(text))
    }

    /// The records of a controller with that file in force.
    fn records(text: &str) -> Records {
        let OnDisk::Fleet(source, fleet) = disk(text) else { panic!("{text} is a fleet") };
        let mut records = Records::empty(*fleet.clone());
        let file = NewFile { source, fleet: *fleet, author: "ann".into(), summary: String::new() };
        records.accept(file, Revision(1), Timestamp::UNIX_EPOCH);
        records
    }

    fn found(records: &Records, text: &str) -> Verdict {
        judge(records, &disk(text), None)
    }

    fn exposed() -> Option<Exposure> {
        Some(Exposure { place: "/f/fleet.yaml".into(), agent: "web".parse().unwrap() })
    }

    fn nothing_to_do() -> Plan {
        Plan {
            id: Digest::of(b"plan"),
            fleet: Default::default(),
            revision: None,
            agents: Vec::new(),
            steps: Vec::new(),
            approvals: Vec::new(),
            granted: Vec::new(),
            fuse: Fuse::Closed { since: Timestamp::UNIX_EPOCH },
        }
    }

    fn accepted(records: &Records, text: &str, terms: &Terms, cause: &Cause) -> Result<Vec<Change>, Problem> {
        let OnDisk::Fleet(source, fleet) = disk(text) else { panic!("{text} is a fleet") };
        accept(records, &source, &fleet, &nothing_to_do(), terms, cause)
    }

    fn events(changes: &[Change]) -> Vec<(EventKind, &str)> {
        let told = changes.iter().filter_map(|change| match change {
            Change::Event(event) => Some((event.kind, event.message.as_str())),
            _ => None,
        });
        told.collect()
    }

    fn apply(records: &mut Records, changes: Vec<Change>) {
        changes.into_iter().for_each(|change| records.apply(change));
    }

    #[test]
    fn each_state_of_the_disk_has_one_verdict() {
        let records = records(BEFORE);
        assert_eq!(found(&records, BEFORE), Verdict::InForce(None));
        assert_eq!(found(&records, "agents: {web: {}}"), Verdict::Apply);
        assert!(matches!(found(&records, ""), Verdict::Invalid(_)));
        assert!(matches!(found(&records, "agents: {web: {cpu: 2}}"), Verdict::Invalid(_)));
        assert!(matches!(found(&records, "name: other\nagents: {}"), Verdict::OtherFleet(_)));
        assert!(matches!(found(&records, "agents: {web: {mounts: {/x: /}}, db: {}}"), Verdict::Held(_)));
        let lost = judge(&records, &OnDisk::Lost("gone".into()), None);
        assert_eq!(lost, Verdict::Missing("gone".into()));
    }

    #[test]
    fn what_guests_can_write_is_applied_by_a_person_only() {
        let records = records(BEFORE);
        let judged = |text| judge(&records, &disk(text), exposed());
        assert!(matches!(judged("agents: {}"), Verdict::Guarded(_)));
        assert!(matches!(judged("agents: {web: {mounts: {/x: /}}}"), Verdict::Guarded(_)));
        assert_eq!(judged(BEFORE), Verdict::InForce(exposed()));
        assert!(matches!(judged("agents: ["), Verdict::Invalid(_)));
    }

    #[test]
    fn a_folder_that_an_agent_may_write_exposes_all_below_it() {
        let web: AgentName = "web".parse().unwrap();
        let writable = |folder: &str| BTreeMap::from([(PathBuf::from(folder), web.clone())]);
        let exposed = |folder| exposure([Path::new("/f/a/fleet.yaml")], &writable(folder)).is_some();
        assert!(exposed("/f") && exposed("/f/a") && exposed("/f/a/fleet.yaml") && exposed("/"));
        assert!(!exposed("/f/b") && !exposed("/f/a/fleet.yaml/x") && !exposed("/f/a/fleet"));
    }

    #[test]
    fn only_writable_mounts_count_and_those_of_running_machines_too() {
        let mut records = records("agents: {web: {mounts: {/r: /read, /w: {source: /write, writable: true}}}}");
        let folders = |records: &Records| writable(records, Timestamp::UNIX_EPOCH).into_keys().collect::<Vec<_>>();
        assert_eq!(folders(&records), [Path::new("/write")]);
        let mut claim = claim(&records);
        let after = self::records("agents: {web: {}}");
        records.fleet = Arc::clone(&after.fleet);
        assert!(folders(&records).is_empty());
        claim.protect = false;
        records.apply(Change::Claim(Box::new(claim)));
        assert_eq!(folders(&records), [Path::new("/write")]);
    }

    /// A claim of `web`, started with the mounts of its spec.
    fn claim(records: &Records) -> vm_agent_schemas::observe::Claim {
        use vm_agent_schemas::ids::{ClaimId, Incarnation, Nonce};
        use vm_agent_schemas::observe::{Birth, Claim, Proof, Standing};
        let (agent, wanted) = records.fleet.agents.first_key_value().unwrap();
        Claim {
            id: ClaimId::generate(),
            fleet: Default::default(),
            agent: agent.clone(),
            driver: vm_agent_schemas::fleet::DriverName::Qemu,
            instance: "web".parse().unwrap(),
            nonce: Nonce::generate(),
            incarnation: Incarnation(1),
            created_at: Timestamp::UNIX_EPOCH,
            proof: Proof::Confirmed,
            birth: Birth::of(&wanted.spec),
            standing: Standing::Up,
            protect: true,
            left_in_mass: false,
            asleep: false,
            history: Default::default(),
        }
    }

    #[test]
    fn an_approval_is_to_one_text_and_to_one_widening() {
        let records = records(BEFORE);
        let id = |text: &str| match found(&records, text) {
            Verdict::Held(held) => held.id,
            other => panic!("{other:?}"),
        };
        let one = id("agents: {web: {mounts: {/x: /}}, db: {}}");
        assert_eq!(one, id("agents: {web: {mounts: {/x: /}}, db: {}}"));
        assert_ne!(one, id("agents: {web: {mounts: {/x: /}}, db: {cpus: 2}}"));
    }

    #[test]
    fn only_what_may_pass_is_doubted() {
        let records = records(BEFORE);
        let doubted = |text: &str| doubt(&records, &disk(text), &found(&records, text)).is_some();
        assert!(doubted("") && doubted("agents: [") && doubted("name: other\nagents: {}"));
        assert!(doubted("agents: {web: {}}"), "the other half may be on its way");
        assert!(!doubted(BEFORE) && !doubted("agents: {web: {}, db: {}, new: {}}"));
    }

    #[test]
    fn each_trouble_is_told_once_and_so_is_its_end() {
        let mut records = records(BEFORE);
        let tell = |records: &mut Records, verdict: &Verdict| {
            let changes = told(&records.watched, verdict);
            let kinds: Vec<EventKind> = events(&changes).into_iter().map(|(kind, _)| kind).collect();
            apply(records, changes);
            kinds
        };
        let typo = found(&records, "agents: {web: {cpu: 2}}");
        let other = found(&records, "agents: {web: {cpu: 3}}\nx: 1");
        let (gone, well) = (Verdict::Missing("gone".into()), Verdict::InForce(None));
        assert!(tell(&mut records, &well).is_empty());
        assert_eq!(tell(&mut records, &typo), [EventKind::FileRejected]);
        assert!(tell(&mut records, &typo).is_empty());
        assert_eq!(tell(&mut records, &other), [EventKind::FileRejected]);
        assert_eq!(tell(&mut records, &gone), [EventKind::FileLost]);
        assert_eq!(tell(&mut records, &well), [EventKind::FileRestored]);
        assert!(tell(&mut records, &well).is_empty());
    }

    #[test]
    fn a_typo_is_told_with_its_place_what_was_meant_and_how_many_more_there_are() {
        let message = found(&records(BEFORE), "agents:\n  web: {cpuss: 2, memroy: 1G}\n").message();
        assert!(message.starts_with("fleet.yaml:2:9: agents.web"), "{message}");
        assert!(message.contains("did you mean `cpus`?") && message.contains("and 1 more error"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn a_file_that_was_passed_over_is_not_applied_until_another_was() {
        let mut records = records(BEFORE);
        let disk_says = "agents: {web: {cpus: 4}, db: {}}";
        let past = disk(disk_says).digest().cloned();
        let cause = Cause::RolledBack { by: "ann".into(), to: Revision(1), past };
        let changes = accepted(&records, BEFORE, &Terms::default(), &cause).unwrap();
        apply(&mut records, changes);
        assert_eq!(found(&records, disk_says), Verdict::PassedOver);
        assert_eq!(status(&records, true, None).state, FileState::RolledBack);
        let changes = accepted(&records, "agents: {web: {}}", &Terms::default(), &Cause::Changed).unwrap();
        apply(&mut records, changes);
        assert_eq!(found(&records, disk_says), Verdict::Apply);
    }

    #[test]
    fn only_what_a_person_says_brings_a_fleet_up_that_is_taken_down() {
        let records = records(BEFORE);
        let brings_up = |cause: &Cause| {
            let changes = accepted(&records, "agents: {}", &Terms::default(), cause).unwrap();
            changes.iter().any(|change| matches!(change, Change::Mode(Mode::Up)))
        };
        let by = || "ann".to_owned();
        assert!(brings_up(&Cause::Applied { by: by() }));
        assert!(brings_up(&Cause::RolledBack { by: by(), to: Revision(1), past: None }));
        assert!(!brings_up(&Cause::Changed));
        let held = Held { id: Digest::of(b""), reach: Vec::new() };
        assert!(!brings_up(&Cause::Approved { by: by(), held }));
    }

    #[test]
    fn a_stale_plan_and_a_yes_to_nothing_are_refused() {
        let records = records(BEFORE);
        let cause = Cause::Applied { by: "ann".into() };
        let refused = |plan, approve| accepted(&records, BEFORE, &Terms { plan, approve }, &cause).unwrap_err().code;
        assert_eq!(refused(Some(Digest::of(b"other")), false), ProblemCode::Conflict);
        assert_eq!(refused(None, true), ProblemCode::Invalid);
        assert!(accepted(&records, BEFORE, &Terms { plan: Some(Digest::of(b"plan")), approve: true }, &cause).is_ok());
    }

    #[test]
    fn a_file_from_elsewhere_is_told_with_both_places() {
        let records = records(BEFORE);
        let cause = Cause::Applied { by: "ann".into() };
        let OnDisk::Fleet(source, fleet) = disk(BEFORE) else { panic!("it is a fleet") };
        let elsewhere = FleetSource { roots: vec!["/new/fleet.yaml".into()], ..source.clone() };
        let plan = nothing_to_do();
        let changes = accept(&records, &elsewhere, &fleet, &plan, &Terms::default(), &cause).unwrap();
        let [(EventKind::FleetApplied, message)] = events(&changes)[..] else { panic!("{changes:?}") };
        assert!(message.contains("from /new/fleet.yaml, before from /f/fleet.yaml"), "{message}");
        assert!(events(&accept(&records, &source, &fleet, &plan, &Terms::default(), &cause).unwrap()).is_empty());
    }

    #[test]
    fn a_file_that_nobody_watches_is_unwatched_whatever_is_on_the_disk() {
        let watched = records(BEFORE);
        assert_eq!(status(&watched, true, None).state, FileState::InForce);
        assert_eq!(status(&watched, false, Some(&Verdict::Apply)).state, FileState::Unwatched);
        let mut piped = records(BEFORE);
        piped.file.as_mut().unwrap().source.roots.clear();
        assert_eq!(status(&piped, true, None).state, FileState::Unwatched);
        assert_eq!(status(&Records::empty(Fleet::default()), true, None).state, FileState::Unwatched);
    }
}

//! From the file to one whole spec for each agent: built-in defaults, then `defaults`, then the
//! profile and what it builds on, then the agent itself; the layer above wins, and each field
//! remembers the layer that it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::check_agent;
use super::diagnostic::{FINDINGS_MAX, Finding, nearest};
use super::file::{
    AgentEntry, DriverName, FleetFile, HubSettings, Limits, PowerState, Prune, Reconcile, RestartPolicy,
};
use super::keys::{DependsOn, DriftField, DriftPolicy, FileContent, Idle, Mount, SecretSource, ServiceEntry, Window};
use super::messages::{Messages, check_messages};
use super::ports::Ports;
use super::provision::{CloudInit, DEFAULT_IMAGE, Network, Package, UserName};
use super::task::TaskEntry;
use super::webhook::Webhook;
use super::when::TaskWhen;
use crate::ids::Digest;
use crate::names::{AgentName, FleetName, ProfileName, ServiceName, SnapshotName, TaskName};
use crate::snapshot::SnapshotPlan;
use crate::task::{Job, Terms};
use crate::units::{ByteSize, Span};

/// Most agents of a fleet, replicas counted one by one: far more than anybody runs on one controller. Without
/// a bound a slip of the pen in `replicas` would fill the memory before anybody could say so.
const AGENTS_MAX: usize = 10_000;

/// How many tasks an agent may do at a time when nobody says how many.
pub const SLOTS: u32 = 4;

/// A fleet with every layer applied: what the file comes to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fleet {
    /// The digest of the text that it was read from.
    pub digest: Option<Digest>,
    /// The fleet's name.
    pub name: FleetName,
    /// Each agent that should exist; replicas stand here one by one.
    pub agents: BTreeMap<AgentName, Arc<DeclaredAgent>>,
    /// How much may happen at a time.
    pub limits: Limits,
    /// When the controller may disturb what runs; none means at any time.
    pub windows: Vec<Window>,
    /// What happens to an instance whose agent left the file.
    pub prune: Prune,
    /// Where the controller listens.
    pub hub: HubSettings,
    /// What agents may say to each other.
    pub messages: Messages,
    /// Addresses that are told of events.
    pub webhooks: Vec<Webhook>,
    /// What an agent made by hand has where its maker does not say otherwise.
    pub defaults: AgentEntry,
    /// The templates that an agent made by hand can take.
    pub profiles: BTreeMap<ProfileName, AgentEntry>,
}

/// One agent of the file: its spec, and where each field came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeclaredAgent {
    /// What is wanted.
    pub spec: AgentSpec,
    /// The layer that each field came from.
    pub origins: BTreeMap<Field, Origin>,
    /// The snapshot that its machine is made from, in place of the image. Only an agent made by hand has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CloneOf>,
}

/// The snapshot that a machine is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloneOf {
    /// The agent that it is of.
    pub agent: AgentName,
    /// Its name.
    pub snapshot: SnapshotName,
}

/// What is wanted of an agent, whole: no field is left open but the driver. A field that an older
/// state does not know has its built-in default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentSpec {
    /// What makes the machine; nothing means the first of the usual ones that is installed.
    pub driver: Option<DriverName>,
    /// The image that the machine is made from.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory: ByteSize,
    /// Disk, in bytes.
    pub disk: ByteSize,
    /// Whether the machine should run.
    pub power: PowerState,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Environment of everything that runs in the agent.
    pub env: BTreeMap<String, String>,
    /// Agents that come first, and how far each has to be.
    pub depends_on: DependsOn,
    /// When a machine that went down by itself is started again.
    pub restart: RestartPolicy,
    /// Whether the controller removes drift by itself.
    pub reconcile: Reconcile,
    /// Refuses every step that would delete the machine.
    pub protect: bool,
    /// What the agent has to do.
    pub tasks: BTreeMap<TaskName, TaskSpec>,
    /// How many tasks it may do at a time.
    pub slots: u32,
    /// Programs that run for as long as the agent does.
    pub services: BTreeMap<ServiceName, ServiceEntry>,
    /// Files that the runtime keeps as they should be, by path.
    pub files: BTreeMap<String, FileContent>,
    /// Packages that the machine gets at its birth.
    pub packages: BTreeSet<Package>,
    /// Networks of the host that it is in.
    pub networks: BTreeSet<Network>,
    /// The user that everything in it runs as; nothing means one that the driver makes.
    pub user: Option<UserName>,
    /// Whether that user may become root.
    pub sudo: bool,
    /// What the machine's cloud-init is told besides.
    pub cloud_init: CloudInit,
    /// Where each secret comes from, by the variable that holds it.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Folders of the host, by the path that they have in the agent.
    pub mounts: BTreeMap<String, Mount>,
    /// Ports that its programs listen on, by name.
    pub ports: Ports,
    /// When the machine stops for want of work; nothing means never.
    pub idle: Option<Idle>,
    /// How long after its making the machine stops; nothing means never.
    pub ttl: Option<Span>,
    /// Which snapshots are taken by themselves.
    pub snapshots: SnapshotPlan,
    /// Whether the machine begins as a copy of one like it that has booted already.
    pub warm: bool,
    /// What to do about drift that is not to be corrected.
    pub drift: BTreeMap<DriftField, DriftPolicy>,
}

/// A task, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskSpec {
    /// What is to be done.
    pub job: Job,
    /// On which terms.
    pub terms: Terms,
    /// When it runs.
    pub when: TaskWhen,
}

impl TaskSpec {
    /// The digest of the task's wording: a changed task is a new one.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }
}

impl Default for AgentSpec {
    fn default() -> Self {
        Self {
            driver: None,
            image: DEFAULT_IMAGE.into(),
            cpus: 1,
            memory: ByteSize::from_gib(1),
            disk: ByteSize::from_gib(5),
            power: PowerState::default(),
            labels: BTreeMap::new(),
            env: BTreeMap::new(),
            depends_on: DependsOn::default(),
            restart: RestartPolicy::default(),
            reconcile: Reconcile::default(),
            protect: false,
            tasks: BTreeMap::new(),
            slots: SLOTS,
            services: BTreeMap::new(),
            files: BTreeMap::new(),
            packages: BTreeSet::new(),
            networks: BTreeSet::new(),
            user: None,
            sudo: false,
            cloud_init: CloudInit::default(),
            secrets: BTreeMap::new(),
            mounts: BTreeMap::new(),
            ports: Ports::default(),
            idle: None,
            ttl: None,
            snapshots: SnapshotPlan::default(),
            warm: false,
            drift: BTreeMap::new(),
        }
    }
}

/// A field of an agent's spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Field {
    /// What makes the machine.
    Driver,
    /// The image.
    Image,
    /// Virtual processors.
    Cpus,
    /// Memory.
    Memory,
    /// Disk.
    Disk,
    /// Whether the machine should run.
    Power,
    /// Labels.
    Labels,
    /// Environment.
    Env,
    /// Agents that come first.
    DependsOn,
    /// Restart policy.
    Restart,
    /// Whether drift is removed by itself.
    Reconcile,
    /// Protection.
    Protect,
    /// Tasks.
    Tasks,
    /// How many tasks at a time.
    Slots,
    /// Services.
    Services,
    /// Files.
    Files,
    /// Packages.
    Packages,
    /// Networks of the host.
    Networks,
    /// The user that everything runs as.
    User,
    /// Whether it may become root.
    Sudo,
    /// What cloud-init is told.
    CloudInit,
    /// Secrets.
    Secrets,
    /// Folders of the host.
    Mounts,
    /// Ports.
    Ports,
    /// When it stops for want of work.
    Idle,
    /// When it stops for its age.
    Ttl,
    /// Which snapshots are taken by themselves.
    Snapshots,
    /// Whether the machine begins as a copy of one like it.
    Warm,
    /// Drift policies.
    Drift,
}

impl Field {
    /// All fields, in the order in which people read them.
    pub const ALL: [Self; 29] = [
        Self::Driver,
        Self::Image,
        Self::Cpus,
        Self::Memory,
        Self::Disk,
        Self::Power,
        Self::Labels,
        Self::Env,
        Self::DependsOn,
        Self::Restart,
        Self::Reconcile,
        Self::Protect,
        Self::Tasks,
        Self::Slots,
        Self::Services,
        Self::Files,
        Self::Packages,
        Self::Networks,
        Self::User,
        Self::Sudo,
        Self::CloudInit,
        Self::Secrets,
        Self::Mounts,
        Self::Ports,
        Self::Idle,
        Self::Ttl,
        Self::Snapshots,
        Self::Warm,
        Self::Drift,
    ];

    /// The field's key in the fleet file.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Image => "image",
            Self::Cpus => "cpus",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Power => "power",
            Self::Labels => "labels",
            Self::Env => "env",
            Self::DependsOn => "dependsOn",
            Self::Restart => "restart",
            Self::Reconcile => "reconcile",
            Self::Protect => "protect",
            Self::Tasks => "tasks",
            Self::Slots => "slots",
            Self::Services => "services",
            Self::Files => "files",
            Self::Packages => "packages",
            Self::Networks => "networks",
            Self::User => "user",
            Self::Sudo => "sudo",
            Self::CloudInit => "cloudInit",
            Self::Secrets => "secrets",
            Self::Mounts => "mounts",
            Self::Ports => "ports",
            Self::Idle => "idle",
            Self::Ttl => "ttl",
            Self::Snapshots => "snapshots",
            Self::Warm => "warm",
            Self::Drift => "drift",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.key())
    }
}

/// The layer that a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// Nothing says anything, so the built-in default holds.
    BuiltIn,
    /// `defaults` of the file.
    Defaults,
    /// A profile of the file.
    Profile(ProfileName),
    /// The agent itself, in the file.
    Agent,
    /// A person's override.
    Override,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::Defaults => f.write_str("defaults"),
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::Agent => f.write_str("file"),
            Self::Override => f.write_str("override"),
        }
    }
}

/// Applies all layers of a file.
///
/// # Errors
/// Every place where the file contradicts itself.
pub(crate) fn resolve(file: &FleetFile) -> Result<Fleet, Vec<Finding>> {
    let mut findings = Vec::new();
    let mut agents = BTreeMap::new();
    let mut sets: BTreeMap<AgentName, Vec<AgentName>> = BTreeMap::new();
    let name = file.name.clone().unwrap_or_default();

    for (declared, entry) in &file.agents {
        let path = vec!["agents".to_owned(), declared.to_string()];
        let layers = match layers(file.defaults.as_ref(), &file.profiles, (Origin::Agent, entry), &path) {
            Ok(layers) => layers,
            Err(finding) => {
                findings.push(finding);
                continue;
            }
        };
        let agent = stack(&layers);
        check_agent(&agent.spec, &path, &mut findings);
        let replicas = layers.iter().rev().find_map(|(_, layer)| layer.replicas);
        let room = AGENTS_MAX - agents.len().min(AGENTS_MAX);
        if replicas.map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX)) > room {
            findings.push(Finding::at(
                &path,
                format!("a fleet has at most {AGENTS_MAX} agents, replicas counted one by one"),
            ));
            continue;
        }
        let names = match replicas {
            None => Ok(vec![declared.clone()]),
            Some(count) => (1..=count).map(|index| declared.replica(index)).collect(),
        };
        let names: Vec<AgentName> = match names {
            Ok(names) => names,
            Err(error) => {
                findings.push(Finding::at(&path, error.to_string()));
                continue;
            }
        };
        let agent = Arc::new(agent);
        for replica in &names {
            if let Err(error) = name.instance_of(replica) {
                findings.push(Finding::at(&path, format!("its instance can't be named: {error}")));
            }
            if agents.insert(replica.clone(), Arc::clone(&agent)).is_some() {
                findings.push(Finding::at(&path, format!("two agents would be named `{replica}`")));
            }
        }
        sets.insert(declared.clone(), names);
    }

    check_messages(&file.messages, &agents.keys().collect(), &sets, &mut findings);
    name_dependencies(&mut agents, &sets, &mut findings);
    findings.extend(find_cycles(&agents, &sets));
    if findings.is_empty() {
        Ok(Fleet {
            digest: None,
            name,
            agents,
            limits: file.limits,
            windows: file.windows.clone(),
            prune: file.prune,
            hub: file.hub.clone(),
            messages: file.messages.clone(),
            webhooks: file.webhooks.clone(),
            defaults: file.defaults.clone().unwrap_or_default(),
            profiles: file.profiles.clone(),
        })
    } else {
        Err(findings)
    }
}

/// The spec of an agent beside the file, over the fleet's `defaults` and a profile: an imperative `create`.
///
/// # Errors
/// What is wrong with the entry, as sentences.
pub fn resolve_entry(fleet: &Fleet, entry: &AgentEntry) -> Result<DeclaredAgent, Vec<String>> {
    let mut findings = Vec::new();
    if entry.replicas.is_some() {
        findings.push(Finding::at(&[], "replicas belong to the fleet file".to_owned()));
    }
    let top = (Origin::Override, entry);
    let agent = match layers(Some(&fleet.defaults), &fleet.profiles, top, &[]) {
        Ok(layers) => stack(&layers),
        Err(finding) => return Err(findings.into_iter().chain([finding]).map(Finding::sentence).collect()),
    };
    check_agent(&agent.spec, &[], &mut findings);
    if findings.is_empty() { Ok(agent) } else { Err(findings.into_iter().map(Finding::sentence).collect()) }
}

/// The layers of an agent, lowest first.
fn layers<'a>(
    defaults: Option<&'a AgentEntry>,
    profiles: &'a BTreeMap<ProfileName, AgentEntry>,
    (origin, entry): (Origin, &'a AgentEntry),
    path: &[String],
) -> Result<Vec<(Origin, &'a AgentEntry)>, Finding> {
    let mut layers = vec![(origin, entry)];
    let mut wanted = entry.profile.as_ref().or_else(|| defaults.and_then(|d| d.profile.as_ref()));
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted {
        if !seen.insert(name) {
            return Err(Finding::at(path, format!("profile `{name}` builds on itself")));
        }
        let Some(profile) = profiles.get(name) else {
            let known = profiles.keys().map(ProfileName::as_str);
            let mut at = path.to_vec();
            at.push("profile".into());
            return Err(Finding::at(&at, format!("there is no profile `{name}`")).hinted(nearest(name.as_str(), known)));
        };
        layers.push((Origin::Profile(name.clone()), profile));
        wanted = profile.profile.as_ref();
    }
    layers.extend(defaults.map(|defaults| (Origin::Defaults, defaults)));
    layers.reverse();
    Ok(layers)
}

/// Lays the layers over the built-in defaults, lowest first.
fn stack(layers: &[(Origin, &AgentEntry)]) -> DeclaredAgent {
    let mut spec = AgentSpec::default();
    let mut origins: BTreeMap<Field, Origin> = Field::ALL.map(|field| (field, Origin::BuiltIn)).into();
    for (origin, layer) in layers {
        let mut set = |field: Field, given: bool| {
            if given {
                origins.insert(field, origin.clone());
            }
        };
        set(Field::Driver, lay(&mut spec.driver, layer.driver.map(Some)));
        set(Field::Image, lay(&mut spec.image, layer.image.clone()));
        set(Field::Cpus, lay(&mut spec.cpus, layer.cpus));
        set(Field::Memory, lay(&mut spec.memory, layer.memory));
        set(Field::Disk, lay(&mut spec.disk, layer.disk));
        set(Field::Power, lay(&mut spec.power, layer.power));
        set(Field::Restart, lay(&mut spec.restart, layer.restart));
        set(Field::Reconcile, lay(&mut spec.reconcile, layer.reconcile));
        set(Field::Protect, lay(&mut spec.protect, layer.protect));
        set(Field::Labels, merge(&mut spec.labels, &layer.labels, Clone::clone));
        set(Field::Env, merge(&mut spec.env, &layer.env, Clone::clone));
        set(Field::Tasks, merge(&mut spec.tasks, &layer.tasks, |TaskEntry(task)| task.clone()));
        set(Field::Slots, lay(&mut spec.slots, layer.slots));
        set(Field::Ports, merge(&mut spec.ports.0, &layer.ports.0, |port| *port));
        set(Field::DependsOn, lay(&mut spec.depends_on, layer.depends_on.clone()));
        set(Field::Services, merge(&mut spec.services, &layer.services, Clone::clone));
        set(Field::Files, merge(&mut spec.files, &layer.files, Clone::clone));
        set(Field::Packages, unite(&mut spec.packages, &layer.packages));
        set(Field::Networks, unite(&mut spec.networks, &layer.networks));
        set(Field::User, lay(&mut spec.user, layer.user.clone().map(Some)));
        set(Field::Sudo, lay(&mut spec.sudo, layer.sudo));
        set(Field::CloudInit, spec.cloud_init.lay(&layer.cloud_init));
        set(Field::Secrets, merge(&mut spec.secrets, &layer.secrets, Clone::clone));
        set(Field::Mounts, merge(&mut spec.mounts, &layer.mounts, Clone::clone));
        set(Field::Idle, lay(&mut spec.idle, layer.idle.map(Some)));
        set(Field::Ttl, lay(&mut spec.ttl, layer.ttl.map(Some)));
        set(Field::Snapshots, spec.snapshots.lay(&layer.snapshots));
        set(Field::Warm, lay(&mut spec.warm, layer.warm));
        set(Field::Drift, merge(&mut spec.drift, &layer.drift, |policy| *policy));
    }
    DeclaredAgent { spec, origins, clone_of: None }
}

fn lay<T>(field: &mut T, value: Option<T>) -> bool {
    value.map(|value| *field = value).is_some()
}

fn merge<K: Ord + Clone, V, W>(into: &mut BTreeMap<K, W>, from: &BTreeMap<K, V>, whole: impl Fn(&V) -> W) -> bool {
    into.extend(from.iter().map(|(key, value)| (key.clone(), whole(value))));
    !from.is_empty()
}

fn unite<T: Ord + Clone>(into: &mut BTreeSet<T>, from: &BTreeSet<T>) -> bool {
    into.extend(from.iter().cloned());
    !from.is_empty()
}

/// Replaces the names of replica sets by the names of their members, and finds names of nobody.
fn name_dependencies(
    agents: &mut BTreeMap<AgentName, Arc<DeclaredAgent>>,
    sets: &BTreeMap<AgentName, Vec<AgentName>>,
    findings: &mut Vec<Finding>,
) {
    let known: BTreeSet<AgentName> = agents.keys().cloned().collect();
    let mut missing = BTreeSet::new();
    for (declared, members) in sets {
        for member in members {
            let Some(agent) = agents.get_mut(member).filter(|agent| !agent.spec.depends_on.0.is_empty()) else {
                continue;
            };
            let mut named = BTreeMap::new();
            for (wanted, until) in &agent.spec.depends_on.0 {
                if let Some(set) = sets.get(wanted) {
                    named.extend(set.iter().map(|member| (member.clone(), *until)));
                } else if known.contains(wanted) {
                    named.insert(wanted.clone(), *until);
                } else {
                    missing.insert((declared.clone(), wanted.clone()));
                }
            }
            Arc::make_mut(agent).spec.depends_on = DependsOn(named);
        }
    }
    for (declared, wanted) in missing.into_iter().take(FINDINGS_MAX) {
        let path = ["agents".to_owned(), declared.to_string(), "dependsOn".to_owned()];
        let hint = nearest(wanted.as_str(), known.iter().chain(sets.keys()).map(AgentName::as_str));
        findings.push(Finding::at(&path, format!("there is no agent `{wanted}` to depend on")).hinted(hint));
    }
}

/// Cycles of dependencies: none of their agents could ever start. Of those that share an agent one is told.
fn find_cycles(
    agents: &BTreeMap<AgentName, Arc<DeclaredAgent>>,
    sets: &BTreeMap<AgentName, Vec<AgentName>>,
) -> Vec<Finding> {
    let mut settled: BTreeSet<&AgentName> = BTreeSet::new();
    let mut findings = Vec::new();
    let enter = |name| agents.get(name).map(|agent| agent.spec.depends_on.0.keys().collect()).unwrap_or_default();
    for start in agents.keys() {
        let mut trail: Vec<(&AgentName, Vec<&AgentName>)> = Vec::new();
        if !settled.contains(start) {
            trail.push((start, enter(start)));
        }
        while let Some((name, rest)) = trail.last_mut() {
            match rest.pop() {
                Some(next) if settled.contains(next) => {}
                Some(next) => {
                    if let Some(from) = trail.iter().position(|(name, _)| *name == next) {
                        let round: Vec<&str> = trail[from..].iter().map(|(name, _)| name.as_str()).collect();
                        let message = match round.as_slice() {
                            [_] => format!("`{next}` waits for itself"),
                            _ => format!("agents wait for each other: {} -> {next}", round.join(" -> ")),
                        };
                        // A replica has no place of its own in the file.
                        let declared = sets.iter().find(|(_, members)| members.contains(next));
                        let declared = declared.map_or(next, |(declared, _)| declared);
                        let path = ["agents".to_owned(), declared.to_string(), "dependsOn".to_owned()];
                        findings.push(Finding::at(&path, message));
                        settled.extend(trail.drain(..).map(|(name, _)| name));
                    } else {
                        trail.push((next, enter(next)));
                    }
                }
                None => {
                    settled.insert(name);
                    trail.pop();
                }
            }
            if findings.len() >= FINDINGS_MAX {
                return findings;
            }
        }
    }
    findings
}

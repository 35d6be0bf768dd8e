//! The fleet file as it is written. Each key carries what changing it costs as `x-cost`: `live`
//! (nothing stops), `stop` (the machine stops and starts), `birth` (only a new machine has it, so
//! a change is shown and waits for an approval to recreate) or `restart of the controller`.
//!
//! Each key that may be left out carries its default, in the type that it is written in: editors offer
//! it. `null` stands for what no value says, and then the description says it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Planned;
use super::keys::{DependsOn, DriftField, DriftPolicy, FileContent, Idle, Mount, SecretSource, ServiceEntry, Window};
use super::messages::Messages;
use super::ports::Ports;
use super::provision::{CloudInit, Network, Package, UserName};
use super::task::TaskEntry;
use super::webhook::Webhook;
use crate::names::{AgentName, FleetName, ProfileName, ServiceName, TaskName};
use crate::net::{HostPort, Listen};
use crate::snapshot::SnapshotPlan;
use crate::units::{ByteSize, Span};

/// A fleet: the agents that one controller looks after.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FleetFile {
    /// The fleet's name. Instances are named after their agent in fleet `default`, else
    /// `<fleet>-<agent>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"lab", extend("default" = "default", "x-cost" = "birth"))]
    pub name: Option<FleetName>,

    /// The agents that should exist, by name. An agent with nothing of its own to say is written
    /// `builder: {}`, and a fleet of none `agents: {}`.
    #[schemars(extend("x-cost" = "live", "examples" = [{"builder": {"cpus": 4, "memory": "8G"}}]))]
    pub agents: BTreeMap<AgentName, AgentEntry>,

    /// What an agent has where neither it nor its profile says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"driver": "local"}], "default" = {}, "x-cost" = "as the key inside"))]
    pub defaults: Option<AgentEntry>,

    /// Named templates; an agent takes one with `profile`, and a profile may build on another.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "examples" = [{"small": {"cpus": 1, "memory": "1G"}}],
        "default" = {},
        "x-cost" = "as the key inside"
    ))]
    pub profiles: BTreeMap<ProfileName, AgentEntry>,

    /// How much may happen at a time.
    #[serde(default)]
    #[schemars(extend("x-cost" = "live", "examples" = [{"parallelism": 4}]))]
    pub limits: Limits,

    /// What happens to an instance when its agent leaves the file.
    #[serde(default)]
    #[schemars(example = &"auto", extend("x-cost" = "live"))]
    pub prune: Prune,

    /// Where the controller listens.
    #[serde(default)]
    #[schemars(extend("x-cost" = "restart of the controller", "examples" = [{"listen": "auto"}]))]
    pub hub: HubSettings,

    /// When the controller may disturb what runs to remove drift: stop a machine, restart it to resize
    /// it, replace it. Without this key at any time. What a person asks for waits for no window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "default" = [],
        "x-cost" = "live",
        "examples" = [[{"cron": "0 22 * * * Europe/Berlin", "lasts": "8h"}]]
    ))]
    pub windows: Vec<Window>,

    /// What agents may say to each other. Without this key nothing; they and the host may write to each
    /// other.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend(
        "default" = {},
        "x-cost" = "live",
        "examples" = [{"allow": [{"from": "builder", "to": {"labels": "team=test"}}]}]
    ))]
    pub messages: Messages,

    /// Addresses that are told of events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "default" = [],
        "x-cost" = "live",
        "examples" = [[{"url": "https://example.com/hooks/fleet", "secret": {"env": "HOOK_SECRET"}}]]
    ))]
    pub webhooks: Vec<Webhook>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What an agent, a profile or the defaults say of an agent. Every key may be left out; the
/// defaults named here are those that hold when no layer says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentEntry {
    /// The profile whose settings lie under these. Without this key that of `defaults`, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"small", extend("default" = null, "x-cost" = "as the key that changes"))]
    pub profile: Option<ProfileName>,

    /// How many agents like this there are, named `<name>-1`, `<name>-2` and so on. Without this
    /// key there is one, named `<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10_000), example = 3, extend("default" = null, "x-cost" = "live"))]
    pub replicas: Option<u32>,

    /// What makes the machine. `local` is a process in a folder and isolates nothing, so it is used
    /// only where it is written. Without this key: `multipass` where installed, else `qemu` where
    /// installed. Resolved once, at the agent's creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"local", extend("default" = null, "x-cost" = "birth"))]
    pub driver: Option<DriverName>,

    /// The image that the machine is made from, in the driver's own terms. `default` is the one that the
    /// driver takes by itself: `qemu` builds a small Debian out of its packages, which it also knows as `debian`, and
    /// with cloud-init in it as `debian+cloud-init`. What begins with `./` or `../` is a file, from the folder of the
    /// fleet file on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"debian", extend("default" = "default", "x-cost" = "birth"))]
    pub image: Option<String>,

    /// Virtual processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024), example = 4, extend("default" = 1, "x-cost" = "stop"))]
    pub cpus: Option<u32>,

    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"8G", extend("default" = "1G", "x-cost" = "stop"))]
    pub memory: Option<ByteSize>,

    /// Disk. It can grow; a smaller one needs a new machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"40G", extend("default" = "5G", "x-cost" = "stop to grow, birth to shrink"))]
    pub disk: Option<ByteSize>,

    /// Whether the machine should run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"stopped", extend("default" = "running", "x-cost" = "live"))]
    pub power: Option<PowerState>,

    /// Labels, to find and select agents by. Merged with those of the layers below, key by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live", "examples" = [{"team": "web"}]))]
    pub labels: BTreeMap<String, String>,

    /// Environment of everything that runs in the agent. Merged with that of the layers below, key
    /// by key. Not for secrets: these values are shown in plans.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live", "examples" = [{"RUST_LOG": "info"}]))]
    pub env: BTreeMap<String, String>,

    /// Agents that come first: this one is created and started when they are Healthy, or as far as is
    /// written here: `started` (the machine runs), `healthy`, `completed` (its tasks have succeeded). The
    /// name of an agent with `replicas` means all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = [], "x-cost" = "live", "examples" = [["database"], {"seed": "completed"}]))]
    pub depends_on: Option<DependsOn>,

    /// When a machine that went down by itself is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"on-failure", extend("default" = "always", "x-cost" = "live"))]
    pub restart: Option<RestartPolicy>,

    /// Whether the controller removes drift by itself: `auto` does, `manual` asks before each step on
    /// the machine, and `paused` looks, plans and does nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"manual", extend("default" = "auto", "x-cost" = "live"))]
    pub reconcile: Option<Reconcile>,

    /// Refuses every step that would delete this agent's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("default" = false, "x-cost" = "live"))]
    pub protect: Option<bool>,

    /// What the agent has to do, by name. Merged with the tasks of the layers below, name by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live", "examples" = [{"setup": {"exec": "make deps"}}]))]
    pub tasks: BTreeMap<TaskName, TaskEntry>,

    /// How many tasks the agent may do at a time. Those of one `key` run one after the other all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64), example = 8, extend("default" = 4, "x-cost" = "live"))]
    pub slots: Option<u32>,

    /// Programs that run for as long as the agent does, by name. Merged with the services of the layers
    /// below, name by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live", "examples" = [{"gateway": {"exec": "openclaw gateway"}}]))]
    pub services: BTreeMap<ServiceName, ServiceEntry>,

    /// Files in the agent, by path: absolute, or below the work folder. A text is the content; a map says
    /// `content` and `mode`. Merged with those of the layers below, path by path. Not for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "default" = {},
        "x-cost" = "live",
        "examples" = [{".gitconfig": {"content": "[user]\n\tname = bot\n", "mode": "0644"}}]
    ))]
    pub files: BTreeMap<String, FileContent>,

    /// Packages of the machine's distribution, by name; a version may stand behind a `=`. They are there before
    /// anything runs in the agent. To those of the layers below these are added.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(extend("default" = [], "x-cost" = "birth", "examples" = [["git", "python3-venv"]]))]
    pub packages: BTreeSet<Package>,

    /// Networks of the host that the machine is in besides its driver's own, by the names that `multipass networks`
    /// lists. To those of the layers below these are added. Only driver `multipass` has them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(extend("default" = [], "x-cost" = "birth", "examples" = [["en0"]]))]
    pub networks: BTreeSet<Network>,

    /// The user of the machine that everything in the agent runs as; made where there is none of that name.
    /// Without this key `vm-agent`. With driver `local` it is yours, and this key is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"dev", extend("default" = null, "x-cost" = "birth"))]
    pub user: Option<UserName>,

    /// Whether that user may become root in the machine, without a password. Then nothing that the machine
    /// proves of itself is worth more than what runs in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("default" = false, "x-cost" = "birth"))]
    pub sudo: Option<bool>,

    /// What the machine's cloud-init is told besides what brings the runtime: the keys of its modules. Merged
    /// with that of the layers below, key by key. Not for secrets: these values are shown in plans.
    #[serde(default, skip_serializing_if = "CloudInit::is_empty")]
    #[schemars(extend(
        "default" = {},
        "x-cost" = "birth",
        "examples" = [{"timezone": "Europe/Berlin", "runcmd": ["systemctl disable --now apt-daily.timer"]}]
    ))]
    pub cloud_init: CloudInit,

    /// Secrets, by the name of the environment variable that everything in the agent gets them in. Only
    /// where each comes from stands here. They are read when the runtime connects and when this changes,
    /// travel to it alone, and are kept in memory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live", "examples" = [{"GITHUB_TOKEN": {"env": "GITHUB_TOKEN"}}]))]
    pub secrets: BTreeMap<String, SecretSource>,

    /// Folders of the host in the agent, by the path that they have there: absolute, or below the work
    /// folder. A text is the folder on the host, to be read only; a map says `source` and `writable`.
    /// Merged with those of the layers below, path by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "default" = {},
        "x-cost" = "stop",
        "examples" = [{"src": {"source": "./src", "writable": true}}]
    ))]
    pub mounts: BTreeMap<String, Mount>,

    /// Ports that programs in the agent listen on, by name; or a list, and they are named `port-8080`.
    /// `vm-agent forward` takes a name in place of a number. Merged with those of the layers below, name by
    /// name.
    #[serde(default, skip_serializing_if = "Ports::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live", "examples" = [{"web": 8080}, [3000, 8080]]))]
    pub ports: Ports,

    /// Stops the machine when nothing has happened in it for that long. It starts again for a task or a
    /// session. Without this key never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"30m", extend("default" = null, "x-cost" = "live"))]
    pub idle: Option<Idle>,

    /// Stops the machine, and never deletes it, that long after it was made, once nothing runs in it.
    /// Without this key never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"8h", extend("default" = null, "x-cost" = "live"))]
    pub ttl: Option<Span>,

    /// Which snapshots of the machine are taken by themselves. Not every driver can. A person takes others
    /// with `vm-agent snapshot`.
    #[serde(default, skip_serializing_if = "SnapshotPlan::is_empty")]
    #[schemars(extend(
        "default" = {},
        "x-cost" = "live",
        "examples" = [{"points": ["provisioned"], "schedules": {"nightly": {"cron": "0 3 * * *", "keep": {"daily": 7}}}}]
    ))]
    pub snapshots: SnapshotPlan,

    /// Whether the machine begins as a copy of one like it that has booted and has its packages already: then it is
    /// there within seconds. It is another machine all the same, with keys, addresses and random numbers of its own.
    /// What is copied is made when it is first needed, and anew when it is a week old or what it is made of has
    /// changed. A machine that is there stays as it is whatever is written here. Not every driver can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("default" = false, "x-cost" = "live"))]
    pub warm: Option<bool>,

    /// What to do about each kind of drift: `correct` it, `warn` of it, or `ignore` it. What is not named
    /// is corrected. Merged with that of the layers below, kind by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "x-cost" = "live", "examples" = [{"memory": "warn", "image": "ignore"}]))]
    pub drift: BTreeMap<DriftField, DriftPolicy>,

    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    #[doc(hidden)]
    pub health: Planned,
}

/// What makes instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DriverName {
    /// A runtime process in a folder of its own. It isolates nothing.
    Local,
    /// Canonical's Multipass, through its command.
    Multipass,
    /// `qemu-system-*`, driven directly.
    Qemu,
    /// An Incus or LXD server or cluster.
    Incus,
}

impl DriverName {
    /// The drivers that an agent may get without naming one, first choice first. `local` isolates
    /// nothing and `incus` is a server somewhere, so those are never chosen for anybody.
    pub const USUAL: [Self; 2] = [Self::Multipass, Self::Qemu];

    /// The name as the fleet file writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Multipass => "multipass",
            Self::Qemu => "qemu",
            Self::Incus => "incus",
        }
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a machine should run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// It should run.
    #[default]
    Running,
    /// It should exist and not run.
    Stopped,
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

/// When a machine that went down by itself is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Always, whether it crashed or was shut down from inside.
    #[default]
    Always,
    /// When it crashed, not when it was shut down from inside.
    OnFailure,
    /// Never: a person starts it.
    Never,
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        })
    }
}

/// Whether the controller removes an agent's drift by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reconcile {
    /// It does.
    #[default]
    Auto,
    /// It asks before each step on the machine.
    Manual,
    /// It looks and plans, and does nothing.
    Paused,
}

impl fmt::Display for Reconcile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
            Self::Paused => "paused",
        })
    }
}

/// What happens to an instance when its agent leaves the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prune {
    /// It stays, and is shown as unexpected.
    Never,
    /// It is deleted once a person has approved that.
    #[default]
    Confirm,
    /// It is deleted.
    Auto,
}

/// A command: a text is a line for the shell, a list is a program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a command: a line for the shell, or a list of program and arguments")]
pub enum CommandLine {
    /// A line for `/bin/sh -c`.
    Shell(String),
    /// A program and its arguments, with no shell between.
    Argv(#[schemars(length(min = 1))] Vec<String>),
}

impl CommandLine {
    /// The program and its arguments, with the shell where one was asked for.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
            Self::Argv(argv) => argv.clone(),
        }
    }

    /// Whether there is nothing to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Shell(line) => line.trim().is_empty(),
            Self::Argv(argv) => argv.first().is_none_or(String::is_empty),
        }
    }
}

/// How much may happen at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Steps under way at a time in each driver's lane. A driver that bears fewer has fewer. Without
    /// this key as many as the driver bears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256), example = 4, extend("default" = null, "x-cost" = "live"))]
    pub parallelism: Option<u32>,

    /// Processors that the machines which run on this host may have together. Without this key any
    /// number: processors are shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), example = 12, extend("default" = null, "x-cost" = "live"))]
    pub cpus: Option<u32>,

    /// Memory that the machines which run on this host may have together. Without this key the host's
    /// memory less `reserve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"48G", extend("default" = null, "x-cost" = "live"))]
    pub memory: Option<ByteSize>,

    /// Disk that the machines on this host may have together, running or not. Without this key any
    /// amount: disks grow as they are written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"500G", extend("default" = null, "x-cost" = "live"))]
    pub disk: Option<ByteSize>,

    /// What of the host's memory is kept for the host itself. Without this key a tenth of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = null, "x-cost" = "live", "examples" = [{"memory": "4G"}]))]
    pub reserve: Option<Reserve>,
}

/// What is kept for the host itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reserve {
    /// Memory.
    #[schemars(example = &"4G", extend("x-cost" = "live"))]
    pub memory: ByteSize,
}

/// Where the controller listens. They are read when the controller starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HubSettings {
    /// Where runtimes connect. `auto` is loopback, and beside it each driver's own network when the
    /// driver has one: never every interface. Port 0 takes a free port and keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"127.0.0.1:0", extend("default" = "auto", "x-cost" = "restart of the controller"))]
    pub listen: Option<Listen>,

    /// The address of the hub that machines are told, where it is not the one listened on: behind NAT or a
    /// proxy. Off loopback they connect with TLS and the hub's own certificate, so what stands between
    /// passes the bytes on as they are. A machine is told at its next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"192.0.2.7:9090", extend("default" = null, "x-cost" = "restart of the controller"))]
    pub advertise: Option<HostPort>,

    /// Where the HTTP API listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"127.0.0.1:0", extend("default" = "127.0.0.1:9091", "x-cost" = "restart of the controller"))]
    pub api_listen: Option<Listen>,

    /// Where the dashboard listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"127.0.0.1:0", extend("default" = "127.0.0.1:9092", "x-cost" = "restart of the controller"))]
    pub dashboard_listen: Option<Listen>,

    /// How often a runtime reports its health. A runtime that is silent for two and a half times as
    /// long is Offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"10s", extend("default" = "30s", "x-cost" = "restart of the controller"))]
    pub heartbeat: Option<Span>,
}

//! What a test asks the double to do wrong, and how long things take. Read from `knobs.json` at each call.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything that can be asked. Without a file: the well-behaved 1.16.3, which takes no time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Knobs {
    /// Set by the tests' handle: faults are counted anew when it changes.
    pub generation: u64,
    /// Which release is spoken.
    pub version: Version,
    /// The version that the daemon says, where it is another than the client's.
    pub daemon_version: Option<String>,
    /// Whether the daemon lets this user in.
    pub access: Access,
    /// There is no daemon. What runs goes on running; see also `Double::stop_daemon`.
    pub daemon_down: bool,
    /// The daemon ends as by SIGKILL when a command reaches a phase.
    pub kill_daemon: Option<Kill>,
    /// Installed as a snap: files outside of the user's home can't be read.
    pub snap: bool,
    /// How long things take besides what they do, in milliseconds. Under the name of a command the daemon is busy
    /// with it for so long, and others wait; so it is with `launch.configure`. In other phases whoever is in one waits
    /// alone: `launch.download`, `launch.verify`, `launch.prepare`, `launch.boot`, `launch.initialization`,
    /// `start.boot`, `restart.boot`, `exec.connect` and `transfer.connect`. `guest.boot` is how long a machine takes
    /// to boot, `cloud-init` how long cloud-init does in it, and `set.restart` how long a restarting daemon is away.
    pub latency: BTreeMap<String, u64>,
    /// The limits of the daemon's waits, in milliseconds, where they are not the real ones: `ssh`, `cloud-init`
    /// and `shutdown` (300 s each), `address` (120 s).
    pub limits: BTreeMap<String, u64>,
    /// What goes wrong, in order: the first that fits a call and is not used up is taken.
    pub faults: Vec<Fault>,
    /// Instances whose SSH never answers after a start: the wait runs into its limit, and they are Unknown.
    pub deaf: Vec<String>,
    /// Instances that lost their lease: a `list` with addresses fails, and they become Unknown.
    pub lost_lease: Vec<String>,
    /// Instances that the daemon has lost sight of: it says that they do not exist. They go on running.
    pub vanished: Vec<String>,
    /// Instances that ignore the power button.
    pub ignores_power_button: Vec<String>,
    /// Packages that can't be installed.
    pub missing_packages: Vec<String>,
    /// What is printed to stderr before anything else, at every call.
    pub banner: Option<String>,
    /// What is done to JSON before it is printed.
    pub json: Json,
    /// Dates in another language, unless `LC_ALL` is `C`.
    pub localised: bool,
    /// The manifests of images can't be reached: no alias is known.
    pub images_unreachable: bool,
    /// Commands of this backend that are not implemented: `snapshots`, `clone`, `suspend`, `networks`.
    pub unsupported: Vec<String>,
}

impl Knobs {
    /// How long a command or phase takes.
    #[must_use]
    pub fn latency(&self, what: &str) -> Duration {
        Duration::from_millis(self.latency.get(what).copied().unwrap_or_default())
    }

    /// The limit of one of the daemon's waits.
    #[must_use]
    pub fn limit(&self, what: &str) -> Duration {
        let real = if what == "address" { 120_000 } else { 300_000 };
        Duration::from_millis(self.limits.get(what).copied().unwrap_or(real))
    }

    /// Whether the backend has a feature.
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        let since = match feature {
            "snapshots" => Version::V1_13,
            "clone" => Version::V1_16,
            _ => Version::V1_13,
        };
        self.version >= since && !self.unsupported.iter().any(|unsupported| unsupported == feature)
    }
}

/// A release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    /// 1.13.1: no `stop --force`, no `clone`.
    #[serde(rename = "1.13.1")]
    V1_13,
    /// 1.14.1: no `clone`.
    #[serde(rename = "1.14.1")]
    V1_14,
    /// 1.16.3.
    #[default]
    #[serde(rename = "1.16.3")]
    V1_16,
    /// The development head towards 1.17: other JSON, other minimums, exit code 255.
    #[serde(rename = "main")]
    Main,
}

impl Version {
    /// As the program says it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::V1_13 => "1.13.1",
            Self::V1_14 => "1.14.1",
            Self::V1_16 => "1.16.3",
            Self::Main => "1.17.0-dev.1+g0000000",
        }
    }
}

/// Whether the daemon lets somebody in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// It does.
    #[default]
    Granted,
    /// The socket can't be opened.
    Denied,
    /// The client's certificate is not known.
    NotAuthenticated,
}

/// When the daemon ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kill {
    /// The phase, such as `launch.prepare`.
    pub phase: String,
    /// When there is a new one, in milliseconds; without it never.
    #[serde(default)]
    pub back_after: Option<u64>,
}

/// What is done to JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Json {
    /// Nothing.
    #[default]
    Whole,
    /// The second half is missing.
    Truncated,
    /// A line stands before it.
    Preceded,
    /// It is something else.
    Garbage,
}

/// A call that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// The command; `*` for any.
    pub command: String,
    /// Only calls one of whose arguments contains this.
    #[serde(default)]
    pub containing: Option<String>,
    /// How many calls.
    #[serde(default = "once")]
    pub times: u32,
    /// How many calls pass before the first.
    #[serde(default)]
    pub after: u32,
    /// What happens.
    pub what: Wrong,
}

fn once() -> u32 {
    1
}

/// What goes wrong in a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Wrong {
    /// It does nothing, prints these and exits so.
    Fails {
        /// The exit code.
        code: u8,
        /// What goes to stderr, as it stands.
        #[serde(default)]
        stderr: String,
        /// What goes to stdout, as it stands.
        #[serde(default)]
        stdout: String,
    },
    /// It does what it should, and then prints and exits as if it had not.
    FailsThoughDone {
        /// The exit code.
        code: u8,
        /// What goes to stderr, as it stands.
        #[serde(default)]
        stderr: String,
    },
    /// It does nothing and never ends.
    Hangs,
    /// It does what it should, and never ends.
    HangsThoughDone,
    /// The client ends when it is to show a message with this in it, such as `Preparing image`. The daemon does what
    /// it should.
    Leaves {
        /// A part of the message.
        at: String,
        /// The exit code; without one it is killed.
        code: Option<u8>,
        /// What goes to stderr, as it stands.
        #[serde(default)]
        stderr: String,
    },
    /// It does nothing until this time is over, then what it should.
    Late {
        /// Milliseconds.
        by: u64,
    },
}

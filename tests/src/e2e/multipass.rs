//! Where fleets of driver `multipass` live: on the double of its command, or where `VM_AGENT_TEST_MULTIPASS` is set on
//! the real one of this host, with the image of `VM_AGENT_TEST_MULTIPASS_IMAGE`.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use vm_agent_drivers::multipass::Program;
use vm_agent_multipass_double::Double;

use super::fleet::{Fleet, built, profile_dir};

/// Asks for the real command.
const REAL: &str = "VM_AGENT_TEST_MULTIPASS";
/// What its machines are made from, where it is not the default.
const IMAGE: &str = "VM_AGENT_TEST_MULTIPASS_IMAGE";
/// Set where machines can be made, so that tests of them can't leave themselves out there.
const MUST_RUN: &str = "VM_AGENT_TEST_MACHINES";
/// The least that a real machine does with.
const SIZES: &str = "cpus: 1, memory: 512M, disk: 3G";
/// How long anything may take on the double, of which a test may have many machines.
const DOUBLE_LIMIT: Duration = Duration::from_secs(600);
/// The same of real machines: they may be emulated, and take more than a minute each to come up.
const REAL_LIMIT: Duration = Duration::from_secs(1800);
/// The bridge of Multipass. Where this host has it, machines are told to find the hub there; those of the double, which
/// share this host's network, find it there too.
const BRIDGE: &str = "/sys/class/net/mpqemubr0";
/// Asks for all instances.
const LIST: [&str; 4] = ["list", "--no-ipv4", "--format", "json"];

/// A Multipass with nothing of ours in it. Whatever happens to the test, nothing of ours stays in it either.
#[derive(Debug)]
pub struct Ground {
    fleet: String,
    double: Option<Mutex<Double>>,
    program: PathBuf,
    variables: Vec<(OsString, OsString)>,
    root: TempDir,
}

impl Ground {
    /// The ground for the fleet of this name, which no other test has; nothing where no machines can be made.
    #[must_use]
    pub fn new(fleet: &str) -> Option<Self> {
        if std::env::var_os(REAL).is_some() { Self::of_real(fleet) } else { Self::of_double(fleet) }
    }

    /// The same, on the double in any case.
    ///
    /// # Panics
    /// When the double's folder can't be made.
    #[must_use]
    #[allow(clippy::print_stderr, reason = "a test says why it leaves itself out")]
    pub fn of_double(fleet: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("left out: only root can make machines with several users, as agents need them");
            return None;
        }
        let (runtime, root) = (runtime()?, tempfile::tempdir().expect("a temporary folder"));
        let double = Double::new(&root.path().join("double"), &built("multipass_double", "vm-agent-tests"));
        let program = double.program().to_owned();
        let mut variables = variables(&program, &runtime);
        variables.extend(double.environment().into_iter().map(|(name, value)| (name.into(), value)));
        Some(Self { fleet: fleet.to_owned(), double: Some(Mutex::new(double)), program, variables, root })
    }

    fn of_real(fleet: &str) -> Option<Self> {
        let program = Program::find().unwrap_or_else(|| panic!("{REAL} is set, so there is a command `multipass`"));
        let (program, runtime) = (program.path().to_owned(), runtime()?);
        let home = PathBuf::from(std::env::var_os("HOME").expect("a user has a home"));
        let mut variables = variables(&program, &runtime);
        // Its daemon knows its command by a certificate that lies there.
        let usual = [("XDG_DATA_HOME", ".local/share"), ("XDG_CONFIG_HOME", ".config")];
        let own = usual.map(|(name, path)| (name, std::env::var_os(name).unwrap_or_else(|| home.join(path).into())));
        variables.extend(own.map(|(name, value)| (name.into(), value)));
        variables.extend(std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MULTIPASS_")));
        // Where also the command of a snap may look.
        let root = tempfile::tempdir_in(home).expect("a temporary folder");
        Some(Self { fleet: fleet.to_owned(), double: None, program, variables, root })
    }

    /// The same, where the program sees this variable too.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The fleet with these agents, and what else its file is to say. Nothing runs yet.
    #[must_use]
    pub fn fleet(&self, file: &str) -> Fleet {
        let listen = if self.is_real() || Path::new(BRIDGE).exists() { "0.0.0.0" } else { "127.0.0.1" };
        let image = if self.is_real() { std::env::var(IMAGE).ok() } else { None };
        let image = image.map(|image| format!(", image: {image:?}")).unwrap_or_default();
        let head = format!(
            r#"name: {}
hub: {{listen: "{listen}:0", apiListen: "127.0.0.1:0", dashboardListen: "127.0.0.1:0", heartbeat: 10s}}
defaults: {{driver: multipass, {SIZES}{image}}}
"#,
            self.fleet
        );
        let limit = if self.is_real() { REAL_LIMIT } else { DOUBLE_LIMIT };
        Fleet::with(file, &head, limit).with_variables(self.variables.clone())
    }

    /// Whether it is the real one.
    #[must_use]
    pub const fn is_real(&self) -> bool {
        self.double.is_none()
    }

    /// The double.
    ///
    /// # Panics
    /// On the real one.
    pub fn double(&self) -> MutexGuard<'_, Double> {
        let double = self.double.as_ref().expect("only the double can be asked for this");
        double.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the instance of an agent is called.
    #[must_use]
    pub fn instance(&self, agent: &str) -> String {
        format!("{}-{agent}", self.fleet)
    }

    /// Calls the command as somebody else would, and gives what it says.
    ///
    /// # Panics
    /// When it fails.
    pub fn by_hand(&self, arguments: &[&str]) -> String {
        let said = self.call(arguments);
        let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(said.status.success(), "multipass {arguments:?}: {out}{err}");
        out.into_owned()
    }

    /// Makes an instance as somebody else would.
    pub fn launch(&self, instance: &str) {
        let limit = REAL_LIMIT.as_secs().to_string();
        let mut arguments = vec!["launch", "--name", instance, "--memory", "512M", "--disk", "3G", "--timeout", &limit];
        let image = std::env::var(IMAGE).unwrap_or_default();
        let image = if image.starts_with('/') { format!("file://{image}") } else { image };
        if self.is_real() && !image.is_empty() {
            arguments.insert(1, &image);
        }
        self.by_hand(&arguments);
    }

    /// The state of every instance, in Multipass's words.
    ///
    /// # Panics
    /// When they can't be listed.
    #[must_use]
    pub fn states(&self) -> Vec<(String, String)> {
        states_in(self.by_hand(&LIST).as_bytes()).expect("a list is JSON")
    }

    /// Ends the machine of an agent at once, without anybody being told.
    pub fn crash(&self, agent: &str) {
        let instance = self.instance(agent);
        match &self.double {
            Some(_) => self.double().crash(&instance),
            None => drop(self.by_hand(&["stop", "--force", &instance])),
        }
    }

    /// A folder that can be mounted in machines, and that everybody may write to.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        let folder = tempfile::tempdir_in(&self.root).expect("a temporary folder").keep();
        std::fs::set_permissions(self.root.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).expect("it is ours");
        folder
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env("LC_ALL", "C").env("TZ", "UTC").output().expect("multipass runs")
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // The double takes its own with it.
        if !self.is_real() {
            return;
        }
        let (ours, said) = (self.instance(""), self.call(&LIST));
        // Nothing can be taken away where the daemon is down, which a test that fails is to say, and not its end.
        let all = states_in(&said.stdout).unwrap_or_default();
        for (name, _) in all.iter().filter(|(name, _)| name.starts_with(&ours)) {
            self.call(&["delete", "--purge", name]);
        }
    }
}

/// The state of every instance in a list, in Multipass's words.
fn states_in(list: &[u8]) -> Option<Vec<(String, String)>> {
    let list: Value = serde_json::from_slice(list).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    list["list"].as_array()?.iter().map(|it| Some((text(&it["name"])?, text(&it["state"])?))).collect()
}

/// What a program needs in its environment to find both.
fn variables(program: &Path, runtime: &Path) -> Vec<(OsString, OsString)> {
    vec![("VM_AGENT_MULTIPASS".into(), program.into()), ("VM_AGENT_RUNTIME".into(), runtime.into())]
}

/// The runtime for machines.
#[allow(clippy::print_stderr, reason = "a test says why it leaves itself out")]
fn runtime() -> Option<PathBuf> {
    let target = format!("dist/{}-unknown-linux-gnu/vm-agent-runtime", std::env::consts::ARCH);
    let usual = || profile_dir().with_file_name(target);
    let runtime = std::env::var_os("VM_AGENT_RUNTIME").map_or_else(usual, PathBuf::from);
    if runtime.is_file() {
        return Some(runtime);
    }
    let missing = "the runtime for machines is missing; build it with `cargo xtask dist`";
    assert!(std::env::var_os(MUST_RUN).is_none(), "{missing}");
    eprintln!("left out: {missing}");
    None
}

//! A fleet of a test's own: state folder, fleet file, and the program run on them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use vm_agent_schemas::api::{AgentView, Approval, ControllerStatus, Document, FileState, FileStatus, List};
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::plan::{Health, Sync};
use vm_agent_store::is_locked;

use super::follow::Follower;
use super::process::{self, Process};

/// How long anything may take before it counts as never: far longer than it takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The first line of a test's fleet file: free ports, and a heartbeat that makes silence short.
pub const HUB: &str = r#"hub: {listen: "127.0.0.1:0", apiListen: "127.0.0.1:0", dashboardListen: "127.0.0.1:0", heartbeat: 1s}
"#;

/// The same for emulated machines, several of which come up at a time.
const MACHINES_LIMIT: Duration = Duration::from_secs(600);

/// The first line where there are machines: an emulated one may be silent for some seconds.
const MACHINES_HUB: &str = r#"hub: {listen: "127.0.0.1:0", apiListen: "127.0.0.1:0", dashboardListen: "127.0.0.1:0", heartbeat: 10s}
"#;

/// How long `up` waits by itself.
const UP_LIMIT: Duration = Duration::from_secs(600);

/// Most events that one answer has.
const PAGE: &str = "1000";

/// Variables of this machine that the program sees: it has to find the shell and its tools.
const INHERITED: &[&str] = &["PATH", "LLVM_PROFILE_FILE"];

/// A fleet in a folder of its own. Dropped, it takes every process of its with it.
#[derive(Debug)]
pub struct Fleet {
    dir: TempDir,
    program: PathBuf,
    head: String,
    limit: Duration,
    variables: Vec<(OsString, OsString)>,
}

/// What a command of the program came to.
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to stdout, as it was.
    pub bytes: Vec<u8>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Fleet {
    /// A fleet with this file, behind [`HUB`]. Nothing runs yet.
    #[must_use]
    pub fn new(file: &str) -> Self {
        Self::with(file, HUB, LIMIT)
    }

    /// The same with real machines: their image is kept in this folder between tests, and they get this runtime.
    #[must_use]
    pub fn of_machines(file: &str, images: &Path, runtime: &Path) -> Self {
        let fleet = Self::with(file, MACHINES_HUB, MACHINES_LIMIT);
        let (state, runtimes) = (fleet.state_dir(), fleet.state_dir().join("runtimes"));
        std::fs::create_dir_all(images).expect("a folder for images is made");
        std::fs::DirBuilder::new().mode(0o700).create(&state).expect("a state folder is made");
        std::fs::create_dir(&runtimes).expect("a folder is made");
        symlink(runtime, runtimes.join("vm-agent-runtime")).expect("a link is made");
        symlink(images, state.join("images")).expect("a link is made");
        fleet
    }

    /// A fleet whose file begins with `head`, and in which nothing takes longer than `limit`.
    pub(super) fn with(file: &str, head: &str, limit: Duration) -> Self {
        let dir = tempfile::Builder::new().prefix("vm-agent-").tempdir().expect("a temporary folder");
        let fleet = Self { dir, program: program(), head: head.to_owned(), limit, variables: Vec::new() };
        fleet.write(file);
        fleet
    }

    /// The same, where the program sees these variables too.
    pub(super) fn with_variables(mut self, variables: Vec<(OsString, OsString)>) -> Self {
        self.variables = variables;
        self
    }

    /// Replaces the fleet file.
    pub fn write(&self, file: &str) {
        std::fs::write(self.file(), format!("{}{file}", self.head)).expect("the fleet file is written");
    }

    /// Saves the fleet file as editors do that take care: whole under another name, and then in its place.
    pub fn save(&self, file: &str) {
        replace(&self.file(), &format!("{}{file}", self.head));
    }

    /// The fleet file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("fleet.yaml")
    }

    /// The folder of the fleet: that of the fleet file, and home of everything that runs.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The state folder.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The folder of an instance.
    #[must_use]
    pub fn instance(&self, name: &str) -> PathBuf {
        self.state_dir().join("instances").join(name)
    }

    /// The program with these arguments, in the fleet's folder, without this machine's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_clear()
            .envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env("HOME", self.dir.path())
            .env("VM_AGENT_STATE_DIR", self.state_dir())
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).stdin(Stdio::null()).output().expect("vm-agent runs").into()
    }

    /// The same, with input.
    pub fn run_with(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vm-agent runs");
        let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
        std::thread::scope(|scope| {
            // A program that has ended reads no more, and what it came to shows in the rest.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output().expect("vm-agent ends").into()
        })
    }

    /// Begins to run the program, and does not wait. What it says is for the report of a failure.
    pub fn begin(&self, arguments: &[&str]) -> Child {
        let told = File::options().create(true).append(true).open(self.told()).expect("a file is opened");
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(told).spawn().expect("vm-agent runs")
    }

    fn told(&self) -> PathBuf {
        self.dir.path().join("told")
    }

    /// Runs the program, which has to succeed, and gives what it wrote to stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "vm-agent {arguments:?}: {ran:?}\n{}", self.report());
        ran.stdout
    }

    /// Runs the program with `-o json`, and reads the document.
    pub fn document<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        let text = self.ok(&[arguments, &["-o", "json"]].concat());
        let document = serde_json::from_str::<Document<T>>(&text);
        document.unwrap_or_else(|error| panic!("{arguments:?} gives another document ({error}): {text}")).content
    }

    /// All agents, by name.
    pub fn agents(&self) -> BTreeMap<String, AgentView> {
        let list: List<AgentView> = self.document(&["list"]);
        list.items.into_iter().map(|agent| (agent.name.to_string(), agent)).collect()
    }

    /// One agent.
    pub fn agent(&self, name: &str) -> AgentView {
        self.document(&["status", name])
    }

    /// The controller.
    pub fn status(&self) -> ControllerStatus {
        self.document(&["status"])
    }

    /// What waits for a person's yes.
    pub fn approvals(&self) -> Vec<Approval> {
        self.document::<List<Approval>>(&["approvals"]).items
    }

    /// Runs a line for the shell in an agent, which has to succeed, and gives what it wrote to stdout.
    pub fn exec(&self, agent: &str, line: &str) -> String {
        self.ok(&["exec", agent, "--", line])
    }

    /// Events after the one with this number.
    pub fn events_since(&self, seq: u64) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let since = events.last().map_or(seq, |event| event.seq).to_string();
            let page = self.document::<List<Event>>(&["events", "--since", &since, "--limit", PAGE]).items;
            if page.is_empty() {
                return events;
            }
            events.extend(page);
        }
    }

    /// The number of the latest event.
    pub fn last_event(&self) -> u64 {
        self.document::<List<Event>>(&["events", "--limit", "1"]).items.last().map_or(0, |event| event.seq)
    }

    /// Brings the fleet up, and waits until it is as its file says.
    pub fn up(&self) -> String {
        // Whoever waits longer than the program does by itself says so.
        let limit = format!("{}s", self.limit.max(UP_LIMIT).as_secs());
        self.ok(&["up", "--detach", "--timeout", &limit])
    }

    /// Starts a controller as service managers do, and waits until it answers. It applies nothing.
    pub fn begin_controller(&self, flags: &[&str]) {
        let free = "127.0.0.1:0";
        let ports = ["--hub-listen", free, "--api-listen", free, "--dashboard-listen", free, "--heartbeat", "1s"];
        let mut child = self.begin(&[&["controller"], &ports[..], flags].concat());
        // It ends with the fleet, and whoever waits for it leaves no zombie.
        std::thread::spawn(move || child.wait());
        self.wait_for("the controller", || (self.run(&["status"]).code == 0).then_some(()));
    }

    /// Every living process of the fleet.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        process::of(self.dir.path())
    }

    /// The controllers of the fleet: one, or none.
    #[must_use]
    pub fn controllers(&self) -> Vec<Process> {
        self.processes().into_iter().filter(Process::is_controller).collect()
    }

    /// The runtime of each agent. That one agent has two is never right.
    pub fn runtimes(&self) -> BTreeMap<String, Process> {
        let mut runtimes = BTreeMap::new();
        for process in self.processes() {
            let Some(name) = process.runtime_of().map(str::to_owned) else { continue };
            if let Some(other) = runtimes.insert(name, process.clone()) {
                panic!("two runtimes of one agent: {other:?} and {process:?}");
            }
        }
        runtimes
    }

    /// Kills the controller, and waits until it is gone.
    pub fn kill_controller(&self) {
        let controllers = self.controllers();
        assert_eq!(controllers.len(), 1, "{controllers:?}");
        controllers[0].send(Signal::KILL);
        self.wait_for("the end of the controller", || self.is_free().then_some(()));
    }

    /// Whether nothing of a controller is left: no process, no lock, nobody behind the socket. A process
    /// that was killed lets go of its memory, by which it is found, before it lets go of its files.
    #[must_use]
    pub fn is_free(&self) -> bool {
        let state_dir = self.state_dir();
        self.controllers().is_empty()
            && !is_locked(&state_dir)
            && UnixStream::connect(state_dir.join("api.sock")).is_err()
    }

    /// Looks again at each event until there is what is looked for; never, when it takes longer than
    /// [`LIMIT`] (with machines longer).
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        let mut follower = None;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(began.elapsed() < self.limit, "waited in vain for {what}\n{}", self.report());
            let command = || self.command(&["events", "--follow", "--limit", "1"]);
            match &mut follower {
                // What happened between the look and this is seen by looking once more.
                None => follower = Some(Follower::new(command)),
                Some(follower) => follower.stirred(),
            }
        }
    }

    /// Waits for an agent to be so.
    pub fn wait_for_agent(&self, name: &str, what: &str, is: impl Fn(&AgentView) -> bool) -> AgentView {
        self.wait_for(&format!("{name} to be {what}"), || self.agents().remove(name).filter(|agent| is(agent)))
    }

    /// Waits for an event after the one with this number.
    pub fn wait_for_event(&self, since: u64, kind: EventKind, agent: Option<&str>) -> Event {
        let meant = |event: &Event| event.kind == kind && event.agent.as_ref().map(|agent| agent.as_str()) == agent;
        self.wait_for(&format!("{kind} of {agent:?}"), || self.events_since(since).into_iter().find(&meant))
    }

    /// Waits for the fleet file on the disk to stand so to the one in force.
    pub fn wait_for_file(&self, state: FileState) -> FileStatus {
        let look = || Some(self.status().file).filter(|file| file.state == state);
        self.wait_for(&format!("the file to be {state:?}"), look)
    }

    /// Waits until every agent is as it should be.
    pub fn wait_until_well(&self) {
        self.wait_for("all to be well", || self.agents().values().all(is_well).then_some(()));
    }

    /// The files of the fleet, its own state included, in which that text stands.
    #[must_use]
    pub fn holders(&self, text: &str) -> Vec<PathBuf> {
        let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        files_below(self.path()).into_iter().filter(|file| std::fs::read(file).is_ok_and(|it| holds(&it))).collect()
    }

    /// The folder of a machine.
    #[must_use]
    pub fn machine(&self, name: &str) -> PathBuf {
        self.state_dir().join("machines").join(name)
    }

    /// Waits until no process of the fleet lives.
    pub fn wait_until_quiet(&self) {
        self.wait_for("the end of all processes", || self.processes().is_empty().then_some(()));
    }

    /// Takes the fleet down, which leaves no process.
    pub fn down(&self) {
        self.ok(&["down"]);
        // The controller lets go of its folder in the last moment of its life.
        self.wait_until_quiet();
    }

    /// Deletes the fleet, which leaves no process and no instance.
    pub fn finish(self) {
        self.ok(&["down", "--destroy", "--yes"]);
        self.wait_until_quiet();
        let left: Vec<_> = std::fs::read_dir(self.state_dir().join("instances"))
            .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// What a person needs to see who asks why a test failed.
    #[must_use]
    pub fn report(&self) -> String {
        let mut report = String::new();
        for arguments in [&["list", "-o", "wide"][..], &["status"], &["events", "--limit", "40"]] {
            let ran = self.run(arguments);
            let _ = writeln!(report, "--- vm-agent {arguments:?}: {}\n{}{}", ran.code, ran.stdout, ran.stderr);
        }
        let _ = writeln!(report, "--- processes\n{:#?}", self.processes());
        for file in [self.told(), self.state_dir().join("controller.log")] {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            let _ = writeln!(report, "--- {}\n{}", file.display(), last.join("\n"));
        }
        report
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // The controller first, or it would bring back what is killed. A process may have started
        // another just before it was killed, so look until there is none.
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                return;
            }
            let controllers = processes.iter().filter(|process| process.is_controller());
            let others = processes.iter().filter(|process| !process.is_controller());
            controllers.chain(others).for_each(|process| process.send(Signal::KILL));
        }
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }
}

/// Puts a file with this text in the place of what is there.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("a file is written");
    std::fs::rename(new, path).expect("a file takes the place of another");
}

/// Every file below a folder. Links are not followed.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    // What is deleted meanwhile holds nothing.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(files_below(&entry.path())),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

/// Whether an agent is as it should be.
fn is_well(agent: &AgentView) -> bool {
    let health = match agent.power {
        Some(PowerState::Running) => Health::Healthy,
        Some(PowerState::Stopped) => Health::Stopped,
        None => return false,
    };
    agent.sync == Sync::Synced && agent.health == health
}

/// The program under test: the one that was built beside this test.
fn program() -> PathBuf {
    built("vm-agent", "vm-agent-cli")
}

/// The runtime as a program of its own, by which programs in an agent send and receive messages.
#[must_use]
pub fn runtime_program() -> PathBuf {
    built("vm-agent-runtime", "vm-agent-runtime")
}

/// A program of the workspace. Cargo builds those of this package along with its tests; one of another package is
/// built here where it is missing, and as new as the last build of it otherwise.
pub(super) fn built(name: &str, package: &str) -> PathBuf {
    let profile = profile_dir();
    let program = profile.join(name);
    if !program.is_file() {
        let profile = match profile.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--locked", "--package", package, "--bin", name, "--profile", profile]);
        let done = build.status().expect("cargo runs");
        assert!(done.success() && program.is_file(), "{} can't be built: {build:?}", program.display());
    }
    program
}

/// The folder of the profile that this test was built with.
pub(super) fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    test.ancestors().nth(2).expect("a test lies in target/<profile>/deps").to_owned()
}

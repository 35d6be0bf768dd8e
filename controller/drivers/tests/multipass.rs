//! Driver `multipass` on the double of its command, whose machines are processes of this host; and on the real one
//! where `VM_AGENT_TEST_MULTIPASS` is set, with the image of `VM_AGENT_TEST_MULTIPASS_IMAGE`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it shares with others")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use vm_agent_drivers::contract::{CHECKS, Check, Look, World, an_order};
use vm_agent_drivers::multipass::{Kit, Limits, Multipass, Program, health};
use vm_agent_drivers::provisioning::Provisioning;
use vm_agent_drivers::{Base, CreateOrder, Driver, DriverError, Mounts, Target};
use vm_agent_multipass_double::knobs::{Access, Fault, Json, Kill, Version, Wrong};
use vm_agent_multipass_double::state::Phase;
use vm_agent_multipass_double::{Double, Knobs};
use vm_agent_schemas::fleet::Provision;
use vm_agent_schemas::guest::CHALLENGE_FILE;
use vm_agent_schemas::ids::{Nonce, Secret};
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::{CloneSupport, Instance, InstanceState, Sizes, SnapshotSupport};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::Seed;

use self::support::example;

/// The runtime for machines of the double, without what only a debugger reads where there is a program to remove it:
/// it is copied into every machine.
static RUNTIME: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (built, place) = (example("guest_runtime"), tempfile::tempdir().unwrap());
    let small = place.path().join("runtime");
    let is_small =
        Command::new("strip").arg("-o").arg(&small).arg(&built).status().is_ok_and(|status| status.success());
    fs::read(if is_small { small } else { built }).unwrap()
});

/// Brings a runtime into machines.
fn kit(runtime: PathBuf) -> Kit {
    Arc::new(move |provision| Provisioning::new(runtime.clone()).archive(provision))
}

/// A double with a driver. Whatever happens to the test, nothing of it runs on.
struct Ground {
    double: Mutex<Double>,
    multipass: Multipass,
    root: TempDir,
}

impl Ground {
    fn new() -> Self {
        Self::with(Knobs::default())
    }

    fn with(knobs: Knobs) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut double = Double::new(&root.path().join("double"), &example("multipass_double"));
        double.set(knobs);
        fs::write(root.path().join("runtime"), &*RUNTIME).unwrap();
        let multipass = driver(&double, root.path(), kit(root.path().join("runtime")));
        Self { double: Mutex::new(double), multipass, root }
    }

    fn double(&self) -> MutexGuard<'_, Double> {
        self.double.lock().unwrap()
    }

    fn set(&self, knobs: Knobs) {
        self.double().set(knobs);
    }

    /// The driver as another life of the controller has it.
    fn another_life(&mut self) {
        let another = driver(&self.double(), self.root.path(), kit(self.root.path().join("runtime")));
        self.multipass = another;
    }

    /// The driver, which has no patience with machines.
    fn impatient(&self) -> Multipass {
        let second = Duration::from_secs(1);
        self.multipass.clone().with_limits(Limits { launch: second, start: second, ..Limits::default() })
    }

    async fn created(&self) -> CreateOrder {
        let order = an_order("web");
        self.multipass.create(&order).await.unwrap();
        order
    }

    async fn listed(&self) -> Vec<Instance> {
        self.multipass.list().await.unwrap()
    }

    /// Whether an instance that is being prepared shows as nothing else.
    async fn is_hidden_or_starting(&self) -> bool {
        let begun = self.double().state().preparing.contains_key("web");
        let states: Vec<_> = self.listed().await.into_iter().map(|instance| instance.state).collect();
        states == [InstanceState::Starting] || (states.is_empty() && !begun)
    }

    async fn state(&self) -> InstanceState {
        let found = self.listed().await;
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].state
    }

    /// Calls the command as somebody else would.
    fn by_hand(&self, arguments: &[&str]) {
        let said = self.double().command().args(arguments).output().unwrap();
        assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    }

    /// Has everything done to an instance of that name that can be, and sees that nothing is: it is another's.
    async fn let_alone(&self, order: &CreateOrder) {
        let (target, before) = (order.target(), self.said().len());
        let snapshot = "point".parse().unwrap();
        let answers = [
            self.multipass.start(&target, &order.seed, &order.mounts).await,
            self.multipass.snapshot(&target, &snapshot).await,
            self.multipass.resize(&target, &order.sizes).await,
            self.multipass.stop(&target).await,
            self.multipass.destroy(&target).await,
        ];
        for answer in answers {
            assert!(matches!(answer, Err(DriverError::Foreign { .. })), "{answer:?}");
        }
        let said = self.said().split_off(before);
        let changing = |said: &&String| !["list", "version", "exec"].iter().any(|verb| said.starts_with(verb));
        assert_eq!(said.iter().find(changing), None, "nothing is done to it");
    }

    /// The arguments of all calls so far.
    fn said(&self) -> Vec<String> {
        self.double().calls().iter().map(|call| call.argv.join(" ")).collect()
    }
}

fn driver(double: &Double, root: &Path, kit: Kit) -> Multipass {
    let variables = double.environment().into_iter();
    let program =
        variables.fold(Program::new(double.program().to_owned()), |program, (name, value)| program.with(name, value));
    Multipass::new(root.join("records"), program, kit)
}

#[async_trait]
impl World for Ground {
    async fn crash(&self, instance: &InstanceName) {
        self.double().crash(instance.as_str());
    }

    fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(&self.root).unwrap().keep()
    }

    async fn read(&self, instance: &InstanceName, path: &str) -> Look {
        let Some(pid) = self.double().machine(instance.as_str()) else { return Look::Absent };
        let place = PathBuf::from(format!("/proc/{pid}/root/var/lib/vm-agent/work")).join(path);
        fs::read_to_string(place).map_or(Look::Absent, Look::Content)
    }

    async fn note(&self, instance: &InstanceName, text: &str) -> bool {
        fs::write(self.double().root(instance.as_str()).join("home/ubuntu/note"), text).is_ok()
    }

    async fn noted(&self, instance: &InstanceName) -> Look {
        let read = fs::read_to_string(self.double().root(instance.as_str()).join("home/ubuntu/note"));
        read.map_or(Look::Absent, Look::Content)
    }

    /// Each costs some machines, and their polls are alike after the first of each call.
    fn give_up_points(&self) -> Vec<u32> {
        vec![1, 3, 8, 14, 20, 28, 40, 60]
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }
}

#[allow(clippy::print_stderr, reason = "a test tells which check it runs")]
async fn keeps(checks: impl Iterator<Item = &Check>) {
    for check in checks {
        let ground = Ground::new();
        let begun = Instant::now();
        check.run(&ground.multipass, &ground).await;
        eprintln!("{}: {:.1} s", check.name, begun.elapsed().as_secs_f64());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_double_keeps_the_first_part_of_the_contract() {
    keeps(CHECKS.iter().filter(|check| !check.name.contains("given_up")).step_by(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_double_keeps_the_second_part_of_the_contract() {
    keeps(CHECKS.iter().filter(|check| !check.name.contains("given_up")).skip(1).step_by(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_double_keeps_what_the_contract_says_of_calls_given_up() {
    keeps(CHECKS.iter().filter(|check| check.name.contains("given_up"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_drift_a_look_is_one_list_and_nothing_else() {
    let ground = Ground::new();
    ground.created().await;
    ground.by_hand(&["launch", "--name", "stranger"]);
    ground.listed().await;
    ground.double().forget_calls();
    for _ in 0..3 {
        assert_eq!(ground.listed().await.len(), 2);
    }
    assert_eq!(ground.said(), ["list --no-ipv4 --format json"; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_a_list_at_the_same_time_shares_it() {
    let latency = BTreeMap::from([("list".to_owned(), 300)]);
    let ground = Ground::with(Knobs { latency, ..Knobs::default() });
    ground.listed().await;
    ground.double().forget_calls();
    let list = || ground.multipass.list();
    let all = tokio::join!(list(), list(), list(), list());
    assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok() && all.3.is_ok());
    // The first, and one that begins after the others have asked.
    assert_eq!(ground.double().count("list"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_somebody_elses_is_left_alone_and_so_is_one_that_is_deleted() {
    let ground = Ground::new();
    ground.by_hand(&["launch", "--name", "web"]);
    let order = an_order("web");
    let error = ground.multipass.create(&order).await.unwrap_err();
    assert!(matches!(error, DriverError::Foreign { .. }), "{error}");
    for error in [ground.multipass.stop(&order.target()).await, ground.multipass.destroy(&order.target()).await] {
        assert!(matches!(error, Err(DriverError::Foreign { .. })), "{error:?}");
    }
    assert_eq!(ground.listed().await[0].nonce, None);
    assert_eq!(ground.state().await, InstanceState::Running);
    ground.by_hand(&["delete", "web"]);
    let error = ground.multipass.create(&order).await.unwrap_err().to_string();
    assert!(error.contains("multipass delete --purge web") && error.contains("multipass recover web"), "{error}");
    assert_eq!(ground.state().await, InstanceState::Deleted);
    let changed = ["launch", "stop", "delete", "recover", "exec"].map(|verb| ground.double().count(verb));
    assert_eq!(changed, [1, 0, 1, 0, 0], "only what was done by hand");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_ours_that_somebody_deleted_is_taken_back() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.by_hand(&["delete", "web"]);
    assert_eq!(ground.state().await, InstanceState::Deleted);
    ground.multipass.create(&order).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    ground.by_hand(&["delete", "web"]);
    ground.multipass.destroy(&order.target()).await.unwrap();
    assert_eq!(ground.listed().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_took_the_place_of_ours_is_nobody_we_know() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.double().delete_behind_back("web");
    ground.by_hand(&["launch", "--name", "web"]);
    // Nobody has looked in between: what is in it tells.
    let error = ground.multipass.destroy(&order.target()).await.unwrap_err();
    assert!(matches!(error, DriverError::Foreign { .. }), "{error}");
    ground.double().delete_behind_back("web");
    assert_eq!(ground.listed().await, []);
    ground.by_hand(&["launch", "--name", "web"]);
    ground.by_hand(&["stop", "web"]);
    assert_eq!(ground.listed().await[0].nonce, None);
    ground.let_alone(&order).await;
    assert_eq!(ground.state().await, InstanceState::Stopped);
    ground.by_hand(&["start", "web"]);
    ground.let_alone(&order).await;
    let challenge = ground.multipass.challenge(&order.target(), &Secret::generate()).await.unwrap_err();
    assert!(matches!(challenge, DriverError::Foreign { .. }), "{challenge}");
    assert_eq!(ground.state().await, InstanceState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_ours_that_was_out_of_sight_shows_itself_before_anything_is_done_to_it() {
    let ground = Ground::new();
    let (order, other) = (ground.created().await, an_order("other"));
    ground.multipass.create(&other).await.unwrap();
    ground.set(Knobs { vanished: vec!["web".to_owned()], ..Knobs::default() });
    assert_eq!(ground.listed().await.len(), 1);
    ground.set(Knobs::default());
    assert!(ground.listed().await.iter().any(|it| it.name == order.instance && it.nonce.is_none()));
    ground.multipass.stop(&order.target()).await.unwrap();
    ground.multipass.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert!(ground.listed().await.iter().any(|it| it.nonce.as_ref() == Some(&order.seed.nonce)));
    ground.multipass.destroy(&order.target()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_faster_to_take_a_name_is_let_alone() {
    let free = Wrong::Fails { code: 0, stdout: r#"{"list": []}"#.to_owned(), stderr: String::new() };
    let fault = Fault { command: "list".to_owned(), containing: None, times: 2, after: 0, what: free };
    let ground = Ground::new();
    ground.by_hand(&["launch", "--name", "web"]);
    ground.set(Knobs { faults: vec![fault], ..Knobs::default() });
    let order = an_order("web");
    let error = ground.multipass.create(&order).await.unwrap_err();
    assert!(matches!(error, DriverError::Foreign { .. }), "{error}");
    assert_eq!(ground.double().count("launch"), 2, "it was tried");
    assert_eq!(ground.listed().await[0].nonce, None);
    ground.let_alone(&order).await;
    assert_eq!(ground.state().await, InstanceState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_daemon_does_not_say_of_one_that_nobody_sees_is_not_taken_for_a_no() {
    let latency = BTreeMap::from([("launch.prepare".to_owned(), 1500)]);
    let odd = Wrong::Fails { code: 2, stdout: String::new(), stderr: "set failed: odd\n".to_owned() };
    let fault = Fault { command: "set".to_owned(), containing: None, times: 1, after: 0, what: odd };
    let ground = Ground::with(Knobs { latency, faults: vec![fault], ..Knobs::default() });
    let order = an_order("web");
    assert!(timeout(Duration::from_millis(700), ground.multipass.create(&order)).await.is_err());
    ground.multipass.destroy(&order.target()).await.unwrap_err();
    ground.multipass.destroy(&order.target()).await.unwrap();
    assert_eq!(ground.listed().await, []);
    assert_eq!(ground.double().state().instances.len(), 0, "it is not nobody's");
}

/// A command that so often does nothing but exit and say so.
fn idle(command: &str, code: u8, stderr: &str, times: u32) -> Fault {
    let what = Wrong::Fails { code, stdout: String::new(), stderr: stderr.to_owned() };
    Fault { command: command.to_owned(), containing: None, times, after: 0, what }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_can_not_be_stopped_just_now_is_asked_again() {
    let ground = Ground::new();
    let order = ground.created().await;
    let busy = "stop failed: Cannot shut down instance while starting.\n";
    ground.set(Knobs { faults: vec![idle("stop", 2, busy, 2)], ..Knobs::default() });
    ground.multipass.stop(&order.target()).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Stopped);
    assert_eq!(ground.double().count("stop"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_does_nothing_and_says_that_all_is_well_is_not_repeated_for_ever() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.set(Knobs { faults: vec![idle("recover", 0, "", 9)], ..Knobs::default() });
    ground.by_hand(&["delete", "web"]);
    let error = ground.multipass.create(&order).await.unwrap_err().to_string();
    assert!(error.contains("lists it as deleted"), "{error}");
    ground.set(Knobs::default());
    ground.multipass.create(&order).await.unwrap();
    ground.by_hand(&["suspend", "web"]);
    ground.set(Knobs { faults: vec![idle("stop", 0, "", 9)], ..Knobs::default() });
    let error = ground.multipass.stop(&order.target()).await.unwrap_err().to_string();
    assert!(error.contains("lists it as it was"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_without_snapshots_is_asked_for_them_no_more_than_another() {
    let ground = Ground::with(Knobs { unsupported: vec!["snapshots".to_owned()], ..Knobs::default() });
    let order = ground.created().await;
    let looks = [ground.listed().await, ground.listed().await, ground.listed().await];
    assert!(looks.iter().all(|found| found[0].nonce.as_ref() == Some(&order.seed.nonce)));
    assert_eq!(ground.said().iter().filter(|said| said.starts_with("list --snapshots")).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_let_go_of_is_taken_over_again() {
    let ground = Ground::new();
    let order = ground.created().await;
    let again = CreateOrder { base: Base::Existing, mounts: Mounts::new(), ..an_order("web") };
    ground.multipass.create(&again).await.unwrap();
    assert_eq!(ground.listed().await[0].nonce.as_ref(), Some(&again.seed.nonce));
    let error = ground.multipass.stop(&order.target()).await.unwrap_err();
    assert!(matches!(error, DriverError::Foreign { .. }), "{error}");
    ground.multipass.stop(&again.target()).await.unwrap();
    ground.multipass.start(&again.target(), &again.seed, &again.mounts).await.unwrap();
    ground.multipass.destroy(&again.target()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_of_a_clone_is_ours_as_well() {
    let ground = Ground::new();
    let (mut source, point) = (ground.created().await, "point".parse().unwrap());
    for name in ["second", "third"] {
        ground.multipass.stop(&source.target()).await.unwrap();
        ground.multipass.snapshot(&source.target(), &point).await.unwrap();
        let clone = CreateOrder { base: Base::Snapshot(source.target(), point.clone()), ..an_order(name) };
        ground.multipass.create(&clone).await.unwrap();
        source = clone;
    }
    let found = ground.listed().await;
    let third = found.iter().find(|it| it.name == source.instance).unwrap();
    assert_eq!((third.state, third.nonce.as_ref()), (InstanceState::Running, Some(&source.seed.nonce)));
    ground.multipass.destroy(&source.target()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_any_argument_and_none_in_what_a_machine_is_launched_with() {
    let ground = Ground::new();
    let order = ground.created().await;
    let token = order.seed.join_token.expose();
    assert!(ground.said().iter().all(|said| !said.contains(token)));
    let seeded = fs::read_to_string(ground.double().root("web").join("var/lib/vm-agent/seed.json")).unwrap();
    assert!(seeded.contains(token), "the runtime has it");
    let given =
        Command::new("grep").args(["-rl", token]).arg(ground.double().root("web").join("var/lib/cloud")).output();
    assert_eq!(String::from_utf8(given.unwrap().stdout).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_that_takes_longer_than_its_command_waits_is_waited_for() {
    let stderr = "Timed out waiting for instance launch.\n".to_owned();
    let what = Wrong::FailsThoughDone { code: 5, stderr };
    let fault = Fault { command: "launch".to_owned(), containing: None, times: 1, after: 0, what };
    let ground = Ground::with(Knobs { faults: vec![fault], ..Knobs::default() });
    ground.created().await;
    assert_eq!(ground.state().await, InstanceState::Running);
    assert_eq!(ground.double().count("launch"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_given_up_while_nobody_can_see_it_makes_one_instance() {
    let latency = BTreeMap::from([("launch.prepare".to_owned(), 1500)]);
    let mut ground = Ground::with(Knobs { latency, ..Knobs::default() });
    let order = an_order("web");
    assert!(timeout(Duration::from_millis(700), ground.multipass.create(&order)).await.is_err());
    ground.another_life();
    assert!(ground.is_hidden_or_starting().await);
    ground.multipass.create(&order).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    assert_eq!(ground.double().state().instances.len(), 1);
}

/// A launch whose client ends while its daemon is at something.
fn leaving(at: &str, code: Option<u8>, stderr: &str) -> Fault {
    let what = Wrong::Leaves { at: at.to_owned(), code, stderr: stderr.to_owned() };
    Fault { command: "launch".to_owned(), containing: None, times: 1, after: 0, what }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_goes_on_when_its_client_is_gone_and_what_comes_of_it_is_ours() {
    let ends = [
        (None, ""),
        (Some(5), "Timed out waiting for instance launch.\n"),
        (Some(2), "launch failed: Stream removed\n"),
        (Some(2), "launch failed: \n"),
        (Some(1), "[2026-01-01T00:00:00.000] [error] [client] Caught an unhandled exception: odd\n"),
    ];
    // It prepares the image, which no list shows; or has something that lists show as unknown while it boots.
    let late = [ends[0], ends[4]].map(|end| ("Starting", end));
    for (at, (code, stderr)) in ends.map(|end| ("Preparing image", end)).into_iter().chain(late) {
        let boot = if at == "Starting" { 1500 } else { 0 };
        let latency = BTreeMap::from([("launch.prepare".to_owned(), 300), ("guest.boot".to_owned(), boot)]);
        let faults = vec![leaving(at, code, stderr)];
        let ground = Ground::with(Knobs { latency, faults, ..Knobs::default() });
        let order = ground.created().await;
        let found = ground.listed().await;
        let shown = (found.len(), found[0].state, found[0].nonce.as_ref());
        assert_eq!(shown, (1, InstanceState::Running, Some(&order.seed.nonce)), "{at}: {code:?} {stderr}");
        assert_eq!(ground.double().count("launch"), 1, "{at}: {code:?} {stderr}");
        assert!(!ground.said().iter().any(|said| said.contains("--force") || said.starts_with("delete")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_whose_daemon_seems_lost_is_found_again_by_the_next_call() {
    let latency = BTreeMap::from([("launch.prepare".to_owned(), 1500)]);
    let lost = "launch failed: cannot connect to the multipass socket\n";
    let faults = vec![leaving("Preparing image", Some(2), lost)];
    let ground = Ground::with(Knobs { latency, faults, ..Knobs::default() });
    let order = an_order("web");
    let error = ground.multipass.create(&order).await.unwrap_err();
    assert!(matches!(error, DriverError::Unavailable { .. }), "{error}");
    assert_eq!(ground.state().await, InstanceState::Starting, "it is being made");
    ground.multipass.create(&order).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    assert_eq!(ground.double().state().instances.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_that_ended_with_its_client_is_let_go_and_told() {
    let latency = BTreeMap::from([("launch.download".to_owned(), 2000)]);
    let ground = Ground::with(Knobs { latency, faults: vec![leaving("Creating", None, "")], ..Knobs::default() });
    let order = an_order("web");
    let error = ground.multipass.create(&order).await.unwrap_err().to_string();
    assert!(error.contains("a signal ended it"), "{error}");
    assert_eq!(ground.listed().await, []);
    assert_eq!(ground.double().count("launch"), 1);
    // Should somebody have made another by that name meanwhile, it is not ours.
    ground.by_hand(&["launch", "--name", "web"]);
    assert_eq!(ground.listed().await[0].nonce, None);
    let error = ground.multipass.create(&order).await.unwrap_err();
    assert!(matches!(error, DriverError::Foreign { .. }), "{error}");
    ground.by_hand(&["delete", "--purge", "web"]);
    ground.multipass.create(&order).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
}

/// Makes instances from a file as somebody else would, and names one that can't be made from it: its name shares a
/// bucket of the daemon's table with that of the first, so the disk of the second is looked at.
fn crowd(ground: &Ground, image: &Path) -> &'static str {
    let image = format!("file://{}", image.display());
    for name in ["storm1-stranger-3", "storm1-a02"] {
        ground.by_hand(&["launch", &image, "--name", name]);
    }
    let said = ground.double().command().args(["launch", &image, "--name", "storm1-a03"]).output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("storm1-a02/image.qcow2': Failed to get shared \"write\" lock"), "{said}");
    "storm1-a03"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_gets_an_image_of_its_own_where_the_daemon_looks_at_the_disk_of_another() {
    let ground = Ground::new();
    let image = ground.root.path().join("debian.img");
    fs::write(&image, "debian").unwrap();
    let name = crowd(&ground, &image);
    let order = CreateOrder { base: Base::Image(image.to_str().unwrap().to_owned()), ..an_order(name) };
    ground.double().forget_calls();
    ground.multipass.create(&order).await.unwrap();
    let found = ground.listed().await;
    let ours = found.iter().find(|instance| instance.name == order.instance).unwrap();
    assert_eq!((ours.state, ours.nonce.as_ref()), (InstanceState::Running, Some(&order.seed.nonce)));
    assert_eq!(ground.double().count("launch"), 2);
    assert_eq!(fs::read(&image).unwrap(), b"debian");
    let left: Vec<_> = fs::read_dir(ground.root.path().join("records/images")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_an_image_can_not_be_copied_it_is_told_whose_disk_is_in_the_way() {
    let ground = Ground::new();
    let image = ground.root.path().join("debian.img.xz");
    fs::write(&image, "debian").unwrap();
    let name = crowd(&ground, &image);
    let order = CreateOrder { base: Base::Image(image.to_str().unwrap().to_owned()), ..an_order(name) };
    let error = ground.multipass.create(&order).await.unwrap_err().to_string();
    assert!(error.contains("stop `storm1-a02` until this one is made") && error.ends_with("it is packed"), "{error}");
    assert_eq!(ground.listed().await.len(), 2);
    ground.by_hand(&["stop", "storm1-a02"]);
    ground.multipass.create(&order).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_came_up_for_a_controller_that_died_needs_no_deadline_to_get_its_seed() {
    let latency = BTreeMap::from([("launch.initialization".to_owned(), 60_000)]);
    let mut ground = Ground::with(Knobs { latency, ..Knobs::default() });
    let order = an_order("web");
    let runs = async {
        while ground.double().instance("web").is_none_or(|web| web.phase != Phase::Running) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        created = ground.multipass.create(&order) => panic!("it takes a minute: {created:?}"),
        () = runs => {}
    }
    ground.another_life();
    assert_eq!(ground.state().await, InstanceState::Failed, "it runs, and nobody is about to give it its seed");
    ground.multipass.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    let verbs: Vec<_> = ground.said().into_iter().filter(|said| !said.starts_with("exec")).collect();
    assert!(!verbs.iter().any(|said| said.starts_with("start")), "{verbs:?}");
    assert_eq!(ground.double().count("launch"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_destroyed_while_nobody_can_see_it_does_not_appear_later() {
    let latency = BTreeMap::from([("launch.prepare".to_owned(), 2500)]);
    let mut ground = Ground::with(Knobs { latency, ..Knobs::default() });
    let order = an_order("web");
    let deadline = Instant::now() + Duration::from_secs(20);
    assert!(timeout(Duration::from_millis(1500), ground.multipass.create(&order)).await.is_err());
    ground.another_life();
    assert!(ground.is_hidden_or_starting().await);
    ground.multipass.destroy(&order.target()).await.unwrap();
    while Instant::now() < deadline
        && ground.double().state().instances.is_empty()
        && ground.double().count("launch") == 0
    {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ground.listed().await, []);
    assert_eq!(ground.double().state().instances.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_daemon_has_lost_sight_of_is_ended_by_force_and_started() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.multipass.stop(&order.target()).await.unwrap();
    ground.set(Knobs { deaf: vec!["web".to_owned()], ..Knobs::default() });
    let started = ground.impatient().start(&order.target(), &order.seed, &order.mounts).await;
    let error = started.unwrap_err().to_string().to_lowercase();
    assert!(error.contains("timed out waiting for") && error.contains("still is not to be reached"), "{error}");
    assert_eq!(ground.state().await, InstanceState::Failed, "it lives, and is of no use");
    ground.set(Knobs::default());
    ground.double().forget_calls();
    ground.multipass.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    let verbs: Vec<_> = ground.said().into_iter().filter(|said| said.starts_with("st")).collect();
    assert_eq!(verbs, ["stop --force web", "start web --timeout 300"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_never_comes_up_is_taken_back_with_the_reason() {
    let ground = Ground::with(Knobs { deaf: vec!["web".to_owned()], ..Knobs::default() });
    let error = ground.impatient().create(&an_order("web")).await.unwrap_err().to_string().to_lowercase();
    assert!(error.contains("timed out waiting for") && error.contains("deleted again"), "{error}");
    assert_eq!(ground.listed().await, []);
    let order = CreateOrder { base: Base::Image("no-such-image".to_owned()), ..an_order("web") };
    let error = ground.multipass.create(&order).await.unwrap_err().to_string();
    assert!(error.contains("Unable to find an image"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_program_that_ends_with_4_is_not_run_again_for_ever() {
    let ground = Ground::new();
    let failing: Kit = Arc::new(|_| {
        let script = b"echo 'no room' >&2; exit 4\n";
        let mut header = tar::Header::new_gnu();
        header.set_size(script.len() as u64);
        header.set_mode(0o644);
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_data(&mut header, "install.sh", script.as_slice())?;
        archive.into_inner()
    });
    let multipass = driver(&ground.double(), ground.root.path(), failing);
    let error = multipass.create(&an_order("web")).await.unwrap_err().to_string();
    assert!(error.ends_with("no room"), "{error}");
    assert_eq!(ground.double().count("exec"), 2, "a look at it, and one installation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_down_says_nothing_about_instances_and_is_found_again() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.set(Knobs { daemon_down: true, ..Knobs::default() });
    let answers = [
        ground.multipass.list().await.map(drop),
        ground.multipass.stop(&order.target()).await,
        ground.multipass.create(&an_order("other")).await,
        ground.multipass.destroy(&order.target()).await,
        ground.multipass.prove(&order.instance).await.map(drop),
    ];
    for answer in answers {
        assert!(matches!(answer, Err(DriverError::Unavailable { .. })), "{answer:?}");
    }
    for (access, remedy) in [(Access::Denied, "sudo"), (Access::NotAuthenticated, "multipass authenticate")] {
        ground.set(Knobs { access, ..Knobs::default() });
        let error = ground.multipass.list().await.unwrap_err().to_string();
        assert!(error.contains(remedy), "{error}");
    }
    ground.set(Knobs::default());
    let found = ground.listed().await;
    assert_eq!((found.len(), found[0].nonce.as_ref()), (1, Some(&order.seed.nonce)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_dies_of_a_launch_leaves_something_to_go_on_from() {
    let kill = Kill { phase: "launch.boot".to_owned(), back_after: Some(200) };
    let ground = Ground::with(Knobs { kill_daemon: Some(kill), ..Knobs::default() });
    let order = an_order("web");
    let error = ground.multipass.create(&order).await.unwrap_err();
    assert!(matches!(error, DriverError::Unavailable { .. }), "{error}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while ground.multipass.list().await.is_err() {
        assert!(Instant::now() < deadline, "there is a new daemon");
        sleep(Duration::from_millis(50)).await;
    }
    ground.multipass.create(&order).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_none_is_an_error_and_the_next_is_believed() {
    let ground = Ground::new();
    ground.created().await;
    for json in [Json::Truncated, Json::Garbage] {
        ground.set(Knobs { json, ..Knobs::default() });
        let error = ground.multipass.list().await.unwrap_err();
        assert!(matches!(error, DriverError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("answered something else than a list of instances"), "{error}");
        ground.set(Knobs::default());
        assert_eq!(ground.state().await, InstanceState::Running);
    }
    let banner = Some("A new release is available!\n".to_owned());
    ground.set(Knobs { json: Json::Preceded, banner, localised: true, ..Knobs::default() });
    assert_eq!(ground.state().await, InstanceState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_is_not_believed_at_once() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.listed().await;
    let what = Wrong::Fails { code: 0, stderr: String::new(), stdout: "{\"list\": [\n]}\n".to_owned() };
    let fault = Fault { command: "list".to_owned(), containing: None, times: 1, after: 0, what };
    ground.set(Knobs { faults: vec![fault], ..Knobs::default() });
    let found = ground.listed().await;
    assert_eq!(found[0].nonce.as_ref(), Some(&order.seed.nonce));
    ground.double().delete_behind_back("web");
    assert_eq!(ground.listed().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_given_up_leaves_no_process_behind() {
    let fault = Fault { command: "list".to_owned(), containing: None, times: 1, after: 0, what: Wrong::Hangs };
    let ground = Ground::with(Knobs { faults: vec![fault], ..Knobs::default() });
    assert!(timeout(Duration::from_secs(2), ground.multipass.list()).await.is_err());
    let hung = ground.double().calls().into_iter().find(|call| call.command() == "list").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Path::new(&format!("/proc/{}", hung.pid)).exists() {
        assert!(Instant::now() < deadline, "it should be gone");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ground.listed().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_controller_left_of_its_calls_is_ended_by_the_next() {
    let mut ground = Ground::new();
    let order = ground.created().await;
    let hangs =
        |command: &str| Fault { command: command.to_owned(), containing: None, times: 1, after: 0, what: Wrong::Hangs };
    ground.set(Knobs { faults: vec![hangs("list"), hangs("find")], ..Knobs::default() });
    ground.double().forget_calls();
    let former = ground.multipass.clone();
    let left = tokio::spawn(async move { former.list().await });
    let mut of_somebody = ground.double().command().arg("find").spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while ["list", "find"].iter().any(|command| ground.double().count(command) == 0) {
        assert!(Instant::now() < deadline, "both should hang");
        sleep(Duration::from_millis(20)).await;
    }
    ground.another_life();
    assert_eq!(ground.listed().await[0].nonce.as_ref(), Some(&order.seed.nonce));
    let error = left.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("a signal ended it"), "{error}");
    assert_eq!(of_somebody.try_wait().unwrap(), None, "it is not a call of ours");
    of_somebody.kill().unwrap();
    of_somebody.wait().unwrap();
    assert_eq!(ground.state().await, InstanceState::Running, "nor is a machine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_brings_back_the_sizes_of_its_snapshot() {
    let ground = Ground::new();
    let (order, name) = (ground.created().await, "small".parse().unwrap());
    let target = order.target();
    ground.multipass.stop(&target).await.unwrap();
    ground.multipass.snapshot(&target, &name).await.unwrap();
    let larger = Sizes { cpus: 2, memory: ByteSize::from_bytes(1_600_000_000), disk: ByteSize::from_gib(7) };
    ground.multipass.resize(&target, &larger).await.unwrap();
    assert_eq!(ground.listed().await[0].sizes, Some(larger));
    let told = ground.double().instance("web").unwrap();
    assert_eq!((told.cpus, told.memory, told.disk), (2, 1_600_000_000, larger.disk.bytes()));
    let smaller = Sizes { disk: ByteSize::from_gib(6), ..larger };
    let error = ground.multipass.resize(&target, &smaller).await.unwrap_err().to_string();
    assert!(error.contains("a disk only grows"), "{error}");
    let mut next = order.clone();
    (next.seed.nonce, next.seed.incarnation) = (Nonce::generate(), order.seed.incarnation.next());
    let there = Target { former: Some(order.seed.nonce.clone()), ..next.target() };
    ground.multipass.restore(&there, &name, &next.seed, &Mounts::new()).await.unwrap();
    assert_eq!(ground.listed().await[0].sizes, Some(order.sizes));
    assert_eq!(ground.multipass.prove(&order.instance).await.unwrap(), Some(next.seed.nonce));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_machine_that_runs_is_gone_at_once_and_from_the_disk_when_it_is_down() {
    let mut ground = Ground::new();
    let (order, name) = (ground.created().await, "point".parse().unwrap());
    let target = order.target();
    ground.multipass.stop(&target).await.unwrap();
    ground.multipass.snapshot(&target, &name).await.unwrap();
    ground.multipass.start(&target, &order.seed, &order.mounts).await.unwrap();
    for _ in 0..2 {
        ground.multipass.delete_snapshot(&target, &name).await.unwrap();
    }
    assert_eq!(ground.listed().await[0].snapshots, Some(BTreeSet::new()));
    // Its machine has the disk locked.
    assert_eq!(ground.double().count("delete"), 0);
    ground.another_life();
    assert_eq!(ground.listed().await[0].snapshots, Some(BTreeSet::new()));
    ground.multipass.stop(&target).await.unwrap();
    assert_eq!(ground.said().last().map(String::as_str), Some("delete --purge web.point"));
    ground.multipass.snapshot(&target, &name).await.unwrap();
    assert_eq!(ground.listed().await[0].snapshots, Some(BTreeSet::from([name])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_somebody_else_gave_are_seen_in_time() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.multipass.stop(&order.target()).await.unwrap();
    ground.by_hand(&["set", "local.web.cpus=3"]);
    assert_eq!(ground.listed().await[0].sizes, Some(order.sizes));
    let watchful = ground.multipass.clone().with_limits(Limits { audit: Duration::ZERO, ..Limits::default() });
    let deadline = Instant::now() + Duration::from_secs(20);
    let as_given = Sizes { cpus: 3, ..order.sizes };
    while watchful.list().await.unwrap()[0].sizes != Some(as_given) {
        assert!(Instant::now() < deadline, "they should be {as_given:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_does_not_listen_is_stopped_by_force() {
    let ground = Ground::new();
    let order = ground.created().await;
    let limits = BTreeMap::from([("shutdown".to_owned(), 300)]);
    ground.set(Knobs { ignores_power_button: vec!["web".to_owned()], limits, ..Knobs::default() });
    // Who does not listen is told so when it boots.
    ground.double().crash("web");
    ground.multipass.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    ground.double().forget_calls();
    ground.multipass.stop(&order.target()).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Stopped);
    let verbs: Vec<_> = ground.said().into_iter().filter(|said| said.starts_with("stop")).collect();
    assert_eq!(verbs, ["stop web", "stop --force web"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_go_to_the_daemon_one_at_a_time() {
    let latency = BTreeMap::from([("stop".to_owned(), 200)]);
    let ground = Ground::with(Knobs { latency, ..Knobs::default() });
    let (one, two) = (an_order("one"), an_order("two"));
    ground.multipass.create(&one).await.unwrap();
    ground.multipass.create(&two).await.unwrap();
    let (first, second) = (one.target(), two.target());
    let (first, second) = tokio::join!(ground.multipass.stop(&first), ground.multipass.stop(&second));
    assert!(first.is_ok() && second.is_ok());
    let calls = ground.double().calls();
    let stops: Vec<_> = calls.iter().filter(|call| call.command() == "stop").collect();
    assert_eq!(stops.len(), 2);
    assert!(!stops[0].overlaps(stops[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_version_can_not_do_is_told_and_done_without() {
    let ground = Ground::with(Knobs { version: Version::V1_13, ..Knobs::default() });
    let order = ground.created().await;
    assert_eq!(ground.multipass.capabilities().snapshots, SnapshotSupport::Down);
    ground.multipass.suspend(&order.target()).await.unwrap();
    ground.multipass.stop(&order.target()).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Stopped);
    ground.set(Knobs { version: Version::Main, ..Knobs::default() });
    ground.multipass.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_there_is_is_what_the_command_and_its_daemon_both_have() {
    let clones = async |knobs| {
        let ground = Ground::with(knobs);
        ground.listed().await;
        ground.multipass.capabilities().clones
    };
    assert_eq!(clones(Knobs::default()).await, CloneSupport::Down);
    assert_eq!(clones(Knobs { version: Version::V1_14, ..Knobs::default() }).await, CloneSupport::None);
    let older = Some("1.14.1".to_owned());
    assert_eq!(clones(Knobs { daemon_version: older, ..Knobs::default() }).await, CloneSupport::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snap_that_sees_no_folder_of_the_controller_makes_machines_all_the_same() {
    let ground = Ground::with(Knobs { snap: true, ..Knobs::default() });
    ground.created().await;
    assert_eq!(ground.state().await, InstanceState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_image_can_be_had_a_create_says_so_and_leaves_nothing_behind() {
    let ground = Ground::with(Knobs { images_unreachable: true, ..Knobs::default() });
    let order = an_order("web");
    let error = ground.multipass.create(&order).await.unwrap_err().to_string();
    assert!(error.contains("unknown or unreachable"), "{error}");
    assert_eq!(ground.listed().await, []);
    ground.set(Knobs::default());
    ground.by_hand(&["launch", "--name", "web"]);
    assert_eq!(ground.listed().await[0].nonce, None, "it is whoever's who made it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_a_person_took_has_the_sizes_of_then() {
    let ground = Ground::new();
    let (order, name) = (ground.created().await, "point".parse().unwrap());
    let target = order.target();
    ground.multipass.stop(&target).await.unwrap();
    ground.by_hand(&["snapshot", "web", "--name", "point"]);
    ground.multipass.resize(&target, &Sizes { cpus: 2, ..order.sizes }).await.unwrap();
    ground.multipass.snapshot(&target, &name).await.unwrap();
    let mut next = order.clone();
    (next.seed.nonce, next.seed.incarnation) = (Nonce::generate(), order.seed.incarnation.next());
    let there = Target { former: Some(order.seed.nonce.clone()), ..next.target() };
    ground.multipass.go_back(&there, &name, &next.seed).await.unwrap();
    assert_eq!(ground.listed().await[0].sizes, Some(order.sizes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_can_not_be_given_what_it_is_to_have_tells_why_and_is_no_more() {
    let ground = Ground::with(Knobs { missing_packages: vec!["nothing".to_owned()], ..Knobs::default() });
    let provision: Provision = serde_json::from_str(r#"{"packages": ["nothing"]}"#).unwrap();
    let order = CreateOrder { provision, ..an_order("web") };
    let error = ground.multipass.create(&order).await.unwrap_err().to_string();
    assert!(error.contains("did not get what it is to have") && error.contains("cloud-init"), "{error}");
    assert_eq!(ground.listed().await, []);
    let provision = serde_json::from_str(
        r#"{"user": "dev", "packages": ["git"], "cloudInit": {"write_files": [{"path": "/etc/from-the-file", "content": "x"}]}}"#,
    );
    let order = CreateOrder { provision: provision.unwrap(), ..an_order("web") };
    ground.multipass.create(&order).await.unwrap();
    assert_eq!(fs::read_to_string(ground.double().root("web").join("etc/from-the-file")).unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_nobodys_is_taken_over_as_it_is_and_by_one_alone() {
    let mut ground = Ground::new();
    let folder = ground.folder();
    ground.by_hand(&["launch", "--name", "web", "--memory", "1.5G", "24.04"]);
    ground.by_hand(&["mount", folder.to_str().unwrap(), "web:/srv/shared"]);
    let (name, root) = ("web".parse().unwrap(), ground.double().root("web"));
    fs::write(root.join("home/ubuntu/work.txt"), "mine").unwrap();
    let machine_id = fs::read_to_string(root.join("etc/machine-id")).unwrap();

    let described = ground.multipass.describe(&name).await.unwrap();
    assert_eq!(described.image.as_deref(), Some("24.04"));
    let sizes = Sizes { cpus: 1, memory: ByteSize::from_bytes(1536 * ByteSize::MIB), disk: ByteSize::from_gib(5) };
    assert_eq!(described.sizes, Some(sizes));
    assert_eq!(described.mounts["/srv/shared"].source, folder);
    let order = CreateOrder { base: Base::Existing, sizes, mounts: described.mounts, ..an_order("web") };
    ground.multipass.create(&order).await.unwrap();
    let found = ground.listed().await;
    assert_eq!((found[0].state, found[0].nonce.as_ref()), (InstanceState::Running, Some(&order.seed.nonce)));
    assert_eq!(ground.multipass.prove(&name).await.unwrap(), Some(order.seed.nonce.clone()));
    assert_eq!(fs::read_to_string(root.join("home/ubuntu/work.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(root.join("etc/machine-id")).unwrap(), machine_id);
    let verbs = ["launch", "stop", "start", "umount", "delete"].map(|verb| ground.double().count(verb));
    assert_eq!(verbs, [1, 0, 0, 0, 0], "only what was done by hand");

    // Another controller, which knows nothing of that.
    fs::rename(ground.root.path().join("records"), ground.root.path().join("elsewhere")).unwrap();
    ground.another_life();
    let other = CreateOrder { base: Base::Existing, mounts: Mounts::new(), ..an_order("web") };
    for _ in 0..2 {
        let error = ground.multipass.create(&other).await.unwrap_err();
        assert!(matches!(error, DriverError::Foreign { .. }), "{error}");
    }
    assert_eq!(ground.multipass.prove(&name).await.unwrap(), Some(order.seed.nonce));
    let none = CreateOrder { base: Base::Existing, ..an_order("none") };
    let error = ground.multipass.create(&none).await.unwrap_err();
    assert!(matches!(error, DriverError::Missing { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenge_is_laid_where_only_the_runtime_reads_it_and_a_seed_may_come_anew() {
    let ground = Ground::new();
    let order = ground.created().await;
    let challenge = Secret::generate();
    let witness = ground.multipass.challenge(&order.target(), &challenge).await.unwrap();
    assert_eq!((witness.nonce.as_ref(), witness.hypervisor.as_deref()), (Some(&order.seed.nonce), Some("qemu")));
    assert!(ground.said().iter().all(|said| !said.contains(challenge.expose())));
    let pid = ground.double().machine("web").unwrap();
    let laid = fs::read_to_string(format!("/proc/{pid}/root{CHALLENGE_FILE}")).unwrap();
    assert_eq!(laid, challenge.expose());

    let seed = Seed { join_token: Secret::generate(), ..order.seed.clone() };
    ground.multipass.reseed(&order.target(), &seed).await.unwrap();
    let seeded = fs::read_to_string(ground.double().root("web").join("var/lib/vm-agent/seed.json")).unwrap();
    assert!(seeded.contains(seed.join_token.expose()));
    let other = Target { nonce: Nonce::generate(), ..order.target() };
    let error = ground.multipass.challenge(&other, &challenge).await.unwrap_err();
    assert!(matches!(error, DriverError::Foreign { .. }), "{error}");
    ground.multipass.stop(&order.target()).await.unwrap();
    for error in [
        ground.multipass.challenge(&order.target(), &challenge).await.map(drop),
        ground.multipass.reseed(&order.target(), &seed).await,
    ] {
        assert!(error.unwrap_err().to_string().contains("it does not run"));
    }
    assert_eq!(ground.state().await, InstanceState::Stopped, "asking starts nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_tells_what_is_there_and_what_to_do() {
    let ground = Ground::new();
    let look = async || {
        let variables = ground.double().environment();
        let program = Program::new(ground.double().program().to_owned());
        health(&variables.into_iter().fold(program, |program, (name, value)| program.with(name, value))).await
    };
    let well = look().await;
    assert_eq!((well.trouble, well.lacks.len()), (None, 0));
    assert_eq!(well.versions.unwrap().client.to_string(), "1.16.3");
    ground.set(Knobs { version: Version::V1_13, ..Knobs::default() });
    assert!(look().await.lacks[0].contains("forced stop"));
    ground.set(Knobs { daemon_down: true, ..Knobs::default() });
    let down = look().await;
    assert_eq!(down.versions.unwrap().daemon, None);
    assert!(down.trouble.unwrap().contains("start its daemon"));
    let none = health(&Program::new("/nowhere/multipass".into())).await;
    assert_eq!((none.versions, none.trouble.unwrap().contains("can't be run")), (None, true));
}

/// The real command on this host.
struct Real {
    multipass: Multipass,
    program: Program,
    root: TempDir,
}

impl Real {
    fn new() -> Option<Self> {
        std::env::var_os("VM_AGENT_TEST_MULTIPASS")?;
        let program = Program::find().expect("VM_AGENT_TEST_MULTIPASS is set, so there is a command `multipass`");
        let runtime = std::env::var_os("VM_AGENT_RUNTIME").map(PathBuf::from);
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../dist/x86_64-unknown-linux-gnu/vm-agent-runtime");
        let root = tempfile::tempdir().unwrap();
        let multipass = Multipass::new(root.path().join("records"), program.clone(), kit(runtime.unwrap_or(built)));
        Some(Self { multipass, program, root })
    }

    fn call(&self, arguments: &[&str]) -> io::Result<std::process::Output> {
        Command::new(self.program.path()).args(arguments).output()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root.path().join("records")).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".json")) {
                let _ = self.call(&["delete", "--purge", name]);
            }
        }
    }
}

#[async_trait]
impl World for Real {
    async fn crash(&self, instance: &InstanceName) {
        let find = format!("ps -eo pid,args | awk '/[q]emu-system.*instances\\/{instance}\\//{{print $1}}'");
        let found = Command::new("sh").args(["-c", &find]).output().unwrap();
        let pids = String::from_utf8(found.stdout).unwrap();
        assert!(!pids.trim().is_empty(), "`{instance}` runs");
        for pid in pids.split_whitespace() {
            Command::new("kill").args(["-9", pid]).status().unwrap();
        }
    }

    fn image(&self) -> String {
        std::env::var("VM_AGENT_TEST_MULTIPASS_IMAGE").unwrap_or_else(|_| "24.04".to_owned())
    }

    fn sizes(&self, larger: bool) -> Sizes {
        let (memory, disk) = if larger { (768, 4) } else { (512, 3) };
        Sizes { cpus: 1, memory: ByteSize::from_bytes(memory * ByteSize::MIB), disk: ByteSize::from_gib(disk) }
    }

    fn folder(&self) -> PathBuf {
        // Below the user's home, where also the command of a snap may look.
        let home = PathBuf::from(std::env::var_os("HOME").unwrap());
        tempfile::tempdir_in(home).unwrap().keep()
    }

    async fn read(&self, instance: &InstanceName, path: &str) -> Look {
        let path = format!("/var/lib/vm-agent/work/{path}");
        let said = self.call(&["exec", "-n", instance.as_str(), "--", "sudo", "cat", &path]).unwrap();
        match said.status.code() {
            Some(0) => Look::Content(String::from_utf8(said.stdout).unwrap()),
            _ => Look::Absent,
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }

    /// Each costs a machine.
    fn give_up_points(&self) -> Vec<u32> {
        vec![4, 16]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stderr, reason = "a test tells which check it runs")]
async fn the_real_one_keeps_the_contract() {
    let only = std::env::var("VM_AGENT_TEST_CHECK").unwrap_or_default();
    for check in CHECKS.iter().filter(|check| check.name.contains(&only)) {
        let Some(real) = Real::new() else { return };
        let begun = Instant::now();
        check.run(&real.multipass, &real).await;
        eprintln!("{}: {:.0} s", check.name, begun.elapsed().as_secs_f64());
    }
}

//! Driver `local` with real processes. The stand-in for the runtime is this crate's example, which
//! Cargo builds along with the tests.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it shares with others")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use vm_agent_drivers::contract::{self, CHECKS, Look, World, an_order};
use vm_agent_drivers::local::{Local, RuntimeProgram};
use vm_agent_drivers::{CreateOrder, Driver, DriverError, Mounts};
use vm_agent_schemas::fleet::Mount;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::layout::{INSTANCE_VARIABLE, LOCK_FILE, LOG_FILE, SEED_FILE, WORK_DIR};
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::InstanceState;

use self::support::example;

/// A driver on a root of its own. Whatever happens to the test, nothing of it runs on.
struct Ground {
    root: TempDir,
    local: Local,
}

impl Ground {
    fn new(options: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let local = Local::new(root.path().join("instances"), stand_in(options));
        Self { root, local }
    }

    async fn created(&self) -> CreateOrder {
        let order = an_order("web");
        self.local.create(&order).await.unwrap();
        order
    }

    fn file(&self, name: &str) -> PathBuf {
        self.local.folder(&"web".parse().unwrap()).join(name)
    }

    /// The process id that a file in the folder tells.
    fn pid(&self, file: &str) -> Pid {
        let text = fs::read_to_string(self.file(file)).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    async fn pid_eventually(&self, file: &str) -> Pid {
        eventually(file, || fs::read_to_string(self.file(file)).is_ok_and(|text| !text.is_empty())).await;
        self.pid(file)
    }

    async fn state(&self) -> InstanceState {
        let found = self.local.list().await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].state
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root.path().join("instances")).into_iter().flatten().flatten() {
            let seed = fs::read(entry.path().join(SEED_FILE)).unwrap_or_default();
            let seed: serde_json::Value = serde_json::from_slice(&seed).unwrap_or_default();
            for pid in seed["nonce"].as_str().into_iter().flat_map(|nonce| marked(&Nonce::from_text(nonce))) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

#[async_trait]
impl World for Ground {
    async fn crash(&self, instance: &InstanceName) {
        let text = fs::read_to_string(self.local.folder(instance).join(LOCK_FILE)).unwrap();
        kill(Pid::from_raw(text.parse().unwrap()).unwrap()).await;
    }

    fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(&self.root).unwrap().keep()
    }

    async fn read(&self, instance: &InstanceName, path: &str) -> Look {
        let read = fs::read_to_string(self.local.folder(instance).join(WORK_DIR).join(path));
        read.map_or(Look::Absent, Look::Content)
    }
}

fn stand_in(options: &[&str]) -> RuntimeProgram {
    RuntimeProgram { path: example("stand_in_runtime"), args: options.iter().map(Into::into).collect() }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "this should come to be: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Whether there is a process with this id, be it only a zombie.
fn exists(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

async fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
    eventually("a killed process is gone, and no zombie", || !exists(pid)).await;
}

fn marked(nonce: &Nonce) -> Vec<Pid> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
    let mut system = System::new().unwrap();
    let what = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let mark = format!("{INSTANCE_VARIABLE}={nonce}");
    let carrying = system.processes().values().filter(|process| process.environ().iter().any(|it| *it == *mark));
    carrying.filter_map(|process| Pid::from_raw(process.pid().as_u32().try_into().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_keeps_the_contract() {
    for check in CHECKS {
        let ground = Ground::new(&[]);
        eprintln!("{}", check.name);
        check.run(&ground.local, &ground).await;
    }
}

#[tokio::test]
async fn a_runtime_outlives_the_driver_that_started_it() {
    let mut ground = Ground::new(&[]);
    let order = ground.created().await;
    let pid = ground.pid(LOCK_FILE);
    ground.local = Local::new(ground.root.path().join("instances"), stand_in(&[]));
    assert_eq!(ground.state().await, InstanceState::Running);
    assert_eq!(ground.pid(LOCK_FILE), pid);
    ground.local.destroy(&order.target()).await.unwrap();
    eventually("the runtime is gone, and no zombie", || !exists(pid)).await;
    assert_eq!(marked(&order.seed.nonce), []);
}

#[test]
fn a_runtime_outlives_the_tokio_runtime_that_started_it() {
    let ground = Ground::new(&[]);
    let tokio = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let order = tokio().block_on(ground.created());
    tokio().block_on(async {
        assert_eq!(ground.state().await, InstanceState::Running);
        ground.local.destroy(&order.target()).await.unwrap();
    });
    assert_eq!(marked(&order.seed.nonce), []);
}

#[tokio::test]
async fn what_a_killed_runtime_left_behind_is_ended_before_the_next_start() {
    let ground = Ground::new(&["--child"]);
    let order = ground.created().await;
    let orphan = ground.pid_eventually("child.pid").await;
    kill(ground.pid(LOCK_FILE)).await;
    assert_eq!(ground.state().await, InstanceState::Failed);
    assert!(marked(&order.seed.nonce).contains(&orphan));
    ground.local.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    assert!(!marked(&order.seed.nonce).contains(&orphan));
    ground.local.destroy(&order.target()).await.unwrap();
    assert_eq!(marked(&order.seed.nonce), []);
}

#[tokio::test]
async fn a_suspended_runtime_stops_as_asked() {
    let ground = Ground::new(&["--child"]);
    let order = ground.created().await;
    kill_process(ground.pid(LOCK_FILE), Signal::STOP).unwrap();
    let begun = Instant::now();
    ground.local.stop(&order.target()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "it was woken and ended by itself");
    assert_eq!(ground.state().await, InstanceState::Stopped);
    assert_eq!(marked(&order.seed.nonce), []);
}

#[tokio::test]
async fn a_deaf_runtime_is_killed_after_its_grace_and_was_stopped() {
    let ground = Ground::new(&["--deaf"]);
    let order = ground.created().await;
    let deadline = ground.local.capabilities().deadlines.stop.get();
    let stopped = tokio::time::timeout(deadline, ground.local.stop(&order.target())).await;
    stopped.expect("a stop keeps to its deadline").unwrap();
    assert_eq!(ground.state().await, InstanceState::Stopped);
}

#[tokio::test]
async fn a_lock_file_that_names_another_process_gets_nobody_else_ended() {
    let ground = Ground::new(&[]);
    let order = ground.created().await;
    let mut innocent = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(ground.file(LOCK_FILE), innocent.id().to_string()).unwrap();
    ground.local.stop(&order.target()).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Stopped);
    ground.local.stop(&order.target()).await.unwrap();
    ground.local.destroy(&order.target()).await.unwrap();
    assert!(innocent.try_wait().unwrap().is_none());
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    assert_eq!(marked(&order.seed.nonce), []);
}

#[tokio::test]
async fn a_lock_that_is_not_our_runtimes_is_told_and_left() {
    let ground = Ground::new(&[]);
    let order = ground.created().await;
    ground.local.stop(&order.target()).await.unwrap();
    let lock = fs::File::create(ground.file(LOCK_FILE)).unwrap();
    lock.lock().unwrap();
    let error = ground.local.destroy(&order.target()).await.unwrap_err().to_string();
    assert!(error.contains(LOCK_FILE) && error.contains("by hand"), "{error}");
    assert!(ground.file(SEED_FILE).exists());
    lock.unlock().unwrap();
    ground.local.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_runtime_that_ends_at_once_fails_the_start_with_its_last_words() {
    let ground = Ground::new(&["--broken"]);
    let order = an_order("web");
    let begun = Instant::now();
    let error = ground.local.create(&order).await.unwrap_err().to_string();
    assert!(begun.elapsed() < Duration::from_secs(10), "it did not wait for what can't come");
    assert!(error.contains("broken on purpose"), "{error}");
    assert!(!error.contains(order.seed.join_token.expose()));
    assert_eq!(ground.state().await, InstanceState::Stopped);
    let absent = RuntimeProgram { path: "/nowhere/runtime".into(), args: Vec::new() };
    let local = Local::new(ground.root.path().join("instances"), absent);
    let error = local.start(&order.target(), &order.seed, &order.mounts).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/runtime") && error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_root_that_can_not_be_used_is_told_in_the_systems_words() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let local = Local::new(file.path().join("instances"), stand_in(&[]));
    let error = local.create(&an_order("web")).await.unwrap_err();
    assert!(matches!(&error, DriverError::Failed { reason, .. } if reason.contains("Not a directory")), "{error}");
    assert!(matches!(local.list().await, Err(DriverError::Unavailable { .. })));
}

#[tokio::test]
async fn a_start_hands_over_a_new_seed_and_a_running_runtime_keeps_its_own() {
    let ground = Ground::new(&[]);
    let order = ground.created().await;
    let renewed = contract::an_order("web").seed.join_token;
    let seed = vm_agent_schemas::wire::Seed { join_token: renewed.clone(), ..order.seed.clone() };
    let token = || {
        let seed: vm_agent_schemas::wire::Seed =
            serde_json::from_slice(&fs::read(ground.file(SEED_FILE)).unwrap()).unwrap();
        seed.join_token
    };
    ground.local.start(&order.target(), &seed, &order.mounts).await.unwrap();
    assert_eq!(token(), order.seed.join_token);
    ground.local.stop(&order.target()).await.unwrap();
    ground.local.start(&order.target(), &seed, &order.mounts).await.unwrap();
    assert_eq!(token(), renewed);
    ground.local.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_takes_no_more_fails_the_start_in_a_sentence_and_loses_nothing() {
    let ground = Ground::new(&[]);
    let order = ground.created().await;
    ground.local.stop(&order.target()).await.unwrap();
    let renewed = contract::an_order("web").seed.join_token;
    let seed = vm_agent_schemas::wire::Seed { join_token: renewed, ..order.seed.clone() };
    // What can't be written: a folder where a file should be, and on Linux a device that is always full.
    let in_the_way = ground.file("seed.json.new");
    let mut obstacles = vec![("Is a directory", None)];
    if cfg!(target_os = "linux") {
        obstacles.push(("No space left on device", Some("/dev/full")));
    }
    for (words, device) in obstacles {
        match device {
            None => fs::create_dir(&in_the_way).unwrap(),
            Some(device) => std::os::unix::fs::symlink(device, &in_the_way).unwrap(),
        }
        let error = ground.local.start(&order.target(), &seed, &order.mounts).await.unwrap_err().to_string();
        assert!(error.contains(&format!("{}: {words}", ground.file(SEED_FILE).display())), "{error}");
        assert_eq!(ground.state().await, InstanceState::Stopped);
        assert_eq!(ground.local.prove(&order.instance).await.unwrap(), Some(order.seed.nonce.clone()));
        if device.is_some() { fs::remove_file(&in_the_way) } else { fs::remove_dir(&in_the_way) }.unwrap();
    }
    ground.local.start(&order.target(), &seed, &order.mounts).await.unwrap();
    ground.local.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_work_folder_that_is_none_fails_a_start_with_mounts_and_names_it() {
    let ground = Ground::new(&[]);
    let order = ground.created().await;
    ground.local.stop(&order.target()).await.unwrap();
    fs::write(ground.file(WORK_DIR), "").unwrap();
    let mounts = Mounts::from([("src".to_owned(), Mount { source: ground.folder(), writable: false })]);
    let error = ground.local.start(&order.target(), &order.seed, &mounts).await.unwrap_err().to_string();
    assert!(error.contains(&ground.file(WORK_DIR).display().to_string()), "{error}");
    assert_eq!(ground.state().await, InstanceState::Stopped);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_runtime_gets_a_small_environment_and_a_private_log() {
    use std::os::unix::fs::PermissionsExt;
    let ground = Ground::new(&[]);
    let order = ground.created().await;
    let pid = ground.pid(LOCK_FILE);
    let environ = fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap();
    let environ = String::from_utf8(environ).unwrap();
    let names: Vec<_> = environ.split('\0').filter_map(|variable| Some(variable.split_once('=')?.0)).collect();
    assert!(names.contains(&"PATH") && names.contains(&INSTANCE_VARIABLE), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("CARGO")), "{names:?}");
    assert!(!environ.contains(order.seed.join_token.expose()));
    assert_eq!(fs::metadata(ground.file(LOG_FILE)).unwrap().permissions().mode() & 0o777, 0o600);
    ground.local.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn leftovers_of_a_dead_controller_are_deleted_by_the_next_create() {
    let ground = Ground::new(&[]);
    let root = ground.root.path().join("instances");
    let leftovers = [root.join(".making-web.1"), root.join(".gone-db.2"), root.join("web-2")];
    for leftover in &leftovers {
        fs::create_dir_all(leftover.join("inner")).unwrap();
    }
    ground.local.create(&an_order("api")).await.unwrap();
    eventually("leftovers are deleted", || !leftovers[0].exists() && !leftovers[1].exists()).await;
    assert!(leftovers[2].exists(), "what has an instance's name is no leftover");
}

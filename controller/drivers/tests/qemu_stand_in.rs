//! Driver `qemu` with a stand-in for QEMU and the guest in it: everything that needs no processor.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it shares with others")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use vm_agent_drivers::contract::{CHECKS, Look, World, an_order};
use vm_agent_drivers::images::{Images, debian};
use vm_agent_drivers::qemu::{Programs, Qemu};
use vm_agent_drivers::{Base, CreateOrder, Driver, DriverError, Target};
use vm_agent_schemas::ids::{Nonce, Secret};
use vm_agent_schemas::layout::INSTANCE_VARIABLE;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::{InstanceState, Sizes};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::Seed;

use self::support::example;

/// A driver on a root of its own, with one image. Whatever happens to the test, nothing of it runs on.
struct Ground {
    root: TempDir,
    programs: Programs,
    qemu: Qemu,
}

impl Ground {
    fn new() -> Self {
        let img = Programs::find().unwrap_or_else(|missing| panic!("{missing}")).img;
        Self::with(Programs { system: example("stand_in_qemu"), img })
    }

    fn with(programs: Programs) -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("image.raw");
        fs::File::create(&disk).unwrap().set_len(1024 * 1024).unwrap();
        let qemu = qemu(root.path(), &programs);
        Self { root, programs, qemu }
    }

    /// The driver as another life of the controller has it.
    fn another_life(&mut self) {
        self.qemu = qemu(self.root.path(), &self.programs);
    }

    fn order(&self, name: &str) -> CreateOrder {
        CreateOrder { base: Base::Image(self.image()), sizes: self.sizes(false), ..an_order(name) }
    }

    async fn created(&self) -> CreateOrder {
        let order = self.order("web");
        self.qemu.create(&order).await.unwrap();
        order
    }

    fn file(&self, name: &str) -> PathBuf {
        self.qemu.folder(&"web".parse().unwrap()).join(name)
    }

    /// Reads or writes the disk of a machine that is down.
    fn io(&self, instance: &InstanceName, command: &str) -> String {
        let folder = self.qemu.folder(instance);
        let machine: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("machine.json")).unwrap()).unwrap();
        let io = self.programs.img.with_file_name("qemu-io");
        let disk = folder.join(machine["disk"].as_str().unwrap());
        let said = Command::new(io).args(["-f", "qcow2", "-c", command]).arg(disk).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        String::from_utf8(said.stdout).unwrap()
    }

    fn pid(&self, instance: &InstanceName) -> Pid {
        let text = fs::read_to_string(self.qemu.folder(instance).join("qemu.pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    async fn state(&self) -> InstanceState {
        let found = self.qemu.list().await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].state
    }

    async fn until(&self, state: InstanceState) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.state().await;
            if found == state {
                return;
            }
            assert!(Instant::now() < deadline, "it should be {state:?} and is {found:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What stands for a note on a disk.
fn pattern(text: &str) -> u8 {
    text.bytes().fold(1, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
}

fn qemu(root: &Path, programs: &Programs) -> Qemu {
    let (machines, images) = (root.join("machines"), root.join("images"));
    let images = Images::new(images, machines.clone(), programs.img.clone(), debian());
    Qemu::new(machines, programs.clone(), images, Arc::new(|_, _, _, path| fs::write(path, "seed")))
}

impl Drop for Ground {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root.path().join("machines")).into_iter().flatten().flatten() {
            let machine = fs::read(entry.path().join("machine.json")).unwrap_or_default();
            let machine: serde_json::Value = serde_json::from_slice(&machine).unwrap_or_default();
            for pid in machine["nonce"].as_str().into_iter().flat_map(marked) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// The processes that carry this nonce.
fn marked(nonce: &str) -> Vec<Pid> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
    let mut system = System::new().unwrap();
    let what = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let mark = format!("{INSTANCE_VARIABLE}={nonce}");
    let carrying = system.processes().values().filter(|process| process.environ().iter().any(|it| *it == *mark));
    carrying.filter_map(|process| Pid::from_raw(process.pid().as_u32().try_into().unwrap())).collect()
}

async fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while test_kill_process(pid).is_ok() {
        assert!(Instant::now() < deadline, "a killed process is gone, and no zombie");
        sleep(Duration::from_millis(5)).await;
    }
}

#[async_trait]
impl World for Ground {
    async fn crash(&self, instance: &InstanceName) {
        kill(self.pid(instance)).await;
    }

    fn image(&self) -> String {
        self.root.path().join("image.raw").display().to_string()
    }

    fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(&self.root).unwrap().keep()
    }

    async fn note(&self, instance: &InstanceName, text: &str) -> bool {
        self.io(instance, &format!("write -q -P {} 0 512", pattern(text)));
        true
    }

    async fn noted(&self, instance: &InstanceName) -> Look {
        let known = ["before", "after", "another", "both", "the clone's", "kept", "lost"];
        let said = self.io(instance, "read -v 0 1");
        let byte = said.split_whitespace().nth(1).and_then(|byte| u8::from_str_radix(byte, 16).ok());
        let found = known.iter().find(|text| byte == Some(pattern(text)));
        found.map_or(Look::Absent, |text| Look::Content((*text).to_owned()))
    }

    fn give_up_points(&self) -> Vec<u32> {
        (1..=24).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_keeps_the_contract() {
    for check in CHECKS {
        let ground = Ground::new();
        eprintln!("{}", check.name);
        check.run(&ground.qemu, &ground).await;
    }
}

#[tokio::test]
async fn a_machine_outlives_the_controller_that_started_it_and_is_taken_over() {
    let mut ground = Ground::new();
    let order = ground.created().await;
    let pid = ground.pid(&order.instance);
    ground.another_life();
    assert_eq!(ground.state().await, InstanceState::Running);
    assert_eq!(ground.qemu.prove(&order.instance).await.unwrap(), Some(order.seed.nonce.clone()));
    ground.qemu.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!(ground.pid(&order.instance), pid, "it is not started twice");
    ground.qemu.destroy(&order.target()).await.unwrap();
    assert_eq!(marked(order.seed.nonce.as_str()), []);
    assert!(!ground.file("").exists());
}

#[tokio::test]
async fn a_start_that_a_dead_controller_did_not_finish_is_ended_and_can_be_repeated() {
    let mut ground = Ground::new();
    let order = ground.created().await;
    let pid = ground.pid(&order.instance);
    // As a controller leaves it that dies before the guest has its seed.
    fs::write(ground.file("stopped"), "").unwrap();
    ground.another_life();
    assert_eq!(ground.state().await, InstanceState::Starting);
    ground.until(InstanceState::Stopped).await;
    ground.qemu.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    assert_ne!(ground.pid(&order.instance), pid);
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_start_goes_ahead_over_one_that_a_dead_controller_did_not_finish() {
    let mut ground = Ground::new();
    let order = ground.created().await;
    let pid = ground.pid(&order.instance);
    fs::write(ground.file("stopped"), "").unwrap();
    ground.another_life();
    ground.qemu.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    assert_ne!(ground.pid(&order.instance), pid);
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_powers_itself_off_was_not_a_crash() {
    let ground = Ground::new();
    let order = ground.created().await;
    use std::io::{Read, Write};
    let mut monitor = std::os::unix::net::UnixStream::connect(ground.file("qmp.sock")).unwrap();
    monitor.write_all(b"{\"execute\": \"system_powerdown\"}\n").unwrap();
    let mut said = [0; 512];
    while !String::from_utf8_lossy(&said).contains("return") {
        assert!(monitor.read(&mut said).unwrap() > 0);
    }
    drop(monitor);
    ground.until(InstanceState::Stopped).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !marked(order.seed.nonce.as_str()).is_empty() {
        assert!(Instant::now() < deadline, "its QEMU is ended");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ground.state().await, InstanceState::Stopped);
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_folder_that_is_not_ours_is_listed_without_a_nonce_and_left_alone() {
    let ground = Ground::new();
    fs::create_dir_all(ground.file("")).unwrap();
    fs::write(ground.file("machine.json"), "{").unwrap();
    let found = ground.qemu.list().await.unwrap();
    assert_eq!(found.iter().map(|it| it.nonce.clone()).collect::<Vec<_>>(), [None]);
    let order = ground.order("web");
    assert!(matches!(ground.qemu.create(&order).await, Err(DriverError::Foreign { .. })));
    assert!(matches!(ground.qemu.destroy(&order.target()).await, Err(DriverError::Foreign { .. })));
    assert!(ground.file("machine.json").exists());
}

#[tokio::test]
async fn a_token_touches_no_file_of_the_host_and_no_command_line() {
    let ground = Ground::new();
    let order = ground.created().await;
    let token = order.seed.join_token.expose();
    assert_eq!(fs::read_to_string(ground.file("token")).unwrap(), token, "it came through the channel");
    let command = fs::read(format!("/proc/{}/cmdline", ground.pid(&order.instance).as_raw_pid())).unwrap();
    assert!(!String::from_utf8_lossy(&command).contains(token));
    for entry in fs::read_dir(ground.file("")).unwrap().flatten().filter(|entry| entry.file_name() != "token") {
        let content = fs::read(entry.path()).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&content).contains(token), "{:?}", entry.file_name());
    }
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn what_goes_wrong_with_a_start_is_a_sentence_and_the_machine_is_stopped() {
    let ground = Ground::new();
    let cases = [
        ("broken", vec!["QEMU ended at once", "broken on purpose"]),
        ("locked", vec!["another QEMU has its disk open"]),
        ("refusing", vec!["could not do as it was told: there is no room for it"]),
        ("falling", vec!["QEMU ended while the machine booted", "fell over"]),
    ];
    for (name, words) in cases {
        let order = ground.order(name);
        let error = ground.qemu.create(&order).await.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!error.contains(order.seed.join_token.expose()));
        assert_eq!(ground.state().await, InstanceState::Stopped);
        assert_eq!(marked(order.seed.nonce.as_str()), []);
        ground.qemu.destroy(&order.target()).await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_that_stands_still_for_want_of_disk_counts_as_up_and_goes_on_when_it_can() {
    let ground = Ground::new();
    let order = ground.order("full");
    ground.qemu.create(&order).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    let went_on = ground.qemu.folder(&order.instance).join("went-on");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !went_on.exists() {
        assert!(Instant::now() < deadline, "it is told to go on");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ground.state().await, InstanceState::Running);
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.qemu.stop(&order.target()).await.unwrap();
    let programs = Programs { system: "/nowhere/qemu-system".into(), ..ground.programs.clone() };
    let error = qemu(ground.root.path(), &programs).start(&order.target(), &order.seed, &order.mounts).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("`/nowhere/qemu-system` can't be run") && error.contains("No such file"), "{error}");
    let programs = Programs { img: "/nowhere/qemu-img".into(), ..ground.programs.clone() };
    let error = qemu(ground.root.path(), &programs).create(&ground.order("db")).await.unwrap_err().to_string();
    assert!(error.contains("`/nowhere/qemu-img` can't be run"), "{error}");
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_disk_only_grows() {
    let ground = Ground::new();
    let order = ground.created().await;
    let larger = ground.sizes(true);
    ground.qemu.resize(&order.target(), &larger).await.unwrap();
    let mut info = Command::new(&ground.programs.img);
    let info = info.args(["info", "--output=json"]).arg(ground.file("disk.qcow2")).output().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["virtual-size"], larger.disk.bytes());
    let smaller = Sizes { disk: ByteSize::from_gib(1), ..larger };
    let error = ground.qemu.resize(&order.target(), &smaller).await.unwrap_err().to_string();
    assert!(error.contains("its disk has 10G already, and a disk only grows"), "{error}");
    assert_eq!(ground.qemu.list().await.unwrap()[0].sizes, Some(larger));
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn an_image_that_is_no_more_is_told_before_anything_is_started() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.qemu.stop(&order.target()).await.unwrap();
    fs::remove_dir_all(ground.root.path().join("images")).unwrap();
    let started = ground.qemu.start(&order.target(), &order.seed, &order.mounts).await;
    assert!(started.unwrap_err().to_string().contains("is not here any more"));
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_runs_is_asked_and_seeded_anew_over_its_channel_if_it_is_the_one_that_is_meant() {
    let ground = Ground::new();
    let order = ground.created().await;
    let challenge = Secret::generate();
    let witness = ground.qemu.challenge(&order.target(), &challenge).await.unwrap();
    assert_eq!((witness.nonce.as_ref(), witness.hypervisor.as_deref()), (Some(&order.seed.nonce), Some("qemu")));
    assert_eq!(fs::read_to_string(ground.file("challenge")).unwrap(), challenge.expose());
    let renewed = Seed { join_token: Secret::generate(), ..order.seed.clone() };
    ground.qemu.reseed(&order.target(), &renewed).await.unwrap();
    assert_eq!(fs::read_to_string(ground.file("token")).unwrap(), renewed.join_token.expose());

    let other = Target { nonce: Nonce::generate(), ..order.target() };
    let asked = ground.qemu.challenge(&other, &challenge).await;
    assert!(matches!(asked, Err(DriverError::Foreign { .. })), "{asked:?}");
    let seeded = ground.qemu.reseed(&other, &renewed).await;
    assert!(matches!(seeded, Err(DriverError::Foreign { .. })), "{seeded:?}");
    ground.qemu.stop(&order.target()).await.unwrap();
    assert!(ground.qemu.challenge(&order.target(), &challenge).await.is_err(), "it is down");
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_folder_with_a_long_path_is_no_obstacle() {
    let mut ground = Ground::new();
    let long = ground.root.path().join("a-folder-with-a-long-name".repeat(5));
    fs::create_dir(&long).unwrap();
    ground.qemu = qemu(&long, &ground.programs);
    let order = ground.created().await;
    assert_eq!(ground.qemu.prove(&order.instance).await.unwrap(), Some(order.seed.nonce.clone()));
    ground.qemu.destroy(&order.target()).await.unwrap();
}

/// Has the monitor of a machine that runs carry out a command.
fn monitor(ground: &Ground, command: &str) {
    use std::io::{BufRead, BufReader, Write};
    let mut monitor = std::os::unix::net::UnixStream::connect(ground.file("qmp.sock")).unwrap();
    monitor.write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).unwrap();
    let said = BufReader::new(monitor).lines().map_while(Result::ok);
    assert!(said.into_iter().any(|line| line.contains("return")));
}

fn machine(ground: &Ground) -> serde_json::Value {
    serde_json::from_slice(&fs::read(ground.file("machine.json")).unwrap()).unwrap()
}

fn files(ground: &Ground, start: &str) -> usize {
    let names = fs::read_dir(ground.file("")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with(start)).count()
}

#[tokio::test]
async fn a_machine_that_a_dead_controller_left_standing_still_goes_on() {
    let mut ground = Ground::new();
    let order = ground.created().await;
    monitor(&ground, "migrate");
    ground.another_life();
    assert_eq!(ground.state().await, InstanceState::Running);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ground.file("went-on").exists() {
        assert!(Instant::now() < deadline, "it is told to go on");
        sleep(Duration::from_millis(10)).await;
    }
    ground.qemu.snapshot(&order.target(), &"point".parse().unwrap()).await.unwrap();
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_machine_whose_memory_can_not_be_loaded_boots_from_its_disk() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.qemu.stop(&order.target()).await.unwrap();
    assert!(ground.note(&order.instance, "kept").await);
    ground.qemu.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    ground.qemu.suspend(&order.target()).await.unwrap();
    let mut other = machine(&ground);
    other["resume"]["memory"]["qemu"] = "another version".into();
    fs::write(ground.file("machine.json"), other.to_string()).unwrap();
    ground.qemu.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!(ground.state().await, InstanceState::Running);
    assert!(machine(&ground)["resume"].is_null());
    ground.qemu.stop(&order.target()).await.unwrap();
    assert_eq!(ground.noted(&order.instance).await, Look::Content("kept".to_owned()));
    ground.qemu.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
    assert_eq!((files(&ground, "saved-"), files(&ground, "disk")), (0, 2), "what nothing needs is gone");
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn however_often_a_machine_sleeps_its_disk_has_few_layers() {
    let ground = Ground::new();
    let order = ground.created().await;
    ground.qemu.stop(&order.target()).await.unwrap();
    assert!(ground.note(&order.instance, "kept").await);
    for _ in 0..20 {
        ground.qemu.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
        ground.qemu.suspend(&order.target()).await.unwrap();
    }
    assert!(files(&ground, "disk") <= 18, "{} layers", files(&ground, "disk"));
    assert_eq!(ground.noted(&order.instance).await, Look::Content("kept".to_owned()));
    ground.qemu.destroy(&order.target()).await.unwrap();
}

impl Ground {
    fn warm(&self, name: &str) -> CreateOrder {
        CreateOrder { warm: true, ..self.order(name) }
    }

    /// What is kept of warm starts, and what is half made or half deleted there.
    fn kept(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let found = fs::read_dir(self.root.path().join("warm")).into_iter().flatten();
        let paths = found.map(|entry| entry.unwrap().path());
        paths.partition(|path| path.file_name().unwrap().len() == 64)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_machines_at_once_begin_as_one_that_is_made_once() {
    let ground = Ground::new();
    let names = (1..20).map(|number| format!("web-{number}")).chain(["web".to_owned()]);
    let orders: Vec<_> = names.map(|name| ground.warm(&name)).collect();
    let creates: Vec<_> = orders
        .iter()
        .map(|order| {
            let (qemu, order) = (ground.qemu.clone(), order.clone());
            tokio::spawn(async move { qemu.create(&order).await })
        })
        .collect();
    for create in creates {
        create.await.unwrap().unwrap();
    }
    let (kept, others) = ground.kept();
    assert_eq!((kept.len(), others), (1, Vec::new()));
    let state = |order: &CreateOrder| {
        let machine = fs::read(ground.qemu.folder(&order.instance).join("machine.json")).unwrap();
        let machine: serde_json::Value = serde_json::from_slice(&machine).unwrap();
        (machine["machineId"].to_string(), machine["mac"].to_string())
    };
    let ids: std::collections::BTreeSet<_> = orders.iter().map(state).collect();
    assert_eq!(ids.len(), 20);
    // Nothing of it is left in a machine's folder but the layer that its disk lies over.
    assert_eq!((files(&ground, "saved-"), ground.qemu.list().await.unwrap().len()), (0, 20));
    // Other sizes are another kind of machine.
    let larger = CreateOrder { sizes: ground.sizes(true), ..ground.warm("large") };
    ground.qemu.create(&larger).await.unwrap();
    assert_eq!(ground.kept().0.len(), 2);
    for order in orders.iter().chain([&larger]) {
        ground.qemu.destroy(&order.target()).await.unwrap();
    }
    assert_eq!(ground.kept().0.len(), 2, "it is there for those to come");
}

#[tokio::test]
async fn what_a_dead_controller_left_of_a_warm_start_is_ended_and_deleted() {
    let mut ground = Ground::new();
    let order = ground.warm("web");
    ground.qemu.create(&order).await.unwrap();
    let left = ground.root.path().join("warm/.making-warm-0123456789ab.x/warm-0123456789ab");
    fs::create_dir_all(&left).unwrap();
    let mut machine: serde_json::Value =
        serde_json::from_slice(&fs::read(ground.file("machine.json")).unwrap()).unwrap();
    machine["nonce"] = "AAAAAAAAAAAAAAAAAAAAAA".into();
    fs::write(left.join("machine.json"), machine.to_string()).unwrap();
    let mut running =
        Command::new("sleep").arg("1000").env(INSTANCE_VARIABLE, "AAAAAAAAAAAAAAAAAAAAAA").spawn().unwrap();
    ground.another_life();
    ground.qemu.list().await.unwrap();
    let ended = tokio::task::spawn_blocking(move || running.wait().unwrap()).await.unwrap();
    assert!(!ended.success());
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ground.kept().1.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", ground.kept());
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ground.kept().0.len(), 1, "what is whole stays");
    assert_eq!(ground.state().await, InstanceState::Running);
    ground.qemu.destroy(&order.target()).await.unwrap();
}

#[tokio::test]
async fn a_warm_start_that_is_damaged_is_given_up_and_the_machine_boots() {
    let ground = Ground::new();
    let first = ground.warm("web");
    ground.qemu.create(&first).await.unwrap();
    let kept = ground.kept().0.remove(0);
    fs::remove_file(kept.join("memory")).unwrap();
    let next = ground.warm("db");
    ground.qemu.create(&next).await.unwrap();
    assert_eq!(ground.kept(), (Vec::new(), Vec::new()));
    let disk = |order: &CreateOrder| {
        let machine = fs::read(ground.qemu.folder(&order.instance).join("machine.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&machine).unwrap()["disk"].as_str().unwrap().to_owned()
    };
    assert_eq!(disk(&next), "disk.qcow2", "it lies over the image");
    ground.qemu.destroy(&next.target()).await.unwrap();
    ground.qemu.destroy(&first.target()).await.unwrap();
}

//! Driver `qemu` with real machines: QEMU, a kernel, systemd, and the guest program in it. What needs no
//! machine is tested with a stand-in, in `qemu_stand_in.rs`.
//!
//! The image is built once, in the folder of `VM_AGENT_TEST_IMAGES` or in the target folder, and is used by
//! every test that needs one. Where a machine can't be made these tests leave themselves out, unless
//! `VM_AGENT_TEST_MACHINES` is set, as `cargo xtask test` does once it has what they need.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it shares with others")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use vm_agent_drivers::contract::{CHECKS, World, an_order};
use vm_agent_drivers::images::{Images, debian};
use vm_agent_drivers::provisioning::Provisioning;
use vm_agent_drivers::qemu::{Programs, Qemu};
use vm_agent_drivers::{Base, CreateOrder, Driver, DriverError, Target};
use vm_agent_schemas::fleet::{ImageReference, Provision};
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::{InstanceState, Sizes};
use vm_agent_schemas::units::ByteSize;

/// Set where machines can be made, so that these tests can't leave themselves out there.
const MUST_RUN: &str = "VM_AGENT_TEST_MACHINES";

/// A driver on a root of its own. Whatever happens to the test, no machine of it runs on.
struct Ground {
    root: TempDir,
    qemu: Qemu,
}

impl Ground {
    /// Nothing where this host can't make machines, and need not.
    async fn new() -> Option<Self> {
        Self::with(ImageReference::Recipe).await
    }

    /// The same, with this image.
    async fn with(image: ImageReference) -> Option<Self> {
        let must_run = std::env::var_os(MUST_RUN).is_some();
        let programs = match Programs::find() {
            Err(_) if !must_run => return None,
            found => found.unwrap_or_else(|missing| panic!("{missing}")),
        };
        if !runtime().exists() && !must_run {
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let machines = root.path().join("machines");
        let images = Images::new(cache(), machines.clone(), programs.img.clone(), debian());
        let built = images.obtain(&image, &|_| ()).await;
        built.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        let provisioning = Provisioning::new(runtime());
        let seed_disk = Arc::new(move |instance: &InstanceName, incarnation, provision: &Provision, path: &Path| {
            provisioning.write(instance, incarnation, provision, path)
        });
        Some(Self { root, qemu: Qemu::new(machines, programs, images, seed_disk) })
    }

    fn pid(&self, instance: &InstanceName) -> Option<Pid> {
        let text = fs::read_to_string(self.qemu.folder(instance).join("qemu.pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }
}

/// Where images are kept between tests.
fn cache() -> PathBuf {
    let named = std::env::var_os("VM_AGENT_TEST_IMAGES").map(PathBuf::from);
    named.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("images"))
}

/// The runtime for guests.
fn runtime() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../dist/x86_64-unknown-linux-gnu/vm-agent-runtime");
    std::env::var_os("VM_AGENT_RUNTIME").map_or(built, PathBuf::from)
}

impl Drop for Ground {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root.path().join("machines")).into_iter().flatten().flatten() {
            if let Some(pid) = entry.file_name().to_str().and_then(|name| self.pid(&name.parse().ok()?)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

#[async_trait]
impl World for Ground {
    async fn crash(&self, instance: &InstanceName) {
        let pid = self.pid(instance).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while test_kill_process(pid).is_ok() {
            assert!(Instant::now() < deadline, "a killed process is gone, and no zombie");
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn image(&self) -> String {
        "debian".to_owned()
    }

    fn sizes(&self, larger: bool) -> Sizes {
        let (memory, disk) = if larger { (320, 3) } else { (256, 2) };
        Sizes { cpus: 1, memory: ByteSize::from_bytes(memory * ByteSize::MIB), disk: ByteSize::from_gib(disk) }
    }

    fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(&self.root).unwrap().keep()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// Each costs a machine.
    fn give_up_points(&self) -> Vec<u32> {
        vec![4, 12, 40]
    }
}

/// The promises that a real machine can break in another way than a stand-in. The others boot many times and
/// are about the driver alone.
const PROMISES: [&str; 8] = [
    "stopping_and_starting_can_be_repeated",
    "another_nonce_is_refused_by_every_verb",
    "sizes_change_as_the_capabilities_say",
    "a_crashed_instance_shows_as_failed_and_can_be_started",
    "the_nonce_can_be_read_back",
    "a_restore_brings_back_what_was_as_another_incarnation",
    "a_clone_lives_beside_its_source_and_after_it",
    "a_suspended_instance_goes_on_and_a_stopped_one_does_not",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_machines_keep_the_contract() {
    let mut checked = 0;
    for check in CHECKS.iter().filter(|check| PROMISES.contains(&check.name)) {
        let Some(ground) = Ground::new().await else { return };
        check.run(&ground.qemu, &ground).await;
        checked += 1;
    }
    assert_eq!(checked, PROMISES.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_can_not_be_given_what_it_is_to_have_tells_why_and_is_no_more() {
    let Some(ground) = Ground::new().await else { return };
    let provision = serde_json::from_value(json!({"user": "dev", "packages": ["no-such-package"]})).unwrap();
    let order =
        CreateOrder { base: Base::Image(ground.image()), sizes: ground.sizes(false), provision, ..an_order("web") };
    let error = ground.qemu.create(&order).await.unwrap_err().to_string();
    let told = "the machine did not get what it is to have besides the runtime";
    // In the words of the guest's own apt: without a network it says so instead.
    assert!(error.contains(told) && error.contains("E: ") && !error.contains("systemd"), "{error}");
    assert_eq!(ground.qemu.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_cloud_init_makes_a_machine_of_what_the_file_says() {
    let Some(ground) = Ground::with(ImageReference::CloudRecipe).await else { return };
    let order = |name: &str, provision| {
        let (base, sizes) = (Base::Image(ImageReference::CloudRecipe.to_string()), ground.sizes(true));
        CreateOrder { base, sizes, provision: serde_json::from_value(provision).unwrap(), ..an_order(name) }
    };
    // Its last command says whether all was there; a command that fails fails the machine.
    let seen = "test -e /etc/from-the-file && id dev && command -v hello";
    let order_of_all = order(
        "web",
        json!({
            "user": "dev",
            "packages": ["hello"],
            "cloudInit": {
                "write_files": [{"path": "/etc/from-the-file", "content": "x"}],
                "runcmd": [["sh", "-c", seen]],
            },
        }),
    );
    ground.qemu.create(&order_of_all).await.unwrap();
    let proven = ground.qemu.prove(&order_of_all.instance).await.unwrap();
    assert_eq!(proven, Some(order_of_all.seed.nonce.clone()));
    ground.qemu.destroy(&order_of_all.target()).await.unwrap();

    let failing = order("db", json!({"cloudInit": {"runcmd": ["echo the reason is this; exit 3"]}}));
    let error = ground.qemu.create(&failing).await.unwrap_err().to_string();
    assert!(error.contains("the reason is this") && error.contains("cloud-init"), "{error}");
    assert_eq!(ground.qemu.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_machine_shows_its_nonce_and_goes_down() {
    let Some(ground) = Ground::new().await else { return };
    let order = CreateOrder { base: Base::Image(ground.image()), sizes: ground.sizes(false), ..an_order("web") };
    ground.qemu.create(&order).await.unwrap();
    assert_eq!(ground.qemu.prove(&order.instance).await.unwrap(), Some(order.seed.nonce.clone()));
    ground.qemu.stop(&order.target()).await.unwrap();
    assert_eq!(ground.qemu.list().await.unwrap()[0].state, InstanceState::Stopped);
    ground.qemu.destroy(&order.target()).await.unwrap();
    assert_eq!(ground.qemu.list().await.unwrap(), []);
}

/// How long something takes, for people.
#[allow(clippy::print_stderr, reason = "a test prints what it measures")]
async fn timed<T>(what: &str, call: impl Future<Output = Result<T, DriverError>>) -> T {
    let begun = Instant::now();
    let done = call.await.unwrap_or_else(|error| panic!("{what}: {error}"));
    eprintln!("{what}: {:.2} s", begun.elapsed().as_secs_f64());
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_machine_goes_on_from_its_memory_as_itself_as_another_and_as_its_copy() {
    let Some(ground) = Ground::new().await else { return };
    let qemu = &ground.qemu;
    let order = CreateOrder { base: Base::Image(ground.image()), sizes: ground.sizes(false), ..an_order("web") };
    timed("create", qemu.create(&order)).await;
    let (target, name) = (order.target(), "warm".parse().unwrap());
    let proven = async |order: &CreateOrder| {
        assert_eq!(qemu.prove(&order.instance).await.unwrap(), Some(order.seed.nonce.clone()));
    };
    timed("snapshot", qemu.snapshot(&target, &name)).await;
    let second = "second".parse().unwrap();
    timed("another snapshot of the same life", qemu.snapshot(&target, &second)).await;
    proven(&order).await;
    let memory = fs::metadata(qemu.folder(&order.instance).join("snapshots/warm/memory")).unwrap().len();
    eprintln!("memory: {} MiB", memory / ByteSize::MIB);

    let clone = CreateOrder { base: Base::Snapshot(target.clone(), name.clone()), ..order_like(&order, "copy") };
    timed("clone", qemu.create(&clone)).await;
    proven(&clone).await;
    proven(&order).await;
    timed("destroying the clone", qemu.destroy(&clone.target())).await;

    // So many layers that its disk is made one again, while it runs.
    for number in 0..16 {
        qemu.snapshot(&target, &format!("more-{number}").parse().unwrap()).await.unwrap();
    }
    for number in 0..16 {
        qemu.delete_snapshot(&target, &format!("more-{number}").parse().unwrap()).await.unwrap();
    }
    let layers = || {
        let files = fs::read_dir(qemu.folder(&order.instance)).unwrap().map(|entry| entry.unwrap().file_name());
        files.filter(|name| name.to_str().unwrap().starts_with("disk")).count()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while layers() > 5 {
        assert!(Instant::now() < deadline, "{} layers", layers());
        sleep(Duration::from_millis(50)).await;
        qemu.delete_snapshot(&target, &"none".parse().unwrap()).await.unwrap();
    }
    proven(&order).await;

    timed("suspend", qemu.suspend(&target)).await;
    assert_eq!(qemu.list().await.unwrap()[0].state, InstanceState::Suspended);
    timed("going on", qemu.start(&target, &order.seed, &order.mounts)).await;
    proven(&order).await;
    timed("stop", qemu.stop(&target)).await;

    let mut next = order.clone();
    (next.seed.nonce, next.seed.incarnation) = (Nonce::generate(), order.seed.incarnation.next());
    let there = Target { former: Some(order.seed.nonce.clone()), ..next.target() };
    timed("restore", qemu.restore(&there, &name, &next.seed, &next.mounts)).await;
    proven(&next).await;
    timed("stop", qemu.stop(&next.target())).await;

    // The memory waits in it until somebody starts it.
    let mut last = next.clone();
    (last.seed.nonce, last.seed.incarnation) = (Nonce::generate(), next.seed.incarnation.next());
    let there = Target { former: Some(next.seed.nonce.clone()), ..last.target() };
    timed("going back", qemu.go_back(&there, &name, &last.seed)).await;
    assert_eq!(qemu.list().await.unwrap()[0].state, InstanceState::Suspended);
    let kept = qemu.snapshot_sizes(&last.target()).await.unwrap()[&name];
    let memory = fs::metadata(qemu.folder(&last.instance).join(format!("snapshots/{name}/memory"))).unwrap().len();
    assert!(kept.bytes() > memory / 2, "{kept:?} with a memory of {memory}");
    timed("starting it", qemu.start(&last.target(), &last.seed, &last.mounts)).await;
    proven(&last).await;
    timed("destroy", qemu.destroy(&last.target())).await;
    assert_eq!(qemu.list().await.unwrap(), []);
}

fn order_like(order: &CreateOrder, name: &str) -> CreateOrder {
    CreateOrder { sizes: order.sizes, ..an_order(name) }
}

/// Whether a file has these bytes in it.
fn holds(file: &Path, bytes: &str) -> bool {
    let found = std::process::Command::new("grep").args(["-qaF", "-e", bytes, "--"]).arg(file).status().unwrap();
    assert!(matches!(found.code(), Some(0 | 1)), "{}: {found}", file.display());
    found.success()
}

/// What a machine is in the eyes of the guest program.
async fn machine_id(ground: &Ground, order: &CreateOrder) -> String {
    assert_eq!(ground.qemu.prove(&order.instance).await.unwrap(), Some(order.seed.nonce.clone()));
    let text = fs::read(ground.qemu.folder(&order.instance).join("machine.json")).unwrap();
    let machine: serde_json::Value = serde_json::from_slice(&text).unwrap();
    machine["machineId"].as_str().unwrap().to_owned()
}

/// The processor time that a machine has taken, in seconds.
fn processor_time(ground: &Ground, order: &CreateOrder) -> f64 {
    let pid = ground.pid(&order.instance).unwrap().as_raw_nonzero();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks: f64 =
        stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).map(|it| it.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_start_warm_are_others_and_machines_like_any() {
    let Some(ground) = Ground::new().await else { return };
    let (qemu, warm) = (&ground.qemu, ground.root.path().join("warm"));
    let order = |name: &str| CreateOrder {
        base: Base::Image(ground.image()),
        sizes: ground.sizes(false),
        warm: true,
        ..an_order(name)
    };
    let kept = || {
        let found = fs::read_dir(&warm).into_iter().flatten().map(|entry| entry.unwrap().path());
        found.filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.')).collect::<Vec<_>>()
    };
    // Two at once need one: it is made once.
    let (one, two, three) = (order("one"), order("two"), order("three"));
    let (first, second) =
        tokio::join!(timed("the first", qemu.create(&one)), timed("at once with it", qemu.create(&two)));
    let ((), ()) = (first, second);
    let [place] = &kept()[..] else { panic!("{:?}", kept()) };
    timed("the next", qemu.create(&three)).await;
    eprintln!("processor time: {:.2} s", processor_time(&ground, &three));
    let mut ids = Vec::new();
    for order in [&one, &two, &three] {
        ids.push(machine_id(&ground, order).await);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3);

    // Nobody is in what they began as; and what is looked for would be found.
    assert!(holds(&place.join("ram"), "vm-agent-runtime"));
    for file in ["ram", "memory", "disk.qcow2", "seed.img"] {
        for order in [&one, &two, &three] {
            assert!(!holds(&place.join(file), order.seed.nonce.as_str()), "{file}");
            assert!(!holds(&place.join(file), order.seed.join_token.expose()), "{file}");
        }
    }

    // They are like any other: suspended and gone on, kept and gone back to, copied, booted.
    let target = three.target();
    timed("suspend", qemu.suspend(&target)).await;
    timed("going on", qemu.start(&target, &three.seed, &three.mounts)).await;
    assert_eq!(qemu.prove(&three.instance).await.unwrap(), Some(three.seed.nonce.clone()));
    let name = "point".parse().unwrap();
    timed("snapshot", qemu.snapshot(&target, &name)).await;
    let clone = CreateOrder { base: Base::Snapshot(target.clone(), name), sizes: three.sizes, ..an_order("copy") };
    timed("clone", qemu.create(&clone)).await;
    assert_eq!(qemu.prove(&clone.instance).await.unwrap(), Some(clone.seed.nonce.clone()));
    timed("destroy", qemu.destroy(&clone.target())).await;

    // What can't be loaded any more is given up, and the machine boots.
    fs::write(place.join("memory"), "no memory").unwrap();
    let four = order("four");
    timed("with nothing to begin as", qemu.create(&four)).await;
    assert_eq!(qemu.prove(&four.instance).await.unwrap(), Some(four.seed.nonce.clone()));
    assert_eq!(kept(), Vec::<PathBuf>::new());
    // What began as it does not need it.
    qemu.stop(&one.target()).await.unwrap();
    timed("a boot of one that began warm", qemu.start(&one.target(), &one.seed, &one.mounts)).await;
    assert_eq!(machine_id(&ground, &one).await.len(), 32);
    for order in [&one, &two, &three, &four] {
        qemu.destroy(&order.target()).await.unwrap();
    }
    assert_eq!(qemu.list().await.unwrap(), []);
}

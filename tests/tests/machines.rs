//! A fleet of real machines, from its file to its end. Where no machine can be made this leaves itself out, unless
//! `VM_AGENT_TEST_MACHINES` is set, as `cargo xtask test` does once it has what it needs.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "this is a test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;
use vm_agent_schemas::api::AgentView;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::ids::{Boot, Digest, Secret};
use vm_agent_schemas::wire::{Evidence, FromHub, FromRuntime, HUB_PATH, Hello, RefusalCode, Seed};
use vm_agent_tests::e2e::{Fleet, send};
use vm_agent_tests::fleet_of_fakes::{Disk, Peer};

/// Set where machines can be made, so that this can't leave itself out there.
const MUST_RUN: &str = "VM_AGENT_TEST_MACHINES";

const NAMES: [&str; 3] = ["box", "db", "web"];

/// The fleet, with so much memory for `web`.
fn three(memory: &str) -> String {
    format!(
        "defaults: {{driver: qemu, memory: 256M, disk: 2G}}
agents:
  web: {{memory: {memory}, env: {{GREETING: hello}}, tasks: {{setup: {{exec: 'echo $GREETING > done'}}}}}}
  db: {{files: {{note: kept}}}}
  box: {{user: dev, sudo: true, packages: [hello]}}
"
    )
}

/// Where images are kept, and the runtime for machines; nothing where no machine can be made here.
fn ground() -> Option<(PathBuf, PathBuf)> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let named = |variable: &str, usual: PathBuf| std::env::var_os(variable).map_or(usual, PathBuf::from);
    let runtime = named("VM_AGENT_RUNTIME", target.join("../dist/x86_64-unknown-linux-gnu/vm-agent-runtime"));
    let has = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    };
    let missing = if !runtime.is_file() {
        "the runtime for machines is missing; build it with `cargo xtask dist`"
    } else if !(has("qemu-system-x86_64") && has("qemu-img") && has("mmdebstrap")) {
        "QEMU or mmdebstrap is missing; `cargo xtask test` installs them"
    } else {
        return Some((named("VM_AGENT_TEST_IMAGES", target.join("images")), runtime));
    };
    assert!(std::env::var_os(MUST_RUN).is_none(), "{missing}");
    eprintln!("left out: {missing}");
    None
}

/// The QEMU of each machine.
fn qemus(fleet: &Fleet) -> BTreeMap<&'static str, u32> {
    let pid =
        |name: &str| std::fs::read_to_string(fleet.machine(name).join("qemu.pid")).unwrap().trim().parse().unwrap();
    let qemus: BTreeMap<_, _> = NAMES.map(|name| (name, pid(name))).into();
    // What the fleet runs besides has `qemu` nowhere in its command.
    let living = fleet.processes().into_iter().filter(|it| it.command.iter().any(|word| word == "-pidfile"));
    let mut living: Vec<u32> = living.map(|process| process.pid).collect();
    let mut known: Vec<u32> = qemus.values().copied().collect();
    living.sort_unstable();
    known.sort_unstable();
    assert_eq!(living, known, "one QEMU for each machine");
    qemus
}

/// The boot of each machine, as its kernel numbers it.
fn boots(fleet: &Fleet) -> BTreeMap<&'static str, String> {
    NAMES.map(|name| (name, fleet.exec(name, "cat /proc/sys/kernel/random/boot_id"))).into()
}

/// How many steps began on machines since then.
fn steps(fleet: &Fleet, since: u64) -> usize {
    fleet.events_since(since).iter().filter(|event| event.kind == EventKind::StepStarted).count()
}

/// The session of an agent that is another than this one.
fn next_session(fleet: &Fleet, name: &str, former: u64) {
    fleet.wait_for_agent(name, "connected anew", |agent| {
        agent.session.as_ref().is_some_and(|session| session.epoch.0 > former)
    });
    fleet.wait_until_well();
}

fn session(fleet: &Fleet, name: &str) -> u64 {
    fleet.agent(name).session.expect("it is connected").epoch.0
}

#[test]
fn three_machines_live_through_everything_and_are_booted_no_more_than_they_have_to() {
    let Some((images, runtime)) = ground() else { return };
    let fleet = Fleet::of_machines(&three("256M"), &images, &runtime);
    fleet.up();
    fleet.wait_until_well();
    what_the_file_says_is_there(&fleet);
    what_was_stolen_from_a_machine_speaks_for_nobody(&fleet, &runtime);
    a_killed_qemu_is_started_again_alone(&fleet);
    a_killed_runtime_comes_back_without_a_boot(&fleet);
    a_reboot_from_inside_needs_nobody(&fleet);
    more_memory_in_the_file_is_drift_and_mended(&fleet);
    a_killed_controller_harms_no_machine(&fleet);

    fleet.ok(&["down", "--destroy", "--yes"]);
    fleet.wait_until_quiet();
    let left: Vec<_> = std::fs::read_dir(fleet.state_dir().join("machines")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn what_the_file_says_is_there(fleet: &Fleet) {
    assert_eq!(fleet.exec("web", "cat done; id -un"), "hello\nvm-agent\n");
    assert_eq!(fleet.exec("db", "cat note; echo; hostname; sudo -n id 2>/dev/null || echo none"), "kept\ndb\nnone\n");
    assert_eq!(fleet.exec("web", "getent hosts web localhost | cut -d ' ' -f 1"), "127.0.1.1\n::1\n");
    assert_eq!(fleet.exec("box", "id -un; sudo -n id -u; hello --greeting=there"), "dev\n0\nthere\n");
    for name in NAMES {
        let ran = fleet.run(&["task", name, "--wait", "--", "systemd-detect-virt; exit 7"]);
        assert_eq!(ran.code, 7, "{ran:?}");
    }
}

/// Everything that lies on a machine's disk, in a folder of this host.
fn steal(fleet: &Fleet, name: &str) -> tempfile::TempDir {
    let loot = tempfile::tempdir().unwrap();
    let packed = fleet.exec(name, "tar -C /var/lib/vm-agent --exclude ./work -cf - . | base64 -w0");
    let mut tar = Command::new("sh");
    tar.args(["-c", "base64 -d | tar -xf - --no-same-owner"]).current_dir(&loot).stdin(Stdio::piped());
    let mut tar = tar.spawn().unwrap();
    tar.stdin.take().unwrap().write_all(packed.as_bytes()).unwrap();
    assert!(tar.wait().unwrap().success());
    loot
}

/// What a thief of these files can say, who knows how a runtime makes it.
fn forged(fleet: &Fleet, name: &str, loot: &Path) -> Disk {
    let said = fleet.exec(name, "cat /etc/machine-id; stat -c %i /var/lib/vm-agent");
    let (system, inode) = said.trim().split_once('\n').unwrap();
    let inode: u64 = inode.parse().unwrap();
    let parts = [system.as_bytes(), b"/var/lib/vm-agent".as_slice(), &inode.to_be_bytes()];
    let seed: Seed = serde_json::from_slice(&std::fs::read(loot.join("seed.json")).unwrap()).unwrap();
    // The private half of a key stands behind the 16 bytes with which its document begins.
    let key = std::fs::read(loot.join("key")).unwrap()[16..48].try_into().unwrap();
    Disk { seed, key, machine_id: Digest::of(&parts.join(&0)), system: system.parse().unwrap(), boot: Boot(1000) }
}

fn what_was_stolen_from_a_machine_speaks_for_nobody(fleet: &Fleet, runtime: &Path) {
    for name in NAMES {
        let told = fleet.ok(&["verify", name]);
        assert!(told.contains("runs in its machine, under "), "{told}");
    }
    let (boots_before, last, loot) = (boots(fleet), fleet.last_event(), steal(fleet, "web"));
    // On this host the hub is on loopback, in plain text.
    let file = loot.path().join("seed.json");
    let hub = format!("ws://127.0.0.1:{}{HUB_PATH}", fleet.status().addresses.hub.port());
    let mut seed: Seed = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    (seed.hub, seed.hub_pin) = (hub, None);
    std::fs::write(&file, serde_json::to_vec(&seed).unwrap()).unwrap();

    // The real program with all of the files is found out at the door: it tells the truth of where it runs.
    let mut thief = Command::new(runtime).arg(loot.path()).stderr(Stdio::null()).spawn().unwrap();
    let refused = fleet.wait_for_event(last, EventKind::RuntimeRefused, Some("web"));
    assert!(refused.message.contains("(clone)"), "{refused:?}");
    thief.kill().unwrap();
    thief.wait().unwrap();

    // One that says all that the real one would gets in, and not for long.
    let disk = forged(fleet, "web", loot.path());
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (epoch, code) = tokio.block_on(async {
        let mut peer = Peer::connect(disk.hub(), disk.seed.agent.clone()).await.unwrap();
        let hello = Hello { join_token: None, ..disk.hello() };
        let Some(FromHub::Welcome(welcome)) = peer.shake(hello, &disk).await else {
            panic!("it has all that it takes")
        };
        loop {
            match peer.hear().await.expect("it is told why") {
                FromHub::Verify(question) => {
                    let (machine, guess) = (Some(disk.system.digest()), Secret::generate());
                    let boot = Some(boots_before["web"].trim().parse().unwrap());
                    let lie = Evidence::new(&question, Some(&guess), welcome.session, machine, boot);
                    peer.say(FromRuntime::Evidence(lie)).await;
                }
                FromHub::Refused(refused) => break (welcome.epoch.0, refused.code),
                _ => {}
            }
        }
    });
    assert_eq!(code, RefusalCode::Unverified);
    fleet.wait_for_event(last, EventKind::IsolationBroken, Some("web"));
    next_session(fleet, "web", epoch);
    fleet.ok(&["verify", "web"]);
    assert_eq!(boots(fleet), boots_before, "the machine went on all the time");
    assert_eq!(steps(fleet, last), 0);
}

fn a_killed_qemu_is_started_again_alone(fleet: &Fleet) {
    let (before, last) = (qemus(fleet), fleet.last_event());
    send(before["db"], Signal::KILL);
    fleet.wait_for_event(last, EventKind::InstanceFailed, Some("db"));
    fleet.wait_until_well();
    let after = qemus(fleet);
    assert_ne!(after["db"], before["db"]);
    assert_eq!((after["web"], after["box"]), (before["web"], before["box"]));
    assert_eq!(steps(fleet, last), 1);
    assert_eq!(fleet.exec("db", "cat note"), "kept");
}

fn a_killed_runtime_comes_back_without_a_boot(fleet: &Fleet) {
    let (boots_before, last, former) = (boots(fleet), fleet.last_event(), session(fleet, "web"));
    // The runtime is what started the shell. What becomes of the session is nobody's concern here.
    fleet.run(&["exec", "web", "--", "kill -9 $PPID"]);
    next_session(fleet, "web", former);
    assert_eq!(boots(fleet), boots_before);
    assert_eq!(steps(fleet, last), 0);
}

fn a_reboot_from_inside_needs_nobody(fleet: &Fleet) {
    let (boots_before, qemus_before) = (boots(fleet), qemus(fleet));
    let (last, former) = (fleet.last_event(), session(fleet, "box"));
    fleet.run(&["exec", "box", "--", "sudo -n systemctl reboot"]);
    next_session(fleet, "box", former);
    let boots_after = boots(fleet);
    assert_ne!(boots_after["box"], boots_before["box"]);
    assert_eq!((&boots_after["web"], &boots_after["db"]), (&boots_before["web"], &boots_before["db"]));
    assert_eq!(qemus(fleet), qemus_before);
    assert_eq!(steps(fleet, last), 0);
}

fn more_memory_in_the_file_is_drift_and_mended(fleet: &Fleet) {
    let memory = || fleet.exec("web", "awk '/MemTotal/ {print $2}' /proc/meminfo").trim().parse::<u64>().unwrap();
    let (small, before) = (memory(), qemus(fleet));
    fleet.write(&three("320M"));
    let plan = fleet.run(&["plan", "--detailed-exitcode"]);
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(plan.stdout.contains("memory"), "{plan:?}");
    fleet.ok(&["apply", "--yes"]);
    fleet.wait_until_well();
    // All of the difference but what the kernel needs to keep account of it.
    assert!(memory() > small + 60 * 1024, "{small} KiB, then {} KiB", memory());
    let after = qemus(fleet);
    assert_ne!(after["web"], before["web"]);
    assert_eq!((after["db"], after["box"]), (before["db"], before["box"]));
    assert_eq!(fleet.run(&["plan", "--detailed-exitcode"]).code, 0);
}

fn a_killed_controller_harms_no_machine(fleet: &Fleet) {
    let (boots_before, qemus_before, last) = (boots(fleet), qemus(fleet), fleet.last_event());
    fleet.kill_controller();
    assert_eq!(qemus(fleet), qemus_before);
    fleet.up();
    fleet.wait_until_well();
    assert_eq!(boots(fleet), boots_before);
    assert_eq!(qemus(fleet), qemus_before);
    assert_eq!(steps(fleet, last), 0);
}

/// How long something takes, for people.
#[allow(clippy::print_stderr, reason = "a test prints what it measures")]
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    eprintln!("{what}: {:.2} s", begun.elapsed().as_secs_f64());
    done
}

/// What tells a machine from its copies, as a program in it sees that.
fn marks(fleet: &Fleet, name: &str) -> Vec<String> {
    let line = "hostname; cat /etc/machine-id; cat /sys/class/net/e*/address; cat /var/lib/vm-agent/seed.json | tr , '\\n' | grep nonce";
    let said = fleet.exec(name, line);
    let marks: Vec<_> = said.lines().map(str::to_owned).collect();
    assert_eq!(marks.len(), 4, "{said}");
    marks
}

#[test]
fn a_machine_goes_back_to_what_it_was_and_has_copies_that_are_others() {
    let Some((images, runtime)) = ground() else { return };
    let fleet = Fleet::of_machines("agents: {web: {driver: qemu, memory: 256M, disk: 2G}}\n", &images, &runtime);
    timed("up", || fleet.up());
    fleet.wait_until_well();
    // Something that lives in memory alone, and something on the disk.
    fleet.exec("web", "echo alive > /dev/shm/it; echo before > note; sync");
    timed("snapshot", || fleet.ok(&["snapshot", "web", "--as", "point"]));
    fleet.exec("web", "echo after > note; rm /dev/shm/it; sync");
    let before = marks(&fleet, "web");

    timed("clone", || {
        fleet.ok(&["clone", "web", "copy", "--snapshot", "point"]);
        fleet.wait_until_well();
    });
    let copy = marks(&fleet, "copy");
    assert!(before.iter().zip(&copy).all(|(one, other)| one != other), "{before:?} {copy:?}");
    assert_eq!(fleet.exec("copy", "cat note /dev/shm/it"), "before\nalive\n");
    fleet.exec("copy", "echo the copy > note");
    assert_eq!(fleet.exec("web", "cat note; ls /dev/shm"), "after\n");

    timed("restore", || {
        fleet.ok(&["restore", "web", "point", "--yes"]);
        fleet.wait_until_well();
    });
    assert_eq!(fleet.exec("web", "cat note /dev/shm/it"), "before\nalive\n");
    let after = marks(&fleet, "web");
    assert!(before[1..].iter().zip(&after[1..]).all(|(one, other)| one != other), "{before:?} {after:?}");
    assert_eq!(fleet.exec("copy", "cat note"), "the copy\n");

    // It boots as itself, too.
    let former = session(&fleet, "copy");
    fleet.ok(&["destroy", "web", "--yes"]);
    fleet.run(&["exec", "copy", "--", "sync"]);
    reset(&fleet, "copy");
    timed("a boot of the copy", || {
        let is_new = |agent: &AgentView| agent.session.as_ref().is_some_and(|session| session.epoch.0 > former);
        fleet.wait_for_agent("copy", "connected anew", is_new)
    });
    assert_eq!(fleet.exec("copy", "cat note; ls /dev/shm"), "the copy\n");
    fleet.ok(&["down", "--destroy", "--yes"]);
    fleet.wait_until_quiet();
}

/// Presses a machine's reset button.
fn reset(fleet: &Fleet, name: &str) {
    let mut monitor = UnixStream::connect(fleet.machine(name).join("qmp.sock")).unwrap();
    for command in ["qmp_capabilities", "system_reset"] {
        monitor.write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).unwrap();
    }
    let events = BufReader::new(monitor).lines().map_while(Result::ok);
    assert!(events.into_iter().any(|event| event.contains("RESET")));
}

#[test]
fn agents_that_start_warm_are_others_and_what_they_begin_as_is_made_once() {
    let Some((images, runtime)) = ground() else { return };
    let with = |warm: bool| {
        format!("defaults: {{driver: qemu, memory: 256M, disk: 2G, warm: {warm}}}\nagents: {{web: {{replicas: 3}}}}\n")
    };
    let fleet = Fleet::of_machines(&with(true), &images, &runtime);
    timed("three, with what they begin as", || {
        fleet.up();
        fleet.wait_until_well();
    });
    let kept = std::fs::read_dir(fleet.state_dir().join("warm")).unwrap().count();
    assert_eq!(kept, 1);
    let own = "head -c 16 /dev/urandom | od -An -tx1; sha256sum </var/lib/vm-agent/key; cat /etc/hostname";
    let all: Vec<Vec<String>> = ["web-1", "web-2", "web-3"]
        .map(|name| [marks(&fleet, name), fleet.exec(name, own).lines().map(str::to_owned).collect()].concat())
        .into();
    for (number, one) in all.iter().enumerate() {
        for other in &all[number + 1..] {
            assert!(one.iter().zip(other).all(|(one, other)| one != other), "{one:?} {other:?}");
        }
        let now = fleet.exec(&format!("web-{}", number + 1), "date +%s").trim().parse::<i64>().unwrap();
        assert!((jiff::Timestamp::now().as_second() - now).abs() < 30, "its clock is right");
    }

    // What is there stays as it is, whatever is said of how it was to begin.
    let last = fleet.last_event();
    fleet.write(&with(false));
    assert_eq!(fleet.run(&["plan", "--detailed-exitcode"]).code, 0);
    fleet.ok(&["apply", "--yes"]);
    fleet.wait_until_well();
    assert_eq!(steps(&fleet, last), 0);
    fleet.ok(&["down", "--destroy", "--yes"]);
    fleet.wait_until_quiet();
}

//! The guest program on a folder in the place of a machine, with programs that only note what they are asked.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use vm_agent_schemas::guest::{Entropy, Identity, Mac, MachineId, PROVISION_UNIT, RUNTIME_UNIT};
use vm_agent_schemas::ids::{Incarnation, RequestId, Secret};
use vm_agent_schemas::wire::Seed;

use super::system::RunError;
use super::*;

const BOOT_ID: &str = "6c2f9f5c-6a0e-4d25-a8d3-fb5b7d0f6a11";
const HARDWARE: &str = "0d1f2e3c-0000-4000-8000-000000000001";

/// What programs were run, and which of them fail.
#[derive(Clone, Default)]
struct Noted {
    runs: Rc<RefCell<Vec<String>>>,
    failing: Rc<RefCell<Option<&'static str>>>,
}

impl System for Noted {
    fn now(&self) -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn set_time(&self, time: Timestamp) -> std::io::Result<()> {
        self.runs.borrow_mut().push(format!("clock {time}"));
        Ok(())
    }

    fn set_address(&self, card: u32, mac: &Mac) -> std::io::Result<()> {
        self.runs.borrow_mut().push(format!("card {card} {mac}"));
        Ok(())
    }

    fn sync(&self) {
        self.runs.borrow_mut().push("sync".to_owned());
    }

    fn run(&self, program: &'static str, arguments: &[&str]) -> Result<String, RunError> {
        let command = format!("{program} {}", arguments.join(" "));
        self.runs.borrow_mut().push(command.clone());
        match (program, arguments[0]) {
            _ if self.failing.borrow().is_some_and(|failing| command.starts_with(failing)) => {
                Err(RunError::Failed { command, said: "it was told to".to_owned() })
            }
            ("systemctl", "show") if arguments.len() == 2 => Ok("SystemState=running\n".to_owned()),
            ("systemctl", "show") => Ok("ActiveState=active\nSubState=running\nNRestarts=2\n".to_owned()),
            ("journalctl", _) => Ok("the runtime has started\n".to_owned()),
            ("systemd-detect-virt", _) => Ok("qemu\n".to_owned()),
            _ => Ok(String::new()),
        }
    }
}

/// A machine as an image leaves it.
struct World {
    root: TempDir,
    noted: Noted,
    guest: Guest<Noted>,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let own = fs::metadata(root.path()).unwrap();
        let user = format!("root:x:0:0::/root:/bin/sh\nvm-agent:x:{}:{}::/:/bin/sh\n", own.uid(), own.gid());
        let files = [
            ("etc/passwd", user.as_str()),
            ("etc/machine-id", ""),
            ("dev/urandom", ""),
            ("proc/sys/kernel/hostname", "old\n"),
            ("proc/sys/kernel/random/boot_id", BOOT_ID),
            ("sys/class/dmi/id/product_uuid", HARDWARE),
            ("sys/class/net/ens3/address", "52:54:00:00:00:01\n"),
            ("sys/class/net/ens3/device/vendor", ""),
            ("sys/class/net/ens3/ifindex", "2\n"),
            ("dev/kmsg", ""),
            ("sys/bus/acpi/drivers/vmgenid/bind", ""),
            ("sys/class/net/dummy0/address", "52:54:00:00:00:02\n"),
            ("var/lib/dpkg/status", ""),
        ];
        for (file, content) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let noted = Noted::default();
        let guest = Guest { ground: Ground::new(root.path(), noted.clone()) };
        Self { root, noted, guest }
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.root.path().join(file)).unwrap()
    }

    fn put(&self, file: &str, content: &str) {
        fs::write(self.root.path().join(file), content).unwrap();
    }

    /// Hands over a seed, and gives what was run for it, or why it failed.
    fn seed(&mut self, seed: &Seed) -> Result<Vec<String>, String> {
        self.seed_as(seed, identity())
    }

    fn seed_as(&mut self, seed: &Seed, identity: Identity) -> Result<Vec<String>, String> {
        self.noted.runs.borrow_mut().clear();
        let id = RequestId::generate();
        let request = ToGuest::Seed(Box::new(SeedRequest { id, seed: seed.clone(), identity }));
        match self.guest.answer(&request) {
            FromGuest::Done { id: answered } if answered == id => Ok(self.noted.runs.take()),
            FromGuest::Failed { id: answered, reason } if answered == id => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    fn written_seed(&self) -> Seed {
        serde_json::from_str(&self.text("var/lib/vm-agent/seed.json")).unwrap()
    }
}

fn identity() -> Identity {
    Identity {
        hostname: "web".parse().unwrap(),
        machine_id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        mac: Some("52:54:00:00:00:01".parse().unwrap()),
        time: "2026-01-01T00:00:01Z".parse().unwrap(),
        entropy: Entropy::generate(),
    }
}

fn seed(incarnation: u64) -> Seed {
    Seed { incarnation: Incarnation(incarnation), ..crate::identity::tests::seed() }
}

fn stop() -> String {
    format!("systemctl stop {RUNTIME_UNIT}")
}

fn anew() -> String {
    format!("perl -e {}", randomness::SCRIPT_ONCE)
}

fn start() -> String {
    format!("systemctl start {RUNTIME_UNIT}")
}

#[test]
fn a_first_seed_makes_the_machine_and_starts_the_runtime() {
    let mut world = World::new();
    let (seed, identity) = (seed(1), identity());
    let runs = world.seed_as(&seed, identity.clone()).unwrap();
    assert_eq!(runs, [stop(), start()], "its card and clock are right already");
    assert_eq!(world.text("etc/hostname"), "web\n");
    assert_eq!(world.text("proc/sys/kernel/hostname"), "web\n");
    assert_eq!(world.text("etc/machine-id"), "0123456789abcdef0123456789abcdef\n");
    assert_eq!(fs::read(world.root.path().join("dev/urandom")).unwrap(), identity.entropy.as_bytes());
    assert_eq!(world.written_seed(), seed);
}

#[test]
fn a_machine_that_is_to_be_copied_has_its_runtime_wait_and_each_copy_only_tells_it_who_it_is() {
    let mut world = World::new();
    let id = RequestId::generate();
    assert_eq!(world.guest.answer(&ToGuest::Prepare { id }), FromGuest::Done { id });
    assert_eq!(world.noted.runs.take(), [format!("systemctl start --no-block {RUNTIME_UNIT}"), "sync".to_owned()]);
    world.put("dev/kmsg", "5,1,1,-;random: crng reseeded due to virtual machine fork\n");
    let first = seed(1);
    assert!(world.seed(&first).unwrap().is_empty(), "nothing has to be run");
    assert_eq!(world.written_seed(), first);
    // From here on it is a machine like any other, and can't be made ready any more.
    assert_eq!(world.seed(&seed(2)).unwrap(), [stop(), anew(), start()]);
    let FromGuest::Failed { reason, .. } = world.guest.answer(&ToGuest::Prepare { id }) else {
        panic!("it is refused")
    };
    assert!(reason.contains("has had a seed"), "{reason}");
}

#[test]
fn the_seed_is_for_the_runtimes_user_alone_and_what_proves_it_for_root() {
    let mut world = World::new();
    world.seed(&seed(1)).unwrap();
    for (path, mode) in [
        ("var/lib/vm-agent", 0o700),
        ("var/lib/vm-agent/seed.json", 0o600),
        ("var/lib/vm-agent-guest", 0o700),
        ("var/lib/vm-agent-guest/life.json", 0o600),
    ] {
        let mode_there = fs::metadata(world.root.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode_there, mode, "{path}");
    }
    let token = world.written_seed().join_token;
    assert!(!world.text("var/lib/vm-agent-guest/life.json").contains(token.expose()));
}

#[test]
fn clock_and_card_are_set_where_they_are_off() {
    let mut world = World::new();
    let off =
        Identity { time: "2026-03-01T00:00:00.5Z".parse().unwrap(), mac: Some(Mac::of_qemu([9, 9, 9])), ..identity() };
    let runs = world.seed_as(&seed(1), off).unwrap();
    let clock = "clock 2026-03-01T00:00:00.5Z".to_owned();
    let card = "card 2 52:54:00:09:09:09".to_owned();
    assert_eq!(runs, [stop(), clock, card, start()]);
}

#[test]
fn the_same_seed_again_leaves_the_runtime_alone() {
    let mut world = World::new();
    let seed = seed(1);
    world.seed(&seed).unwrap();
    assert_eq!(world.seed(&seed).unwrap(), [start()]);
}

#[test]
fn a_machine_that_slept_has_its_runtime_connect_anew() {
    let mut world = World::new();
    let first = seed(1);
    world.seed(&first).unwrap();
    let awake = Identity { time: "2026-03-01T00:00:00Z".parse().unwrap(), ..identity() };
    let renewed = Seed { join_token: Secret::generate(), ..first };
    let runs = world.seed_as(&renewed, awake).unwrap();
    let told = format!("systemctl kill --kill-whom=main --signal=HUP {RUNTIME_UNIT}");
    assert_eq!(runs, ["clock 2026-03-01T00:00:00Z".to_owned(), start(), told]);
}

#[test]
fn another_address_or_token_reaches_the_runtime_without_a_stop() {
    let mut world = World::new();
    let first = seed(1);
    world.seed(&first).unwrap();
    let renewed = Seed { join_token: Secret::generate(), ..first };
    assert_eq!(world.seed(&renewed).unwrap(), [start()]);
    assert_eq!(world.written_seed(), renewed);
}

#[test]
fn another_incarnation_takes_the_place_of_the_old_one_and_never_the_other_way_round() {
    let mut world = World::new();
    let (old, new) = (seed(1), seed(2));
    world.seed(&old).unwrap();
    assert_eq!(world.seed(&new).unwrap(), [stop(), anew(), start()]);
    let reason = world.seed(&old).unwrap_err();
    assert_eq!(reason, "this machine is past incarnation 1 of agent `web`");
    assert_eq!(world.written_seed(), new);
}

#[test]
fn a_seed_that_was_cut_short_is_carried_out_as_a_whole_when_it_comes_again() {
    let mut world = World::new();
    let (old, new) = (seed(1), seed(2));
    world.seed(&old).unwrap();
    // The runtime does not stop: nothing of the new life may appear beside it.
    *world.noted.failing.borrow_mut() = Some("systemctl stop");
    assert!(world.seed(&new).unwrap_err().ends_with("failed: it was told to"));
    assert_eq!(world.written_seed(), old);
    // It does not start: the seed is there, and the next try only starts it.
    *world.noted.failing.borrow_mut() = Some("systemctl start");
    world.seed(&new).unwrap_err();
    *world.noted.failing.borrow_mut() = None;
    assert_eq!(world.seed(&new).unwrap(), [start()]);
    assert_eq!(world.written_seed(), new);
}

#[test]
fn an_image_without_the_runtimes_user_is_told_so() {
    let mut world = World::new();
    world.put("etc/passwd", "root:x:0:0::/root:/bin/sh\n");
    assert_eq!(world.seed(&seed(1)).unwrap_err(), "this machine has no user `vm-agent`");
    assert!(world.guest.ground.life().is_none());
}

#[test]
fn the_proof_is_what_root_remembers_whatever_stands_in_the_runtimes_folder() {
    let mut world = World::new();
    let seed = seed(1);
    let id = RequestId::generate();
    let FromGuest::Proof(before) = world.guest.answer(&ToGuest::Prove { id }) else { panic!("it is a proof") };
    assert_eq!((before.nonce, before.machine_id), (None, None));
    world.seed(&seed).unwrap();
    world.put("var/lib/vm-agent/seed.json", "{}");
    let expected = Proof {
        id,
        nonce: Some(seed.nonce),
        machine_id: Some("0123456789abcdef0123456789abcdef".parse::<MachineId>().unwrap()),
        boot_id: BOOT_ID.parse().unwrap(),
        hypervisor: Some("qemu".to_owned()),
    };
    assert_eq!(world.guest.answer(&ToGuest::Prove { id }), FromGuest::Proof(expected));
}

#[test]
fn a_challenge_lies_in_memory_for_the_runtimes_user_alone_and_takes_the_place_of_the_last() {
    let mut world = World::new();
    world.seed(&seed(1)).unwrap();
    fs::create_dir(world.root.path().join("run")).unwrap();
    let mut lay = |challenge: &str| {
        let id = RequestId::generate();
        let challenge = Secret::from_text(challenge);
        match world.guest.answer(&ToGuest::Challenge { id, challenge }) {
            FromGuest::Proof(proof) if proof.id == id => proof,
            other => panic!("{other:?}"),
        }
    };
    lay("first");
    let proof = lay("second");
    assert_eq!(proof.machine_id.unwrap().as_str(), "0123456789abcdef0123456789abcdef");
    assert_eq!((proof.boot_id, proof.hypervisor.as_deref()), (BOOT_ID.parse().unwrap(), Some("qemu")));
    assert_eq!(world.text("run/vm-agent/challenge"), "second");
    for (path, mode) in [("run/vm-agent", 0o700), ("run/vm-agent/challenge", 0o600)] {
        let mode_there = fs::metadata(world.root.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode_there, mode, "{path}");
    }
}

#[test]
fn where_a_challenge_can_t_be_laid_that_is_said() {
    let mut world = World::new();
    let id = RequestId::generate();
    let challenge = Secret::generate();
    let FromGuest::Failed { reason, .. } = world.guest.answer(&ToGuest::Challenge { id, challenge }) else {
        panic!("there is no folder for it")
    };
    assert!(reason.contains("could not make"), "{reason}");
}

#[test]
fn the_state_tells_of_the_unit_and_of_cloud_init_where_there_is_one() {
    let mut world = World::new();
    let id = RequestId::generate();
    let mut state = || match world.guest.answer(&ToGuest::Status { id }) {
        FromGuest::State(state) => state,
        other => panic!("{other:?}"),
    };
    let plain = state();
    assert_eq!((plain.runtime.state.as_str(), plain.runtime.restarts), ("active", 2));
    assert_eq!(plain.runtime.journal, ["the runtime has started"]);
    assert_eq!(plain.cloud_init, None);
    assert_eq!(plain.system.as_deref(), Some("running"));
    let run = world.root.path().join("run/cloud-init");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("status.json"), r#"{"v1": {"stage": "init"}}"#).unwrap();
    let FromGuest::State(state) = world.guest.answer(&ToGuest::Status { id }) else { panic!("it is a state") };
    assert_eq!(state.cloud_init.unwrap().stage.as_deref(), Some("init"));
}

#[test]
fn a_machine_that_is_to_have_more_tells_how_that_goes_and_its_runtime_waits_for_it_by_itself() {
    let mut world = World::new();
    let units = world.root.path().join("etc/systemd/system");
    fs::create_dir_all(&units).unwrap();
    let status = |world: &mut World| match world.guest.answer(&ToGuest::Status { id: RequestId::generate() }) {
        FromGuest::State(state) => state.provision.map(|unit| unit.state),
        other => panic!("{other:?}"),
    };
    assert_eq!(status(&mut world), None);
    fs::write(units.join(PROVISION_UNIT), "").unwrap();
    assert_eq!(world.seed(&seed(1)).unwrap(), [stop(), format!("systemctl start --no-block {RUNTIME_UNIT}")]);
    assert_eq!(status(&mut world).as_deref(), Some("active"));
}

#[test]
fn the_seed_is_whose_the_runtimes_folder_is() {
    let mut world = World::new();
    world.put("etc/passwd", "root:x:0:0::/root:/bin/sh\n");
    fs::create_dir_all(world.root.path().join("var/lib/vm-agent")).unwrap();
    let seed = seed(1);
    world.seed(&seed).unwrap();
    assert_eq!(world.written_seed(), seed);
}

#[test]
fn a_machine_that_went_on_from_the_memory_of_another_boots_as_itself() {
    let mut world = World::new();
    let seed = seed(1);
    world.seed(&seed).unwrap();
    world.noted.runs.borrow_mut().clear();
    // From here on its hardware is its own.
    world.put("sys/class/dmi/id/product_uuid", &identity().machine_id.hyphenated().to_ascii_uppercase());
    world.guest.resume();
    assert_eq!(world.noted.runs.take(), [start()]);
}

#[test]
fn a_boot_starts_the_runtime_only_of_the_machine_that_was_seeded() {
    let mut world = World::new();
    let boot = |world: &mut World| {
        world.noted.runs.borrow_mut().clear();
        world.guest.resume();
        world.noted.runs.take()
    };
    assert!(boot(&mut world).is_empty(), "there is no seed yet");
    world.seed(&seed(1)).unwrap();
    assert_eq!(boot(&mut world), [start()]);
    world.put("sys/class/dmi/id/product_uuid", "0d1f2e3c-0000-4000-8000-000000000002");
    assert!(boot(&mut world).is_empty(), "it may be a copy");
    fs::remove_file(world.root.path().join("sys/class/dmi/id/product_uuid")).unwrap();
    world.seed(&seed(2)).unwrap();
    assert!(boot(&mut world).is_empty(), "hardware without an id tells nothing");
}

#[test]
fn the_runtimes_folder_is_not_written_through() {
    let mut world = World::new();
    world.seed(&seed(1)).unwrap();
    let seed_file = world.root.path().join("var/lib/vm-agent/seed.json");
    fs::remove_file(&seed_file).unwrap();
    symlink(world.root.path().join("etc/passwd"), &seed_file).unwrap();
    let users = world.text("etc/passwd");
    world.seed(&seed(2)).unwrap();
    assert_eq!(world.text("etc/passwd"), users);
}

#[test]
fn the_channel_says_ready_to_each_host_and_answers_until_it_goes() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("channel.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let host = std::thread::spawn(move || {
        let mut heard = Vec::new();
        for greeting in [&b"{\"type\":\"sta"[..], b"rest of another's line}\n"] {
            let (stream, _) = listener.accept().unwrap();
            let id = RequestId::generate();
            // What is no message, or never ends, is none of the request's business.
            if greeting.ends_with(b"\n") {
                (&stream).write_all(&[greeting, &line(&ToGuest::Prove { id })].concat()).unwrap();
            } else {
                (&stream).write_all(&[line(&ToGuest::Prove { id }).as_slice(), greeting].concat()).unwrap();
            }
            let mut lines = BufReader::new(&stream).lines();
            let mut next = || serde_json::from_str::<FromGuest>(&lines.next().unwrap().unwrap()).unwrap();
            heard.push((id, next(), next()));
        }
        heard
    });
    let mut world = World::new();
    for _ in 0..2 {
        // The host may go while it is being answered.
        let _ = attend(&path, &mut world.guest);
    }
    for (id, ready, proof) in host.join().unwrap() {
        assert!(matches!(ready, FromGuest::Ready(Ready { nonce: None, .. })), "{ready:?}");
        assert_eq!(proof.answers(), Some(id));
    }
}

#[test]
fn a_channel_that_is_not_there_yet_is_an_error_and_no_end() {
    let mut world = World::new();
    let error = attend(&world.root.path().join("dev/virtio-ports/vm-agent.0"), &mut world.guest).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_clock_that_is_right_within_the_tolerance_stays() {
    let mut world = World::new();
    let time = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() - SignedDuration::from_secs(2);
    let runs = world.seed_as(&seed(1), Identity { time, ..identity() }).unwrap();
    assert_eq!(runs, [stop(), start()]);
}

#[test]
fn a_host_that_runs_the_program_is_answered_on_its_output_until_it_has_said_all() {
    let mut world = World::new();
    let (seed, id) = (seed(1), RequestId::generate());
    let request = SeedRequest { id, seed: seed.clone(), identity: identity() };
    let said = [b"a banner\n".as_slice(), &line(&ToGuest::Seed(Box::new(request))), &line(&ToGuest::Prove { id })];
    let mut heard = Vec::new();
    serve(said.concat().as_slice(), &mut heard, &mut world.guest).unwrap();
    let heard: Vec<FromGuest> = Lines::default().push(&heard).into_iter().map(Result::unwrap).collect();
    let [FromGuest::Done { id: done }, FromGuest::Proof(proof)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((*done, proof.nonce.as_ref()), (id, Some(&seed.nonce)));
}

#[test]
fn a_time_that_was_long_on_its_way_sets_no_clock_and_one_that_is_ahead_does() {
    let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
    let time_of = |seconds: i64| {
        let identity = Identity { time: now + SignedDuration::from_secs(seconds), ..identity() };
        let request = SeedRequest { id: RequestId::generate(), seed: seed(1), identity };
        match arrived(ToGuest::Seed(Box::new(request)), now) {
            ToGuest::Seed(request) => request.identity.time.duration_since(now).as_secs(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([-59, -1, 0].map(time_of), [0, 0, 0]);
    assert_eq!([-61, 1, 3600].map(time_of), [-61, 1, 3600]);
}

#[test]
fn a_machine_without_an_id_of_its_hardware_is_told_from_its_copies_by_cloud_init() {
    let mut world = World::new();
    fs::remove_file(world.root.path().join("sys/class/dmi/id/product_uuid")).unwrap();
    fs::create_dir_all(world.root.path().join("var/lib/cloud/data")).unwrap();
    world.put("var/lib/cloud/data/instance-id", "web\n");
    world.seed(&seed(1)).unwrap();
    world.noted.runs.borrow_mut().clear();
    world.guest.resume();
    assert_eq!(world.noted.runs.take(), [start()]);
    world.put("var/lib/cloud/data/instance-id", "web-clone1\n");
    world.guest.resume();
    assert!(world.noted.runs.take().is_empty(), "it is a copy");
}

//! What goes wrong on request, and what is one at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant};

use crate::support::{Bench, Told, end, wait};
use vm_agent_multipass_double::Knobs;
use vm_agent_multipass_double::knobs::{Access, Fault, Json, Kill, Version, Wrong};

fn millis<const N: usize>(times: [(&str, u64); N]) -> BTreeMap<String, u64> {
    times.map(|(what, time)| (what.to_owned(), time)).into()
}

fn slow<const N: usize>(times: [(&str, u64); N]) -> Knobs {
    Knobs { latency: millis(times), ..Knobs::default() }
}

fn faults(faults: Vec<Fault>) -> Knobs {
    Knobs { faults, ..Knobs::default() }
}

fn fault(command: &str, times: u32, what: Wrong) -> Fault {
    Fault { command: command.to_owned(), containing: None, times, after: 0, what }
}

#[test]
fn the_daemon_does_one_thing_at_a_time() {
    let bench = Bench::with_one(slow([("stop", 600)]));
    let stop = bench.begin("stop one");
    let lock = File::open(bench.double.home().lock()).unwrap();
    // Taken where it is free, and given back at once.
    wait("the stop to begin", || lock.try_lock().map(|()| lock.unlock()).is_err());
    assert_eq!(bench.state("one").as_deref(), Some("Stopped"), "the list waited for the stop");
    end(stop).well();
    let calls = bench.double.calls();
    let (stop, list) = (&calls[1], &calls[2]);
    assert_eq!((stop.command(), list.command(), stop.overlaps(list)), ("stop", "list", true));
    assert_eq!((stop.code, &stop.argv[..]), (Some(0), &["stop".to_owned(), "one".to_owned()][..]));
}

#[test]
fn launches_prepare_and_boot_side_by_side_and_hold_nobody_up() {
    let bench = Bench::with(slow([("launch.download", 3000), ("launch.boot", 4000)]));
    let launches = ["a", "b", "c"].map(|name| bench.begin(&format!("launch noble -n {name}")));
    wait("all to be prepared", || bench.double.state().preparing.len() == 3);
    assert_eq!(bench.state("a"), None, "nobody sees what is being prepared");
    let twice = bench.call("launch noble -n a").fails(2);
    assert_eq!(twice, "launch failed: instance \"a\" is being prepared\n");
    let told = bench.call("delete --purge a").fails(2);
    assert_eq!(told, "delete failed: The following errors occurred:\ninstance \"a\" does not exist\n");
    let boots = |name| matches!(bench.state(name).as_deref(), Some("Starting" | "Unknown"));
    wait("all to boot", || ["a", "b", "c"].into_iter().all(boots));
    for launch in launches {
        end(launch).well();
    }
    for name in ["a", "b", "c"] {
        assert_eq!(bench.state(name).as_deref(), Some("Running"));
    }
}

#[test]
fn a_launch_goes_on_when_its_client_gave_up() {
    let bench = Bench::with(slow([("launch.boot", 1500)]));
    let told = bench.call("launch noble -n one --timeout 1").fails(5);
    assert_eq!(told, "Timed out waiting for instance launch.\n");
    bench.await_state("one", Some("Running"));
}

#[test]
fn a_launch_ends_with_a_client_that_is_killed_while_it_downloads_and_not_later() {
    let bench = Bench::with(slow([("launch.download", 20_000)]));
    let mut client = bench.begin("launch noble -n one");
    wait("the download", || bench.double.state().preparing.contains_key("one"));
    client.kill().unwrap();
    client.wait().unwrap();
    wait("the name to be free", || bench.double.state().preparing.is_empty());
    let mut bench = bench;
    bench.double.set(slow([("launch.prepare", 300)]));
    let mut client = bench.begin("launch noble -n one");
    wait("the image", || bench.double.state().cached.contains("24.04"));
    client.kill().unwrap();
    client.wait().unwrap();
    bench.await_state("one", Some("Running"));
}

#[test]
fn a_client_may_be_killed_at_a_message_and_the_daemon_goes_on() {
    for at in ["Preparing image", "Creating", "Configuring", "Starting", "Waiting for initialization"] {
        let what = Wrong::Leaves { at: at.to_owned(), code: None, stderr: String::new() };
        let bench = Bench::with(faults(vec![fault("launch", 1, what)]));
        let told = bench.call("launch noble -n one");
        assert_eq!((told.code, told.err.as_str()), (None, ""), "{at}");
        assert!(!told.out.contains(at), "{}", told.out);
        bench.await_state("one", Some("Running"));
    }
}

/// As the real one does: it is decided by its table of names whose disk is looked at.
#[test]
fn the_size_of_an_image_that_is_a_file_is_read_off_any_disk_that_was_made_from_it() {
    let bench = Bench::new();
    std::fs::write(bench.work().join("one.img"), "one").unwrap();
    std::fs::write(bench.work().join("two.img"), "two").unwrap();
    let image = |name: &str| format!("file://{}/{name}.img", bench.work().display());
    let launch = |image: &str, name: &str| bench.call(&format!("launch {image} -n storm1-{name}"));
    launch(&image("one"), "stranger-3").well();
    launch(&image("one"), "a02").well();
    let told = launch(&image("one"), "a03").fails(2);
    let disk = bench.double.home().instance("storm1-a02").join("image.qcow2").display().to_string();
    let expected = format!(
        "launch failed: Cannot get image info: qemu-img failed (Process returned exit code: 1) with output:\nqemu-img: \
         Could not open '{disk}': Failed to get shared \"write\" lock\nIs another process using the image [{disk}]?\n\n"
    );
    assert_eq!(told, expected);
    assert_eq!(launch(&image("one"), "a03").fails(2), expected, "and the next time again");
    assert_eq!(bench.state("storm1-a03"), None);
    // One of another content, and one of the manifests, are no such image.
    launch(&image("two"), "a03").well();
    bench.call("delete --purge storm1-a03").well();
    launch("noble", "a03").well();
    bench.call("delete --purge storm1-a03").well();
    // What does not run has its disk for itself.
    bench.call("suspend storm1-a02").well();
    launch(&image("one"), "a03").well();
}

#[test]
fn a_daemon_that_is_killed_leaves_alone_what_is_suspended() {
    let bench = Bench::with_one(Knobs::default());
    bench.call("suspend one").well();
    bench.double.kill_daemon();
    bench.double.start_daemon();
    assert_eq!(bench.state("one").as_deref(), Some("Suspended"));
    bench.call("start one").well();
    assert_eq!(bench.state("one").as_deref(), Some("Running"));
}

#[test]
fn a_daemon_that_dies_in_a_launch_leaves_nothing_or_something_stopped() {
    for (phase, left) in [("launch.prepare", None), ("launch.boot", Some("Stopped"))] {
        let kill = Kill { phase: phase.to_owned(), back_after: Some(100) };
        let bench = Bench::with(Knobs { kill_daemon: Some(kill), ..Knobs::default() });
        let told = bench.call("launch noble -n one");
        let end = "\x08 \x1b[2K\x1b[0A\x1b[0E\x1b[2K\x1b[0A\x1b[0E";
        assert!(told.out.ends_with(end), "{phase}: {:?}", told.out);
        assert_eq!(told.fails(2), "launch failed: cannot connect to the multipass socket\n");
        let list = || bench.call("list");
        if list().code != Some(0) {
            assert_eq!(list().err, "list failed: cannot connect to the multipass socket\n");
        }
        wait("the new daemon", || list().code == Some(0));
        assert_eq!(bench.state("one").as_deref(), left, "{phase}");
        if left.is_some() {
            bench.call("start one").well();
        }
        bench.call("launch noble -n other").well();
    }
}

#[test]
fn what_ran_is_resumed_after_a_daemon_that_was_asked_to_end_and_booted_after_one_that_died() {
    let bench = Bench::with_one(Knobs::default());
    bench.call("launch noble -n off").well();
    bench.call("stop off").well();
    let machine = bench.double.machine("one");
    bench.double.stop_daemon();
    assert_eq!(bench.call("version").well(), "multipass   1.16.3\n");
    assert_eq!(bench.call("list").fails(2), "list failed: cannot connect to the multipass socket\n");
    bench.double.start_daemon();
    assert_eq!((bench.state("one").as_deref(), bench.double.machine("one")), (Some("Running"), machine));
    bench.exec("one", "true").well();
    bench.double.kill_daemon();
    assert_eq!(bench.double.machine("one"), None);
    bench.double.start_daemon();
    assert_eq!((bench.state("one").as_deref(), bench.state("off").as_deref()), (Some("Running"), Some("Stopped")));
    assert_ne!(bench.double.machine("one"), machine);
}

#[test]
fn a_setting_of_the_daemon_ends_it_for_a_while() {
    let bench = Bench::with_one(slow([("set.restart", 1500)]));
    let machine = bench.double.machine("one");
    bench.call("set local.bridged-network=br0").well();
    assert_eq!(bench.call("list").fails(2), "list failed: cannot connect to the multipass socket\n");
    wait("the daemon to be back", || bench.call("list").code == Some(0));
    bench.await_state("one", Some("Running"));
    assert_eq!(bench.double.machine("one"), machine);
    assert_eq!(bench.call("get local.bridged-network").well(), "br0\n");
}

#[test]
fn calls_fail_as_often_as_asked() {
    let wrong = Wrong::Fails { code: 2, stderr: "list failed: oops\n".to_owned(), stdout: "noise".to_owned() };
    let late =
        Fault { after: 1, containing: Some("--snapshots".to_owned()), ..fault("*", 1, Wrong::Late { by: 1500 }) };
    let bench = Bench::with(faults(vec![fault("list", 2, wrong), late]));
    for _ in 0..2 {
        let told = bench.call("list");
        assert_eq!(told, Told { code: Some(2), out: "noise".to_owned(), err: "list failed: oops\n".to_owned() });
    }
    assert_eq!(bench.call("list").well(), "No instances found.\n");
    let time = || {
        let begun = Instant::now();
        bench.call("list --snapshots").well();
        begun.elapsed()
    };
    let times = [time(), time(), time()];
    assert!(times[1] > Duration::from_millis(1500) && times[0].max(times[2]) < times[1], "{times:?}");
}

#[test]
fn a_call_can_have_done_what_it_says_it_has_not() {
    let lie = Wrong::FailsThoughDone { code: 2, stderr: "start failed: lost\n".to_owned() };
    let mut bench = Bench::with_one(Knobs::default());
    bench.call("stop one").well();
    bench.double.set(faults(vec![
        fault("start", 1, lie),
        fault("stop", 1, Wrong::HangsThoughDone),
        fault("list", 1, Wrong::Hangs),
    ]));
    let mut list = bench.begin("list");
    bench.call("start one").fails(2);
    wait("the list to be under way", || bench.double.count("list") == 1);
    assert_eq!(bench.state("one").as_deref(), Some("Running"));
    let mut stop = bench.begin("stop one");
    bench.await_state("one", Some("Stopped"));
    for call in [&mut list, &mut stop] {
        assert!(call.try_wait().unwrap().is_none(), "it hangs");
        call.kill().unwrap();
        call.wait().unwrap();
    }
    assert_eq!(bench.double.calls().iter().filter(|call| call.ended.is_none()).count(), 2);
}

#[test]
fn a_machine_whose_ssh_does_not_answer_is_unknown_until_it_is_switched_off() {
    let knobs = Knobs { deaf: vec!["one".to_owned()], limits: millis([("ssh", 200)]), ..Knobs::default() };
    let mut bench = Bench::with(knobs);
    let told = bench.call("launch noble -n one").fails(2);
    assert_eq!(told, "launch failed: The following errors occurred:\none: timed out waiting for response\n");
    assert_eq!(bench.state("one").as_deref(), Some("Unknown"));
    bench.double.set(Knobs::default());
    assert_eq!(bench.exec("one", "true").fails(2), "exec failed: Cannot retrieve credentials in unknown state\n");
    let told = bench.call("start one").fails(2);
    assert!(
        told.ends_with("Instance 'one' is already running, but in an unknown state.\nTry to stop it first.\n"),
        "{told}"
    );
    bench.call("suspend one").well();
    assert_eq!(bench.state("one").as_deref(), Some("Unknown"));
    bench.call("stop --force one").well();
    bench.call("start one").well();
    bench.exec("one", "true").well();
}

#[test]
fn a_cloud_init_that_takes_too_long_leaves_a_machine_that_runs() {
    let bench = Bench::with(Knobs { limits: millis([("cloud-init", 100)]), ..slow([("cloud-init", 800)]) });
    let told = bench.call("launch noble -n one").fails(2);
    assert_eq!(
        told,
        "launch failed: The following errors occurred:\ntimed out waiting for initialization to complete\n"
    );
    assert_eq!(bench.state("one").as_deref(), Some("Running"));
    bench.exec("one", "cloud-init status --wait").well();
}

#[test]
fn a_machine_that_stands_still_holds_up_whoever_asks_it() {
    let mut bench = Bench::with_one(Knobs::default());
    bench.double.freeze("one");
    // Nobody is asked for that.
    assert_eq!(bench.state("one").as_deref(), Some("Running"));
    bench.double.set(Knobs { limits: millis([("address", 400), ("ssh", 400)]), ..Knobs::default() });
    let begun = Instant::now();
    bench.call("list").well();
    assert!(begun.elapsed() > Duration::from_millis(400));
    assert_eq!(
        bench.exec("one", "true").fails(2),
        "exec failed: ssh connection failed: 'Timeout connecting to the instance'\n"
    );
    let told = bench.call("info one").fails(2);
    assert_eq!(told, "info failed: ssh connection failed: 'Timeout connecting to the instance'\n");
    bench.double.thaw("one");
    bench.exec("one", "true").well();
}

#[test]
fn a_lost_lease_fails_lists_with_addresses_alone() {
    let knobs = Knobs { lost_lease: vec!["one".to_owned()], limits: millis([("address", 100)]), ..Knobs::default() };
    let bench = Bench::with_one(knobs);
    assert_eq!(bench.state("one").as_deref(), Some("Running"));
    assert_eq!(bench.call("list").fails(2), "list failed: Could not determine IP address within 100ms\n");
    assert_eq!(bench.state("one").as_deref(), Some("Unknown"));
}

#[test]
fn a_daemon_may_lose_sight_of_an_instance_and_find_it_again() {
    let mut bench = Bench::with_one(Knobs::default());
    let machine = bench.double.machine("one");
    bench.double.set(Knobs { vanished: vec!["one".to_owned()], ..Knobs::default() });
    assert_eq!(bench.call("list").well(), "No instances found.\n");
    assert_eq!(
        bench.exec("one", "true").fails(2),
        "exec failed: The following errors occurred:\ninstance \"one\" does not exist\n"
    );
    bench.call("purge").well();
    bench.double.set(Knobs::default());
    assert_eq!((bench.state("one").as_deref(), bench.double.machine("one")), (Some("Running"), machine));
}

#[test]
fn a_guest_may_ignore_the_power_button() {
    let knobs =
        Knobs { ignores_power_button: vec!["one".to_owned()], limits: millis([("shutdown", 200)]), ..Knobs::default() };
    let bench = Bench::with_one(knobs);
    let told = bench.call("stop one").fails(2);
    assert_eq!(told, "stop failed: The QEMU process did not finish within 200 milliseconds after being shutdown\n");
    assert_eq!(bench.state("one").as_deref(), Some("Running"));
    bench.call("stop --force one").well();
}

#[test]
fn whoever_may_not_in_is_told_so() {
    let cases = [
        (
            Access::Denied,
            "multipass socket access denied\nPlease check that you have read/write permissions to '/run/multipass_socket'",
        ),
        (
            Access::NotAuthenticated,
            "The client is not authenticated with the Multipass service.\nPlease use 'multipass authenticate' before proceeding.",
        ),
    ];
    for (access, text) in cases {
        let bench = Bench::with(Knobs { access, ..Knobs::default() });
        assert_eq!(bench.call("list").fails(2), format!("list failed: {text}\n"));
    }
    let bench = Bench::with(Knobs { daemon_down: true, ..Knobs::default() });
    assert_eq!(bench.call("version --format json").well(), "{\n    \"multipass\": \"1.16.3\"\n}\n");
    assert_eq!(bench.call("start one").fails(2), "start failed: cannot connect to the multipass socket\n");
}

#[test]
fn other_releases_speak_otherwise() {
    let of = |version: Version| Bench::with_one(Knobs { version, ..Knobs::default() });
    let bench = of(Version::V1_13);
    assert_eq!(bench.call("version").well(), "multipass   1.13.1\nmultipassd  1.13.1\n");
    assert_eq!(bench.call("stop --force one").fails(1), "Unknown option 'force'.\n");
    assert!(bench.call("clone one").out.starts_with("Error: Unknown command or alias 'clone'"));
    let bench = of(Version::Main);
    let list = bench.call("list --format json").well();
    assert!(list.contains("\"zone\"") && serde_json::from_str::<serde_json::Value>(&list).is_ok(), "{list}");
    assert_eq!(bench.exec("nosuch", "true").code, Some(255));
    assert_eq!(bench.exec("one", "exit 4").code, Some(4));
    assert_eq!(
        bench.call("launch noble -n small -m 256M").fails(2),
        "launch failed: Invalid arguments supplied\nInvalid memory size value supplied: 256M.\n"
    );
}

#[test]
fn output_may_be_spoilt() {
    let mut bench = Bench::with_one(Knobs::default());
    bench.double.set(Knobs { banner: Some("Warning: old\n".to_owned()), ..Knobs::default() });
    assert_eq!(bench.call("list").err, "Warning: old\n");
    for json in [Json::Truncated, Json::Preceded, Json::Garbage] {
        bench.double.set(Knobs { json, ..Knobs::default() });
        let told = bench.call("list --format json").well();
        assert!(serde_json::from_str::<serde_json::Value>(&told).is_err(), "{told}");
    }
    bench.double.set(Knobs { localised: true, ..Knobs::default() });
    bench.call("stop one").well();
    bench.call("snapshot one").well();
    let told = |locale: &str| {
        let mut command = bench.command(&["info", "one.snapshot1"]);
        Told::from(command.env("LC_ALL", locale).output().unwrap()).well()
    };
    let year = jiff::Zoned::now().year().to_string();
    let created = |told: String| told.lines().find(|line| line.starts_with("Created")).unwrap().to_owned();
    assert!(created(told("C")).ends_with(&format!("{year} UTC")));
    assert!(created(told("de_DE.UTF-8")).contains(&format!(".{year} ")));
}

#[test]
fn a_snap_sees_nothing_outside_of_the_users_home() {
    let bench = Bench::with(Knobs { snap: true, ..Knobs::default() });
    std::fs::write(bench.work().join("data.yaml"), "{}").unwrap();
    let told = bench.call("launch noble -n one --cloud-init data.yaml").fails(1);
    assert_eq!(
        told,
        "Could not load cloud-init configuration: bad file: data.yaml\nPlease ensure that Multipass can read it.\n"
    );
    bench.call_with("launch noble -n one --cloud-init -", "{}").well();
}

#[test]
fn what_a_backend_lacks_it_says() {
    let unsupported = ["snapshots", "suspend", "networks"].map(str::to_owned).into();
    let bench = Bench::with_one(Knobs { unsupported, images_unreachable: false, ..Knobs::default() });
    for (line, command, feature) in [
        ("suspend one", "suspend", "suspend"),
        ("networks", "networks", "networks"),
        ("snapshot one", "snapshot", "snapshots"),
        ("list --snapshots", "list", "snapshots"),
    ] {
        let told = bench.call(line).fails(2);
        assert_eq!(told, format!("{command} failed: The {feature} feature is not implemented on this backend.\n"));
    }
    assert!(!bench.call("info one --format json").well().contains("snapshot_count"));
}

#[test]
fn images_may_be_out_of_reach() {
    let bench = Bench::with(Knobs { images_unreachable: true, ..Knobs::default() });
    assert_eq!(bench.call("launch noble -n one").fails(2), "launch failed: Remote \"\" is unknown or unreachable.\n");
    assert_eq!(bench.call("find noble").well(), "No images or blueprints found.\n");
}

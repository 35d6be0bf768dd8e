//! What becomes of instances, their machines and what is in them.

use std::fs;

use crate::support::{Bench, end, wait};
use vm_agent_multipass_double::Knobs;

#[test]
fn user_data_is_followed_and_its_outcome_told() {
    let bench = Bench::new();
    let data = "#cloud-config\nbootcmd:\n- echo boot >>/var/boots\nwrite_files:\n- {path: /etc/deep/file, content: aGVsbG8=, \
                encoding: b64, permissions: '0640', owner: 'root:adm'}\npackages: [ripgrep, [git, '1.0']]\nusers:\n- default\n- \
                {name: worker, shell: /bin/bash, sudo: 'ALL=(ALL) NOPASSWD:ALL'}\nruncmd:\n- [sh, -c, \"id worker >/var/who\"]\n";
    bench.call_with("launch noble -n one --cloud-init -", data).well();
    let told = bench.exec(
        "one",
        "cat /etc/deep/file /var/lib/installed-packages; stat -c %a:%G /etc/deep/file; cut -c1-3 /var/who",
    );
    assert_eq!(told.well(), "helloripgrep\ngit\n640:adm\nuid\n");
    // Without root, all users of a machine are one.
    let who = bench.exec("one", "sudo -n sh -c 'sudo -n -u worker sh -c \"id -un; echo $USER\"'").well();
    assert_eq!(who.lines().next(), Some(if rustix::process::geteuid().is_root() { "worker" } else { "root" }));
    let told = bench.words(&["exec", "-n", "one", "--", "cloud-init", "status", "--wait", "--format", "json"]).well();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((told["status"].as_str(), told["errors"].as_array().map(Vec::len)), (Some("done"), Some(0)));
    bench.call("stop one").well();
    bench.call("start one").well();
    // Each boot does its part; what is to be done once is not done again.
    bench.exec("one", "cloud-init status --wait").well();
    assert_eq!(bench.exec("one", "wc -l </var/boots; wc -l </var/lib/installed-packages").well(), "2\n2\n");
}

#[test]
fn a_launch_is_well_although_cloud_init_is_not() {
    let bench = Bench::with(Knobs { missing_packages: vec!["nosuch".to_owned()], ..Knobs::default() });
    let cases = [
        ("runcmd: [[sh, -c, 'echo oops; exit 3']]", 1, "Runparts: 1 failures (runcmd)"),
        ("runcmd: ['false', 'true']", 0, "[]"),
        ("packages: [nosuch]", 1, "Failed to install"),
        ("bootcmd: ['false']", 1, "bootcmd"),
        ("runcmd: nolist", 2, "is not of type 'array'"),
    ];
    for (index, (data, code, part)) in cases.into_iter().enumerate() {
        let name = format!("case{index}");
        bench.call_with(&format!("launch noble -n {name} --cloud-init -"), data).well();
        let told = bench.words(&["exec", "-n", &name, "--", "cloud-init", "status", "--wait", "--format", "json"]);
        assert_eq!(told.code, Some(code), "{data}");
        assert!(told.out.contains(part), "{data}: {}", told.out);
    }
}

#[test]
fn units_are_started_watched_and_started_again() {
    let bench = Bench::with_one(Knobs::default());
    let unit = "[Unit]\nRequires=first.service\nAfter=first.service\n[Service]\nType=exec\nUser=ubuntu\nExecStart=/bin/sh -c \
                \"echo as $(id -un); exec sleep 1000\"\nRestart=always\nRestartSec=50ms\n[Install]\nWantedBy=multi-user.target\n";
    let first =
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c \"sleep 0.2; echo there >/run/first\"\n";
    let place = |name: &str, text: &str| {
        let line = format!("exec -n one -- sudo tee /etc/systemd/system/{name}.service");
        bench.call_with(&line, text).well();
    };
    place("second", unit);
    place("first", first);
    bench
        .exec("one", "sudo systemctl enable --now second && cat /run/first && systemctl is-active first second")
        .well();
    let show = |property: &str| {
        let told = bench.exec("one", &format!("systemctl show second --property={property}")).well();
        told.trim().split_once('=').unwrap().1.to_owned()
    };
    let before = show("MainPID");
    bench.exec("one", &format!("sudo kill -9 {before}")).well();
    wait("the unit to be started again", || show("ActiveState") == "active" && show("NRestarts") == "1");
    assert_ne!(show("MainPID"), before);
    let told = bench.exec("one", "sudo journalctl --unit second --lines=1 --output=cat").well();
    assert_eq!(told, "as ubuntu\n");
    // An enabled unit comes with the next boot, one that fails says so, and there is none without a file.
    bench.call("stop one").well();
    bench.call("start one").well();
    wait("the unit to be started by the boot", || show("SubState") == "running");
    place("bad", "[Service]\nExecStart=/nosuch\n");
    bench.exec("one", "sudo systemctl start bad; systemctl is-active bad >/dev/null || true").well();
    let told = bench.exec("one", "systemctl show bad --property=ActiveState,Result").well();
    assert_eq!(told, "ActiveState=failed\nResult=exit-code\n");
    let told = bench.exec("one", "sudo systemctl start nosuch").fails(5);
    assert_eq!(told, "Failed to start nosuch.service: Unit nosuch.service not found.\n");
    // A stop takes all that a unit has begun, and so does the end of its main process.
    place("many", "[Service]\nExecStart=/bin/sh -c \"sleep 999 & setsid sleep 998 & wait\"\n");
    bench.exec("one", "sudo systemctl start many").well();
    wait("its processes", || bench.exec("one", "pgrep -c -f 'sleep 99[89]$'").out.trim() == "2");
    bench.exec("one", "sudo systemctl stop many").well();
    assert_eq!(bench.exec("one", "pgrep -f 'sleep 99[89]$'").code, Some(1));
    place("left", "[Service]\nExecStart=/bin/sh -c \"env -i setsid /bin/sleep 997 & wait\"\n");
    bench.exec("one", "sudo systemctl start left").well();
    wait("its processes", || bench.exec("one", "pgrep -f 'sleep 997$'").code == Some(0));
    bench.exec("one", "sudo systemctl kill --kill-whom=main --signal=KILL left").well();
    wait("the unit to have failed", || {
        bench.exec("one", "systemctl show left --property=Result").well() == "Result=signal\n"
    });
    assert_eq!(bench.exec("one", "pgrep -f 'sleep 997$'").code, Some(1));
}

#[test]
fn a_machine_has_its_own_files_processes_and_name() {
    let bench = Bench::with_one(Knobs::default());
    fs::write(bench.work().join("secret"), "of the host").unwrap();
    let host = bench.work().join("secret");
    assert_eq!(bench.exec("one", &format!("cat {}", host.display())).code, Some(1));
    assert_eq!(bench.exec("one", "sudo touch /usr/bin/x /etc/ssl/x 2>/dev/null").code, Some(1));
    assert_eq!(
        bench
            .exec("one", "hostname; id -un; ls -A /run/nosuch 2>/dev/null; ps -e -o pid= | head -1")
            .well()
            .trim_end()
            .lines()
            .collect::<Vec<_>>(),
        ["one", "ubuntu", "      1"]
    );
    // The clock and the network are this host's: they can't be changed from within.
    assert!(bench.exec("one", "sudo date --set=2001-01-01 2>/dev/null").code != Some(0));
    assert!(bench.exec("one", "sudo ip link set dev lo down 2>/dev/null").code != Some(0));
}

#[test]
fn a_guest_that_switches_itself_off_or_boots_again_is_seen() {
    let bench = Bench::with_one(Knobs::default());
    let boot = || bench.exec("one", "cat /proc/sys/kernel/random/boot_id").well();
    let before = boot();
    drop(bench.exec("one", "sudo reboot"));
    wait("another boot", || bench.state("one").as_deref() == Some("Running") && boot() != before);
    let told = bench.call("restart one").well();
    assert!(told.starts_with("\x1b[2K\x1b[0A\x1b[0ERestarting one  \x08/"));
    drop(bench.exec("one", "sudo poweroff"));
    bench.await_state("one", Some("Stopped"));
    bench.call("start one").well();
    bench.double.crash("one");
    assert_eq!(bench.state("one").as_deref(), Some("Stopped"));
    // A command starts it, and the spinner stands before what it prints.
    let told = bench.words(&["exec", "-n", "one", "--", "echo", "up"]).well();
    assert!(told.starts_with("\x1b[2K\x1b[0A\x1b[0EStarting one  ") && told.ends_with("\x1b[0Eup\n"), "{told:?}");
}

#[test]
fn a_suspended_machine_stands_still_and_goes_on() {
    let bench = Bench::with_one(Knobs::default());
    bench
        .exec("one", "sh -c 'while :; do date +%s%N >/var/tmp/now; sleep 0.02; done' >/dev/null 2>&1 </dev/null &")
        .well();
    let machine = bench.double.machine("one");
    bench.call("suspend one").well();
    assert_eq!(bench.state("one").as_deref(), Some("Suspended"));
    let now = || fs::read_to_string(bench.double.root("one").join("var/tmp/now")).unwrap();
    let before = now();
    let told = bench.call("stop one").fails(2);
    assert_eq!(told, "stop failed: Cannot shut down suspended instance one.\nUse --force to power it off.\n");
    assert_eq!(now(), before);
    bench.call("start one").well();
    wait("it to go on", || now() != before);
    assert_eq!(bench.double.machine("one"), machine);
    bench.call("suspend one").well();
    bench.call("delete one").well();
    bench.call("recover one").well();
    assert_eq!(bench.state("one").as_deref(), Some("Suspended"));
    bench.call("stop --force one").well();
    assert_eq!((bench.state("one").as_deref(), bench.double.machine("one")), (Some("Stopped"), None));
}

#[test]
fn snapshots_bring_files_and_sizes_back_and_clones_are_new_machines() {
    let bench = Bench::new();
    let data = "runcmd: ['echo once >>/var/runs']";
    bench.call_with("launch noble -n one --cloud-init -", data).well();
    bench.exec("one", "echo old >version").well();
    bench.call("stop one").well();
    bench.call("snapshot one -n then").well();
    for line in ["set local.one.cpus=4", "set local.one.disk=9G", "start one"] {
        bench.call(line).well();
    }
    bench.exec("one", "echo new >version").well();
    bench.call("stop one").well();
    bench.call("restore one.then --destructive").well();
    assert_eq!(bench.call("get local.one.cpus").well() + &bench.call("get local.one.disk").well(), "1\n5.0GiB\n");
    assert!(bench.call("clone one").well().contains("Cloned from one to one-clone1.\n"));
    bench.call("clone one -n two").well();
    for line in ["start one", "start two"] {
        bench.call(line).well();
    }
    let tell = "cat version; hostname; cat /etc/machine-id /sys/class/dmi/id/product_uuid; wc -l </var/runs";
    bench.exec("two", "cloud-init status --wait").well();
    let (one, two) = (bench.exec("one", tell).well(), bench.exec("two", tell).well());
    let (one, two): (Vec<_>, Vec<_>) = (one.lines().collect(), two.lines().collect());
    assert_eq!((one[0], one[1], one[4]), ("old", "one", "1"));
    // The same machine id, another hardware; and what is done once is done once more.
    assert_eq!((two[0], two[1], two[2] == one[2], two[3] == one[3], two[4]), ("old", "two", true, false, "2"));
}

#[test]
fn folders_of_the_host_are_seen_at_once_or_with_the_next_start() {
    let bench = Bench::with_one(Knobs::default());
    for name in ["early", "late"] {
        fs::create_dir(bench.work().join(name)).unwrap();
        fs::write(bench.work().join(name).join("file"), name).unwrap();
    }
    bench.call("mount early one:/mnt/early").well();
    assert_eq!(bench.exec("one", "cat /mnt/early/file").well(), "early");
    bench.call("stop one").well();
    bench.call("mount late one:late").well();
    bench.call("start one").well();
    assert_eq!(bench.exec("one", "cat /mnt/early/file late/file").well(), "earlylate");
    bench.call("umount one:/mnt/early").well();
    assert_eq!(
        bench.exec("one", "ls /mnt/early; findmnt -n -o TARGET /home/ubuntu/late").well(),
        "/home/ubuntu/late\n"
    );
}

#[test]
fn a_command_outlives_its_client_and_a_signal_or_a_four_are_told_as_the_real_one_tells_them() {
    let bench = Bench::with_one(Knobs::default());
    let mut client = bench.begin("exec -n one -- sleep 4321");
    wait("the command", || bench.exec("one", "pgrep -f '^sleep 4321'").code == Some(0));
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(bench.exec("one", "pgrep -c -f '^sleep 4321'").well(), "1\n");
    assert_eq!(bench.exec("one", "kill -9 $$").code, Some(255));
    let told = bench.exec("one", "echo x >>/var/tmp/tries; exit 4").fails(98);
    assert!(told.contains("exits with 4"), "{told}");
    assert_eq!(bench.exec("one", "wc -l </var/tmp/tries").well(), "5\n");
    // A machine that goes takes what runs in it, and the client is told by no status.
    let client = bench.begin("exec -n one -- sleep 4322");
    wait("the command", || bench.exec("one", "pgrep -f '^sleep 4322'").code == Some(0));
    bench.double.crash("one");
    assert_eq!(end(client).code, Some(255));
}

#[test]
fn a_delayed_shutdown_can_be_taken_back() {
    let bench = Bench::with_one(Knobs::default());
    bench.call("stop --time 5 one").well();
    assert_eq!(bench.state("one").as_deref(), Some("Delayed Shutdown"));
    bench.exec("one", "true").well();
    bench.call("start one").well();
    assert_eq!(bench.state("one").as_deref(), Some("Running"));
    bench.call("stop --time 5 one").well();
    let past = jiff::Timestamp::now().as_millisecond() - 1;
    bench.double.change(|state| state.instances.get_mut("one").unwrap().shutdown_at = Some(past));
    assert_eq!(bench.state("one").as_deref(), Some("Stopped"));
}

#[test]
fn names_stay_taken_until_purged() {
    let bench = Bench::with_one(Knobs::default());
    bench.call("delete one").well();
    assert_eq!(bench.call("launch noble -n one").fails(2), "launch failed: instance \"one\" already exists\n");
    bench.call("delete --purge one").well();
    assert!(!bench.double.root("one").exists());
    bench.call("launch noble -n one").well();
    bench.double.delete_behind_back("one");
    assert_eq!((bench.state("one"), bench.double.machine("one")), (None, None));
}

#[test]
fn nothing_is_left_when_a_test_panics_or_its_process_is_gone() {
    let mut folder = None;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let bench = Bench::with_one(Knobs::default());
        folder = bench.double.machine("one").map(|pid| (pid, bench.base()));
        panic!("as tests do");
    }));
    assert!(panicked.is_err());
    let (machine, base) = folder.unwrap();
    // One that nobody has waited for yet is still listed, as a zombie.
    let stat = fs::read_to_string(format!("/proc/{machine}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(base.parent().unwrap().to_str().unwrap()));
}

#[test]
fn a_machine_ends_when_the_process_that_owns_the_double_is_gone() {
    // Without a handle: the hold on the folder is that of this file alone.
    let folder = tempfile::tempdir().unwrap();
    let owner = fs::File::create(folder.path().join("owner")).unwrap();
    owner.lock().unwrap();
    let call = |words: &[&str]| {
        let mut command = std::process::Command::new(crate::support::PROGRAM);
        command.env("MULTIPASS_DOUBLE_DIR", folder.path()).args(words).output().unwrap()
    };
    assert!(call(&["launch", "noble", "-n", "one"]).status.success());
    let running = || String::from_utf8(call(&["list", "--no-ipv4"]).stdout).unwrap().contains("Running");
    assert!(running());
    drop(owner);
    wait("the machine to end", || !running());
}

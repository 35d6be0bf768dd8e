//! The way that everybody goes first: bring the example up, run something in it, take it down.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use rustix::process::Signal;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::ids::Digest;
use vm_agent_tests::e2e::Fleet;

/// The example that the project ships, with free ports. Its task adds a line instead of replacing its
/// file, so that the file counts how often it ran.
fn example() -> Fleet {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fleet.example.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(!text.contains("\nhub:"), "the ports of the example are replaced by adding them");
    let counting = text.replace("> born.txt", ">> born.txt");
    assert_ne!(counting, text, "the example has a task that writes born.txt");
    Fleet::new(&counting)
}

fn births(fleet: &Fleet) -> usize {
    std::fs::read_to_string(fleet.instance("builder").join("work/born.txt")).unwrap().lines().count()
}

/// Name, sync and health of each row of a printed table.
fn rows(table: &str) -> Vec<(String, String, String)> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let column = |name: &str| header.iter().position(|word| *word == name).unwrap();
    let (name, sync, health) = (column("NAME"), column("SYNC"), column("HEALTH"));
    lines.map(|row| (row[name].into(), row[sync].into(), row[health].into())).collect()
}

#[test]
fn the_example_comes_up_well_and_goes_down_without_a_trace_twice() {
    let fleet = example();
    let well = |name: &str, health: &str| (name.to_owned(), "Synced".to_owned(), health.to_owned());
    for _ in 0..2 {
        let table = fleet.up();
        let expected = [
            well("builder", "Healthy"),
            well("reviewer", "Healthy"),
            well("worker-1", "Healthy"),
            well("worker-2", "Healthy"),
            well("worker-3", "Healthy"),
        ];
        assert_eq!(rows(&table), expected);
        let running: BTreeSet<String> = fleet.runtimes().into_keys().collect();
        assert_eq!(
            running,
            BTreeSet::from(["builder", "reviewer", "worker-1", "worker-2", "worker-3"].map(str::to_owned))
        );
        assert_eq!(fleet.ok(&["exec", "worker-2", "--", "echo $ROLE"]), "worker\n");
        assert_eq!(births(&fleet), 1, "a task that runs once runs once");
        fleet.down();
    }
    fleet.up();
    fleet.finish();
}

#[test]
fn up_of_a_fleet_that_is_up_changes_nothing() {
    let fleet = example();
    fleet.up();
    let before = (fleet.status().file.revision, fleet.status().pid, fleet.runtimes());
    let last = fleet.last_event();
    fleet.up();
    assert_eq!((fleet.status().file.revision, fleet.status().pid, fleet.runtimes()), before);
    let after = fleet.events_since(last);
    assert!(after.iter().all(|event| event.kind != EventKind::StepStarted), "{after:?}");
    assert_eq!(births(&fleet), 1);
    fleet.finish();
}

#[test]
fn down_of_a_fleet_that_is_down_says_so() {
    let fleet = example();
    let ran = fleet.run(&["down"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "Nothing is running.\n"));
}

#[test]
fn exec_gives_back_what_the_command_did() {
    let fleet = Fleet::new("defaults: {driver: local}\nagents:\n  web: {}\n");
    fleet.up();
    let exec = |command: &[&str]| fleet.run(&[&["exec", "web", "--"], command].concat());

    let ran = exec(&["echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (7, "out\n", "err\n"));

    assert_eq!(exec(&["echo $((1 + 1)) 'a  b'"]).stdout, "2 a  b\n", "one argument is a line for the shell");
    let vector = exec(&["printf", "%s|", "$((1 + 1))", "a  b", ""]);
    assert_eq!(vector.stdout, "$((1 + 1))|a  b||", "several are a program and its arguments");

    assert_eq!(exec(&["kill -TERM $$"]).code, 128 + 15);
    assert_eq!(exec(&["no-such-program"]).code, 127, "the shell's own answer");
    let missing = exec(&["no-such-program", "argument"]);
    assert_eq!((missing.code, missing.stdout.as_str()), (255, ""));
    assert!(missing.stderr.contains("there is no program `no-such-program`"), "{missing:?}");
    let nobody = fleet.run(&["exec", "wep", "--", "true"]);
    assert_eq!(nobody.code, 255);
    assert!(nobody.stderr.contains("`wep`"), "{nobody:?}");

    let read = fleet.run_with(&["exec", "-i", "web", "--", "tr a-z A-Z"], b"shout");
    assert_eq!((read.code, read.stdout.as_str()), (0, "SHOUT"));
    assert_eq!(exec(&["cat"]).stdout, "", "without -i the input is empty");
    fleet.finish();
}

#[test]
fn exec_carries_megabytes_exactly_in_both_directions() {
    let fleet = Fleet::new("defaults: {driver: local}\nagents:\n  web: {}\n");
    fleet.up();
    let out = fleet.run(&["exec", "web", "--", "head -c 5000000 /dev/urandom | tee blob"]);
    assert_eq!((out.code, out.bytes.len()), (0, 5_000_000), "{}", out.stderr);
    let blob = std::fs::read(fleet.instance("web").join("work/blob")).unwrap();
    assert_eq!(Digest::of(&out.bytes), Digest::of(&blob));

    let back = fleet.run_with(&["exec", "-i", "web", "--", "tee copy"], &blob);
    assert_eq!(back.code, 0, "{}", back.stderr);
    assert_eq!(Digest::of(&back.bytes), Digest::of(&blob));
    let copy = std::fs::read(fleet.instance("web").join("work/copy")).unwrap();
    assert_eq!(Digest::of(&copy), Digest::of(&blob));
    fleet.finish();
}

#[test]
fn a_client_of_exec_that_is_killed_takes_its_command_with_it() {
    let fleet = Fleet::new("defaults: {driver: local}\nagents:\n  web: {}\n");
    fleet.up();
    let mut client = fleet.begin(&["exec", "web", "--", "touch begun; exec sleep 1000"]);
    let begun = fleet.instance("web").join("work/begun");
    let sleeps = || fleet.processes().iter().any(|process| process.command.first().is_some_and(|word| word == "sleep"));
    fleet.wait_for("the command", || (begun.exists() && sleeps()).then_some(()));
    client.kill().unwrap();
    assert_eq!(client.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    fleet.wait_for("the end of the command", || (!sleeps()).then_some(()));
    fleet.finish();
}

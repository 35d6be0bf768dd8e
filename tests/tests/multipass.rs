//! Fleets of driver `multipass`, from their file to their end: on the double of its command, and where
//! `VM_AGENT_TEST_MULTIPASS` is set on the real one. Without root, or without a runtime for machines, this leaves itself
//! out.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "this is a test")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vm_agent_multipass_double::Knobs;
use vm_agent_multipass_double::knobs::{Fault, Json, Wrong};
use vm_agent_schemas::api::{AgentView, List};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::plan::{Condition, ConditionStatus, DriftClass, Health, Sync};
use vm_agent_schemas::snapshot::Snapshot;
use vm_agent_tests::e2e::multipass::Ground;
use vm_agent_tests::e2e::{Fleet, Ran};

const NAMES: [&str; 3] = ["box", "db", "web"];

/// What the command is called with for a look, and nothing else.
const LOOK: &str = "list --no-ipv4 --format json";

/// The boot of each machine, as its kernel numbers it.
fn boots(fleet: &Fleet) -> BTreeMap<&'static str, String> {
    NAMES.map(|name| (name, fleet.exec(name, "cat /proc/sys/kernel/random/boot_id"))).into()
}

/// The agents whose machines were booted in between.
fn booted(before: &BTreeMap<&'static str, String>, after: &BTreeMap<&'static str, String>) -> Vec<&'static str> {
    NAMES.into_iter().filter(|name| before[name] != after[name]).collect()
}

/// The steps that began on machines since then, as `agent: what and why`.
fn steps(fleet: &Fleet, since: u64) -> Vec<String> {
    let events = fleet.events_since(since).into_iter().filter(|event| event.kind == EventKind::StepStarted);
    events.map(|event| format!("{}: {}", event.agent.unwrap(), event.message)).collect()
}

/// A condition of the controller.
fn condition(fleet: &Fleet, kind: &str) -> Condition {
    fleet.status().conditions.into_iter().find(|condition| condition.kind == kind).unwrap()
}

/// Whatever is not as the file says.
fn pending(fleet: &Fleet) -> Ran {
    fleet.run(&["plan", "--detailed-exitcode"])
}

fn state_of(ground: &Ground, instance: &str) -> Option<String> {
    ground.states().into_iter().find_map(|(name, state)| (name == instance).then_some(state))
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What differs from test to test in the fleet that lives.
struct Three<'a> {
    shared: &'a Path,
    port: u16,
}

impl Three<'_> {
    /// The fleet, with so much memory for `web` and what else is said of `db`.
    fn file(&self, memory: &str, db: &str) -> String {
        let Self { shared, port } = self;
        format!(
            "agents:
  web:
    memory: {memory}
    env: {{GREETING: hello}}
    mounts: {{shared: {{source: {shared:?}, writable: true}}}}
    ports: {{http: {port}}}
    services: {{http: {{exec: /usr/bin/python3 -m http.server --bind 127.0.0.1 {port}}}}}
    tasks: {{setup: {{exec: 'echo $GREETING >> done'}}}}
  db: {{files: {{note: kept}}{db}}}
  box: {{user: dev, sudo: true}}
"
        )
    }
}

#[test]
fn a_fleet_lives_through_everything_and_its_machines_are_booted_no_more_than_they_have_to() {
    let Some(ground) = Ground::new("life") else { return };
    let stranger = ground.instance("of-somebody");
    ground.launch(&stranger);
    let shared = ground.folder();
    let three = Three { shared: &shared, port: free_port() };
    let fleet = ground.fleet(&three.file("512M", ""));
    fleet.up();
    fleet.wait_until_well();
    what_the_file_says_is_there(&ground, &fleet, &three);
    a_crashed_machine_is_started_again_alone(&ground, &fleet);
    a_machine_that_somebody_stopped_is_drift_and_started_again(&ground, &fleet);
    one_that_somebody_deleted_waits_for_somebody_to_recover_it(&ground, &fleet);
    more_memory_in_the_file_is_drift_and_mended(&ground, &fleet, &three);
    a_machine_goes_back_to_what_it_was(&fleet);
    a_copy_of_a_machine_is_another_and_both_go_on(&ground, &fleet);
    an_idle_machine_is_suspended_and_wakes_for_work_where_it_was(&ground, &fleet, &three);
    one_that_sleeps_is_woken_to_go_down_in_order_for_a_snapshot(&fleet, &three);
    a_killed_controller_harms_no_machine(&fleet);
    assert_eq!(fleet.exec("web", "cat done"), "hello\n", "a task of the file runs once");

    fleet.ok(&["down", "--destroy", "--yes"]);
    fleet.wait_until_quiet();
    assert_eq!(ground.states(), [(stranger.clone(), "Running".to_owned())]);
    if !ground.is_real() {
        let calls = ground.double().calls();
        let naming = |call: &&vm_agent_multipass_double::Call| call.argv.iter().any(|word| word.contains(&stranger));
        assert_eq!(calls.iter().filter(naming).count(), 1, "it was launched by hand, and let alone");
        assert!(calls.iter().all(|call| call.command() != "purge" && !call.argv.iter().any(|word| word == "--all")));
        assert_eq!(calls.iter().filter(|call| call.command() == "launch").count(), 1 + NAMES.len());
    }
}

fn what_the_file_says_is_there(ground: &Ground, fleet: &Fleet, three: &Three<'_>) {
    assert_eq!(fleet.exec("web", "cat done"), "hello\n");
    let host = ground.instance("db");
    assert_eq!(fleet.exec("db", "cat note; echo; hostname"), format!("kept\n{host}\n"));
    assert_eq!(fleet.exec("web", "id -un; sudo -n id 2>/dev/null || echo none"), "vm-agent\nnone\n");
    assert_eq!(fleet.exec("box", "id -un; sudo -n id -u"), "dev\n0\n");
    for name in NAMES {
        let ran = fleet.run(&["task", name, "--wait", "--", "systemd-detect-virt; exit 7"]);
        assert!(ran.code == 7 && ["kvm", "qemu"].contains(&ran.stdout.trim()), "{ran:?}");
        let told = fleet.ok(&["verify", name]);
        assert!(told.contains("runs in its machine"), "{told}");
    }
    std::fs::write(three.shared.join("from-the-host"), "here\n").unwrap();
    assert_eq!(fleet.exec("web", "cat shared/from-the-host && echo there > shared/from-the-machine"), "here\n");
    assert_eq!(std::fs::read_to_string(three.shared.join("from-the-machine")).unwrap(), "there\n");

    std::fs::write(fleet.path().join("sent"), [0, 159, 146, 150]).unwrap();
    fleet.ok(&["cp", "sent", "db:copied"]);
    fleet.ok(&["cp", "db:copied", "back"]);
    assert_eq!(std::fs::read(fleet.path().join("back")).unwrap(), [0, 159, 146, 150]);

    let here = free_port();
    let mut forward = fleet.begin(&["forward", "web", &format!("{here}:http")]);
    let answer = fleet.wait_for("the service behind the port", || {
        let mut stream = TcpStream::connect(("127.0.0.1", here)).ok()?;
        stream.write_all(b"GET /done HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().filter(|_| !answer.is_empty())?;
        Some(answer)
    });
    assert!(answer.ends_with("\r\n\r\nhello\n"), "{answer}");
    forward.kill().unwrap();
    forward.wait().unwrap();
}

fn a_crashed_machine_is_started_again_alone(ground: &Ground, fleet: &Fleet) {
    let (before, last) = (boots(fleet), fleet.last_event());
    ground.crash("db");
    fleet.wait_for_event(last, EventKind::InstanceFailed, Some("db"));
    fleet.wait_until_well();
    assert_eq!(booted(&before, &boots(fleet)), ["db"]);
    assert_eq!(steps(fleet, last).len(), 1, "{:?}", steps(fleet, last));
    assert_eq!(fleet.exec("db", "cat note"), "kept");
}

fn a_machine_that_somebody_stopped_is_drift_and_started_again(ground: &Ground, fleet: &Fleet) {
    let (before, last) = (boots(fleet), fleet.last_event());
    fleet.ok(&["pause", "box"]);
    ground.by_hand(&["stop", &ground.instance("box")]);
    let power = |agent: &AgentView| agent.drift.iter().any(|drift| drift.class == DriftClass::Power);
    let seen = fleet.wait_for_agent("box", "seen down", power);
    assert!(seen.paused && seen.sync == Sync::Blocked, "{seen:?}");
    assert_eq!(steps(fleet, last), [""; 0], "what is paused is let alone");
    fleet.ok(&["resume", "box"]);
    fleet.wait_until_well();
    assert_eq!(booted(&before, &boots(fleet)), ["box"]);
    assert_eq!(steps(fleet, last).len(), 1, "{:?}", steps(fleet, last));
}

fn one_that_somebody_deleted_waits_for_somebody_to_recover_it(ground: &Ground, fleet: &Fleet) {
    let (last, instance) = (fleet.last_event(), ground.instance("box"));
    ground.by_hand(&["delete", &instance]);
    let blocked = fleet.wait_for_agent("box", "Blocked", |agent| agent.sync == Sync::Blocked);
    assert_eq!(blocked.instance, Some(InstanceState::Deleted));
    let why = fleet.ok(&["why", "box"]);
    assert!(why.contains(&format!("`multipass delete --purge {instance}` deletes it for good")), "{why}");
    assert_eq!(steps(fleet, last), [""; 0]);
    ground.by_hand(&["recover", &instance]);
    fleet.wait_until_well();
    assert_eq!(fleet.exec("box", "hostname"), format!("{instance}\n"));
}

fn more_memory_in_the_file_is_drift_and_mended(ground: &Ground, fleet: &Fleet, three: &Three<'_>) {
    let (before, last) = (boots(fleet), fleet.last_event());
    // The watcher would apply it by itself.
    fleet.ok(&["pause", "web"]);
    fleet.write(&three.file("640M", ""));
    fleet.ok(&["apply", "--yes", "--no-wait"]);
    let plan = pending(fleet);
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(plan.stdout.contains("memory"), "{plan:?}");
    fleet.ok(&["resume", "web"]);
    fleet.wait_until_well();
    let told = ground.by_hand(&["get", &format!("local.{}.memory", ground.instance("web"))]);
    assert_eq!(told.trim(), "640.0MiB");
    assert_eq!(booted(&before, &boots(fleet)), ["web"]);
    let steps = steps(fleet, last);
    assert_eq!(steps.len(), 3, "stop, resize, start: {steps:?}");
    assert_eq!(pending(fleet).code, 0);
}

fn a_machine_goes_back_to_what_it_was(fleet: &Fleet) {
    fleet.exec("db", "echo before > state; sync");
    fleet.ok(&["snapshot", "db", "--as", "point"]);
    fleet.wait_until_well();
    fleet.exec("db", "echo after > state; sync");
    let (before, incarnation) = (boots(fleet), fleet.agent("db").incarnation);
    fleet.ok(&["restore", "db", "point", "--yes"]);
    fleet.wait_until_well();
    assert_eq!(fleet.exec("db", "cat state note"), "before\nkept");
    assert_eq!(fleet.agent("db").incarnation, incarnation.map(|incarnation| incarnation.next()));
    assert_eq!(booted(&before, &boots(fleet)), ["db"]);

    let clone = fleet.run(&["clone", "db", "copy", "--snapshot", "point"]);
    assert_eq!(clone.code, 5, "{clone:?}");
    assert!(clone.stderr.contains("copies only what a machine is now"), "{clone:?}");

    let last = fleet.last_event();
    fleet.ok(&["snapshot", "rm", "db", "point"]);
    let left = fleet.document::<List<Snapshot>>(&["snapshot", "ls", "db"]).items;
    assert_eq!(left.len(), 1, "what it was before it went back: {left:?}");
    assert_eq!(booted(&before, &boots(fleet)), ["db"], "{:?}", steps(fleet, last));
}

fn a_copy_of_a_machine_is_another_and_both_go_on(ground: &Ground, fleet: &Fleet) {
    let before = boots(fleet);
    fleet.ok(&["clone", "db", "copy"]);
    fleet.wait_until_well();
    assert_eq!(booted(&before, &boots(fleet)), ["db"], "it was down to be copied");
    assert_eq!(
        fleet.exec("copy", "cat state note; echo; hostname"),
        format!("before\nkept\n{}\n", ground.instance("copy"))
    );
    assert_ne!(fleet.exec("copy", "cat /etc/machine-id"), fleet.exec("db", "cat /etc/machine-id"));
    for name in ["db", "copy"] {
        let told = fleet.ok(&["verify", name]);
        assert!(told.contains("runs in its machine"), "{told}");
    }
    fleet.exec("copy", "echo copied > state");
    assert_eq!(fleet.exec("db", "cat state"), "before\n");
    fleet.ok(&["destroy", "copy", "--yes"]);
    fleet.wait_until_well();
    assert_eq!(fleet.exec("db", "cat state"), "before\n");
}

fn an_idle_machine_is_suspended_and_wakes_for_work_where_it_was(ground: &Ground, fleet: &Fleet, three: &Three<'_>) {
    let (before, last, instance) = (boots(fleet), fleet.last_event(), ground.instance("db"));
    fleet.exec("db", "echo alive > /dev/shm/it");
    fleet.write(&three.file("640M", ", idle: 3s"));
    fleet.ok(&["apply", "--yes", "--no-wait"]);
    fleet.wait_for_event(last, EventKind::AgentAsleep, Some("db"));
    let asleep = |agent: &AgentView| agent.health == Health::Suspended && agent.sync == Sync::Synced;
    fleet.wait_for_agent("db", "asleep", asleep);
    assert_eq!(state_of(ground, &instance).as_deref(), Some("Suspended"));
    fleet.write(&three.file("640M", ""));
    assert_eq!(fleet.ok(&["task", "db", "--wait", "--", "cat /dev/shm/it"]), "alive\n");
    fleet.ok(&["apply", "--yes"]);
    fleet.wait_until_well();
    assert_eq!(booted(&before, &boots(fleet)), [""; 0]);
}

fn one_that_sleeps_is_woken_to_go_down_in_order_for_a_snapshot(fleet: &Fleet, three: &Three<'_>) {
    let last = fleet.last_event();
    fleet.write(&three.file("640M", ", idle: 3s"));
    fleet.ok(&["apply", "--yes", "--no-wait"]);
    fleet.wait_for_event(last, EventKind::AgentAsleep, Some("db"));
    fleet.wait_for_agent("db", "asleep", |agent| agent.health == Health::Suspended && agent.sync == Sync::Synced);
    let last = fleet.last_event();
    fleet.ok(&["snapshot", "db", "--as", "slept"]);
    let went = steps(fleet, last);
    let in_order = ["db: start", "db: stop", "db: snapshot"];
    assert!(went.len() >= 3 && went.iter().zip(in_order).all(|(step, begins)| step.starts_with(begins)), "{went:?}");
    fleet.write(&three.file("640M", ""));
    fleet.ok(&["apply", "--yes"]);
    fleet.wait_until_well();
    assert_eq!(fleet.exec("db", "cat state note"), "before\nkept");
}

fn a_killed_controller_harms_no_machine(fleet: &Fleet) {
    let (before, last) = (boots(fleet), fleet.last_event());
    fleet.kill_controller();
    fleet.up();
    fleet.wait_until_well();
    assert_eq!(booted(&before, &boots(fleet)), [""; 0]);
    assert_eq!(steps(fleet, last), [""; 0]);
    assert_eq!(pending(fleet).code, 0);
}

#[test]
fn what_others_made_is_let_alone_until_somebody_says_so() {
    let Some(ground) = Ground::new("lab") else { return };
    let (web, db) = (ground.instance("web"), ground.instance("db"));
    ground.launch(&web);
    ground.by_hand(&["exec", &web, "--", "sh", "-c", "echo mine > /home/ubuntu/work.txt"]);
    ground.launch(&db);
    ground.by_hand(&["delete", &db]);
    let before = if ground.is_real() { 0 } else { ground.double().calls().len() };
    let fleet = ground.fleet("agents: {web: {}, db: {}}\n");
    let up = fleet.run(&["up", "--detach"]);
    assert_eq!(up.code, 11, "{up:?}");
    let says = [
        format!("rename or delete instance `{web}`, which has this agent's name and is not ours"),
        "take it over with `vm-agent import`".to_owned(),
        format!("free the name of the deleted instance `{db}`: `multipass recover {db}` brings it back"),
    ];
    assert!(says.iter().all(|sentence| up.stderr.contains(sentence)), "{up:?}");
    assert!(fleet.agents().values().all(|agent| agent.sync == Sync::Blocked), "{:?}", fleet.agents());
    if !ground.is_real() {
        let calls = ground.double().calls().split_off(before);
        let named = calls.iter().find(|call| call.argv.iter().any(|word| word.contains(&web) || word.contains(&db)));
        assert_eq!(named, None, "nobody touches it");
    }

    let exported = fleet.ok(&["export"]);
    assert!(exported.contains(&format!("vm-agent import {web} --driver multipass")), "{exported}");

    let last = fleet.last_event();
    fleet.ok(&["import", &web, "--as", "web", "--yes"]);
    fleet.wait_for_agent("web", "Healthy", |agent| agent.health == Health::Healthy && agent.sync == Sync::Synced);
    fleet.wait_for_event(last, EventKind::Imported, Some("web"));
    assert_eq!(fleet.exec("web", "cat /home/ubuntu/work.txt || sudo cat /home/ubuntu/work.txt"), "mine\n");

    // The user brings one back, and is asked what is to become of it; the user deletes it, and it is ours to make.
    ground.by_hand(&["recover", &db]);
    fleet.wait_for("it to be another's", || fleet.ok(&["why", "db"]).contains("rename or delete").then_some(()));
    assert_eq!(steps(&fleet, last).iter().filter(|step| step.starts_with("db")).count(), 0);
    ground.by_hand(&["delete", "--purge", &db]);
    fleet.wait_until_well();

    what_is_exported_changes_nothing(&fleet);
    what_is_let_go_stays(&ground, &fleet, &web);
    fleet.ok(&["down", "--destroy", "--yes"]);
    fleet.wait_until_quiet();
    assert_eq!(ground.states(), [(web, "Running".to_owned())]);
}

fn what_is_exported_changes_nothing(fleet: &Fleet) {
    let exported = fleet.ok(&["export"]);
    fleet.write(&exported);
    let plan = pending(fleet);
    assert_eq!(plan.code, 0, "{exported}{plan:?}");
    let last = fleet.last_event();
    fleet.ok(&["apply", "--yes"]);
    fleet.wait_until_well();
    assert_eq!(steps(fleet, last), [""; 0], "{exported}");
}

fn what_is_let_go_stays(ground: &Ground, fleet: &Fleet, web: &str) {
    let refused = fleet.run(&["release", "web", "--yes"]);
    assert!(refused.code != 0 && refused.stderr.contains("take it out of the file first"), "{refused:?}");
    fleet.write("agents: {db: {}}\n");
    // It would be deleted only after a person's yes, and is protected besides.
    fleet.run(&["apply", "--no-wait"]);
    assert_eq!(state_of(ground, web).as_deref(), Some("Running"));
    fleet.ok(&["release", "web", "--yes"]);
    fleet.wait_for("nobody to know of it", || (!fleet.agents().contains_key("web")).then_some(()));
    fleet.wait_until_well();
    assert_eq!(state_of(ground, web).as_deref(), Some("Running"));
    ground.by_hand(&["exec", web, "--", "grep", "mine", "/home/ubuntu/work.txt"]);
}

/// How many passes the controller has made.
fn passes(fleet: &Fleet) -> u64 {
    let mut stream = UnixStream::connect(fleet.status().addresses.socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("vmagent_pass_seconds_count "));
    count.unwrap_or_else(|| panic!("{text}")).trim().parse().unwrap()
}

#[test]
fn without_drift_a_look_is_one_list_and_nothing_else_however_much_goes_on() {
    let Some(ground) = Ground::of_double("calm") else { return };
    ground.launch("stranger");
    let fleet = ground.fleet("agents: {web: {}, db: {idle: 1h}, box: {power: stopped}}\n");
    fleet.up();
    fleet.wait_until_well();
    for name in ["db", "web"] {
        // Each runtime is asked once by itself where it runs, by way of the command.
        fleet.wait_for_agent(name, "verified", |agent| {
            let isolation = agent.conditions.iter().find(|condition| condition.kind == "IsolationVerified");
            isolation.is_some_and(|condition| condition.status == ConditionStatus::True)
        });
    }
    let (looks, last) = (|| ground.double().count("list"), fleet.last_event());
    // What was begun for the sake of what came before has ended with the next look.
    let seen = looks();
    fleet.wait_for("another look", || (looks() > seen).then_some(()));
    ground.double().forget_calls();
    let before = passes(&fleet);
    fleet.wait_for("some looks", || {
        fleet.ok(&["task", "web", "--wait", "--", "true"]);
        (looks() >= 4).then_some(())
    });
    let (passed, calls) = (passes(&fleet) - before, ground.double().calls());
    let said: Vec<String> = calls.iter().map(|call| call.argv.join(" ")).collect();
    assert!(said.iter().all(|said| said == LOOK), "{said:?}");
    assert!(said.len() <= 5, "{said:?}");
    assert!(passed > said.len() as u64, "{passed} passes");
    assert!(calls.windows(2).all(|pair| !pair[0].overlaps(&pair[1])));
    assert_eq!(steps(&fleet, last), [""; 0]);
    assert_eq!(pending(&fleet).code, 0);
}

#[test]
fn an_answer_that_is_none_is_told_harms_nobody_and_the_loop_goes_on() {
    let Some(ground) = Ground::of_double("babel") else { return };
    let fleet = ground.fleet("agents: {web: {}, db: {}}\n");
    fleet.up();
    fleet.wait_until_well();
    let boot = fleet.exec("db", "cat /proc/sys/kernel/random/boot_id");
    let said_nothing = Wrong::Fails { code: 0, stderr: String::new(), stdout: String::new() };
    let silent = Fault { command: "list".to_owned(), containing: None, times: u32::MAX, after: 0, what: said_nothing };
    let troubles = [
        (Knobs { json: Json::Truncated, ..Knobs::default() }, "something else than a list of instances: `{ \"list\""),
        (Knobs { faults: vec![silent], ..Knobs::default() }, "something else than a list of instances: nothing"),
        (Knobs { daemon_down: true, ..Knobs::default() }, "start its daemon"),
    ];
    for (knobs, sentence) in troubles {
        let last = fleet.last_event();
        ground.double().set(knobs);
        let lost = fleet.wait_for_event(last, EventKind::DriverLost, None);
        assert!(lost.message.contains("multipass"), "{lost:?}");
        let told = condition(&fleet, "DriversAnswer");
        assert_eq!(told.status, ConditionStatus::False);
        assert!(told.message.contains(sentence), "{told:?}");
        // What happens meanwhile nobody can see, and nobody acts upon.
        ground.double().forget_calls();
        ground.crash("web");
        fleet.wait_for_agent("web", "unknown", |agent| agent.sync == Sync::Unknown);
        fleet.wait_for("a look in vain", || (ground.double().count("list") >= 1).then_some(()));
        let (plan, calls) = (pending(&fleet), ground.double().calls());
        assert!(plan.stdout.contains("web: Unknown, and nothing can be done now"), "{plan:?}");
        let changes = calls.iter().filter(|call| !["list", "version"].contains(&call.command())).count();
        assert_eq!((changes, steps(&fleet, last)), (0, vec![]), "{calls:?}");

        ground.double().set(Knobs::default());
        fleet.wait_for_event(last, EventKind::DriverBack, None);
        fleet.wait_until_well();
        assert_eq!(steps(&fleet, last).len(), 1, "{:?}", steps(&fleet, last));
    }
    assert_eq!(fleet.exec("db", "cat /proc/sys/kernel/random/boot_id"), boot);

    // What others write beside an answer is no reason to stop.
    let banner = Some("A new release is available!\n\n".to_owned());
    ground.double().set(Knobs { json: Json::Preceded, banner, localised: true, ..Knobs::default() });
    let last = fleet.last_event();
    fleet.write("agents: {web: {memory: 640M}, db: {}, more: {}}\n");
    fleet.ok(&["apply", "--yes"]);
    fleet.ok(&["snapshot", "db", "--as", "point"]);
    fleet.wait_until_well();
    fleet.ok(&["restore", "db", "point", "--yes"]);
    fleet.ok(&["destroy", "more", "--yes"]);
    let lost = fleet.events_since(last).into_iter().find(|event| event.kind == EventKind::DriverLost);
    assert_eq!(lost, None);
    ground.double().set(Knobs { json: Json::Garbage, ..Knobs::default() });
    fleet.wait_for_event(last, EventKind::DriverLost, None);
    ground.double().set(Knobs::default());
    fleet.ok(&["down", "--destroy", "--yes"]);
    fleet.wait_until_quiet();
    assert_eq!(ground.states(), []);
}

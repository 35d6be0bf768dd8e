//! What would be done, and what is wrong with a file: told without doing anything.

use vm_agent_schemas::event::EventKind;
use vm_agent_tests::e2e::Fleet;

const TWO: &str = "defaults: {driver: local}\nagents:\n  web: {}\n  db: {power: stopped}\n";
const THREE: &str = "defaults: {driver: local}\nagents:\n  web: {}\n  db: {power: stopped}\n  cache: {}\n";

/// The exit code of `plan --detailed-exitcode`.
fn code(fleet: &Fleet) -> i32 {
    fleet.run(&["plan", "--detailed-exitcode"]).code
}

/// A fleet that is up as the file says, with a controller that leaves what becomes of the file to commands.
fn unwatched(file: &str, flags: &[&str]) -> Fleet {
    let fleet = Fleet::new(file);
    fleet.begin_controller(&[&["--no-watch"], flags].concat());
    fleet.up();
    fleet
}

fn assert_plans_alike(fleet: &Fleet) {
    let plans = [0, 1, 2].map(|_| fleet.ok(&["plan", "-o", "json"]));
    assert_eq!(plans[0], plans[1]);
    assert_eq!(plans[1], plans[2]);
}

#[test]
fn a_plan_says_whether_there_is_something_to_do() {
    let fleet = Fleet::new(TWO);
    assert_eq!(code(&fleet), 2, "all is missing");
    assert!(!fleet.state_dir().exists(), "a plan without a controller leaves nothing behind");
    let fleet = unwatched(TWO, &[]);
    assert_eq!(code(&fleet), 0);
    fleet.write(THREE);
    assert_eq!(code(&fleet), 2);
    fleet.write(TWO);
    fleet.down();
    assert_eq!(code(&fleet), 2, "web is down");
    assert!(fleet.processes().is_empty(), "a plan without a controller starts none");
    fleet.up();
    fleet.finish();
}

#[test]
fn the_same_plan_reads_the_same_to_the_byte() {
    assert_plans_alike(&Fleet::new(THREE));
    let fleet = unwatched(TWO, &[]);
    assert_plans_alike(&fleet);
    fleet.write(THREE);
    assert_plans_alike(&fleet);
    fleet.down();
    assert_plans_alike(&fleet);
    fleet.up();
    fleet.finish();
}

#[test]
fn a_plan_that_can_not_be_made_is_1() {
    let fleet = Fleet::new(TWO);
    fleet.write("agents: [");
    assert_eq!(code(&fleet), 1, "the file has errors");
    std::fs::remove_file(fleet.file()).unwrap();
    assert_eq!(code(&fleet), 1, "there is no file");
    let missing = fleet.run(&["plan", "--detailed-exitcode", "-f", "elsewhere.yaml"]);
    assert_eq!(missing.code, 1);
    assert_eq!(fleet.run(&["plan", "-f", "elsewhere.yaml"]).code, 3, "without the flag the error has its own code");
    assert!(missing.stderr.contains("elsewhere.yaml can't be read"), "{missing:?}");

    fleet.write(TWO);
    std::fs::create_dir(fleet.state_dir()).unwrap();
    std::fs::write(fleet.state_dir().join("state.db"), "no database".repeat(1000)).unwrap();
    let broken = fleet.run(&["plan", "--detailed-exitcode"]);
    assert_eq!(broken.code, 1, "{broken:?}");
    assert!(broken.stderr.contains("state.db") || broken.stderr.contains("database"), "{broken:?}");
}

#[test]
fn a_dry_run_of_every_verb_changes_nothing() {
    let fleet = unwatched(TWO, &[]);
    let before = (fleet.runtimes(), fleet.status().file.revision, fleet.last_event());
    fleet.write(THREE);
    for verb in [
        &["apply", "--dry-run"][..],
        &["stop", "web", "--dry-run"],
        &["start", "db", "--dry-run"],
        &["destroy", "web", "--dry-run"],
        &["create", "extra", "--driver", "local", "--dry-run"],
        &["down", "--dry-run"],
        &["down", "--destroy", "--dry-run"],
    ] {
        fleet.ok(verb);
    }
    assert_eq!((fleet.runtimes(), fleet.status().file.revision, fleet.last_event()), before);
    assert_eq!(fleet.agents().len(), 2);
    assert!(fleet.agents().values().all(|agent| agent.overrides.is_empty()));
    fleet.finish();
}

#[test]
fn a_typo_is_told_with_its_place_and_the_right_word_and_touches_nothing() {
    let fleet = unwatched(TWO, &[]);
    let before = (fleet.runtimes(), fleet.status().file.revision, fleet.last_event());
    fleet.write("defaults: {driver: local}\nagents:\n  web:\n    memroy: 2G\n");
    // The line of the hub's ports stands before the others.
    let place = format!("{}:5:5: agents.web.memroy", fleet.file().display());
    for command in [&["up", "--detach"][..], &["apply"], &["plan"], &["validate"]] {
        let ran = fleet.run(command);
        assert_eq!(ran.code, 3, "{command:?}: {ran:?}");
        assert!(ran.stderr.contains(&place), "{command:?}: {ran:?}");
        assert!(ran.stderr.contains("did you mean `memory`?"), "{command:?}: {ran:?}");
    }
    assert_eq!((fleet.runtimes(), fleet.status().file.revision, fleet.last_event()), before);
    fleet.finish();
}

#[test]
fn an_empty_file_is_refused_and_the_last_good_one_stays_in_force() {
    let fleet = unwatched(TWO, &[]);
    let before = (fleet.runtimes(), fleet.status().file.revision, fleet.last_event());
    for text in ["", "# nothing but a remark\n", "---\n", "agents:\n"] {
        std::fs::write(fleet.file(), text).unwrap();
        for command in [&["up", "--detach"][..], &["apply"], &["plan"]] {
            let ran = fleet.run(command);
            assert_eq!(ran.code, 3, "{command:?} of {text:?}: {ran:?}");
        }
    }
    assert_eq!((fleet.runtimes(), fleet.status().file.revision, fleet.last_event()), before);
    fleet.finish();
}

#[test]
fn a_file_of_another_fleet_is_refused_with_both_names() {
    let fleet = unwatched(&format!("name: lab\n{TWO}"), &["--fleet", "lab"]);
    let before = (fleet.runtimes(), fleet.last_event());
    fleet.write(&format!("name: shop\n{TWO}"));
    for command in [&["up", "--detach"][..], &["apply"], &["plan"]] {
        let ran = fleet.run(command);
        assert_eq!(ran.code, 5, "{command:?}: {ran:?}");
        assert!(ran.stderr.contains("`lab`") && ran.stderr.contains("`shop`"), "{command:?}: {ran:?}");
    }
    assert_eq!((fleet.runtimes(), fleet.last_event()), before);

    fleet.down();
    let without = fleet.run(&["up", "--detach"]);
    assert_ne!(without.code, 0, "the state folder is still that of fleet lab");
    assert!(without.stderr.contains("`lab`") && without.stderr.contains("`shop`"), "{without:?}");
    assert!(fleet.processes().is_empty());
    let planned = fleet.run(&["plan"]);
    assert_ne!(planned.code, 0, "{planned:?}");
    assert!(planned.stderr.contains("`lab`") && planned.stderr.contains("`shop`"), "{planned:?}");
    fleet.write(&format!("name: lab\n{TWO}"));
    fleet.up();
    fleet.finish();
}

#[test]
fn an_agent_that_leaves_the_file_goes_only_with_a_yes() {
    let fleet = unwatched(TWO, &[]);
    let before = fleet.runtimes();
    fleet.write("defaults: {driver: local}\nagents:\n  db: {power: stopped}\n");
    fleet.up();
    assert_eq!(fleet.runtimes(), before, "without a yes it goes on");
    let last = fleet.last_event();
    fleet.ok(&["up", "--detach", "--yes"]);
    assert!(fleet.runtimes().is_empty());
    assert!(!fleet.instance("web").exists());
    assert!(fleet.events_since(last).iter().any(|event| event.kind == EventKind::Approved));
    fleet.finish();
}

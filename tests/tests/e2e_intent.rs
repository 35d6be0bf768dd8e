//! What a person means, over time: the file that is saved, what is said beside it, and the way back.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use vm_agent_schemas::api::{FileState, List, RevisionView};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::ids::Revision;
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::plan::{Health, Sync};
use vm_agent_tests::e2e::{Fleet, HUB, Process, replace};

const TWO: &str = "defaults: {driver: local}\nagents:\n  web: {}\n  db: {}\n";
const THREE: &str = "defaults: {driver: local}\nagents:\n  web: {}\n  db: {}\n  cache: {}\n";

/// What must not change as long as nothing else is in force.
fn as_it_is(fleet: &Fleet) -> (Option<Revision>, Vec<(String, Process)>) {
    (fleet.status().file.revision, fleet.runtimes().into_iter().collect())
}

fn names(fleet: &Fleet) -> Vec<String> {
    fleet.agents().into_keys().collect()
}

fn is_healthy(fleet: &Fleet, name: &str) {
    fleet.wait_for_agent(name, "Healthy", |agent| agent.health == Health::Healthy);
}

#[test]
fn an_agent_that_is_saved_into_the_file_comes_up() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let (before, last) = (fleet.runtimes(), fleet.last_event());
    fleet.save(THREE);
    let applied = fleet.wait_for_event(last, EventKind::FleetApplied, None);
    assert_eq!(applied.message, "the file changed: 1 to create, 0 to change, 0 to destroy");
    is_healthy(&fleet, "cache");
    assert!(fleet.ok(&["status"]).contains("revision 2"));
    let file = fleet.status().file;
    assert_eq!((file.state, file.author.as_deref()), (FileState::InForce, Some("file watch")));
    let mut after = fleet.runtimes();
    assert!(after.remove("cache").is_some());
    assert_eq!(after, before, "nothing happened to the others");
    assert_eq!(fleet.run(&["plan", "--detailed-exitcode"]).code, 0);
    fleet.finish();
}

#[test]
fn a_typo_that_is_saved_is_named_everywhere_and_touches_nothing() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let (before, last) = (as_it_is(&fleet), fleet.last_event());
    fleet.save("defaults: {driver: local}\nagents:\n  web: {memroy: 1G}\n  new: {}\n");
    let rejected = fleet.wait_for_event(last, EventKind::FileRejected, None);
    fleet.wait_for_file(FileState::Invalid);
    // The line of the hub's ports stands before the others.
    let place = format!("{}:4:9: agents.web.memroy", fleet.file().display());
    let validated = fleet.run(&["validate"]);
    assert_eq!(validated.code, 3);
    let told = [rejected.message, fleet.ok(&["events"]), fleet.ok(&["status"]), validated.stderr];
    for told in told {
        assert!(told.contains(&place) && told.contains("did you mean `memory`?"), "{told}");
    }
    assert_eq!(as_it_is(&fleet), before);

    let last = fleet.last_event();
    fleet.save("defaults: {driver: local}\nagents:\n  web: {memory: 1G}\n  db: {}\n  new: {}\n");
    fleet.wait_for_event(last, EventKind::FleetApplied, None);
    fleet.wait_for_file(FileState::InForce);
    assert!(!fleet.ok(&["status"]).contains("memroy"), "what is mended is told no more");
    is_healthy(&fleet, "new");
    fleet.finish();
}

#[test]
fn what_is_said_beside_the_file_is_seen_everywhere_and_ends_at_its_time() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    fleet.ok(&["stop", "db", "--for", "1h", "--reason", "flaky"]);
    assert!(!fleet.runtimes().contains_key("db"));
    for view in [&["list"][..], &["status", "db"], &["plan"], &["why", "db"], &["override", "ls"]] {
        let told = fleet.ok(view);
        for word in ["power: stopped", "local", "59m", "flaky"] {
            assert!(told.contains(word), "{view:?} does not tell `{word}`: {told}");
        }
    }
    let last = fleet.last_event();
    fleet.ok(&["override", "extend", "db", "--for", "1s"]);
    fleet.wait_for_event(last, EventKind::OverrideExpired, Some("db"));
    fleet.wait_until_well();
    assert!(fleet.runtimes().contains_key("db"));
    let db = fleet.agent("db");
    assert_eq!((db.power, db.overrides), (Some(PowerState::Running), Vec::new()));
    fleet.finish();
}

#[test]
fn what_is_said_beside_the_file_ends_when_the_file_says_another_thing_about_it() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    fleet.ok(&["stop", "db", "--for", "2h"]);
    let last = fleet.last_event();
    fleet.save(&TWO.replace("db: {}", "db: {env: {A: b}}"));
    fleet.wait_for_event(last, EventKind::FleetApplied, None);
    assert_eq!(fleet.agent("db").overrides.len(), 1, "that was about something else");

    fleet.save(&TWO.replace("db: {}", "db: {power: stopped}"));
    let superseded = fleet.wait_for_event(last, EventKind::OverrideSuperseded, Some("db"));
    assert!(superseded.message.contains("file"), "{}", superseded.message);
    let db = fleet.wait_for_agent("db", "as the file says", |agent| agent.overrides.is_empty());
    assert_eq!((db.power, db.health), (Some(PowerState::Stopped), Health::Stopped));
    fleet.save(TWO);
    is_healthy(&fleet, "db");
    fleet.finish();
}

#[test]
fn what_is_said_beside_the_file_outlives_the_controller() {
    let fleet = Fleet::new(THREE);
    fleet.up();
    fleet.ok(&["stop", "db", "--for", "3h", "--reason", "a rest"]);
    fleet.ok(&["stop", "web", "--sticky"]);
    fleet.ok(&["create", "extra", "--driver", "local"]);
    fleet.ok(&["destroy", "cache", "--yes"]);
    let said = || fleet.document::<List<Override>>(&["override", "ls"]).items;
    let before = (said(), fleet.runtimes());
    assert_eq!(before.0.len(), 4);
    assert!(before.1.keys().eq(["extra"]), "{before:?}");
    fleet.kill_controller();
    fleet.up();
    assert_eq!((said(), fleet.runtimes()), before);
    fleet.finish();
}

/// One way in which a file on the disk is no fleet file, how that is told, and how it stands then.
type Mishap = (&'static str, fn(&Path), FileState, &'static str);

const MISHAPS: [Mishap; 8] = [
    ("empty", |file| fs::write(file, "").unwrap(), FileState::Invalid, "agents"),
    ("only a remark", |file| replace(file, "# agents: {}\n"), FileState::Invalid, "agents"),
    ("cut off", |file| replace(file, &format!("{HUB}agents:\n  web: {{")), FileState::Invalid, "fleet.yaml:"),
    ("no text", |file| fs::write(file, b"agents: {\xff}").unwrap(), FileState::Invalid, "UTF-8"),
    ("missing", |file| fs::remove_file(file).unwrap(), FileState::Missing, "can't be read"),
    (
        "a folder",
        |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        },
        FileState::Missing,
        "has no *.yaml file in it",
    ),
    (
        "a link to itself",
        |file| {
            fs::remove_file(file).unwrap();
            symlink(file, file).unwrap();
        },
        FileState::Missing,
        "can't be read",
    ),
    (
        "a pipe",
        |file| {
            fs::remove_file(file).unwrap();
            assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
        },
        FileState::Missing,
        "neither a file nor a folder",
    ),
];

#[test]
fn a_file_that_is_none_is_told_in_a_sentence_and_touches_nothing() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let before = as_it_is(&fleet);
    for (name, mishap, state, words) in MISHAPS {
        mishap(&fleet.file());
        let file = fleet.wait_for_file(state);
        assert!(file.message.contains(words), "{name}: {}", file.message);
        assert!(file.message.ends_with("the accepted file stays in force"), "{name}: {}", file.message);
        assert!(fleet.ok(&["events"]).contains(words), "{name}");
        assert_eq!(as_it_is(&fleet), before, "{name}");
        if fleet.file().is_dir() {
            fs::remove_dir(fleet.file()).unwrap();
        }
        fleet.save(TWO);
        fleet.wait_for_file(FileState::InForce);
    }
    assert_eq!(as_it_is(&fleet), before);
    fleet.finish();
}

#[test]
fn a_file_that_drops_most_of_the_fleet_deletes_nothing_without_a_yes() {
    let all = "prune: auto\ndefaults: {driver: local}\nagents:\n  a: {}\n  b: {}\n  c: {}\n  d: {}\n  e: {}\n";
    let fleet = Fleet::new(all);
    fleet.up();
    let (before, last) = (fleet.runtimes(), fleet.last_event());
    fleet.save("prune: auto\ndefaults: {driver: local}\nagents:\n  a: {}\n");
    let applied = fleet.wait_for_event(last, EventKind::FleetApplied, None);
    let waiting = fleet.wait_for("what waits for a yes", || Some(fleet.approvals()).filter(|it| it.len() == 4));
    for approval in &waiting {
        assert!(applied.message.contains(approval.id.short()), "{}", applied.message);
    }
    assert_eq!(fleet.runtimes(), before);

    let one = waiting.iter().find(|approval| approval.agent.as_ref().unwrap().as_str() == "c").unwrap();
    fleet.ok(&["approve", one.id.short()]);
    fleet.wait_for("the end of c", || (!fleet.instance("c").exists()).then_some(()));
    let rest: Vec<String> = fleet.approvals().iter().map(|approval| approval.id.short().to_owned()).collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    fleet.ok(&[&["approve"], &rest[..]].concat());
    fleet.wait_for("the end of the others", || (names(&fleet) == ["a"]).then_some(()));
    assert_eq!(fleet.runtimes().into_iter().collect::<Vec<_>>(), [("a".to_owned(), before["a"].clone())]);
    fleet.finish();
}

#[test]
fn a_file_that_an_agent_can_write_is_applied_by_a_person_only() {
    let fleet = Fleet::new(TWO);
    let folder = fleet.path().join("conf");
    fs::create_dir(&folder).unwrap();
    let text = "defaults: {driver: local}\nagents:\n  web: {mounts: {conf: {source: ., writable: true}}}\n";
    fs::write(folder.join("fleet.yaml"), format!("{HUB}{text}")).unwrap();
    fleet.ok(&["up", "--detach", "-f", "conf/fleet.yaml"]);
    assert!(fleet.ok(&["status"]).contains("agent `web` can write"), "it is told before anything happens");
    let before = as_it_is(&fleet);

    fleet.exec("web", "echo '  more: {}' >> conf/fleet.yaml");
    let file = fleet.wait_for_file(FileState::Guarded);
    assert!(file.message.contains("agent `web` can write"), "{}", file.message);
    let status = fleet.ok(&["status"]);
    assert!(status.contains("agent `web` can write") && status.contains("vm-agent apply"), "{status}");
    assert_eq!((as_it_is(&fleet), names(&fleet)), (before, vec!["web".to_owned()]));
    fleet.ok(&["apply", "-f", "conf/fleet.yaml"]);
    assert_eq!(names(&fleet), ["more", "web"]);
    fleet.finish();
}

#[test]
fn a_fleet_that_has_machines_is_not_replaced_by_whatever_file_is_near() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let before = as_it_is(&fleet);
    let other = fleet.path().join("other");
    fs::create_dir(&other).unwrap();
    let file = fs::read_to_string(fleet.file()).unwrap();
    let run = |text: &str, arguments: &[&str]| {
        fs::write(other.join("fleet.yaml"), text).unwrap();
        let output = fleet.command(arguments).current_dir(&other).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let changed = file.replace("db: {}", "cache: {}");
    let told = format!("fleet.yaml replaces {}, which is in force", fleet.file().display());
    for arguments in [&["up", "--detach"][..], &["apply"]] {
        let (code, stderr) = run(&changed, arguments);
        assert!(code == Some(3) && stderr.contains(&told), "{arguments:?}: {stderr}");
    }
    let (code, stderr) = run(&changed, &["plan"]);
    assert!(code == Some(0) && stderr.contains(&told), "{stderr}");
    assert_eq!(as_it_is(&fleet), before);
    let (code, stderr) = run(&file, &["apply"]);
    assert!(code == Some(0) && !stderr.contains("replaces"), "a file that has only moved says the same: {stderr}");
    fleet.finish();
}

#[test]
fn a_mount_that_is_saved_into_the_file_waits_for_a_yes_to_it() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let (before, last) = (as_it_is(&fleet), fleet.last_event());
    fleet.save(&TWO.replace("web: {}", "web: {mounts: {host: /}}"));
    let held = fleet.wait_for_event(last, EventKind::FileHeld, None);
    fleet.wait_for_file(FileState::Held);
    let approvals = fleet.approvals();
    let [approval] = approvals.as_slice() else { panic!("{approvals:?}") };
    for told in [&held.message, &approval.what, &fleet.ok(&["status"]), &fleet.ok(&["approvals"])] {
        assert!(told.contains("agent `web` may read /, mounted at host"), "{told}");
    }
    assert_eq!(as_it_is(&fleet), before);
    assert!(!fleet.instance("web").join("work/host").exists());

    fleet.ok(&["approve", approval.id.short()]);
    fleet.wait_until_well();
    fleet.wait_for("the mount", || fleet.instance("web").join("work/host").exists().then_some(()));
    fleet.wait_until_well();
    assert_eq!(fleet.exec("web", "cd host && test -d tmp && pwd -P"), "/\n");
    assert_eq!(fleet.runtimes()["db"].pid, before.1[0].1.pid, "it was about the other");
    fleet.finish();
}

#[test]
fn looking_at_a_file_runs_none_of_its_commands() {
    let fleet = Fleet::new(TWO);
    let mark = fleet.path().join("ran");
    let command = format!("web: {{secrets: {{T: {{command: \"touch {}; echo x\"}}}}}}", mark.display());
    let text = format!("{HUB}{}", TWO.replace("web: {}", &command));
    fs::write(fleet.path().join("secrets.yaml"), &text).unwrap();
    let look = || {
        fleet.ok(&["validate", "-f", "secrets.yaml"]);
        fleet.ok(&["plan", "-f", "secrets.yaml"]);
        assert!(!mark.exists(), "looking is not doing");
    };
    look();
    fleet.up();
    look();
    fleet.ok(&["apply", "--dry-run", "-f", "secrets.yaml"]);
    assert_eq!(fleet.run(&["diff", "-f", "secrets.yaml"]).code, 1, "it differs");
    replace(&fleet.file(), &text);
    fleet.wait_for_file(FileState::Held);
    look();
    let approval = fleet.approvals().remove(0);
    assert!(approval.what.contains("touch"), "the yes is to that command: {}", approval.what);
    fleet.ok(&["approve", approval.id.short()]);
    fleet.wait_for("the command", || mark.exists().then_some(()));
    fleet.wait_until_well();
    assert_eq!(fleet.exec("web", "echo $T"), "x\n");
    fleet.finish();
}

#[test]
fn what_a_person_went_back_from_stays_away_until_the_file_changes() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    fleet.save(THREE);
    is_healthy(&fleet, "cache");
    let last = fleet.last_event();
    fleet.ok(&["rollback", "1", "--yes"]);
    fleet.wait_for_event(last, EventKind::FleetRolledBack, None);
    assert_eq!(names(&fleet), ["db", "web"]);
    assert_eq!(fleet.status().file.state, FileState::RolledBack);
    let before = as_it_is(&fleet);
    // The same text, written anew, is not a change.
    fleet.save(THREE);
    fleet.kill_controller();
    // Unlike `up` it applies nothing.
    fleet.begin_controller(&[]);
    fleet.wait_until_well();
    let file = fleet.status().file;
    assert_eq!((file.state, as_it_is(&fleet)), (FileState::RolledBack, before));
    let status = fleet.ok(&["status"]);
    assert!(status.contains("went back"), "{status}");

    let revisions: List<RevisionView> = fleet.document(&["history"]);
    let shown: Vec<_> = revisions.items.iter().map(|it| (it.revision.0, it.author.as_str(), it.current)).collect();
    assert_eq!(shown, [(3, "local", true), (2, "file watch", false), (1, "local", false)]);
    assert!(fleet.ok(&["history", "2"]).contains("cache"));

    fleet.save(&THREE.replace("cache", "later"));
    is_healthy(&fleet, "later");
    assert_eq!(fleet.status().file.state, FileState::InForce);
    fleet.finish();
}

#[test]
fn all_errors_of_all_files_are_told_at_once() {
    let fleet = Fleet::new(TWO);
    let folder = fleet.path().join("more");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("bad.yaml"), "agents:\n  cache: {cpuss: 2}\n  queue: {memory: lots}\n").unwrap();
    fs::write(folder.join("good.yaml"), "agents:\n  db: {}\n").unwrap();
    fs::write(folder.join(".hidden.yaml"), "agents: [").unwrap();
    fleet.write("defaults: {driver: local}\nagents:\n  web: {powr: stopped}\n");
    let run = |verb| fleet.run(&[verb, "-f", "fleet.yaml", "-f", "more"]);
    for verb in ["validate", "plan", "up"] {
        let ran = run(verb);
        assert_eq!(ran.code, 3, "{verb}: {ran:?}");
        for place in
            ["fleet.yaml:4:9: agents.web.powr", "more/bad.yaml:2:11: agents.cache.cpuss", "more/bad.yaml:3:19: agents"]
        {
            assert!(ran.stderr.contains(place), "{verb} does not name {place}: {ran:?}");
        }
    }
    assert!(fleet.processes().is_empty(), "nothing was begun");

    fleet.write("defaults: {driver: local}\nagents:\n  web: {}\n");
    fs::write(folder.join("bad.yaml"), "agents:\n  cache: {cpus: 2}\n").unwrap();
    fleet.ok(&["up", "--detach", "-f", "fleet.yaml", "-f", "more"]);
    assert_eq!(names(&fleet), ["cache", "db", "web"]);
    let before = as_it_is(&fleet);
    // Each of them is watched, the folder too.
    replace(&folder.join("bad.yaml"), "agents:\n  cache: {cpuss: 2}\n  web: {}\n");
    fleet.wait_for_file(FileState::Invalid);
    assert!(fleet.ok(&["status"]).contains("did you mean `cpus`?"));
    assert_eq!(as_it_is(&fleet), before);
    replace(&folder.join("bad.yaml"), "agents:\n  cache: {cpus: 2}\n");
    fleet.wait_for_file(FileState::InForce);
    fs::write(folder.join("new.yml"), "agents:\n  queue: {}\n").unwrap();
    is_healthy(&fleet, "queue");
    fleet.finish();
}

#[test]
fn a_link_that_leads_elsewhere_is_a_change_of_the_file() {
    let fleet = Fleet::new(TWO);
    let folder = fleet.path().join("config");
    for (name, text) in [("..first", TWO), ("..second", THREE)] {
        fs::create_dir_all(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("fleet.yaml"), format!("{HUB}{text}")).unwrap();
    }
    let lead = |name: &str| {
        symlink(name, folder.join("..new")).unwrap();
        fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
    };
    lead("..first");
    symlink("..data/fleet.yaml", folder.join("fleet.yaml")).unwrap();
    fleet.ok(&["up", "--detach", "-f", "config/fleet.yaml"]);
    let before = fleet.runtimes();
    lead("..second");
    is_healthy(&fleet, "cache");
    let after: BTreeSet<_> = fleet.runtimes().into_values().collect();
    assert!(before.into_values().all(|runtime| after.contains(&runtime)));
    // And what it leads to now is watched.
    fs::write(folder.join("..second/fleet.yaml"), format!("{HUB}{}", THREE.replace("cache", "queue"))).unwrap();
    is_healthy(&fleet, "queue");
    let cache = fleet.agent("cache");
    assert_eq!((cache.sync, cache.power), (Sync::Blocked, None), "it goes only with a yes");
    fleet.finish();
}

//! Keys and tokens are changed while they are in use, and nobody notices but those who hold the old ones.
#![expect(clippy::unwrap_used, reason = "this is a test")]

use std::path::Path;

use vm_agent_schemas::api::NewToken;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::plan::Health;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::TaskOutcome;
use vm_agent_tests::e2e::Fleet;

const ONE: &str = "defaults: {driver: local}\nagents:\n  web: {}\n";

fn up() -> Fleet {
    let fleet = Fleet::new(ONE);
    fleet.up();
    fleet
}

/// The private keys in a folder, the one in use first, by what is in them.
fn keys(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            found.extend(keys(&path));
        } else if name.to_str().is_some_and(|name| ["key", "key.next", "key.acked"].contains(&name)) {
            found.extend(std::fs::read(path));
        }
    }
    found
}

#[test]
fn a_runtime_gets_another_key_while_a_task_runs_and_neither_session_nor_task_notices() {
    let fleet = up();
    let before = keys(&fleet.instance("web"));
    assert_eq!(before.len(), 1, "a runtime has one key");
    let line = "echo begun >> runs; until test -e go; do sleep 0.05; done; echo done >> runs";
    let id = fleet.ok(&["task", "web", "--", line]).trim().to_owned();
    fleet.wait_for("the task to begin", || fleet.instance("web").join("work/runs").exists().then_some(()));

    let epoch = || fleet.agent("web").session.map(|session| session.epoch);
    let session = epoch();
    let since = fleet.last_event();
    fleet.ok(&["rotate", "web"]);
    let changed = || Some(keys(&fleet.instance("web"))).filter(|now| now.len() == 2 || *now != before);
    fleet.wait_for("another key", changed);
    assert_eq!(epoch(), session, "the session goes on");
    let events = fleet.events_since(since);
    assert!(events.iter().all(|event| event.kind != EventKind::RuntimeLost), "{events:?}");

    // The next connection is the first with the new key. From then on the old one is gone.
    fleet.kill_controller();
    fleet.up();
    fleet.wait_for_agent("web", "connected again", |agent| {
        agent.health == Health::Healthy && agent.session.as_ref().map(|session| session.epoch) > session
    });
    fleet.wait_for("the old key to be gone", || {
        let now = keys(&fleet.instance("web"));
        (now.len() == 1 && now != before).then_some(())
    });
    std::fs::write(fleet.instance("web").join("work/go"), "").unwrap();
    assert_eq!(fleet.run(&["task", "output", "--follow", &id]).code, 0);
    let task: Task = fleet.document(&["task", "show", &id]);
    assert_eq!((task.outcome(), task.attempt), (Some(&TaskOutcome::Exited { code: 0 }), 1));
    assert_eq!(fleet.exec("web", "cat runs"), "begun\ndone\n", "it ran once");
    fleet.ok(&["rotate", "web"]);
    assert_eq!(fleet.run(&["rotate", "wbe"]).code, 4);
    let verified = fleet.run(&["verify", "web", "-o", "json"]);
    assert_eq!(verified.code, 11, "{verified:?}");
    assert!(verified.stdout.contains("driver local isolates nothing"), "{verified:?}");
    fleet.finish();
}

#[test]
fn a_token_is_followed_by_another_and_both_work_until_the_old_one_has_had_its_time() {
    let fleet = up();
    let server = format!("http://{}", fleet.status().addresses.api);
    let old: NewToken = fleet.document(&["token", "create", "ci", "--role", "read"]);
    let list = |secret: &str| {
        let mut command = fleet.command(&["list", "-o", "name", "--server", &server]);
        let output = command.env_remove("VM_AGENT_STATE_DIR").env("VM_AGENT_TOKEN", secret).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let works = (0, "web\n".to_owned());
    assert_eq!(list(old.secret.expose()), works);
    let new: NewToken = fleet.document(&["token", "rotate", "ci", "--overlap", "15s"]);
    assert_eq!((&new.token.name, new.token.role), (&old.token.name, old.token.role));
    assert_ne!(new.secret.expose(), old.secret.expose());
    assert_eq!((list(old.secret.expose()), list(new.secret.expose())), (works.clone(), works.clone()));
    fleet.wait_for("the end of the old one", || (list(old.secret.expose()).0 == 10).then_some(()));
    assert_eq!(list(new.secret.expose()), works);

    let mistyped = fleet.run(&["token", "revoke", "cl"]);
    assert!(mistyped.code == 4 && mistyped.stderr.contains("did you mean `ci`?"), "{mistyped:?}");
    fleet.ok(&["token", "revoke", &new.token.id.to_string()]);
    assert_eq!(list(new.secret.expose()).0, 10);
    fleet.finish();
}

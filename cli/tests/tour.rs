//! The program with a controller of its own: what a person does with a file, from its first line on.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Free ports, so that tests live side by side: a second file beside the one under test.
const PORTS: &str =
    "hub: {listen: '127.0.0.1:0', apiListen: '127.0.0.1:0', dashboardListen: '127.0.0.1:0', heartbeat: 1s}\n";

/// A folder with fleet files and a controller, which goes down with it.
struct Fleet {
    dir: TempDir,
}

impl Fleet {
    /// A fleet of what `init` writes.
    fn new() -> Self {
        let fleet = Self { dir: tempfile::tempdir().unwrap() };
        fleet.ok(&["init", "fleet"]);
        fleet.write("fleet/ports.yaml", PORTS);
        fleet
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vm-agent"))
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path())
            .env("VM_AGENT_STATE_DIR", self.path().join("state"))
            .output()
            .unwrap()
    }

    /// Exit code and stdout.
    fn code(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that fails says on stderr, after its exit code.
    fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["-o", "json"]].concat())).unwrap()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let output = self.run(&["down", "--destroy", "--yes"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || std::thread::panicking(), "{said}");
    }
}

#[test]
fn a_new_file_is_valid_and_runs_and_is_not_overwritten() {
    let fleet = Fleet::new();
    assert!(fleet.ok(&["validate", "-f", "fleet/fleet.yaml"]).contains("is valid"));
    assert!(fleet.fails(&["init", "fleet"], 5).contains("nothing was written"));
    fleet.write("fleet/fleet.yaml", "agents: {}");
    fleet.ok(&["init", "--force", "fleet"]);
    assert!(fleet.read("fleet/fleet.yaml").starts_with("# yaml-language-server: $schema=fleet.schema.json\n"));
    let schema: Value = serde_json::from_str(&fleet.read("fleet/fleet.schema.json")).unwrap();
    assert!(schema["properties"]["agents"].is_object());
    assert_eq!(fleet.code(&["diff", "-f", "fleet"]).0, 1, "without a controller all of it is new");
    let up = fleet.ok(&["up", "--detach", "-f", "fleet"]);
    assert!(up.contains("builder  local   running  Synced  Healthy"), "{up}");
}

#[test]
fn a_change_is_shown_applied_and_taken_back() {
    let fleet = Fleet::new();
    fleet.ok(&["up", "--detach", "--no-watch", "-f", "fleet"]);
    assert_eq!(fleet.code(&["diff", "-f", "fleet"]), (0, String::new()));
    assert!(fleet.ok(&["status"]).contains("not watched: "));

    fleet.write("fleet/more.yaml", "agents: {web: {secrets: {KEY: {command: echo key}}, labels: {tier: front}}}\n");
    let file = fleet.read("fleet/fleet.yaml").replace("prune: confirm", "prune: auto");
    fleet.write("fleet/fleet.yaml", &file.replace("#protect: true", "restart: never"));
    let (code, diff) = fleet.code(&["diff", "-f", "fleet"]);
    assert_eq!(code, 1, "{diff}");
    let expected = "prune: confirm -> auto (in place)\nbuilder.restart: always -> never (in place; file)\n\
                    + web  (makes a machine)\n";
    assert_eq!(diff, expected);
    assert_eq!(fleet.code(&["diff", "-f", "fleet", "web"]).1, "+ web  (makes a machine)\n");
    assert!(fleet.fails(&["diff", "-f", "fleet", "wbe"], 4).contains("did you mean `web`?"));
    let (code, plan) = fleet.code(&["plan", "--detailed-exitcode", "-f", "fleet"]);
    assert!(code == 2 && plan.starts_with("+ create web: "), "{plan}");
    assert!(plan.ends_with("Plan: 1 to add, 0 to change, 0 to destroy.\n"), "{plan}");

    fleet.ok(&["apply", "-f", "fleet"]);
    assert_eq!(fleet.code(&["diff", "-f", "fleet"]).0, 0);
    let history = fleet.ok(&["history"]);
    assert!(history.lines().nth(1).unwrap().starts_with("2*"), "{history}");
    assert!(fleet.ok(&["history", "2"]).contains("prune: auto"));
    let dry = fleet.ok(&["rollback", "1", "--dry-run"]);
    assert!(dry.contains("- destroy web"), "{dry}");
    fleet.ok(&["rollback", "1", "--yes"]);
    assert_eq!(fleet.json(&["list"])["items"].as_array().unwrap().len(), 1, "web is gone again");
    assert!(fleet.ok(&["history"]).lines().nth(1).unwrap().starts_with("3*"));
    let dry = fleet.ok(&["rollback", "2", "--dry-run"]);
    let reach = "Newly allowed by this file:\n  ! agent `web` gets the secret KEY from the command `echo key`\n";
    assert!(dry.contains(reach), "{dry}");
    let dry = fleet.ok(&["apply", "--dry-run", "-f", "fleet"]);
    assert!(dry.contains(reach), "{dry}");
}

#[test]
fn agents_are_told_apart_by_label_and_explained_one_by_one() {
    let fleet = Fleet::new();
    let web = "agents: {web: {replicas: 2, labels: {tier: front}, env: {A: '1'}}}\n";
    fleet.write("fleet/web.yaml", web);
    fleet.ok(&["up", "--detach", "-f", "fleet"]);

    assert_eq!(fleet.ok(&["list", "-o", "name", "-l", "tier=front"]), "web-1\nweb-2\n");
    assert_eq!(fleet.ok(&["list", "-o", "name", "builder"]), "builder\n");
    assert!(fleet.fails(&["list", "-l", "tier=back"], 4).contains("no agent has labels as `tier=back` says"));
    assert!(fleet.fails(&["stop", "web-1", "-l", "tier=front"], 3).contains("cannot be used with"));
    fleet.ok(&["stop", "-l", "tier=front", "--reason", "lunch"]);
    assert!(fleet.fails(&["destroy", "-l", "!tier"], 3).contains("all data of: builder"), "nobody is here to say yes");

    let why = fleet.ok(&["why", "web-1"]);
    assert!(why.starts_with("web-1 is Synced and Stopped.\n"), "{why}");
    assert!(why.contains("lunch") && why.contains("Next: nothing to do"), "{why}");
    let document = fleet.json(&["why", "web-1"]);
    assert_eq!((&document["kind"], &document["name"]), (&"Agent".into(), &"web-1".into()));
    assert!(document["events"].as_array().is_some_and(|events| !events.is_empty()));
    let events = fleet.json(&["events", "web-1"]);
    assert!(events["items"].as_array().unwrap().iter().all(|event| event["agent"] == "web-1"), "{events}");
    assert!(fleet.ok(&["events", "web-1", "--limit", "1"]).contains("web-1"));
    assert!(fleet.fails(&["events", "web-3"], 4).contains("did you mean `web-1`"));
    let spec = fleet.ok(&["spec", "web-1"]);
    let row = |field: &str| spec.lines().find(|line| line.starts_with(field)).unwrap().to_owned();
    assert!(row("env.A").ends_with("file"), "{spec}");
    assert!(row("driver").ends_with("defaults"), "{spec}");
    assert!(row("power").contains("override: ") && row("power").contains("lunch"), "{spec}");
    let plan = fleet.ok(&["plan", "-f", "fleet"]);
    assert!(plan.contains("Overridden:\n  web-1  power: stopped ("), "{plan}");

    assert!(fleet.fails(&["why", "web"], 4).contains("web-1, web-2 are replicas of `web`"));
    assert!(fleet.fails(&["status", "bilder"], 4).contains("did you mean `builder`?"));
    assert!(fleet.fails(&["approve", "c0ffee"], 4).contains("apply the file first"));
    fleet.ok(&["start", "-l", "tier=front"]);
    fleet.ok(&["task", "web-1", "--wait", "--", "true"]);
    let tasks = fleet.ok(&["task", "ls"]);
    assert!(tasks.contains("web-1") && tasks.contains("builder"), "{tasks}");
    fleet.ok(&["token", "create", "ci"]);
    fleet.ok(&["token", "revoke", "ci"]);
    assert!(fleet.fails(&["token", "revoke", "ci"], 4).contains("there is no token `ci`"));
}

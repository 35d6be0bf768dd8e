//! The program as a person or a script meets it, without a controller.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use std::fmt::Write as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A place of its own for one test: nothing of this machine's settings is seen.
struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    #[must_use]
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vm-agent"))
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("HOME", self.path())
            .env("VM_AGENT_STATE_DIR", self.path().join("state"))
            .output()
            .unwrap()
    }

    /// Exit code, stdout and stderr in one text, with this place's own path taken out.
    #[must_use]
    fn transcript(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let mut text = format!("exit {}\n", output.status.code().unwrap());
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            if !bytes.is_empty() {
                let _ = write!(text, "--- {name}\n{}", String::from_utf8_lossy(bytes));
            }
        }
        text.replace(self.path().to_str().unwrap(), "$DIR")
    }
}

#[test]
fn a_valid_file_is_told_so() {
    let sandbox = Sandbox::new();
    sandbox.write("fleet.yaml", "name: lab\nagents:\n  web: {replicas: 2}\n  db: {}\n");
    insta::assert_snapshot!(sandbox.transcript(&["validate"]), @"
    exit 0
    --- stdout
    $DIR/fleet.yaml is valid: fleet `lab` with 3 agents
    ");
}

#[test]
fn a_bad_file_is_refused_with_the_place_and_the_right_word() {
    let sandbox = Sandbox::new();
    sandbox.write("fleet.yaml", "agents:\n  web:\n    memroy: 8G\n");
    insta::assert_snapshot!(sandbox.transcript(&["validate"]), @"
    exit 3
    --- stderr
    error: $DIR/fleet.yaml has 1 error; nothing was changed
    $DIR/fleet.yaml:3:5: agents.web.memroy: there is no key `memroy` here
     3 |     memroy: 8G
       |     ^
    hint: did you mean `memory`?
    ");
}

#[test]
fn commands_of_a_file_check_it_before_they_look_for_a_controller() {
    let sandbox = Sandbox::new();
    sandbox.write("bad.yaml", "agents: 3\n");
    for command in ["up", "plan", "apply", "validate"] {
        assert_eq!(sandbox.run(&[command, "-f", "bad.yaml"]).status.code(), Some(3), "{command}");
    }
    assert!(!sandbox.path().join("state").exists(), "a bad file starts nothing");
}

#[test]
fn no_file_anywhere_is_told_with_the_least_one() {
    insta::assert_snapshot!(Sandbox::new().transcript(&["validate"]), @"
    exit 3
    --- stderr
    error: there is no fleet.yaml here or in a folder above
    hint: name one with -f; the least that a fleet file says is `agents: {}`
    ");
}

#[test]
fn without_a_controller_the_next_command_is_named() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.transcript(&["list"]), @"
    exit 8
    --- stderr
    error: no controller runs on $DIR/state
    hint: start one with `vm-agent up`
    ");
    let agent_commands: [&[&str]; 7] = [
        &["status", "web"],
        &["events"],
        &["drift"],
        &["start", "web"],
        &["logs", "web"],
        &["override", "ls"],
        &["task", "web", "--", "true"],
    ];
    for command in agent_commands {
        assert_eq!(sandbox.run(command).status.code(), Some(8), "{command:?}");
    }
    assert_eq!(sandbox.run(&["exec", "web", "--", "true"]).status.code(), Some(255));
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let output = Sandbox::new().run(&["list", "-o", "json"]);
    assert!(output.stdout.is_empty());
    let problem: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(problem["code"], "unavailable");
    assert_eq!(problem["remediation"], "start one with `vm-agent up`");
}

/// A state folder as a controller of fleet `lab` leaves it, and its socket.
fn controller_of_lab(sandbox: &Sandbox) -> UnixListener {
    let state = sandbox.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let socket = state.join("api.sock");
    let file = serde_json::json!({
        "pid": 1, "version": "0.1.0", "fleet": "lab", "life": 1,
        "addresses": {"socket": socket, "hub": "127.0.0.1:1", "api": "127.0.0.1:2", "dashboard": "127.0.0.1:3"},
    });
    std::fs::write(state.join("controller.json"), file.to_string()).unwrap();
    UnixListener::bind(&socket).unwrap()
}

#[test]
fn a_controller_that_died_counts_as_none() {
    let sandbox = Sandbox::new();
    // A socket that nobody listens on any more, as a crash leaves it.
    drop(controller_of_lab(&sandbox));
    assert_eq!(sandbox.run(&["list"]).status.code(), Some(8));
    insta::assert_snapshot!(sandbox.transcript(&["down"]), @r"
    exit 0
    --- stderr
    Nothing is running.
    ");
}

#[test]
fn a_file_of_another_fleet_is_refused_with_both_names() {
    let sandbox = Sandbox::new();
    let _listener = controller_of_lab(&sandbox);
    sandbox.write("fleet.yaml", "name: shop\nagents: {}\n");
    insta::assert_snapshot!(sandbox.transcript(&["up"]), @"
    exit 5
    --- stderr
    error: the controller on $DIR/state looks after fleet `lab`, and $DIR/fleet.yaml is of fleet `shop`
    hint: give this fleet a state folder of its own with --state-dir, or bring the other down first
    ");
}

#[test]
fn nothing_is_deleted_without_a_yes() {
    let sandbox = Sandbox::new();
    let _listener = controller_of_lab(&sandbox);
    insta::assert_snapshot!(sandbox.transcript(&["destroy", "web", "db"]), @"
    exit 3
    --- stderr
    error: this deletes the machines and all data of: web db; nobody is here to confirm it
    hint: `--yes` confirms it beforehand
    ");
}

#[test]
fn wrong_usage_is_3_and_help_is_0() {
    let sandbox = Sandbox::new();
    for wrong in [&["frobnicate"][..], &["list", "--nope"], &["stop"], &["start", "Web"], &[]] {
        assert_eq!(sandbox.run(wrong).status.code(), Some(3), "{wrong:?}");
    }
    for right in [&["--help"][..], &["help", "up"], &["--version"]] {
        assert_eq!(sandbox.run(right).status.code(), Some(0), "{right:?}");
    }
    assert_eq!(sandbox.run(&["exec", "web"]).status.code(), Some(255), "exec keeps all other codes for the command");
}

#[test]
fn a_server_needs_a_token_that_is_not_an_argument() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.transcript(&["--server", "http://127.0.0.1:1", "list"]), @"
    exit 10
    --- stderr
    error: a controller at --server needs a token
    hint: put it into the variable VM_AGENT_TOKEN, or name its file with --token-file
    ");
}

#[test]
fn the_schema_is_json_and_describes_the_file() {
    let output = Sandbox::new().run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["title"], "VM Agent System fleet file");
    assert!(schema["properties"]["agents"].is_object());
}

#[test]
fn a_runtime_without_a_seed_does_not_run() {
    let sandbox = Sandbox::new();
    let output = sandbox.run(&["runtime", sandbox.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("seed.json"));
}

#[test]
fn the_version_is_told_with_the_protocol() {
    let output = Sandbox::new().run(&["version", "-o", "json"]);
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version["kind"], "Version");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_help_of_every_command_reads_as_before() {
    let mut text = String::new();
    let mut commands = vec![vm_agent_cli::command().term_width(100)];
    commands[0].build();
    while let Some(mut command) = commands.pop() {
        let name = command.get_bin_name().unwrap_or("vm-agent").to_owned();
        let help = command.render_long_help().to_string();
        let _ = write!(text, "## {name}\n\n{}\n\n", help.trim_end());
        let visible = command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help");
        // What every command has stands once, at the top.
        let once = |inner: clap::Command| {
            inner.term_width(100).mut_args(|arg| {
                let everywhere = arg.is_global_set() || arg.get_id() == "help";
                arg.hide(everywhere)
            })
        };
        let mut inner: Vec<_> = visible.cloned().map(once).collect();
        inner.reverse();
        commands.extend(inner);
    }
    insta::assert_snapshot!(text);
}

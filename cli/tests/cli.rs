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
    error: 1 error in $DIR/fleet.yaml; nothing was changed
    $DIR/fleet.yaml:3:5: agents.web.memroy: there is no key `memroy` here
     3 |     memroy: 8G
       |     ^
    hint: did you mean `memory`?
    ");
}

#[test]
fn everything_that_is_wrong_is_a_document_where_json_was_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.write("fleet.yaml", "agents:\n  web: {memroy: 8G, cpus: 0}\n");
    let output = sandbox.run(&["validate", "-o", "json"]);
    assert_eq!(output.status.code(), Some(3));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["kind"], "DiagnosticList");
    let paths: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["path"].clone()).collect();
    assert_eq!(paths, ["agents.web.memroy", "agents.web.cpus"]);
    sandbox.write("fleet.yaml", "agents: {}\n");
    let list: serde_json::Value = serde_json::from_slice(&sandbox.run(&["validate", "-o", "json"]).stdout).unwrap();
    assert_eq!(list["items"], serde_json::json!([]));
}

#[test]
fn several_files_and_stdin_make_one_fleet() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path().join("parts")).unwrap();
    sandbox.write("parts/a.yaml", "name: lab\nagents: {a: {}}\n");
    sandbox.write("parts/b.yml", "agents: {b: {}}\n");
    sandbox.write("c.yaml", "agents: {c: {}}\n");
    insta::assert_snapshot!(sandbox.transcript(&["validate", "-f", "parts", "-f", "c.yaml", "-f", "-"]), @"
    exit 3
    --- stderr
    error: 1 error in 4 files; nothing was changed
    stdin: the file says nothing: a fleet file has at least the key `agents`
    hint: write `agents: {}` for a fleet of none
    ");
    insta::assert_snapshot!(sandbox.transcript(&["validate", "-f", "parts", "-f", "c.yaml"]), @"
    exit 0
    --- stdout
    3 files are valid: fleet `lab` with 3 agents
    ");
    sandbox.write("c.yaml", "agents: {a: {}}\n");
    insta::assert_snapshot!(sandbox.transcript(&["validate", "-f", "parts", "-f", "c.yaml"]), @"
    exit 3
    --- stderr
    error: 1 error in 3 files; nothing was changed
    c.yaml:1:10: agents.a: `a` is in two files; the first is parts/a.yaml:2:10
     1 | agents: {a: {}}
       |          ^
    ");
    insta::assert_snapshot!(sandbox.transcript(&["validate", "-f", "nowhere.yaml"]), @"
    exit 3
    --- stderr
    error: nowhere.yaml can't be read: No such file or directory (os error 2)
    ");
}

#[test]
fn keys_are_explained_and_mistyped_ones_corrected() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.transcript(&["explain", "agents.web.memory"]), @"
    exit 0
    --- stdout
    agents.NAME.memory  a text, or a whole number of bytes

      Memory.

    Default   1G
    Example   memory: 8G
    Change    the machine stops and starts again
    ");
    insta::assert_snapshot!(sandbox.transcript(&["explain", "agents.web.memroy"]), @"
    exit 4
    --- stderr
    error: the fleet file has no key `agents.web.memroy`
    hint: did you mean `agents.memory`?
    ");
    let output = sandbox.run(&["explain", "agents.cpus", "-o", "json"]);
    let explanation: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&explanation["kind"], &explanation["cost"]), (&"Explanation".into(), &"stop".into()));
}

#[test]
fn a_command_without_its_dashes_is_told_where_they_go() {
    insta::assert_snapshot!(Sandbox::new().transcript(&["exec", "web", "ls", "-l"]), @"
    exit 3
    --- stderr
    error: unexpected argument 'ls' found

    Usage: vm-agent exec [OPTIONS] <NAME> [-- <COMMAND>...]

    For more information, try '--help'.
    hint: write the command after `--`: vm-agent exec NAME -- COMMAND
    ");
}

#[test]
fn a_log_of_nobody_names_that_of_the_controller() {
    insta::assert_snapshot!(Sandbox::new().transcript(&["logs"]), @"
    exit 3
    --- stderr
    error: name the agent whose log to show: vm-agent logs NAME
    hint: the log of a controller that `vm-agent up` started is $DIR/state/controller.log; any other writes it to its stderr
    ");
}

#[test]
fn diff_keeps_1_for_differences() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(&["diff"]).status.code(), Some(3), "there is no file");
    sandbox.write("fleet.yaml", "agents: {}\n");
    assert_eq!(sandbox.run(&["diff"]).status.code(), Some(0));
    sandbox.write("fleet.yaml", "agents: {web: {driver: local}}\n");
    assert_eq!(sandbox.run(&["diff"]).status.code(), Some(1));
    sandbox.write("state", "a file where the folder should be");
    assert_eq!(sandbox.run(&["diff"]).status.code(), Some(2));
    assert!(!sandbox.path().join("state/state.db").exists(), "it changes nothing");
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
    hint: `vm-agent init` writes one, and -f names one elsewhere; the least that it says is `agents: {}`
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
    let agent_commands: [&[&str]; 13] = [
        &["status", "web"],
        &["events"],
        &["drift"],
        &["start", "web"],
        &["logs", "web"],
        &["override", "ls"],
        &["task", "web", "--", "true"],
        &["task", "ls"],
        &["message", "send", "web", "hello"],
        &["dead"],
        &["cp", "web:a", "."],
        &["cp", "/etc/hosts", "web:"],
        &["forward", "web", "0:80"],
    ];
    for command in agent_commands {
        assert_eq!(sandbox.run(command).status.code(), Some(8), "{command:?}");
    }
    let of_what_they_run: [&[&str]; 4] = [
        &["exec", "web", "--", "true"],
        &["run", "--rm", "--", "true"],
        &["task", "web", "--wait", "--", "true"],
        &["forward", "web", "--stdio", "22"],
    ];
    for command in of_what_they_run {
        assert_eq!(sandbox.run(command).status.code(), Some(255), "{command:?}");
    }
}

#[test]
fn a_shell_needs_somebody_who_types() {
    insta::assert_snapshot!(Sandbox::new().transcript(&["shell", "web"]), @"
    exit 3
    --- stderr
    error: stdin is no terminal, so there is nobody to type
    hint: scripts run commands: vm-agent exec NAME -i -- COMMAND
    ");
}

#[test]
fn a_copy_between_agents_is_told_the_way_by_here() {
    insta::assert_snapshot!(Sandbox::new().transcript(&["cp", "web:out/app", "db:/srv/"]), @"
    exit 3
    --- stderr
    error: both sides are in agents
    hint: copy it by way of here: vm-agent cp web:out/app . && vm-agent cp ./app db:/srv/
    ");
    insta::assert_snapshot!(Sandbox::new().transcript(&["cp", "a", "b"]), @"
    exit 3
    --- stderr
    error: neither side is in an agent; write one as NAME:PATH
    hint: here it is: cp -r a b
    ");
}

#[test]
fn work_of_a_kind_is_told_where_its_words_go() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.transcript(&["task", "web", "--type", "file:read", "/etc/hosts"]), @"
    exit 3
    --- stderr
    error: invalid value '/etc/hosts' for '[NAME]...': `/etc/hosts` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters

    For more information, try '--help'.
    hint: write what it works on after `--`: vm-agent task NAME --type KIND -- PATH
    ");
    insta::assert_snapshot!(sandbox.transcript(&["task", "web", "--type", "file:read"]), @"
    exit 3
    --- stderr
    error: --type file:read is written: vm-agent task NAME --type file:read -- PATH
    ");
    insta::assert_snapshot!(sandbox.transcript(&["task", "web", "--retry-on", "failed", "--", "true"]), @"
    exit 3
    --- stderr
    error: the following required arguments were not provided:
      --retry <COUNT>

    Usage: vm-agent task --retry <COUNT> --retry-on <ENDS> --state-dir <DIR> <NAME>... -- <COMMAND>...

    For more information, try '--help'.
    ");
}

#[test]
fn what_would_be_over_at_once_is_refused() {
    insta::assert_snapshot!(Sandbox::new().transcript(&["stop", "web", "--for", "0s"]), @"
    exit 3
    --- stderr
    error: invalid value '0s' for '--for <SPAN>': it would be over at once; the shortest is 1s

    For more information, try '--help'.
    ");
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
    error: the controller on $DIR/state looks after fleet `lab`, and the file ($DIR/fleet.yaml) is of fleet `shop`
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
    for wrong in [&["exec", "web"][..], &["run", "--rm"], &["task", "web", "--wait"], &["shell", "web"]] {
        assert_eq!(sandbox.run(wrong).status.code(), Some(3), "what would never have run anything: {wrong:?}");
    }
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

//! What happens inside agents while they run: services, files, secrets, environment, mounts, and sleep.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use rustix::process::Signal;
use vm_agent_schemas::api::{AgentView, List};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::plan::{Health, Sync};
use vm_agent_schemas::wire::{ServiceReport, ServiceState};
use vm_agent_tests::e2e::{Fleet, send};

/// A fleet of one agent, `web`, with these keys.
fn of_web(keys: &str) -> String {
    format!("defaults: {{driver: local}}\nagents:\n  web: {keys}\n")
}

fn service(agent: &AgentView, name: &str) -> Option<ServiceReport> {
    agent.session.as_ref()?.health.as_ref()?.services.get(name).cloned()
}

/// Waits for a service to run, having been started again so often.
fn wait_for_service(fleet: &Fleet, name: &str, restarts: u32) {
    let runs = |it: ServiceReport| (it.state, it.restarts) == (ServiceState::Running, restarts);
    fleet.wait_for_agent("web", "Healthy with its service", |agent| {
        agent.health == Health::Healthy && service(agent, name).is_some_and(runs)
    });
}

/// Waits for a line of the log of `web` with that text in it.
fn wait_for_line(fleet: &Fleet, text: &str) -> String {
    let what = format!("`{text}` in the log");
    fleet.wait_for(&what, || fleet.ok(&["logs", "web"]).lines().find(|line| line.contains(text)).map(str::to_owned))
}

/// The lines of a file in the work folder of `web`.
fn lines(fleet: &Fleet, name: &str) -> Vec<String> {
    let text = fs::read_to_string(fleet.instance("web").join("work").join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_service_runs_logs_and_is_started_again() {
    let ticker = |word: &str| {
        let exec = r#"echo $$ >> pids; echo "out $WORD"; echo "err $WORD" >&2; while :; do sleep 0.1; done"#;
        of_web(&format!("{{services: {{ticker: {{exec: '{exec}', env: {{WORD: {word}}}}}}}}}"))
    };
    let fleet = Fleet::new(&ticker("one"));
    fleet.up();
    let runtime = fleet.runtimes()["web"].clone();
    wait_for_service(&fleet, "ticker", 0);
    assert!(wait_for_line(&fleet, "service ticker | out one").ends_with("out one"));
    wait_for_line(&fleet, "service ticker ! err one");
    assert_eq!(lines(&fleet, "pids").len(), 1);

    send(lines(&fleet, "pids")[0].parse().unwrap(), Signal::KILL);
    wait_for_service(&fleet, "ticker", 1);
    assert_eq!(lines(&fleet, "pids").len(), 2);
    wait_for_line(&fleet, "service ticker: it was ended by signal 9");

    // Another wording is another service; the runtime goes on.
    fleet.save(&ticker("two"));
    wait_for_line(&fleet, "service ticker | out two");
    wait_for_service(&fleet, "ticker", 0);
    fleet.save(&of_web("{}"));
    let of_ticker = |word: &String| word.contains("out $WORD");
    let runs = || fleet.processes().iter().any(|process| process.command.iter().any(of_ticker));
    fleet.wait_for("the end of the service", || (!runs()).then_some(()));
    assert_eq!(fleet.runtimes()["web"], runtime);
    fleet.finish();
}

#[test]
fn a_service_that_its_probe_gives_up_is_told_or_started_again() {
    let probed = |restart: &str| {
        let exec = "echo $$ >> pids; touch ok; while :; do sleep 0.1; done";
        let probe = "{exec: \"test -e ok\", every: 100ms, failures: 2}";
        of_web(&format!("{{services: {{api: {{exec: '{exec}', restart: {restart}, probe: {probe}}}}}}}"))
    };
    let fleet = Fleet::new(&probed("always"));
    fleet.up();
    fleet.exec("web", "rm ok");
    wait_for_service(&fleet, "api", 1);
    assert_eq!(lines(&fleet, "pids").len(), 2);

    fleet.save(&probed("never"));
    wait_for_service(&fleet, "api", 0);
    fleet.exec("web", "rm ok");
    fleet.wait_for_agent("web", "Degraded", |agent| agent.health == Health::Degraded);
    for view in [&["status", "web"][..], &["drift"], &["why", "web"]] {
        let told = fleet.ok(view);
        assert!(told.contains("services.api") && told.contains("probe"), "{view:?}: {told}");
    }
    fleet.exec("web", "touch ok");
    wait_for_service(&fleet, "api", 0);
    assert_eq!(lines(&fleet, "pids").len(), 3);
    fleet.finish();
}

#[test]
fn files_are_written_and_mended_and_removed() {
    let file = "conf/app.ini: {content: \"port = 1\\n\", mode: \"0600\"}";
    let fleet = Fleet::new(&of_web(&format!("{{files: {{{file}, notes.txt: hello}}}}")));
    fleet.up();
    let runtime = fleet.runtimes()["web"].clone();
    let (ini, notes) = (fleet.instance("web").join("work/conf/app.ini"), fleet.instance("web").join("work/notes.txt"));
    let is_right = || {
        let mode = |path: &PathBuf| fs::metadata(path).ok().map(|it| it.permissions().mode() & 0o777);
        let text = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
        (text(&ini) == "port = 1\n" && mode(&ini) == Some(0o600) && text(&notes) == "hello").then_some(())
    };
    assert_eq!(is_right(), Some(()), "they are there before the agent is Healthy");
    for wrong in ["echo port = 2 > conf/app.ini", "chmod 644 conf/app.ini", "rm notes.txt", "rm -r conf"] {
        fleet.exec("web", wrong);
        fleet.wait_for(&format!("the end of `{wrong}`"), is_right);
    }
    fleet.save(&of_web(&format!("{{files: {{{file}}}}}")));
    fleet.wait_for("the end of the other file", || (!notes.exists()).then_some(()));
    assert!(ini.exists());
    assert_eq!(fleet.runtimes()["web"], runtime);
    fleet.finish();
}

/// Secrets of each source. The value that the command makes stands nowhere before.
const SECRETS: &str = r#"
defaults: {driver: local}
agents:
  db: {}
  web:
    services: {sum: {exec: 'printf %s "$A$B$C" | cksum; while :; do sleep 0.1; done'}}
    secrets:
      A: {env: WORD}
      B: {file: token}
      C: {command: "cat $HOME/half $HOME/half"}
"#;

#[test]
fn secrets_reach_the_agent_and_nothing_else() {
    let fleet = Fleet::new(SECRETS);
    let values = ["open-sesame-7301".to_owned(), "hunter-2-4417".to_owned(), "of-a-word-9".repeat(2)];
    let token = fleet.path().join("token");
    fs::write(&token, format!("{}\n", values[1])).unwrap();
    fs::write(fleet.path().join("half"), "of-a-word-9").unwrap();
    let up = fleet.command(&["up", "--detach"]).env("WORD", &values[0]).output().unwrap();
    assert!(up.status.success(), "{}{}", String::from_utf8_lossy(&up.stderr), fleet.report());

    assert_eq!(fleet.exec("web", "echo $A $B $C"), format!("{}\n", values.join(" ")));
    let sum = fleet.exec("web", "printf %s \"$A$B$C\" | cksum");
    assert_eq!(fleet.ok(&["task", "web", "--wait", "--", "printf %s \"$A$B$C\" | cksum"]), sum);
    wait_for_line(&fleet, &format!("service sum | {}", sum.trim_end()));
    assert_eq!(fleet.exec("db", "echo $A$B$C$WORD"), "\n", "the others have none");

    let views: [&[&str]; 8] = [
        &["status", "web", "-o", "json"],
        &["spec", "web"],
        &["list", "-o", "json"],
        &["events"],
        &["logs", "web"],
        &["history", "1"],
        &["plan"],
        &["explain", "agents.secrets"],
    ];
    let told = views.map(|view| fleet.ok(view)).concat();
    assert!(told.contains("WORD"), "where a secret comes from is no secret");
    let runtimes = fleet.runtimes();
    for value in &values {
        assert!(!told.contains(value.as_str()), "{value} is told");
        let source = (*value == values[1]).then(|| token.clone());
        assert_eq!(fleet.holders(value), Vec::from_iter(source), "{value} is written down");
        let in_argv = |word: &String| word.contains(value.as_str());
        assert!(!fleet.processes().iter().any(|process| process.command.iter().any(in_argv)), "{value} is in argv");
        for (name, runtime) in &runtimes {
            let environment = fs::read(format!("/proc/{}/environ", runtime.pid)).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&environment).contains(value.as_str()), "{name} inherits {value}");
        }
    }
    fleet.finish();
}

#[test]
fn a_secret_that_can_not_be_had_is_named_and_mended_without_a_restart() {
    let fleet = Fleet::new(&of_web("{secrets: {TOKEN: {file: token}}}"));
    let ran = fleet.run(&["up", "--detach", "--timeout", "2s"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    let named = |text: &str| text.contains("TOKEN") && text.contains(&fleet.path().join("token").display().to_string());
    let told = fleet.wait_for("what is missing", || Some(fleet.ok(&["why", "web"])).filter(|told| named(told)));
    assert!(!told.contains("panicked"), "{told}");
    let runtime = fleet.runtimes()["web"].clone();
    fs::write(fleet.path().join("token"), "here\n").unwrap();
    fleet.wait_until_well();
    assert_eq!(fleet.exec("web", "echo $TOKEN"), "here\n");
    assert_eq!(fleet.runtimes()["web"], runtime);
    fleet.finish();
}

#[test]
fn environment_changes_without_a_restart() {
    let fleet = Fleet::new(&of_web("{env: {GREETING: hello, OLD: x}}"));
    fleet.up();
    let (runtime, last) = (fleet.runtimes()["web"].clone(), fleet.last_event());
    assert_eq!(fleet.exec("web", "echo $GREETING $OLD"), "hello x\n");
    fleet.save(&of_web("{env: {GREETING: bye}}"));
    fleet.wait_for("the new greeting", || (fleet.exec("web", "echo $GREETING $OLD") == "bye\n").then_some(()));
    fleet.wait_until_well();
    assert_eq!(fleet.runtimes()["web"], runtime);
    let events = fleet.events_since(last);
    assert!(events.iter().all(|event| event.kind != EventKind::StepStarted), "{events:?}");
    fleet.finish();
}

#[test]
fn mounts_are_read_and_written() {
    let fleet = Fleet::new(&of_web("{mounts: {src: {source: ./code, writable: true}, docs/man: ./man}}"));
    for folder in ["code", "man"] {
        fs::create_dir(fleet.path().join(folder)).unwrap();
        fs::write(fleet.path().join(folder).join("file"), folder).unwrap();
    }
    fleet.up();
    assert_eq!(fleet.exec("web", "cat src/file docs/man/file"), "codeman");
    fleet.exec("web", "echo new > src/made");
    assert_eq!(fs::read_to_string(fleet.path().join("code/made")).unwrap(), "new\n");

    // One less is no more reach: the watcher takes it away, with a restart.
    let last = fleet.last_event();
    fleet.save(&of_web("{mounts: {src: {source: ./code, writable: true}}}"));
    fleet.wait_for_event(last, EventKind::FleetApplied, None);
    fleet.wait_until_well();
    assert_eq!(fleet.exec("web", "ls"), "src\n");
    let folder = fleet.path().join("code");
    fleet.ok(&["destroy", "web", "--yes"]);
    assert_eq!(fs::read_to_string(folder.join("made")).unwrap(), "new\n", "what is mounted is not the agent's");
    fleet.finish();
}

#[test]
fn an_idle_agent_sleeps_and_wakes_for_work() {
    let fleet = Fleet::new(&of_web("{idle: 1s}"));
    fleet.up();
    let sleeps = |after: u64| {
        fleet.wait_for_event(after, EventKind::AgentAsleep, Some("web"));
        let asleep = |agent: &AgentView| agent.health == Health::Suspended && agent.sync == Sync::Synced;
        fleet.wait_for_agent("web", "asleep", asleep);
        assert!(fleet.runtimes().is_empty());
    };
    sleeps(0);
    let told = [fleet.ok(&["list"]), fleet.ok(&["status", "web"]), fleet.ok(&["why", "web"])];
    assert!(told.iter().all(|it| it.contains("idle")), "{told:?}");
    assert!(fleet.runtimes().is_empty(), "to look at it does not wake it");

    for run in [&["exec", "web", "--", "echo awake"][..], &["task", "web", "--wait", "--", "echo awake"]] {
        let last = fleet.last_event();
        assert_eq!(fleet.ok(run), "awake\n");
        fleet.wait_for_event(last, EventKind::AgentAwake, Some("web"));
        sleeps(last);
    }
    // What takes longer than that is not disturbed.
    let last = fleet.last_event();
    assert_eq!(fleet.ok(&["task", "web", "--wait", "--", "sleep 2.5; echo $?"]), "0\n");
    sleeps(last);
    let stories = fleet.events_since(last).iter().filter(|event| event.kind == EventKind::AgentAsleep).count();
    assert_eq!(stories, 1, "it slept once, after the task");
    fleet.finish();
}

#[test]
fn an_agent_made_by_hand_stays_whatever_the_file_says() {
    let fleet = Fleet::new(&of_web("{}"));
    fleet.up();
    fleet.ok(&["create", "extra", "--driver", "local", "-e", "A=b", "--reason", "to try"]);
    let extra = fleet.runtimes()["extra"].clone();
    for file in [of_web("{env: {C: d}}"), format!("prune: auto\n{}", of_web("{}"))] {
        let last = fleet.last_event();
        fleet.save(&file);
        fleet.wait_for_event(last, EventKind::FleetApplied, None);
        fleet.wait_until_well();
        assert!(fleet.approvals().is_empty());
        assert_eq!(fleet.runtimes()["extra"], extra);
    }
    assert_eq!(fleet.exec("extra", "echo $A"), "b\n");
    assert!(fleet.ok(&["list"]).contains("to try"));
    fleet.ok(&["destroy", "extra", "--yes"]);
    assert!(!fleet.instance("extra").exists());
    // Its claim goes once the controller has written down what everybody can see.
    fleet.wait_for("nobody to know of it", || (!fleet.agents().contains_key("extra")).then_some(()));
    fleet.finish();
}

#[test]
fn a_declared_agent_that_was_destroyed_stays_away_until_that_is_cleared() {
    let declared = |web: &str| format!("{}  db: {{}}\n", of_web(web));
    let fleet = Fleet::new(&declared("{}"));
    fleet.up();
    fleet.ok(&["destroy", "db", "--yes", "--reason", "broken"]);
    let is_away = || {
        assert!(!fleet.instance("db").exists());
        assert!(fleet.runtimes().keys().eq(["web"]));
        assert_eq!(fleet.document::<List<Override>>(&["override", "ls"]).items.len(), 1);
        for view in [&["plan"][..], &["override", "ls"]] {
            let told = fleet.ok(view);
            assert!(told.contains("destroyed by hand") && told.contains("broken"), "{view:?}: {told}");
        }
    };
    is_away();
    let last = fleet.last_event();
    fleet.save(&declared("{env: {A: b}}"));
    fleet.wait_for_event(last, EventKind::FleetApplied, None);
    fleet.wait_for_agent("web", "Healthy", |agent| agent.health == Health::Healthy);
    is_away();
    fleet.kill_controller();
    fleet.up();
    is_away();
    fleet.ok(&["override", "clear", "db", "presence"]);
    fleet.wait_for_agent("db", "Healthy", |agent| agent.health == Health::Healthy);
    fleet.finish();
}

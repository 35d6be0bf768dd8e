//! Tasks of every kind, from the command line to the process and back.
#![expect(clippy::unwrap_used, reason = "this is a test")]

use std::path::Path;
use std::process::Command;

use vm_agent_schemas::api::List;
use vm_agent_schemas::plan::Health;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::TaskOutcome;
use vm_agent_tests::e2e::Fleet;

const ONE: &str = "defaults: {driver: local}\nagents:\n  web: {}\n";
const TWO: &str = "defaults: {driver: local, labels: {team: build}}\nagents:\n  web: {}\n  db: {}\n";

fn up(file: &str) -> Fleet {
    let fleet = Fleet::new(file);
    fleet.up();
    fleet
}

fn task(fleet: &Fleet, id: &str) -> Task {
    fleet.document(&["task", "show", id])
}

/// Waits for a task to end.
fn ended(fleet: &Fleet, id: &str) -> Task {
    fleet.wait_for("the task's end", || Some(task(fleet, id)).filter(|task| task.outcome().is_some()))
}

/// Runs git here, which has to succeed.
fn git(folder: &Path, arguments: &[&str]) {
    let mut git = Command::new("git");
    git.args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]);
    let output = git.args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn sleeps(fleet: &Fleet) -> usize {
    fleet.processes().iter().filter(|process| process.command.first().is_some_and(|word| word == "sleep")).count()
}

#[test]
fn a_repository_is_cloned_built_pulled_and_pushed() {
    let fleet = up(ONE);
    let (bare, seed) = (fleet.path().join("app.git"), fleet.path().join("seed"));
    git(fleet.path(), &["init", "-q", "--bare", "app.git"]);
    git(fleet.path(), &["clone", "-q", "app.git", "seed"]);
    std::fs::write(seed.join("Makefile"), "build:\n\techo built\ntest:\n\techo tested >&2; exit 3\n").unwrap();
    git(&seed, &["add", "."]);
    git(&seed, &["commit", "-q", "-m", "first"]);
    git(&seed, &["push", "-q", "origin", "HEAD:main"]);

    let url = bare.to_str().unwrap();
    let wait = ["task", "web", "--wait", "--type"];
    for _ in 0..2 {
        fleet.ok(&[&wait[..], &["git:clone", "--ref", "main", "--", url, "app"]].concat());
    }
    let built = fleet.ok(&[&wait[..], &["build", "-w", "app", "--", "make", "-s", "build"]].concat());
    assert_eq!(built, "built\n");
    let tested = fleet.run(&[&wait[..], &["test", "-w", "app"]].concat());
    assert_ne!(tested.code, 0, "{tested:?}");
    assert!(tested.stderr.contains("tested"), "{tested:?}");

    std::fs::write(seed.join("news"), "more\n").unwrap();
    git(&seed, &["add", "."]);
    git(&seed, &["commit", "-q", "-m", "second"]);
    git(&seed, &["push", "-q", "origin", "HEAD:main"]);
    fleet.ok(&[&wait[..], &["git:pull", "--", "app"]].concat());
    assert_eq!(fleet.exec("web", "cat app/news"), "more\n");

    let commit = "cd app && git -c user.name=t -c user.email=t@example.com commit -q --allow-empty -m third";
    fleet.exec("web", commit);
    fleet.ok(&[&wait[..], &["git:push", "--ref", "HEAD:main", "--", "app"]].concat());
    let log = Command::new("git").args(["log", "--format=%s", "main"]).current_dir(&bare).output().unwrap();
    assert_eq!(String::from_utf8(log.stdout).unwrap(), "third\nsecond\nfirst\n");
    fleet.finish();
}

#[test]
fn scripts_run_by_what_is_named() {
    let fleet = up(ONE);
    for (interpreter, script) in [
        ("sh", "echo \"$1 $2\""),
        ("bash", "words=(\"$@\"); echo \"${words[0]} ${words[1]}\""),
        ("python3", "import sys\nprint(*sys.argv[1:])"),
    ] {
        let ran = fleet.run_with(
            &["task", "web", "--wait", "--script", "-", "--interpreter", interpreter, "--", "a", "b c"],
            script.as_bytes(),
        );
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "a b c\n"), "{interpreter}: {ran:?}");
    }
    fleet.finish();
}

#[test]
fn files_are_written_and_read_byte_by_byte_and_artifacts_are_what_was_made() {
    let fleet = up(ONE);
    let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let write = ["task", "web", "--wait", "--type", "file:write", "--mode", "0600", "--stdin", "-", "--", "deep/it"];
    assert_eq!(fleet.run_with(&write, &bytes).code, 0);
    let read = fleet.run(&["task", "web", "--wait", "--type", "file:read", "--", "deep/it"]);
    assert_eq!(read.bytes, bytes);
    assert_eq!(fleet.exec("web", "stat -c %a deep/it"), "600\n");

    let make = "mkdir -p out/doc && echo app > out/app && echo doc > out/doc/index";
    let id = fleet.ok(&["task", "web", "--artifact", "out/**/*", "--", make]).trim().to_owned();
    let report = ended(&fleet, &id).report.unwrap();
    assert_eq!(report.artifacts.len(), 2, "{report:?}");
    let to = fleet.path().join("got");
    fleet.ok(&["task", "artifacts", &id, "--to", to.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(to.join("app")).unwrap(), "app\n");
    assert_eq!(std::fs::read_to_string(to.join("doc/index")).unwrap(), "doc\n");
    fleet.exec("web", "echo other > out/app");
    assert_eq!(fleet.run(&["task", "artifacts", &id, "--to", to.to_str().unwrap()]).code, 5);
    fleet.finish();
}

#[test]
fn a_task_that_is_cancelled_takes_all_that_it_began_with_it() {
    let fleet = up(ONE);
    let tree = "sleep 1000 & setsid sleep 1000 & (sleep 1000 &) ; sleep 1000";
    let id = fleet.ok(&["task", "web", "--", tree]).trim().to_owned();
    fleet.wait_for("the processes of the task", || (sleeps(&fleet) == 4).then_some(()));
    let queued = fleet.ok(&["task", "web", "--", "echo never > never"]).trim().to_owned();
    fleet.ok(&["task", "cancel", &queued, &id]);
    assert_eq!(ended(&fleet, &queued).outcome(), Some(&TaskOutcome::Canceled));
    assert_eq!(ended(&fleet, &id).outcome(), Some(&TaskOutcome::Canceled));
    assert_eq!(sleeps(&fleet), 0, "the end is told when nothing is left");
    assert!(!fleet.instance("web").join("work/never").exists());
    fleet.finish();
}

#[test]
fn a_process_that_does_not_heed_its_timeout_is_ended_all_the_same() {
    let fleet = up(ONE);
    let stubborn = "trap '' TERM; echo begun; while :; do sleep 0.1; done";
    let ran = fleet.run(&["task", "web", "--wait", "--timeout", "1s", "--", stubborn]);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout, "begun\n", "{ran:?}");
    let tasks: List<Task> = fleet.document(&["task", "web"]);
    assert_eq!(tasks.items[0].outcome(), Some(&TaskOutcome::TimedOut));
    fleet.finish();
}

#[test]
fn what_fails_is_tried_again_and_what_keeps_failing_is_a_dead_letter() {
    let fleet = up(ONE);
    let third = "echo >> tries; test $(wc -l < tries) -ge 3";
    fleet.ok(&["task", "web", "--wait", "--retry", "3", "--backoff", "10ms", "--", third]);
    let tasks: List<Task> = fleet.document(&["task", "web"]);
    assert_eq!((tasks.items[0].attempt, tasks.items[0].former.len()), (3, 2));

    let id = fleet.ok(&["task", "web", "--retry", "2", "--backoff", "10ms", "--", "exit 7"]).trim().to_owned();
    let dead = ended(&fleet, &id);
    assert_eq!((dead.outcome(), dead.attempt), (Some(&TaskOutcome::Exited { code: 7 }), 2));
    assert!(dead.dead.is_some(), "{dead:?}");
    let letters = || fleet.document::<List<Task>>(&["task", "dead"]).items;
    assert_eq!(letters().len(), 1);
    let again = fleet.ok(&["task", "replay", &id]).trim().to_owned();
    assert_eq!(ended(&fleet, &again).replay_of.map(|id| id.to_string()), Some(id));
    let left = letters();
    assert_eq!(left.iter().map(|task| task.id.to_string()).collect::<Vec<_>>(), std::slice::from_ref(&again));
    fleet.ok(&["task", "drop", &again]);
    assert_eq!(letters(), []);
    fleet.finish();
}

#[test]
fn asking_twice_with_one_key_is_asking_once() {
    let fleet = up(ONE);
    let ask = |line: &str| fleet.run(&["task", "web", "--idempotency-key", "deploy-7", "--", line]);
    let (one, two) = (ask("echo once >> runs"), ask("echo once >> runs"));
    assert_eq!((one.code, &one.stdout), (0, &two.stdout));
    assert_eq!(ask("echo other").code, 5);
    ended(&fleet, one.stdout.trim());
    assert_eq!(fleet.exec("web", "cat runs"), "once\n");
    fleet.finish();
}

#[test]
fn a_pool_gives_a_task_to_one_and_a_broadcast_to_each() {
    let fleet = up(TWO);
    fleet.ok(&["task", "-l", "team=build", "--wait", "--", "echo each >> ran"]);
    let count = |word: &str| {
        let of = |name| std::fs::read_to_string(fleet.instance(name).join("work/ran")).unwrap_or_default();
        ["web", "db"].map(|name| of(name).lines().filter(|line| *line == word).count())
    };
    assert_eq!(count("each"), [1, 1]);
    fleet.ok(&["task", "--any", "-l", "team=build", "--wait", "--", "echo any >> ran"]);
    assert_eq!(count("any").iter().sum::<usize>(), 1);
    fleet.finish();
}

#[test]
fn what_is_not_begun_by_its_deadline_is_a_dead_letter() {
    let fleet = up(ONE);
    let long = fleet.ok(&["task", "web", "--", "sleep 1000"]).trim().to_owned();
    let late = fleet.ok(&["task", "web", "--deadline", "500ms", "--", "echo late"]).trim().to_owned();
    let late = ended(&fleet, &late);
    assert_eq!(late.outcome(), Some(&TaskOutcome::Expired));
    assert!(late.dead.is_some(), "{late:?}");
    fleet.ok(&["task", "cancel", &long]);
    ended(&fleet, &long);
    fleet.finish();
}

#[test]
fn who_waits_sees_both_channels_apart_and_ends_with_the_code() {
    let fleet = up(ONE);
    let line = "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i + 1)); done; exit 37";
    let ran = fleet.run(&["-q", "task", "web", "--wait", "--", line]);
    let lines = |word: &str| (0..2000).map(|i| format!("{word} {i}\n")).collect::<String>();
    assert_eq!(ran.code, 37);
    assert_eq!(ran.stdout, lines("out"));
    assert!(ran.stderr.contains(&lines("err")), "{}", ran.stderr);
    fleet.finish();
}

#[test]
fn of_more_output_than_may_be_kept_the_beginning_and_the_end_are() {
    let fleet = up(ONE);
    let said = fleet.ok(&["task", "web", "--wait", "--output-limit", "64K", "--", "seq 1 200000"]);
    assert!(said.starts_with("1\n2\n3\n") && said.ends_with("\n199999\n200000\n"), "{} bytes", said.len());
    assert!(said.len() < 80_000, "{} bytes", said.len());
    fleet.finish();
}

#[test]
fn the_value_of_a_secret_is_never_shown() {
    let fleet = Fleet::new(
        "defaults: {driver: local}\nagents:\n  web: {secrets: {TOKEN: {file: token}, OTHER: {file: token}}}\n",
    );
    std::fs::write(fleet.path().join("token"), "hunter2-and-more").unwrap();
    fleet.up();
    let line = "echo \"it is $TOKEN.\"; echo \"$TOKEN\" >&2; test ${#TOKEN} -eq 16 && test -z \"$OTHER\"";
    let ran = fleet.run(&["task", "web", "--wait", "--secret", "TOKEN", "--", line]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "it is ***.\n"), "{ran:?}");
    assert!(ran.stderr.contains("***") && !ran.stderr.contains("hunter2"), "{ran:?}");
    fleet.finish();
}

#[test]
fn a_task_wakes_an_agent_that_sleeps() {
    let fleet = up("defaults: {driver: local}\nagents:\n  web: {idle: 1s}\n");
    fleet.wait_for("web to sleep", || fleet.runtimes().is_empty().then_some(()));
    fleet.wait_for_agent("web", "Suspended", |agent| agent.health == Health::Suspended);
    assert_eq!(fleet.ok(&["task", "web", "--wait", "--", "echo awake"]), "awake\n");
    fleet.finish();
}

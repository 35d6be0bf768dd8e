use std::time::Duration;

use super::*;
use crate::fleet::{Fleet, Missed, Overlap, parse};
use crate::names::AgentName;
use crate::task::RetryOn;

fn read(lines: &str) -> Result<Fleet, String> {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    let told = |wrong: Vec<crate::fleet::Diagnostic>| wrong.iter().map(|it| format!("{it}\n")).collect::<String>();
    parse("fleet.yaml", &format!("agents:\n  web:\n{lines}")).map_err(told)
}

/// The tasks of an agent `web` of these lines.
fn tasks(lines: &str) -> BTreeMap<String, TaskSpec> {
    let fleet = read(lines).unwrap_or_else(|wrong| panic!("{wrong}"));
    let web: AgentName = "web".parse().unwrap();
    fleet.agents[&web].spec.tasks.iter().map(|(name, task)| (name.to_string(), task.clone())).collect()
}

fn complaint(lines: &str) -> String {
    read(lines).expect_err("the lines have an error")
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

const EVERY_TYPE: &str = "\
secrets: {TOKEN: {env: TOKEN}}
tasks:
  plain: {exec: make}
  script: {type: script, script: 'print(1)', interpreter: python3 -u, args: [--all]}
  shell: {type: script, script: 'echo 1'}
  read: {type: file:read, path: /etc/os-release, output: 1M}
  write: {type: file:write, path: a/b, content: x, mode: '0600'}
  bytes: {type: file:write, path: a/b, content: {base64: aGk=}}
  clone: {type: git:clone, url: https://example.com/x.git, path: x, ref: main, depth: 1}
  pull: {type: git:pull, path: x, secrets: [TOKEN]}
  push: {type: git:push, path: x, remote: origin, ref: main}
  build: {type: build}
  test: {type: test, exec: [make, check], cwd: x}
  deploy: {type: deploy, exec: ./deploy, user: deployer, stdin: 'yes'}
";

#[test]
fn each_type_is_its_work() {
    let tasks = tasks(EVERY_TYPE);
    let work = |name: &str| tasks[name].job.work.clone();
    assert_eq!(work("plain"), Work::Exec { argv: words(&["/bin/sh", "-c", "make"]) });
    let (interpreter, args) = (words(&["python3", "-u"]), words(&["--all"]));
    assert_eq!(work("script"), Work::Script { interpreter, script: "print(1)".into(), args });
    assert!(matches!(work("shell"), Work::Script { interpreter, .. } if interpreter == ["/bin/sh"]));
    assert_eq!(work("read"), Work::FileRead { path: "/etc/os-release".into() });
    let (content, mode) = (Content::Text("x".into()), "0600".parse().unwrap());
    assert_eq!(work("write"), Work::FileWrite { path: "a/b".into(), content, mode });
    assert!(matches!(work("bytes"), Work::FileWrite { content: Content::Base64(text), .. } if text == "aGk="));
    let (url, path, reference) = ("https://example.com/x.git".into(), Some("x".to_owned()), Some("main".to_owned()));
    let depth = Some(1);
    assert_eq!(work("clone"), Work::GitClone { url, path: path.clone(), reference: reference.clone(), depth });
    assert_eq!(work("pull"), Work::GitPull { path: path.clone(), remote: None, reference: None });
    assert_eq!(work("push"), Work::GitPush { path, remote: Some("origin".into()), reference });
    assert_eq!(work("build"), Work::Build { argv: vec![] });
    assert_eq!(work("test"), Work::Test { argv: words(&["make", "check"]) });
    assert_eq!(work("deploy"), Work::Deploy { argv: words(&["/bin/sh", "-c", "./deploy"]) });
    assert_eq!(tasks["pull"].job.secrets, Some(["TOKEN".to_owned()].into()));
    assert_eq!(
        (tasks["deploy"].job.user.as_deref(), tasks["deploy"].job.stdin.as_deref()),
        (Some("deployer"), Some("yes"))
    );
}

#[test]
fn a_task_written_down_reads_back_the_same() {
    for task in tasks(EVERY_TYPE).into_values() {
        let entry = TaskEntry(task);
        let written = serde_json::to_value(&entry).unwrap();
        assert_eq!(serde_json::from_value::<TaskEntry>(written.clone()).unwrap(), entry, "{written}");
    }
}

#[test]
fn terms_are_short_or_long() {
    let tasks = tasks(
        "tasks:\n  a: {exec: x}\n  b: {exec: x, retry: 5, key: k, timeout: 5m}\n  c: {exec: x, idempotent: true, retry: {on: [timed-out], backoff: 10s}}\n",
    );
    assert_eq!(tasks["a"].terms, Terms::default());
    let retry = Some(Retry { attempts: 5, ..Retry::default() });
    let (timeout, key) = (Span::from_secs(300), Some("k".to_owned()));
    assert_eq!(tasks["b"].terms, Terms { timeout, key, retry, ..Terms::default() });
    let retry = Some(Retry { on: [RetryOn::TimedOut].into(), backoff: Span::from_secs(10), ..Retry::default() });
    assert_eq!(tasks["c"].terms, Terms { idempotent: Some(true), retry, ..Terms::default() });
    assert_eq!(tasks["c"].terms.retry.as_ref().unwrap().backoff_max.get(), Duration::from_secs(300));
}

#[test]
fn a_task_has_its_time() {
    let tasks = tasks(
        "tasks:\n  a: {exec: x, when: connect}\n  b: {exec: x, when: {after: a}}\n  c: {exec: x, when: {cron: '0 3 * * *', missed: once, overlap: queue}}\n",
    );
    assert_eq!(tasks["a"].when, TaskWhen::Connect);
    assert_eq!(tasks["b"].when.after().map(|it| it.as_str()), Some("a"));
    let TaskWhen::Cron(when) = &tasks["c"].when else { panic!("{:?}", tasks["c"].when) };
    assert_eq!((when.missed, when.overlap), (Missed::Once, Overlap::Queue));
    for task in tasks.values() {
        let written = serde_json::to_value(&task.when).unwrap();
        assert_eq!(serde_json::from_value::<TaskWhen>(written).unwrap(), task.when);
    }
}

#[test]
fn keys_of_another_type_and_of_none_are_all_told() {
    insta::assert_snapshot!(complaint("tasks:\n  a: {exec: make, depth: 1, pth: x, user: me}\n  depth: {type: file:read, path: x, depth: 1, env: {A: b}}\n  c: {exec: x, after: a, backoff: 1s, retries: 3, concurrency: 2}"), @"
    fleet.yaml:4:23: agents.web.tasks.a.depth: there is no key `depth` here
     4 |       a: {exec: make, depth: 1, pth: x, user: me}
       |                       ^
    hint: `depth` belongs to a task of type git:clone; the keys here are exec, env, secrets, output, artifacts, stdin, type, when, cwd, user, timeout, idempotent, retry, key
    fleet.yaml:4:33: agents.web.tasks.a.pth: there is no key `pth` here
     4 |       a: {exec: make, depth: 1, pth: x, user: me}
       |                                 ^
    hint: the keys here are exec, env, secrets, output, artifacts, stdin, type, when, cwd, user, timeout, idempotent, retry, key
    fleet.yaml:5:41: agents.web.tasks.depth.depth: there is no key `depth` here
     5 |       depth: {type: file:read, path: x, depth: 1, env: {A: b}}
       |                                         ^
    hint: `depth` belongs to a task of type git:clone; the keys here are path, output, type, when, cwd, user, timeout, idempotent, retry, key
    fleet.yaml:5:51: agents.web.tasks.depth.env: there is no key `env` here
     5 |       depth: {type: file:read, path: x, depth: 1, env: {A: b}}
       |                                                   ^
    hint: `env` belongs to a task of type exec, script, git:clone, git:pull, git:push, build, test, deploy; the keys here are path, output, type, when, cwd, user, timeout, idempotent, retry, key
    fleet.yaml:6:20: agents.web.tasks.c.after: there is no key `after` here
     6 |       c: {exec: x, after: a, backoff: 1s, retries: 3, concurrency: 2}
       |                    ^
    hint: `after` is a key of `when`: when: {after: …}
    fleet.yaml:6:30: agents.web.tasks.c.backoff: there is no key `backoff` here
     6 |       c: {exec: x, after: a, backoff: 1s, retries: 3, concurrency: 2}
       |                              ^
    hint: `backoff` is a key of `retry`: retry: {backoff: …}
    fleet.yaml:6:43: agents.web.tasks.c.retries: there is no key `retries` here
     6 |       c: {exec: x, after: a, backoff: 1s, retries: 3, concurrency: 2}
       |                                           ^
    hint: the keys here are exec, env, secrets, output, artifacts, stdin, type, when, cwd, user, timeout, idempotent, retry, key
    fleet.yaml:6:55: agents.web.tasks.c.concurrency: there is no key `concurrency` here
     6 |       c: {exec: x, after: a, backoff: 1s, retries: 3, concurrency: 2}
       |                                                       ^
    hint: the keys here are exec, env, secrets, output, artifacts, stdin, type, when, cwd, user, timeout, idempotent, retry, key
    ");
}

#[test]
fn a_key_that_a_type_needs_is_told_to_be_missing() {
    insta::assert_snapshot!(complaint("tasks:\n  a: {timeout: 5m}\n  b: {type: git:clone}\n  c: {type: file:write, path: x}\n  d: {type: script, script: {a: b}}"), @"
    fleet.yaml:4:7: agents.web.tasks.a: the key `exec` is missing
     4 |       a: {timeout: 5m}
       |       ^
    fleet.yaml:5:7: agents.web.tasks.b: the key `url` is missing
     5 |       b: {type: git:clone}
       |       ^
    fleet.yaml:6:7: agents.web.tasks.c: the key `content` is missing
     6 |       c: {type: file:write, path: x}
       |       ^
    fleet.yaml:7:33: agents.web.tasks.d.script: expected a text, found a map of keys
     7 |       d: {type: script, script: {a: b}}
       |                                 ^
    ");
}

#[test]
fn of_a_type_that_there_is_not_nothing_else_is_told() {
    insta::assert_snapshot!(complaint("tasks:\n  a: {type: git-clone, url: x, depth: 1}\n  b: {type: tset, exec: x}\n  c: {exec: x, when: {after: a}}"), @"
    fleet.yaml:4:17: agents.web.tasks.a.type: `git-clone` is none of exec, script, file:read, file:write, git:clone, git:pull, git:push, build, test, deploy
     4 |       a: {type: git-clone, url: x, depth: 1}
       |                 ^
    hint: did you mean `git:clone`?
    fleet.yaml:5:17: agents.web.tasks.b.type: `tset` is none of exec, script, file:read, file:write, git:clone, git:pull, git:push, build, test, deploy
     5 |       b: {type: tset, exec: x}
       |                 ^
    hint: did you mean `test`?
    ");
}

#[test]
fn wrong_values_are_told_at_their_places() {
    insta::assert_snapshot!(complaint(
        "tasks:\n  a: {exec: x, retry: many, when: sometimes}\n  b: {exec: x, retry: {attempts: 3, on: [fail], pause: 1s}}\n  c: {type: git:clone, url: x, depth: 0}\n  d: {type: file:write, path: x, content: 5, mode: 644}\n  e: {exec: x, when: {after: a, cron: '0 3 * * *'}}\n  f: {exec: x, when: {after: a, missed: once}}\n  g: {exec: x, when: {cron: '0 3 * * *', overlap: run}}\n  h: {exec: x, when: {}}\n  i: {exec: x, when: {cron: '61 * * * *'}}"
    ), @r#"
    fleet.yaml:4:27: agents.web.tasks.a.retry: expected a number of attempts, or a map such as {attempts: 3, backoff: 10s}, found the text "many"
     4 |       a: {exec: x, retry: many, when: sometimes}
       |                           ^
    fleet.yaml:4:39: agents.web.tasks.a.when: `sometimes` is no time for a task: write `once`, `connect`, {after: NAME}, or {cron: "0 3 * * *"}
     4 |       a: {exec: x, retry: many, when: sometimes}
       |                                       ^
    fleet.yaml:5:46: agents.web.tasks.b.retry.on[0]: `fail` is none of failed, timed-out, not-started
     5 |       b: {exec: x, retry: {attempts: 3, on: [fail], pause: 1s}}
       |                                              ^
    hint: did you mean `failed`?
    fleet.yaml:5:53: agents.web.tasks.b.retry.pause: there is no key `pause` here
     5 |       b: {exec: x, retry: {attempts: 3, on: [fail], pause: 1s}}
       |                                                     ^
    hint: the keys here are attempts, on, backoff, backoffMax
    fleet.yaml:6:43: agents.web.tasks.c.depth: expected a whole number, 1 or more, found the number 0
     6 |       c: {type: git:clone, url: x, depth: 0}
       |                                           ^
    fleet.yaml:7:47: agents.web.tasks.d.content: expected a text, found the number 5
     7 |       d: {type: file:write, path: x, content: 5, mode: 644}
       |                                               ^
    hint: write "5"
    fleet.yaml:7:56: agents.web.tasks.d.mode: expected a text, found the number 644
     7 |       d: {type: file:write, path: x, content: 5, mode: 644}
       |                                                        ^
    hint: write "644"
    fleet.yaml:8:26: agents.web.tasks.e.when: `after` and `cron` exclude each other: write one of them
     8 |       e: {exec: x, when: {after: a, cron: '0 3 * * *'}}
       |                          ^
    fleet.yaml:9:26: agents.web.tasks.f.when: only a task with `cron` has moments to miss, or that come while it runs
     9 |       f: {exec: x, when: {after: a, missed: once}}
       |                          ^
    fleet.yaml:10:55: agents.web.tasks.g.when.overlap: `run` is none of skip, queue
     10 |       g: {exec: x, when: {cron: '0 3 * * *', overlap: run}}
        |                                                       ^
    fleet.yaml:11:26: agents.web.tasks.h.when: this is no time for a task: write `once`, `connect`, {after: NAME}, or {cron: "0 3 * * *"}
     11 |       h: {exec: x, when: {}}
        |                          ^
    fleet.yaml:12:33: agents.web.tasks.i.when.cron: `61 * * * *` is not a schedule: `61` is no minute (0 to 59); write minute, hour, day of month, month and day of week, and a time zone if it is not UTC, such as `0 3 * * mon-fri Europe/Berlin`
     12 |       i: {exec: x, when: {cron: '61 * * * *'}}
        |                                 ^
    "#);
}

#[test]
fn what_contradicts_is_told_at_its_place() {
    insta::assert_snapshot!(complaint(
        "secrets: {TOKEN: {env: T}}\ntasks:\n  a: {exec: x, secrets: [TOKEN, TOKN], retry: 0, timeout: 0s}\n  b: {exec: ' ', key: '', output: 2G, user: 'a/b'}\n  c: {type: file:read, path: ../x, cwd: src}\n  d: {type: file:write, path: x, content: {base64: '%'}}\n  e: {type: git:clone, url: 'https://me:pw@example.com/x', ref: --upload-pack=x}\n  f: {type: build, exec: [], artifacts: [dist/*, ../y], retry: {on: [], backoff: 1h}}\n  g: {exec: x, when: {after: bb}}\nslots: 65"
    ), @"
    fleet.yaml:5:37: agents.web.tasks.a.secrets[1]: `TOKN` is none of the agent's secrets
     5 |       a: {exec: x, secrets: [TOKEN, TOKN], retry: 0, timeout: 0s}
       |                                     ^
    hint: did you mean `TOKEN`?
    fleet.yaml:5:51: agents.web.tasks.a.retry: a task has from 1 to 1000 attempts
     5 |       a: {exec: x, secrets: [TOKEN, TOKN], retry: 0, timeout: 0s}
       |                                                   ^
    fleet.yaml:5:63: agents.web.tasks.a.timeout: a task runs for more than no time
     5 |       a: {exec: x, secrets: [TOKEN, TOKN], retry: 0, timeout: 0s}
       |                                                               ^
    fleet.yaml:6:17: agents.web.tasks.b.exec: there is nothing to run
     6 |       b: {exec: ' ', key: '', output: 2G, user: 'a/b'}
       |                 ^
    fleet.yaml:6:27: agents.web.tasks.b.key: a key is from 1 to 128 characters, none of them a control character
     6 |       b: {exec: ' ', key: '', output: 2G, user: 'a/b'}
       |                           ^
    fleet.yaml:6:39: agents.web.tasks.b.output: of an output from 1 byte to 1G can be kept
     6 |       b: {exec: ' ', key: '', output: 2G, user: 'a/b'}
       |                                       ^
    fleet.yaml:6:49: agents.web.tasks.b.user: this is no name of a user
     6 |       b: {exec: ' ', key: '', output: 2G, user: 'a/b'}
       |                                                 ^
    fleet.yaml:7:34: agents.web.tasks.c.path: `../x` is no path in an agent: it is empty or has `..` in it
     7 |       c: {type: file:read, path: ../x, cwd: src}
       |                                  ^
    fleet.yaml:8:47: agents.web.tasks.d.content: this is no base64: the standard alphabet, padded with `=`
     8 |       d: {type: file:write, path: x, content: {base64: '%'}}
       |                                               ^
    fleet.yaml:9:33: agents.web.tasks.e.url: everybody sees a password that is in an address: give it as a secret
     9 |       e: {type: git:clone, url: 'https://me:pw@example.com/x', ref: --upload-pack=x}
       |                                 ^
    fleet.yaml:9:69: agents.web.tasks.e.ref: `--upload-pack=x` names nothing: it is empty or begins with `-`
     9 |       e: {type: git:clone, url: 'https://me:pw@example.com/x', ref: --upload-pack=x}
       |                                                                     ^
    fleet.yaml:10:30: agents.web.tasks.f.exec: there is nothing to run
     10 |       f: {type: build, exec: [], artifacts: [dist/*, ../y], retry: {on: [], backoff: 1h}}
        |                              ^
    fleet.yaml:10:54: agents.web.tasks.f.artifacts[1]: `../y` is no path in an agent: it is empty or has `..` in it
     10 |       f: {type: build, exec: [], artifacts: [dist/*, ../y], retry: {on: [], backoff: 1h}}
        |                                                      ^
    fleet.yaml:10:73: agents.web.tasks.f.retry.on: `on` names no end after which it is tried again
     10 |       f: {type: build, exec: [], artifacts: [dist/*, ../y], retry: {on: [], backoff: 1h}}
        |                                                                         ^
    fleet.yaml:10:86: agents.web.tasks.f.retry.backoff: `backoff` 1h is longer than `backoffMax` 5m
     10 |       f: {type: build, exec: [], artifacts: [dist/*, ../y], retry: {on: [], backoff: 1h}}
        |                                                                                      ^
    fleet.yaml:11:34: agents.web.tasks.g.when.after: there is no task `bb` in this agent to come after
     11 |       g: {exec: x, when: {after: bb}}
        |                                  ^
    hint: did you mean `b`?
    fleet.yaml:12:12: agents.web.slots: an agent does from 1 to 64 tasks at a time
     12 |     slots: 65
        |            ^
    ");
}

#[test]
fn tasks_that_come_after_each_other_are_found() {
    insta::assert_snapshot!(complaint("tasks:\n  a: {exec: x, when: {after: c}}\n  b: {exec: x, when: {after: a}}\n  c: {exec: x, when: {after: b}}\n  d: {exec: x, when: {after: d}}\n  e: {exec: x, when: {after: a}}"), @"
    fleet.yaml:4:34: agents.web.tasks.a.when.after: tasks come after each other: b -> c -> a -> b
     4 |       a: {exec: x, when: {after: c}}
       |                                  ^
    fleet.yaml:7:34: agents.web.tasks.d.when.after: tasks come after each other: d -> d
     7 |       d: {exec: x, when: {after: d}}
       |                                  ^
    ");
}

#[test]
fn a_task_too_large_for_one_message_is_refused() {
    let said = complaint(&format!("tasks:\n  a: {{exec: x, stdin: {}}}", "y".repeat(200_000)));
    assert!(said.contains("agents.web.tasks.a: the task has 200"), "{said}");
}

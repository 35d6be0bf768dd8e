//! Tasks run once, and their output and their end are told until they are acknowledged.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Heard, Hub, Kept, Runtime, Session, job, order, until};
use tempfile::TempDir;
use vm_agent_schemas::ids::{Digest, Secret, TaskId};
use vm_agent_schemas::task::{Job, Work};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{
    Channel, Configuration, FromHub, FromRuntime, Seed, TaskEnded, TaskFollow, TaskOrder, TaskOutcome, TaskRef,
};

const DONE: TaskOutcome = TaskOutcome::Exited { code: 0 };

/// A runtime with a session.
struct Scene {
    place: TempDir,
    hub: Hub,
    seed: Seed,
    runtime: Runtime,
    session: Session,
}

impl Scene {
    async fn new() -> Self {
        Self::with(Configuration::default()).await
    }

    async fn with(configuration: Configuration) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut hub = Hub::plain().await;
        hub.configuration = Some(configuration);
        let seed = hub.seed(place.path(), None);
        let runtime = Runtime::start(place.path(), &seed);
        let (session, _) = hub.session().await;
        Self { place, hub, seed, runtime, session }
    }

    fn work(&self, name: &str) -> PathBuf {
        self.place.path().join("work").join(name)
    }

    async fn run(&mut self, job: Job) -> Kept {
        self.session.run(crate::support::job(job, 1)).await
    }

    async fn reconnect(&mut self) {
        // It may be gone already.
        let _ = self.session.socket.close(None).await;
        self.session = self.hub.session().await.0;
    }

    /// Kills the runtime as a crash would, and starts another.
    async fn crash(&mut self) {
        self.runtime.kill();
        self.runtime = Runtime::start(self.place.path(), &self.seed);
        self.reconnect().await;
    }
}

async fn ended(session: &mut Session) -> TaskEnded {
    session
        .hear_that(|said| match said {
            FromRuntime::TaskEnded(ended) => Some(ended),
            _ => None,
        })
        .await
}

async fn started(session: &mut Session, task: TaskRef) {
    let started = session.hear_that(|said| match said {
        FromRuntime::TaskStarted(task) => Some(task),
        _ => None,
    });
    assert_eq!(started.await, task);
}

fn reason(outcome: &TaskOutcome) -> &str {
    match outcome {
        TaskOutcome::NotStarted { reason } | TaskOutcome::Failed { reason } => reason,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_task_ordered_twice_runs_once() {
    let mut scene = Scene::new().await;
    let order = order("echo ran >> ran; echo said; until test -e go; do sleep 0.01; done", 1);
    let session = &mut scene.session;
    // The second comes before the first is in the journal, or after it; the third after it in any case.
    session.say(FromHub::Task(order.clone())).await;
    session.say(FromHub::Task(order.clone())).await;
    started(session, order.task).await;
    let kept = session.keep(order.task, 1, Kept::default(), |kept| kept.known(Channel::Stdout) > 0).await;
    session.say(FromHub::Task(order.clone())).await;
    started(session, order.task).await;
    fs::write(scene.work("go"), "").unwrap();
    let first = scene.session.keep(order.task, 1, kept, |_| false).await;
    assert_eq!((first.text().as_str(), first.outcome()), ("said\n", &DONE));
    // As long as the end is not acknowledged all of it is told again.
    let again = scene.session.run(TaskOrder { stream: 2, ..order.clone() }).await;
    assert_eq!(again, first);
    scene.session.say(FromHub::TaskAck(order.task)).await;
    let settled = scene.session.run(TaskOrder { stream: 3, ..order }).await;
    assert_eq!((settled.end, settled.stdout), (first.end, vec![]), "the output is forgotten, and told as left out");
    assert_eq!(fs::read_to_string(scene.work("ran")).unwrap(), "ran\n");
}

#[tokio::test]
async fn both_channels_arrive_with_what_the_process_was_given() {
    let secrets = [("TOKEN", "hunter22"), ("OTHER", "not for you")];
    let secrets = secrets.map(|(name, value)| (name.to_owned(), Secret::from_text(value))).into();
    let mut scene = Scene::with(Configuration { secrets, ..Configuration::default() }).await;
    fs::create_dir(scene.work("sub")).unwrap();
    let line = "cat; pwd; echo ${OTHER-unset} $OWN; printf %.4s $TOKEN; sleep 0.05; printf '%s\\n' ${TOKEN#????}; echo err >&2";
    let mut wanted = Job::exec(["sh", "-c", line]);
    wanted.stdin = Some("read\n".to_owned());
    wanted.cwd = Some("sub".to_owned());
    wanted.env = [("OWN".to_owned(), "mine".to_owned())].into();
    wanted.secrets = Some(["TOKEN".to_owned()].into());
    let kept = scene.run(wanted.clone()).await;
    let folder = scene.work("sub").canonicalize().unwrap();
    assert_eq!(kept.text(), format!("read\n{}\nunset mine\n***\n", folder.display()));
    assert_eq!((kept.errors().as_str(), kept.outcome()), ("err\n", &DONE));
    wanted.secrets = Some(["NONE".to_owned()].into());
    assert_eq!(reason(scene.run(wanted).await.outcome()), "the agent has no secret `NONE`");
    let kept = scene.run(Job::exec(["no-hunter22-program"])).await;
    assert_eq!(reason(kept.outcome()), "there is no program `no-***-program`");
}

#[tokio::test]
async fn scripts_run_with_their_interpreter_and_leave_nothing() {
    let mut scene = Scene::new().await;
    let cases = [
        (&["bash", "-e"][..], "printf '%s ' \"$1\"; dirname \"$0\"; false; echo no", 1),
        (&["sh"], "echo one $0 | sed 's#/vm-agent.*##'; exit 3", 3),
        (&["python3"], "import os, sys\nprint(sys.argv[1], os.path.dirname(__file__))", 0),
        (&["node"], "console.log(process.argv[2], require('path').dirname(__filename))", 0),
    ];
    for (interpreter, script, code) in cases {
        if std::process::Command::new(interpreter[0]).arg("--version").output().is_err() {
            eprintln!("skipped: there is no {} on this machine", interpreter[0]);
            continue;
        }
        let interpreter = interpreter.iter().map(|&it| it.to_owned()).collect();
        let work = Work::Script { interpreter, script: script.to_owned(), args: vec!["one".to_owned()] };
        let order = job(Job::new(work), 1);
        let kept = scene.session.run(order.clone()).await;
        assert_eq!(kept.outcome(), &TaskOutcome::Exited { code }, "{script}: {}", kept.errors());
        assert_eq!(kept.text(), format!("one {}\n", std::env::temp_dir().display()), "{script}");
        let script = format!("vm-agent-script-{}-1", order.task.task);
        assert!(!std::env::temp_dir().join(script).exists());
    }
}

#[tokio::test]
async fn files_are_read_and_written() {
    let mut scene = Scene::new().await;
    let write =
        serde_json::json!({"type": "file:write", "path": "a/b.bin", "content": {"base64": "AP8K"}, "mode": "0600"});
    let kept = scene.run(Job::new(serde_json::from_value(write).unwrap())).await;
    assert_eq!(kept.outcome(), &DONE);
    assert_eq!(fs::read(scene.work("a/b.bin")).unwrap(), [0, 255, 10]);
    let read = |path: &str| Job::new(Work::FileRead { path: path.to_owned() });
    let kept = scene.run(read("a/b.bin")).await;
    assert_eq!((kept.stdout, kept.end.unwrap().outcome), (vec![(0, vec![0, 255, 10])], DONE));
    let kept = scene.run(read("none")).await;
    assert!(matches!(kept.outcome(), TaskOutcome::Failed { .. }));
    assert!(reason(kept.outcome()).ends_with("work/none` can't be read: it is not there"), "{:?}", kept.outcome());
    let kept = scene.run(Job { output: ByteSize::from_bytes(2), ..read("a/b.bin") }).await;
    assert!(reason(kept.outcome()).contains("at most 2 of output are kept"), "{:?}", kept.outcome());
    let kept = scene.run(read("..")).await;
    assert!(matches!(kept.outcome(), TaskOutcome::NotStarted { .. }));
}

/// Does something with git, and answers with what it wrote.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"];
    let output = std::process::Command::new("git").current_dir(folder).args(identity).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn repositories_are_cloned_pulled_and_pushed_and_nothing_is_overwritten() {
    let mut scene = Scene::new().await;
    let (there, work) = (tempfile::tempdir().unwrap(), scene.work(""));
    let source = there.path().join("source");
    git(there.path(), &["init", "-q", "source"]);
    git(&source, &["commit", "-q", "--allow-empty", "-m", "one"]);
    git(there.path(), &["clone", "-q", "--bare", "source", "app.git"]);
    git(&source, &["remote", "add", "origin", "../app.git"]);
    let url = format!("file://{}/app.git", there.path().display());
    let clone = |url: &str, path: Option<&str>, reference: Option<&str>, depth| {
        let (path, reference) = (path.map(str::to_owned), reference.map(str::to_owned));
        Job::new(Work::GitClone { url: url.to_owned(), path, reference, depth })
    };
    let kept = scene.run(clone(&url, None, None, None)).await;
    assert_eq!(kept.outcome(), &DONE, "{}", kept.errors());
    assert_eq!(git(&work.join("app"), &["log", "--format=%s"]), "one");
    // Once more is as good as once; anything else in the place is left alone.
    assert_eq!(scene.run(clone(&url, None, None, None)).await.outcome(), &DONE);
    let other = scene.run(clone("file:///other", Some("app"), None, None)).await;
    assert_eq!(other.outcome(), &TaskOutcome::Exited { code: 1 });
    assert_eq!(
        other.errors(),
        format!("app is a clone of {url}, not of file:///other; remove it, or name another path\n")
    );
    fs::create_dir(work.join("full")).unwrap();
    fs::write(work.join("full/file"), "").unwrap();
    assert_eq!(scene.run(clone(&url, Some("full"), None, None)).await.outcome(), &TaskOutcome::Exited { code: 1 });
    assert!(!scene.run(clone(&url, Some("none"), Some("no-such-branch"), None)).await.outcome().is_success());
    fs::create_dir(work.join("empty")).unwrap();
    git(&source, &["commit", "-q", "--allow-empty", "-m", "two"]);
    git(&source, &["push", "-q", "origin", "HEAD"]);
    assert_eq!(scene.run(clone(&url, Some("empty/"), Some("main"), Some(1))).await.outcome(), &DONE);
    assert_eq!(git(&work.join("empty"), &["log", "--format=%s"]), "two");
    let left: Vec<_> = fs::read_dir(&work).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");

    let pull = |path: &str| Job::new(Work::GitPull { path: Some(path.to_owned()), remote: None, reference: None });
    assert_eq!(scene.run(pull("app")).await.outcome(), &DONE);
    assert_eq!(git(&work.join("app"), &["log", "--format=%s"]), "two\none");
    git(&work.join("app"), &["commit", "-q", "--allow-empty", "-m", "three"]);
    let push = |path: &str| Job::new(Work::GitPush { path: Some(path.to_owned()), remote: None, reference: None });
    assert_eq!(scene.run(push("app")).await.outcome(), &DONE);
    assert_eq!(git(&there.path().join("app.git"), &["log", "--format=%s", "main"]), "three\ntwo\none");
    // Here it went on otherwise: neither is a merge made nor anything forced.
    git(&source, &["commit", "-q", "--allow-empty", "-m", "astray"]);
    let astray = source.display().to_string();
    assert!(!scene.run(push(&astray)).await.outcome().is_success());
    git(&source, &["branch", "-q", "--set-upstream-to=origin/main"]);
    assert!(!scene.run(pull(&astray)).await.outcome().is_success());
    assert_eq!(git(&source, &["log", "--format=%s"]), "astray\ntwo\none");
}

#[tokio::test]
async fn projects_are_built_tested_and_deployed_as_their_files_say() {
    let mut scene = Scene::new().await;
    fs::write(scene.work("Makefile"), "all:\n\t@echo made\ntest:\n\t@echo tested; exit 1\ndeploy:\n\t@echo deployed\n")
        .unwrap();
    let goals = [
        (Work::Build { argv: vec![] }, "made\n", true),
        (Work::Test { argv: vec![] }, "tested\n", false),
        (Work::Deploy { argv: vec![] }, "deployed\n", true),
        (Work::Deploy { argv: ["echo", "by hand"].map(str::to_owned).into() }, "by hand\n", true),
    ];
    for (work, said, success) in goals {
        let kept = scene.run(Job::new(work.clone())).await;
        assert_eq!((kept.text().as_str(), kept.outcome().is_success()), (said, success), "{work}");
    }
    fs::remove_file(scene.work("Makefile")).unwrap();
    let kept = scene.run(Job::new(Work::Build { argv: vec![] })).await;
    assert!(
        reason(kept.outcome())
            .ends_with("tells how to build it; write the command after `--`, or as `exec` in the fleet file")
    );
}

#[tokio::test]
async fn what_a_task_made_and_used_is_told() {
    let mut scene = Scene::new().await;
    let line = "mkdir -p out; printf abc > out/a; printf '' > out/b; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    let mut wanted = Job::exec(["sh", "-c", line]);
    wanted.artifacts = vec!["out/*".to_owned()];
    let end = scene.run(wanted.clone()).await.end.unwrap();
    assert_eq!(end.outcome, DONE);
    let folder = scene.work("out").canonicalize().unwrap();
    let told: Vec<_> =
        end.report.artifacts.iter().map(|it| (it.path.clone(), it.size.bytes(), it.sha256.clone())).collect();
    let path = |name: &str| folder.join(name).display().to_string();
    assert_eq!(told, [(path("a"), 3, Digest::of(b"abc")), (path("b"), 0, Digest::of(b""))]);
    if cfg!(target_os = "linux") {
        let usage = end.report.usage.unwrap();
        assert!(usage.cpu_ms > 0 && usage.wall_ms >= usage.cpu_ms / 4 && usage.memory_max.bytes() > 0, "{usage:?}");
    }
    wanted.artifacts.push("none.*".to_owned());
    let kept = scene.run(wanted.clone()).await;
    assert!(matches!(kept.outcome(), TaskOutcome::Failed { .. }));
    assert_eq!(reason(kept.outcome()), "the artifact `none.*` is missing: no such file was made");
    // The folder vanishes while it runs.
    let mut gone = Job::exec(["sh", "-c", "rm -r ../gone; echo on"]);
    fs::create_dir(scene.work("gone")).unwrap();
    (gone.cwd, gone.artifacts) = (Some("gone".to_owned()), vec!["a".to_owned()]);
    let kept = scene.run(gone.clone()).await;
    assert_eq!(kept.text(), "on\n");
    assert!(reason(kept.outcome()).ends_with("(its folder is gone)"), "{:?}", kept.outcome());
    let kept = scene.run(gone).await;
    assert!(reason(kept.outcome()).starts_with("there is no folder"), "{:?}", kept.outcome());
}

#[tokio::test]
async fn a_task_runs_as_another_user_with_the_rights_of_that() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can run something as another user");
        return;
    }
    let mut scene = Scene::new().await;
    let place = tempfile::tempdir().unwrap();
    let (open, closed) = (place.path().join("open"), place.path().join("closed"));
    std::os::unix::fs::chown(place.path(), Some(65534), None).unwrap();
    fs::write(&closed, "").unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let nobody =
        |work| Job { user: Some("nobody".to_owned()), cwd: Some(place.path().display().to_string()), ..Job::new(work) };
    let line = "id -un; echo $USER $LOGNAME; grep -E '^(Uid|CapEff)' /proc/self/status | cut -f2-";
    let kept = scene.run(nobody(Work::Exec { argv: ["sh", "-c", line].map(str::to_owned).into() })).await;
    let uids = "65534\t65534\t65534\t65534\n0000000000000000\n";
    assert_eq!((kept.text().as_str(), kept.errors().as_str()), (format!("nobody\nnobody nobody\n{uids}").as_str(), ""));
    let interpreter = vec!["sh".to_owned()];
    let script = Work::Script { interpreter, script: "cat \"$0\"; id -un".to_owned(), args: vec![] };
    assert_eq!(scene.run(nobody(script)).await.text(), "cat \"$0\"; id -unnobody\n");
    let write = |path: &Path| {
        let work = serde_json::json!({"type": "file:write", "path": path, "content": {"text": "x"}});
        nobody(serde_json::from_value(work).unwrap())
    };
    assert_eq!(scene.run(write(&open)).await.outcome(), &DONE);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(&open).unwrap()), 65534);
    assert!(reason(scene.run(write(Path::new("/etc/vm-agent-test"))).await.outcome()).ends_with("permission denied"));
    let own = tempfile::tempdir().unwrap();
    fs::set_permissions(own.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let exec = Work::Exec { argv: vec!["true".to_owned()] };
    let shut_out = Job { cwd: Some(own.path().display().to_string()), ..nobody(exec) };
    let kept = scene.run(shut_out).await;
    let told = format!("user `nobody` may not enter the folder `{}`", own.path().display());
    assert!(reason(kept.outcome()).contains(&told), "{:?}", kept.outcome());
    let read = nobody(Work::FileRead { path: "closed".to_owned() });
    assert!(reason(scene.run(read).await.outcome()).ends_with("permission denied"));
    let unknown = Job { user: Some("no-such-user".to_owned()), ..Job::exec(["true"]) };
    assert!(reason(scene.run(unknown).await.outcome()).starts_with("there is no user `no-such-user`"));
}

#[tokio::test]
async fn nothing_of_a_task_outlives_it() {
    let mut scene = Scene::new().await;
    let daemons = [
        "sleep 1000 &",
        "setsid sleep 1000 &",
        "(setsid sh -c 'setsid sleep 1000 & setsid sleep 1000 &' &)",
        "python3 -c 'import os\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\nos.execvp(\"sleep\", [\"sleep\", \"1000\"])'",
    ];
    for daemon in daemons {
        let kept = scene.session.run(order(&format!("{daemon}\necho done"), 1)).await;
        assert_eq!((kept.text().as_str(), kept.outcome()), ("done\n", &DONE), "{daemon}");
        assert_eq!(scene.runtime.processes(), Vec::<u32>::new(), "{daemon}");
    }
}

#[tokio::test]
async fn a_task_that_ignores_the_request_is_killed_at_its_timeout() {
    let mut scene = Scene::new().await;
    let line = "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.05; done";
    let began = Instant::now();
    let kept = scene.session.run(TaskOrder { timeout_ms: 300, ..order(line, 1) }).await;
    assert_eq!(kept.outcome(), &TaskOutcome::TimedOut);
    assert!(began.elapsed() >= Duration::from_secs(5), "it has its grace");
    assert_eq!(scene.runtime.processes(), Vec::<u32>::new());
    let polite = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let kept = scene.session.run(TaskOrder { timeout_ms: 300, ..order(polite, 2) }).await;
    assert_eq!((kept.text().as_str(), kept.outcome()), ("up\nbye\n", &TaskOutcome::TimedOut));
}

#[tokio::test]
async fn processes_that_start_others_without_pause_are_all_caught() {
    let mut scene = Scene::new().await;
    // Each ignores the request and has two children in sessions of their own, seven deep: 255 in all.
    let bomb = r#"trap "" TERM; if [ $1 -gt 0 ]; then for i in 1 2; do setsid sh "$0" $(($1-1)) & done; fi; sleep 1000; sleep 1000"#;
    let interpreter = vec!["sh".to_owned()];
    let work = Work::Script { interpreter, script: bomb.to_owned(), args: vec!["7".to_owned()] };
    let order = TaskOrder { timeout_ms: 60_000, ..job(Job::new(work), 1) };
    scene.session.say(FromHub::Task(order.clone())).await;
    let runtime = &scene.runtime;
    until("some of the processes", || runtime.processes().len() >= 20).await;
    scene.session.say(FromHub::TaskCancel(order.task)).await;
    assert_eq!(ended(&mut scene.session).await.outcome, TaskOutcome::Canceled);
    assert_eq!(scene.runtime.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_cancelled_task_is_ended_and_one_that_has_ended_stays_as_it_is() {
    let mut scene = Scene::new().await;
    let order = order("echo up; exec sleep 1000", 1);
    scene.session.say(FromHub::Task(order.clone())).await;
    let kept = scene.session.keep(order.task, 1, Kept::default(), |kept| kept.known(Channel::Stdout) > 0).await;
    // Another attempt is meant.
    scene.session.say(FromHub::TaskCancel(TaskRef { attempt: 2, ..order.task })).await;
    scene.session.say(FromHub::TaskCancel(order.task)).await;
    let kept = scene.session.keep(order.task, 1, kept, |_| false).await;
    assert_eq!(kept.outcome(), &TaskOutcome::Canceled);
    scene.session.say(FromHub::TaskCancel(order.task)).await;
    let again = scene.session.run(TaskOrder { stream: 2, ..order }).await;
    assert_eq!(again, kept);
}

#[tokio::test]
async fn a_later_attempt_takes_the_place_of_one_that_still_runs() {
    let mut scene = Scene::new().await;
    let first = order("echo $VM_AGENT_TASK >> ran; test -e second || exec sleep 1000", 1);
    scene.session.say(FromHub::Task(first.clone())).await;
    let ran = scene.work("ran");
    until("the first attempt", || ran.exists()).await;
    fs::write(scene.work("second"), "").unwrap();
    let second = TaskOrder { task: TaskRef { attempt: 2, ..first.task }, stream: 2, ..first.clone() };
    scene.session.say(FromHub::Task(second.clone())).await;
    let kept = scene.session.keep(second.task, 2, Kept::default(), |_| false).await;
    assert_eq!(kept.outcome(), &DONE);
    assert_eq!(fs::read_to_string(ran).unwrap().lines().count(), 2);
}

#[tokio::test]
async fn too_many_tasks_are_not_started() {
    let mut scene = Scene::new().await;
    let orders: Vec<TaskOrder> = (1..=65).map(|stream| order("until test -e go; do sleep 0.2; done", stream)).collect();
    for order in &orders {
        scene.session.say(FromHub::Task(order.clone())).await;
    }
    let refused = ended(&mut scene.session).await;
    assert_eq!(refused.task, orders[64].task);
    assert_eq!(reason(&refused.outcome), "64 tasks are running already; try again later");
    fs::write(scene.work("go"), "").unwrap();
    for _ in 0..64 {
        assert_eq!(ended(&mut scene.session).await.outcome, DONE);
    }
}

#[tokio::test]
async fn a_task_does_not_wait_for_a_hub_that_takes_nothing_and_binary_output_is_whole() {
    let mut scene = Scene::new().await;
    let line = "head -c 3000000 /dev/urandom | tee made; touch wrote; until test -e go; do sleep 0.01; done";
    let order = order(line, 1);
    scene.session.say(FromHub::Task(order.clone())).await;
    let wrote = scene.work("wrote");
    until("all of it to be written", || wrote.exists()).await;
    fs::write(scene.work("go"), "").unwrap();
    let kept = scene.session.keep(order.task, 1, Kept::default(), |_| false).await;
    let made = fs::read(scene.work("made")).unwrap();
    assert!(kept.stdout == [(0, made)], "{:?}", kept.end);
}

#[tokio::test]
async fn of_a_gigabyte_the_beginning_and_the_end_are_kept_and_the_runtime_stays_small() {
    let mut scene = Scene::new().await;
    let mut wanted = Job::exec(["sh", "-c", "echo begin; head -c 1073741824 /dev/zero; echo end"]);
    wanted.output = ByteSize::from_mib(2);
    let began = Instant::now();
    let kept = scene.run(wanted).await;
    eprintln!("a gigabyte took {:?}", began.elapsed());
    let (total, mib) = (10 + (1 << 30), 1 << 20);
    assert_eq!((kept.outcome(), kept.end.as_ref().unwrap().report.stdout), (&DONE, total));
    let [(0, first), (tail, last)] = kept.stdout.as_slice() else { panic!("two halves") };
    assert!(first.starts_with(b"begin\n\0") && first.len() == mib);
    assert!(last.ends_with(b"\0end\n") && last.len() == mib && tail + mib as u64 == total);
    let status = fs::read_to_string(format!("/proc/{}/status", scene.runtime.child.id())).unwrap_or_default();
    if let Some(peak) =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok())
    {
        assert!(peak < 64 * 1024, "{peak} KiB");
    }
}

#[tokio::test]
async fn output_goes_on_where_a_lost_session_left_it() {
    let mut scene = Scene::new().await;
    let order = order("i=0; while [ $i -lt 40 ]; do i=$((i+1)); seq $i $((i+9999)); echo $i >&2; sleep 0.01; done", 1);
    scene.session.say(FromHub::Task(order.clone())).await;
    let mut kept = Kept::default();
    for round in 0..5 {
        let target = (round + 1) * 150_000;
        kept = scene.session.keep(order.task, 1, kept, |kept| kept.known(Channel::Stdout) > target).await;
        if kept.end.is_some() {
            break;
        }
        kept.ended.clear();
        scene.reconnect().await;
        started(&mut scene.session, order.task).await;
        let (stdout, stderr) = (kept.known(Channel::Stdout), kept.known(Channel::Stderr));
        scene.session.say(FromHub::TaskFollow(TaskFollow { task: order.task, stream: Some(1), stdout, stderr })).await;
    }
    let kept = scene.session.keep(order.task, 1, kept, |_| false).await;
    let seq = |from: u32| (from..from + 10_000).map(|it| format!("{it}\n")).collect::<String>();
    assert!(kept.text() == (1..=40).map(seq).collect::<String>(), "nothing is missing, nothing comes twice");
    assert_eq!(kept.errors(), (1..=40).map(|it| format!("{it}\n")).collect::<String>());
}

#[tokio::test]
async fn a_task_under_way_when_the_runtime_is_killed_is_interrupted_and_told_with_what_it_wrote() {
    let mut scene = Scene::new().await;
    let order = order("echo ran >> ran; echo said; setsid sleep 1000 & sleep 1000", 1);
    scene.session.say(FromHub::Task(order.clone())).await;
    let known = scene.session.keep(order.task, 1, Kept::default(), |kept| kept.known(Channel::Stdout) > 0).await;
    scene.crash().await;
    started(&mut scene.session, order.task).await;
    assert_eq!(scene.runtime.processes(), Vec::<u32>::new());
    let kept = scene.session.catch_up(order.task, 1, known).await;
    assert_eq!((kept.text().as_str(), kept.outcome()), ("said\n", &TaskOutcome::Interrupted));
    // A hub that lost its memory orders it again, and hears the same.
    let again = scene.session.run(TaskOrder { stream: 2, ..order.clone() }).await;
    assert_eq!(again, kept);
    // So does one that knows more than a crash has left.
    scene.reconnect().await;
    let more = Kept { stdout: vec![(0, b"said, and more".to_vec())], ..Kept::default() };
    let more = scene.session.catch_up(order.task, 1, more).await;
    assert_eq!(more.ended[&Channel::Stdout], 14);
    assert_eq!(fs::read_to_string(scene.work("ran")).unwrap(), "ran\n");
}

#[tokio::test]
async fn an_end_is_told_after_each_reconnect_and_crash_until_it_is_acknowledged() {
    let mut scene = Scene::new().await;
    let order = order("until test -e go; do sleep 0.01; done; echo late; exit 3", 1);
    scene.session.say(FromHub::Task(order.clone())).await;
    started(&mut scene.session, order.task).await;
    // It ends while nobody listens.
    fs::write(scene.work("go"), "").unwrap();
    let journal = scene.place.path().join(format!("tasks/{}.json", order.task.task));
    until("the end in the journal", || fs::read_to_string(&journal).is_ok_and(|text| text.contains("ended"))).await;
    scene.reconnect().await;
    started(&mut scene.session, order.task).await;
    let first = scene.session.catch_up(order.task, 1, Kept::default()).await;
    assert_eq!((first.text().as_str(), first.outcome()), ("late\n", &TaskOutcome::Exited { code: 3 }));
    scene.reconnect().await;
    started(&mut scene.session, order.task).await;
    scene.crash().await;
    started(&mut scene.session, order.task).await;
    assert_eq!(scene.session.catch_up(order.task, 1, Kept::default()).await, first);
    // Nobody wants the output: only the end is told.
    scene.reconnect().await;
    let follow = TaskFollow { task: order.task, stream: None, stdout: 0, stderr: 0 };
    scene.session.say(FromHub::TaskFollow(follow)).await;
    let end = loop {
        match scene.session.next().await.unwrap() {
            Heard::Data(frame) => panic!("{frame:?}"),
            Heard::Said(FromRuntime::TaskEnded(end)) => break end,
            Heard::Said(_) => {}
        }
    };
    assert_eq!(Some(&end), first.end.as_ref());
    scene.session.say(FromHub::TaskAck(order.task)).await;
    until("the journal to be settled", || !fs::read_to_string(&journal).unwrap().contains("ended")).await;
    until("the output to be removed", || !journal.with_extension("1").exists()).await;
    scene.crash().await;
    // A task's end comes behind whatever a session begins with.
    let next = crate::support::order("true", 1);
    scene.session.say(FromHub::Task(next.clone())).await;
    started(&mut scene.session, next.task).await;
}

#[tokio::test]
async fn what_a_killed_runtime_was_about_to_begin_is_interrupted_as_well() {
    let mut scene = Scene::new().await;
    scene.runtime.kill();
    let task = TaskRef { task: TaskId::generate(), attempt: 1 };
    let record = serde_json::json!({"state": "started", "task": task.task, "attempt": 1, "output": 1024});
    fs::write(scene.place.path().join(format!("tasks/{}.json", task.task)), record.to_string()).unwrap();
    scene.runtime = Runtime::start(scene.place.path(), &scene.seed);
    scene.reconnect().await;
    started(&mut scene.session, task).await;
    let kept = scene.session.run(TaskOrder { task, ..order("touch ran", 1) }).await;
    assert_eq!((kept.text().as_str(), kept.outcome()), ("", &TaskOutcome::Interrupted));
    assert!(!scene.work("ran").exists());
}

#[tokio::test]
async fn a_full_disk_leaves_out_output_and_ends_nothing() {
    let place = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).output();
    let folder = place.path().display().to_string();
    let mounted =
        mount(&["-t", "tmpfs", "-o", "size=2m", "tmpfs", &folder]).is_ok_and(|output| output.status.success());
    if !mounted {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let _unmount = Unmount(folder);
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    let first = order("head -c 5000000 /dev/zero; echo end", 1);
    let kept = session.run(first.clone()).await;
    let end = kept.end.as_ref().unwrap();
    assert_eq!((&end.outcome, end.report.stdout), (&DONE, 5_000_004));
    assert!(kept.known(Channel::Stdout) > 500_000, "what fits is kept");
    assert!(kept.stdout.iter().map(|(_, range)| range.len()).sum::<usize>() < 2 << 20);
    // Without a mark in the journal nothing is begun.
    let kept = session.run(order("touch ran", 2)).await;
    assert!(matches!(kept.outcome(), TaskOutcome::NotStarted { .. }), "{:?}", kept.outcome());
    assert!(!place.path().join("work/ran").exists());
    session.say(FromHub::TaskAck(first.task)).await;
    let kept = session.run(order("echo again", 3)).await;
    assert_eq!((kept.text().as_str(), kept.outcome()), ("again\n", &DONE));
    runtime.kill();
}

struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l", &self.0]).output();
    }
}

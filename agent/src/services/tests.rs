//! Services as real processes, with short pauses.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use vm_agent_schemas::ids::Secret;
use vm_agent_schemas::wire::ServiceState;

use super::*;
use crate::log_forward::LogQueue;

/// Longer than anything here takes, even on a busy machine.
const LONG: Duration = Duration::from_secs(60);

const FAST: Pace = Pace {
    first_pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(40),
    well: Duration::from_secs(60),
    startup_probe: Duration::from_millis(50),
    grace: Duration::from_millis(200),
    shutdown_grace: Duration::from_millis(200),
};

struct World {
    place: TempDir,
    nonce: Nonce,
    services: Services,
    tracker: TaskTracker,
    log: LogQueue,
}

impl World {
    fn new() -> Self {
        Self::with(FAST)
    }

    fn with(pace: Pace) -> Self {
        let (nonce, log) = (Nonce::generate(), LogQueue::new(256));
        let services = Services::new(&nonce, log.sender(), pace);
        Self { place: tempfile::tempdir().unwrap(), nonce, services, tracker: TaskTracker::new(), log }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.place.path().join(name)
    }

    fn configure_in(&mut self, services: Value, env: &[(&str, &str)], secrets: &[(&str, &str)]) {
        let text =
            |pairs: &[(&str, &str)]| pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let secrets: BTreeMap<String, String> = text(secrets);
        let surroundings = Arc::new(Surroundings {
            work: self.place.path().to_owned(),
            socket: PathBuf::new(),
            nonce: self.nonce.clone(),
            env: text(env),
            secrets: secrets.into_iter().map(|(name, value)| (name, Secret::from_text(value))).collect(),
        });
        self.services.configure(serde_json::from_value(services).unwrap(), &surroundings, &self.tracker);
    }

    fn configure(&mut self, services: Value) {
        self.configure_in(services, &[], &[]);
    }

    /// Waits until a service is so.
    async fn until(&mut self, name: &str, holds: impl Fn(&ServiceReport) -> bool) -> ServiceReport {
        let mut last = None;
        let found = tokio::time::timeout(LONG, async {
            loop {
                last = self.services.report().remove(name);
                if let Some(report) = last.as_ref().filter(|report| holds(report)) {
                    return report.clone();
                }
                // Counts change without a word; states do not.
                let _ = tokio::time::timeout(Duration::from_millis(20), self.services.changed()).await;
            }
        });
        found.await.ok().unwrap_or_else(|| panic!("waited too long, last: {last:?}"))
    }

    async fn until_state(&mut self, name: &str, state: ServiceState) -> ServiceReport {
        self.until(name, |report| report.state == state).await
    }

    async fn stop(self) {
        self.services.stop();
        self.tracker.close();
        tokio::time::timeout(LONG, self.tracker.wait()).await.unwrap();
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(LONG, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited too long for {what}"));
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn pid(path: &Path) -> Pid {
    Pid::from_raw(lines(path)[0].parse().unwrap()).unwrap()
}

fn lives(pid: Pid) -> bool {
    // What nobody has waited for yet is over all the same.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    test_kill_process(pid).is_ok() && !stat.contains(") Z ")
}

/// Writes its process id, and goes on.
const STAYS: &str = "echo $$ > $0.tmp; mv $0.tmp $0; exec sleep 1000";

fn stays(file: &str) -> Value {
    json!({"exec": ["sh", "-c", STAYS, file]})
}

#[test]
fn a_configuration_touches_only_what_it_changes() {
    let name = |text: &str| text.parse::<ServiceName>().unwrap();
    let kept = BTreeMap::from([(name("same"), 1), (name("changed"), 1), (name("gone"), 1)]);
    let wanted = BTreeMap::from([(name("same"), 1), (name("changed"), 2), (name("new"), 1)]);
    let expected = [(name("changed"), Change::Restart), (name("gone"), Change::End), (name("new"), Change::Start)];
    assert_eq!(changes(&kept, &wanted), BTreeMap::from(expected));
    assert_eq!(changes(&kept, &kept), BTreeMap::new());
}

#[tokio::test]
async fn a_service_runs_and_ends_with_the_runtime() {
    let mut world = World::new();
    world.configure(json!({"web": stays("pid")}));
    until("its start", || world.path("pid").exists()).await;
    let report = world.until_state("web", ServiceState::Running).await;
    assert_eq!((report.restarts, report.problem), (0, None));
    let pid = pid(&world.path("pid"));
    assert!(lives(pid));
    world.stop().await;
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_service_that_crashes_is_started_again_and_again() {
    let mut world = World::new();
    world.configure(json!({"web": {"exec": "echo ran >> ran; exit 3"}}));
    let report = world.until("web", |report| report.restarts >= 3 && report.state == ServiceState::Failing).await;
    assert_eq!(report.problem.as_deref(), Some("it ended with exit code 3"));
    assert!(lines(&world.path("ran")).len() > 3);
    world.stop().await;
}

#[tokio::test]
async fn the_restart_policy_is_obeyed() {
    let mut world = World::new();
    world.configure(json!({
        "done": {"exec": "true", "restart": "on-failure"},
        "lost": {"exec": "kill -9 $$", "restart": "never"},
        "missing": {"exec": ["no-such-program"], "restart": "never"},
        "flaky": {"exec": "test -e again || { touch again; exit 1; }; exec sleep 1000", "restart": "on-failure"},
    }));
    let problem = async |world: &mut World, name| world.until_state(name, ServiceState::Ended).await.problem;
    assert_eq!(problem(&mut world, "done").await, None);
    assert_eq!(problem(&mut world, "lost").await.as_deref(), Some("it was ended by signal 9"));
    let missing = "it could not be started: there is no program `no-such-program`";
    assert_eq!(problem(&mut world, "missing").await.as_deref(), Some(missing));
    let flaky = world.until("flaky", |report| report.state == ServiceState::Running && report.restarts == 1).await;
    assert_eq!(flaky.problem, None);
    world.stop().await;
}

#[tokio::test]
async fn a_probe_tells_when_a_service_works() {
    let mut world = World::new();
    let probe = json!({"exec": "test -e up", "every": "50ms", "failures": 2});
    world.configure(json!({"web": {"exec": "touch up; exec sleep 1000", "probe": probe}}));
    // On a busy machine it may be given up before it has come up at all, and be started again.
    let report = world.until_state("web", ServiceState::Running).await;
    assert_eq!(report.problem, None);
    fs::remove_file(world.path("up")).unwrap();
    // What makes it work again is its new start.
    let before = report.restarts;
    let report = world.until("web", |it| it.restarts > before && it.state == ServiceState::Running).await;
    assert_eq!(report.problem, None);
    world.stop().await;
}

#[tokio::test]
async fn a_service_whose_probe_never_succeeds_is_given_up_and_started_again() {
    let mut world = World::new();
    let probe = json!({"exec": "echo noise; exit 7", "every": "50ms", "failures": 2});
    world.configure(json!({"web": {"exec": "exec sleep 1000", "probe": probe}}));
    let report = world.until_state("web", ServiceState::Failing).await;
    assert_eq!(report.problem.as_deref(), Some("its probe never succeeded: it ended with exit code 7"));
    world.until("web", |report| report.restarts >= 1).await;
    world.stop().await;
}

#[tokio::test]
async fn a_probe_that_hangs_has_failed_and_leaves_nothing_behind() {
    let mut world = World::new();
    let probe = json!({"exec": "echo $$ >> probe; sleep 1000", "every": "50ms", "timeout": "100ms", "failures": 1});
    world.configure(json!({"web": {"exec": "exec sleep 1000", "restart": "never", "probe": probe}}));
    let report = world.until_state("web", ServiceState::Failing).await;
    assert_eq!(report.problem.as_deref(), Some("its probe never succeeded: it took longer than 0.1 s"));
    let place = world.path("probe");
    let probes = || lines(&place).iter().map(|line| Pid::from_raw(line.parse().unwrap()).unwrap()).collect::<Vec<_>>();
    assert!(!probes().is_empty());
    world.services.stop();
    world.tracker.close();
    world.tracker.wait().await;
    assert!(probes().into_iter().all(|probe| !lives(probe)));
}

#[tokio::test]
async fn a_service_that_is_never_started_again_runs_on_though_its_probe_fails() {
    let mut world = World::new();
    let probe = json!({"exec": "test -e up", "every": "50ms", "failures": 1});
    world.configure(json!({"web": {"exec": "echo $$ > pid; exec sleep 1000", "restart": "never", "probe": probe}}));
    world.until_state("web", ServiceState::Failing).await;
    assert!(lives(pid(&world.path("pid"))));
    fs::write(world.path("up"), "").unwrap();
    let report = world.until_state("web", ServiceState::Running).await;
    assert_eq!((report.restarts, report.problem), (0, None));
    world.stop().await;
}

#[tokio::test]
async fn a_changed_entry_environment_or_secret_starts_a_service_anew_and_nothing_else_does() {
    let mut world = World::new();
    let reads = |file: &str| json!({"exec": format!("echo $$ $PLAIN $TOKEN >> {file}.tmp; cp {file}.tmp {file}; exec sleep 1000")});
    let count = |world: &World, file: &str| lines(&world.path(file)).len();
    let both = json!({"one": reads("one"), "two": reads("two")});
    world.configure_in(both.clone(), &[("PLAIN", "p")], &[("TOKEN", "t")]);
    until("both", || count(&world, "one") == 1 && count(&world, "two") == 1).await;
    let mut changed = both.clone();
    changed["two"]["env"] = json!({"PLAIN": "own", "TOKEN": "mine"});
    world.configure_in(changed.clone(), &[("PLAIN", "p")], &[("TOKEN", "t")]);
    until("the change", || count(&world, "two") == 2).await;
    assert!(lines(&world.path("two"))[1].ends_with(" own mine"));
    for secret in ["t2", "t2", "t3"] {
        world.configure_in(changed.clone(), &[("PLAIN", "p")], &[("TOKEN", secret)]);
        let last = format!(" p {secret}");
        until("the secret", || lines(&world.path("one")).last().is_some_and(|line| line.ends_with(&last))).await;
    }
    assert_eq!(count(&world, "one"), 3, "the same again changes nothing");
    world.stop().await;
}

#[tokio::test]
async fn a_service_that_is_named_no_more_is_ended_and_one_that_comes_back_waits_for_its_end() {
    let mut world = World::new();
    // It takes a while to end, and says when.
    let line = "trap 'sleep 0.1; echo ended >> story; exit' TERM; echo began >> story; touch ready; while :; do sleep 0.01; done";
    world.configure(json!({"web": {"exec": line}, "other": stays("other")}));
    until("both", || world.path("ready").exists() && world.path("other").exists()).await;
    world.configure(json!({"other": stays("other")}));
    assert!(!world.services.report().contains_key("web"));
    world.configure(json!({"web": {"exec": line}, "other": stays("other")}));
    until("its return", || lines(&world.path("story")).len() == 3).await;
    assert_eq!(lines(&world.path("story")), ["began", "ended", "began"]);
    assert!(lives(pid(&world.path("other"))), "the other was not touched");
    world.stop().await;
}

#[tokio::test]
async fn a_service_that_ignores_the_request_is_killed_with_all_that_it_started() {
    let mut world = World::new();
    let line = "trap '' TERM; sh -c 'echo $$ > child; exec sleep 1000' & \
                setsid sh -c 'echo $$ > escaped; exec sleep 1000' & \
                echo $$ > pid; touch ready; while :; do sleep 0.01; done";
    world.configure(json!({"web": {"exec": line}}));
    let paths = ["child", "escaped", "pid"].map(|name| world.path(name));
    until("its start", || paths.iter().all(|path| lines(path).len() == 1) && world.path("ready").exists()).await;
    let pids = paths.map(|path| pid(&path));
    world.configure(json!({}));
    until("their end", || pids.iter().all(|pid| !lives(*pid))).await;
    world.stop().await;
}

#[tokio::test]
async fn what_a_service_leaves_behind_when_it_ends_is_ended_before_it_starts_again() {
    let mut world = World::new();
    world.configure(json!({"web": {"exec": "cat left >> before; sleep 1000 & echo $! > left; exit 1"}}));
    world.until("web", |report| report.restarts >= 1).await;
    until("the second start", || !lines(&world.path("before")).is_empty()).await;
    let first = pid(&world.path("before"));
    assert!(!lives(first));
    world.stop().await;
}

#[tokio::test]
async fn the_runtimes_end_cuts_the_grace_short() {
    let mut world = World::with(Pace { grace: LONG, ..FAST });
    world.configure(json!({"web": {"exec": "trap '' TERM; touch ready; while :; do sleep 0.01; done"}}));
    until("its start", || world.path("ready").exists()).await;
    world.configure(json!({}));
    let began = std::time::Instant::now();
    world.stop().await;
    assert!(began.elapsed() < LONG / 2);
}

#[tokio::test]
async fn what_a_service_writes_is_in_the_log_under_its_name() {
    let mut world = World::new();
    world.configure(json!({"web": {"exec": "echo out; echo err >&2; printf unfinished", "restart": "never"}}));
    world.until_state("web", ServiceState::Ended).await;
    let mut lines = Vec::new();
    while lines.len() < 3 {
        lines.extend(tokio::time::timeout(LONG, world.log.next()).await.unwrap().lines);
    }
    lines.sort();
    assert_eq!(lines, ["service web ! err", "service web | out", "service web | unfinished"]);
    world.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_busy_service_takes_is_measured() {
    let mut world = World::new();
    world.configure(json!({"busy": {"exec": "(while :; do :; done) & wait"}, "idle": {"exec": "exec sleep 1000"}}));
    world.until("busy", |report| report.cpu_percent > 10.0).await;
    assert!(world.until_state("idle", ServiceState::Running).await.cpu_percent < 5.0);
    world.stop().await;
}

#[tokio::test]
async fn a_new_start_ends_what_the_last_left_of_this_instance_only() {
    let mut world = World::new();
    world.configure(json!({"web": stays("pid")}));
    until("its start", || world.path("pid").exists()).await;
    let pid = pid(&world.path("pid"));
    let _other = Services::new(&Nonce::generate(), world.log.sender(), FAST);
    assert!(lives(pid));
    let _next = Services::new(&world.nonce, world.log.sender(), FAST);
    until("its end", || !lives(pid)).await;
    world.stop().await;
}

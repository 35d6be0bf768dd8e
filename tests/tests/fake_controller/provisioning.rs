//! What runtimes are told: environment, labels, files, services and secrets.

use std::fs;
use std::path::{Path, PathBuf};

use vm_agent_daemon::{Controller, Running};
use vm_agent_drivers::fake::{Call, Fake};
use vm_agent_schemas::api::{AgentView, TaskRequest};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::plan::{DriftClass, Health, Rest, Sync, WaitsFor};
use vm_agent_schemas::task::{Job, Terms};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{Configuration, ServiceReport, ServiceState};
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{
    agent, ann, apply, becomes, count, events, pass, qemu, settled, start, start_with, stored, told, until, well,
};

/// A value that would be seen anywhere.
const VALUE: &str = "xyzzy-plugh-frobozz";

/// A controller with its state in a folder, and a place for sources of secrets beside it.
struct Stage {
    folder: tempfile::TempDir,
    fake: Fake,
    runtimes: Runtimes,
    running: Running,
}

impl Stage {
    async fn set() -> Self {
        Self::with(Some(Span::from_secs(1))).await
    }

    async fn with(heartbeat: Option<Span>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = qemu(Span::from_secs(60));
        let runtimes = Runtimes::of(&fake);
        let running = start_with(&folder.path().join("state"), &[&fake], heartbeat).await;
        Self { folder, fake, runtimes, running }
    }

    fn controller(&self) -> &Controller {
        self.running.controller()
    }

    async fn restarted(self) -> Self {
        let state = self.state();
        self.running.shut_down().await;
        let running = start(&state, &[&self.fake]).await;
        Self { running, ..self }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// A file whose agent has a secret from [`source`](Self::source), and these keys.
    fn file(&self, keys: &str) -> String {
        let source = self.source();
        format!(
            "defaults: {{driver: qemu}}\nagents: {{web: {{secrets: {{TOKEN: {{file: {}}}}}{keys}}}}}\n",
            source.display()
        )
    }

    /// The value of the secret that the runtime works with.
    fn token(&self) -> Option<String> {
        let configuration = self.runtimes.inside("web").configuration?;
        Some(configuration.secrets.get("TOKEN")?.expose().to_owned())
    }

    async fn works_with(&self, fits: impl Fn(&Configuration) -> bool) {
        until("its machine is up", async || (!self.fake.instances().is_empty()).then_some(())).await;
        let look = || self.runtimes.inside("web").configuration.filter(&fits);
        until("the runtime works with it", async || look()).await;
    }
}

/// Whether a configuration is as a file says.
type Fits = fn(&Configuration) -> bool;

fn file(web: &str) -> String {
    format!("defaults: {{driver: qemu}}\nagents: {{web: {{{web}}}}}\n")
}

/// What an agent waits for that somebody has to look at.
fn problem(view: &AgentView) -> Option<&str> {
    view.waits_for.iter().find_map(|reason| match reason {
        WaitsFor::Problem { what } => Some(what.as_str()),
        _ => None,
    })
}

/// Everything below a folder.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| match fs::metadata(&path) {
        Ok(kind) if kind.is_dir() => contents(&path),
        Ok(kind) if kind.is_file() => vec![(path.clone(), fs::read(&path).unwrap())],
        _ => Vec::new(),
    };
    entries.flat_map(of).collect()
}

fn assert_nowhere(text: &str) {
    assert!(!text.contains(VALUE), "a secret is told: {text}");
}

#[tokio::test]
async fn what_a_runtime_works_with_follows_the_file_without_a_restart_of_its_machine() {
    let stage = Stage::set().await;
    let controller = stage.controller();
    apply(controller, &file("")).await;
    settled(controller, &file(""), &["web"]).await;
    let wishes: [(&str, Fits); 5] = [
        ("env: {A: b}", |it| it.env.get("A").is_some_and(|value| value == "b")),
        ("labels: {team: blue}", |it| it.env.is_empty() && it.labels["team"] == "blue"),
        ("files: {notes: text}", |it| it.labels.is_empty() && it.files["notes"].content == "text"),
        ("services: {gateway: {exec: serve}}", |it| it.files.is_empty() && it.services.len() == 1),
        ("", |it| it.services.is_empty()),
    ];
    for (text, fits) in wishes {
        apply(controller, &file(text)).await;
        stage.works_with(fits).await;
    }
    well(controller, &["web"]).await;
    assert_eq!(stage.fake.mutating_calls(), 1, "its create");
    told(controller, EventKind::RuntimeConnected, "web", 1).await;
    stage.running.shut_down().await;
}

#[tokio::test]
async fn what_a_runtime_can_not_bring_about_is_shown_until_it_can() {
    let stage = Stage::set().await;
    let controller = stage.controller();
    let text = file("files: {/proc/none: x}");
    apply(controller, &text).await;
    settled(controller, &text, &["web"]).await;
    stage.runtimes.change("web", |inside| inside.problems = vec!["file /proc/none can't be written".to_owned()]);
    let web = becomes(controller, "web", |it| it.health == Health::Degraded).await;
    assert_eq!((web.sync, problem(&web)), (Sync::Blocked, Some("file /proc/none can't be written")));
    assert_eq!(web.drift.iter().map(|it| it.class).collect::<Vec<_>>(), [DriftClass::Provisioning]);
    stage.runtimes.change("web", |inside| inside.problems.clear());
    well(controller, &["web"]).await;
    assert_eq!(stage.fake.mutating_calls(), 1);
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_service_that_does_not_work_is_shown_with_its_reason() {
    let stage = Stage::set().await;
    let controller = stage.controller();
    let text = file("services: {gateway: {exec: serve}}");
    apply(controller, &text).await;
    let becomes_state = async |state, problem: Option<&str>| {
        let problem = problem.map(str::to_owned);
        let report = ServiceReport { state, restarts: 0, cpu_percent: 0.0, problem };
        until("its machine is up", async || (stage.fake.instances().len() == 1).then_some(())).await;
        stage.runtimes.change("web", |inside| inside.services = [("gateway".parse().unwrap(), report)].into());
    };
    becomes_state(ServiceState::Starting, None).await;
    let web = becomes(controller, "web", |it| it.drift.iter().any(|it| it.class == DriftClass::Service)).await;
    assert_eq!((web.sync, web.health), (Sync::Reconciling, Health::Starting));
    becomes_state(ServiceState::Running, None).await;
    well(controller, &["web"]).await;
    becomes_state(ServiceState::Failing, Some("it ended with exit code 3")).await;
    let web = becomes(controller, "web", |it| it.health == Health::Degraded).await;
    let [drift] = &web.drift[..] else { panic!("{:?}", web.drift) };
    assert_eq!((drift.class, &*drift.path), (DriftClass::Service, "services.gateway"));
    assert!(problem(&web).is_some_and(|it| it.contains("exit code 3")), "{:?}", web.waits_for);
    becomes_state(ServiceState::Running, None).await;
    well(controller, &["web"]).await;
    assert_eq!(stage.fake.mutating_calls(), 1);
    stage.running.shut_down().await;
}

#[tokio::test]
async fn the_value_of_a_secret_reaches_the_runtime_and_nothing_else() {
    let stage = Stage::set().await;
    let controller = stage.controller();
    fs::write(stage.source(), format!("{VALUE}\n")).unwrap();
    let text = stage.file(", idle: 1h, env: {PLAIN: seen}");
    let applied = apply(controller, &text).await;
    assert_nowhere(&serde_json::to_string(&applied).unwrap());
    settled(controller, &text, &["web"]).await;
    assert_eq!(stage.token().as_deref(), Some(VALUE));

    assert_nowhere(&serde_json::to_string(&agent(controller, "web").await).unwrap());
    assert_nowhere(&serde_json::to_string(&controller.status().await.unwrap()).unwrap());
    assert_nowhere(&serde_json::to_string(&controller.fleet().await.unwrap()).unwrap());
    assert_nowhere(&serde_json::to_string(&controller.drift().await.unwrap()).unwrap());
    assert_nowhere(&serde_json::to_string(&events(controller).await).unwrap());
    assert_nowhere(&controller.metrics().await.unwrap());
    assert_nowhere(&stored(&stage.state()).concat());
    assert_nowhere(&format!("{:?}", stage.runtimes.disk("web")));
    let state = stage.state();
    stage.running.shut_down().await;
    let files = contents(&state);
    assert!(files.iter().any(|(_, bytes)| bytes.windows(4).any(|it| it == b"seen")), "it is looked at for real");
    for (path, bytes) in files {
        let found = bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes());
        assert!(!found, "a secret is in {}", path.display());
    }
}

#[tokio::test]
async fn a_secret_that_can_not_be_read_is_named_and_read_once_it_is_there() {
    // Runtimes that are heard as seldom as usual: nothing but its time makes the controller look again.
    let stage = Stage::with(None).await;
    let controller = stage.controller();
    let text = stage.file("");
    apply(controller, &text).await;
    let web = becomes(controller, "web", |it| problem(it).is_some()).await;
    let what = problem(&web).unwrap().to_owned();
    let source = stage.source().display().to_string();
    assert!(what.contains("`TOKEN`") && what.contains(&source), "{what}");
    assert_eq!((web.sync != Sync::Synced, web.health), (true, Health::Degraded));
    assert!(web.drift.iter().any(|it| it.class == DriftClass::Provisioning), "{:?}", web.drift);
    told(controller, EventKind::StepFailed, "web", 1).await;
    pass(controller, &text).await;
    told(controller, EventKind::StepFailed, "web", 1).await;

    // Whoever mends the source has nothing else to do, and does not wait for long.
    let mended = std::time::Instant::now();
    fs::write(stage.source(), VALUE).unwrap();
    well(controller, &["web"]).await;
    assert!(mended.elapsed() < std::time::Duration::from_secs(15), "{:?}", mended.elapsed());
    assert_eq!(stage.token().as_deref(), Some(VALUE));
    assert_nowhere(&serde_json::to_string(&events(controller).await).unwrap());
    assert_eq!(stage.fake.mutating_calls(), 1);
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_secret_that_is_wanted_no_more_is_no_problem_any_more() {
    let stage = Stage::set().await;
    let controller = stage.controller();
    apply(controller, &stage.file("")).await;
    becomes(controller, "web", |it| problem(it).is_some()).await;
    apply(controller, &file("env: {A: b}")).await;
    well(controller, &["web"]).await;
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_controller_that_restarts_takes_nothing_from_a_runtime_that_goes_on() {
    let stage = Stage::set().await;
    fs::write(stage.source(), VALUE).unwrap();
    let text = stage.file(", services: {gateway: {exec: serve}}");
    apply(stage.controller(), &text).await;
    stage.works_with(|it| it.services.len() == 1).await;
    let report = ServiceReport { state: ServiceState::Running, restarts: 0, cpu_percent: 0.0, problem: None };
    stage.runtimes.change("web", |inside| inside.services = [("gateway".parse().unwrap(), report)].into());
    settled(stage.controller(), &text, &["web"]).await;
    let before = stage.runtimes.inside("web").configuration;
    // It is not even asked for anew.
    fs::remove_file(stage.source()).unwrap();
    let stage = stage.restarted().await;
    let controller = stage.controller();
    becomes(controller, "web", |it| it.session.as_ref().is_some_and(|it| it.epoch.0 == 2)).await;
    well(controller, &["web"]).await;
    for _ in 0..3 {
        pass(controller, &text).await;
    }
    assert_eq!(stage.runtimes.inside("web").configuration, before);
    assert_eq!(count(controller, EventKind::StepFailed, "web").await, 0);
    // A machine that starts again has nothing, and is given it anew.
    fs::write(stage.source(), "another").unwrap();
    stage.fake.crash("web");
    until("it has its secret", async || stage.token().filter(|value| value == "another")).await;
    well(controller, &["web"]).await;
    assert_eq!(stage.fake.calls(Call::Start), 1);
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_task_that_wakes_a_sleeper_has_the_secrets_of_its_agent() {
    let stage = Stage::set().await;
    let controller = stage.controller();
    fs::write(stage.source(), VALUE).unwrap();
    apply(controller, &stage.file(", idle: 1s")).await;
    becomes(controller, "web", |it| it.sync == Sync::Synced && it.rests == Some(Rest::Idle)).await;
    let request = TaskRequest { job: Job::exec(["errand"]), terms: Terms::default(), id: None, key: None };
    let task = controller.submit_task(&"web".parse().unwrap(), request, &ann()).await.unwrap();
    until("it is over", async || controller.task(task.id).await.unwrap().outcome().cloned()).await;
    let began = stage.runtimes.inside("web").began;
    let [(_, Some(configuration))] = &began[..] else { panic!("{began:?}") };
    assert_eq!(configuration.secrets["TOKEN"].expose(), VALUE);
    stage.running.shut_down().await;
}

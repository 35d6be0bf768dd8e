//! Machines that rest, for want of work or for their age, and what brings them back.

use vm_agent_daemon::{Controller, Running};
use vm_agent_drivers::fake::{Behaviour, Call, Fake, On};
use vm_agent_hub::{Stream, StreamEvent};
use vm_agent_schemas::api::{AgentView, ChangeRequest, TaskRequest, TokenRequest};
use vm_agent_schemas::credential::Role;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::plan::{ConditionStatus, Health, Rest, Sync};
use vm_agent_schemas::task::{Job, Task, TaskState, Terms};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{Run, ServiceReport, ServiceState, StreamTarget, TaskOutcome};
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{
    agent, ann, apply, becomes, count, events, http, pass, qemu, settled, start, told, until, well,
};

const IDLE: &str = "defaults: {driver: qemu, idle: 1s}\nagents: {db: {}, web: {}}\n";
const AWAKE: &str = "defaults: {driver: qemu}\nagents: {db: {}, web: {}}\n";
const AGED: &str = "defaults: {driver: qemu}\nagents: {db: {}, web: {ttl: 1s}}\n";

/// A controller, its driver and its runtimes, with this file in force and these agents up.
struct Stage {
    folder: tempfile::TempDir,
    fake: Fake,
    runtimes: Runtimes,
    running: Running,
}

impl Stage {
    async fn with(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = qemu(Span::from_secs(60));
        let runtimes = Runtimes::of(&fake);
        let running = start(folder.path(), &[&fake]).await;
        apply(running.controller(), text).await;
        Self { folder, fake, runtimes, running }
    }

    fn controller(&self) -> &Controller {
        self.running.controller()
    }

    async fn restarted(self) -> Self {
        self.running.shut_down().await;
        let running = start(self.folder.path(), &[&self.fake]).await;
        Self { running, ..self }
    }

    /// How often an agent's machine was stopped and started.
    fn moves(&self, name: &str) -> (usize, usize) {
        (self.fake.calls_on(Call::Stop, name), self.fake.calls_on(Call::Start, name))
    }

    async fn asleep(&self, name: &str) -> AgentView {
        becomes(self.controller(), name, is_asleep).await
    }

    /// Gives an agent a task by hand.
    async fn task(&self, name: &str) -> Task {
        self.controller().submit_task(&name.parse().unwrap(), errand(), &ann()).await.unwrap()
    }

    async fn ended(&self, task: &Task) -> TaskOutcome {
        let over = async || self.controller().task(task.id).await.unwrap().outcome().cloned();
        until("the task is over", over).await
    }

    async fn exec(&self, name: &str) -> Stream {
        let run = Run { argv: vec!["hello".to_owned()], ..Run::default() };
        let hello = StreamTarget::Run { run };
        self.controller().exec(&name.parse().unwrap(), hello, false, &ann()).await.unwrap()
    }
}

fn errand() -> TaskRequest {
    TaskRequest { job: Job::exec(["errand"]), terms: Terms::default(), id: None, key: None }
}

fn is_asleep(view: &AgentView) -> bool {
    (view.sync, view.health, view.rests) == (Sync::Synced, Health::Suspended, Some(Rest::Idle))
}

fn is_aged(view: &AgentView) -> bool {
    (view.sync, view.health, view.rests) == (Sync::Synced, Health::Stopped, Some(Rest::Aged))
}

/// What a process wrote, once it has ended well.
async fn output(mut stream: Stream) -> String {
    let mut said = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            StreamEvent::Data { data, .. } => said.extend_from_slice(&data),
            StreamEvent::Ended(outcome) => assert!(outcome.is_success(), "{outcome}"),
            StreamEvent::Lost(why) => panic!("the process should go on: {why}"),
            StreamEvent::Opened { .. } | StreamEvent::Taken { .. } => {}
        }
    }
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn an_agent_without_work_falls_asleep_however_often_it_is_looked_at() {
    let stage = Stage::with("defaults: {driver: qemu}\nagents: {db: {}, web: {idle: 1s}}\n").await;
    let controller = stage.controller();
    let token = controller
        .create_token(TokenRequest { name: "test".to_owned(), role: Role::Admin, lasting: None }, &ann())
        .await
        .unwrap();
    let bearer = format!("Bearer {}", token.secret.expose());
    let api = controller.status().await.unwrap().addresses.api;
    well(controller, &["db"]).await;
    let look = async || {
        for path in ["/agents", "/agents/web", "/status", "/events", "/metrics", "/drift", "/agents/web/logs"] {
            let (status, answer) = http(api, "GET", path, Some(&bearer), "").await;
            assert_eq!(status, 200, "{path}: {answer}");
        }
        agent(controller, "web").await.filter(is_asleep)
    };
    let web = until("it is asleep", look).await;
    assert_eq!(
        (web.instance, web.session.is_none(), web.waits_for, web.drift),
        (Some(InstanceState::Stopped), true, Vec::new(), Vec::new())
    );
    let powered = web.conditions.iter().find(|condition| condition.kind == "Powered").unwrap();
    assert_eq!(powered.status, ConditionStatus::True, "{powered:?}");
    told(controller, EventKind::AgentAsleep, "web", 1).await;
    let all = events(controller).await;
    let of = |kind| all.iter().find(|it| it.kind == kind && it.agent.as_ref().is_some_and(|it| it.as_str() == "web"));
    let (up, down) = (of(EventKind::RuntimeConnected).unwrap(), of(EventKind::AgentAsleep).unwrap());
    assert!(down.at.duration_since(up.at).as_millis() >= 900, "it was given its time: {up:?} {down:?}");
    assert_eq!(stage.moves("web"), (1, 0));
    assert_eq!(stage.moves("db"), (0, 0));
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_controller_that_restarts_leaves_a_sleeper_asleep() {
    let stage = Stage::with(IDLE).await;
    stage.asleep("db").await;
    stage.asleep("web").await;
    let stage = stage.restarted().await;
    for _ in 0..3 {
        pass(stage.controller(), IDLE).await;
    }
    for name in ["db", "web"] {
        assert!(is_asleep(&agent(stage.controller(), name).await.unwrap()));
        assert_eq!(stage.moves(name), (1, 0));
        told(stage.controller(), EventKind::AgentAsleep, name, 1).await;
    }
    // Without the key it is up again.
    apply(stage.controller(), AWAKE).await;
    well(stage.controller(), &["db", "web"]).await;
    told(stage.controller(), EventKind::AgentAwake, "web", 1).await;
    stage.running.shut_down().await;
}

/// What keeps an agent awake, from beginning to end.
async fn keeps_awake<T>(begin: impl AsyncFnOnce(&Stage) -> T, end: impl AsyncFnOnce(&Stage, T)) {
    let stage = Stage::with(AWAKE).await;
    settled(stage.controller(), AWAKE, &["db", "web"]).await;
    let what = begin(&stage).await;
    apply(stage.controller(), IDLE).await;
    // Active after the other, so that the other would be asleep by then as well.
    let task = stage.task("db").await;
    stage.ended(&task).await;
    stage.asleep("db").await;
    assert_eq!(stage.moves("web"), (0, 0));
    assert_eq!(agent(stage.controller(), "web").await.unwrap().rests, None);
    end(&stage, what).await;
    stage.asleep("web").await;
    assert_eq!(stage.moves("web"), (1, 0));
    told(stage.controller(), EventKind::AgentAsleep, "web", 1).await;
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_process_that_somebody_runs_in_it_keeps_an_agent_awake() {
    let begin = async |stage: &Stage| {
        stage.runtimes.change("web", |inside| inside.holds = true);
        stage.exec("web").await
    };
    let end = async |stage: &Stage, stream| {
        stage.runtimes.change("web", |inside| inside.holds = false);
        assert_eq!(output(stream).await, "hello");
    };
    keeps_awake(begin, end).await;
}

#[tokio::test]
async fn a_task_keeps_an_agent_awake_and_so_does_one_that_waits_behind_it() {
    let begin = async |stage: &Stage| {
        stage.runtimes.change("web", |inside| inside.holds = true);
        (stage.task("web").await, stage.task("web").await)
    };
    let end = async |stage: &Stage, (first, second): (Task, Task)| {
        let second_now = stage.controller().task(second.id).await.unwrap();
        assert_eq!(second_now.state, TaskState::QUEUED);
        stage.runtimes.change("web", |inside| inside.holds = false);
        assert!(stage.ended(&first).await.is_success() && stage.ended(&second).await.is_success());
    };
    keeps_awake(begin, end).await;
}

#[tokio::test]
async fn a_service_at_work_keeps_an_agent_awake_and_one_that_waits_does_not() {
    let report = |cpu_percent| {
        let report = ServiceReport { state: ServiceState::Running, restarts: 0, cpu_percent, problem: None };
        [("gateway".parse().unwrap(), report)].into()
    };
    let begin = async |stage: &Stage| stage.runtimes.change("web", |inside| inside.services = report(80.0));
    let end = async |stage: &Stage, ()| {
        // The time counts from when the service was last at work, which was just now.
        let before = jiff::Timestamp::now();
        stage.runtimes.change("web", |inside| inside.services = report(0.4));
        stage.asleep("web").await;
        let waited = jiff::Timestamp::now().duration_since(before);
        assert!(waited.as_millis() >= 500, "{waited:?}");
    };
    keeps_awake(begin, end).await;
}

#[tokio::test]
async fn whoever_is_told_to_run_by_a_person_does_not_fall_asleep() {
    let begin = async |stage: &Stage| {
        apply(stage.controller(), "defaults: {driver: qemu}\nagents: {db: {}, web: {power: stopped}}\n").await;
        becomes(stage.controller(), "web", |it| it.health == Health::Stopped && it.sync == Sync::Synced).await;
        stage.controller().start("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
        well(stage.controller(), &["web"]).await;
    };
    let stage = Stage::with(AWAKE).await;
    settled(stage.controller(), AWAKE, &["db", "web"]).await;
    begin(&stage).await;
    apply(stage.controller(), "defaults: {driver: qemu, idle: 1s}\nagents: {db: {}, web: {power: stopped}}\n").await;
    let task = stage.task("db").await;
    stage.ended(&task).await;
    stage.asleep("db").await;
    well(stage.controller(), &["web"]).await;
    assert_eq!(stage.moves("web"), (1, 1));
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_task_wakes_a_sleeper_runs_once_and_lets_it_sleep_again() {
    let stage = Stage::with(IDLE).await;
    stage.asleep("web").await;
    let stage = stage.restarted().await;
    let task = stage.task("web").await;
    assert!(stage.ended(&task).await.is_success());
    told(stage.controller(), EventKind::AgentAwake, "web", 1).await;
    stage.asleep("web").await;
    told(stage.controller(), EventKind::AgentAsleep, "web", 2).await;
    assert_eq!(stage.moves("web"), (2, 1));
    assert_eq!(stage.runtimes.inside("web").began.len(), 1);
    told(stage.controller(), EventKind::TaskEnded, "web", 1).await;
    stage.running.shut_down().await;
}

#[tokio::test]
async fn exec_wakes_a_sleeper_and_waits_for_it_and_so_does_a_second_one() {
    let stage = Stage::with(IDLE).await;
    stage.asleep("web").await;
    stage.fake.script(On::start("web"), Behaviour::Delay(std::time::Duration::from_millis(200)));
    let both = tokio::join!(async { output(stage.exec("web").await).await }, async {
        until("it has begun to wake", async || {
            (count(stage.controller(), EventKind::AgentAwake, "web").await == 1).then_some(())
        })
        .await;
        output(stage.exec("web").await).await
    });
    assert_eq!(both, ("hello".to_owned(), "hello".to_owned()));
    told(stage.controller(), EventKind::AgentAwake, "web", 1).await;
    stage.asleep("web").await;
    assert_eq!(stage.moves("web"), (2, 1));
    stage.running.shut_down().await;
}

#[tokio::test]
async fn exec_is_not_lost_on_an_agent_that_is_falling_asleep() {
    let stage = Stage::with(IDLE).await;
    stage.fake.script(On::stop("web").once(), Behaviour::Delay(std::time::Duration::from_millis(300)));
    until("its stop has begun", async || (stage.moves("web").0 == 1).then_some(())).await;
    assert_eq!(output(stage.exec("web").await).await, "hello");
    assert_eq!(stage.moves("web").1, 1);
    stage.asleep("web").await;
    assert!(count(stage.controller(), EventKind::AgentAwake, "web").await <= 2);
    stage.running.shut_down().await;
}

#[tokio::test]
async fn start_wakes_a_sleeper_also_one_that_is_just_going_down() {
    let stage = Stage::with(IDLE).await;
    stage.asleep("web").await;
    stage.controller().start("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    well(stage.controller(), &["web"]).await;
    told(stage.controller(), EventKind::AgentAwake, "web", 1).await;
    assert_eq!(stage.moves("web"), (1, 1));
    // Until the person lets it.
    let power = vm_agent_schemas::intent::OverridePath::Power;
    stage.controller().clear_override("web".parse().unwrap(), power, Default::default(), &ann()).await.unwrap();
    stage.fake.script(On::stop("web").once(), Behaviour::Delay(std::time::Duration::from_millis(300)));
    until("its stop has begun", async || (stage.moves("web").0 == 2).then_some(())).await;
    stage.controller().start("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    until("it is started again", async || (stage.moves("web").1 == 2).then_some(())).await;
    well(stage.controller(), &["web"]).await;
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_machine_that_is_too_old_stops_once_its_task_is_over_and_is_never_deleted() {
    let stage = Stage::with(AWAKE).await;
    let controller = stage.controller();
    settled(controller, AWAKE, &["db", "web"]).await;
    stage.runtimes.change("web", |inside| inside.holds = true);
    let task = stage.task("web").await;
    until("it runs", async || stage.controller().task(task.id).await.unwrap().started_at).await;
    // Of the other's age nobody says that it is too great: it tells only that the time is over.
    apply(controller, "defaults: {driver: qemu, ttl: 1s}\nagents: {db: {}, web: {}}\n").await;
    becomes(controller, "db", is_aged).await;
    pass(controller, "defaults: {driver: qemu, ttl: 1s}\nagents: {db: {}, web: {}}\n").await;
    assert_eq!(agent(controller, "web").await.unwrap().rests, None);
    assert_eq!(stage.moves("web"), (0, 0));
    stage.runtimes.change("web", |inside| inside.holds = false);
    assert!(stage.ended(&task).await.is_success());
    let web = becomes(controller, "web", is_aged).await;
    assert_eq!(web.instance, Some(InstanceState::Stopped));
    assert_eq!((stage.moves("web"), stage.fake.calls(Call::Destroy)), ((1, 0), 0));
    stage.running.shut_down().await;
}

#[tokio::test]
async fn a_machine_that_was_too_old_runs_again_for_as_long_as_a_person_says() {
    let stage = Stage::with(AGED).await;
    becomes(stage.controller(), "web", is_aged).await;
    let stage = stage.restarted().await;
    let controller = stage.controller();
    // Work does not wake it, and waits.
    let task = stage.task("web").await;
    pass(controller, AGED).await;
    assert!(is_aged(&agent(controller, "web").await.unwrap()));
    assert_eq!(stage.moves("web"), (1, 0));
    let started = controller.start("web".parse().unwrap(), Default::default(), &ann()).await.unwrap();
    let entry = started.overridden.expect("a person's word stands against the file");
    let holds = entry.expires_at.unwrap().duration_since(entry.created_at);
    assert_eq!(holds.as_secs(), 3600);
    assert!(stage.ended(&task).await.is_success());
    well(controller, &["web"]).await;
    // For less time, it ends by itself.
    let shortly = ChangeRequest { lasting: Some(Span::from_secs(1)), ..Default::default() };
    controller.start("web".parse().unwrap(), shortly, &ann()).await.unwrap();
    becomes(controller, "web", is_aged).await;
    told(controller, EventKind::OverrideExpired, "web", 1).await;
    assert_eq!((stage.moves("web"), stage.fake.calls(Call::Destroy)), ((2, 1), 0));
    stage.running.shut_down().await;
}

//! Documents made by hand, for tests.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use vm_agent_schemas::api::{
    Addresses, AgentView, ControllerStatus, DriverStatus, FileState, FileStatus, RevisionView, SessionView,
};
use vm_agent_schemas::credential::{ApiToken, Role};
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_schemas::fleet::{
    AgentEntry, DeclaredAgent, Diagnostic, DriftPolicy, DriverName, Field, Fleet, Origin, PowerState, Until,
    resolve_entry,
};
use vm_agent_schemas::ids::{
    ClaimId, Digest, Epoch, Incarnation, Life, MessageId, OverrideId, Revision, TaskId, TokenId,
};
use vm_agent_schemas::intent::{Change, Override};
use vm_agent_schemas::message::{Message, MessageState};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{InstanceState, Sizes};
use vm_agent_schemas::plan::{
    AgentPlan, ApprovalRequest, Condition, ConditionStatus, Cost, Disturbance, Drift, DriftClass, Fuse, Health, Plan,
    Rest, Step, StepAction, Sync, WaitsFor,
};
use vm_agent_schemas::task::{Job, Task, TaskSource, TaskState, Terms};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{Address, TaskOutcome};

use crate::ui::{BAD, BUSY, FAINT, GOOD, STRONG};

pub(crate) fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn before(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() - seconds).unwrap()
}

pub(crate) fn name(text: &str) -> AgentName {
    text.parse().unwrap()
}

/// What somebody inside a machine may write to rule the terminal of whoever looks: a title, a cleared screen in two
/// ways, a line of their own, and hidden letters.
pub(crate) const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}1A\rfine\nName  other \u{1b}[8m";

/// That nothing of [`HOSTILE`] is in a page as it is: neither what a terminal would obey, nor a line or a style.
pub(crate) fn assert_tame(page: &str) {
    let ours = [GOOD, BAD, BUSY, FAINT, STRONG].map(|style| style.to_string());
    let plain = ours.iter().fold(page.replace("\u{1b}[0m", ""), |page, style| page.replace(style, ""));
    assert!(page.contains(r"\u{1b}]0;owned"), "it is not told: {page:?}");
    assert!(!plain.contains(|c: char| c.is_control() && c != '\n'), "{plain:?}");
    assert!(plain.lines().all(|line| !line.starts_with("Name  other")), "{plain}");
}

/// An agent of which everything that can be is hostile.
pub(crate) fn hostile_agent(agent: &str) -> AgentView {
    let condition = Condition {
        kind: "RuntimeReady".into(),
        status: ConditionStatus::False,
        reason: HOSTILE.into(),
        message: HOSTILE.into(),
        last_transition_time: before(60),
        observed_generation: None,
    };
    let drift = Drift { observed: HOSTILE.into(), wanted: HOSTILE.into(), ..memory_drift() };
    let mut view = AgentView { conditions: vec![condition], drift: vec![drift], ..healthy(agent) };
    view.waits_for = vec![WaitsFor::Problem { what: HOSTILE.into() }];
    view.session.as_mut().expect("a healthy agent has a session").runtime_version = HOSTILE.into();
    view
}

/// A task that failed with a hostile reason, and that does something of a hostile name.
pub(crate) fn hostile_task(agent: &str) -> Task {
    let outcome = TaskOutcome::Failed { reason: HOSTILE.into() };
    Task {
        state: TaskState::Ended { outcome },
        job: Job::exec(["/bin/sh", "-c", HOSTILE]),
        dead: Some(HOSTILE.into()),
        ..task(agent)
    }
}

fn declared() -> DeclaredAgent {
    let entry =
        AgentEntry { driver: Some(DriverName::Local), memory: Some("8G".parse().unwrap()), ..AgentEntry::default() };
    resolve_entry(&Fleet::default(), &entry).unwrap()
}

pub(crate) fn healthy(agent: &str) -> AgentView {
    AgentView {
        name: name(agent),
        driver: Some(DriverName::Local),
        power: Some(PowerState::Running),
        instance: Some(InstanceState::Running),
        incarnation: Some(Incarnation(1)),
        sync: Sync::Synced,
        health: Health::Healthy,
        drift: Vec::new(),
        waits_for: Vec::new(),
        paused: false,
        rests: None,
        overrides: Vec::new(),
        conditions: Vec::new(),
        session: Some(SessionView {
            epoch: Epoch(3),
            connected_at: before(90),
            last_seen: before(4),
            runtime_version: "0.1.0".into(),
            health: None,
        }),
        wanted: Some(declared()),
        observed_generation: Some(Revision(1)),
    }
}

pub(crate) fn memory_drift() -> Drift {
    Drift {
        class: DriftClass::Memory,
        path: "memory".into(),
        wanted: json!(8u64 << 30),
        observed: json!(1u64 << 30),
        cost: Cost::Restart,
        policy: DriftPolicy::Correct,
    }
}

pub(crate) fn overridden(agent: &str) -> AgentView {
    let by_ana = Override {
        id: OverrideId::generate(),
        agent: name(agent),
        change: Change::Power { wanted: PowerState::Stopped, covers: PowerState::Running },
        author: "ana".into(),
        reason: Some("debug a flake".into()),
        created_at: before(300),
        expires_at: Some(before(-3300)),
    };
    AgentView {
        power: Some(PowerState::Stopped),
        instance: Some(InstanceState::Stopped),
        sync: Sync::Drifted,
        health: Health::Stopped,
        drift: vec![memory_drift()],
        overrides: vec![by_ana],
        session: None,
        ..healthy(agent)
    }
}

pub(crate) fn blocked(agent: &str) -> AgentView {
    AgentView {
        power: None,
        sync: Sync::Blocked,
        waits_for: vec![WaitsFor::Approval { id: Digest::of(b"prune old") }],
        wanted: None,
        ..healthy(agent)
    }
}

fn agent_plan(view: AgentView) -> AgentPlan {
    AgentPlan {
        name: view.name,
        driver: view.driver,
        wanted: view.wanted.map(Arc::new),
        observed: view.instance,
        sync: view.sync,
        health: view.health,
        drift: view.drift,
        waits_for: view.waits_for,
        held_back: false,
        cordoned: false,
        moot: None,
        rests: view.rests,
    }
}

fn step(agent: &str, action: StepAction, reason: &str, cost: Cost, waits_for: Vec<WaitsFor>) -> Step {
    Step {
        agent: name(agent),
        driver: DriverName::Local,
        action,
        reason: reason.into(),
        cost,
        disturbs: None,
        loses: None,
        waits_for,
    }
}

pub(crate) fn empty_plan() -> Plan {
    Plan {
        id: Digest::of(b"plan"),
        fleet: "lab".parse().unwrap(),
        revision: Some(Revision(1)),
        agents: vec![agent_plan(healthy("web"))],
        steps: Vec::new(),
        approvals: Vec::new(),
        granted: Vec::new(),
        fuse: Fuse::Closed { since: before(600) },
    }
}

pub(crate) fn plan() -> Plan {
    let approval = Digest::of(b"prune old");
    let missing = Drift {
        class: DriftClass::Missing,
        path: "presence".into(),
        wanted: json!("present"),
        observed: json!("absent"),
        cost: Cost::Create,
        policy: DriftPolicy::Correct,
    };
    let new = AgentView {
        drift: vec![missing.clone()],
        instance: None,
        session: None,
        sync: Sync::Drifted,
        ..healthy("web")
    };
    let sizes = Sizes { cpus: 1, memory: ByteSize::from_gib(2), disk: ByteSize::from_gib(5) };
    let on_db = vec![WaitsFor::Dependency { agent: name("db"), until: Until::Healthy }];
    let on_yes = vec![WaitsFor::Approval { id: approval.clone() }];
    let unexpected = Drift {
        class: DriftClass::Unexpected,
        wanted: json!("absent"),
        observed: json!("present"),
        cost: Cost::Destroy,
        ..missing.clone()
    };
    let old = AgentView { drift: vec![unexpected], ..blocked("old") };
    Plan {
        agents: vec![agent_plan(overridden("db")), agent_plan(old), agent_plan(new)],
        steps: vec![
            step("db", StepAction::Resize { to: sizes }, "memory differs", Cost::Live, Vec::new()),
            step("web", StepAction::Create, "it does not exist", Cost::Create, on_db),
            step("old", StepAction::Destroy, "it is not in the file", Cost::Destroy, on_yes),
        ],
        approvals: vec![ApprovalRequest { id: approval, agent: name("old"), what: "delete its machine".into() }],
        ..empty_plan()
    }
}

/// `db` takes its memory with a restart, and `web` is to be replaced.
pub(crate) fn disruptive_plan() -> Plan {
    let ends = |tasks, sessions| Some(Disturbance { tasks, drains: true, sessions });
    let opens = Some(before(-7200));
    let sizes = Sizes { cpus: 1, memory: ByteSize::from_gib(8), disk: ByteSize::from_gib(5) };
    let then = || vec![WaitsFor::EarlierStep];
    let why = "to replace it: image differs";
    let restart = |action, waits| step("db", action, "memory differs", Cost::Restart, waits);
    let image = Drift {
        class: DriftClass::Image,
        path: "image".into(),
        wanted: json!("26.04"),
        observed: json!("24.04"),
        cost: Cost::Replace,
        policy: DriftPolicy::Correct,
    };
    let old = AgentView { drift: vec![image], sync: Sync::Blocked, ..healthy("web") };
    Plan {
        agents: vec![agent_plan(AgentView { drift: vec![memory_drift()], ..healthy("db") }), agent_plan(old)],
        steps: vec![
            Step { disturbs: ends(2, 1), ..restart(StepAction::Stop, vec![WaitsFor::Window { opens }]) },
            restart(StepAction::Resize { to: sizes }, then()),
            restart(StepAction::Start, then()),
            Step {
                disturbs: ends(0, 1),
                ..step(
                    "web",
                    StepAction::Destroy,
                    why,
                    Cost::Replace,
                    vec![WaitsFor::Approval { id: Digest::of(b"new") }],
                )
            },
            step("web", StepAction::Create, why, Cost::Replace, then()),
        ],
        approvals: vec![ApprovalRequest { id: Digest::of(b"new"), agent: name("web"), what: "replace `web`".into() }],
        ..empty_plan()
    }
}

/// `db` is to stop because a person says so.
pub(crate) fn overridden_plan() -> Plan {
    let power = Drift {
        class: DriftClass::Power,
        path: "power".into(),
        wanted: json!("stopped"),
        observed: json!("running"),
        cost: Cost::Stop,
        policy: DriftPolicy::Correct,
    };
    let mut view = AgentView { drift: vec![power], ..healthy("db") };
    view.wanted.as_mut().unwrap().origins.insert(Field::Power, Origin::Override);
    Plan {
        agents: vec![agent_plan(view)],
        steps: vec![step("db", StepAction::Stop, "it should be stopped", Cost::Stop, Vec::new())],
        ..empty_plan()
    }
}

/// `db` has other memory than wanted, of which is only warned, and `web` rests.
pub(crate) fn quiet_plan() -> Plan {
    let warned = Drift { policy: DriftPolicy::Warn, ..memory_drift() };
    let idle = AgentView { rests: Some(Rest::Idle), health: Health::Suspended, session: None, ..healthy("web") };
    Plan {
        agents: vec![agent_plan(AgentView { drift: vec![warned], ..healthy("db") }), agent_plan(idle)],
        ..empty_plan()
    }
}

pub(crate) fn revision(number: u64, current: bool) -> RevisionView {
    RevisionView {
        revision: Revision(number),
        at: before(3600 / i64::try_from(number).unwrap()),
        author: "ana".into(),
        current,
        summary: format!("the change number {number}"),
        source: None,
    }
}

pub(crate) fn token(of: &str) -> ApiToken {
    ApiToken {
        id: TokenId::generate(),
        name: of.into(),
        digest: Digest::of(b""),
        role: Role::Exec,
        created_at: before(60),
        expires_at: None,
    }
}

pub(crate) fn controller(state: FileState, diagnostics: Vec<Diagnostic>) -> ControllerStatus {
    let loopback = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    ControllerStatus {
        pid: 7,
        version: "0.1.0".into(),
        fleet: "lab".parse().unwrap(),
        state_dir: "/state".into(),
        life: Life(2),
        started_at: before(3600),
        addresses: Addresses {
            socket: "/state/api.sock".into(),
            hub: loopback(9090),
            api: loopback(9091),
            dashboard: loopback(9092),
        },
        file: FileStatus {
            roots: vec!["/fleet.yaml".into()],
            revision: Some(Revision(3)),
            applied_at: Some(before(120)),
            author: Some("ana".into()),
            state,
            message: "what is on the disk is told here".into(),
            diagnostics,
        },
        paused: None,
        fuse: Fuse::Closed { since: before(3600) },
        drivers: vec![driver()],
        sync: [("Synced".to_owned(), 2)].into(),
        health: [("Healthy".to_owned(), 2)].into(),
        conditions: Vec::new(),
    }
}

pub(crate) fn driver() -> DriverStatus {
    let capabilities = json!({
        "sizes": false, "images": false, "resizeRunning": false, "suspend": false, "snapshots": "none",
        "clones": "none", "labels": false, "mounts": "none", "usesHost": false,
        "callsOutliveController": false, "lanes": 8,
        "deadlines": {
            "list": "10s", "create": "1m", "start": "1m", "stop": "1m", "resize": "1m", "destroy": "1m", "snapshot": "1m",
            "restore": "1m", "connect": "1m",
        },
    });
    DriverStatus {
        name: DriverName::Local,
        answering: true,
        last_answer: Some(before(2)),
        problem: None,
        instances: 2,
        capabilities: serde_json::from_value(capabilities).unwrap(),
    }
}

pub(crate) fn blocked_plan() -> Plan {
    let view = AgentView { waits_for: vec![WaitsFor::NoDriver], sync: Sync::Blocked, ..healthy("web") };
    Plan { agents: vec![agent_plan(view)], ..empty_plan() }
}

pub(crate) fn task(agent: &str) -> Task {
    let id = TaskId::from_uuid("0190c5a8-0000-7000-8000-000000000000".parse().unwrap());
    let source = TaskSource::Request { author: "ana".into(), key: None };
    let job = Job::exec(["make", "test"]);
    Task {
        state: TaskState::Ended { outcome: TaskOutcome::Exited { code: 2 } },
        started_at: Some(before(59)),
        ended_at: Some(before(1)),
        ..Task::new(id, Some(name(agent)), source, job, Terms::default(), before(60))
    }
}

pub(crate) fn file_task(agent: &str, name: &str) -> Task {
    let (claim, digest) =
        (ClaimId::from_uuid("0190c5a8-0000-7000-8000-000000000003".parse().unwrap()), Digest::of(b""));
    let source = TaskSource::File { name: name.parse().unwrap(), digest, claim, due: None };
    Task { source, ..task(agent) }
}

pub(crate) fn message(from: &str, to: &str) -> Message {
    Message {
        id: MessageId::from_uuid("0190c5a8-0000-7000-8000-000000000001".parse().unwrap()),
        from: Address::try_from(from.to_owned()).unwrap(),
        to: Address::try_from(to.to_owned()).unwrap(),
        subject: "build".into(),
        body: json!({"ref": "main"}),
        in_reply_to: None,
        author: None,
        created_at: before(60),
        expires_at: before(-3600),
        state: MessageState::Waiting,
    }
}

pub(crate) fn event(seq: u64, agent: &str) -> Event {
    Event { seq, at: before(5), kind: EventKind::StepSucceeded, agent: Some(name(agent)), message: "created".into() }
}

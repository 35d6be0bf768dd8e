//! What holds for every plan, whatever the world looks like.

mod world;

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use vm_agent_plan::{FileTask, Inputs, Listing, Mode, Observed, Upkeep, plan, upkeep, wake_at};
use vm_agent_schemas::fleet::{
    AgentSpec, DeclaredAgent, DependsOn, DriftField, DriftPolicy, Fleet, Idle, Mount, PowerState, Prune, RestartPolicy,
    TaskWhen, Until, Window,
};
use vm_agent_schemas::ids::{Digest, Life, Nonce, OperationId, TaskId};
use vm_agent_schemas::intent::{Change, Override, Presence};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{
    Action, Backoff, Host, Instance, InstanceState, MountSupport, Operation, Proof, Sizes, Standing,
};
use vm_agent_schemas::plan::{AgentPlan, DriftClass, Fuse, Health, Rest, StepAction, WaitsFor};
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_schemas::wire::{ServiceState, TaskOutcome};

/// One agent of a random world.
#[derive(Debug, Clone)]
struct Agent {
    declared: bool,
    spec: AgentSpec,
    claim: Option<(Proof, Standing, bool)>,
    /// State, whose nonce it bears, and whether it is smaller than wanted.
    instance: Option<(InstanceState, Bearing, bool)>,
    session: Option<Session>,
    operation: Option<(Action, bool)>,
    backoff: Option<i64>,
    task: Option<(Option<TaskOutcome>, i64)>,
    override_: Option<Change>,
    asleep: bool,
    work: bool,
}

/// A runtime of a random world.
#[derive(Debug, Clone)]
struct Session {
    connected: bool,
    silent_for: i64,
    busy: bool,
    quiet_for: i64,
    service: ServiceState,
    problem: bool,
}

/// An agent that uses every key whose meaning is more than its value.
static EVERYTHING: LazyLock<AgentSpec> = LazyLock::new(|| {
    let text = "agents: {x: {
        tasks: {
            setup: {exec: make},
            minutely: {exec: a, when: {cron: '* * * * *'}},
            now: {exec: b, when: {cron: '0 8 * * *', missed: once}},
            soon: {exec: c, when: {cron: '1 8 * * *', missed: skip}},
            queued: {exec: d, when: {cron: '*/2 * * * *', overlap: queue}},
            greet: {exec: e, when: connect},
            polish: {exec: f, when: {after: setup}},
            report: {exec: g, when: {after: minutely}}},
        services: {gateway: {exec: serve, restart: on-failure}}}}";
    let parsed = vm_agent_schemas::fleet::parse("fleet.yaml", text).expect("right");
    parsed.agents.into_values().next().expect("one").spec.clone()
});

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bearing {
    Ours,
    Another,
    Unreadable,
}

fn any_policies() -> impl Strategy<Value = BTreeMap<DriftField, DriftPolicy>> {
    let field = prop::sample::select(vec![
        DriftField::Power,
        DriftField::Cpus,
        DriftField::Memory,
        DriftField::Disk,
        DriftField::Image,
        DriftField::Mounts,
        DriftField::Provisioning,
        DriftField::Tasks,
    ]);
    let policy = prop::sample::select(vec![DriftPolicy::Correct, DriftPolicy::Warn, DriftPolicy::Ignore]);
    prop_oneof![2 => Just(BTreeMap::new()), 1 => prop::collection::btree_map(field, policy, 1..4)]
}

fn any_spec() -> impl Strategy<Value = AgentSpec> {
    let restart = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    let tasks = prop::sample::subsequence(EVERYTHING.tasks.keys().cloned().collect::<Vec<_>>(), 0..=4);
    let span = |seconds: std::ops::Range<u64>| prop::option::weighted(0.3, seconds);
    let plain = (any::<bool>(), 1..3u32, any::<bool>(), restart, prop::bool::weighted(0.2));
    let rest =
        (tasks, prop::bool::weighted(0.3), prop::bool::weighted(0.3), span(10..300), span(10..300), any_policies());
    (plain, rest).prop_map(|((runs, cpus, image, restart, protect), (tasks, service, mounted, idle, ttl, drift))| {
        let mount = || ("src".to_owned(), Mount { source: "/src".into(), writable: false });
        AgentSpec {
            power: if runs { PowerState::Running } else { PowerState::Stopped },
            cpus,
            image: if image { "a".into() } else { "b".into() },
            restart,
            protect,
            tasks: tasks.into_iter().map(|name| (name.clone(), EVERYTHING.tasks[&name].clone())).collect(),
            services: if service { EVERYTHING.services.clone() } else { BTreeMap::new() },
            mounts: mounted.then(mount).into_iter().collect(),
            idle: idle.map(|seconds| Idle { after: Span::from_secs(seconds) }),
            ttl: ttl.map(Span::from_secs),
            drift,
            ..AgentSpec::default()
        }
    })
}

fn any_session() -> impl Strategy<Value = Session> {
    let service = prop::sample::select(vec![
        ServiceState::Running,
        ServiceState::Running,
        ServiceState::Starting,
        ServiceState::Failing,
        ServiceState::Ended,
    ]);
    // What is heard or done at a time that has not come yet was so before the clock was set back.
    (any::<bool>(), -100..200i64, prop::bool::weighted(0.2), -100..400i64, service, prop::bool::weighted(0.1)).prop_map(
        |(connected, silent_for, busy, quiet_for, service, problem)| Session {
            connected,
            silent_for,
            busy,
            quiet_for,
            service,
            problem,
        },
    )
}

/// Windows of a world whose time begins at 08:00: none, open for an hour, closed, and open half the time.
fn any_windows() -> impl Strategy<Value = Vec<Window>> {
    let window = |cron: &str, lasts: u64| Window { cron: cron.parse().expect("right"), lasts: Span::from_secs(lasts) };
    prop_oneof![
        2 => Just(vec![]),
        1 => Just(vec![window("0 8 * * *", 3600)]),
        2 => Just(vec![window("0 7 * * *", 1800)]),
        1 => Just(vec![window("0 7 * * *", 1800), window("*/2 * * * *", 60)]),
    ]
}

fn any_state() -> impl Strategy<Value = InstanceState> {
    prop::sample::select(vec![
        InstanceState::Starting,
        InstanceState::Running,
        InstanceState::Stopping,
        InstanceState::Stopped,
        InstanceState::Failed,
        InstanceState::Suspended,
        InstanceState::Deleted,
        InstanceState::Unknown,
    ])
}

fn any_agent() -> impl Strategy<Value = Agent> {
    let proof = prop::sample::select(vec![
        Proof::Pending,
        Proof::Watched { life: Life(1) },
        Proof::Watched { life: Life(0) },
        Proof::Confirmed,
    ]);
    let standing = prop::sample::select(vec![Standing::Up, Standing::Down, Standing::Fell]);
    let bearing = prop::sample::select(vec![Bearing::Ours, Bearing::Ours, Bearing::Another, Bearing::Unreadable]);
    let action =
        prop::sample::select(vec![Action::Create, Action::Start, Action::Stop, Action::Resize, Action::Destroy]);
    let outcome = prop_oneof![
        Just(None),
        Just(Some(TaskOutcome::Exited { code: 0 })),
        Just(Some(TaskOutcome::Exited { code: 1 }))
    ];
    let change = prop_oneof![
        Just(Change::Presence(Presence::Absent)),
        Just(Change::Power { wanted: PowerState::Stopped, covers: PowerState::Running }),
        Just(Change::Power { wanted: PowerState::Running, covers: PowerState::Running }),
    ];
    let plain = (
        prop::bool::weighted(0.7),
        any_spec(),
        prop::option::weighted(0.7, (proof, standing, prop::bool::weighted(0.2))),
        prop::option::weighted(0.7, (any_state(), bearing, prop::bool::weighted(0.2))),
        prop::option::weighted(0.6, any_session()),
        prop::option::weighted(0.2, (action, any::<bool>())),
        prop::option::weighted(0.2, prop_oneof![4 => 0..120i64, 1 => -20_000..0i64]),
        prop::option::weighted(0.4, (outcome, -100..400i64)),
        prop::option::weighted(0.2, change),
    );
    (plain, prop::bool::weighted(0.3), prop::bool::weighted(0.1)).prop_map(
        |((declared, spec, claim, instance, session, operation, backoff, task, override_), asleep, work)| Agent {
            declared,
            spec,
            claim,
            instance,
            session,
            operation,
            backoff,
            task,
            override_,
            asleep,
            work,
        },
    )
}

fn name(index: usize) -> AgentName {
    format!("a{index}").parse().expect("a name")
}

/// A world in which anything may be the case, with a driver that answers or not.
fn any_world() -> impl Strategy<Value = Inputs> {
    let prune = prop::sample::select(vec![Prune::Never, Prune::Confirm, Prune::Auto]);
    let mode = prop::sample::select(vec![Mode::Up, Mode::Up, Mode::Up, Mode::Down, Mode::Destroy]);
    (
        prop::collection::vec(any_agent(), 1..12),
        prune,
        mode,
        prop::bool::weighted(0.9),
        1..4u32,
        any::<[bool; 5]>(),
        prop::collection::vec((0..12usize, 0..12usize), 0..6),
        (any_windows(), prop::option::of(2..12u64), prop::option::of(1..12u32), prop::option::weighted(0.3, 0..100i64)),
    )
        .prop_map(|(agents, prune, mode, answers, lanes, flags, edges, (windows, memory, cpus, resumed))| {
            let [sizes, images, live, outlive, mounts] = flags;
            let mut fleet = Fleet { prune, windows, ..Fleet::default() };
            fleet.limits.cpus = cpus;
            for (index, agent) in agents.iter().enumerate().filter(|(_, agent)| agent.declared) {
                let mut spec = agent.spec.clone();
                // Only on agents with a smaller number, so that there is no cycle.
                let needed = edges.iter().filter(|(from, to)| *from == index && to < from);
                let untils = [Until::Started, Until::Healthy, Until::Completed];
                spec.depends_on = DependsOn(needed.map(|(from, to)| (name(*to), untils[(from + to) % 3])).collect());
                fleet
                    .agents
                    .insert(name(index), Arc::new(DeclaredAgent { spec, origins: BTreeMap::new(), clone_of: None }));
            }
            let mut inputs = world::inputs(fleet);
            inputs.mode = mode;
            inputs.host = memory.map(|gib| Host { cpus: 4, memory: ByteSize::from_gib(gib) });
            inputs.resumed_at = resumed.map(|ago| world::at(-ago));
            let view = inputs.drivers.get_mut(&world::DRIVER).expect("there");
            view.capabilities.lanes = lanes;
            view.capabilities.sizes = sizes;
            view.capabilities.images = images;
            view.capabilities.resize_running = live;
            view.capabilities.mounts = if mounts { MountSupport::Any } else { MountSupport::None };
            view.capabilities.calls_outlive_controller = outlive;
            for (index, agent) in agents.iter().enumerate() {
                place(&mut inputs, &name(index), agent);
            }
            if !answers {
                let view = inputs.drivers.get_mut(&world::DRIVER).expect("there");
                view.listing = Listing::Unanswered { since: world::at(-5), reason: "it hangs".into() };
            }
            inputs
        })
}

fn place(inputs: &mut Inputs, name: &AgentName, agent: &Agent) {
    let declared = DeclaredAgent { spec: agent.spec.clone(), origins: BTreeMap::new(), clone_of: None };
    if let Some((proof, standing, protect)) = agent.claim {
        world::claim(inputs, name, &declared, proof);
        let claim = inputs.claims.get_mut(name).expect("just written");
        claim.standing = standing;
        claim.protect = protect;
        claim.birth.image = "a".into();
        claim.asleep = agent.asleep;
        claim.created_at = world::at(-250);
        if let Some((action, same_life)) = agent.operation {
            let operation = Operation {
                id: OperationId::generate(),
                agent: name.clone(),
                driver: world::DRIVER,
                action,
                snapshot: None,
                started_at: world::at(-10),
                deadline: world::at(50),
                life: if same_life { inputs.life } else { Default::default() },
            };
            inputs.operations.insert(name.clone(), operation);
        }
        if let Some(heard) = &agent.session {
            world::connect(inputs, name, &declared);
            let session = inputs.sessions.get_mut(name).expect("just connected");
            session.connected = heard.connected;
            session.last_seen = world::at(-heard.silent_for);
            session.busy = heard.busy;
            session.active_at = world::at(-heard.quiet_for);
            session.services.values_mut().for_each(|service| service.state = heard.service);
            session.problems = heard.problem.then(|| "the disk is full".to_owned()).into_iter().collect();
        }
        if let (Some((outcome, ago)), Some((task, spec))) = (&agent.task, agent.spec.tasks.first_key_value()) {
            let claim = inputs.claims[name].id;
            let task = FileTask {
                id: TaskId::generate(),
                name: task.clone(),
                digest: spec.digest(),
                claim,
                due: None,
                accepted_at: world::at(-ago),
                ended_at: outcome.as_ref().map(|_| world::at(-ago / 2)),
                outcome: outcome.clone(),
            };
            inputs.tasks.insert(name.clone(), vec![task]);
        }
    }
    if let Some((state, bearing, small)) = agent.instance {
        let nonce = match bearing {
            Bearing::Ours => inputs.claims.get(name).map(|claim| claim.nonce.clone()),
            Bearing::Another => Some(Nonce::from_text("another")),
            Bearing::Unreadable => None,
        };
        let sizes =
            Sizes { memory: if small { ByteSize::from_mib(256) } else { agent.spec.memory }, ..Sizes::of(&agent.spec) };
        let instance = name.as_str().parse().expect("a name");
        let observed = Observed {
            instance: Instance { name: instance, state, nonce, sizes: Some(sizes), snapshots: None },
            since: world::at(-30),
        };
        world::instances(inputs).insert(observed.instance.name.clone(), observed);
    }
    if agent.work {
        inputs.work.insert(name.clone());
    }
    if let Some(ago) = agent.backoff {
        let backoff = vm_agent_plan::after_failure(name, None, None, "it failed".into(), 0.5, world::at(-ago));
        inputs.backoffs.insert(name.clone(), Backoff { not_before: world::at(10 - ago), ..backoff });
    }
    if let Some(change) = &agent.override_ {
        inputs.overrides.push(Override {
            id: vm_agent_schemas::ids::OverrideId::generate(),
            agent: name.clone(),
            change: change.clone(),
            author: "ana".into(),
            reason: None,
            created_at: world::at(-100),
            expires_at: None,
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn the_same_inputs_give_the_same_plan(inputs in any_world()) {
        let (one, two) = (plan(&inputs), plan(&inputs.clone()));
        prop_assert_eq!(serde_json::to_string(&one).unwrap(), serde_json::to_string(&two).unwrap());
    }

    /// Nothing is deleted without claim, proof, knowledge and permission.
    #[test]
    fn deletions_are_claimed_proven_known_and_permitted(inputs in any_world()) {
        let plan = plan(&inputs);
        for step in plan.ready().filter(|step| step.action == StepAction::Destroy) {
            let claim = inputs.claims.get(&step.agent);
            prop_assert!(claim.is_some(), "{} has no claim", step.agent);
            let claim = claim.unwrap();
            prop_assert!(!claim.protect, "{} is protected", step.agent);
            let Listing::Seen(seen) = &inputs.drivers[&world::DRIVER].listing else {
                return Err(TestCaseError::fail("the driver does not answer"));
            };
            let observed = &seen[&claim.instance];
            prop_assert!(observed.instance.state != InstanceState::Unknown);
            prop_assert!(observed.instance.nonce.as_ref().is_none_or(|nonce| *nonce == claim.nonce));
            prop_assert!(observed.instance.nonce.is_some()
                    || matches!(claim.proof, Proof::Watched { life: Life(1) } | Proof::Confirmed),
                "nobody proved it");
            let dismissed = inputs.overrides.iter().any(|o| {
                o.agent == step.agent && o.change == Change::Presence(Presence::Absent)
            });
            let told = dismissed || inputs.mode == Mode::Destroy;
            prop_assert!(told || inputs.fleet.prune == Prune::Auto, "nobody said that it may go");
        }
    }

    /// Ignorance makes nothing: no step touches an instance that nothing is known of.
    #[test]
    fn nothing_touches_what_is_unknown(inputs in any_world()) {
        let plan = plan(&inputs);
        for step in plan.ready().filter(|step| step.action.on_instance().is_some() || step.action == StepAction::Forget) {
            match &inputs.drivers[&world::DRIVER].listing {
                Listing::Unanswered { .. } => prop_assert!(false, "{:?} while the driver does not answer", step),
                Listing::Seen(seen) => {
                    let state = seen.get(step.agent.as_str()).map(|observed| observed.instance.state);
                    let foreign = seen.get(step.agent.as_str()).is_some_and(|observed| {
                        let claim = inputs.claims.get(&step.agent);
                        claim.is_none_or(|c| observed.instance.nonce.as_ref().is_some_and(|nonce| *nonce != c.nonce))
                    });
                    if step.action != StepAction::Forget {
                        prop_assert!(!foreign, "{:?} on a foreign instance", step);
                        prop_assert!(state != Some(InstanceState::Unknown), "{:?}", step);
                    }
                }
            }
        }
    }

    /// No agent has two steps at once, and no driver more than its lane bears.
    #[test]
    fn lanes_and_agents_are_respected(inputs in any_world()) {
        let plan = plan(&inputs);
        let mut under_way: Vec<&AgentName> = inputs.operations.keys().filter(|a| inputs.operation(a).is_some()).collect();
        for step in plan.ready().filter(|step| step.action.on_instance().is_some()) {
            prop_assert!(!under_way.contains(&&step.agent), "{} has two steps", step.agent);
            under_way.push(&step.agent);
        }
        let lanes = inputs.drivers[&world::DRIVER].capabilities.lanes as usize;
        let before = inputs.operations.keys().filter(|a| inputs.operation(a).is_some()).count();
        prop_assert!(under_way.len() <= lanes.max(before), "{} steps in {lanes} lanes", under_way.len());
    }

    /// Nothing comes up before what it depends on is so far.
    #[test]
    fn dependencies_come_first(inputs in any_world()) {
        let plan = plan(&inputs);
        for step in plan.ready().filter(|s| matches!(s.action, StepAction::Create | StepAction::Start)) {
            for (needed, until) in &inputs.fleet.agents[&step.agent].spec.depends_on.0 {
                let needed = plan.agent(needed).expect("it is declared, or claimed");
                let healthy = needed.health == Health::Healthy;
                let once = |class: &vm_agent_schemas::plan::Drift| class.path == "tasks.setup";
                let so_far = match until {
                    Until::Started => needed.observed == Some(InstanceState::Running),
                    Until::Healthy => healthy,
                    Until::Completed => (healthy || needed.rests.is_some()) && !needed.drift.iter().any(once),
                };
                let sleeps = needed.rests == Some(Rest::Idle) && *until != Until::Completed;
                prop_assert!(so_far || sleeps, "{} needs {:?}", step.agent, needed);
            }
        }
    }

    /// Outside all windows nothing takes a running machine down but what a person says, and rest.
    #[test]
    fn nothing_that_runs_is_disturbed_outside_the_windows(inputs in any_world()) {
        let mut inputs = inputs;
        let closed = Window { cron: "0 7 * * *".parse().expect("right"), lasts: Span::from_secs(1800) };
        Arc::make_mut(&mut inputs.fleet).windows = vec![closed];
        inputs.mode = Mode::Up;
        let plan = plan(&inputs);
        for step in plan.ready().filter(|step| step.disturbs.is_some()) {
            let said = inputs.overrides.iter().any(|said| said.agent == step.agent);
            let rests = plan.agent(&step.agent).is_some_and(|agent| agent.rests.is_some());
            prop_assert!(said || rests, "{step:?}");
        }
    }

    /// What is not to be corrected yields no step.
    #[test]
    fn what_is_warned_of_or_ignored_yields_no_step(inputs in any_world()) {
        let inputs = Inputs { mode: Mode::Up, ..inputs };
        let plan = plan(&inputs);
        for step in &plan.steps {
            let Some(agent) = plan.agent(&step.agent).filter(|agent| agent.wanted.is_some()) else { continue };
            let spec = &agent.wanted.as_ref().expect("just looked").spec;
            let left = |field| spec.drift.get(&field).is_some_and(|policy| *policy != DriftPolicy::Correct);
            let said = inputs.overrides.iter().any(|said| said.agent == step.agent);
            let restarts = plan.steps.iter().any(|other| {
                other.agent == step.agent && other.cost == vm_agent_schemas::plan::Cost::Restart
            });
            match &step.action {
                StepAction::Task { .. } => prop_assert!(!left(DriftField::Tasks)),
                StepAction::Configure => prop_assert!(!left(DriftField::Provisioning)),
                StepAction::Resize { to } => {
                    let sizes = inputs.drivers[&world::DRIVER].capabilities.sizes;
                    prop_assert!(sizes && !(left(DriftField::Cpus) && left(DriftField::Memory)), "{to:?}");
                    prop_assert!(!left(DriftField::Memory) || to.memory != spec.memory || !step.reason.contains("memory"));
                }
                // What others did to its power; a machine that we stopped comes up again.
                StepAction::Start if left(DriftField::Power) && !said && !restarts => {
                    let claim = &inputs.claims[&step.agent];
                    let on_its_way = matches!(agent.observed, Some(InstanceState::Starting | InstanceState::Stopping));
                    let by_us = claim.standing == Standing::Down || claim.proof == Proof::Pending || on_its_way;
                    prop_assert!(by_us && agent.observed != Some(InstanceState::Suspended), "{:?}", step);
                }
                StepAction::Stop if left(DriftField::Power) && !said && !restarts => {
                    prop_assert!(agent.rests.is_some(), "{:?}", step);
                }
                StepAction::Destroy => {
                    prop_assert!(!left(DriftField::Image) || !step.reason.contains("image"), "{:?}", step);
                }
                _ => {}
            }
            let ignored = |class| agent.drift.iter().any(|drift| drift.class == class);
            for (field, class) in [(DriftField::Cpus, DriftClass::Cpus), (DriftField::Tasks, DriftClass::Task)] {
                prop_assert!(spec.drift.get(&field) != Some(&DriftPolicy::Ignore) || !ignored(class));
            }
        }
    }

    /// However many steps begin, machines never take more of the host than they may, unless they did.
    #[test]
    fn what_comes_up_fits_on_the_host(inputs in any_world()) {
        let mut inputs = inputs;
        inputs.operations.clear();
        let limits = [
            inputs.fleet.limits.cpus.map(u64::from),
            inputs.host.map(|host| host.memory.bytes() - host.memory.bytes() / 10),
        ];
        for _ in 0..10 {
            let before = taken(&mut inputs);
            world::carry_out(&mut inputs);
            let after = taken(&mut inputs);
            for ((limit, before), after) in limits.into_iter().zip(before).zip(after) {
                prop_assert!(limit.is_none_or(|limit| after <= limit.max(before)), "{after} of {limit:?}");
            }
        }
    }

    /// Noted and carried out, any world comes to rest.
    #[test]
    fn any_world_comes_to_rest(inputs in any_world()) {
        let mut inputs = inputs;
        inputs.operations.clear();
        inputs.fuse = Fuse::Closed { since: inputs.now };
        world::converge(&mut inputs);
        let left = plan(&inputs);
        prop_assert!(left.ready().next().is_none());
        prop_assert!(upkeep(&inputs, &left).is_empty());
    }

    /// Carried out until nothing may begin, a plan has only steps left that wait for somebody else.
    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(inputs in any_world()) {
        let mut inputs = inputs;
        // Operations end, backoffs pass, and the fuse is whole: what remains is up to the plan alone.
        inputs.operations.clear();
        inputs.backoffs.clear();
        inputs.fuse = Fuse::Closed { since: inputs.now };
        let mut rounds = 0;
        while world::carry_out(&mut inputs) > 0 {
            rounds += 1;
            prop_assert!(rounds < 200, "it never comes to rest: {:?}", plan(&inputs).steps);
        }
        for step in plan(&inputs).steps {
            let outside = |reason: &WaitsFor| !matches!(reason, WaitsFor::Lane { .. } | WaitsFor::Backoff { .. });
            prop_assert!(step.waits_for.iter().all(outside), "{:?}", step);
        }
    }

    /// A wanted fleet in a world that hides nothing comes up completely, and then nothing is left.
    #[test]
    fn an_undisturbed_fleet_comes_up_completely(agents in prop::collection::vec(any_spec(), 1..12)) {
        let mut fleet = Fleet::default();
        for (index, spec) in agents.into_iter().enumerate() {
            fleet.agents.insert(name(index), Arc::new(DeclaredAgent { spec, origins: BTreeMap::new(), clone_of: None }));
        }
        let settled = world::settled(world::inputs(fleet));
        let plan = plan(&settled);
        prop_assert!(plan.is_empty(), "{:?}", plan.steps);
        for drift in plan.agents.iter().flat_map(|agent| &agent.drift) {
            prop_assert!(drift.policy != DriftPolicy::Correct, "{:?}", drift);
        }
    }

    /// Written down, what the records lack is lacking no more.
    #[test]
    fn upkeep_is_done_once(inputs in any_world()) {
        let mut inputs = inputs;
        // Twice at most: with the end of an interrupted operation, what it may have hidden can be told.
        for _ in 0..2 {
            for item in upkeep(&inputs, &plan(&inputs)) {
                world::note(&mut inputs, item);
            }
        }
        let again = upkeep(&inputs, &plan(&inputs));
        prop_assert!(again.is_empty(), "{again:?}");
        // Nor does it come back when nothing but time goes by.
        inputs.now = world::at(3601);
        let claims = |item: &Upkeep| match item {
            // Agents fall asleep because time goes by.
            Upkeep::Learnt(_, learnt) => learnt.asleep.is_none(),
            item => matches!(item, Upkeep::Crashed(_)),
        };
        let later = upkeep(&inputs, &plan(&inputs));
        prop_assert!(!later.iter().any(claims), "{later:?}");
    }

    /// Between now and the time that it is said to change by itself, a plan does not change by itself.
    #[test]
    fn a_plan_holds_until_it_is_said_to_change(inputs in any_world(), share in 0.0..1.0f64) {
        let first = plan(&inputs);
        let mut later = inputs.clone();
        later.fuse = first.fuse.clone();
        let base = plan(&later);
        let until = wake_at(&later).unwrap_or_else(|| world::at(100_000));
        let span = until.duration_since(later.now).as_millis();
        later.now += std::time::Duration::from_millis(((span - 1).max(0) as f64 * share) as u64);
        let then = plan(&later);
        prop_assert_eq!(&base.steps, &then.steps);
        prop_assert_eq!(&base.agents, &then.agents);
    }

    /// Where nothing differs, nothing is done.
    #[test]
    fn no_step_without_drift(inputs in any_world()) {
        let plan = plan(&inputs);
        let settled = |agent: &&AgentPlan| agent.drift.iter().all(|drift| drift.policy != DriftPolicy::Correct);
        for agent in plan.agents.iter().filter(settled) {
            prop_assert!(!plan.steps.iter().any(|step| step.agent == agent.name), "{agent:?}");
        }
    }

    /// The first step of an agent never waits for a step before it.
    #[test]
    fn no_step_waits_for_one_that_is_not_there(inputs in any_world()) {
        let plan = plan(&inputs);
        let mut seen = std::collections::BTreeSet::new();
        for step in &plan.steps {
            if seen.insert(&step.agent) {
                prop_assert!(!step.waits_for.contains(&WaitsFor::EarlierStep), "{step:?}");
            }
        }
    }

    /// However a fleet file shrinks, `prune: auto` lets only a few go at once unasked.
    #[test]
    fn mass_removal_waits_for_a_yes(total in 1..40usize, keep in 0..40usize) {
        let keep = keep.min(total);
        let mut inputs = world::settled(world::fleet_of(total));
        let agents = inputs.fleet.agents.iter().take(keep).map(|(n, a)| (n.clone(), Arc::clone(a))).collect();
        inputs.fleet = Arc::new(Fleet { agents, prune: Prune::Auto, ..Fleet::default() });
        let first = plan(&inputs);
        let gone = total - keep;
        let removals = first.ready().filter(|step| step.action == StepAction::Destroy).count();
        if gone > 2.max(total * 30 / 100) {
            prop_assert_eq!(removals, 0);
            prop_assert_eq!(first.approvals.len(), gone);
            inputs.approvals = yes_to(&first);
            while world::carry_out(&mut inputs) > 0 {}
            prop_assert_eq!(inputs.claims.len(), keep);
        } else {
            prop_assert_eq!(removals, gone);
        }
    }
}

proptest! {
    // Each of these lives through many moments.
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Work wakes an agent that sleeps, in a world where nothing stands against it.
    #[test]
    fn an_agent_that_sleeps_wakes_for_work_and_sleeps_again(spec in any_spec(), waits in 0..400i64) {
        let spec = AgentSpec {
            power: PowerState::Running,
            ttl: None,
            idle: Some(Idle { after: Span::from_secs(300) }),
            ..spec
        };
        let mut fleet = Fleet::default();
        fleet.agents.insert(name(0), Arc::new(DeclaredAgent { spec, origins: BTreeMap::new(), clone_of: None }));
        let mut inputs = world::inputs(fleet);
        world::converge(&mut inputs);
        // Not at the moment of one of its tasks.
        while !inputs.claims[&name(0)].asleep || runs(&inputs) {
            world::pass_time(&mut inputs, 7);
            world::converge(&mut inputs);
            prop_assume!(inputs.now < world::at(1000));
        }
        world::pass_time(&mut inputs, waits);
        inputs.work.insert(name(0));
        world::converge(&mut inputs);
        prop_assert!(runs(&inputs) && !inputs.claims[&name(0)].asleep);
    }

    /// Whichever way the clock goes, whenever the runtime goes and comes back and however long tasks run, no
    /// moment, no session and no success runs a task twice.
    #[test]
    fn no_moment_runs_a_task_twice(events in prop::collection::vec(any_event(), 1..60)) {
        let spec = AgentSpec { tasks: EVERYTHING.tasks.clone(), ..AgentSpec::default() };
        let tasks = spec.tasks.clone();
        let mut fleet = Fleet::default();
        let agent = Arc::new(DeclaredAgent { spec, origins: BTreeMap::new(), clone_of: None });
        fleet.agents.insert(name(0), Arc::clone(&agent));
        let mut inputs = world::inputs(fleet);
        let mut history = History::default();
        history.live(&mut inputs);
        for event in events {
            match event {
                Event::Time(jump) => {
                    world::pass_time(&mut inputs, jump);
                    if !(0..200).contains(&jump) {
                        inputs.resumed_at = Some(inputs.now);
                    }
                }
                Event::Lost => inputs.sessions.get_mut(&name(0)).expect("heard").connected = false,
                Event::Back => world::connect(&mut inputs, &name(0), &agent),
                Event::Unfinished(task) => history.unfinish(&mut inputs, task),
            }
            history.live(&mut inputs);
        }
        for (task, spec) in tasks {
            let runs: Vec<&FileTask> = history.runs.values().filter(|run| run.name == task).collect();
            let mut moments: Vec<_> = runs.iter().map(|run| run.due).collect();
            moments.sort();
            let all = moments.len();
            moments.dedup();
            prop_assert_eq!(moments.len(), all, "{} ran twice for a moment: {:?}", task, runs);
            let TaskWhen::Cron(when) = &spec.when else { continue };
            for pair in runs.windows(2) {
                let (earlier, later) = (pair[0].accepted_at, pair[1].accepted_at);
                let moment = when.cron.next_after(earlier);
                prop_assert!(moment.is_some_and(|moment| moment <= later), "{task} at {earlier} and at {later}");
            }
        }
    }
}

/// What happens to an agent with tasks.
#[derive(Debug, Clone)]
enum Event {
    Time(i64),
    Lost,
    Back,
    /// The latest run of one of the tasks goes on until the runtime comes back.
    Unfinished(usize),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1..200i64).prop_map(Event::Time),
        1 => (-4000..4000i64).prop_map(Event::Time),
        1 => Just(Event::Lost),
        2 => Just(Event::Back),
        2 => (0..8usize).prop_map(Event::Unfinished),
    ]
}

/// Every run that there ever was, in the order in which they were accepted.
#[derive(Default)]
struct History {
    runs: BTreeMap<TaskId, FileTask>,
}

impl History {
    /// Lets everything happen that is to happen now.
    fn live(&mut self, inputs: &mut Inputs) {
        for _ in 0..3 {
            world::converge(inputs);
            let known = inputs.tasks.get(&name(0)).into_iter().flatten();
            self.runs.extend(known.map(|run| (run.id, run.clone())));
        }
    }

    fn unfinish(&self, inputs: &mut Inputs, task: usize) {
        let Some(name_of) = EVERYTHING.tasks.keys().nth(task) else { return };
        let followed = EVERYTHING.tasks.values().any(|task| task.when.after() == Some(name_of));
        let runs = inputs.tasks.get_mut(&name(0)).into_iter().flatten();
        // What others have followed has happened.
        if let Some(run) = runs.filter(|run| run.name == *name_of && !followed).last() {
            (run.outcome, run.ended_at) = (None, None);
        }
    }
}

/// The processors and the memory that all machines take which run, or may.
fn taken(inputs: &mut Inputs) -> [u64; 2] {
    let standing = |inputs: &Inputs, name: &str| {
        inputs
            .claims
            .values()
            .find(|claim| claim.instance.as_str() == name)
            .map(|claim| (claim.standing, claim.nonce.clone()))
    };
    if let Listing::Unanswered { .. } = &inputs.drivers[&world::DRIVER].listing {
        return [0, 0];
    }
    let seen = world::instances(inputs).clone();
    let takes = seen.values().filter(|observed| match observed.instance.state {
        InstanceState::Starting | InstanceState::Running | InstanceState::Stopping => true,
        InstanceState::Unknown => standing(inputs, observed.instance.name.as_str()).is_some_and(|(standing, nonce)| {
            standing == Standing::Up && observed.instance.nonce.as_ref().is_none_or(|it| *it == nonce)
        }),
        _ => false,
    });
    takes
        .filter_map(|observed| observed.instance.sizes)
        .fold([0, 0], |[cpus, memory], sizes| [cpus + u64::from(sizes.cpus), memory + sizes.memory.bytes()])
}

/// Whether the machine of the only agent runs.
fn runs(inputs: &Inputs) -> bool {
    plan(inputs).agents[0].observed == Some(InstanceState::Running)
}

fn yes_to(plan: &vm_agent_schemas::plan::Plan) -> BTreeMap<Digest, AgentName> {
    plan.approvals.iter().map(|request| (request.id.clone(), request.agent.clone())).collect()
}

#[test]
fn an_approval_for_one_life_of_a_machine_is_void_for_the_next() {
    let mut inputs = world::settled(world::inputs_of("agents: {web: {image: a}}"));
    inputs.fleet = world::inputs_of("agents: {web: {image: b}}").fleet;
    let asked = plan(&inputs);
    assert_eq!(asked.approvals.len(), 1);
    inputs.approvals = yes_to(&asked);
    assert!(plan(&inputs).ready().any(|step| step.action == StepAction::Destroy));
    let web: AgentName = "web".parse().unwrap();
    let claim = inputs.claims.get_mut(&web).unwrap();
    claim.incarnation = claim.incarnation.next();
    assert!(!plan(&inputs).ready().any(|step| step.action == StepAction::Destroy));
}

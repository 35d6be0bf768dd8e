//! What holds for every plan, whatever the world looks like.

mod world;

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

use vm_agent_plan::{FileTask, Inputs, Listing, Mode, Observed, Upkeep, plan, upkeep, wake_at};
use vm_agent_schemas::fleet::{AgentSpec, DeclaredAgent, DependsOn, Fleet, PowerState, Prune, RestartPolicy, Until};
use vm_agent_schemas::ids::{Digest, Life, Nonce, OperationId};
use vm_agent_schemas::intent::{Change, Override, Presence};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, Backoff, Instance, InstanceState, Operation, Proof, Standing};
use vm_agent_schemas::plan::{Fuse, Health, StepAction, WaitsFor};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::TaskOutcome;

/// One agent of a random world.
#[derive(Debug, Clone)]
struct Agent {
    declared: bool,
    spec: AgentSpec,
    claim: Option<(Proof, Standing, bool)>,
    /// State, whose nonce it bears, and whether it is smaller than wanted.
    instance: Option<(InstanceState, Bearing, bool)>,
    session: Option<(bool, i64)>,
    operation: Option<(Action, bool)>,
    backoff: Option<i64>,
    task: Option<Option<TaskOutcome>>,
    override_: Option<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bearing {
    Ours,
    Another,
    Unreadable,
}

fn any_spec() -> impl Strategy<Value = AgentSpec> {
    let restart = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    (any::<bool>(), 1..3u32, any::<bool>(), restart, prop::bool::weighted(0.2), any::<bool>()).prop_map(
        |(runs, cpus, image, restart, protect, task)| {
            let mut spec = AgentSpec {
                power: if runs { PowerState::Running } else { PowerState::Stopped },
                cpus,
                image: if image { "a".into() } else { "b".into() },
                restart,
                protect,
                ..AgentSpec::default()
            };
            if task {
                let text = "agents: {x: {tasks: {setup: {exec: make}}}}";
                let parsed = vm_agent_schemas::fleet::parse("fleet.yaml", text).expect("right");
                spec.tasks = parsed.agents.values().next().expect("one").spec.tasks.clone();
            }
            spec
        },
    )
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
    ];
    (
        prop::bool::weighted(0.7),
        any_spec(),
        prop::option::weighted(0.7, (proof, standing, prop::bool::weighted(0.2))),
        prop::option::weighted(0.7, (any_state(), bearing, prop::bool::weighted(0.2))),
        prop::option::weighted(0.6, (any::<bool>(), 0..200i64)),
        prop::option::weighted(0.2, (action, any::<bool>())),
        prop::option::weighted(0.2, 0..120i64),
        prop::option::weighted(0.4, outcome),
        prop::option::weighted(0.2, change),
    )
        .prop_map(|(declared, spec, claim, instance, session, operation, backoff, task, override_)| Agent {
            declared,
            spec,
            claim,
            instance,
            session,
            operation,
            backoff,
            task,
            override_,
        })
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
        any::<[bool; 4]>(),
        prop::collection::vec((0..12usize, 0..12usize), 0..6),
    )
        .prop_map(|(agents, prune, mode, answers, lanes, [sizes, images, live, outlive], edges)| {
            let mut fleet = Fleet { prune, ..Fleet::default() };
            for (index, agent) in agents.iter().enumerate().filter(|(_, agent)| agent.declared) {
                let mut spec = agent.spec.clone();
                // Only on agents with a smaller number, so that there is no cycle.
                let needed = edges.iter().filter(|(from, to)| *from == index && to < from);
                spec.depends_on = DependsOn(needed.map(|(_, to)| (name(*to), Until::Healthy)).collect());
                fleet.agents.insert(name(index), Arc::new(DeclaredAgent { spec, origins: BTreeMap::new() }));
            }
            let mut inputs = world::inputs(fleet);
            inputs.mode = mode;
            let view = inputs.drivers.get_mut(&world::DRIVER).expect("there");
            view.capabilities.lanes = lanes;
            view.capabilities.sizes = sizes;
            view.capabilities.images = images;
            view.capabilities.resize_running = live;
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
    let declared = DeclaredAgent { spec: agent.spec.clone(), origins: BTreeMap::new() };
    if let Some((proof, standing, protect)) = agent.claim {
        world::claim(inputs, name, &declared, proof);
        let claim = inputs.claims.get_mut(name).expect("just written");
        claim.standing = standing;
        claim.protect = protect;
        claim.birth.image = "a".into();
        if let Some((action, same_life)) = agent.operation {
            let operation = Operation {
                id: OperationId::generate(),
                agent: name.clone(),
                driver: world::DRIVER,
                action,
                started_at: world::at(-10),
                deadline: world::at(50),
                life: if same_life { inputs.life } else { Default::default() },
            };
            inputs.operations.insert(name.clone(), operation);
        }
        if let Some((connected, ago)) = agent.session {
            world::connect(inputs, name, &declared);
            let session = inputs.sessions.get_mut(name).expect("just connected");
            session.connected = connected;
            session.last_seen = world::at(-ago);
        }
        if let (Some(outcome), Some((task, spec))) = (&agent.task, agent.spec.tasks.first_key_value()) {
            let claim = inputs.claims[name].id;
            let task = FileTask {
                name: task.clone(),
                digest: spec.digest(),
                claim,
                accepted_at: world::at(-20),
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
        let sizes = vm_agent_schemas::observe::Sizes {
            memory: if small { ByteSize::from_mib(256) } else { agent.spec.memory },
            ..vm_agent_schemas::observe::Sizes::of(&agent.spec)
        };
        let instance = name.as_str().parse().expect("a name");
        let observed =
            Observed { instance: Instance { name: instance, state, nonce, sizes: Some(sizes) }, since: world::at(-30) };
        world::instances(inputs).insert(observed.instance.name.clone(), observed);
    }
    if let Some(ago) = agent.backoff {
        let backoff = vm_agent_plan::after_failure(name, None, "it failed".into(), 0.5, world::at(-ago));
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

    /// Nothing comes up before what it depends on is Healthy.
    #[test]
    fn dependencies_come_first(inputs in any_world()) {
        let plan = plan(&inputs);
        for step in plan.ready().filter(|s| matches!(s.action, StepAction::Create | StepAction::Start)) {
            for needed in inputs.fleet.agents[&step.agent].spec.depends_on.0.keys() {
                let health = plan.agent(needed).map(|agent| agent.health);
                prop_assert_eq!(health, Some(Health::Healthy), "{} needs {}", step.agent, needed);
            }
        }
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
            fleet.agents.insert(name(index), Arc::new(DeclaredAgent { spec, origins: BTreeMap::new() }));
        }
        let settled = world::settled(world::inputs(fleet));
        let plan = plan(&settled);
        prop_assert!(plan.is_empty(), "{:?}", plan.steps);
        for agent in &plan.agents {
            prop_assert!(agent.drift.is_empty(), "{:?}", agent);
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
        let claims = |item: &Upkeep| matches!(item, Upkeep::Learnt(..) | Upkeep::Crashed(_));
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
        for agent in plan.agents.iter().filter(|agent| agent.drift.is_empty()) {
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

//! A model of the world that carries plans out: what instances, runtimes and tasks would do.

#![allow(dead_code, unreachable_pub, reason = "each user of this module needs a part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use vm_agent_plan::{
    DriverView, FileTask, Inputs, Listing, Observed, SessionSeen, SetBack, Upkeep, after_failure, configuration_for,
    effective, note_run, plan, upkeep,
};
use vm_agent_schemas::fleet::{DeclaredAgent, DriverName, Fleet, parse};
use vm_agent_schemas::ids::{ClaimId, ErrandId, Incarnation, Nonce, TaskId};
use vm_agent_schemas::names::{AgentName, SnapshotName};
use vm_agent_schemas::observe::{
    Birth, Capabilities, Claim, CloneSupport, Deadlines, Instance, InstanceState, MountSupport, Proof, SnapshotSupport,
    Standing, Undone,
};
use vm_agent_schemas::plan::{Step, StepAction};
use vm_agent_schemas::snapshot::{Ask, Cause, Errand, Snapshot};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{ServiceReport, ServiceState, TaskOutcome};

/// The driver of every agent in the model.
pub const DRIVER: DriverName = DriverName::Qemu;

/// A time in the life of the model.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a time of this century")
}

/// A driver that can do everything, and bears four steps at a time.
pub fn capabilities() -> Capabilities {
    let minute = Span::from_secs(60);
    Capabilities {
        sizes: true,
        images: true,
        resize_running: false,
        suspend: false,
        snapshots: SnapshotSupport::Live,
        clones: CloneSupport::None,
        warm: false,
        labels: false,
        mounts: MountSupport::Any,
        uses_host: true,
        calls_outlive_controller: true,
        lanes: 4,
        host_address: None,
        deadlines: Deadlines {
            list: minute,
            create: minute,
            start: minute,
            stop: minute,
            resize: minute,
            destroy: minute,
            snapshot: minute,
            restore: minute,
            connect: minute,
        },
    }
}

/// Inputs with a driver that sees nothing, and this fleet.
pub fn inputs(fleet: Fleet) -> Inputs {
    let listing = Listing::Seen(BTreeMap::new());
    let view = DriverView { capabilities: capabilities(), listing, looked_at: Some(at(0)) };
    Inputs { fleet: Arc::new(fleet), drivers: BTreeMap::from([(DRIVER, view)]), ..Inputs::empty(at(0)) }
}

/// Inputs with the fleet of this file.
pub fn inputs_of(text: &str) -> Inputs {
    inputs(parse("fleet.yaml", text).expect("the test's fleet file is right"))
}

/// Inputs with so many agents, none of which exists.
pub fn fleet_of(agents: usize) -> Inputs {
    inputs_of(&format!("agents:\n  agent: {{replicas: {agents}, memory: 2G, env: {{A: b}}, labels: {{team: web}}}}\n"))
}

/// The inputs when every plan has been carried out.
pub fn settled(mut inputs: Inputs) -> Inputs {
    for view in inputs.drivers.values_mut() {
        view.capabilities.lanes = u32::MAX;
    }
    while carry_out(&mut inputs) > 0 {}
    inputs
}

/// Plans, carries out every step that may begin, and says how many there were.
pub fn carry_out(inputs: &mut Inputs) -> usize {
    let plan = plan(inputs);
    inputs.fuse = plan.fuse.clone();
    let ready: Vec<Step> = plan.ready().cloned().collect();
    for step in &ready {
        act(inputs, step);
    }
    ready.len()
}

/// What one step does to the world.
pub fn act(inputs: &mut Inputs, step: &Step) {
    let wanted = effective(&inputs.fleet, &inputs.overrides, inputs.now).wanted.get(&step.agent).cloned();
    match (&step.action, wanted) {
        (StepAction::Create, Some(agent)) => {
            claim(inputs, &step.agent, &agent, Proof::Confirmed);
            let instance = inputs.claims[&step.agent].instance.clone();
            instances(inputs).remove(&instance);
            observe(inputs, &step.agent, InstanceState::Running);
            connect(inputs, &step.agent, &agent);
        }
        (StepAction::Start, Some(agent)) => {
            set_standing(inputs, &step.agent, Standing::Up);
            let claim = inputs.claims.get_mut(&step.agent).expect("only what is claimed is started");
            claim.birth.mounts.clone_from(&agent.spec.mounts);
            observe(inputs, &step.agent, InstanceState::Running);
            connect(inputs, &step.agent, &agent);
        }
        (StepAction::Resize { to }, Some(_)) => {
            let claim = inputs.claims.get_mut(&step.agent).expect("only what is claimed is resized");
            claim.birth.sizes = *to;
            observe_sizes(inputs, &step.agent);
        }
        (StepAction::Stop, _) => {
            set_standing(inputs, &step.agent, Standing::Down);
            observe(inputs, &step.agent, InstanceState::Stopped);
            inputs.sessions.remove(&step.agent);
        }
        (StepAction::Destroy | StepAction::Forget, _) => {
            let claim = inputs.claims.remove(&step.agent).expect("only what is claimed is deleted");
            if step.action == StepAction::Destroy {
                instances(inputs).remove(&claim.instance);
            }
            inputs.sessions.remove(&step.agent);
        }
        (StepAction::Configure, Some(agent)) => connect(inputs, &step.agent, &agent),
        (StepAction::Upgrade, _) => {
            let version = inputs.runtimes[&step.driver].clone();
            session(inputs, step.agent.as_str()).version = version;
        }
        (StepAction::Task { task, due }, Some(agent)) => {
            let claim = inputs.claims.get(&step.agent).expect("only what is claimed runs tasks");
            let digest = agent.spec.tasks.get(task).expect("the task is in the spec").digest();
            let outcome = is_up(inputs, &step.agent).then_some(TaskOutcome::Exited { code: 0 });
            let accepted = FileTask {
                id: TaskId::generate(),
                name: task.clone(),
                digest,
                claim: claim.id,
                due: *due,
                accepted_at: inputs.now,
                ended_at: outcome.is_some().then_some(inputs.now),
                outcome,
            };
            note_run(inputs.tasks.entry(step.agent.clone()).or_default(), accepted);
        }
        (StepAction::Suspend, _) => {
            set_standing(inputs, &step.agent, Standing::Down);
            observe(inputs, &step.agent, InstanceState::Suspended);
            inputs.sessions.remove(&step.agent);
        }
        (StepAction::Snapshot { name }, _) => snapshot(inputs, &step.agent, name),
        (StepAction::DropSnapshot { name }, _) => {
            inputs.snapshots.get_mut(&step.agent).expect("it has snapshots").remove(name);
        }
        (StepAction::Restore { to, stays_down }, Some(agent)) => restore(inputs, &step.agent, to, *stays_down, &agent),
        (action, None) => panic!("{action:?} needs a spec, and {} has none", step.agent),
    }
}

/// Takes a snapshot, as the first errand wants it that does.
fn snapshot(inputs: &mut Inputs, agent: &AgentName, name: &SnapshotName) {
    let claim = &inputs.claims[agent];
    let errands = &inputs.errands[agent];
    let cause = errands.iter().find_map(|errand| match &errand.ask {
        Ask::Take { name: wanted, cause, .. } if wanted == name => Some(cause.clone()),
        Ask::Restore { safety: Some(safety), to } if safety == name => Some(Cause::Restore { to: to.clone() }),
        _ => None,
    });
    let snapshot = Snapshot {
        name: name.clone(),
        agent: agent.clone(),
        claim: claim.id,
        cause: cause.expect("an errand asks for it"),
        comment: None,
        protect: false,
        taken_at: inputs.now,
        running: is_up(inputs, agent),
        suspended: false,
    };
    inputs.snapshots.entry(agent.clone()).or_default().insert(name.clone(), snapshot);
}

/// Brings a machine back to a snapshot.
fn restore(inputs: &mut Inputs, name: &AgentName, to: &SnapshotName, stays_down: bool, agent: &DeclaredAgent) {
    let taken_at = inputs.snapshots[name][to].taken_at;
    let claim = inputs.claims.get_mut(name).expect("only what is claimed goes back");
    claim.incarnation = claim.incarnation.next();
    claim.nonce = Nonce::from_text(format!("nonce-{}-of-{name}", claim.incarnation));
    claim.standing = if stays_down { Standing::Down } else { Standing::Up };
    claim.history.undone = Some(Undone { since: taken_at, until: inputs.now });
    let errands = inputs.errands.get_mut(name).expect("somebody asked");
    errands.retain(|errand| !matches!(&errand.ask, Ask::Restore { to: wanted, .. } if wanted == to));
    if stays_down {
        return observe(inputs, name, InstanceState::Stopped);
    }
    observe(inputs, name, InstanceState::Running);
    connect(inputs, name, agent);
}

/// Asks for something to be done with an agent's snapshots.
pub fn ask(inputs: &mut Inputs, agent: &str, ask: Ask) {
    let (agent, now) = (name(agent), inputs.now);
    let claim = inputs.claims[&agent].id;
    let until = now + SignedDuration::from_hours(1);
    let (id, by) = (ErrandId::generate(), "ann".to_owned());
    let errand = Errand { id, agent: agent.clone(), claim, ask, by, asked_at: now, until, tried: None, end: None };
    inputs.errands.entry(agent).or_default().push(errand);
}

/// Writes a claim for an agent.
pub fn claim(inputs: &mut Inputs, name: &AgentName, agent: &DeclaredAgent, proof: Proof) {
    let claim = Claim {
        id: ClaimId::generate(),
        fleet: inputs.fleet.name.clone(),
        agent: name.clone(),
        driver: DRIVER,
        instance: inputs.fleet.name.instance_of(name).expect("the name fits"),
        nonce: Nonce::from_text(format!("nonce-of-{name}")),
        incarnation: Incarnation(1),
        created_at: inputs.now,
        proof,
        standing: Standing::Up,
        left_in_mass: false,
        asleep: false,
        protect: agent.spec.protect,
        birth: Birth::of(&agent.spec),
        history: Default::default(),
    };
    inputs.claims.insert(name.clone(), claim);
}

/// Lets an agent's claimed instance be seen in a state.
pub fn observe(inputs: &mut Inputs, name: &AgentName, state: InstanceState) {
    let claim = inputs.claims.get(name).expect("the agent is claimed").clone();
    let known = instances(inputs).get(&claim.instance).and_then(|observed| observed.instance.sizes);
    let sizes = Some(known.unwrap_or(claim.birth.sizes));
    let instance = Instance { name: claim.instance.clone(), state, nonce: Some(claim.nonce), sizes, snapshots: None };
    let since = inputs.now;
    instances(inputs).insert(claim.instance, Observed { instance, since });
}

/// Lets a runtime be heard that works with the agent's configuration, and does what was queued for it.
pub fn connect(inputs: &mut Inputs, name: &AgentName, agent: &DeclaredAgent) {
    let works = ServiceReport { state: ServiceState::Running, restarts: 0, cpu_percent: 0.0, problem: None };
    let incarnation = inputs.claims[name].incarnation;
    let known = inputs.sessions.get(name).filter(|known| known.connected && known.incarnation == incarnation);
    let session = SessionSeen {
        incarnation,
        connected: true,
        connected_at: known.map_or(inputs.now, |known| known.connected_at),
        last_seen: inputs.now,
        version: known.map_or_else(|| "0.1.0".to_owned(), |known| known.version.clone()),
        stays: None,
        configured: Some(configuration_for(agent).digest),
        problems: Vec::new(),
        ailing: false,
        busy: false,
        active_at: inputs.now,
        tasks: 0,
        running: 0,
        streams: 0,
        services: agent.spec.services.keys().map(|service| (service.clone(), works.clone())).collect(),
    };
    inputs.sessions.insert(name.clone(), session);
    let now = inputs.now;
    for task in inputs.tasks.get_mut(name).into_iter().flatten().filter(|task| task.outcome.is_none()) {
        end(task, 0, now);
    }
}

/// Lets a run end with this exit code.
pub fn end(run: &mut FileTask, code: i32, now: Timestamp) {
    run.outcome = Some(TaskOutcome::Exited { code });
    run.ended_at = Some(now);
}

/// An agent's name.
pub fn name(text: &str) -> AgentName {
    text.parse().expect("the test's name is right")
}

/// The session of an agent.
pub fn session<'a>(inputs: &'a mut Inputs, agent: &str) -> &'a mut SessionSeen {
    inputs.sessions.get_mut(&name(agent)).expect("its runtime is heard")
}

/// Whether an agent's runtime can be given something to do.
pub fn is_up(inputs: &Inputs, agent: &AgentName) -> bool {
    inputs.sessions.get(agent).is_some_and(|session| session.connected)
}

/// Another fleet file, at the same place.
pub fn edit(inputs: &mut Inputs, text: &str) {
    inputs.fleet = inputs_of(text).fleet;
}

/// What time does by itself: runtimes that are connected go on being heard.
pub fn pass_time(inputs: &mut Inputs, seconds: i64) {
    inputs.now += SignedDuration::from_secs(seconds);
    let now = inputs.now;
    inputs.sessions.values_mut().filter(|session| session.connected).for_each(|session| session.last_seen = now);
}

/// Notes and carries out until nothing is left, and gives each step that was carried out.
pub fn converge(inputs: &mut Inputs) -> Vec<Step> {
    let mut carried_out = Vec::new();
    for _ in 0..200 {
        let before = plan(inputs);
        let items = upkeep(inputs, &before);
        if !items.is_empty() {
            items.into_iter().for_each(|item| note(inputs, item));
            continue;
        }
        inputs.fuse = before.fuse.clone();
        let ready: Vec<Step> = before.ready().cloned().collect();
        if ready.is_empty() {
            return carried_out;
        }
        ready.iter().for_each(|step| act(inputs, step));
        carried_out.extend(ready);
    }
    panic!("it never comes to rest: {:?}", plan(inputs).steps);
}

/// Everything that the model's driver sees.
pub fn instances(inputs: &mut Inputs) -> &mut BTreeMap<vm_agent_schemas::names::InstanceName, Observed> {
    match &mut inputs.drivers.get_mut(&DRIVER).expect("the model has its driver").listing {
        Listing::Seen(instances) => instances,
        Listing::Unanswered { .. } => panic!("the driver does not answer"),
    }
}

fn observe_sizes(inputs: &mut Inputs, name: &AgentName) {
    let claim = inputs.claims[name].clone();
    let observed = instances(inputs).get_mut(&claim.instance).expect("what is resized is seen");
    observed.instance.sizes = Some(claim.birth.sizes);
}

fn set_standing(inputs: &mut Inputs, name: &AgentName, standing: Standing) {
    inputs.claims.get_mut(name).expect("the agent is claimed").standing = standing;
}

/// Writes down one thing that the records lacked.
pub fn note(inputs: &mut Inputs, item: Upkeep) {
    match item {
        Upkeep::EndOverride(entry, _) => inputs.overrides.retain(|other| other.id != entry.id),
        Upkeep::EndPause(_) => inputs.pause = None,
        Upkeep::Crashed(agent) => {
            let before = inputs.backoffs.get(&agent);
            let backoff = after_failure(&agent, before, None, "it crashed".into(), 0.5, inputs.now);
            inputs.backoffs.insert(agent, backoff);
        }
        Upkeep::Learnt(agent, learnt) => {
            let claim = inputs.claims.get_mut(&agent).expect("the agent is claimed");
            *claim = learnt.applied_to(claim).expect("there is something to learn");
        }
        Upkeep::ForgetBackoff(agent) => drop(inputs.backoffs.remove(&agent)),
        Upkeep::Interrupted(operation) => drop(inputs.operations.remove(&operation.agent)),
        Upkeep::DropApproval(id) => drop(inputs.approvals.remove(&id)),
        Upkeep::Ask(agent, _, wish) => {
            ask(inputs, agent.as_str(), wish.ask);
            let errand = inputs.errands.get_mut(&agent).and_then(|open| open.last_mut()).expect("just asked");
            (errand.by, errand.until) = (wish.by, wish.until);
        }
        Upkeep::EndErrand(errand, _) => {
            inputs.errands.get_mut(&errand.agent).expect("it is open").retain(|other| other.id != errand.id);
        }
        Upkeep::SetBack(SetBack::Backoff(backoff)) => drop(inputs.backoffs.insert(backoff.agent.clone(), backoff)),
        Upkeep::SetBack(SetBack::Fuse(fuse)) => inputs.fuse = fuse,
        Upkeep::SetBack(SetBack::Override(entry)) => {
            let place = inputs.overrides.iter_mut().find(|other| other.id == entry.id);
            *place.expect("it is there") = *entry;
        }
        Upkeep::SetBack(SetBack::Pause(pause)) => inputs.pause = Some(pause),
    }
}

//! `kill -9` of the controller at any instant loses nothing and restarts nothing.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::layout::{LOCK_FILE, STOPPED_FILE};
use vm_agent_tests::e2e::{Fleet, LIMIT, Process, Records};

/// How often the controller is killed.
const KILLS: usize = 100;
/// Kills while the fleet is made for the first time; the others come while it is changed.
const FIRST_KILLS: usize = 30;
/// Latest instant of a kill after a change was asked for, in milliseconds: a controller starts, a file
/// is applied and the first steps end within less.
const LATEST: u64 = 400;
/// Most agents that are out of the file at once: fewer than `prune: auto` lets go.
const MOST_OUT: usize = 4;
/// Overrides the seed of the random numbers, to have a run again as it was.
const SEED_VARIABLE: &str = "VM_AGENT_TEST_SEED";

/// The fleet as its file says: agent-01 to agent-20.
struct Model {
    agents: BTreeMap<String, Wanted>,
}

#[derive(Clone, Copy)]
struct Wanted {
    declared: bool,
    running: bool,
    env: u32,
    /// What may be changed about it.
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Nothing.
    Untouched,
    /// Its environment, which its runtime takes on without a restart.
    Env,
    /// Everything.
    Any,
}

impl Model {
    fn new() -> Self {
        let kind = |n| match n {
            1..=6 => Kind::Untouched,
            7..=11 => Kind::Env,
            _ => Kind::Any,
        };
        let wanted = |n| Wanted { declared: true, running: true, env: 0, kind: kind(n) };
        Self { agents: (1..=20).map(|n| (format!("agent-{n:02}"), wanted(n))).collect() }
    }

    fn file(&self) -> String {
        let mut text = "defaults: {driver: local}\nprune: auto\nlimits: {parallelism: 4}\nagents:\n".to_owned();
        for (name, wanted) in self.agents.iter().filter(|(_, wanted)| wanted.declared) {
            let power = if wanted.running { "running" } else { "stopped" };
            let _ = writeln!(text, "  {name}: {{power: {power}, env: {{ROUND: \"{}\"}}}}", wanted.env);
        }
        text
    }

    fn change(&mut self, random: &mut Rng) {
        let mut out = self.agents.values().filter(|wanted| !wanted.declared).count();
        for wanted in self.agents.values_mut() {
            // Three of four stay as they are.
            match (wanted.kind, random.u8(..12)) {
                (Kind::Untouched, _) | (_, 3..) => {}
                (Kind::Env, _) | (Kind::Any, 0) => wanted.env += 1,
                (Kind::Any, 1) => wanted.running = !wanted.running,
                (Kind::Any, _) if !wanted.declared => {
                    wanted.declared = true;
                    out -= 1;
                }
                (Kind::Any, _) if out < MOST_OUT => {
                    wanted.declared = false;
                    out += 1;
                }
                (Kind::Any, _) => {}
            }
        }
    }

    fn names(&self, is: impl Fn(&Wanted) -> bool) -> BTreeSet<String> {
        self.agents.iter().filter(|(_, wanted)| is(wanted)).map(|(name, _)| name.clone()).collect()
    }
}

/// The runtimes that nothing has a reason to restart, each as it was when it was first up.
#[derive(Default)]
struct Steady(BTreeMap<String, Process>);

impl Steady {
    /// Notes who came up, and checks that nobody else's runtime has another process now.
    fn look(&mut self, fleet: &Fleet, names: &BTreeSet<String>) {
        for (name, runtime) in fleet.runtimes().into_iter().filter(|(name, _)| names.contains(name)) {
            if let Some(before) = self.0.get(&name) {
                assert_eq!(runtime, *before, "the runtime of {name} was restarted");
            } else if is_up(fleet, &name, &runtime) {
                self.0.insert(name, runtime);
            }
        }
    }
}

/// Whether a runtime is through its start. Before that, a controller that was killed leaves a process
/// that the next one may have to end and begin anew.
fn is_up(fleet: &Fleet, name: &str, runtime: &Process) -> bool {
    let folder = fleet.instance(name);
    let pid = std::fs::read_to_string(folder.join(LOCK_FILE)).unwrap_or_default();
    pid.trim() == runtime.pid.to_string() && !folder.join(STOPPED_FILE).exists()
}

/// Asks for what the file says, and kills the controller at a random instant of that.
fn kill_within_a_change(fleet: &Fleet, random: &mut Rng) {
    let mut up = fleet.begin(&["up", "--detach"]);
    std::thread::sleep(Duration::from_millis(random.u64(..LATEST)));
    let began = Instant::now();
    let controllers = loop {
        let controllers = fleet.controllers();
        if !controllers.is_empty() {
            break controllers;
        }
        assert!(up.try_wait().unwrap().is_none(), "`up` ended before there was a controller\n{}", fleet.report());
        assert!(began.elapsed() < LIMIT, "no controller came up\n{}", fleet.report());
    };
    // A process that is just being forked still looks like the controller; it is killed with it.
    controllers.iter().for_each(|controller| controller.send(Signal::KILL));
    up.kill().unwrap();
    up.wait().unwrap();
    while !fleet.is_free() || fleet.processes().iter().any(|process| process.runtime_of().is_none()) {
        assert!(began.elapsed() < LIMIT, "still there: {:?}", fleet.processes());
    }
}

#[test]
fn a_controller_that_is_killed_a_hundred_times_leaves_each_agent_once_and_restarts_none() {
    let seed = std::env::var(SEED_VARIABLE).map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    // Shown when the test fails.
    println!("{SEED_VARIABLE}={seed}");
    let mut random = Rng::with_seed(seed);
    let mut model = Model::new();
    let fleet = Fleet::new(&model.file());
    let calm = model.names(|wanted| wanted.kind != Kind::Any);
    let mut steady = Steady::default();

    for kill in 0..KILLS {
        if kill >= FIRST_KILLS {
            model.change(&mut random);
            fleet.write(&model.file());
        }
        kill_within_a_change(&fleet, &mut random);
        steady.look(&fleet, &calm);
    }

    fleet.up();
    steady.look(&fleet, &calm);
    assert!(steady.0.keys().eq(&calm), "every calm agent has come up: {:?}", steady.0.keys());
    let agents = fleet.agents();
    let declared = model.names(|wanted| wanted.declared);
    assert!(agents.keys().eq(&declared), "{:?} instead of {declared:?}", agents.keys());
    for (name, agent) in &agents {
        let power = if model.agents[name].running { PowerState::Running } else { PowerState::Stopped };
        assert_eq!(agent.power, Some(power), "{name}");
    }
    let running = model.names(|wanted| wanted.declared && wanted.running);
    assert!(fleet.runtimes().keys().eq(&running), "{:?} instead of {running:?}", fleet.runtimes().keys());
    assert_eq!(fleet.processes().len(), running.len() + 1, "no process but these and the controller");
    for name in running.iter().take(3) {
        assert_eq!(fleet.ok(&["exec", name, "--", "echo $ROUND"]), format!("{}\n", model.agents[name].env));
    }
    let troubles = [EventKind::InstanceFailed, EventKind::StepFailed, EventKind::StepTimedOut, EventKind::FuseBlown];
    let told: Vec<_> = fleet.events_since(0).into_iter().filter(|event| troubles.contains(&event.kind)).collect();
    assert!(told.is_empty(), "nothing failed but the controller: {told:?}");

    fleet.kill_controller();
    let records = Records::read(&fleet.state_dir());
    assert_eq!(records.claims, records.folders, "a claim for each instance, and an instance for each claim");
    assert!(records.claims.keys().eq(&declared), "{:?}", records.claims.keys());
    assert!(records.operations.is_empty(), "{:?}", records.operations);
    fleet.up();
    fleet.finish();
}

//! Driver `multipass` in a storm: many agents beside instances of others, while launches fail, hang, and succeed though
//! they say otherwise, the daemon is killed, stalls and says what nobody can read, machines crash and disappear, and
//! the controller is killed. In the end all agents are well, nothing of others was touched, and nothing was done twice.
//!
//! Everything random comes from a number. `VM_AGENT_TEST_STORM_SEED` and `VM_AGENT_TEST_STORM_AGENTS` make one storm of
//! one's own. On a real Multipass (`VM_AGENT_TEST_MULTIPASS`) there is only what a person can do to it;
//! `VM_AGENT_TEST_MULTIPASS_KILL` names a program that kills its daemon, which then has to come back by itself.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "this is a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use fastrand::Rng;
use jiff::Timestamp;
use rustix::process::Signal;
use vm_agent_drivers::multipass::Lanes;
use vm_agent_multipass_double::knobs::{Fault, Json, Kill, Wrong};
use vm_agent_multipass_double::{Call, Knobs};
use vm_agent_schemas::api::AgentView;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::plan::{ConditionStatus, Health, Sync};
use vm_agent_tests::e2e::Fleet;
use vm_agent_tests::e2e::multipass::Ground;

/// The storms: the number that all chance comes from, and how many agents there are.
const STORMS: [(u64, usize); 2] = [(1, 30), (2, 8)];
/// The most agents of a small storm.
const SMALL: usize = 10;
/// One of them alone.
const SEED: &str = "VM_AGENT_TEST_STORM_SEED";
/// So many agents.
const AGENTS: &str = "VM_AGENT_TEST_STORM_AGENTS";
/// How many there are on a real Multipass.
const REAL_AGENTS: usize = 4;
/// Kills the daemon of a real Multipass.
const KILL: &str = "VM_AGENT_TEST_MULTIPASS_KILL";
/// How long a launch may take on the double: one that hangs holds up all others for so long.
const LAUNCH_LIMIT: &str = "12s";
/// Latest instant of a random kill, in milliseconds.
const LATEST: u64 = 1500;
/// What every instance of others has in its name.
const STRANGER: &str = "stranger";
/// The phases of a launch in which a daemon may die.
const PHASES: [&str; 4] = ["launch.prepare", "launch.configure", "launch.boot", "launch.initialization"];
/// What the daemon says of a launch from when it goes on without its client.
const MESSAGES: [&str; 4] = ["Creating", "Configuring", "Starting", "Waiting for initialization"];
/// What changes an instance, other than by bringing it up.
const CHANGES: [&str; 9] =
    ["stop", "delete", "recover", "suspend", "restart", "snapshot", "restore", "mount", "umount"];

/// What happens in a storm.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Blow {
    DaemonKilled,
    ControllerKilled,
    /// The client of a launch is killed, and the daemon goes on.
    ClientKilled,
    /// The daemon takes calls and answers none.
    Stalled,
    /// It answers what nobody can read.
    Unreadable,
    Crashed,
    Deleted,
    /// The daemon loses sight of a machine.
    LeaseLost,
}

/// An agent that was well once.
struct Settled {
    at: Timestamp,
    incarnation: Option<Incarnation>,
    /// The id of its hardware, as the double knows it.
    hardware: Option<String>,
}

struct Storm {
    ground: Ground,
    fleet: Fleet,
    names: Vec<String>,
    random: Rng,
    /// How the double behaves besides what just happens.
    knobs: Knobs,
    up: Option<Child>,
    settled: BTreeMap<String, Settled>,
    /// What was done to agents that were well.
    crashed: BTreeMap<String, usize>,
    deleted: BTreeSet<String>,
    daemons_killed: usize,
    /// When controllers were killed.
    kills: Vec<Timestamp>,
}

#[test]
fn a_storm_harms_nobody_and_ends_with_all_agents_well() {
    let number = |variable: &str| std::env::var(variable).ok().map(|text| text.parse::<u64>().unwrap());
    let agents = number(AGENTS).map(|agents| usize::try_from(agents).unwrap());
    let storms = match number(SEED) {
        Some(seed) => vec![(seed, agents.unwrap_or(STORMS[0].1))],
        None => STORMS.into_iter().map(|(seed, usual)| (seed, agents.unwrap_or(usual))).collect(),
    };
    for (seed, agents) in storms {
        let Some(ground) = Ground::new(&format!("storm{seed}")) else { return };
        let real = ground.is_real();
        let agents = if real && number(AGENTS).is_none() { REAL_AGENTS } else { agents };
        eprintln!("storm {seed} of {agents} agents");
        Storm::new(ground, seed, agents).rages();
        if real {
            return;
        }
    }
}

impl Storm {
    fn new(ground: Ground, seed: u64, agents: usize) -> Self {
        let ground =
            if ground.is_real() { ground } else { ground.with("VM_AGENT_MULTIPASS_LAUNCH_LIMIT", LAUNCH_LIMIT) };
        let names: Vec<String> = (1..=agents).map(|number| format!("a{number:02}")).collect();
        let mut file = "agents:\n".to_owned();
        let image = image(&ground);
        for (index, name) in names.iter().enumerate() {
            let image = image.as_ref().filter(|_| index % 3 == 0).map(|image| format!("image: {image:?}"));
            file.push_str(&format!("  {name}: {{{}}}\n", image.unwrap_or_default()));
        }
        let fleet = ground.fleet(&file);
        let (settled, crashed, deleted) = Default::default();
        let (random, knobs, kills) = (Rng::with_seed(seed), Knobs::default(), Vec::new());
        Self { ground, fleet, names, random, knobs, up: None, settled, crashed, deleted, daemons_killed: 0, kills }
    }

    fn rages(mut self) {
        let strangers = self.strangers();
        self.weather(true);
        self.begin();
        let mut blows = self.blows();
        self.random.shuffle(&mut blows);
        let begun = Instant::now();
        for (index, blow) in blows.iter().enumerate() {
            self.until_so_many_are_well((index + 1) * self.names.len() / (blows.len() + 2));
            eprintln!("{:>5.1} s, {} are well: {blow:?}", begun.elapsed().as_secs_f64(), self.settled.len());
            self.blow(*blow);
        }
        self.until_so_many_are_well(self.names.len() * 9 / 10);
        if !self.ground.is_real() {
            self.ground.double().set(Knobs { limits: limits(), ..Knobs::default() });
        }
        self.until_so_many_are_well(self.names.len());
        eprintln!("{:>5.1} s: all are well", begun.elapsed().as_secs_f64());
        self.nothing_is_wrong();
        self.strangers_are(&strangers);
        self.nobody_lost_what_was_well();
        if !self.ground.is_real() {
            self.calls_were_right();
        }
        self.nothing_more_is_done();
        self.fleet.ok(&["down", "--destroy", "--yes"]);
        self.strangers_are(&strangers);
        let left: Vec<_> = self.ground.states().into_iter().filter(|(name, _)| self.is_ours(name)).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// Instances of others: one runs, one is down, one runs and looks like an agent's, and one is deleted.
    fn strangers(&self) -> BTreeMap<String, String> {
        for number in 1..=4 {
            self.ground.launch(&self.stranger(number));
        }
        self.ground.by_hand(&["stop", &self.stranger(2)]);
        self.ground.by_hand(&["delete", &self.stranger(4)]);
        if !self.ground.is_real() {
            self.ground.double().forget_calls();
        }
        self.ground.states().into_iter().filter(|(name, _)| name.contains(STRANGER)).collect()
    }

    fn stranger(&self, number: u32) -> String {
        self.ground.instance(&format!("{STRANGER}-{number}"))
    }

    fn is_ours(&self, instance: &str) -> bool {
        self.names.iter().any(|name| self.ground.instance(name) == instance)
    }

    /// Has a controller bring the fleet up.
    fn begin(&mut self) {
        if let Some(mut up) = self.up.replace(self.fleet.begin(&["up", "--detach", "--timeout", "2h"])) {
            up.kill().unwrap();
            up.wait().unwrap();
        }
        self.fleet.wait_for("a controller", || (self.fleet.run(&["status"]).code == 0).then_some(()));
    }

    /// Waits for that many to be well, and notes who is.
    fn until_so_many_are_well(&mut self, enough: usize) {
        let fleet = &self.fleet;
        let well = fleet.wait_for(&format!("{enough} to be well"), || {
            let mut agents = fleet.agents();
            agents.retain(|_, agent| is_well(agent));
            (agents.len() >= enough).then_some(agents)
        });
        for (name, agent) in well {
            let hardware = (!self.ground.is_real())
                .then(|| self.ground.double().instance(&self.ground.instance(&name)).unwrap().uuid);
            let (at, incarnation) = (Timestamp::now(), agent.incarnation);
            self.settled.entry(name).or_insert(Settled { at, incarnation, hardware });
        }
    }

    // What happens.

    fn blows(&self) -> Vec<Blow> {
        let mut blows = vec![Blow::ControllerKilled, Blow::ClientKilled, Blow::Crashed, Blow::Deleted];
        if self.ground.is_real() {
            blows.extend(std::env::var_os(KILL).map(|_| Blow::DaemonKilled));
        } else {
            blows.extend([Blow::DaemonKilled, Blow::Unreadable, Blow::LeaseLost]);
            // It takes minutes: a small storm does without.
            blows.extend((self.names.len() > SMALL).then_some(Blow::Stalled));
        }
        blows
    }

    fn blow(&mut self, blow: Blow) {
        match blow {
            Blow::DaemonKilled => self.kill_daemon(),
            Blow::ControllerKilled => self.kill_controller(),
            Blow::ClientKilled => self.kill_client(),
            Blow::Stalled => self.stall(),
            Blow::Unreadable => {
                let json = self.random.choice([Json::Truncated, Json::Garbage]).unwrap();
                let since = self.fleet.last_event();
                self.ground.double().set(Knobs { json, ..self.knobs.clone() });
                self.fleet.wait_for_event(since, EventKind::DriverLost, None);
                self.only_the_driver_is_blamed(since);
                self.weather(false);
                self.fleet.wait_for_event(since, EventKind::DriverBack, None);
            }
            Blow::Crashed => {
                for name in self.some_well(2) {
                    self.ground.crash(&name);
                    *self.crashed.entry(name).or_default() += 1;
                }
            }
            Blow::Deleted => self.delete_one(),
            Blow::LeaseLost => {
                let lost = self.some_well(1).iter().map(|name| self.ground.instance(name)).collect();
                self.ground.double().set(Knobs { lost_lease: lost, ..self.knobs.clone() });
                // Somebody asks for addresses.
                self.ground.double().command().arg("list").output().unwrap();
                self.weather(false);
            }
        }
    }

    /// Some agents that are well, as far as nothing has been done to them.
    fn some_well(&mut self, count: usize) -> Vec<String> {
        let is_untouched = |name: &&String| !self.deleted.contains(*name) && !self.crashed.contains_key(*name);
        let mut names: Vec<String> = self.settled.keys().filter(is_untouched).cloned().collect();
        self.random.shuffle(&mut names);
        names.truncate(count);
        names
    }

    /// Somebody deletes an instance of ours.
    fn delete_one(&mut self) {
        for name in self.some_well(1) {
            let instance = self.ground.instance(&name);
            if self.ground.is_real() {
                self.ground.by_hand(&["delete", "--purge", &instance]);
            } else {
                self.ground.double().delete_behind_back(&instance);
            }
            self.deleted.insert(name);
        }
    }

    /// Waits for what happens in a launch. How many are still to be launched depends on how fast all goes: where none
    /// is, one is deleted, and made anew.
    fn until_in_a_launch(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        loop {
            let happened = self
                .fleet
                .wait_for(what, || is_so(self).then_some(true).or_else(|| self.all_are_well().then_some(false)));
            if happened {
                return;
            }
            let deleted = self.deleted.len();
            self.delete_one();
            assert!(self.deleted.len() > deleted, "nothing is launched any more, and nobody can be launched anew");
            self.fleet.wait_for("a deletion to be seen", || (is_so(self) || !self.all_are_well()).then_some(()));
        }
    }

    fn all_are_well(&self) -> bool {
        self.fleet.agents().values().filter(|agent| is_well(agent)).count() == self.names.len()
    }

    fn kill_daemon(&mut self) {
        self.daemons_killed += 1;
        if let Some(program) = std::env::var_os(KILL).filter(|_| self.ground.is_real()) {
            std::thread::sleep(Duration::from_millis(self.random.u64(..20 * LATEST)));
            assert!(Command::new(program).status().unwrap().success(), "{KILL} could not kill the daemon");
            return;
        }
        let phase = self.random.choice(PHASES).unwrap().to_owned();
        let kill = Kill { phase, back_after: Some(self.random.u64(200..4000)) };
        eprintln!("  in {}", kill.phase);
        let killed = self.ground.double().home().path().join("killed");
        self.ground.double().set(Knobs { kill_daemon: Some(kill), latency: slow(), ..self.knobs.clone() });
        self.until_in_a_launch("the daemon to be killed in a launch", |_| killed.exists());
        self.fleet.wait_for("another daemon", || {
            let said = self.ground.double().command().args(["list", "--no-ipv4"]).output().unwrap();
            said.status.success().then_some(())
        });
        self.weather(false);
    }

    fn kill_controller(&mut self) {
        std::thread::sleep(Duration::from_millis(self.random.u64(..LATEST)));
        // A process that is just being forked still looks like the controller; it is killed with it.
        self.fleet.controllers().iter().for_each(|controller| controller.send(Signal::KILL));
        self.kills.push(Timestamp::now());
        self.fleet.wait_for("the end of the controller", || self.fleet.is_free().then_some(()));
        self.begin();
    }

    /// Kills the client of a launch.
    fn kill_client(&mut self) {
        if !self.ground.is_real() {
            self.kill_client_of_double();
            return;
        }
        let client = |storm: &Self| {
            storm.fleet.processes().into_iter().find(|it| it.command.iter().any(|word| word == "launch"))
        };
        self.until_in_a_launch("a launch", |storm| client(storm).is_some());
        std::thread::sleep(Duration::from_millis(self.random.u64(..20 * LATEST)));
        client(self).iter().for_each(|client| client.send(Signal::KILL));
    }

    fn kill_client_of_double(&mut self) {
        let at = self.random.choice(MESSAGES).unwrap().to_owned();
        eprintln!("  at `{at}`");
        let what = Wrong::Leaves { at, code: None, stderr: String::new() };
        // Each of them, until one gets there: a launch may well come to nothing before.
        let mut faults = vec![Fault { times: u32::MAX, ..fault("launch", &self.ground.instance(""), what) }];
        faults.extend(self.knobs.faults.clone());
        let begun = Timestamp::now();
        self.ground.double().set(Knobs { faults, latency: slow(), ..self.knobs.clone() });
        self.until_in_a_launch("the client of a launch to be killed", |storm| {
            let calls = storm.ground.double().calls();
            let is_open = |call: &&Call| call.command() == "launch" && call.began > begun && call.ended.is_none();
            calls.iter().filter(is_open).any(|call| !Path::new(&format!("/proc/{}", call.pid)).exists())
        });
        self.weather(false);
    }

    /// The daemon, or the command, does not answer for as long as it takes to be noticed.
    fn stall(&mut self) {
        let since = self.fleet.last_event();
        let busy = if self.random.bool() {
            Some(self.ground.double().occupy_daemon())
        } else {
            // Each of them: a single one may be that of a step, and the next look at the driver finds all well.
            let hangs = Fault { times: u32::MAX, ..fault("list", "", Wrong::HangsThoughDone) };
            self.ground.double().set(Knobs { faults: vec![hangs], ..self.knobs.clone() });
            None
        };
        self.fleet.wait_for_event(since, EventKind::DriverLost, None);
        self.only_the_driver_is_blamed(since);
        let had_to_wait = busy.is_some();
        drop(busy);
        eprintln!("  (the whole daemon: {had_to_wait})");
        self.weather(false);
        self.fleet.wait_for_event(since, EventKind::DriverBack, None);
    }

    /// A driver that does not answer is one condition of the fleet, and nobody's failure but of those whose steps are
    /// under way. In a small fleet these are so many that the loop stops.
    fn only_the_driver_is_blamed(&self, since: u64) {
        let conditions = self.fleet.status().conditions.into_iter();
        let mut wrong: Vec<String> =
            conditions.filter(|it| it.status != ConditionStatus::True).map(|it| it.kind).collect();
        wrong.retain(|kind| kind != "FuseClosed");
        // It may be over already.
        let back = self.fleet.events_since(since).iter().any(|event| event.kind == EventKind::DriverBack);
        assert!(wrong == ["DriversAnswer"] || back, "{wrong:?}\n{}", self.fleet.report());
        let events = self.fleet.events_since(since);
        let failed: BTreeSet<_> =
            events.iter().filter(|it| it.kind == EventKind::StepFailed).filter_map(|it| it.agent.clone()).collect();
        let most = usize::try_from(lanes().steps()).unwrap();
        assert!(failed.len() <= 2 * most, "{failed:?} failed\n{}", self.fleet.report());
        let has_reason = |name: &str| self.crashed.contains_key(name) || self.deleted.contains(name);
        let lost = events.iter().filter(|it| it.kind == EventKind::RuntimeLost);
        let lost: Vec<_> = lost.filter(|it| !it.agent.as_ref().is_some_and(|name| has_reason(name.as_str()))).collect();
        assert!(lost.is_empty(), "{lost:?}\n{}", self.fleet.report());
    }

    /// What goes wrong with agents that are not well yet, and now and then with anything.
    fn weather(&mut self, first: bool) {
        if self.ground.is_real() {
            return;
        }
        let mut coming: Vec<String> =
            self.names.iter().filter(|name| !self.settled.contains_key(*name)).cloned().collect();
        self.random.shuffle(&mut coming);
        let mut faults = Vec::new();
        let mut deaf = Vec::new();
        for (index, name) in coming.iter().map(|name| self.ground.instance(name)).enumerate() {
            match index {
                0 if first => faults.push(fault("launch", &name, Wrong::Hangs)),
                1 if first => faults.push(fault("launch", &name, Wrong::HangsThoughDone)),
                2 if first => deaf.push(name),
                _ => faults.extend(mishap(&mut self.random, &name)),
            }
        }
        faults.push(Fault { after: self.random.u32(5..40), ..fault("list", "", Wrong::Late { by: 800 }) });
        let json = self.random.choice([Json::Whole, Json::Preceded]).unwrap();
        self.knobs = Knobs { faults, deaf, json, limits: limits(), ..Knobs::default() };
        self.ground.double().set(self.knobs.clone());
    }

    // What has to be so.

    fn nothing_is_wrong(&self) {
        let status = self.fleet.status();
        let wrong: Vec<_> = status.conditions.iter().filter(|it| it.status != ConditionStatus::True).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let agents = self.fleet.agents();
        assert_eq!(agents.keys().collect::<Vec<_>>(), self.names.iter().collect::<Vec<_>>());
        let drifts: Vec<_> = agents.values().filter(|agent| !agent.drift.is_empty()).collect();
        assert!(drifts.is_empty(), "{drifts:?}");
        let told = self.fleet.events_since(0);
        let broken: Vec<_> = told.iter().filter(|it| it.kind == EventKind::IsolationBroken).collect();
        assert!(broken.is_empty(), "{broken:?}");
    }

    /// Those of others are as they were. A new daemon starts them again, which takes its time.
    fn strangers_are(&self, before: &BTreeMap<String, String>) {
        let now = || self.ground.states().into_iter().filter(|(name, _)| name.contains(STRANGER)).collect();
        self.fleet.wait_for("the instances of others to be as they were", || {
            let now: BTreeMap<String, String> = now();
            (now == *before).then_some(())
        });
    }

    /// Who was well has the machine that it had then, unless somebody deleted it.
    fn nobody_lost_what_was_well(&self) {
        let agents = self.fleet.agents();
        for (name, settled) in self.settled.iter().filter(|(name, _)| !self.deleted.contains(*name)) {
            assert_eq!(agents[name].incarnation, settled.incarnation, "{name} leads another life");
            if let Some(hardware) = &settled.hardware {
                let now = self.ground.double().instance(&self.ground.instance(name)).unwrap().uuid;
                assert_eq!(now, *hardware, "{name} has another machine");
            }
        }
        let joined = self.fleet.events_since(0).into_iter().filter(|event| event.kind == EventKind::RuntimeJoined);
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        joined.filter_map(|event| event.agent).for_each(|agent| *times.entry(agent.to_string()).or_default() += 1);
        for (name, times) in times {
            let most = 1 + usize::from(self.deleted.contains(&name));
            assert!(times <= most, "{name} joined {times} times\n{}", self.fleet.report());
        }
    }

    fn calls_were_right(&self) {
        let calls = self.ground.double().calls();
        let strange: Vec<_> =
            calls.iter().filter(|call| call.argv.iter().any(|word| word.contains(STRANGER))).collect();
        assert!(strange.is_empty(), "instances of others were touched: {strange:?}");
        let daemon_wide: Vec<_> = calls
            .iter()
            .filter(|call| call.command() == "purge" || call.argv.iter().any(|word| word == "--all"))
            .collect();
        assert!(daemon_wide.is_empty(), "{daemon_wide:?}");
        for name in &self.names {
            self.was_made_once(name, &calls);
        }
        self.lanes_were_kept(&calls);
    }

    fn was_made_once(&self, name: &str, calls: &[Call]) {
        let instance = self.ground.instance(name);
        let of = |command: &'static str| {
            let instance = &instance;
            calls.iter().filter(move |call| call.command() == command && call.argv.contains(instance))
        };
        let done = |call: &&Call| call.code == Some(0);
        let (made, unmade) = (of("launch").filter(done).count(), of("delete").count());
        let most = 1 + unmade + usize::from(self.deleted.contains(name));
        assert!(made <= most, "{name} was made {made} times: {:#?}", of("launch").collect::<Vec<_>>());
        let settled = &self.settled[name];
        let later = |call: &&Call| call.began > settled.at;
        assert_eq!(of("delete").filter(later).count(), 0, "{name} was deleted when it had been well");
        let asked = of("stop").filter(|call| !call.argv.iter().any(|word| word == "--force"));
        assert_eq!(asked.count(), 0, "nobody wanted {name} to be stopped");
        let reasons = self.daemons_killed + self.crashed.get(name).copied().unwrap_or_default();
        let starts = of("start").filter(done).filter(later).count();
        let is_new = self.deleted.contains(name);
        assert!(starts <= reasons || is_new, "{name} was started {starts} times, with {reasons} reasons");
    }

    /// One change at a time, and no more machines coming up than there may be.
    fn lanes_were_kept(&self, calls: &[Call]) {
        let width = usize::try_from(lanes().width()).unwrap();
        let life = |call: &Call| self.kills.iter().filter(|kill| **kill < call.began).count();
        for number in 0..=self.kills.len() {
            // Nobody knows how long what was killed went on.
            let of_life: Vec<&Call> =
                calls.iter().filter(|call| call.ended.is_some() && life(call) == number).collect();
            let coming = of_life.iter().filter(|call| ["launch", "start"].contains(&call.command()));
            assert!(most_at_once(coming) <= width, "more than {width} came up at a time");
            let changes = of_life.iter().filter(|call| CHANGES.contains(&call.command()));
            assert!(most_at_once(changes) <= 1, "two things were changed at a time");
        }
    }

    /// Without drift nothing is done.
    fn nothing_more_is_done(&self) {
        if self.ground.is_real() {
            return;
        }
        self.ground.double().forget_calls();
        self.fleet.ok(&["apply"]);
        self.fleet.wait_for("more looks", || (self.ground.double().count("list") >= 2).then_some(()));
        let calls = self.ground.double().calls();
        let acts =
            |call: &&Call| CHANGES.contains(&call.command()) || ["launch", "start", "set"].contains(&call.command());
        let done: Vec<_> = calls.iter().filter(acts).collect();
        assert!(done.is_empty(), "{done:?}");
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            // It fails only for a process that has ended.
            let _ = up.kill();
            let _ = up.wait();
        }
    }
}

/// An image that is a file, which some are made from on the double; on a real one all are made from what there is.
fn image(ground: &Ground) -> Option<PathBuf> {
    let image = (!ground.is_real()).then(|| ground.folder().join("debian.img"))?;
    std::fs::write(&image, "debian").unwrap();
    Some(image)
}

fn is_well(agent: &AgentView) -> bool {
    (agent.sync, agent.health) == (Sync::Synced, Health::Healthy)
}

/// The lanes of a controller on this host.
fn lanes() -> std::sync::Arc<Lanes> {
    Lanes::new(std::thread::available_parallelism().map_or(1, usize::from))
}

/// The most calls that were under way together.
fn most_at_once<'a>(calls: impl Iterator<Item = &'a &'a Call>) -> usize {
    // An end sorts before a beginning of the same moment.
    let mut turns: Vec<(Timestamp, bool)> =
        calls.flat_map(|call| [(call.began, true), (call.ended.unwrap(), false)]).collect();
    turns.sort_unstable();
    let (mut now, mut most) = (0_usize, 0);
    for (_, begins) in turns {
        now = if begins { now + 1 } else { now - 1 };
        most = most.max(now);
    }
    most
}

/// The limits of the daemon's own waits.
fn limits() -> BTreeMap<String, u64> {
    [("ssh", 4000), ("cloud-init", 8000), ("shutdown", 3000), ("address", 300)]
        .map(|(what, millis)| (what.to_owned(), millis))
        .into()
}

/// How long the phases of a launch take while the daemon is to die in one.
fn slow() -> BTreeMap<String, u64> {
    PHASES.map(|phase| (phase.to_owned(), 300)).into()
}

fn fault(command: &str, part: &str, what: Wrong) -> Fault {
    let containing = Some(part.to_owned()).filter(|part| !part.is_empty());
    Fault { command: command.to_owned(), containing, times: 1, after: 0, what }
}

/// What may happen to an instance that comes up.
fn mishap(random: &mut Rng, instance: &str) -> Option<Fault> {
    let fails = |code, text: &str| Wrong::Fails { code, stderr: format!("{text}\n"), stdout: String::new() };
    let fails_though_done = |code, text: &str| Wrong::FailsThoughDone { code, stderr: format!("{text}\n") };
    let refused = "exec failed: ssh connection failed: 'Connection refused'";
    let (command, what) = match random.u8(..16) {
        0 => ("launch", fails(2, "launch failed: failed to download from 'https://host/image': Network unreachable")),
        1 => ("launch", fails(2, "launch failed: cannot connect to the multipass socket")),
        2 => ("launch", fails(1, "[2026-01-01T00:00:00.000] [error] [client] Caught an unhandled exception: odd")),
        3 => {
            let text =
                format!("launch failed: The following errors occurred:\n{instance}: timed out waiting for response");
            ("launch", fails_though_done(2, &text))
        }
        4 => ("launch", fails_though_done(5, "Timed out waiting for instance launch.")),
        5 => ("launch", fails_though_done(2, "launch failed: cannot connect to the multipass socket")),
        6 => ("launch", Wrong::Late { by: random.u64(..3000) }),
        7 => ("exec", fails(2, refused)),
        8 => ("exec", fails_though_done(255, "")),
        9 => ("transfer", fails(2, "transfer failed: ssh connection failed: 'Connection refused'")),
        10 => ("transfer", fails_though_done(1, "odd")),
        _ => return None,
    };
    Some(Fault { after: if command == "exec" { random.u32(..3) } else { 0 }, ..fault(command, instance, what) })
}

//! Delivery under fire: tasks and messages, while controllers and runtimes are killed and connections are cut.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "this is a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use vm_agent_schemas::api::{ControllerFile, List};
use vm_agent_schemas::message::{Message, MessageState};
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::TaskOutcome;
use vm_agent_tests::e2e::{Fleet, LIMIT, Proxy, runtime_program};

/// Gives the same order of things again, as far as clocks allow.
const SEED_VARIABLE: &str = "VM_AGENT_FIRE_SEED";
/// For how long there is fire, in seconds.
const SECONDS_VARIABLE: &str = "VM_AGENT_FIRE_SECONDS";
const SECONDS: u64 = 45;
const AGENTS: [&str; 6] = ["ash", "birch", "cedar", "elm", "fir", "oak"];
/// Each death of a runtime doubles the pause before it is started again: after these it is half a minute.
const DEATHS_MAX: usize = 5;
/// Most lines of each channel of a task: some hundred KiB.
const LINES_MAX: u32 = 12_000;
/// In how many parts they come.
const PARTS: u32 = 4;
/// Those of a task's ordering key.
const KEYS: [Option<&str>; 3] = [None, Some("left"), Some("right")];
/// With so few tasks to go it is told which.
const FEW: usize = 10;
/// Most that one answer lists.
const PAGE: &str = "1000";

/// A task that was accepted.
#[derive(Debug)]
struct Given {
    /// What its output and its marks are known by; in the order in which they were accepted.
    number: u32,
    id: String,
    agent: &'static str,
    key: Option<&'static str>,
    idempotent: bool,
    /// How many lines it writes to each channel; nothing for one that sends a message.
    lines: Option<u32>,
}

/// A text of lines as `seq -f` writes them.
fn text(number: u32, channel: &str, lines: u32) -> String {
    (1..=lines).fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{number} {channel} {line:06}");
        text
    })
}

fn marks(key: Option<&str>) -> String {
    format!("order-{}", key.unwrap_or("none"))
}

/// Writes its id, when it begins and ends among those of its key, and its lines.
fn writer(number: u32, key: Option<&str>, lines: u32) -> String {
    let (marks, part) = (marks(key), lines / PARTS);
    let seq =
        |channel: &str| format!(r#"seq -f "{number} {channel} %06.0f" $((i * {part} + 1)) $(((i + 1) * {part}))"#);
    format!(
        r#"echo "$VM_AGENT_TASK" >> runs; echo "{number} begins" >> {marks}
        i=0; while [ $i -lt {PARTS} ]; do {out}; {err} >&2; sleep 0.1; i=$((i + 1)); done
        echo "{number} ends" >> {marks}"#,
        out = seq("out"),
        err = seq("err"),
    )
}

/// Sends a message to another agent, and writes the id that it got.
fn sender(number: u32, key: Option<&str>, to: &str) -> String {
    let (marks, program) = (marks(key), runtime_program());
    format!(
        r#"echo "$VM_AGENT_TASK" >> runs; echo "{number} begins" >> {marks}
        '{}' message send {to} fire {number} >> sent
        echo "{number} ends" >> {marks}"#,
        program.display()
    )
}

fn file() -> String {
    let program = runtime_program();
    let mut file = "defaults: {driver: local, labels: {team: fire}}\n".to_owned();
    file += "messages: {allow: [{from: {labels: team=fire}, to: {labels: team=fire}}]}\nagents:\n";
    for agent in AGENTS {
        let exec = format!("exec '{}' message receive --follow >> received", program.display());
        let _ = writeln!(file, "  {agent}: {{services: {{inbox: {{exec: \"{exec}\"}}}}}}");
    }
    file
}

/// The hub that the controller of this folder listens on.
fn hub_of(state_dir: &Path) -> Option<SocketAddr> {
    let text = std::fs::read(state_dir.join("controller.json")).ok()?;
    serde_json::from_slice::<ControllerFile>(&text).ok().map(|file| file.addresses.hub)
}

/// What burns, and what has come of it so far.
struct Fire<'a> {
    fleet: &'a Fleet,
    proxy: &'a Proxy,
    over: AtomicBool,
    given: Mutex<Vec<Given>>,
    /// The ids of messages that the host has sent, with their receivers.
    sent: Mutex<Vec<(String, &'static str)>>,
    /// How each task ended that was seen to have ended.
    ends: Mutex<BTreeMap<String, TaskOutcome>>,
}

impl Fire<'_> {
    /// Asks until there is an answer. What is asked has to be the same when it is asked twice.
    fn accepted(&self, arguments: &[&str]) -> String {
        let began = Instant::now();
        loop {
            let ran = self.fleet.run(arguments);
            match ran.code {
                0 => return ran.stdout.trim().to_owned(),
                // No controller answers, or it went away meanwhile.
                1 | 8 if began.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(50)),
                _ => panic!("vm-agent {arguments:?}: {ran:?}\n{}", self.fleet.report()),
            }
        }
    }

    /// Gives one agent after another a task, all of one ordering key.
    fn give_tasks(&self, key: Option<&'static str>, first: u32, mut random: Rng) {
        for number in first.. {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let agent = AGENTS[random.usize(..AGENTS.len())];
            let idempotent = random.bool();
            let others: Vec<&str> = AGENTS.into_iter().filter(|it| *it != agent).collect();
            let lines = (random.u8(..4) > 0).then(|| random.u32(1..=LINES_MAX / PARTS) * PARTS);
            let line = match lines {
                Some(lines) => writer(number, key, lines),
                None => sender(number, key, others[random.usize(..others.len())]),
            };
            let (name, declared) = (format!("fire-{number}"), format!("--idempotent={idempotent}"));
            let mut arguments = vec!["task", agent, "--idempotency-key", &name, &declared];
            arguments.extend(key.iter().flat_map(|key| ["--order-key", key]));
            arguments.extend(["--", &line]);
            let id = self.accepted(&arguments);
            self.given.lock().unwrap().push(Given { number, id, agent, key, idempotent, lines });
            std::thread::sleep(Duration::from_millis(random.u64(..500)));
        }
    }

    /// Sends messages from the host.
    fn send_messages(&self, mut random: Rng) {
        while !self.over.load(Ordering::SeqCst) {
            let agent = AGENTS[random.usize(..AGENTS.len())];
            // One that failed may have been accepted or not: nobody was promised anything.
            let ran = self.fleet.run(&["message", "send", agent, "fire", "{\"from\": \"host\"}"]);
            if ran.code == 0 {
                self.sent.lock().unwrap().push((ran.stdout.trim().to_owned(), agent));
            }
            std::thread::sleep(Duration::from_millis(random.u64(..400)));
        }
    }

    /// Looks how tasks have ended, which never changes.
    fn look(&self) -> BTreeMap<String, Task> {
        // By agents, for there is an end to what one answer lists.
        let tasks = AGENTS.into_iter().flat_map(|agent| {
            let text = self.accepted(&["task", "ls", agent, "--limit", PAGE, "-o", "json"]);
            serde_json::from_str::<List<Task>>(&text).unwrap().items
        });
        let tasks: Vec<Task> = tasks.collect();
        let mut ends = self.ends.lock().unwrap();
        for task in &tasks {
            let (id, outcome) = (task.id.to_string(), task.outcome());
            let known = ends.get(&id);
            assert!(known.is_none() || known == outcome, "{id} ended twice: {known:?} and {outcome:?}");
            ends.extend(outcome.map(|outcome| (id, outcome.clone())));
        }
        tasks.into_iter().map(|task| (task.id.to_string(), task)).collect()
    }

    /// Waits until all tasks have ended, for as long as there is always a next one that does.
    fn wait_for_ends(&self, given: &[Given]) -> BTreeMap<String, Task> {
        let is_open = |task: Option<&Task>| task.is_none_or(|task| task.outcome().is_none());
        let mut left = given.len() + 1;
        loop {
            let (tasks, open) = self.fleet.wait_for(&format!("one more end, with {left} tasks to go"), || {
                let tasks = self.look();
                let open = given.iter().filter(|it| is_open(tasks.get(&it.id))).count();
                (open < left).then_some((tasks, open))
            });
            if open == 0 {
                return tasks;
            }
            left = open;
            // What is still there in the end is what one wants to know when it does not end.
            for given in given.iter().filter(|it| left < FEW && is_open(tasks.get(&it.id))) {
                println!("{left} to go: {given:?} {:?}", tasks.get(&given.id).map(|task| &task.state));
            }
        }
    }

    /// Kills and cuts. Gives how often each agent's runtime was killed.
    fn burn(&self, flags: &[&str], until: Instant, random: &mut Rng) -> BTreeMap<&'static str, usize> {
        let mut deaths: BTreeMap<&str, usize> = BTreeMap::new();
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(random.u64(200..2500)));
            match random.u8(..10) {
                0..3 => {
                    self.fleet.kill_controller();
                    std::thread::sleep(Duration::from_millis(random.u64(..1500)));
                    self.fleet.begin_controller(flags);
                }
                3..6 => {
                    let agent = AGENTS[random.usize(..AGENTS.len())];
                    let died = deaths.entry(agent).or_default();
                    if let Some(runtime) = self.fleet.runtimes().get(agent).filter(|_| *died < DEATHS_MAX) {
                        runtime.send(Signal::KILL);
                        *died += 1;
                    }
                }
                6..9 => self.proxy.cut(),
                _ => drop(self.look()),
            }
        }
        deaths
    }
}

/// The lines of a file in an agent's work folder.
fn lines(fleet: &Fleet, agent: &str, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(fleet.instance(agent).join("work").join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn check_outcome(fleet: &Fleet, given: &Given, task: &Task, runs: usize) {
    let told = || format!("{given:?}: {task:?}, {runs} runs");
    let asked = (task.agent.as_ref().map(|agent| agent.as_str()), task.terms.key.as_deref());
    assert_eq!(asked, (Some(given.agent), given.key), "{}", told());
    match task.outcome() {
        Some(TaskOutcome::Exited { code: 0 }) if given.idempotent => assert!(runs >= 1, "{}", told()),
        Some(TaskOutcome::Exited { code: 0 }) => assert_eq!(runs, 1, "{}", told()),
        Some(TaskOutcome::Interrupted) if !given.idempotent => {
            assert!(runs <= 1, "{}", told());
            assert!(task.dead.as_ref().is_some_and(|reason| !reason.is_empty()), "{}", told());
        }
        _ => panic!("{}\n{}", told(), fleet.report()),
    }
}

fn check_output(fleet: &Fleet, given: &Given, task: &Task) {
    let (Some(lines), Some(TaskOutcome::Exited { .. })) = (given.lines, task.outcome()) else { return };
    let attempt = task.attempt.to_string();
    for (channel, flag) in [("out", "--stdout"), ("err", "--stderr")] {
        let read = fleet.ok(&["task", "output", &given.id, flag, "--attempt", &attempt]);
        let expected = text(given.number, channel, lines);
        let same = read.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
        assert!(
            read == expected,
            "{given:?}: {} of {} bytes of std{channel}, as expected up to byte {same}",
            read.len(),
            expected.len()
        );
    }
}

/// What one key's tasks of one agent left: none begins before the one before it has ended or is given up.
fn check_order(fleet: &Fleet, agent: &str, key: Option<&str>) {
    let marks = lines(fleet, agent, &marks(key));
    let numbers: Vec<u32> =
        marks.iter().map(|mark| mark.split(' ').next().and_then(|number| number.parse().ok()).unwrap()).collect();
    assert!(numbers.is_sorted(), "{agent}, {key:?}: {marks:?}");
}

/// Whether what was accepted for an agent has all been given to its program; otherwise what is missing.
fn missing(fleet: &Fleet, agent: &str, accepted: &[Message]) -> Vec<String> {
    let received: BTreeSet<String> = received(fleet, agent).into_iter().collect();
    let open = |message: &&Message| match &message.state {
        MessageState::Waiting => true,
        MessageState::Taken { .. } => !received.contains(&message.id.to_string()),
        MessageState::Dead { reason, .. } => {
            assert!(!reason.is_empty(), "{message:?}");
            false
        }
    };
    accepted.iter().filter(open).map(|message| format!("{} {:?}", message.id, message.state)).collect()
}

/// The ids of the messages that an agent's program was given, in order.
fn received(fleet: &Fleet, agent: &str) -> Vec<String> {
    let id = |line: String| {
        let letter: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        letter["id"].as_str().unwrap().to_owned()
    };
    lines(fleet, agent, "received").into_iter().map(id).collect()
}

/// The messages to an agent that the controller has accepted.
fn accepted_for(fleet: &Fleet, agent: &str) -> Vec<Message> {
    let list: List<Message> = fleet.document(&["message", "ls", agent, "--limit", PAGE]);
    list.items.into_iter().filter(|message| message.to.to_string() == agent).collect()
}

fn check_messages(fire: &Fire<'_>, deaths: &BTreeMap<&str, usize>) {
    let fleet = fire.fleet;
    let promised = fire.sent.lock().unwrap();
    let by_agents: BTreeSet<String> = AGENTS.iter().flat_map(|agent| lines(fleet, agent, "sent")).collect();
    let mut known = BTreeSet::new();
    for agent in AGENTS {
        fleet.wait_for(&format!("all messages to {agent}"), || {
            let open = missing(fleet, agent, &accepted_for(fleet, agent));
            open.is_empty().then_some(())
        });
        let accepted: BTreeSet<String> = accepted_for(fleet, agent).iter().map(|it| it.id.to_string()).collect();
        let received = received(fleet, agent);
        let once: BTreeSet<String> = received.iter().cloned().collect();
        let strange: Vec<_> = once.difference(&accepted).collect();
        assert!(strange.is_empty(), "{agent} was given what nobody accepted: {strange:?}");
        // The one message that a program was being given as it was killed is given again.
        let again = received.len() - once.len();
        assert!(again <= deaths.get(agent).copied().unwrap_or(0), "{agent} was given {again} messages again");
        let host: Vec<_> = promised.iter().filter(|(id, to)| *to == agent && !accepted.contains(id)).collect();
        assert!(host.is_empty(), "lost: {host:?}");
        known.extend(accepted);
    }
    let lost: Vec<_> = by_agents.difference(&known).collect();
    assert!(lost.is_empty(), "kept by a runtime and never accepted: {lost:?}");
    println!("{} messages, {} of them between agents", known.len(), by_agents.len());
}

/// What runtimes keep of tasks and messages, once all is told and taken: nothing.
fn leftovers(fleet: &Fleet) -> Vec<String> {
    let mut left = Vec::new();
    for agent in AGENTS {
        for folder in ["tasks", "messages/inbox", "messages/outbox"] {
            let entries = std::fs::read_dir(fleet.instance(agent).join(folder)).into_iter().flatten().flatten();
            // What tells a task from one that is ordered again is kept; what it wrote is not.
            let written = entries
                .map(|entry| entry.path())
                .filter(|path| folder != "tasks" || path.extension() != Some("json".as_ref()));
            left.extend(written.map(|path| path.display().to_string()));
        }
    }
    left
}

#[test]
fn what_was_accepted_is_done_or_delivered_once_whatever_dies() {
    let number = |variable, usual| std::env::var(variable).map_or(usual, |text| text.parse().unwrap());
    let seed: u64 = number(SEED_VARIABLE, fastrand::u64(..));
    // Shown when the test fails.
    println!("{SEED_VARIABLE}={seed}");
    let mut random = Rng::with_seed(seed);
    let fleet = Fleet::new(&file());
    let state_dir = fleet.state_dir();
    let proxy = Proxy::start(move || hub_of(&state_dir), random.u64(..));
    let address = proxy.address().to_string();
    let flags = ["--hub-advertise", &address];
    fleet.begin_controller(&flags);
    fleet.up();

    let fire = Fire {
        fleet: &fleet,
        proxy: &proxy,
        over: AtomicBool::new(false),
        given: Mutex::default(),
        sent: Mutex::default(),
        ends: Mutex::default(),
    };
    let until = Instant::now() + Duration::from_secs(number(SECONDS_VARIABLE, SECONDS));
    let deaths = std::thread::scope(|scope| {
        for (first, key) in (0..).step_by(100_000).zip(KEYS) {
            let (fire, random) = (&fire, Rng::with_seed(random.u64(..)));
            scope.spawn(move || fire.give_tasks(key, first, random));
        }
        let random_of_messages = Rng::with_seed(random.u64(..));
        scope.spawn(|| fire.send_messages(random_of_messages));
        // Should it fail, the others must not go on.
        let burnt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fire.burn(&flags, until, &mut random)));
        fire.over.store(true, Ordering::SeqCst);
        burnt.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    proxy.calm();

    let given = fire.given.lock().unwrap();
    println!("{} tasks, {} cuts, deaths {deaths:?}", given.len(), proxy.cuts());
    let tasks = fire.wait_for_ends(&given);
    fleet.wait_until_well();
    check_messages(&fire, &deaths);
    let runs: Vec<String> = AGENTS.iter().flat_map(|agent| lines(&fleet, agent, "runs")).collect();
    for given in given.iter() {
        let task = &tasks[&given.id];
        check_outcome(&fleet, given, task, runs.iter().filter(|run| **run == given.id).count());
        check_output(&fleet, given, task);
    }
    for agent in AGENTS {
        KEYS.iter().for_each(|key| check_order(&fleet, agent, *key));
    }
    assert_eq!(tasks.len(), given.len(), "no task but these");
    fleet.wait_for("runtimes to forget what is over", || leftovers(&fleet).is_empty().then_some(()));
    fleet.finish();
}

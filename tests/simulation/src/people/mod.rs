//! People: they edit the fleet file and apply it, say things beside it, say yes to what is shown, and
//! change their minds. Everything that a file can say is drawn in one place, [`File::edit`].

mod asking;
mod snapshots;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use fastrand::Rng;
use vm_agent_daemon::engine::Effect;
use vm_agent_daemon::engine::file::{self, Cause, OnDisk, Terms, Verdict, judge};
use vm_agent_daemon::engine::intent::{self, Intent, Voice};
use vm_agent_daemon::engine::records::{Change, NewFile, Records};
use vm_agent_plan::plan;
use vm_agent_schemas::api::{ChangeRequest, CreateRequest, FleetSource, Problem};
use vm_agent_schemas::fleet::{self, Fleet, PowerState, Reconcile, SourceFile};
use vm_agent_schemas::intent::OverridePath;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::ApprovalRequest;
use vm_agent_schemas::units::Span;

use crate::clock::{MINUTE, SECOND};
use crate::controller::Do;
use crate::deed::Deed;
use crate::world::{Event, World};

/// The names that agents have.
const NAMES: [&str; 6] = ["ada", "bob", "cy", "dot", "eve", "fay"];

/// Who edits and says things.
#[derive(Debug)]
pub struct People {
    file: File,
    /// What was shown and not answered yet.
    shown: Vec<ApprovalRequest>,
}

/// The fleet file as people have it open.
#[derive(Debug, Clone, Default)]
struct File {
    prune: &'static str,
    parallelism: Option<u32>,
    /// What the machines may have together, in gigabytes.
    memory: Option<u32>,
    /// When what runs may be disturbed.
    window: Option<&'static str>,
    /// Who may write to whom.
    allow: Vec<(&'static str, &'static str)>,
    agents: BTreeMap<&'static str, Agent>,
}

#[derive(Debug, Clone)]
struct Agent {
    driver: Option<&'static str>,
    cpus: u32,
    disk: u32,
    image: &'static str,
    power: &'static str,
    reconcile: &'static str,
    restart: &'static str,
    protect: bool,
    env: u32,
    after: Option<(&'static str, &'static str)>,
    team: Option<&'static str>,
    slots: u32,
    task: Option<Task>,
    /// More tasks: when they run, and on which terms.
    more: BTreeMap<&'static str, String>,
    idle: Option<u64>,
    ttl: Option<u64>,
    drift: &'static str,
    snapshots: &'static str,
}

#[derive(Debug, Clone)]
struct Task {
    code: u32,
    millis: u64,
}

impl Agent {
    fn draw(rng: &mut Rng) -> Self {
        let mut agent = Self {
            driver: None,
            cpus: 1,
            disk: 10,
            image: "debian",
            power: "running",
            reconcile: "auto",
            restart: "always",
            protect: false,
            env: 0,
            after: None,
            team: pick(rng, &[None, Some("a"), Some("a"), Some("b")]),
            slots: 1,
            task: None,
            more: BTreeMap::new(),
            idle: None,
            ttl: None,
            drift: "",
            snapshots: "",
        };
        for _ in 0..rng.u8(..3) {
            agent.edit(rng);
        }
        agent
    }

    /// Tasks that run for each session, after another, or at moments.
    fn edit_more(&mut self, rng: &mut Rng) {
        let (name, when) = pick(
            rng,
            &[
                ("c", "connect"),
                ("a", "{after: t}"),
                ("k", "{cron: \"*/3 * * * *\"}"),
                ("k", "{cron: \"* * * * *\", overlap: queue, missed: once}"),
            ],
        );
        if rng.u8(..3) == 0 {
            self.more.remove(name);
            return;
        }
        let terms = pick(rng, &["", ", idempotent: true", ", retry: 2", ", key: x", ", output: 1K"]);
        let argv = asking::argv(rng);
        let entry = format!("{{exec: {argv:?}, timeout: 20s, when: {when}{terms}}}");
        self.more.insert(name, entry);
    }

    fn edit(&mut self, rng: &mut Rng) {
        match rng.u8(..26) {
            24 | 25 => {
                let schedule = "schedules: {often: {cron: \"*/20 * * * *\", keep: {last: 2, hourly: 1}}}";
                self.snapshots = pick(rng, &["", "points: [provisioned]", schedule]);
            }
            18 | 19 => self.team = pick(rng, &[Some("a"), Some("b"), None]),
            20 => self.slots = rng.u32(1..4),
            21..24 => self.edit_more(rng),
            0 => self.driver = pick(rng, &[None, None, Some("qemu"), Some("multipass")]),
            1 => self.cpus = rng.u32(1..4),
            2 => self.disk = rng.u32(8..14),
            3 => self.image = pick(rng, &["debian", "debian+cloud-init"]),
            4 | 5 => self.power = pick(rng, &["running", "running", "stopped"]),
            6 => self.reconcile = pick(rng, &["auto", "auto", "manual", "paused"]),
            7 => self.restart = pick(rng, &["always", "on-failure", "never"]),
            8 => self.protect = rng.bool(),
            9 => self.env += 1,
            10 => {
                let until = pick(rng, &["started", "healthy", "completed"]);
                self.after = rng.choice(NAMES).filter(|_| rng.bool()).map(|name| (name, until));
            }
            11 => self.idle = rng.bool().then(|| rng.u64(20..400)),
            12 => self.ttl = rng.bool().then(|| rng.u64(1..15)),
            13 => self.drift = pick(rng, &["", "memory: warn", "cpus: ignore", "power: warn", "disk: ignore"]),
            _ => {
                self.task = (rng.u8(..4) != 0).then(|| Task { code: u32::from(rng.u8(..4) == 0), millis: length(rng) });
            }
        }
    }
}

/// How long a task takes: most are short, and some longer than they may.
fn length(rng: &mut Rng) -> u64 {
    match rng.u8(..5) {
        0 | 1 => rng.u64(SECOND..2 * MINUTE),
        _ => rng.u64(10..8 * SECOND),
    }
}

fn pick<T: Copy>(rng: &mut Rng, among: &[T]) -> T {
    among[rng.usize(..among.len())]
}

impl File {
    /// One more edit.
    fn edit(&mut self, rng: &mut Rng) {
        match rng.u8(..20) {
            18 | 19 => {
                let parties = ["{labels: team=a}", "{labels: team=b}", "{labels: team}"];
                self.allow = (0..rng.u8(..4)).map(|_| (pick(rng, &parties), pick(rng, &parties))).collect();
            }
            0 => self.prune = pick(rng, &["never", "confirm", "auto", "auto"]),
            1 => self.parallelism = rng.bool().then(|| rng.u32(1..4)),
            16 => self.memory = rng.bool().then(|| rng.u32(1..8)),
            17 => self.window = pick(rng, &[None, None, Some("* * * * *"), Some("*/20 * * * *")]),
            2..5 => {
                let name = pick(rng, &NAMES);
                self.agents.entry(name).or_insert_with(|| Agent::draw(rng));
            }
            5 | 6 => {
                let name = pick(rng, &NAMES);
                self.agents.remove(name);
            }
            // Somebody deletes too much.
            7 if rng.u8(..4) == 0 => self.agents.retain(|_, _| rng.u8(..3) == 0),
            _ => {
                if let Some(agent) = rng.choice(self.agents.values_mut()) {
                    agent.edit(rng);
                }
            }
        }
    }

    fn text(&self) -> String {
        let mut text = format!("prune: {}\n", self.prune);
        let parallelism = self.parallelism.map(|lanes| format!("parallelism: {lanes}"));
        let memory = self.memory.map(|memory| format!("memory: {memory}G"));
        if parallelism.is_some() || memory.is_some() {
            let limits: Vec<String> = parallelism.into_iter().chain(memory).collect();
            let _ = writeln!(text, "limits: {{{}}}", limits.join(", "));
        }
        if let Some(cron) = self.window {
            let _ = writeln!(text, "windows: [{{cron: \"{cron}\", lasts: 30s}}]");
        }
        if !self.allow.is_empty() {
            let rules = self.allow.iter().map(|(from, to)| format!("{{from: {from}, to: {to}}}"));
            let _ = writeln!(text, "messages: {{allow: [{}]}}", rules.collect::<Vec<_>>().join(", "));
        }
        text.push_str(if self.agents.is_empty() { "agents: {}\n" } else { "agents:\n" });
        for (name, agent) in &self.agents {
            let Agent { cpus, disk, image, power, reconcile, restart, protect, env, .. } = agent;
            let _ = write!(
                text,
                "  {name}: {{cpus: {cpus}, disk: {disk}G, image: \"{image}\", power: {power}, reconcile: {reconcile}, \
                 restart: {restart}, protect: {protect}, env: {{N: \"{env}\"}}"
            );
            if let Some(driver) = agent.driver {
                let _ = write!(text, ", driver: {driver}");
            }
            // Only on an earlier one: so there is no circle.
            if let Some((after, until)) = agent.after.filter(|(it, _)| self.agents.contains_key(it) && it < name) {
                let _ = write!(text, ", dependsOn: {{{after}: {until}}}");
            }
            if let Some(seconds) = agent.idle {
                let _ = write!(text, ", idle: {seconds}s");
            }
            if let Some(minutes) = agent.ttl {
                let _ = write!(text, ", ttl: {minutes}m");
            }
            if !agent.drift.is_empty() {
                let _ = write!(text, ", drift: {{{}}}", agent.drift);
            }
            if !agent.snapshots.is_empty() {
                let _ = write!(text, ", snapshots: {{{}}}", agent.snapshots);
            }
            let _ = write!(text, ", slots: {}", agent.slots);
            if let Some(team) = agent.team {
                let _ = write!(text, ", labels: {{team: {team}}}");
            }
            let once = agent.task.as_ref().map(|Task { code, millis }| {
                ("t", format!("{{exec: [run, \"{code}\", \"{millis}\", \"90\"], timeout: 60s}}"))
            });
            let more = agent.more.iter().filter(|(name, _)| **name != "a" || once.is_some());
            let more: Vec<_> = more.map(|(name, entry)| (*name, entry.clone())).collect();
            let tasks: Vec<String> = once.into_iter().chain(more).map(|(name, it)| format!("{name}: {it}")).collect();
            if !tasks.is_empty() {
                let _ = write!(text, ", tasks: {{{}}}", tasks.join(", "));
            }
            text.push_str("}\n");
        }
        text
    }
}

/// What people write reads.
fn read(text: &str) -> (FleetSource, Fleet) {
    let file = SourceFile { name: "fleet.yaml".to_owned(), path: None, text: text.to_owned() };
    let source = FleetSource { roots: Vec::new(), files: vec![file] };
    match fleet::parse_all(&source.files) {
        Ok(fleet) => (source, fleet),
        Err(problems) => panic!("people write what reads, and this does not: {problems:?}\n{text}"),
    }
}

impl People {
    /// People with a first file.
    #[must_use]
    pub fn draw(rng: &mut Rng) -> Self {
        let mut file = File { prune: pick(rng, &["confirm", "confirm", "auto", "never"]), ..File::default() };
        if rng.bool() {
            file.allow.push(("{labels: team}", "{labels: team=a}"));
        }
        for _ in 0..rng.u8(1..12) {
            file.edit(rng);
        }
        Self { file, shown: Vec::new() }
    }

    /// A name that an instance may have.
    pub fn some_name(&self, rng: &mut Rng) -> &'static str {
        pick(rng, &NAMES)
    }
}

impl World {
    /// A person does something.
    pub(super) fn person(&mut self) {
        if self.calm {
            return;
        }
        let delay = self.rng.u64(200..30 * SECOND);
        self.after(delay, Event::Person);
        self.remark();
    }

    /// A person says something.
    pub(crate) fn remark(&mut self) {
        if self.calm {
            return;
        }
        let Some(records) = self.life.as_ref().map(|life| Arc::clone(&life.records)) else { return };
        if records.file.is_none() {
            return self.apply(&records);
        }
        let name: AgentName = self.people.some_name(&mut self.rng).parse().expect("it is a name");
        match self.rng.u8(..30) {
            0..8 => {
                for _ in 0..self.rng.u8(1..4) {
                    self.people.file.edit(&mut self.rng);
                }
                self.apply(&records);
            }
            8..11 => self.approve(),
            11 | 12 => self.command(&records, &name, |records, name, request, voice| {
                intent::set_power(records, name, PowerState::Stopped, request, voice)
            }),
            13 | 14 => self.command(&records, &name, |records, name, request, voice| {
                intent::set_power(records, name, PowerState::Running, request, voice)
            }),
            15 => {
                let wanted = pick(&mut self.rng, &[Reconcile::Paused, Reconcile::Auto]);
                self.command(&records, &name, move |records, name, request, voice| {
                    intent::set_reconcile(records, name, wanted, request, voice)
                });
            }
            16 => self.pause(&records),
            17 => self.command(&records, &name, |records, name, _, voice| intent::destroy(records, name, voice)),
            18 => self.command(&records, &name, |records, name, _, voice| {
                intent::create(records, name, &CreateRequest::default(), voice)
            }),
            19 => {
                let path = pick(&mut self.rng, &OverridePath::ALL);
                let clear = self.rng.bool();
                self.command(&records, &name, move |records, name, request, voice| {
                    if clear {
                        intent::clear_override(records, name, path, voice)
                    } else {
                        intent::extend_override(records, name, path, request, voice)
                    }
                });
            }
            20..24 => self.ask_for_task(&records, &name),
            24 => self.cancel_some_task(),
            26..30 => self.ask_of_snapshots(&records, &name),
            _ => self.down(&records),
        }
    }

    fn said(&mut self, what: &str, changes: Vec<Change>) {
        self.trace(|| format!("somebody says: {what}"));
        self.carry_out(vec![Do::Effect(Effect::Record(changes)), Do::Effect(Effect::Wake)]);
    }

    /// Somebody applies this file.
    ///
    /// # Panics
    /// When it does not read, when it is refused, and when no controller lives.
    pub fn applies(&mut self, text: &str) {
        let records = Arc::clone(&self.life.as_ref().expect("a controller lives").records);
        let (source, fleet) = read(text);
        let hypothetical = Records { fleet: Arc::new(fleet.clone()), ..(*records).clone() };
        let plan = plan(&self.inputs(&hypothetical));
        let (cause, terms) = (Cause::Applied { by: "ana".to_owned() }, Terms { plan: None, approve: false });
        let changes = file::accept(&records, &source, &fleet, &plan, &terms, &cause).expect("the file is accepted");
        let file = NewFile { source, fleet, author: cause.author().to_owned(), summary: cause.summary(&plan) };
        self.carry_out(vec![Do::Accept(Box::new(file), changes), Do::Effect(Effect::Wake)]);
    }

    fn apply(&mut self, records: &Records) {
        if self.is_accepting() {
            return;
        }
        let text = self.people.file.text();
        let (source, fleet) = read(&text);
        let hypothetical = Records { fleet: Arc::new(fleet.clone()), ..records.clone() };
        let plan = plan(&self.inputs(&hypothetical));
        // A person applies it, or saves it where the watcher finds it.
        let saved = records.file.is_some() && self.rng.u8(..4) == 0;
        let approve = !saved && self.rng.u8(..5) == 0;
        let cause = if saved { Cause::Changed } else { Cause::Applied { by: "ana".to_owned() } };
        let terms = Terms { plan: approve.then(|| plan.id.clone()), approve };
        if saved && judge(records, &OnDisk::of(source.clone()), None) != Verdict::Apply {
            return;
        }
        let Ok(changes) = file::accept(records, &source, &fleet, &plan, &terms, &cause) else { return };
        if approve {
            for request in plan.approvals.iter().cloned() {
                self.tell(&Deed::Approved { request, records: Arc::new(hypothetical.clone()) });
            }
        }
        self.trace(|| format!("somebody applies (saved: {saved}, yes: {approve}):\n{text}"));
        let (author, summary) = (cause.author().to_owned(), cause.summary(&plan));
        let file = NewFile { source, fleet, author, summary };
        self.carry_out(vec![Do::Accept(Box::new(file), changes), Do::Effect(Effect::Wake)]);
    }

    /// Looks at what waits for a yes, and says it to some: to what is shown now, or was some time ago.
    fn approve(&mut self) {
        let Some((_, plan)) = self.present() else { return };
        let late = std::mem::replace(&mut self.people.shown, plan.approvals.clone());
        let from = if self.rng.u8(..3) == 0 { late } else { plan.approvals.clone() };
        let Some(meant) = self.rng.choice(from) else { return };
        // The door shows what waits now, and takes a yes to nothing else.
        let Some(request) = plan.approvals.iter().find(|it| it.id == meant.id).cloned() else { return };
        let records = Arc::clone(&self.life.as_ref().expect("somebody showed it").records);
        self.tell(&Deed::Approved { request: request.clone(), records });
        self.said(&format!("yes, {}", request.what), intent::approve(&request, "ana").into());
    }

    fn command(
        &mut self,
        records: &Records,
        name: &AgentName,
        decide: impl FnOnce(&Records, &AgentName, &ChangeRequest, Voice<'_>) -> Result<Intent, Problem>,
    ) {
        if intent::refuse_while_down(records).is_err() {
            return;
        }
        let lasting = match self.rng.u8(..4) {
            0 => Some(Span::from_secs(self.rng.u64(5..600))),
            _ => None,
        };
        let request = ChangeRequest { lasting, sticky: self.rng.u8(..6) == 0, ..ChangeRequest::default() };
        let voice = Voice { author: "ana", reason: None, now: self.clock.wall() };
        if let Ok(Intent { changes, .. }) = decide(records, name, &request, voice) {
            self.said(&format!("something of {name}"), changes);
        }
    }

    fn pause(&mut self, records: &Records) {
        let lasting = Some(Span::from_secs(self.rng.u64(5..300))).filter(|_| self.rng.bool());
        let request = ChangeRequest { lasting, ..ChangeRequest::default() };
        let voice = Voice { author: "ana", reason: None, now: self.clock.wall() };
        let (changes, _) = intent::pause_fleet(records, records.pause.is_none(), &request, voice);
        self.said("pause, or go on", changes);
    }

    fn down(&mut self, records: &Records) {
        let destroy = self.rng.u8(..3) == 0;
        if let Ok(mode) = intent::down(records, destroy) {
            self.said("down", vec![Change::Mode(mode)]);
        }
    }
}

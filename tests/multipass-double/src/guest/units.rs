//! The units of a machine, and what becomes of them. Everything happens in one thread: what ends, what is asked
//! and what time it is come to it as events.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitStatus};

use super::process;
use super::systemctl::{Reply, Request, full};
use super::unit::{UNITS, Unit};

/// What stands for the end of cloud-init.
const CLOUD_FINAL: &str = "cloud-final.service";

/// How it goes with a unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Going {
    #[default]
    Inactive,
    /// Waits for others, or for the time of its next start.
    Activating,
    Active,
    Deactivating,
    Failed,
}

impl Going {
    fn told(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Deactivating => "deactivating",
            Self::Failed => "failed",
        }
    }
}

/// A unit that was ever started.
#[derive(Default)]
struct Service {
    unit: Unit,
    active: Going,
    sub: &'static str,
    result: &'static str,
    /// The process that keeps all others of it.
    keeper: Option<u32>,
    restarts: u32,
    /// Starts as soon as these are there.
    awaits: Vec<String>,
    /// Which of those have to be well.
    requires: Vec<String>,
    /// Starts again then.
    again_at: Option<Instant>,
    /// What is left of it is killed then.
    kill_at: Option<Instant>,
    /// Starts again when it has stopped.
    then_start: bool,
    /// Who waits for what becomes of it.
    waiting: Vec<Sender<Reply>>,
}

/// All units of a machine.
#[derive(Default)]
pub(super) struct Units {
    services: BTreeMap<String, Service>,
    count: u64,
}

/// What is asked of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    /// To switch off.
    Off,
    /// To boot again.
    Reboot,
}

impl Units {
    /// Starts what is enabled.
    pub(super) fn boot(&mut self) {
        let wants = Path::new(UNITS).join("multi-user.target.wants");
        let mut names: Vec<_> = fs::read_dir(wants).into_iter().flatten().flatten().collect();
        names.sort_by_key(fs::DirEntry::file_name);
        for name in names.iter().filter_map(|entry| entry.file_name().into_string().ok()) {
            self.start(&name);
        }
    }

    /// Answers a request, now or later.
    pub(super) fn ask(&mut self, request: &Request, reply: Sender<Reply>) -> Option<Power> {
        let mut said = Reply::default();
        match request.verb.as_str() {
            "poweroff" | "halt" | "reboot" => {
                drop(reply.send(said));
                return Some(if request.verb == "reboot" { Power::Reboot } else { Power::Off });
            }
            "start" | "stop" | "restart" | "try-restart" | "reload-or-restart" => {
                self.change(request, reply);
                return None;
            }
            "enable" | "disable" => {
                said = self.enable(request);
                if request.now && said.code == 0 {
                    let verb = if request.verb == "enable" { "start" } else { "stop" };
                    self.change(&Request { verb: verb.to_owned(), ..request.clone() }, reply);
                    return None;
                }
            }
            "kill" => said = self.kill(request),
            "show" => {
                said = Reply::told(request.units.iter().map(|unit| self.show(unit, &request.properties)).collect());
            }
            "is-active" => {
                let states = request.units.iter().map(|unit| self.active(unit)).collect::<Vec<_>>();
                let well = states.iter().all(|state| *state == Going::Active);
                said.out = states.iter().map(|state| format!("{}\n", state.told())).collect();
                said.code = if well { 0 } else { 3 };
            }
            "is-enabled" => {
                let enabled = |unit: &String| Path::new(UNITS).join("multi-user.target.wants").join(unit).exists();
                let well = request.units.iter().all(enabled);
                said = Reply {
                    code: u8::from(!well),
                    out: if well { "enabled\n" } else { "disabled\n" }.to_owned(),
                    err: String::new(),
                };
            }
            "is-system-running" => said.out = "running\n".to_owned(),
            "status" => said = self.status(request),
            "reset-failed" => {
                let failed = self.services.values_mut().filter(|service| service.active == Going::Failed);
                failed.for_each(|service| (service.active, service.sub) = (Going::Inactive, "dead"));
            }
            "daemon-reload" | "daemon-reexec" | "list-units" | "mask" | "unmask" | "reload" => {}
            verb => said = Reply::failed(1, format!("Unknown command verb {verb}.\n")),
        }
        drop(reply.send(said));
        None
    }

    fn change(&mut self, request: &Request, reply: Sender<Reply>) {
        for unit in &request.units {
            if Unit::read(unit).is_none() && !self.services.contains_key(unit) {
                let text = match request.verb.as_str() {
                    "stop" => format!("Failed to stop {unit}: Unit {unit} not loaded.\n"),
                    verb => format!("Failed to {verb} {unit}: Unit {unit} not found.\n"),
                };
                drop(reply.send(Reply::failed(5, text)));
                return;
            }
            match request.verb.as_str() {
                "start" => self.start(unit),
                "stop" => self.stop(unit),
                "try-restart" if !matches!(self.active(unit), Going::Active | Going::Activating) => {}
                _ => self.restart(unit),
            }
        }
        // Who asks for several waits for the last of them.
        match request.units.last().and_then(|unit| self.services.get_mut(unit)) {
            Some(service) if !request.no_block => service.waiting.push(reply),
            _ => drop(reply.send(Reply::default())),
        }
        self.tick(Instant::now());
    }

    fn active(&self, unit: &str) -> Going {
        if unit == CLOUD_FINAL {
            let done = Path::new("/var/lib/cloud/instance/boot-finished").exists();
            return if done { Going::Active } else { Going::Activating };
        }
        self.services.get(unit).map_or(Going::Inactive, |service| service.active)
    }

    fn start(&mut self, name: &str) {
        let Some(unit) = Unit::read(name) else { return };
        if matches!(self.active(name), Going::Active | Going::Activating) {
            return;
        }
        let requires: Vec<String> = unit.others("Requires").chain(unit.others("BindsTo")).map(full).collect();
        let wants: Vec<String> = unit.others("Wants").map(full).collect();
        let after: Vec<String> = unit.others("After").map(full).collect();
        for other in requires.iter().chain(&wants) {
            self.start(other);
        }
        let service = self.services.entry(name.to_owned()).or_default();
        if service.active == Going::Deactivating {
            service.then_start = true;
            return;
        }
        let there = |name: &String| Path::new(UNITS).join(name).exists() || name == CLOUD_FINAL;
        (service.active, service.sub, service.result) = (Going::Activating, "start-pre", "success");
        service.awaits = after.into_iter().chain(requires.clone()).filter(there).collect();
        service.requires = requires.into_iter().filter(there).collect();
        service.unit = unit;
    }

    fn stop(&mut self, name: &str) {
        let now = Instant::now();
        let Some(service) = self.services.get_mut(name) else { return };
        service.again_at = None;
        service.then_start = false;
        service.awaits.clear();
        let Some(keeper) = service.keeper else {
            (service.active, service.sub) = (Going::Inactive, "dead");
            return;
        };
        (service.active, service.sub) = (Going::Deactivating, "stop-sigterm");
        service.kill_at = Some(now + service.unit.time("TimeoutStopSec", Duration::from_secs(90)));
        match service.unit.last("KillMode") {
            Some("mixed" | "process") => {
                process::main(name).into_iter().for_each(|pid| process::signal(pid, Signal::TERM));
            }
            _ => process::below(keeper).into_iter().for_each(|pid| process::signal(pid, Signal::TERM)),
        }
    }

    fn restart(&mut self, name: &str) {
        self.stop(name);
        match self.services.get_mut(name) {
            Some(service) if service.active == Going::Deactivating => service.then_start = true,
            _ => self.start(name),
        }
    }

    /// Stops all, and gives whether all have stopped.
    pub(super) fn shut_down(&mut self) -> bool {
        let running: Vec<String> = self
            .services
            .iter()
            .filter(|(_, service)| service.keeper.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in &running {
            if self.services[name].active != Going::Deactivating {
                self.stop(name);
            }
            if let Some(service) = self.services.get_mut(name) {
                service.then_start = false;
            }
        }
        self.services.values_mut().for_each(|service| (service.again_at, service.awaits) = (None, Vec::new()));
        running.is_empty()
    }

    /// A process has ended.
    pub(super) fn ended(&mut self, pid: u32, status: WaitStatus) {
        let Some((name, service)) = self.services.iter_mut().find(|(_, service)| service.keeper == Some(pid)) else {
            return;
        };
        let name = name.clone();
        service.keeper = None;
        let well = status.exit_status() == Some(0)
            || (service.active == Going::Deactivating && status.terminating_signal().is_some());
        let stopped = service.active == Going::Deactivating;
        if well && !stopped && service.unit.is_oneshot() {
            (service.active, service.sub) =
                if service.unit.stays() { (Going::Active, "exited") } else { (Going::Inactive, "dead") };
        } else {
            if !well {
                service.result = if status.terminating_signal().is_some() { "signal" } else { "exit-code" };
            }
            if !stopped && service.unit.restarts(well) {
                let pause = service.unit.time("RestartSec", Duration::from_millis(100));
                (service.active, service.sub) = (Going::Activating, "auto-restart");
                service.again_at = Some(Instant::now() + pause);
            } else if well {
                (service.active, service.sub) = (Going::Inactive, "dead");
            } else {
                (service.active, service.sub) = (Going::Failed, "failed");
            }
        }
        service.kill_at = None;
        if std::mem::take(&mut service.then_start) {
            self.start(&name);
        }
    }

    /// Does what is due, and tells who waits. Gives when it wants to be called again.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Instant> {
        for name in self.services.keys().cloned().collect::<Vec<_>>() {
            self.tick_one(&name, now);
        }
        for (name, service) in &mut self.services {
            // A oneshot is started when it has ended; anything else when it runs.
            if service.active == Going::Activating && service.again_at.is_none()
                || service.active == Going::Deactivating
            {
                continue;
            }
            let failed = service.active == Going::Failed || service.again_at.is_some();
            let reply = match failed {
                false => Reply::default(),
                true => Reply::failed(
                    1,
                    format!("Job for {name} failed because the control process exited with error code.\n"),
                ),
            };
            service.waiting.drain(..).for_each(|waiting| drop(waiting.send(reply.clone())));
        }
        let dates = self.services.values().flat_map(|service| [service.again_at, service.kill_at]);
        let waits = self.services.values().any(|service| !service.awaits.is_empty());
        dates.flatten().chain(waits.then(|| now + Duration::from_millis(20))).min()
    }

    fn tick_one(&mut self, name: &str, now: Instant) {
        let service = &self.services[name];
        let is_pending = service.active == Going::Activating && service.keeper.is_none() && service.again_at.is_none();
        let unready = service.awaits.iter().any(|other| self.active(other) == Going::Activating);
        let lacks = service.requires.iter().any(|other| self.active(other) == Going::Failed);
        let service = self.services.get_mut(name).expect("it was just there");
        if service.kill_at.is_some_and(|at| at <= now) {
            service.kill_at = None;
            let rest = service.keeper.map(process::below).unwrap_or_default();
            rest.into_iter().for_each(|pid| process::signal(pid, Signal::KILL));
        }
        if service.again_at.is_some_and(|at| at <= now) {
            service.again_at = None;
            service.restarts += 1;
            self.launch(name);
        } else if is_pending && !unready {
            service.awaits.clear();
            if lacks {
                (service.active, service.sub, service.result) = (Going::Failed, "failed", "dependency");
            } else if service.unit.condition() {
                self.launch(name);
            } else {
                (service.active, service.sub) = (Going::Inactive, "dead");
            }
        }
    }

    fn launch(&mut self, name: &str) {
        self.count += 1;
        let invocation = format!("double-{}-{}", self.count, name);
        let service = self.services.get_mut(name).expect("it was just there");
        let unit = &service.unit;
        let mut command = process::command(name, unit, &invocation);
        match command.spawn() {
            Ok(child) => {
                service.keeper = Some(child.id());
                (service.active, service.sub) = match unit.is_oneshot() {
                    true => (Going::Activating, "start"),
                    false => (Going::Active, "running"),
                };
            }
            Err(_) => (service.active, service.sub, service.result) = (Going::Failed, "failed", "resources"),
        }
    }

    fn show(&self, unit: &str, properties: &[String]) -> String {
        let none = Service { sub: "dead", result: "success", ..Service::default() };
        let service = self.services.get(unit).unwrap_or(&none);
        let loaded = if Unit::read(unit).is_some() { "loaded" } else { "not-found" };
        let all = [
            ("Type", service.unit.last("Type").unwrap_or("simple").to_owned()),
            ("Id", unit.to_owned()),
            ("LoadState", loaded.to_owned()),
            ("ActiveState", service.active.told().to_owned()),
            ("SubState", if service.sub.is_empty() { "dead" } else { service.sub }.to_owned()),
            ("Result", if service.result.is_empty() { "success" } else { service.result }.to_owned()),
            ("NRestarts", service.restarts.to_string()),
            ("MainPID", service.keeper.and_then(|_| process::main(unit)).unwrap_or_default().to_string()),
        ];
        let wanted = |key: &str| properties.is_empty() || properties.iter().any(|property| property == key);
        all.iter().filter(|(key, _)| wanted(key)).map(|(key, value)| format!("{key}={value}\n")).collect()
    }

    fn status(&self, request: &Request) -> Reply {
        let Some(unit) = request.units.first() else { return Reply::default() };
        let active = self.active(unit);
        let code = match (Unit::read(unit), active) {
            (None, _) => return Reply::failed(4, format!("Unit {unit} could not be found.\n")),
            (_, Going::Active | Going::Activating) => 0,
            _ => 3,
        };
        Reply { code, out: format!("● {unit}\n     Active: {}\n", active.told()), err: String::new() }
    }

    fn enable(&mut self, request: &Request) -> Reply {
        for name in &request.units {
            let Some(unit) = Unit::read(name) else {
                return Reply::failed(
                    1,
                    format!("Failed to {} unit: Unit file {name} does not exist.\n", request.verb),
                );
            };
            for target in unit.wanted_by() {
                let folder = Path::new(UNITS).join(format!("{target}.wants"));
                drop(fs::remove_file(folder.join(name)));
                if request.verb == "enable" {
                    drop(
                        fs::create_dir_all(&folder)
                            .and_then(|()| symlink(Path::new(UNITS).join(name), folder.join(name))),
                    );
                }
            }
        }
        Reply::default()
    }

    fn kill(&self, request: &Request) -> Reply {
        let signal_named = match request.signal.as_deref().unwrap_or("TERM").trim_start_matches("SIG") {
            "HUP" | "1" => Signal::HUP,
            "INT" | "2" => Signal::INT,
            "KILL" | "9" => Signal::KILL,
            "USR1" | "10" => Signal::USR1,
            "USR2" | "12" => Signal::USR2,
            _ => Signal::TERM,
        };
        for unit in &request.units {
            let Some(keeper) = self.services.get(unit).and_then(|service| service.keeper) else {
                return Reply::failed(1, format!("Failed to kill unit {unit}: No main process to kill\n"));
            };
            let whom = match request.main_only {
                true => process::main(unit).into_iter().collect(),
                false => process::below(keeper),
            };
            whom.into_iter().for_each(|pid| process::signal(pid, signal_named));
        }
        Reply::default()
    }
}

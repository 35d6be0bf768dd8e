//! The daemon. There is no process of that name: whoever does its work holds its lock meanwhile, so that it does
//! one thing at a time, and runs in a session of its own, so that the work outlives the client.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::home::{DIR_VARIABLE, Home, read_json, write_json};
use crate::instance;
use crate::knobs::{Access, Fault, Knobs};
use crate::state::{Instance, Phase, State};

/// The variable by which processes of the double are told from each other.
pub(crate) const ROLE_VARIABLE: &str = "MULTIPASS_DOUBLE_ROLE";
/// Does the daemon's work for one client.
pub(crate) const WORKER: &str = "worker";
/// Is a machine.
pub(crate) const MACHINE: &str = "machine";
/// Begins a new daemon.
pub(crate) const BEGINNER: &str = "beginner";
/// The first argument of a process that begins a new daemon; the second is the pause before, in milliseconds.
pub(crate) const BEGIN: &str = "double-begin";

/// How long the daemon's lock may stay held after the daemon has ended.
const SETTLED: Duration = Duration::from_secs(1);

/// Whether there is a daemon.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Presence {
    down: bool,
}

/// The daemon at work: its lock is held.
pub(crate) struct Serial {
    _lock: File,
    home: Home,
    /// What it remembers. Whoever changes it saves it.
    pub(crate) state: State,
    /// What it has lost sight of.
    vanished: BTreeMap<String, Instance>,
}

impl Serial {
    /// Writes down what is remembered.
    pub(crate) fn save(&self) {
        let mut state = self.state.clone();
        state.instances.extend(self.vanished.clone());
        write_json(&self.home.state(), &state).expect("the state folder can be written");
    }
}

/// Whether the daemon would talk to this client. Needs no lock: nobody listens, or the door is shut.
pub(crate) fn reach(home: &Home, knobs: &Knobs, command: &str) -> Result<(), Failure> {
    if knobs.daemon_down || read_json::<Presence>(&home.daemon()).down {
        return Err(Failure::no_socket(command));
    }
    let text = match knobs.access {
        Access::Granted => return Ok(()),
        Access::Denied => {
            "multipass socket access denied\nPlease check that you have read/write permissions to \
             '/run/multipass_socket'"
        }
        Access::NotAuthenticated => {
            "The client is not authenticated with the Multipass service.\nPlease use 'multipass authenticate' before \
             proceeding."
        }
    };
    Err(Failure::daemon(command, text))
}

/// Waits until the daemon has time, and takes it.
pub(crate) fn enter(home: &Home, knobs: &Knobs, command: &str) -> Result<Serial, Failure> {
    reach(home, knobs, command)?;
    let mut serial = hold(home);
    reach(home, knobs, command)?;
    let lost = knobs.vanished.iter().filter_map(|name| serial.state.instances.remove_entry(name));
    serial.vanished = lost.collect();
    Ok(serial)
}

/// Takes the daemon's lock, also where nobody listens.
pub(crate) fn hold(home: &Home) -> Serial {
    let lock = OpenOptions::new().create(true).append(true).open(home.lock()).expect("the state folder can be written");
    lock.lock().expect("a file of one's own can be locked");
    let mut serial =
        Serial { _lock: lock, home: home.clone(), state: read_json(&home.state()), vanished: BTreeMap::new() };
    let before = serial.state.clone();
    refresh(home, &mut serial.state);
    if before != serial.state {
        serial.save();
    }
    serial
}

/// Takes note of what happened in the machines meanwhile.
fn refresh(home: &Home, state: &mut State) {
    state.preparing.retain(|_, worker| Path::new("/proc").join(worker.to_string()).exists());
    for (name, instance) in &mut state.instances {
        if instance.phase.needs_process() && !instance::lives(home, name) {
            (instance.phase, instance.shutdown_at) = (Phase::Stopped, None);
        }
        let up = instance::is_up(home, name);
        match instance.phase {
            Phase::Running | Phase::DelayedShutdown if !up => instance.phase = Phase::Restarting,
            Phase::Restarting if up => instance.phase = Phase::Running,
            // A machine that boots anew is no longer the one that did not answer.
            Phase::Unknown if instance::boots(home, name) > 1 && up => instance.phase = Phase::Running,
            _ => {}
        }
        if instance.shutdown_at.is_some_and(|at| at <= Timestamp::now().as_millisecond()) {
            instance::kill(home, name);
            (instance.phase, instance.shutdown_at) = (Phase::Stopped, None);
        }
    }
}

/// The fault that a call meets, if any. Meeting it uses it up.
pub(crate) fn fault(home: &Home, knobs: &Knobs, command: &str, arguments: &[String]) -> Option<Fault> {
    if knobs.faults.is_empty() {
        return None;
    }
    // A lock of its own: a call may fail while the daemon is busy.
    let path = home.path().join("faults.json");
    let lock = OpenOptions::new().create(true).append(true).open(path.with_extension("lock")).ok()?;
    lock.lock().ok()?;
    let mut met: (u64, Vec<u32>) = read_json(&path);
    if met.0 != knobs.generation || met.1.len() != knobs.faults.len() {
        met = (knobs.generation, vec![0; knobs.faults.len()]);
    }
    let fits = |fault: &Fault| {
        (fault.command == "*" || fault.command == command)
            && fault.containing.as_ref().is_none_or(|part| arguments.iter().any(|argument| argument.contains(part)))
    };
    let mut found = None;
    for (fault, met) in knobs.faults.iter().zip(&mut met.1).filter(|(fault, _)| fits(fault)) {
        *met += 1;
        if *met > fault.after && *met <= fault.after.saturating_add(fault.times) {
            found = Some(fault.clone());
            break;
        }
    }
    write_json(&path, &met).ok()?;
    found
}

/// Begins a phase: waits as long as it takes, and ends the daemon where that was asked for.
pub(crate) fn phase(home: &Home, knobs: &Knobs, phase: &str) {
    if let Some(kill) = knobs.kill_daemon.as_ref().filter(|kill| kill.phase == phase) {
        thread::sleep(knobs.latency(phase) / 2);
        // Once: the new daemon is not killed at the same place.
        let told = home.path().join("killed");
        if fs::OpenOptions::new().create_new(true).write(true).open(told).is_ok() {
            kill_now(home);
            if let Some(pause) = kill.back_after {
                begin_later(home, Duration::from_millis(pause));
            }
            std::process::exit(0);
        }
    }
    thread::sleep(knobs.latency(phase));
}

/// Ends the daemon as by SIGKILL: its work stops where it is, and its machines are gone, as the service manager
/// has it. This process goes on.
pub(crate) fn kill_now(home: &Home) {
    mark(home, true);
    for process in processes(home) {
        if process.role == WORKER && process.pid != std::process::id() {
            end(process.pid);
        }
    }
    let state: State = read_json(&home.state());
    // What is suspended has no process that could be killed, but lies on the disk.
    for (name, _) in state.instances.iter().filter(|(_, instance)| instance.phase != Phase::Suspended) {
        instance::kill(home, name);
    }
    settle(home, |instance| {
        if instance.phase != Phase::Suspended {
            instance.autostart = instance.phase.is_running();
            (instance.phase, instance.shutdown_at) = (Phase::Stopped, None);
        }
    });
}

/// Ends the daemon as by SIGTERM: it saves the memory of machines that run, to go on with them.
pub(crate) fn stop_now(home: &Home) {
    mark(home, true);
    settle(home, |_| {});
    let state: State = read_json(&home.state());
    for (name, _) in state.instances.iter().filter(|(_, instance)| instance.phase.is_running()) {
        instance::freeze(home, name);
    }
    settle(home, |instance| {
        if instance.phase.is_running() {
            instance.autostart = true;
            (instance.phase, instance.shutdown_at) = (Phase::Suspended, None);
        }
    });
}

/// Changes all instances where no daemon does.
fn settle(home: &Home, change: impl Fn(&mut Instance)) {
    let lock = OpenOptions::new().create(true).append(true).open(home.lock()).expect("the state folder can be written");
    // Whoever held it has been killed. Only this process itself may still hold it, where it ends the daemon that it is.
    let begun = Instant::now();
    while lock.try_lock().is_err() && begun.elapsed() < SETTLED {
        thread::sleep(Duration::from_millis(5));
    }
    let mut state: State = read_json(&home.state());
    state.preparing.clear();
    state.instances.values_mut().for_each(change);
    write_json(&home.state(), &state).expect("the state folder can be written");
}

/// Begins a daemon: what ran when the last one ended is started, and runs before this returns.
pub(crate) fn begin_now(home: &Home, knobs: &Knobs) {
    mark(home, false);
    let mut serial = hold(home);
    serial.state.vault = serial.state.vault.read_anew();
    let mut started = Vec::new();
    for (name, instance) in serial.state.instances.iter_mut().filter(|(_, instance)| instance.autostart) {
        let resumed = instance.phase == Phase::Suspended;
        instance.autostart = false;
        instance.phase = Phase::Starting;
        if resumed {
            instance::thaw(home, name);
        } else {
            instance::boot(home, knobs, name, instance);
        }
        started.push(name.clone());
    }
    serial.save();
    drop(serial);
    thread::sleep(knobs.latency("start.boot"));
    for name in started {
        instance::await_up(home, knobs, &name, knobs.limit("ssh"));
        let mut serial = hold(home);
        if let Some(instance) =
            serial.state.instances.get_mut(&name).filter(|instance| instance.phase == Phase::Starting)
        {
            instance.phase = Phase::Running;
            serial.save();
        }
    }
}

/// Has a process begin a daemon after a pause.
pub(crate) fn begin_later(home: &Home, pause: Duration) {
    let spawned = own(home, BEGINNER).args([BEGIN, &pause.as_millis().to_string()]).stdin(Stdio::null()).spawn();
    drop(spawned.expect("this program can be run again"));
}

fn mark(home: &Home, down: bool) {
    write_json(&home.daemon(), &Presence { down }).expect("the state folder can be written");
}

/// What of its client's environment matters to a daemon that does its work. It is not the client's child, so all else
/// is nothing to it.
const KEPT_VARIABLES: [&str; 5] = ["PATH", "HOME", "LC_ALL", "TZ", PROGRAM_VARIABLE];

/// This program, to be run in another role, in a process group of its own.
pub(crate) fn own(home: &Home, role: &str) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program());
    let kept = KEPT_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.env_clear().envs(kept).env(DIR_VARIABLE, home.path()).env(ROLE_VARIABLE, role).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The file of this program. The tests' handle is another program, and says where it is.
fn program() -> PathBuf {
    std::env::var_os(PROGRAM_VARIABLE)
        .map(PathBuf::from)
        .or_else(|| std::env::current_exe().ok())
        .expect("a program knows its own file")
}

/// The variable that names the program where this process is not it.
pub(crate) const PROGRAM_VARIABLE: &str = "MULTIPASS_DOUBLE_PROGRAM";

/// A process of this double.
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: u32,
    /// Its role; empty for a client.
    pub(crate) role: String,
}

/// All processes of this double, by what their environment says. Processes in machines are not among them: they
/// end with their machine.
pub(crate) fn processes(home: &Home) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ours = format!("{DIR_VARIABLE}={}", home.path().display());
    let role = format!("{ROLE_VARIABLE}=");
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let environment = String::from_utf8_lossy(&environment).into_owned();
            let mut variables = environment.split('\0');
            variables.clone().any(|variable| variable == ours).then(|| Process {
                pid,
                role: variables.find_map(|variable| variable.strip_prefix(&role)).unwrap_or_default().to_owned(),
            })
        })
        .collect()
}

/// Kills a process.
pub(crate) fn end(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal to a process. That it is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// Tells an error of the operating system apart from a bug.
pub(crate) fn expect_io<T>(result: io::Result<T>, what: &str) -> T {
    result.unwrap_or_else(|error| panic!("could not {what}: {error}"))
}

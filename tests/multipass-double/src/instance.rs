//! The machines: processes in namespaces of their own, whose root is the folder of their instance.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::daemon::{self, MACHINE, expect_io, signal};
use crate::guest::image;
use crate::home::{Home, read_json, write_json};
use crate::knobs::Knobs;
use crate::state::Instance;

/// The first argument of the process that becomes a machine; the second is the instance.
pub(crate) const BECOME: &str = "double-machine";
/// What a machine's processes may not do: it shares the clock and the network with this host.
const FORBIDDEN: &str = "-sys_time,-sys_module,-sys_boot,-net_admin";
/// How often something is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// What the daemon tells a machine before it boots.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The host name.
    pub(crate) name: String,
    /// The id of the hardware.
    pub(crate) uuid: String,
    /// How long each boot takes, in milliseconds.
    pub(crate) boot: u64,
    /// How long cloud-init takes besides what it does, in milliseconds.
    pub(crate) cloud_init: u64,
    /// Packages that there are not.
    pub(crate) missing_packages: Vec<String>,
    /// Ignores the power button.
    pub(crate) ignores_power_button: bool,
    /// Host folders, as (folder, place in the machine).
    pub(crate) mounts: Vec<(String, String)>,
}

/// What a machine tells the daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// Its first process, as this host knows it.
    pub(crate) pid: u32,
    /// When that process began, in ticks since the host booted: ids of processes come again.
    pub(crate) started: u64,
    /// How often it booted without having been off.
    pub(crate) boots: u32,
    /// SSH answers.
    pub(crate) up: bool,
}

fn report(home: &Home, name: &str) -> Report {
    read_json(&home.machine(name).join("report.json"))
}

/// The id of the machine's first process, while it lives.
pub(crate) fn pid(home: &Home, name: &str) -> Option<u32> {
    let report = report(home, name);
    (report.pid != 0 && started(report.pid) == Some(report.started)).then_some(report.pid)
}

/// Whether there is a process.
pub(crate) fn lives(home: &Home, name: &str) -> bool {
    pid(home, name).is_some()
}

/// Whether SSH would answer.
pub(crate) fn is_up(home: &Home, name: &str) -> bool {
    report(home, name).up
}

/// How often it booted since it was last switched on.
pub(crate) fn boots(home: &Home, name: &str) -> u32 {
    report(home, name).boots
}

/// Whether the machine stands still.
pub(crate) fn is_frozen(home: &Home, name: &str) -> bool {
    pid(home, name).and_then(stat).is_some_and(|(state, _)| state == 'T')
}

/// The state of a process, and when it began.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything but ends with the last parenthesis.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?)).filter(|(state, _)| *state != 'Z')
}

/// When a process began.
pub(crate) fn started(pid: u32) -> Option<u64> {
    stat(pid).map(|(_, started)| started)
}

/// Switches a machine on. It boots by itself.
pub(crate) fn boot(home: &Home, knobs: &Knobs, name: &str, instance: &Instance) {
    let machine = home.machine(name);
    expect_io(fs::create_dir_all(&machine), "make a machine's folder");
    fs::remove_file(machine.join("report.json")).ok();
    fs::remove_file(machine.join("power")).ok();
    image::install(home);
    image::make_disk(home, name);
    let mounts = instance.mounts.iter().map(|(target, mount)| (mount.source.clone(), target.clone())).collect();
    let order = Order {
        name: name.to_owned(),
        uuid: instance.uuid.clone(),
        boot: u64::try_from(knobs.latency("guest.boot").as_millis()).unwrap_or(u64::MAX),
        cloud_init: u64::try_from(knobs.latency("cloud-init").as_millis()).unwrap_or(u64::MAX),
        missing_packages: knobs.missing_packages.clone(),
        ignores_power_button: knobs.ignores_power_button.iter().any(|deaf| deaf == name),
        mounts,
    };
    expect_io(write_json(&machine.join("order.json"), &order), "write a machine's order");
    let button = mkfifoat(CWD, machine.join("power"), Mode::RUSR | Mode::WUSR);
    expect_io(button.map_err(Into::into), "make a power button");
    let own = daemon::own(home, MACHINE);
    let mut command = Command::new("unshare");
    command.env_clear();
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--propagation=private"]);
    command.args(["setpriv", "--bounding-set", FORBIDDEN, "--inh-caps", FORBIDDEN]);
    command.arg(own.get_program()).args([BECOME, name]);
    for (key, value) in own.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    let log = expect_io(fs::File::create(machine.join("log")), "make a machine's log");
    let again = expect_io(log.try_clone(), "share a machine's log");
    let spawned = command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(again).spawn();
    let mut spawned = expect_io(spawned, "run `unshare`, which is part of util-linux");
    // From here on there is a process, or there is not.
    while !lives(home, name) && spawned.try_wait().is_ok_and(|ended| ended.is_none()) {
        thread::sleep(GLANCE);
    }
}

/// Waits until SSH answers. Whether it does within the time.
pub(crate) fn await_up(home: &Home, knobs: &Knobs, name: &str, limit: Duration) -> bool {
    let begun = Instant::now();
    loop {
        if is_up(home, name) && !is_frozen(home, name) && !knobs.deaf.iter().any(|deaf| deaf == name) {
            return true;
        }
        if begun.elapsed() >= limit || !lives(home, name) {
            return false;
        }
        thread::sleep(GLANCE);
    }
}

/// Presses the power button, and waits. Whether the machine is off within the time.
pub(crate) fn press_power_button(home: &Home, name: &str, limit: Duration) -> bool {
    if lives(home, name) {
        // Without a reader it would wait; a machine that ends right now has none.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag of open fits its argument");
        let button = fs::OpenOptions::new().write(true).custom_flags(flags).open(home.machine(name).join("power"));
        drop(button.and_then(|mut button| button.write_all(b"off\n")));
    }
    gone_within(home, name, limit)
}

/// Switches a machine off, as by pulling the plug.
pub(crate) fn kill(home: &Home, name: &str) {
    if let Some(pid) = pid(home, name) {
        signal(pid, Signal::KILL);
        gone_within(home, name, Duration::from_secs(10));
    }
}

fn gone_within(home: &Home, name: &str, limit: Duration) -> bool {
    let begun = Instant::now();
    while lives(home, name) {
        if begun.elapsed() >= limit {
            return false;
        }
        thread::sleep(GLANCE);
    }
    true
}

/// Has all processes of a machine stand still.
pub(crate) fn freeze(home: &Home, name: &str) {
    // Twice: one that was just born is met the second time.
    for _ in 0..2 {
        all(home, name).for_each(|pid| signal(pid, Signal::STOP));
    }
}

/// Has them go on.
pub(crate) fn thaw(home: &Home, name: &str) {
    all(home, name).for_each(|pid| signal(pid, Signal::CONT));
}

/// All processes of a machine, by their namespace.
fn all(home: &Home, name: &str) -> impl Iterator<Item = u32> {
    let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = pid(home, name).and_then(space);
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(move |pid| own.is_some() && space(*pid) == own)
}

/// Copies a folder with all that it says of its files.
pub(crate) fn copy(from: &Path, to: &Path) {
    expect_io(fs::create_dir_all(to), "make a folder");
    let copied = Command::new("cp").arg("-a").arg("--reflink=auto").arg(from.join(".")).arg(to).status();
    assert!(expect_io(copied, "run `cp`").success(), "`cp` could not copy {} to {}", from.display(), to.display());
}

/// A command line in a machine, as a user logged in by SSH would run it.
pub(crate) fn shell(home: &Home, name: &str, line: &str) -> Option<Command> {
    let mut command = inside(home, name)?;
    command.args(["bash", "-c", line]);
    Some(command)
}

/// What is to run in a machine as `ubuntu`, at home: the program and its arguments are to be added.
pub(crate) fn inside(home: &Home, name: &str) -> Option<Command> {
    let pid = pid(home, name)?.to_string();
    let root = rustix::process::geteuid().is_root();
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid, "--mount", "--pid", "--uts", "--ipc"]);
    if !root {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.args(["setpriv", "--bounding-set", FORBIDDEN, "--inh-caps", FORBIDDEN]);
    if root {
        command.args(["--reuid", "1000", "--regid", "1000", "--init-groups"]);
    }
    command.args(["env", "--chdir=/home/ubuntu"]);
    let environment = [
        ("SHELL", "/bin/bash"),
        ("PWD", "/home/ubuntu"),
        ("LOGNAME", "ubuntu"),
        ("HOME", "/home/ubuntu"),
        ("USER", "ubuntu"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ];
    command.env_clear().envs(environment);
    // A group of its own: a signal to that of the client does not reach it.
    command.process_group(0);
    Some(command)
}

/// The first argument of the process that mounts a folder of this host in a machine: the machine's first process,
/// the folder and the place there follow.
pub(crate) const MOUNT: &str = "double-mount";

/// Mounts a folder of this host in a machine that runs.
pub(crate) fn mount(home: &Home, name: &str, source: &Path, target: &str) -> Result<(), String> {
    let Some(pid) = pid(home, name) else { return Err("the instance is not running".to_owned()) };
    let own = daemon::own(home, MACHINE);
    // A process of its own: it leaves this host's mounts for good.
    let done = Command::new(own.get_program())
        .env(crate::home::DIR_VARIABLE, home.path())
        .args([MOUNT, &pid.to_string()])
        .args([source.as_os_str(), target.as_ref()])
        .output();
    match done {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// What that process does.
pub(crate) fn mount_here(words: &[String]) -> std::io::Result<()> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let [pid, source, target] = words else { return Err(std::io::Error::other("three arguments are needed")) };
    let space = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
    let tree = open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE)?;
    let kind = rustix::thread::LinkNameSpaceType::Mount;
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), Some(kind))?;
    let target = if target.starts_with('/') { target.clone() } else { format!("/home/ubuntu/{target}") };
    fs::create_dir_all(&target)?;
    move_mount(tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Removes a mount from a machine that runs.
pub(crate) fn unmount(home: &Home, name: &str, target: &str) {
    let Some(pid) = pid(home, name) else { return };
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--mount", "--pid"]);
    command.args(["env", "--chdir=/home/ubuntu", "umount", "--lazy", target]);
    drop(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status());
}

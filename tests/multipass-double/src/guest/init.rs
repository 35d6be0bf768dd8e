//! The first process of a machine.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};

use super::image::PROGRAM;
use super::systemctl::{Reply, Request};
use super::units::{Power, Units};
use super::{SHARED, SOCKET, cloud_init, mounts};
use crate::home::{Home, read_json, write_json};
use crate::instance::{Order, Report, started};

/// How long services have to stop when the machine is switched off.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(90);
/// How often it is seen whether the owner of the double still lives.
const OWNER_GLANCE: Duration = Duration::from_millis(500);

/// What comes to the first process.
enum Event {
    /// The power button.
    Button,
    /// A process has ended.
    Ended(u32, WaitStatus),
    /// A program of the machine asks.
    Asked(Request, Sender<Reply>),
}

/// Becomes the machine of an instance. This process is the first of its namespace and has mounts of its own.
pub(crate) fn become_machine(home: &Home, name: &str) -> io::Result<()> {
    // The processes are still listed as the host knows them.
    let pid: u32 = fs::read_link("/proc/self")?.to_string_lossy().parse().map_err(io::Error::other)?;
    let order: Order = read_json(&home.machine(name).join("order.json"));
    let report = Report { pid, started: started(pid).unwrap_or_default(), boots: 0, up: false };
    write_json(&home.machine(name).join("report.json"), &report)?;
    watch_owner(home);
    mounts::enter(home, name, &order)?;
    rustix::system::sethostname(order.name.as_bytes())?;
    let (events, coming) = mpsc::channel();
    watch_button(events.clone());
    watch_children(events.clone());
    listen(events)?;
    let mut machine = Machine { order, report, coming };
    while machine.live()? == Power::Reboot {}
    Ok(())
}

/// The machine.
struct Machine {
    order: Order,
    report: Report,
    coming: Receiver<Event>,
}

impl Machine {
    /// Boots, and runs until it is to be off or to boot again.
    fn live(&mut self) -> io::Result<Power> {
        self.report.boots += 1;
        self.tell(false)?;
        mounts::empty(Path::new("/run"))?;
        mounts::empty(Path::new("/tmp"))?;
        mounts::new_boot_id(self.report.boots == 1)?;
        thread::sleep(Duration::from_millis(self.order.boot));
        let mut units = Units::default();
        units.boot();
        self.follow_cloud_init()?;
        self.tell(true)?;
        let power = self.run(&mut units);
        if power == Power::Reboot {
            self.tell(false)?;
        }
        self.shut_down(&mut units);
        Ok(power)
    }

    fn run(&mut self, units: &mut Units) -> Power {
        loop {
            match self.next(units) {
                Some(Event::Button) if self.order.ignores_power_button => {}
                Some(Event::Button) => return Power::Off,
                Some(Event::Ended(pid, status)) => units.ended(pid, status),
                Some(Event::Asked(request, reply)) => {
                    if let Some(power) = units.ask(&request, reply) {
                        return power;
                    }
                }
                None => {}
            }
        }
    }

    fn shut_down(&mut self, units: &mut Units) {
        let begun = Instant::now();
        while !units.shut_down() && begun.elapsed() < SHUTDOWN_LIMIT {
            match self.next(units) {
                Some(Event::Ended(pid, status)) => units.ended(pid, status),
                Some(Event::Asked(_, reply)) => drop(reply.send(Reply::failed(1, "Shutting down.\n".to_owned()))),
                _ => {}
            }
        }
        // Whoever still is there: first asked, then not.
        for (signal, limit) in [(Signal::TERM, Duration::from_millis(500)), (Signal::KILL, Duration::from_secs(5))] {
            let begun = Instant::now();
            while !others().is_empty() && begun.elapsed() < limit {
                for pid in others() {
                    // It may have gone by itself.
                    kill_process(pid, signal).ok();
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn next(&mut self, units: &mut Units) -> Option<Event> {
        let now = Instant::now();
        let pause = units.tick(now).map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(now));
        self.coming.recv_timeout(pause).ok()
    }

    fn follow_cloud_init(&self) -> io::Result<()> {
        cloud_init::begin(&self.order)?;
        let log = OpenOptions::new().create(true).append(true).open("/var/log/cloud-init-output.log")?;
        let mut command = Command::new(Path::new("/").join(PROGRAM));
        command.arg0("cloud-init").arg(cloud_init::FOLLOW).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().map(drop)
    }

    fn tell(&mut self, up: bool) -> io::Result<()> {
        self.report.up = up;
        write_json(&Path::new(SHARED).join("report.json"), &self.report)
    }
}

/// All processes of the machine but this one.
fn others() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != 1 && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
        .filter_map(Pid::from_raw)
        .collect()
}

fn watch_button(events: Sender<Event>) {
    thread::spawn(move || {
        // Opened for writing as well: else every press would end it.
        let Ok(button) = OpenOptions::new().read(true).write(true).open(Path::new(SHARED).join("power")) else {
            return;
        };
        for _ in BufReader::new(button).lines().map_while(Result::ok) {
            drop(events.send(Event::Button));
        }
    });
}

fn watch_children(events: Sender<Event>) {
    thread::spawn(move || {
        loop {
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or_default();
                    drop(events.send(Event::Ended(pid, status)));
                }
                // There is none, or one of another namespace came in and went.
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    });
}

fn listen(events: Sender<Event>) -> io::Result<()> {
    drop(fs::remove_file(SOCKET));
    let listener = UnixListener::bind(SOCKET)?;
    // Whoever is no root may ask how it goes.
    fs::set_permissions(SOCKET, Permissions::from_mode(0o666))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let events = events.clone();
            thread::spawn(move || drop(serve(stream, &events)));
        }
    });
    Ok(())
}

fn serve(mut stream: UnixStream, events: &Sender<Event>) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let (reply, answer) = mpsc::channel();
    drop(events.send(Event::Asked(serde_json::from_str(&line)?, reply)));
    let answer: Reply = answer.recv().map_err(io::Error::other)?;
    stream.write_all(serde_json::to_string(&answer)?.as_bytes())?;
    stream.write_all(b"\n")
}

/// Ends the machine when the test that it belongs to is gone without having cleaned up.
fn watch_owner(home: &Home) {
    let Ok(owner) = File::open(home.owner()) else { return };
    thread::spawn(move || {
        loop {
            if owner.try_lock_shared().is_ok() {
                std::process::exit(0);
            }
            thread::sleep(OWNER_GLANCE);
        }
    });
}

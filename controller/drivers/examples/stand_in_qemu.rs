//! The least that driver `qemu` asks of a QEMU and of the guest in it, for its tests: a monitor, a channel,
//! and a guest program behind it that is up at once.
//!
//! The machine's name says how it behaves: `deaf` ignores its power button, `mute` has no guest program,
//! `broken` ends at once, `locked` because another has its disk, `full` stands still until it is told to go on,
//! `refusing` takes no seed, `falling` ends as soon as it is asked for anything.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{ExitCode, exit};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use vm_agent_schemas::guest::{FromGuest, MachineId, Proof, Ready, State, ToGuest, UnitState, line};
use vm_agent_schemas::ids::{BootId, Nonce};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--version") {
        let _ = writeln!(std::io::stdout(), "QEMU emulator version 0.0 (stand-in)");
        return ExitCode::SUCCESS;
    }
    let after = |option: &str, key: &str| {
        let pairs = arguments.windows(2).filter(|pair| pair[0] == option);
        let mut values = pairs.flat_map(|pair| pair[1].split(','));
        values.find_map(|value| value.strip_prefix(key)).map(str::to_owned)
    };
    let Some(name) = after("-name", "") else { return ExitCode::FAILURE };
    if name == "broken" {
        let _ = writeln!(std::io::stderr(), "broken on purpose");
        return ExitCode::FAILURE;
    }
    if name == "locked" {
        let said =
            "-blockdev driver=qcow2: Failed to get \"write\" lock\nIs another process using the image [disk.qcow2]?";
        let _ = writeln!(std::io::stderr(), "{said}");
        return ExitCode::FAILURE;
    }
    let incoming = arguments.iter().any(|argument| argument == "-incoming");
    if let Some(ram) = after("-object", "mem-path=")
        && fs::metadata(&ram).is_err()
    {
        fs::write(ram, "what is in its memory").expect("the folder can be written");
    }
    let layer = after("-blockdev", "file.filename=").expect("there is a disk");
    let saving = Saving {
        status: if incoming { "completed" } else { "none" },
        is_halted: incoming,
        pauses: false,
        added: None,
        layer,
    };
    let saving = Arc::new(Mutex::new(saving));
    let machine = Machine { name, nonce: Arc::default(), is_off: Arc::default(), saving, boot_id: BootId::generate() };
    let channel = listen(&after("-chardev", "path=").expect("there is a channel"));
    let monitor = listen(&after("-qmp", "unix:").expect("there is a monitor"));
    let pid = after("-pidfile", "").expect("there is a place for the pid");
    fs::write(pid, std::process::id().to_string()).expect("the folder can be written");
    let guest = machine.clone();
    thread::spawn(move || channel.incoming().flatten().for_each(|stream| guest.speak(stream)));
    monitor.incoming().flatten().for_each(|stream| machine.obey(stream));
    ExitCode::SUCCESS
}

fn listen(path: &str) -> UnixListener {
    let _ = fs::remove_file(path);
    UnixListener::bind(path).expect("the folder can be written")
}

#[derive(Clone)]
struct Machine {
    name: String,
    nonce: Arc<Mutex<Option<Nonce>>>,
    is_off: Arc<Mutex<bool>>,
    saving: Arc<Mutex<Saving>>,
    boot_id: BootId,
}

/// The machine's memory on its way to a file or from one, and its disk.
struct Saving {
    status: &'static str,
    is_halted: bool,
    /// Whether it stands still before the rest of its memory is written.
    pauses: bool,
    /// The layer that was opened last.
    added: Option<String>,
    /// The one that is written to.
    layer: String,
}

impl Saving {
    /// What becomes of it by a command, and what that is answered; nothing for a command that is not about it.
    fn obey(&mut self, command: &Value) -> Option<Value> {
        match command["execute"].as_str()? {
            "migrate-set-capabilities" => {
                let asked = command["arguments"]["capabilities"].as_array().into_iter().flatten();
                self.pauses |= asked.into_iter().any(|it| it["capability"] == "pause-before-switchover");
            }
            "migrate" if !self.pauses => (self.status, self.is_halted) = ("completed", true),
            "migrate" => (self.status, self.is_halted) = ("pre-switchover", true),
            "migrate-continue" => self.status = "completed",
            "migrate_cancel" if self.status == "pre-switchover" => self.status = "cancelled",
            "query-migrate" => return Some(json!({"status": self.status})),
            "blockdev-add" => {
                self.added = command["arguments"]["file"]["filename"].as_str().map(str::to_owned);
                assert!(self.added.as_ref().is_some_and(|layer| Path::new(layer).exists()), "there is such a layer");
            }
            "blockdev-snapshot" => self.layer = self.added.take().expect("a layer was opened before"),
            "query-block" => {
                let inserted = json!({"file": self.layer, "node-name": "disk"});
                return Some(json!([{"qdev": "/machine/peripheral/disk0/virtio-backend", "inserted": inserted}]));
            }
            "stop" => self.is_halted = true,
            "query-status" if self.is_halted => return Some(json!({"status": "paused"})),
            _ => return None,
        }
        Some(json!({}))
    }
}

impl Machine {
    /// The guest program. It says that it is ready to whoever connects, as one that was just started does.
    fn speak(&self, stream: UnixStream) {
        if self.name == "mute" {
            thread::spawn(move || BufReader::new(stream).lines().count());
            return;
        }
        let mut writer = stream.try_clone().expect("a socket can be cloned");
        let nonce = || self.nonce.lock().expect("nobody panics").clone();
        let ready = Ready { version: "0".into(), boot_id: self.boot_id, nonce: nonce() };
        let _ = writer.write_all(&line(&FromGuest::Ready(ready)));
        for text in BufReader::new(stream).lines().map_while(Result::ok) {
            let Ok(request) = serde_json::from_str::<ToGuest>(&text) else { continue };
            if self.name == "falling" {
                let _ = writeln!(std::io::stderr(), "fell over");
                exit(1);
            }
            let answer = match request.clone() {
                ToGuest::Seed(seed) if self.name == "refusing" => {
                    FromGuest::Failed { id: seed.id, reason: "there is no room for it".into() }
                }
                ToGuest::Seed(seed) => {
                    *self.nonce.lock().expect("nobody panics") = Some(seed.seed.nonce);
                    let _ = fs::write("token", seed.seed.join_token.expose());
                    FromGuest::Done { id: seed.id }
                }
                ToGuest::Prepare { id } => FromGuest::Done { id },
                ToGuest::Challenge { id, .. } if self.name == "refusing" => {
                    FromGuest::Failed { id, reason: "there is no room for it".into() }
                }
                ToGuest::Prove { id } | ToGuest::Challenge { id, .. } => {
                    if let ToGuest::Challenge { challenge, .. } = &request {
                        let _ = fs::write("challenge", challenge.expose());
                    }
                    let machine_id = Some(MachineId::generate());
                    let hypervisor = Some("qemu".to_owned());
                    FromGuest::Proof(Proof { id, nonce: nonce(), machine_id, boot_id: self.boot_id, hypervisor })
                }
                ToGuest::Status { id } => {
                    let [state, detail, result] = ["active", "running", "success"].map(String::from);
                    let runtime = UnitState { state, detail, result, restarts: 0, journal: vec!["up".into()] };
                    let system = Some("running".to_owned());
                    FromGuest::State(State { id, system, runtime, provision: None, cloud_init: None })
                }
            };
            let _ = writer.write_all(&line(&answer));
        }
    }

    fn obey(&self, stream: UnixStream) {
        let mut writer = stream.try_clone().expect("a socket can be cloned");
        let mut say = |value: Value| writer.write_all(format!("{value}\r\n").as_bytes());
        let _ = say(json!({"QMP": {"version": {}, "capabilities": []}}));
        for text in BufReader::new(stream).lines().map_while(Result::ok) {
            let command: Value = serde_json::from_str(&text).unwrap_or_default();
            let is_off = || self.is_off.lock().expect("nobody panics");
            let mut saving = self.saving.lock().expect("nobody panics");
            if command["execute"] == "cont" {
                saving.is_halted = false;
            }
            if let Some(answer) = saving.obey(&command) {
                let _ = say(json!({"return": answer}));
                continue;
            }
            drop(saving);
            let answer = match command["execute"].as_str() {
                Some("query-status") if self.name == "full" && !Path::new("went-on").exists() => {
                    json!({"status": "io-error"})
                }
                Some("cont") => {
                    let _ = fs::write("went-on", "");
                    json!({})
                }
                Some("query-status") => json!({"status": if *is_off() { "shutdown" } else { "running" }}),
                Some("system_powerdown") => {
                    *is_off() |= self.name != "deaf";
                    let _ = say(json!({"event": "POWERDOWN", "timestamp": {}}));
                    json!({})
                }
                Some("ringbuf-read") => json!("[    0.1] booting\r\n[    0.2] no init found\r\n"),
                Some("quit") => {
                    let _ = say(json!({"return": {}}));
                    exit(0);
                }
                Some(_) => json!({}),
                None => return,
            };
            let _ = say(json!({"return": answer}));
        }
    }
}

//! What is inside of the machines: a first process that starts and watches units as systemd does, and the programs
//! that talk to it. All are this program under other names.

pub(crate) mod cloud_init;
pub(crate) mod files;
pub(crate) mod image;
pub(crate) mod init;
mod journal;
mod keeper;
mod mounts;
mod process;
mod sudo;
mod systemctl;
mod unit;
mod units;

use std::process::ExitCode;

/// Where the first process listens to the others.
const SOCKET: &str = "/run/multipass-double.sock";
/// The folder that the machine shares with the daemon.
const SHARED: &str = "/run/multipass-double";
/// The machine's own log of each unit.
const JOURNAL: &str = "/var/log/journal";

/// Runs the program of a name in a machine, where there is one.
pub(crate) fn main(name: &str, arguments: &[String]) -> Option<ExitCode> {
    Some(match name {
        "systemctl" => systemctl::main(arguments),
        "poweroff" | "reboot" | "halt" => systemctl::main(&[name.to_owned()]),
        "shutdown" => {
            systemctl::main(&[if arguments.iter().any(|word| word == "-r") { "reboot" } else { "poweroff" }.to_owned()])
        }
        "journalctl" => journal::main(arguments),
        "cloud-init" => cloud_init::main(arguments),
        "sudo" => sudo::main(arguments),
        "systemd-detect-virt" => say("qemu\n"),
        keeper::NAME => keeper::main(arguments),
        "double-files" => files::main(arguments),
        _ => return None,
    })
}

fn say(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(text: &str) {
    use std::io::Write;
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

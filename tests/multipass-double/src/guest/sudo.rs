//! The program `sudo`: whoever may become root becomes it, without a question.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use super::complain;

/// The program.
pub(super) fn main(arguments: &[String]) -> ExitCode {
    let user = rustix::process::getuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(user))
        .map_or_else(|| user.to_string(), |fields| fields[0].to_owned());
    if user != 0 && !is_allowed(&name) {
        complain(&format!("{name} is not in the sudoers file.\n"));
        return ExitCode::FAILURE;
    }
    let mut words = arguments.iter();
    let mut command = Command::new("/usr/bin/env");
    let mut named = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--" => {}
            "-u" | "-g" | "-D" | "--user" => drop(words.next()),
            word if word.starts_with('-') => {}
            _ => {
                command.arg(word).args(words);
                named = true;
                break;
            }
        }
    }
    if !named {
        complain("usage: sudo command\n");
        return ExitCode::FAILURE;
    }
    let environment = [
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", "/bin/bash"),
        ("SUDO_USER", name.as_str()),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ];
    command.env_clear().envs(environment);
    if rustix::process::geteuid().is_root() && user != 0 {
        command.uid(0).gid(0);
    }
    let error = command.exec();
    complain(&format!("sudo: {error}\n"));
    ExitCode::FAILURE
}

fn is_allowed(name: &str) -> bool {
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let in_group = group
        .lines()
        .filter_map(|line| line.strip_prefix("sudo:"))
        .any(|line| line.rsplit(':').next().is_some_and(|members| members.split(',').any(|member| member == name)));
    let files = fs::read_dir("/etc/sudoers.d").into_iter().flatten().flatten();
    in_group
        || files
            .filter_map(|file| fs::read_to_string(file.path()).ok())
            .any(|text| text.lines().any(|line| line.split_whitespace().next() == Some(name)))
}

//! The program `sudo`: whoever may become root becomes whom they want, without a question.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use super::complain;
use super::process::{account, group};

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
    let (mut becomes, mut wanted) = ("root", Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--" => {}
            "-u" | "--user" => becomes = words.next().map_or(becomes, String::as_str),
            "-g" | "-D" => drop(words.next()),
            word if word.starts_with('-') => {}
            _ => {
                wanted.push(word.as_str());
                wanted.extend(words.map(String::as_str));
                break;
            }
        }
    }
    if wanted.is_empty() {
        complain("usage: sudo command\n");
        return ExitCode::FAILURE;
    }
    let Some((id, home, shell)) = account(becomes) else {
        complain(&format!("sudo: unknown user {becomes}\n"));
        return ExitCode::FAILURE;
    };
    if becomes != "root" && are_several() {
        command.args(["setpriv", "--reuid", &id, "--regid", &group(becomes), "--init-groups"]);
    }
    command.args(wanted);
    let environment = [
        ("HOME", home.as_str()),
        ("USER", becomes),
        ("LOGNAME", becomes),
        ("SHELL", shell.as_str()),
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

/// Whether the users of this machine are several: in a machine that root has not made all are one.
fn are_several() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2).is_some_and(|count| count != "1")
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

//! What this machine has, and how it gets what it lacks.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::run::{answers, run};

/// A program of the system that something here needs.
pub(crate) struct Tool {
    /// What it is.
    name: &'static str,
    /// The programs that make it up, each with the flag that it tells its version at.
    programs: &'static [(&'static str, &'static str)],
    /// Places of a file that belongs to it and is no command; it is at one of them, where there are any.
    places: &'static [&'static str],
    /// The packages that bring it on Debian and Ubuntu.
    packages: &'static [&'static str],
    /// How to install it elsewhere.
    elsewhere: &'static str,
}

/// SQLite and the cryptography are C; they are compiled with the rest.
pub(crate) const C_COMPILER: Tool = Tool {
    name: "a C compiler",
    programs: &[("cc", "--version")],
    places: &[],
    packages: &["gcc", "libc6-dev"],
    elsewhere: "on Fedora `dnf install gcc`, on Arch `pacman -S gcc`, on macOS `xcode-select --install`",
};

/// Tasks that clone, pull and push are tested with the real one.
pub(crate) const GIT: Tool = Tool {
    name: "git",
    programs: &[("git", "--version")],
    places: &[],
    packages: &["git"],
    elsewhere: "elsewhere by the package of that name",
};

/// What reaches agents by `ssh-config`: the clients here, and the server for SFTP that runs inside.
pub(crate) const SSH: Tool = Tool {
    name: "OpenSSH with its sftp-server, and rsync",
    programs: &[("ssh", "-V"), ("rsync", "--version")],
    places: &[
        "/usr/lib/openssh/sftp-server",
        "/usr/libexec/openssh/sftp-server",
        "/usr/lib/ssh/sftp-server",
        "/usr/libexec/sftp-server",
    ],
    packages: &["openssh-client", "openssh-sftp-server", "rsync"],
    elsewhere: "elsewhere by the packages openssh and rsync",
};

/// Scripts and terminals are tested with a real interpreter.
pub(crate) const PYTHON: Tool = Tool {
    name: "Python 3",
    programs: &[("python3", "--version")],
    places: &[],
    packages: &["python3-minimal"],
    elsewhere: "elsewhere from python.org",
};

/// Real machines, and what their image is built with.
pub(crate) const QEMU: Tool = Tool {
    name: "QEMU with mmdebstrap",
    programs: &[("qemu-system-x86_64", "--version"), ("qemu-img", "--version"), ("mmdebstrap", "--version")],
    places: &[],
    packages: &["qemu-system-x86", "qemu-utils", "mmdebstrap", "e2fsprogs"],
    elsewhere: "elsewhere there is no way to build the image",
};

/// The browser that looks at the dashboard in tests.
pub(crate) const BROWSER: Tool = Tool {
    name: "Chromium with chromedriver",
    programs: &[("chromium", "--version"), ("chromedriver", "--version")],
    places: &[],
    packages: &["chromium", "chromium-driver"],
    elsewhere: "the programs `chromium` and `chromedriver` on the PATH",
};

impl Tool {
    fn is_here(&self) -> bool {
        let is_placed = self.places.is_empty() || self.places.iter().any(|place| Path::new(place).exists());
        is_placed && self.programs.iter().all(|(program, flag)| answers(program, &[flag]))
    }
}

/// How packages get onto this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// `apt-get`, as root.
    Apt,
    /// `apt-get`, through a `sudo` that asks for no password.
    SudoApt,
    /// Not by us.
    Unknown,
}

impl Machine {
    /// Looks at this machine.
    pub(crate) fn look() -> Self {
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        if !is_debian(&release) || !Path::new("/usr/bin/apt-get").exists() {
            Self::Unknown
        } else if is_root() {
            Self::Apt
        } else if answers("sudo", &["-n", "true"]) {
            Self::SudoApt
        } else {
            Self::Unknown
        }
    }

    /// Installs a tool if it is missing.
    ///
    /// # Errors
    /// What to install, when it can't be done here.
    pub(crate) fn need(self, tool: &Tool) -> Result<(), String> {
        if tool.is_here() {
            return Ok(());
        }
        let apt = format!("apt-get install {}", tool.packages.join(" "));
        let missing = format!("{} is missing; install it: on Debian and Ubuntu `{apt}`, {}", tool.name, tool.elsewhere);
        if self == Self::Unknown {
            return Err(missing);
        }
        self.install(tool)?;
        if tool.is_here() { Ok(()) } else { Err(missing) }
    }

    fn install(self, tool: &Tool) -> Result<(), String> {
        let apt = |arguments: &[&str]| {
            let mut command = Command::new(if self == Self::SudoApt { "sudo" } else { "env" });
            if self == Self::SudoApt {
                command.args(["-n", "env"]);
            }
            command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]).args(arguments).stdin(Stdio::null());
            run(command)
        };
        apt(&["update"])?;
        apt(&[&["install", "--yes", "--no-install-recommends"], tool.packages].concat())
    }
}

/// Whether `/etc/os-release` is that of Debian or of one of its children.
fn is_debian(release: &str) -> bool {
    let fields = release.lines().filter_map(|line| line.split_once('='));
    let mut systems = fields.filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"));
    systems.any(|(_, value)| value.trim_matches('"').split(' ').any(|id| id == "debian"))
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_told_from_the_rest() {
        assert!(is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(is_debian("ID=pop\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\nPRETTY_NAME=\"not debian\"\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn what_cannot_be_installed_here_is_named_in_one_line() {
        let tool = Tool { programs: &[("no-such-program-anywhere", "--version")], ..BROWSER };
        let sentence = Machine::Unknown.need(&tool).unwrap_err();
        assert_eq!(
            sentence,
            "Chromium with chromedriver is missing; install it: on Debian and Ubuntu `apt-get install chromium \
             chromium-driver`, the programs `chromium` and `chromedriver` on the PATH"
        );
    }
}

//! What this machine has, and how it gets what it lacks.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::run::{answers, run};

/// A program of the system that something here needs.
pub(crate) struct Tool {
    /// What it is.
    name: &'static str,
    /// What makes it up.
    parts: &'static [Part],
    /// How to install it elsewhere.
    elsewhere: &'static str,
}

/// A part of a tool.
pub(crate) struct Part {
    /// How it is known that it is there.
    shows: Shows,
    /// The package that brings it on Debian and Ubuntu.
    package: &'static str,
}

/// What shows that a part is there.
enum Shows {
    /// A program that answers to this flag.
    Program(&'static str, &'static str),
    /// A file at one of these places.
    File(&'static [&'static str]),
}

const fn program(name: &'static str, flag: &'static str, package: &'static str) -> Part {
    Part { shows: Shows::Program(name, flag), package }
}

/// SQLite and the cryptography are C; they are compiled with the rest.
pub(crate) const C_COMPILER: Tool = Tool {
    name: "a C compiler",
    parts: &[program("cc", "--version", "build-essential")],
    elsewhere: "on Fedora `dnf install gcc`, on Arch `pacman -S gcc`, on macOS `xcode-select --install`",
};

/// Tasks that clone, pull and push are tested with the real one.
pub(crate) const GIT: Tool = Tool {
    name: "git",
    parts: &[program("git", "--version", "git")],
    elsewhere: "elsewhere by the package of that name",
};

/// What reaches agents by `ssh-config`: the clients here, and the server for SFTP that runs inside.
pub(crate) const SSH: Tool = Tool {
    name: "OpenSSH with its sftp-server, and rsync",
    parts: &[
        program("ssh", "-V", "openssh-client"),
        Part { shows: Shows::File(SFTP_SERVERS), package: "openssh-sftp-server" },
        program("rsync", "--version", "rsync"),
    ],
    elsewhere: "elsewhere by the packages openssh and rsync",
};

/// Where systems have the server for SFTP.
const SFTP_SERVERS: &[&str] = &[
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// Scripts and terminals are tested with a real interpreter.
pub(crate) const PYTHON: Tool = Tool {
    name: "Python 3",
    parts: &[program("python3", "--version", "python3-minimal")],
    elsewhere: "elsewhere from python.org",
};

/// Real machines, and what their image is built with.
pub(crate) const QEMU: Tool = Tool {
    name: "QEMU with mmdebstrap",
    parts: &[
        program("qemu-system-x86_64", "--version", "qemu-system-x86"),
        program("qemu-img", "--version", "qemu-utils"),
        program("mmdebstrap", "--version", "mmdebstrap"),
        program("mke2fs", "-V", "e2fsprogs"),
    ],
    elsewhere: "elsewhere there is no way to build the image",
};

/// The browser that looks at the dashboard in tests.
pub(crate) const BROWSER: Tool = Tool {
    name: "Chromium with chromedriver",
    parts: &[program("chromium", "--version", "chromium"), program("chromedriver", "--version", "chromium-driver")],
    elsewhere: "the programs `chromium` and `chromedriver` on the PATH",
};

impl Tool {
    fn is_here(&self) -> bool {
        self.parts.iter().all(Part::is_here)
    }
}

impl Part {
    fn is_here(&self) -> bool {
        match self.shows {
            Shows::Program(name, flag) => answers(name, &[flag]),
            Shows::File(places) => places.iter().any(|place| Path::new(place).exists()),
        }
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
        let packages: Vec<_> = tool.parts.iter().map(|part| part.package).collect();
        let apt = format!("apt-get install {}", packages.join(" "));
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
        // One by one, and only what is missing: the package of one may take the place of another version of the next.
        let mut missing = tool.parts.iter().filter(|part| !part.is_here());
        missing.try_for_each(|part| apt(&["install", "--yes", "--no-install-recommends", part.package]))
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
        const NOWHERE: &[Part] = &[program("no-such-program-anywhere", "--version", "nothing")];
        let tool = Tool { parts: NOWHERE, ..BROWSER };
        let sentence = Machine::Unknown.need(&tool).unwrap_err();
        assert_eq!(
            sentence,
            "Chromium with chromedriver is missing; install it: on Debian and Ubuntu `apt-get install nothing`, the programs `chromium` and `chromedriver` on the PATH"
        );
    }
}

//! QEMU's programs on this host.

use std::path::PathBuf;

use crate::tool;

/// QEMU's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// Runs machines of this host's architecture.
    pub system: PathBuf,
    /// Makes and changes disks.
    pub img: PathBuf,
}

/// A program that is not here, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "driver qemu needs `{program}`; install it: on Debian and Ubuntu `apt-get install qemu-system-x86 qemu-utils`, \
     on Fedora `dnf install qemu-kvm qemu-img`, on Arch `pacman -S qemu-base`"
)]
pub struct Missing {
    /// The program.
    pub program: String,
}

/// The architectures that machines can be made for. Each runs only machines of its own.
const ARCHITECTURES: &[&str] = &["x86_64"];

impl Programs {
    /// Looks for them on the `PATH`.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub fn find() -> Result<Self, Missing> {
        let architecture = std::env::consts::ARCH;
        let system = format!("qemu-system-{architecture}");
        if !ARCHITECTURES.contains(&architecture) {
            return Err(Missing { program: format!("{system}, for which there is no recipe yet") });
        }
        let found = |program: &str| tool::find(program).ok_or_else(|| Missing { program: program.to_owned() });
        Ok(Self { system: found(&system)?, img: found("qemu-img")? })
    }
}

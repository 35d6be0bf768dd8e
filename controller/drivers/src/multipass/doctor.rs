//! How it goes with Multipass on this host, for people.

use std::net::IpAddr;

use super::answer::{Version, Versions};
use super::cli::Program;
use super::{Fault, SHORT_LIMIT, sight};

/// The oldest version that this driver works with.
const OLDEST: Version = Version::new(1, 13, 0);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The versions of the command and of its daemon, where the command answers.
    pub versions: Option<Versions>,
    /// What is wrong, with what to do about it; nothing where all is well.
    pub trouble: Option<String>,
    /// What it lacks that later versions have.
    pub lacks: Vec<&'static str>,
}

/// Looks at it: whether it is there, of which version, and whether this user may speak to its daemon.
pub async fn health(program: &Program) -> Health {
    let versions = match sight::look_up(program).await {
        Ok(versions) => versions,
        Err(fault) => return Health { versions: None, trouble: Some(told(&fault)), lacks: Vec::new() },
    };
    let common = versions.common();
    let trouble = match program.call(&["list", "--no-ipv4", "--format", "json"], None, SHORT_LIMIT).await {
        Ok(said) if said.code == Some(0) => None,
        Ok(said) => Some(told(&Fault::of(&said))),
        Err(error) => Some(told(&error.into())),
    };
    let old = (common < OLDEST).then(|| format!("version {common} is too old; install {OLDEST} or a later one"));
    Health { versions: Some(versions), trouble: trouble.or(old), lacks: common.lacks() }
}

fn told(fault: &Fault) -> String {
    match fault.trouble().remedy() {
        Some(remedy) => format!("{fault}; {remedy}"),
        None => fault.to_string(),
    }
}

/// What the bridges between hosts and their machines are called: on Linux, and on macOS.
const BRIDGES: [&str; 2] = ["mpqemubr0", "bridge100"];

/// The address of the bridge between this host and its machines.
pub(super) fn bridge() -> Option<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    let found = |name: &str| interfaces.iter().find(|found| found.name == name && found.ip().is_ipv4());
    BRIDGES.iter().find_map(|name| found(name)).map(if_addrs::Interface::ip)
}

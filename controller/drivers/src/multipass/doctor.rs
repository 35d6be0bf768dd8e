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

/// The address of the bridge between this host and its machines, once there is one.
pub(super) fn bridge(version: Option<Version>) -> Option<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    if cfg!(target_os = "macos") {
        // Others have bridges of that kind too.
        let address = usual_on_macos(version);
        return interfaces.iter().map(if_addrs::Interface::ip).find(|ip| *ip == address);
    }
    interfaces.iter().find(|found| found.name == BRIDGE && found.ip().is_ipv4()).map(if_addrs::Interface::ip)
}

/// The address at which machines are going to see this host: that of the bridge, which on macOS comes with the first
/// machine.
pub(super) fn host_address(version: Option<Version>) -> Option<IpAddr> {
    bridge(version).or_else(|| cfg!(target_os = "macos").then(|| usual_on_macos(version)))
}

/// What the bridge is called on Linux.
const BRIDGE: &str = "mpqemubr0";

/// Which address that is of a Multipass for macOS.
fn usual_on_macos(version: Option<Version>) -> IpAddr {
    let is_own = version.is_none_or(|version| version >= Version::new(1, 16, 2));
    if is_own { [192, 168, 252, 1].into() } else { [192, 168, 64, 1].into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_macos_the_network_is_another_since_a_version() {
        assert_eq!(usual_on_macos(Some(Version::new(1, 16, 1))), IpAddr::from([192, 168, 64, 1]));
        assert_eq!(usual_on_macos(Some(Version::new(1, 16, 2))), IpAddr::from([192, 168, 252, 1]));
        assert_eq!(usual_on_macos(None), usual_on_macos(Some(Version::new(1, 17, 0))));
    }
}

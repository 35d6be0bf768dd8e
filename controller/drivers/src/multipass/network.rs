//! Where the machines of a host meet it: the bridge that the daemon makes for them.

use std::net::IpAddr;

use super::answer::Version;

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

//! The hub in the drivers' own networks. Their machines don't reach this host's loopback; where `hub.listen` is `auto`,
//! the hub listens at the address by which they see this host too, as soon as there is such an address.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::net::Listen;

use crate::conditions::Fact;
use crate::core::Core;

/// How often is looked for networks. They come with the first machine of a driver, which then takes longer than this
/// to boot.
const EVERY: Duration = Duration::from_secs(5);

/// Where the machines of each driver with a network of its own find the hub, or why they don't.
#[derive(Debug, Default)]
pub(crate) struct Networks(Mutex<BTreeMap<DriverName, Result<SocketAddr, String>>>);

impl Networks {
    /// Whether all of them find it; nothing where there is no such network.
    pub(crate) fn fact(&self) -> Option<Fact> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fact(&found)
    }

    fn note(&self, driver: DriverName, found: Result<SocketAddr, String>) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(driver, found.clone());
        if before.as_ref() == Some(&found) {
            return;
        }
        match found {
            Ok(address) => tracing::info!(%driver, %address, "the hub listens in a driver's network"),
            Err(reason) => tracing::warn!(%driver, reason, "the machines of a driver don't find the hub"),
        }
    }

    fn is_heard(&self, address: SocketAddr) -> bool {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.values().any(|found| *found == Ok(address))
    }
}

/// Looks for networks, and listens in them, as long as the controller lives.
pub(crate) async fn run(core: Arc<Core>, listen: Listen) {
    loop {
        for (driver, observer) in &core.observers {
            if let Some(ip) = observer.driver().network() {
                let found = reach(&core, listen, ip).await;
                core.networks.note(*driver, found);
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Has the hub listen at an address of this host, unless it is not to or does already.
async fn reach(core: &Core, listen: Listen, ip: IpAddr) -> Result<SocketAddr, String> {
    let main = core.addresses.hub;
    let address = SocketAddr::new(ip, main.port());
    match heard(listen, main, ip) {
        Heard::Already => Ok(address),
        Heard::Nowhere => Err(format!(
            "`hub.listen` is {main}, which they don't reach; write `auto` there, or name in `hub.advertise` where they do"
        )),
        Heard::OnceAsked if core.networks.is_heard(address) => Ok(address),
        Heard::OnceAsked => match core.hub.listen(address).await {
            Ok(()) => Ok(address),
            Err(error) => Err(format!("the hub can't listen on {address}: {error}")),
        },
    }
}

/// Whether who speaks to an address of this host is heard by the hub.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Already,
    OnceAsked,
    Nowhere,
}

fn heard(listen: Listen, main: SocketAddr, ip: IpAddr) -> Heard {
    match listen {
        _ if main.ip() == ip || main.ip().is_unspecified() => Heard::Already,
        Listen::Auto => Heard::OnceAsked,
        Listen::At(_) if main.ip().is_loopback() => Heard::Nowhere,
        // What machines are told is that address, which may well be routed to.
        Listen::At(_) => Heard::Already,
    }
}

fn fact(found: &BTreeMap<DriverName, Result<SocketAddr, String>>) -> Option<Fact> {
    let told = |well: bool| -> Vec<String> {
        let of_these = found.iter().filter(|(_, found)| found.is_ok() == well);
        of_these
            .map(|(driver, found)| match found {
                Ok(address) => format!("machines of {driver} find the hub at {address}"),
                Err(reason) => format!("machines of {driver} don't find the hub: {reason}"),
            })
            .collect()
    };
    let (well, ill) = (told(true), told(false));
    if !ill.is_empty() {
        return Some(Fact::new("HubReachable", false, "NotListening", ill.join("; ")));
    }
    (!well.is_empty()).then(|| Fact::new("HubReachable", true, "Listening", well.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::plan::ConditionStatus;

    #[test]
    fn the_hub_listens_in_a_network_only_where_it_may_choose_and_is_not_heard_there_yet() {
        let bridge: IpAddr = [10, 97, 3, 1].into();
        let heard = |listen: &str, main: &str| heard(listen.parse().unwrap(), main.parse().unwrap(), bridge);
        assert_eq!(heard("auto", "127.0.0.1:9090"), Heard::OnceAsked);
        assert_eq!(heard("0.0.0.0:9090", "0.0.0.0:9090"), Heard::Already);
        assert_eq!(heard("10.97.3.1:9090", "10.97.3.1:9090"), Heard::Already);
        assert_eq!(heard("192.0.2.7:9090", "192.0.2.7:9090"), Heard::Already);
        assert_eq!(heard("127.0.0.1:0", "127.0.0.1:4711"), Heard::Nowhere);
    }

    #[test]
    fn machines_that_do_not_find_the_hub_are_told_of_with_the_reason() {
        let mut found = BTreeMap::new();
        assert!(fact(&found).is_none());
        found.insert(DriverName::Multipass, Ok("10.97.3.1:9090".parse().unwrap()));
        let told = fact(&found).unwrap();
        assert_eq!((told.status, told.message.contains("10.97.3.1:9090")), (ConditionStatus::True, true));
        found.insert(DriverName::Incus, Err("it is in use".to_owned()));
        let told = fact(&found).unwrap();
        assert_eq!(told.status, ConditionStatus::False);
        assert_eq!(told.message, "machines of incus don't find the hub: it is in use");
    }
}

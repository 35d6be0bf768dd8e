//! What people ask of snapshots.

use vm_agent_daemon::engine::errand::{self, Asked};
use vm_agent_daemon::engine::intent;
use vm_agent_daemon::engine::records::{Change, Records};
use vm_agent_schemas::api::{RestoreRequest, SnapshotChange, SnapshotRequest};
use vm_agent_schemas::names::{AgentName, SnapshotName};

use super::pick;
use crate::world::World;

impl World {
    /// Somebody wants a snapshot, wants one no more, protects one, or wants a machine back.
    pub(crate) fn ask_of_snapshots(&mut self, records: &Records, agent: &AgentName) {
        if intent::refuse_while_down(records).is_err() {
            return;
        }
        let driver = records.claims.get(agent).and_then(|claim| self.drivers.get(&claim.driver));
        let capabilities = driver.map(|driver| driver.capabilities.clone());
        let asked = Asked { agent, capabilities: capabilities.as_ref(), by: "ana", now: self.clock.wall() };
        let known: Vec<SnapshotName> =
            records.snapshots.get(agent).into_iter().flat_map(|known| known.keys().cloned()).collect();
        let what = self.rng.u8(..6);
        if what < 2 || known.is_empty() {
            let name = self.rng.bool().then(|| pick(&mut self.rng, &["one", "two"]).parse().expect("it is a name"));
            let request = SnapshotRequest { name, ..SnapshotRequest::default() };
            return self.asked(errand::take(records, asked, request).ok().map(Box::new).map(Change::Errand));
        }
        let name = known[self.rng.usize(..known.len())].clone();
        let without_safety = self.rng.u8(..4) == 0;
        let change = match what {
            2 => errand::delete(records, asked, &name).ok().map(Box::new).map(Change::Errand),
            3 => {
                let request = SnapshotChange { protect: Some(self.rng.bool()), ..SnapshotChange::default() };
                errand::change(records, agent, &name, request).ok().map(Box::new).map(Change::Snapshot)
            }
            _ => {
                let request = RestoreRequest { snapshot: name, without_safety, dry_run: false };
                errand::restore(records, asked, request).ok().map(Box::new).map(Change::Errand)
            }
        };
        self.asked(change);
    }

    fn asked(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            let what = match &change {
                Change::Errand(errand) => format!("{}: {}", errand.agent, errand.ask),
                _ => "something of a snapshot".to_owned(),
            };
            self.said(&what, vec![change]);
        }
    }
}

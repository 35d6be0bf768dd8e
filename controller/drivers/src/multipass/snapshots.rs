//! Snapshots of instances that are down, and the way back to them.

use std::collections::BTreeSet;
use std::time::Duration;

use vm_agent_schemas::guest::MachineId;
use vm_agent_schemas::names::SnapshotName;

use super::answer::State;
use super::record::Power;
use super::trouble::Trouble;
use super::{Held, Multipass};
use crate::{DriverError, Target};

/// How long the disk of a machine may take to be marked or to be put back.
const DISK_LIMIT: Duration = Duration::from_secs(300);

impl Multipass {
    /// Takes a snapshot of an instance that is down.
    pub(super) async fn take(&self, held: &mut Held<'_>, name: &SnapshotName) -> Result<(), DriverError> {
        let state = self.state(held).await?;
        if state != State::Stopped && self.taken(held).await?.contains(name) {
            return Ok(());
        }
        if state != State::Stopped {
            return Err(held.failed("Multipass takes snapshots only of what is stopped, and it is not"));
        }
        // One of that name may be among them.
        self.delete_dropped(held).await?;
        // Before it is there: a controller that dies meanwhile could not tell afterwards.
        let former = held.record.snapshots.insert(name.clone(), held.record.sizes);
        self.remember(held).await?;
        let called = {
            let _turn = self.lanes.change(format!("snapshot {}", held.name())).await;
            self.call(&["snapshot", held.name(), "--name", name.as_str()], None, DISK_LIMIT).await
        };
        self.sight.snapshots_changed();
        match called {
            Err(fault) if fault.trouble() == Trouble::Exists => {
                // It was taken before, perhaps by a person, and has the sizes of then.
                match former {
                    Some(sizes) => held.record.snapshots.insert(name.clone(), sizes),
                    None => held.record.snapshots.remove(name),
                };
                self.remember(held).await
            }
            Err(fault) if fault.trouble() == Trouble::Late && self.taken(held).await?.contains(name) => Ok(()),
            Err(fault) => Err(self.trouble(held.act, &fault)),
            Ok(_) => Ok(()),
        }
    }

    /// Deletes a snapshot. While its machine lives, that has the disk locked: then the snapshot is deleted as far as
    /// anybody can see, and from the disk once the machine is down.
    pub(super) async fn drop_snapshot(&self, held: &mut Held<'_>, name: &SnapshotName) -> Result<(), DriverError> {
        let is_down = matches!(self.state(held).await?, State::Stopped | State::Suspended);
        if !is_down && !self.taken(held).await?.contains(name) {
            return Ok(());
        }
        held.record.snapshots.remove(name);
        held.record.dropped.insert(name.clone());
        self.remember(held).await?;
        self.sight.snapshots_changed();
        if is_down { self.delete_dropped(held).await } else { Ok(()) }
    }

    /// Deletes from the disk of an instance that is down what nobody is to see any more.
    pub(super) async fn delete_dropped(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        while let Some(name) = held.record.dropped.first().cloned() {
            let called = {
                let _turn = self.lanes.change(format!("delete a snapshot of {}", held.name())).await;
                // Never with the name of an instance beside it: that would delete the instance.
                self.call(&["delete", "--purge", &snapshot_of(held, &name)], None, DISK_LIMIT).await
            };
            self.sight.snapshots_changed();
            if let Err(fault) = called
                && fault.trouble() != Trouble::Missing
            {
                return Err(self.trouble(held.act, &fault));
            }
            held.record.dropped.remove(&name);
            self.remember(held).await?;
        }
        Ok(())
    }

    /// Puts the disk of an instance that is down back to a snapshot, and makes it the target's incarnation.
    pub(super) async fn put_back(
        &self,
        held: &mut Held<'_>,
        target: &Target,
        name: &SnapshotName,
    ) -> Result<(), DriverError> {
        if self.state(held).await? != State::Stopped {
            return Err(held.failed("Multipass goes back to a snapshot only with what is stopped, and it is not"));
        }
        self.delete_dropped(held).await?;
        let called = {
            let _turn = self.lanes.change(format!("restore {}", held.name())).await;
            self.call(&["restore", "--destructive", &snapshot_of(held, name)], None, DISK_LIMIT).await
        };
        if let Err(fault) = called {
            return Err(match fault.trouble() {
                Trouble::Missing => held.failed(&format!("there is no snapshot `{name}` of it")),
                _ => self.trouble(held.act, &fault),
            });
        }
        // With the disk, what the snapshot knew of sizes and mounts is back.
        let sizes = match held.record.snapshots.get(name) {
            Some(sizes) => *sizes,
            None => self.sizes(held.act, Some(held.record.sizes)).await?,
        };
        held.record.nonce = target.nonce.clone();
        held.record.machine_id = MachineId::generate();
        (held.record.sizes, held.record.has_mounts, held.record.power) = (sizes, true, Power::Down);
        self.remember(held).await
    }

    /// The snapshots that there are of an instance now.
    pub(super) async fn taken(&self, held: &Held<'_>) -> Result<BTreeSet<SnapshotName>, DriverError> {
        self.sight.snapshots_changed();
        let known = self.sight.snapshots(&self.program).await.map_err(|fault| self.trouble(held.act, &fault))?;
        let mut taken = known.and_then(|known| known.get(held.name()).cloned()).unwrap_or_default();
        taken.retain(|name| !held.record.dropped.contains(name));
        Ok(taken)
    }
}

/// A snapshot as Multipass calls it.
fn snapshot_of(held: &Held<'_>, name: &SnapshotName) -> String {
    format!("{}.{name}", held.name())
}

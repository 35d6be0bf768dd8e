//! Snapshots of instances that are down, the way back to them, and sizes.

use std::collections::BTreeSet;
use std::time::Duration;

use vm_agent_schemas::guest::MachineId;
use vm_agent_schemas::names::SnapshotName;
use vm_agent_schemas::observe::Sizes;

use super::answer::{self, State};
use super::record::Power;
use super::trouble::Trouble;
use super::{Held, Multipass, SHORT_LIMIT};
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
        held.record.snapshots.insert(name.clone(), held.record.sizes);
        self.remember(held).await?;
        let called = {
            let _turn = self.lanes.change(format!("snapshot {}", held.name())).await;
            self.call(&["snapshot", held.name(), "--name", name.as_str()], None, DISK_LIMIT).await
        };
        self.sight.snapshots_changed();
        match called {
            Err(fault) if fault.trouble() == Trouble::Exists => Ok(()),
            Err(fault) if fault.trouble() == Trouble::Late && self.taken(held).await?.contains(name) => Ok(()),
            Err(fault) => Err(self.trouble(held.act, fault).await),
            Ok(_) => Ok(()),
        }
    }

    /// Deletes a snapshot.
    pub(super) async fn drop_snapshot(&self, held: &mut Held<'_>, name: &SnapshotName) -> Result<(), DriverError> {
        if self.state(held).await? != State::Stopped && !self.taken(held).await?.contains(name) {
            return Ok(());
        }
        let called = {
            let _turn = self.lanes.change(format!("delete a snapshot of {}", held.name())).await;
            // Never with the name of an instance beside it: that would delete the instance.
            self.call(&["delete", "--purge", &snapshot_of(held, name)], None, DISK_LIMIT).await
        };
        self.sight.snapshots_changed();
        match called {
            Err(fault) if fault.trouble() != Trouble::Missing => Err(self.trouble(held.act, fault).await),
            _ => {
                held.record.snapshots.remove(name);
                self.remember(held).await
            }
        }
    }

    /// Puts the disk of an instance that is down back to a snapshot, and makes it the target's incarnation.
    pub(super) async fn go_back(
        &self,
        held: &mut Held<'_>,
        target: &Target,
        name: &SnapshotName,
    ) -> Result<(), DriverError> {
        if self.state(held).await? != State::Stopped {
            return Err(held.failed("Multipass goes back to a snapshot only with what is stopped, and it is not"));
        }
        let called = {
            let _turn = self.lanes.change(format!("restore {}", held.name())).await;
            self.call(&["restore", "--destructive", &snapshot_of(held, name)], None, DISK_LIMIT).await
        };
        if let Err(fault) = called {
            return Err(match fault.trouble() {
                Trouble::Missing => held.failed(&format!("there is no snapshot `{name}` of it")),
                _ => self.trouble(held.act, fault).await,
            });
        }
        // With the disk, what the snapshot knew of sizes and mounts is back.
        let sizes = match held.record.snapshots.get(name) {
            Some(sizes) => *sizes,
            None => self.sizes(held).await?,
        };
        held.record.nonce = target.nonce.clone();
        held.record.machine_id = MachineId::generate();
        (held.record.sizes, held.record.has_mounts, held.record.power) = (sizes, true, Power::Down);
        self.remember(held).await
    }

    /// Gives an instance that is down other sizes.
    pub(super) async fn give_sizes(&self, held: &mut Held<'_>, wanted: Sizes) -> Result<(), DriverError> {
        let has = held.record.sizes;
        if wanted.disk < has.disk {
            return Err(held.failed(&format!("its disk has {} already, and a disk only grows", has.disk)));
        }
        let changes = [
            (wanted.cpus != has.cpus, "cpus", wanted.cpus.to_string(), Sizes { cpus: wanted.cpus, ..has }),
            (
                wanted.memory != has.memory,
                "memory",
                wanted.memory.bytes().to_string(),
                Sizes { disk: has.disk, ..wanted },
            ),
            (wanted.disk != has.disk, "disk", wanted.disk.bytes().to_string(), wanted),
        ];
        for (differs, key, value, then) in changes {
            if !differs {
                continue;
            }
            let called = {
                let _turn = self.lanes.change(format!("resize {}", held.name())).await;
                self.call(&["set", &format!("local.{}.{key}={value}", held.name())], None, SHORT_LIMIT).await
            };
            if let Err(fault) = called {
                return Err(self.trouble(held.act, fault).await);
            }
            held.record.sizes = then;
            self.remember(held).await?;
        }
        Ok(())
    }

    /// The sizes of an instance as far as Multipass tells them, which is rounded.
    pub(super) async fn sizes(&self, held: &Held<'_>) -> Result<Sizes, DriverError> {
        let unclear = || held.failed("Multipass does not tell its sizes");
        let mut told = [const { Vec::new() }; 3];
        for (told, key) in told.iter_mut().zip(["cpus", "memory", "disk"]) {
            let called = self.call(&["get", &format!("local.{}.{key}", held.name())], None, SHORT_LIMIT).await;
            match called {
                Ok(said) => *told = said.stdout,
                Err(fault) => return Err(self.trouble(held.act, fault).await),
            }
        }
        let [cpus, memory, disk] = told;
        let (cpus, memory, disk) = (answer::cpus(&cpus), answer::size(&memory), answer::size(&disk));
        let told = Sizes {
            cpus: cpus.ok_or_else(unclear)?,
            memory: memory.ok_or_else(unclear)?,
            disk: disk.ok_or_else(unclear)?,
        };
        Ok(answer::corrected(held.record.sizes, told))
    }

    /// The snapshots that there are of an instance now.
    async fn taken(&self, held: &Held<'_>) -> Result<BTreeSet<SnapshotName>, DriverError> {
        self.sight.snapshots_changed();
        let known = self.sight.snapshots(&self.program).await;
        let known = known.ok_or_else(|| held.failed("the snapshots of Multipass can't be listed"))?;
        Ok(known.get(held.name()).cloned().unwrap_or_default())
    }
}

/// A snapshot as Multipass calls it.
fn snapshot_of(held: &Held<'_>, name: &SnapshotName) -> String {
    format!("{}.{name}", held.name())
}

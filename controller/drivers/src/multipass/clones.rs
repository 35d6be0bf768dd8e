//! Machines that begin as another is, which is down for it. The daemon copies its disk, and has cloud-init take the copy
//! for a new machine: at its first boot it writes down again by which nonce its source was made.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::names::SnapshotName;

use super::answer::State;
use super::birth::{After, SETTLE_LIMIT, after};
use super::record::{Identity, Power, Record, later};
use super::trouble::Trouble;
use super::{Held, Multipass};
use crate::{CreateOrder, DriverError, Target};

/// How long the daemon may take to copy a disk.
const COPY_LIMIT: Duration = Duration::from_secs(600);

impl Multipass {
    /// Has the daemon copy an instance that is down and has this snapshot, for the instance that is held. Its name was
    /// free in the last listing.
    pub(super) async fn clone_from(
        &self,
        held: &mut Held<'_>,
        order: &CreateOrder,
        source: &Target,
        snapshot: &SnapshotName,
    ) -> Result<(), DriverError> {
        let source = self.hold("copy", source).await.map_err(|error| held.failed(&error.to_string()))?;
        if self.state(&source).await? != State::Stopped {
            let name = source.name();
            return Err(held.failed(&format!("Multipass copies only what is stopped, and `{name}` is not")));
        }
        if !self.taken(&source).await?.contains(snapshot) {
            return Err(held.failed(&format!("`{}` has no snapshot `{snapshot}`", source.name())));
        }
        let is_first = !matches!(held.record.power, Power::Coming { .. });
        held.record = Record { provision: order.provision.clone(), ..source.record.copy(held.record.clone()) };
        let limit = SignedDuration::try_from(COPY_LIMIT).unwrap_or(SignedDuration::MAX);
        held.record.power = Power::Coming { until: later(Timestamp::now(), limit) };
        self.remember(held).await?;
        let called = {
            let _turn = self.lanes.change(format!("clone {}", source.name())).await;
            self.call(&["clone", source.name(), "--name", held.name()], None, COPY_LIMIT).await
        };
        let Err(fault) = called else { return self.is_copied(held).await };
        if is_first && fault.trouble() == Trouble::Exists {
            // Somebody was faster, while this waited for its turn.
            self.forget(held).await?;
            return Err(DriverError::Foreign { instance: held.act.1.clone() });
        }
        // Whatever it says: the instance shows what came of it.
        if self.look(held.act).await?.contains_key(held.name()) {
            return self.is_copied(held).await;
        }
        if matches!(after(fault.trouble(), fault.is_clients()), After::Look | After::Fail) {
            self.forget(held).await?;
        }
        Err(self.trouble(held.act, &fault))
    }

    /// It is there, and down.
    async fn is_copied(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        held.record.power = Power::Down;
        self.remember(held).await
    }

    /// Has a copy that is up say by which nonce it was made, and no longer that of its source.
    pub(super) async fn rebrand(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        let Some(source) = held.record.copy_of.clone() else { return Ok(()) };
        let guest = self.guest(held.act.1);
        // Before that, cloud-init would take it back.
        guest.settled(SETTLE_LIMIT).await.map_err(|fault| self.trouble(held.act, &fault))?;
        guest
            .rebrand([&source, &held.record.given], &held.record.birth)
            .await
            .map_err(|fault| self.trouble(held.act, &fault))?;
        held.record.copy_of = None;
        self.remember(held).await
    }
}

impl Record {
    /// That of a copy of this one's instance, where `own` is what is its own.
    fn copy(&self, own: Self) -> Self {
        Self {
            sizes: self.sizes,
            provisioned: self.provisioned,
            has_mounts: true,
            identity: Identity::Unasked,
            given: self.given.clone(),
            adopting: false,
            copy_of: Some(self.birth.clone()),
            ..own
        }
    }
}

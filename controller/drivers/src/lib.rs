//! What makes instances. A driver is a small trait over some virtual machine manager; what it can do
//! and bear it declares as data ([`Capabilities`]), so that plans are made without it.
//!
//! A driver knows nothing of plans, fleets' files or the hub. It acts only on the instance that it
//! is shown with its nonce: an instance of the same name with another nonce is not ours.
//!
//! [`contract`] holds every driver to what the trait says; [`local`] is the driver that needs no
//! machine, and [`fake`] the one that fails on request.

pub mod contract;
pub mod fake;
mod folder;
mod hold;
pub mod images;
mod launched;
pub mod local;
pub mod multipass;
mod process;
pub mod provisioning;
pub mod qemu;
pub mod runtimes;
mod socket;
mod tool;

use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;
use std::path::Path;

use async_trait::async_trait;
use vm_agent_schemas::fleet::{DriverName, Mount, Provision};
use vm_agent_schemas::guest::Witness;
use vm_agent_schemas::ids::{Nonce, Secret};
use vm_agent_schemas::names::{InstanceName, SnapshotName};
use vm_agent_schemas::observe::{Capabilities, Description, Instance, Sizes};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::Seed;

/// What makes instances.
///
/// Every call may take long, hang or be dropped half-way by its caller, who holds the deadline: a
/// dropped call ends whatever process it started, and leaves the instance as a later [`list`] shows
/// it. Every call is idempotent: asking for what already is succeeds.
///
/// [`list`]: Driver::list
#[async_trait]
pub trait Driver: Send + Sync {
    /// The name by which the fleet file knows the driver.
    fn name(&self) -> DriverName;

    /// What the driver can do and bear.
    fn capabilities(&self) -> Capabilities;

    /// Every instance that the driver can see, ours or not. An error means that nothing is known, not
    /// that nothing exists.
    async fn list(&self) -> Result<Vec<Instance>, DriverError>;

    /// Makes an instance, seeds it and starts it. Already made with this nonce: it is seeded anew and
    /// started. Half made: it is finished. Its name taken by another: [`DriverError::Foreign`].
    async fn create(&self, order: &CreateOrder) -> Result<(), DriverError>;

    /// Starts an instance, with a new seed where the driver can hand one over, and with these mounts and
    /// no others. Already running: nothing happens. A seed with another nonce than the target's is
    /// refused.
    async fn start(&self, target: &Target, seed: &Seed, mounts: &Mounts) -> Result<(), DriverError>;

    /// Stops an instance: first by asking it, then by the hard means. Already stopped: nothing
    /// happens.
    async fn stop(&self, target: &Target) -> Result<(), DriverError>;

    /// Gives an instance other sizes. Where [`Capabilities::resize_running`] is false it is stopped
    /// before and stays so.
    async fn resize(&self, target: &Target, sizes: &Sizes) -> Result<(), DriverError>;

    /// Deletes an instance with all that is in it, running or not, and frees its name. Already gone:
    /// nothing happens, and it succeeds.
    async fn destroy(&self, target: &Target) -> Result<(), DriverError>;

    /// Takes a snapshot of an instance: with its memory where it runs. There is one of that name already: nothing
    /// happens.
    async fn snapshot(&self, _target: &Target, _name: &SnapshotName) -> Result<(), DriverError> {
        Err(self.unsupported("take snapshots"))
    }

    /// Deletes a snapshot of an instance, running or not. Already gone: nothing happens.
    async fn delete_snapshot(&self, _target: &Target, _name: &SnapshotName) -> Result<(), DriverError> {
        Err(self.unsupported("take snapshots"))
    }

    /// Brings an instance that does not run back to a snapshot of it, and starts it as a new incarnation: with
    /// this seed, whose nonce is that of the target and the instance's from now on, and with these mounts. What
    /// the machine knew of itself it learns anew: nobody can take it for the one that the snapshot was taken
    /// of. The instance has that nonce already: it is started. Until the call has succeeded it has the one nonce
    /// or the other.
    async fn restore(
        &self,
        _target: &Target,
        _snapshot: &SnapshotName,
        _seed: &Seed,
        _mounts: &Mounts,
    ) -> Result<(), DriverError> {
        Err(self.unsupported("take snapshots"))
    }

    /// The same, and the instance stays down: the next start goes on from there. The instance has that nonce already:
    /// nothing happens.
    async fn go_back(&self, _target: &Target, _snapshot: &SnapshotName, _seed: &Seed) -> Result<(), DriverError> {
        Err(self.unsupported("take snapshots"))
    }

    /// What the snapshots of an instance take on this host, as far as that can be told.
    async fn snapshot_sizes(&self, _target: &Target) -> Result<BTreeMap<SnapshotName, ByteSize>, DriverError> {
        Ok(BTreeMap::new())
    }

    /// Saves the memory of an instance that runs, and stops it; the next start goes on from there. Already
    /// suspended or stopped: nothing happens.
    async fn suspend(&self, _target: &Target) -> Result<(), DriverError> {
        Err(self.unsupported("suspend machines"))
    }

    /// What is asked is nothing that the driver can do.
    fn unsupported(&self, what: &str) -> DriverError {
        DriverError::Unsupported { driver: self.name(), what: what.to_owned() }
    }

    /// The program on this host that can take the place of the runtimes in its instances: of their
    /// architecture, and called as they were. Nothing where there is none.
    fn runtime(&self) -> Option<&Path> {
        None
    }

    /// What can be told of an instance, ours or not, when somebody thinks of taking it over. It may take long, and
    /// ask the machine itself.
    async fn describe(&self, _instance: &InstanceName) -> Result<Description, DriverError> {
        Err(self.unsupported("take over machines that it did not make"))
    }

    /// The address of this host in a network of the driver's own, where its machines find it; nothing where there is
    /// no such network, or not yet. It is looked up at each call.
    fn network(&self) -> Option<IpAddr> {
        None
    }

    /// Reads the nonce back from inside the instance; nothing where the driver can't.
    async fn prove(&self, instance: &InstanceName) -> Result<Option<Nonce>, DriverError>;

    /// Whether the instances are machines: what runs in one is kept apart from this host and from the others.
    fn isolates(&self) -> bool {
        true
    }

    /// Lays a challenge into an instance that runs, where only its runtime reads it, and gives what the instance says
    /// of itself, both by a way that is none of the runtime's. The challenge is in no log, no file of this host and no
    /// command line.
    async fn challenge(&self, _target: &Target, _challenge: &Secret) -> Result<Witness, DriverError> {
        Err(self.unsupported("reach into its machines"))
    }

    /// Gives an instance that runs another seed of the life that it leads. What runs in it goes on, and its runtime
    /// works with the new seed from its next connection on.
    async fn reseed(&self, _target: &Target, _seed: &Seed) -> Result<(), DriverError> {
        Err(self.unsupported("give a machine that runs another seed"))
    }
}

/// An instance to act on, and what shows that it is the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The instance's name.
    pub instance: InstanceName,
    /// The nonce of its claim.
    pub nonce: Nonce,
    /// That of its former incarnation, which it may still have while it goes back to a snapshot.
    pub former: Option<Nonce>,
}

impl Target {
    /// Whether an instance with this nonce is the one that is meant.
    #[must_use]
    pub fn is(&self, nonce: &Nonce) -> bool {
        *nonce == self.nonce || self.former.as_ref() == Some(nonce)
    }
}

/// An instance to make.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateOrder {
    /// The instance's name.
    pub instance: InstanceName,
    /// What it is made from.
    pub base: Base,
    /// The sizes.
    pub sizes: Sizes,
    /// What goes into it. The nonce is in here.
    pub seed: Seed,
    /// The folders of the host in it.
    pub mounts: Mounts,
    /// What it gets besides the runtime. A driver that makes no machine refuses any as
    /// [`DriverError::Unsupported`].
    pub provision: Provision,
    /// Whether one that is made from an image begins as a copy of a machine like it that has booted already, where the
    /// driver has [`Capabilities::warm`]. It is another machine all the same.
    pub warm: bool,
}

/// What an instance is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// An image, in the driver's own terms.
    Image(String),
    /// A snapshot of another instance. The new one is as that was, but for who it is: it has this order's seed,
    /// and a machine id, addresses and random numbers of its own.
    Snapshot(Target, SnapshotName),
    /// The instance of that name, which is there and nobody's: it is taken over as it is, with all that is in it.
    Existing,
}

/// Folders of the host in an instance, by the path that they have there: absolute, or below the work
/// folder. One that is not on the host fails the start. A driver without [`Capabilities::mounts`]
/// refuses any as [`DriverError::Unsupported`].
pub type Mounts = BTreeMap<String, Mount>;

impl CreateOrder {
    /// The instance as a target for later calls.
    #[must_use]
    pub fn target(&self) -> Target {
        Target { instance: self.instance.clone(), nonce: self.seed.nonce.clone(), former: None }
    }
}

/// Why a driver did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The driver's own service does not answer or is not there. Says nothing about instances.
    #[error("{driver} does not answer: {reason}")]
    Unavailable {
        /// The driver.
        driver: DriverName,
        /// What it said, or that it said nothing.
        reason: String,
    },
    /// The instance is not the one that was meant.
    #[error("instance `{instance}` is not ours: something else has its name")]
    Foreign {
        /// The instance.
        instance: InstanceName,
    },
    /// The instance does not exist.
    #[error("instance `{instance}` does not exist")]
    Missing {
        /// The instance.
        instance: InstanceName,
    },
    /// The driver can't do this at all.
    #[error("{driver} can't {what}")]
    Unsupported {
        /// The driver.
        driver: DriverName,
        /// What.
        what: String,
    },
    /// It was tried and did not work.
    #[error("could not {action} instance `{instance}`: {reason}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// The instance.
        instance: InstanceName,
        /// What went wrong, in the manager's own words where it said any.
        reason: String,
    },
}

/// What is being done to which instance, for the error if it fails.
#[derive(Clone, Copy)]
struct Act<'a>(&'static str, &'a InstanceName);

impl Act<'_> {
    fn failed(self, error: &(dyn Error + 'static)) -> DriverError {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        let reason = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        DriverError::Failed { action: self.0, instance: self.1.clone(), reason }
    }
}

//! What is asked of instances that run, and told them, and how one that is nobody's becomes ours. Nothing of this
//! changes what an instance is doing, but for the last.

use std::io;

use jiff::Timestamp;
use vm_agent_schemas::fleet::Mount;
use vm_agent_schemas::guest::{FromGuest, MachineId, ToGuest, Witness};
use vm_agent_schemas::ids::Secret;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::Description;
use vm_agent_schemas::wire::Seed;

use super::answer::{self, State};
use super::power::missing;
use super::record::{Identity, Power, Record};
use super::{Held, Multipass, SHORT_LIMIT};
use crate::{Act, CreateOrder, DriverError, Target};

impl Multipass {
    /// Lays a challenge into an instance. It is held meanwhile: a call on one that somebody stops just then would start
    /// it again.
    pub(super) async fn lay_challenge(&self, target: &Target, challenge: &Secret) -> Result<Witness, DriverError> {
        let act = Act("ask", &target.instance);
        let _hold = self.holds.hold(&target.instance).await;
        let (seen, record) = (self.look(act).await?, self.recall(act).await?);
        let state = *seen.get(target.instance.as_str()).ok_or_else(|| missing(&target.instance))?;
        let is_it = |record: Record| target.is(&record.nonce) && record.identity != Identity::Doubtful;
        if !record.is_some_and(is_it) {
            return Err(DriverError::Foreign { instance: target.instance.clone() });
        }
        runs(act, state)?;
        let request = |id| ToGuest::Challenge { id, challenge: challenge.clone() };
        match self.guest(&target.instance).ask_once(request).await {
            Ok(FromGuest::Proof(proof)) => Ok(proof.into()),
            Ok(other) => Err(act.failed(&unexpected(other))),
            Err(fault) => Err(self.trouble(act, &fault)),
        }
    }

    /// Gives an instance that runs another seed of the life that it leads.
    pub(super) async fn seed_anew(&self, held: &Held<'_>, seed: &Seed) -> Result<(), DriverError> {
        runs(held.act, self.state(held).await?)?;
        match self.guest(held.act.1).seed(seed, &held.record.machine_id).await {
            Ok(FromGuest::Done { .. }) => Ok(()),
            Ok(other) => Err(held.act.failed(&unexpected(other))),
            Err(fault) => Err(self.trouble(held.act, &fault)),
        }
    }

    /// What Multipass tells of an instance, ours or not.
    pub(super) async fn description(&self, instance: &InstanceName) -> Result<Description, DriverError> {
        let act = Act("describe", instance);
        if !self.look(act).await?.contains_key(instance.as_str()) {
            return Err(missing(instance));
        }
        let known = self.recall(act).await?.map(|record| record.sizes);
        let sizes = self.sizes(act, known).await?;
        let info = self.info(act).await?;
        let mounts = answer::mounts(&info, instance.as_str()).map_err(|error| act.failed(&error))?;
        // Multipass mounts folders to be written.
        let mounts = mounts.into_iter().map(|(place, source)| (place, Mount { source, writable: true }));
        Ok(Description { image: answer::image(&info, instance.as_str()), sizes: Some(sizes), mounts: mounts.collect() })
    }

    /// What Multipass tells of an instance without a word with it.
    pub(super) async fn info(&self, act: Act<'_>) -> Result<Vec<u8>, DriverError> {
        let arguments = ["info", act.1.as_str(), "--no-runtime-information", "--format", "json"];
        match self.call(&arguments, None, SHORT_LIMIT).await {
            Ok(said) => Ok(said.stdout),
            Err(fault) => Err(self.trouble(act, &fault)),
        }
    }

    /// Holds an instance that is there and is to be taken over. A record of it is of before it was let go of, unless it
    /// is this very order's: no claim has it.
    pub(super) async fn hold_existing<'a>(&self, order: &'a CreateOrder) -> Result<Held<'a>, DriverError> {
        let act = Act("take over", &order.instance);
        let hold = self.holds.hold(&order.instance).await;
        let (seen, known) = (self.look(act).await?, self.recall(act).await?);
        match (known, seen.get(order.instance.as_str())) {
            (_, None) => Err(missing(&order.instance)),
            (Some(record), _) if record.nonce == order.seed.nonce => Ok(Held { act, hold, record }),
            (_, Some(State::Deleted)) => {
                let reason = format!("it is deleted; `multipass recover {}` brings it back", order.instance);
                Err(act.failed(&io::Error::other(reason)))
            }
            (before, Some(_)) => {
                let (new, until) = (Record::of(order), Timestamp::now());
                // What is written down in it, and which snapshots it has, stays as it was.
                let before = before.unwrap_or_else(|| new.clone());
                let record = Record {
                    nonce: new.nonce,
                    sizes: new.sizes,
                    provision: new.provision,
                    provisioned: true,
                    identity: Identity::Unasked,
                    power: Power::Coming { until },
                    adopting: true,
                    // Which folders are mounted in it is to be asked.
                    has_mounts: true,
                    ..before
                };
                let held = Held { act, hold, record };
                self.remember(&held).await?;
                Ok(held)
            }
        }
    }

    /// Has an instance that is being taken over say whose it is from now on. One that says so already is another
    /// controller's.
    pub(super) async fn brand(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        self.guest(held.act.1).brand(&held.record.birth).await.map_err(|fault| self.trouble(held.act, &fault))?;
        Ok(())
    }

    /// Keeps the id that a machine has which is taken over: programs in it may know it by that.
    pub(super) async fn keep_machine_id(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        match self.guest(held.act.1).ask(|id| ToGuest::Prove { id }).await {
            Ok(FromGuest::Proof(proof)) => {
                held.record.machine_id = proof.machine_id.unwrap_or_else(MachineId::generate);
                self.remember(held).await
            }
            Ok(other) => Err(held.act.failed(&unexpected(other))),
            Err(fault) => Err(self.trouble(held.act, &fault)),
        }
    }
}

/// Only an instance that runs can be spoken to: Multipass would start any other for it.
fn runs(act: Act<'_>, state: State) -> Result<(), DriverError> {
    match state {
        State::Running => Ok(()),
        _ => Err(act.failed(&io::Error::other("it does not run, or its daemon has lost sight of it"))),
    }
}

/// What a guest program says that does not do what it is asked.
fn unexpected(answer: FromGuest) -> io::Error {
    match answer {
        FromGuest::Failed { reason, .. } => io::Error::other(reason),
        _ => io::Error::other("its guest program answered something else than it was asked"),
    }
}

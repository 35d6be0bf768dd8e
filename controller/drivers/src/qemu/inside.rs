//! What is asked of a machine that runs, and told it, over its channel: nothing of this changes the machine's power.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::guest::{Entropy, FromGuest, Identity, SeedRequest, ToGuest, Witness};
use vm_agent_schemas::ids::{RequestId, Secret};
use vm_agent_schemas::wire::Seed;

use super::channel::{Channel, First};
use super::machine::{CHANNEL, Machine, folder};
use super::{Held, Qemu};
use crate::folder::{Folder, Owner};
use crate::hold::blocking;
use crate::{Act, DriverError, Target};

/// How long a guest program may take to answer. It is up; an emulated machine under load is slow.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The guest program of a machine that runs has not answered.
#[derive(Debug, thiserror::Error)]
#[error(
    "its guest program did not answer within {} s; one that is older than this controller does not know what it was \
     asked, and is replaced at the machine's next start",
    ANSWER_LIMIT.as_secs()
)]
struct NotAnswered;

impl Qemu {
    /// Lays a challenge into a machine. Nobody waits for this who has something to do with the machine: it is not held
    /// meanwhile.
    pub(super) async fn lay_challenge(&self, target: &Target, challenge: &Secret) -> Result<Witness, DriverError> {
        let act = Act("ask", &target.instance);
        let folder = folder(&self.root, &target.instance);
        let looked = folder.clone();
        match blocking(move || looked.owner()).await {
            Ok(Owner::Claim(nonce)) if target.is(&nonce) => {}
            Ok(Owner::Claim(_) | Owner::Unclear) => {
                return Err(DriverError::Foreign { instance: target.instance.clone() });
            }
            Ok(Owner::Nobody) => return Err(DriverError::Missing { instance: target.instance.clone() }),
            Err(error) => return Err(act.failed(&error)),
        }
        let request = |id| ToGuest::Challenge { id, challenge: challenge.clone() };
        match ask(&folder, request).await.map_err(|error| act.failed(&error))? {
            FromGuest::Proof(proof) => Ok(proof.into()),
            other => Err(act.failed(&unexpected(other))),
        }
    }

    /// Gives a machine that runs another seed of the life that it leads.
    pub(super) async fn seed_anew(&self, held: &Held<'_>, seed: &Seed) -> Result<(), DriverError> {
        let machine = held.look(Machine::read).await?;
        let request = |id| {
            let identity = Identity {
                hostname: machine.name.clone(),
                machine_id: machine.machine_id.clone(),
                mac: Some(machine.mac.clone()),
                time: Timestamp::now(),
                entropy: Entropy::generate(),
            };
            ToGuest::Seed(Box::new(SeedRequest { id, seed: seed.clone(), identity }))
        };
        match ask(&held.folder, request).await.map_err(|error| held.act.failed(&error))? {
            FromGuest::Done { .. } => Ok(()),
            other => Err(held.act.failed(&unexpected(other))),
        }
    }
}

async fn ask(folder: &Folder, request: impl Fn(RequestId) -> ToGuest) -> io::Result<FromGuest> {
    let asked = async {
        let mut channel = Channel::connect(folder.path(), CHANNEL).await?;
        channel.ask(First::Now, request).await
    };
    tokio::time::timeout(ANSWER_LIMIT, asked).await.unwrap_or_else(|_| Err(io::Error::other(NotAnswered)))
}

/// What a guest program says that does not do what it is asked.
fn unexpected(answer: FromGuest) -> io::Error {
    match answer {
        FromGuest::Failed { reason, .. } => io::Error::other(reason),
        _ => io::Error::other("its guest program answered something else than it was asked"),
    }
}

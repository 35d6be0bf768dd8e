//! What must always hold, each with the promise of which it is a part. Every invariant sees every deed,
//! judges by its own lights and not by the product's, and remembers what it needs. A new one is a type
//! and a line in [`all`].

mod attempts;
mod machines;
mod messages;
mod output;
mod rest;
mod said;
mod snapshots;
mod steps;
mod tasks;

use std::fmt;

use vm_agent_daemon::engine::records::{Change, Records};
use vm_agent_plan::{Inputs, Listing};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Instance, Operation};

use crate::deed::{By, Deed};

pub use rest::is_at_rest;

use attempts::{
    AttemptsFollowEachOther, DeadlinesHold, EndsAreStoredFirst, KeysKeepTheirOrder, PoolsGoToTheirOwn,
    RepeatsAreGranted, SlotsAreKept, WhatIsCanceledIsNotBegun,
};
use machines::{
    AnAgentHasOneMachine, ClaimsComeFirst, IgnoranceActsOnNothing, IncarnationsAreNew, NothingForeignIsTouched,
    NothingGoesByAccident,
};
use messages::{KeysAreNotLost, MessagesAreGivenOnce, MessagesEndOnce, MessagesKeepTheirOrder, OnlyWhoMayWrites};
use output::OutputIsWhole;
use rest::{APassComesToAnEnd, ItComesToRest, NothingIsLeftBehind, RestIsRest, WhatIsRecordedIsNotForgotten};
use said::{OverridesWinAndEnd, PausesAreRespected};
use snapshots::{AMomentHasOneSnapshot, TheFormerIsPast, TheWayBackIsKept, WhatPeopleKeepStays};
use steps::{BackoffsAreKept, DependenciesComeFirst, LanesAreKept, OneStepAtATime, StepsAreAnnounced, TheFuseHolds};
use tasks::{OnlyTheNewestSpeaks, TasksAreStoredFirst, TasksEndOnce, TasksRunOnce};

/// The promises that are held to here.
const ACCIDENT: &str = "nothing is destroyed by accident";
const LEVEL: &str = "a missed event, a crash or a restart loses nothing, and twice is once";
const ORDER: &str = "what a plan says is what is done";
const UNKNOWN: &str = "unknown is not absent";
const SAID: &str = "what people say wins, visibly, and ends";
const ONCE: &str = "a task has one outcome, and only who should speaks";
const POST: &str = "a message is never lost unsaid, and goes only where it may";
const DOORS: &str = "every door has a lock, and who should is let in";
const LOOP: &str = "one sick agent or driver never wedges the loop";

/// Something that must always hold.
pub trait Invariant {
    /// Its name.
    fn name(&self) -> &'static str;
    /// The promise of which it is a part.
    fn promise(&self) -> &'static str;
    /// Judges a deed.
    ///
    /// # Errors
    /// With what was wrong with it.
    fn see(&mut self, deed: &Deed) -> Result<(), String>;
}

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Broken {
    /// What did not hold.
    pub invariant: &'static str,
    /// Which promise.
    pub promise: &'static str,
    /// How.
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.invariant, self.promise, self.how)
    }
}

/// Every invariant.
#[must_use]
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(ClaimsComeFirst::default()),
        Box::new(NothingGoesByAccident::default()),
        Box::new(NothingForeignIsTouched),
        Box::new(AnAgentHasOneMachine),
        Box::new(WhatIsRecordedIsNotForgotten),
        Box::new(APassComesToAnEnd::default()),
        Box::new(RestIsRest::default()),
        Box::new(ItComesToRest),
        Box::new(NothingIsLeftBehind),
        Box::new(IgnoranceActsOnNothing),
        Box::new(OverridesWinAndEnd),
        Box::new(TasksEndOnce::default()),
        Box::new(TasksRunOnce::default()),
        Box::new(TasksAreStoredFirst),
        Box::new(AttemptsFollowEachOther::default()),
        Box::new(RepeatsAreGranted::default()),
        Box::new(KeysKeepTheirOrder::default()),
        Box::new(SlotsAreKept::default()),
        Box::new(DeadlinesHold::default()),
        Box::new(PoolsGoToTheirOwn::default()),
        Box::new(WhatIsCanceledIsNotBegun::default()),
        Box::new(EndsAreStoredFirst),
        Box::new(OutputIsWhole::default()),
        Box::new(MessagesEndOnce::default()),
        Box::new(MessagesAreGivenOnce::default()),
        Box::new(MessagesKeepTheirOrder::default()),
        Box::new(OnlyWhoMayWrites::default()),
        Box::new(KeysAreNotLost),
        Box::new(OnlyTheNewestSpeaks::default()),
        Box::new(IncarnationsAreNew::default()),
        Box::new(StepsAreAnnounced),
        Box::new(OneStepAtATime::default()),
        Box::new(LanesAreKept),
        Box::new(PausesAreRespected),
        Box::new(BackoffsAreKept),
        Box::new(TheWayBackIsKept),
        Box::new(WhatPeopleKeepStays),
        Box::new(AMomentHasOneSnapshot::default()),
        Box::new(TheFormerIsPast::default()),
        Box::new(TheFuseHolds),
        Box::new(DependenciesComeFirst),
    ]
}

macro_rules! invariant {
    ($name:ident, $promise:ident) => {
        fn name(&self) -> &'static str {
            stringify!($name)
        }
        fn promise(&self) -> &'static str {
            $promise
        }
    };
}
use invariant;

fn hold(holds: bool, how: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(how()) }
}

/// The steps that a pass has just announced, with what it had seen and the records as they are now.
fn opened(deed: &Deed) -> Vec<(&Operation, &Inputs, &Records)> {
    match deed {
        Deed::Recorded { by: By::Pass(inputs), after, changes, .. } => {
            let open = changes.iter().filter_map(|change| match change {
                Change::Open(operation) => Some((operation, &**inputs, &**after)),
                _ => None,
            });
            open.collect()
        }
        _ => Vec::new(),
    }
}

/// What a listing shows of the instance of an agent that is claimed.
fn shown<'a>(inputs: &'a Inputs, records: &Records, agent: &AgentName) -> Option<&'a Instance> {
    let claim = records.claims.get(agent)?;
    let Listing::Seen(instances) = &inputs.drivers.get(&claim.driver)?.listing else { return None };
    instances.get(&claim.instance).map(|observed| &observed.instance)
}

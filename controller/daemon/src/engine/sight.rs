//! What a driver sees, as one listing after the other tells it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use vm_agent_plan::{DriverView, Listing, Observed};
use vm_agent_schemas::observe::{Capabilities, Instance};

/// How often a driver is looked at when nothing calls for it. What the controller does itself, and what
/// runtimes tell, is looked at once it happens; this finds what others did.
pub const OBSERVE_EVERY: Duration = Duration::from_secs(10);

/// What one driver sees, and how fresh that is.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// How many listings have begun when this one did: grows by one with each.
    pub round: u64,
    /// When it began.
    pub begun_at: Option<Timestamp>,
    /// What the listing gave; nothing before the first has ended.
    pub listing: Option<Listing>,
    /// When the driver last answered.
    pub last_answer: Option<Timestamp>,
}

impl Sight {
    /// What is seen after the listing of that round, which began then and has ended now.
    #[must_use]
    pub fn after(
        &self,
        round: u64,
        begun_at: Timestamp,
        answer: Result<Vec<Instance>, String>,
        now: Timestamp,
    ) -> Self {
        let last_answer = if answer.is_ok() { Some(now) } else { self.last_answer };
        Self { round, begun_at: Some(begun_at), listing: Some(digest(self.listing.as_ref(), answer, now)), last_answer }
    }

    /// The driver as a plan sees it. Before its first listing has ended nothing is known, since the life
    /// began.
    #[must_use]
    pub fn view(&self, capabilities: Capabilities, since: Timestamp) -> DriverView {
        let unasked = || Listing::Unanswered { since, reason: "it has not been asked yet".into() };
        let listing = self.listing.clone().unwrap_or_else(unasked);
        DriverView { capabilities, listing, looked_at: self.begun_at }
    }
}

/// A listing in the light of the one before: what has not changed has been so since then.
fn digest(before: Option<&Listing>, answer: Result<Vec<Instance>, String>, now: Timestamp) -> Listing {
    match answer {
        Ok(instances) => {
            let known = match before {
                Some(Listing::Seen(known)) => Some(known),
                _ => None,
            };
            let since = |instance: &Instance| {
                let same = known.and_then(|known| known.get(&instance.name));
                same.filter(|same| same.instance.state == instance.state && same.instance.nonce == instance.nonce)
                    .map_or(now, |same| same.since)
            };
            let observed = instances.into_iter().map(|instance| {
                let since = since(&instance);
                (instance.name.clone(), Observed { instance, since })
            });
            Listing::Seen(observed.collect::<BTreeMap<_, _>>())
        }
        Err(reason) => match before {
            Some(Listing::Unanswered { since, .. }) => Listing::Unanswered { since: *since, reason },
            _ => Listing::Unanswered { since: now, reason },
        },
    }
}

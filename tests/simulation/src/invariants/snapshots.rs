//! Snapshots: what is kept, and the way back.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use vm_agent_daemon::engine::records::Change;
use vm_agent_schemas::ids::{ClaimId, Nonce};
use vm_agent_schemas::names::ScheduleName;
use vm_agent_schemas::observe::Action;
use vm_agent_schemas::snapshot::{Ask, Cause, Errand};

use super::{ACCIDENT, Invariant, LEVEL, hold, invariant};
use crate::deed::Deed;

/// A machine goes back only when what it was is kept, or somebody does not want that; and to a snapshot that is
/// known.
#[derive(Debug)]
pub(super) struct TheWayBackIsKept;

impl Invariant for TheWayBackIsKept {
    invariant!(TheWayBackIsKept, ACCIDENT);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Called { agent, action: Action::Restore, records, .. } = deed else { return Ok(()) };
        let way = records.claims.get(agent).and_then(|claim| claim.history.restoring.as_ref());
        let Some(way) = way else { return Err(format!("{agent} goes back, and its claim does not say so")) };
        let known = records.snapshots.get(agent);
        let wanted = |errand: &&Errand| matches!(&errand.ask, Ask::Restore { to, .. } if *to == way.snapshot);
        let errand = records.errands.get(agent).into_iter().flatten().find(wanted);
        let safety = errand.and_then(|errand| match &errand.ask {
            Ask::Restore { safety, .. } => safety.as_ref(),
            _ => None,
        });
        let is_kept = safety.is_none_or(|name| known.is_some_and(|known| known.contains_key(name)));
        hold(is_kept, || format!("{agent} goes back before {safety:?} was taken"))
    }
}

/// What a person took or protects goes only when a person says so.
#[derive(Debug)]
pub(super) struct WhatPeopleKeepStays;

impl Invariant for WhatPeopleKeepStays {
    invariant!(WhatPeopleKeepStays, ACCIDENT);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Recorded { changes, before, .. } = deed else { return Ok(()) };
        for change in changes.iter() {
            let Change::Errand(errand) = change else { continue };
            let Ask::Delete { name, unkept } = &errand.ask else { continue };
            let Some(snapshot) = before.snapshots.get(&errand.agent).and_then(|known| known.get(name)) else {
                continue;
            };
            let by_itself =
                matches!(snapshot.cause, Cause::Schedule { .. } | Cause::Restore { .. }) && !snapshot.protect;
            let asked_now = errand.end.is_none() && errand.tried.is_none();
            hold(!asked_now || if *unkept { by_itself } else { errand.by == "ana" }, || {
                format!("{} wants `{name}` of {} deleted: {:?}", errand.by, errand.agent, snapshot.cause)
            })?;
        }
        Ok(())
    }
}

/// A schedule asks once for a moment.
#[derive(Debug, Default)]
pub(super) struct AMomentHasOneSnapshot {
    asked: BTreeMap<(ClaimId, ScheduleName), BTreeSet<Timestamp>>,
}

impl Invariant for AMomentHasOneSnapshot {
    invariant!(AMomentHasOneSnapshot, LEVEL);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Recorded { changes, .. } = deed else { return Ok(()) };
        for change in changes.iter() {
            let Change::Errand(errand) = change else { continue };
            let Ask::Take { cause: Cause::Schedule { schedule, due }, .. } = &errand.ask else { continue };
            if errand.end.is_some() || errand.tried.is_some() {
                continue;
            }
            let new = self.asked.entry((errand.claim, schedule.clone())).or_default().insert(*due);
            hold(new, || format!("{schedule} of {} asks twice for {due}", errand.agent))?;
        }
        Ok(())
    }
}

/// Once a machine has gone back, its former incarnation is never acted on again.
#[derive(Debug, Default)]
pub(super) struct TheFormerIsPast {
    former: BTreeSet<Nonce>,
}

impl Invariant for TheFormerIsPast {
    invariant!(TheFormerIsPast, ACCIDENT);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Recorded { before, after, .. } => {
                for (agent, claim) in &after.claims {
                    let known =
                        before.claims.get(agent).filter(|known| known.id == claim.id && known.nonce != claim.nonce);
                    self.former.extend(known.map(|known| known.nonce.clone()));
                }
                Ok(())
            }
            Deed::Called { agent, nonce, action, .. } => {
                hold(!self.former.contains(nonce), || format!("a {action} of what {agent} was before it went back"))
            }
            _ => Ok(()),
        }
    }
}

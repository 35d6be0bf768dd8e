//! What may be deleted, and what waits for a person's yes first.

use vm_agent_schemas::fleet::Prune;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::plan::{ApprovalRequest, StepAction, WaitsFor};

use crate::inputs::Inputs;
use crate::situation::Situation;
use crate::snapshots::loss;
use crate::table::{Seen, Want};

/// However small the fleet, this many agents may leave it at once under `prune: auto`.
const REMOVAL_LEAST: usize = 2;

/// The share of the fleet that may leave it at once under `prune: auto`, in percent.
const REMOVAL_SHARE: usize = 30;

/// Decides about deletions, and collects what has to be asked.
pub(crate) struct Guard<'a> {
    inputs: &'a Inputs,
    /// How many agents leave together, where that is more than `prune: auto` lets go.
    pub(crate) mass: Option<usize>,
    asked: Vec<ApprovalRequest>,
    granted: Vec<Digest>,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(inputs: &'a Inputs, situations: &[Situation<'_>]) -> Self {
        let leaving = situations.iter().filter(|s| s.want == Want::Absent && !s.dismissed && leaves(s)).count();
        let limit = REMOVAL_LEAST.max(inputs.claims.len() * REMOVAL_SHARE / 100);
        Self { inputs, mass: (leaving > limit).then_some(leaving), asked: Vec::new(), granted: Vec::new() }
    }

    /// What the deletion of an agent that should not exist waits for.
    pub(crate) fn removal(&mut self, situation: &Situation<'_>) -> Option<WaitsFor> {
        let claim = situation.claim?;
        // Somebody may have said that it should go before somebody protected it.
        let declared = self.inputs.fleet.agents.get(situation.name);
        if claim.protect || declared.is_some_and(|agent| agent.spec.protect) {
            return Some(WaitsFor::Protected);
        }
        if !situation.is_proven() {
            return Some(WaitsFor::Proof);
        }
        if situation.dismissed {
            return None;
        }
        let mass = self.mass.or(claim.left_in_mass.then_some(1));
        let because = match (self.inputs.fleet.prune, mass) {
            (Prune::Never, _) => return Some(WaitsFor::PruneNever),
            (Prune::Auto, None) => return None,
            (Prune::Auto, Some(_)) => "it left the file together with more others than may go unasked".to_owned(),
            (Prune::Confirm, _) => "it is no longer in the file, and `prune` is `confirm`".to_owned(),
        };
        let what = format!("delete `{}` and its data{}: {because}", situation.name, lost(situation));
        self.ask("remove", situation, &of_snapshots(situation), what)
    }

    /// What the replacement of an agent's instance waits for. `why` names the fields that only a new
    /// machine can have.
    pub(crate) fn replacement(&mut self, situation: &Situation<'_>, why: &str) -> Option<WaitsFor> {
        let protected = situation.wanted.is_some_and(|agent| agent.spec.protect);
        if situation.claim?.protect || protected {
            return Some(WaitsFor::Protected);
        }
        if !situation.is_proven() {
            return Some(WaitsFor::Proof);
        }
        let what = format!("delete `{}` and its data{}, and make it anew: {why}", situation.name, lost(situation));
        self.ask("replace", situation, &format!("{why}{}", of_snapshots(situation)), what)
    }

    /// What a step on an agent waits for whose file says `reconcile: manual`.
    pub(crate) fn step(&mut self, situation: &Situation<'_>, action: &StepAction, reason: &str) -> Option<WaitsFor> {
        let what = format!("{action} `{}`: {reason}, and `reconcile` is `manual`", situation.name);
        self.ask("step", situation, &format!("{action}: {reason}"), what)
    }

    /// What has to be asked, and which yeses were used.
    pub(crate) fn into_requests(self) -> (Vec<ApprovalRequest>, Vec<Digest>) {
        (self.asked, self.granted)
    }

    /// Asks for exactly this: another machine, another life of it or another reason is another thing.
    fn ask(&mut self, kind: &str, situation: &Situation<'_>, detail: &str, what: String) -> Option<WaitsFor> {
        let claim = situation.claim.map(|claim| (claim.id, claim.incarnation));
        let id = Digest::of_json(&(kind, situation.name, claim, detail));
        if self.inputs.approvals.contains_key(&id) {
            self.granted.push(id);
            return None;
        }
        self.asked.push(ApprovalRequest { id: id.clone(), agent: situation.name.clone(), what });
        Some(WaitsFor::Approval { id })
    }
}

/// The snapshots that go with a machine, for people.
fn lost(situation: &Situation<'_>) -> String {
    loss(situation).map_or_else(String::new, |loss| format!(" ({loss})"))
}

/// What a yes to a deletion is about besides the machine. It is not void because of snapshots that come and go by
/// themselves.
fn of_snapshots(situation: &Situation<'_>) -> String {
    let protected = loss(situation).filter(|loss| loss.protected > 0);
    protected.map_or_else(String::new, |loss| format!("; {} protected", loss.protected))
}

/// Whether an agent's machine is to be deleted, is just being, or may have to be once more is known.
fn leaves(situation: &Situation<'_>) -> bool {
    situation.claim.is_some() && !matches!(situation.seen, Seen::Absent | Seen::Foreign)
}

//! The fleet file at the controller's door: plans for it, its acceptance, its history and the way back.

use std::sync::Arc;

use vm_agent_schemas::api::{
    Applied, ApplyRequest, Approval, FleetSource, FleetView, PlanRequest, PlanView, Problem, ProblemCode, RevisionView,
    RollbackRequest,
};
use vm_agent_schemas::fleet::{self, Diagnostic, Fleet};
use vm_agent_schemas::ids::Revision;
use vm_agent_store as store;
use vm_agent_store::revisions::StoredRevision;

use super::{Actor, Controller};
use crate::accept::{Wish, accept};
use crate::engine::file::{self, Cause, Held, OnDisk, Terms, Verdict};
use crate::engine::reach::widened;
use crate::engine::records::Records;
use crate::{view, watch};

impl Controller {
    /// The accepted fleet file.
    ///
    /// # Errors
    /// None so far.
    pub async fn fleet(&self) -> Result<FleetView, Problem> {
        Ok(view::fleet(&self.core.ledger.records()))
    }

    /// What would be done: for the accepted file, or for another.
    ///
    /// # Errors
    /// When the other file has errors or is another fleet's.
    pub async fn plan(&self, request: PlanRequest) -> Result<PlanView, Problem> {
        self.core.first_listings().await;
        let records = self.core.ledger.records();
        let Some(source) = request.source else {
            return Ok(PlanView { plan: self.plan_with(&records).await, reach: Vec::new() });
        };
        let fleet = read_fleet(&records, &source)?;
        let reach = widened(&records.fleet, &fleet).iter().map(ToString::to_string).collect();
        let hypothetical = Records { fleet: Arc::new(fleet), ..records.as_ref().clone() };
        Ok(PlanView { plan: self.plan_with(&hypothetical).await, reach })
    }

    /// Accepts a fleet file.
    ///
    /// # Errors
    /// When the file has errors or is another fleet's, when the plan is no longer the one that was
    /// shown, and when the store fails.
    pub async fn apply(&self, request: ApplyRequest, actor: &Actor) -> Result<Applied, Problem> {
        let ApplyRequest { source, plan, approve, dry_run } = request;
        if let Some(root) = source.roots.iter().find(|root| !root.is_absolute()) {
            let reason = format!("the path {} is relative, and nobody knows to which folder", root.display());
            return Err(Problem::new(ProblemCode::Invalid, reason).remedy("give absolute `roots`"));
        }
        let fleet = read_fleet(&self.core.ledger.records(), &source)?;
        let cause = Cause::Applied { by: actor.name.clone() };
        let wish = Wish { source, fleet, terms: Terms { plan, approve }, cause, dry_run };
        accept(&self.core, wish, &self.core.watch.turn().await).await
    }

    /// The latest accepted files, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn revisions(&self, limit: usize) -> Result<Vec<RevisionView>, Problem> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let found = self.read(move |conn| store::revisions::newest(conn, limit)).await?;
        let current = self.current();
        Ok(found.into_iter().map(|revision| RevisionView { source: None, ..shown(revision, current) }).collect())
    }

    /// An accepted file, with what it said.
    ///
    /// # Errors
    /// When there is none of that number, and when the store fails.
    pub async fn revision(&self, revision: Revision) -> Result<RevisionView, Problem> {
        Ok(shown(self.find_revision(revision).await?, self.current()))
    }

    /// Goes back to an earlier file: what it said becomes the newest revision. The one on the disk is
    /// passed over until it changes.
    ///
    /// # Errors
    /// When there is no such revision or it no longer reads, when the plan is no longer the one that was
    /// shown, and when the store fails.
    pub async fn rollback(&self, request: RollbackRequest, actor: &Actor) -> Result<Applied, Problem> {
        let RollbackRequest { revision, plan, approve, dry_run } = request;
        let files = self.find_revision(revision).await?.source.files;
        let turn = self.core.watch.turn().await;
        let records = self.core.ledger.records();
        let source = FleetSource { roots: file::roots(&records).to_vec(), files };
        let fleet = read_fleet(&records, &source).map_err(|problem| Problem {
            reason: format!("revision {revision} can't be used any more: {}", problem.reason),
            ..problem
        })?;
        let past = if source.roots.is_empty() {
            None
        } else {
            // Can the disk not be read, then what was in force is what it said last.
            let disk = watch::on_disk(&records).await.unwrap_or_else(|problem| OnDisk::Lost(problem.reason));
            disk.digest().cloned().or_else(|| records.file.as_ref().map(|file| file.digest.clone()))
        };
        let cause = Cause::RolledBack { by: actor.name.clone(), to: revision, past };
        let wish = Wish { source, fleet, terms: Terms { plan, approve }, cause, dry_run };
        accept(&self.core, wish, &turn).await
    }

    /// The change of the file that waits for a person's yes.
    pub(super) fn held(&self) -> Option<Held> {
        match self.core.watch.found()? {
            Verdict::Held(held) => Some(held),
            _ => None,
        }
    }

    /// Says yes to the change of the file that was shown, while that is what stands on the disk.
    pub(super) async fn approve_file(&self, held: Held, dry_run: bool, actor: &Actor) -> Result<Approval, Problem> {
        let turn = self.core.watch.turn().await;
        let records = self.core.ledger.records();
        let disk = watch::on_disk(&records).await?;
        let same = file::judge(&records, &disk, None) == Verdict::Held(held.clone());
        let (true, OnDisk::Fleet(source, fleet)) = (same, disk) else {
            return Err(Problem::new(ProblemCode::Conflict, "the file has changed since that was shown")
                .remedy("look at what waits now: vm-agent approvals"));
        };
        let approval = Approval::from(&held);
        let cause = Cause::Approved { by: actor.name.clone(), held };
        let wish = Wish { source, fleet: *fleet, terms: Terms::default(), cause, dry_run };
        accept(&self.core, wish, &turn).await.map(|_| approval)
    }

    fn current(&self) -> Option<Revision> {
        self.core.ledger.records().file.as_ref().map(|file| file.revision)
    }

    async fn find_revision(&self, revision: Revision) -> Result<StoredRevision, Problem> {
        let found = self.read(move |conn| store::revisions::get(conn, revision)).await?;
        found.ok_or_else(|| {
            Problem::new(ProblemCode::NotFound, format!("there is no revision {revision}"))
                .remedy("see which there are: vm-agent history")
        })
    }
}

/// Reads a fleet file that is meant for this controller.
fn read_fleet(records: &Records, source: &FleetSource) -> Result<Fleet, Problem> {
    let fleet = fleet::parse_all(&source.files).map_err(|diagnostics| {
        let reason = diagnostics.first().map_or_else(String::new, Diagnostic::to_string);
        Problem { diagnostics, ..Problem::new(ProblemCode::Invalid, reason) }
    })?;
    file::belongs(records, &fleet)?;
    Ok(fleet)
}

fn shown(revision: StoredRevision, current: Option<Revision>) -> RevisionView {
    let StoredRevision { revision, source, digest: _, author, at, summary } = revision;
    RevisionView { revision, at, author, current: current == Some(revision), summary, source: Some(source) }
}

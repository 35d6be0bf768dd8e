//! What people ask of snapshots.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use vm_agent_plan::kept;
use vm_agent_schemas::api::{
    Changed, CloneRequest, Problem, ProblemCode, RestoreRequest, SnapshotChange, SnapshotDeletion, SnapshotRequest,
    SnapshotView,
};
use vm_agent_schemas::ids::ErrandId;
use vm_agent_schemas::names::{AgentName, SnapshotName};
use vm_agent_schemas::observe::{Capabilities, Claim};
use vm_agent_schemas::snapshot::{Errand, Snapshot};
use vm_agent_schemas::units::ByteSize;
use vm_agent_store as store;

use super::{Actor, Controller};
use crate::engine::errand::{self, Asked};
use crate::engine::intent::{self, Intent, Voice};
use crate::engine::job::target;
use crate::engine::records::{Change, Records};

/// How long a driver may take to tell what snapshots take: nobody waits long for a number.
const SIZES_LIMIT: Duration = Duration::from_secs(5);

impl Controller {
    /// The snapshots of an agent, or of all of them, the oldest first.
    ///
    /// # Errors
    /// When there is no such agent.
    pub async fn snapshots(&self, agent: Option<&AgentName>) -> Result<Vec<SnapshotView>, Problem> {
        if let Some(agent) = agent {
            self.known(agent)?;
        }
        let inputs = self.core.inputs().await;
        let is_meant = |name: &&AgentName| agent.is_none_or(|agent| agent == *name);
        let agents: Vec<&AgentName> = inputs.snapshots.keys().filter(is_meant).collect();
        let sizes = join_all(agents.iter().map(|agent| self.snapshot_sizes(inputs.claims.get(*agent)))).await;
        let mut kept = kept(&inputs);
        let mut all = Vec::new();
        for (agent, sizes) in agents.into_iter().zip(sizes) {
            all.extend(inputs.snapshots[agent].values().map(|snapshot| SnapshotView {
                memory: snapshot.has_memory(),
                size: sizes.get(&snapshot.name).copied(),
                kept: kept.remove(&(agent.clone(), snapshot.name.clone())).unwrap_or_default(),
                snapshot: snapshot.clone(),
            }));
        }
        let key = |it: &SnapshotView| (it.snapshot.agent.clone(), it.snapshot.taken_at, it.snapshot.name.clone());
        all.sort_by_cached_key(key);
        Ok(all)
    }

    /// What the snapshots of an instance take, where its driver can tell soon.
    async fn snapshot_sizes(&self, claim: Option<&Claim>) -> BTreeMap<SnapshotName, ByteSize> {
        let observer = claim.and_then(|claim| self.core.observers.get(&claim.driver));
        let Some((claim, observer)) = claim.zip(observer) else { return BTreeMap::new() };
        let target = target(claim);
        let told = tokio::time::timeout(SIZES_LIMIT, observer.driver().snapshot_sizes(&target)).await;
        told.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Has a snapshot of an agent's machine taken.
    ///
    /// # Errors
    /// When there is no such agent or no machine of it, when its driver takes none, when the name is taken, and
    /// when the store fails.
    pub async fn take_snapshot(
        &self,
        agent: &AgentName,
        request: SnapshotRequest,
        actor: &Actor,
    ) -> Result<Errand, Problem> {
        let dry_run = request.dry_run;
        self.ask(agent, dry_run, actor, |records, asked| errand::take(records, asked, request)).await
    }

    /// Has a snapshot deleted.
    ///
    /// # Errors
    /// When there is no such agent or snapshot, when it is protected, and when the store fails.
    pub async fn delete_snapshot(
        &self,
        agent: &AgentName,
        name: &SnapshotName,
        request: SnapshotDeletion,
        actor: &Actor,
    ) -> Result<Errand, Problem> {
        self.ask(agent, request.dry_run, actor, |records, asked| errand::delete(records, asked, name)).await
    }

    /// Has an agent's machine brought back to a snapshot.
    ///
    /// # Errors
    /// When there is no such agent or snapshot, and when the store fails.
    pub async fn restore(&self, agent: &AgentName, request: RestoreRequest, actor: &Actor) -> Result<Errand, Problem> {
        let dry_run = request.dry_run;
        self.ask(agent, dry_run, actor, |records, asked| errand::restore(records, asked, request)).await
    }

    /// Protects a snapshot or ends that, or says something else about it.
    ///
    /// # Errors
    /// When there is no such agent or snapshot, and when the store fails.
    pub async fn change_snapshot(
        &self,
        agent: &AgentName,
        name: &SnapshotName,
        request: SnapshotChange,
        actor: &Actor,
    ) -> Result<Snapshot, Problem> {
        let dry_run = request.dry_run;
        let changed = errand::change(&self.core.ledger.records(), agent, name, request)?;
        if dry_run {
            return Ok(changed);
        }
        tracing::info!(
            actor = actor.name,
            agent.name = agent.as_str(),
            snapshot = name.as_str(),
            "A snapshot is changed"
        );
        self.record(vec![Change::Snapshot(Box::new(changed.clone()))], Timestamp::now()).await?;
        self.core.wake();
        Ok(changed)
    }

    /// Makes an agent by hand from another's snapshot.
    ///
    /// # Errors
    /// When the other or its snapshot is not there, when its driver can't, when the new one's name is taken, and
    /// when the store fails.
    pub async fn clone_agent(
        &self,
        source: &AgentName,
        request: CloneRequest,
        actor: &Actor,
    ) -> Result<Changed, Problem> {
        let (name, dry_run) = (request.name.clone(), request.dry_run);
        self.change(name, None, dry_run, actor, |records, name, voice: Voice<'_>| -> Result<Intent, Problem> {
            let capabilities = self.capabilities(records, source);
            let asked = Asked { agent: source, capabilities: capabilities.as_ref(), by: voice.author, now: voice.now };
            errand::clone_agent(records, asked, name, request)
        })
        .await
    }

    /// Something that was asked of snapshots, over or not.
    ///
    /// # Errors
    /// When it is not known, or not any more, and when the store fails.
    pub async fn errand(&self, id: ErrandId) -> Result<Errand, Problem> {
        let known = self.read(move |conn| store::errands::get(conn, id)).await?;
        known.ok_or_else(|| Problem::new(ProblemCode::NotFound, format!("nothing with the id {id} was asked")))
    }

    async fn ask(
        &self,
        agent: &AgentName,
        dry_run: bool,
        actor: &Actor,
        decide: impl FnOnce(&Records, Asked<'_>) -> Result<Errand, Problem>,
    ) -> Result<Errand, Problem> {
        self.known(agent)?;
        let (records, now) = (self.core.ledger.records(), Timestamp::now());
        intent::refuse_while_down(&records)?;
        let capabilities = self.capabilities(&records, agent);
        let asked = Asked { agent, capabilities: capabilities.as_ref(), by: &actor.name, now };
        let errand = decide(&records, asked)?;
        if !dry_run {
            self.record(vec![Change::Errand(Box::new(errand.clone()))], now).await?;
            self.core.wake();
        }
        Ok(errand)
    }

    /// What the driver of an agent's machine can do; nothing where there is none.
    fn capabilities(&self, records: &Records, agent: &AgentName) -> Option<Capabilities> {
        let claim = records.claims.get(agent)?;
        Some(self.core.observers.get(&claim.driver)?.driver().capabilities())
    }
}

//! What the daemon is asked about instances: one list at a time, shared by all who wait for one, and no more of it
//! believed than a sick daemon deserves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use vm_agent_schemas::names::SnapshotName;

use super::answer::{self, State, Versions};
use super::cli::Program;
use super::trouble::Trouble;
use super::{Fault, SHORT_LIMIT};

/// How long a list may take. The daemon answers nobody while it stops a machine that does not listen.
pub(super) const LIST_LIMIT: Duration = Duration::from_secs(60);
/// How long what is known of snapshots is believed when nothing here has changed any. People may take some by hand.
const SNAPSHOTS_KEPT: Duration = Duration::from_secs(10 * 60);
/// What asks for a list without a word with the machines: with one, it crashes some daemons and waits for machines
/// that hang.
const LIST: [&str; 4] = ["list", "--no-ipv4", "--format", "json"];

/// The instances of a host by their names, as Multipass sees them.
pub(super) type Seen = Arc<BTreeMap<String, State>>;
/// What a list came to, for all who wait for it.
type Listed = Result<Seen, Arc<Fault>>;
/// The snapshots of each instance that has any.
pub(super) type Snapshots = Arc<BTreeMap<String, BTreeSet<SnapshotName>>>;

/// What is seen of one daemon.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// What came of the last list, and when it was begun.
    list: tokio::sync::Mutex<Option<(Instant, Listed)>>,
    /// The last list of snapshots, when it was begun, and after how many changes.
    snapshots: tokio::sync::Mutex<Option<(Instant, u64, Snapshots)>>,
    /// How often snapshots may have changed.
    changes: AtomicU64,
    versions: Mutex<Option<Versions>>,
}

impl Sight {
    /// A list that was begun after this was called. `expects` says whether there ought to be an instance: then an
    /// empty list is believed only when it is said twice. Who waits for a list shares what comes of it, also that it
    /// failed: else each would wait in turn for a daemon that stalls.
    pub(super) async fn list(&self, program: &Program, expects: impl Fn() -> bool) -> Result<Seen, Fault> {
        let called = Instant::now();
        let mut last = self.list.lock().await;
        if let Some((begun, found)) = last.as_ref().filter(|(begun, _)| *begun >= called) {
            tracing::trace!(?begun, "a list is shared");
            return found.clone().map_err(Fault::Shared);
        }
        let begun = Instant::now();
        let found = self.credible(program, expects).await.map(Arc::new).map_err(Arc::new);
        *last = Some((begun, found.clone()));
        found.map_err(Fault::Shared)
    }

    async fn credible(&self, program: &Program, expects: impl Fn() -> bool) -> Result<BTreeMap<String, State>, Fault> {
        if self.versions().is_none() {
            self.learn(program).await?;
        }
        let seen = self.once(program).await?;
        if !seen.is_empty() || !expects() {
            return Ok(seen);
        }
        if self.learn(program).await?.daemon.is_none() {
            let said = "its daemon lists nothing, and does not say its version".to_owned();
            return Err(Fault::Said { trouble: Trouble::Unreachable, code: Some(0), said });
        }
        self.once(program).await
    }

    async fn once(&self, program: &Program) -> Result<BTreeMap<String, State>, Fault> {
        let said = program.call(&LIST, None, LIST_LIMIT).await?;
        match said.code {
            Some(0) => Ok(answer::list(&said.stdout)?),
            _ => {
                let fault = Fault::of(&said);
                if fault.trouble().is_of_daemon() {
                    // It may come back as another.
                    *self.versions.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(fault)
            }
        }
    }

    /// Finds out the versions. They are kept once the daemon has said its own.
    async fn learn(&self, program: &Program) -> Result<Versions, Fault> {
        let versions = look_up(program).await?;
        let known = versions.daemon.map(|_| versions);
        *self.versions.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(versions)
    }

    /// The versions, as far as they are known.
    pub(super) fn versions(&self) -> Option<Versions> {
        *self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that snapshots may be others than before.
    pub(super) fn snapshots_changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The snapshots of all instances; nothing where there can be none yet. Asked for only when they may be others.
    pub(super) async fn snapshots(&self, program: &Program) -> Result<Option<Snapshots>, Fault> {
        if !self.versions().is_some_and(|versions| versions.common().has_snapshots()) {
            return Ok(None);
        }
        let mut last = self.snapshots.lock().await;
        // Before the look: what changes meanwhile is seen by the next.
        let changes = self.changes.load(Ordering::Acquire);
        let is_of_now = |begun: Instant, after: u64| after == changes && begun.elapsed() < SNAPSHOTS_KEPT;
        if let Some((begun, _, known)) = last.as_ref().filter(|(begun, after, _)| is_of_now(*begun, *after)) {
            tracing::trace!(?begun, "snapshots are known");
            return Ok(Some(Arc::clone(known)));
        }
        let begun = Instant::now();
        let found = Arc::new(snapshots(program).await?);
        *last = Some((begun, changes, Arc::clone(&found)));
        Ok(Some(found))
    }
}

/// Asks for the snapshots.
async fn snapshots(program: &Program) -> Result<BTreeMap<String, BTreeSet<SnapshotName>>, Fault> {
    let said = program.call(&["list", "--snapshots", "--format", "json"], None, SHORT_LIMIT).await?;
    if said.code == Some(0) {
        return Ok(answer::snapshots(&said.stdout)?);
    }
    match Fault::of(&said) {
        // Where there can be none, there are none.
        fault if fault.trouble() == Trouble::Unsupported => Ok(BTreeMap::new()),
        fault => Err(fault),
    }
}

/// Asks for the versions. This never fails because of the daemon.
pub(super) async fn look_up(program: &Program) -> Result<Versions, Fault> {
    let said = program.call(&["version", "--format", "json"], None, SHORT_LIMIT).await?;
    match answer::versions(&said.stdout) {
        Ok(versions) => Ok(versions),
        Err(_) if said.code != Some(0) => Err(Fault::of(&said)),
        Err(unreadable) => Err(unreadable.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn who_waits_for_a_list_shares_that_it_failed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("multipass");
        let script =
            "#!/bin/sh\n[ $1 = list ] || exit 1\ncd \"${0%/*}\"; echo >>lists; sleep 0.3; echo odd >&2; exit 2\n";
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let (sight, program) = (Sight::default(), Program::new(path));
        let versions = "1.16.3".parse().unwrap();
        *sight.versions.lock().unwrap() = Some(Versions { client: versions, daemon: Some(versions) });
        let list = || async { sight.list(&program, || false).await.unwrap_err().to_string() };
        let all = tokio::join!(list(), list(), list(), list(), list());
        assert_eq!([all.0, all.1, all.2, all.3, all.4], ["odd"; 5]);
        let lists = fs::read_to_string(place.path().join("lists")).unwrap().len();
        assert!(lists <= 2, "{lists} lists were asked for");
        assert_eq!(list().await, "odd", "and the next is asked for again");
        assert_eq!(fs::read_to_string(place.path().join("lists")).unwrap().len(), lists + 1);
    }
}

//! Watches the fleet file on the disk, and brings what changes there into force.
//!
//! ```text
//! events of the file system ─▶ pace ─▶ look: scene, texts ─▶ judge() ─▶ accept, or tell why not
//! poll: another scene? ───────┘ ▲                              │
//!                               └──────── doubt: look again ◀──┘
//! ```
//!
//! An event says only when to look, never what happened: what is read is compared with what is in force.
//! Each look listens anew before it reads, so that nothing can happen in between unheard; what is missed
//! all the same, as on file systems that tell nothing, the poll finds.

mod pace;
mod scene;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind as Happening, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{MutexGuard, Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use vm_agent_schemas::api::{FileStatus, Problem, ProblemCode};
use vm_agent_schemas::names::AgentName;

use crate::accept::{Wish, accept};
use crate::conditions::file_facts;
use crate::core::Core;
use crate::engine::file::{self, Cause, Exposure, OnDisk, Terms, Verdict};
use crate::engine::records::Records;
use crate::reconciler::Chain;
use crate::source::{self, SourceError};
use pace::{Doubt, Pace};
use scene::Scene;

/// How often the disk is looked at for what was not heard.
const POLL: Duration = Duration::from_secs(2);

/// How long the disk may take to answer before that is told. A network file system may not answer at all.
const ANSWERS: Duration = Duration::from_secs(10);

/// The pause after a look whose outcome the store refused.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The right to bring a file into force: one at a time.
pub(crate) type Turn<'a> = MutexGuard<'a, ()>;

/// What is known of the file on the disk, for everybody but the watcher itself.
#[derive(Debug)]
pub(crate) struct Watch {
    enabled: bool,
    turn: tokio::sync::Mutex<()>,
    found: Mutex<Option<Verdict>>,
    asked: Notify,
}

impl Watch {
    pub(crate) fn new(enabled: bool) -> Self {
        Self { enabled, turn: Default::default(), found: Mutex::default(), asked: Notify::new() }
    }

    /// Waits for the right to bring a file into force.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        self.turn.lock().await
    }

    /// What the latest look came to; nothing before the first since another file got into force.
    pub(crate) fn found(&self) -> Option<Verdict> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another file is in force, so that nothing is known of the one on the disk.
    pub(crate) fn look_again(&self) {
        self.find(None);
        self.asked.notify_one();
    }

    fn find(&self, verdict: Option<Verdict>) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
    }

    /// What people see of the file.
    pub(crate) fn status(&self, records: &Records) -> FileStatus {
        file::status(records, self.enabled, self.found().as_ref())
    }
}

/// What stands on the disk now.
///
/// # Errors
/// When the disk does not answer.
pub(crate) async fn on_disk(records: &Records) -> Result<OnDisk, Problem> {
    let roots = file::roots(records).to_vec();
    let read = tokio::task::spawn_blocking(move || read(&roots));
    let silent = || Problem::new(ProblemCode::Unavailable, "the disk with the fleet file does not answer");
    tokio::time::timeout(ANSWERS, read).await.ok().and_then(Result::ok).ok_or_else(silent)
}

/// Watches until the controller goes down. `ready` is told after the first look.
pub(crate) async fn run(core: Arc<Core>, ready: oneshot::Sender<()>) {
    if !core.watch.enabled {
        return;
    }
    let mut watcher = Watcher::new(core);
    watcher.look().await;
    // Who started the controller may have given up waiting.
    let _ = ready.send(());
    let mut poll = tokio::time::interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = watcher.pace.due();
        tokio::select! {
            () = watcher.heard.notified() => watcher.pace.touched(Instant::now()),
            () = watcher.core.watch.asked.notified() => watcher.pace.again(Instant::now()),
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => watcher.look().await,
            _ = poll.tick() => watcher.compare().await,
            () = watcher.core.stop.cancelled() => return,
        }
    }
}

/// What a look saw.
struct Look {
    eyes: Eyes,
    disk: OnDisk,
    exposed: Option<Exposure>,
}

/// Where the watcher looks, and listens.
struct Eyes {
    roots: Vec<PathBuf>,
    scene: Arc<Scene>,
    /// Why the file system tells nothing.
    deaf: Option<notify::Error>,
    _ears: Option<RecommendedWatcher>,
}

/// What came first while the disk was waited for.
#[derive(Debug, PartialEq, Eq)]
enum Heard<T> {
    Answer(T),
    /// Another file got into force.
    OtherFile,
    /// The controller goes down, or nobody is left to answer.
    Never,
}

async fn hear<T>(asked: &mut JoinHandle<T>, watch: &Watch, stop: &CancellationToken) -> Heard<T> {
    tokio::select! {
        // An answer that is there counts, whatever else there is.
        biased;
        answer = asked => answer.map_or(Heard::Never, Heard::Answer),
        () = stop.cancelled() => Heard::Never,
        () = watch.asked.notified() => Heard::OtherFile,
    }
}

struct Watcher {
    core: Arc<Core>,
    /// Something happened on the disk.
    heard: Arc<Notify>,
    pace: Pace,
    doubt: Doubt,
    eyes: Option<Eyes>,
    /// It was told that the file system tells nothing.
    warned: bool,
}

impl Watcher {
    fn new(core: Arc<Core>) -> Self {
        let (heard, pace, doubt) = (Arc::default(), Pace::default(), Doubt::default());
        Self { core, heard, pace, doubt, eyes: None, warned: false }
    }

    /// Looks at the disk, and does what follows.
    async fn look(&mut self) {
        self.pace.looked();
        let before = self.core.ledger.records();
        let roots = file::roots(&before).to_vec();
        if roots.is_empty() {
            self.eyes = None;
            return;
        }
        let (heard, writable) = (Arc::clone(&self.heard), file::writable(&before, Timestamp::now()));
        let looking = tokio::task::spawn_blocking(move || look(roots, heard, writable));
        let Some(Look { eyes, disk, exposed }) = self.answer(looking).await else { return };
        self.warn(eyes.deaf.as_ref());
        self.eyes = Some(eyes);

        let core = Arc::clone(&self.core);
        let turn = core.watch.turn().await;
        let records = core.ledger.records();
        if !same_file(&before, &records) {
            // Somebody was faster. What was read may be older than what is in force.
            self.pace.again(Instant::now());
            return;
        }
        let verdict = file::judge(&records, &disk, exposed);
        let doubt = file::doubt(&records, &disk, &verdict);
        if let Err(again) = self.doubt.weigh(doubt, Instant::now()) {
            self.pace.again(again);
            return;
        }
        let done = match (verdict, disk) {
            (Verdict::Apply, OnDisk::Fleet(source, fleet)) => {
                let (terms, cause) = (Terms::default(), Cause::Changed);
                let wish = Wish { source, fleet: *fleet, terms, cause, dry_run: false };
                let accepted = accept(&core, wish, &turn).await;
                accepted.map(|_| core.metrics.file_changed("applied")).map_err(|problem| problem.reason)
            }
            (verdict, _) => self.settle(verdict).await,
        };
        if let Err(reason) = done {
            tracing::error!(reason, "What the fleet file came to could not be recorded; trying again");
            self.pace.again(Instant::now() + STORE_PAUSE);
        }
    }

    /// Looks whether something happened that was not heard.
    async fn compare(&mut self) {
        let Some((roots, known)) = self.eyes.as_ref().map(|eyes| (eyes.roots.clone(), Arc::clone(&eyes.scene))) else {
            return;
        };
        let comparing = tokio::task::spawn_blocking(move || Scene::of(&roots) != *known);
        if self.answer(comparing).await == Some(true) {
            self.pace.touched(Instant::now());
        }
    }

    /// Waits for the disk, and tells when that takes too long; nothing when the controller goes down or
    /// another file got into force, of which the disk was not asked.
    async fn answer<T>(&mut self, mut asked: JoinHandle<T>) -> Option<T> {
        let core = Arc::clone(&self.core);
        let before = core.ledger.records();
        let heard = match tokio::time::timeout(ANSWERS, hear(&mut asked, &core.watch, &core.stop)).await {
            Ok(heard) => heard,
            Err(_) => {
                self.tell_silence(&before).await;
                self.pace.again(Instant::now());
                hear(&mut asked, &core.watch, &core.stop).await
            }
        };
        match heard {
            Heard::Answer(answer) => Some(answer),
            Heard::OtherFile => {
                self.pace.again(Instant::now());
                None
            }
            Heard::Never => None,
        }
    }

    async fn tell_silence(&self, before: &Records) {
        let _turn = self.core.watch.turn().await;
        if !same_file(before, &self.core.ledger.records()) {
            // The disk was not asked for the one that is in force now.
            return;
        }
        let silent = Verdict::Missing(format!("the disk has not answered for {} s", ANSWERS.as_secs()));
        if let Err(reason) = self.settle(silent).await {
            tracing::error!(reason, "It could not be recorded that the disk with the fleet file does not answer");
        }
    }

    /// Lets a verdict be seen, and tells it where it is new.
    async fn settle(&self, verdict: Verdict) -> Result<(), String> {
        let now = Timestamp::now();
        let records = self.core.ledger.records();
        let changes = file::told(&records.watched, &verdict);
        if !changes.is_empty() {
            self.core.metrics.file_changed(result(&verdict));
        }
        // Before the event: who looks because of that has to find what it tells of.
        self.core.watch.find(Some(verdict));
        self.core.ledger.record(changes, now).await.map_err(|error| Chain(&error).to_string())?;
        let status = self.core.watch.status(&records);
        self.core.conditions.enter(None, file_facts(&status), status.revision, now);
        Ok(())
    }

    fn warn(&mut self, deaf: Option<&notify::Error>) {
        if let Some(error) = deaf.filter(|_| !self.warned) {
            self.warned = true;
            let every = POLL.as_secs();
            tracing::warn!(%error, "The file system tells nothing of the fleet file; it is looked at every {every} s");
        }
    }
}

/// A verdict as a counter's label.
const fn result(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Apply => "applied",
        Verdict::InForce(_) | Verdict::PassedOver => "restored",
        Verdict::Held(_) => "held",
        Verdict::Guarded(_) => "guarded",
        Verdict::OtherFleet(_) | Verdict::Invalid(_) => "rejected",
        Verdict::Missing(_) => "lost",
    }
}

/// Whether nobody has brought a file into force in between.
fn same_file(before: &Records, now: &Records) -> bool {
    let of = |records: &Records| (records.file.as_ref().map(|file| file.revision), records.watched.passed_over.clone());
    of(before) == of(now) && file::roots(before) == file::roots(now)
}

/// Listens first, and reads then.
fn look(roots: Vec<PathBuf>, heard: Arc<Notify>, writable: BTreeMap<PathBuf, AgentName>) -> Look {
    let scene = Arc::new(Scene::of(&roots));
    let (ears, deaf) = match listen(&scene, heard) {
        Ok(ears) => (Some(ears), None),
        Err(error) => (None, Some(error)),
    };
    let disk = read(&roots);
    // What was put in place while it was being listened for may be elsewhere: the poll compares with the
    // scene from before.
    let exposed = file::exposure(scene.places(), &canonical(writable));
    Look { eyes: Eyes { roots, scene, deaf, _ears: ears }, disk, exposed }
}

/// How an agent could put something else in the place of a file, or lead its path elsewhere.
///
/// # Errors
/// When it can't be said where a relative path begins.
pub(crate) fn exposed(path: &Path, writable: &BTreeMap<PathBuf, AgentName>) -> io::Result<Option<Exposure>> {
    let scene = Scene::of(&[std::path::absolute(path)?]);
    Ok(file::exposure(scene.places(), &canonical(writable.clone())))
}

/// The folders without links, where they are there.
fn canonical(folders: BTreeMap<PathBuf, AgentName>) -> BTreeMap<PathBuf, AgentName> {
    let canonical = |(folder, agent): (PathBuf, AgentName)| (std::fs::canonicalize(&folder).unwrap_or(folder), agent);
    folders.into_iter().map(canonical).collect()
}

fn listen(scene: &Arc<Scene>, heard: Arc<Notify>) -> Result<RecommendedWatcher, notify::Error> {
    let known = Arc::clone(scene);
    let mut ears = notify::recommended_watcher(move |event: Result<notify::Event, notify::Error>| {
        // What could not be told may have been anything.
        if event.is_err() || event.is_ok_and(|event| matters(&known, &event)) {
            heard.notify_one();
        }
    })?;
    for folder in scene.folders() {
        ears.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(ears)
}

fn matters(scene: &Scene, event: &notify::Event) -> bool {
    let changes = match event.kind {
        // Whoever reads the file, as the watcher does, changes nothing.
        Happening::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    };
    let concerned = |path: &PathBuf| scene.concerns(path);
    changes && (event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(concerned))
}

fn read(roots: &[PathBuf]) -> OnDisk {
    // A pipe would never come to its end.
    let is_readable = |root: &Path| root.metadata().map_or(true, |it| it.is_file() || it.is_dir());
    if let Some(root) = roots.iter().find(|root| !is_readable(root)) {
        return OnDisk::Lost(format!("{} is neither a file nor a folder", root.display()));
    }
    match source::read(roots) {
        Ok(source) => OnDisk::of(source),
        Err(SourceError::NotText(diagnostic)) => OnDisk::Refused(vec![*diagnostic]),
        Err(error) => OnDisk::Lost(Chain(&error).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_is_waited_for_until_another_file_is_in_force_or_the_controller_goes_down() {
        let (watch, stop) = (Watch::new(true), CancellationToken::new());
        let mut hangs = tokio::spawn(std::future::pending::<()>());
        watch.look_again();
        assert_eq!(hear(&mut hangs, &watch, &stop).await, Heard::OtherFile);
        stop.cancel();
        assert_eq!(hear(&mut hangs, &watch, &stop).await, Heard::Never);
        hangs.abort();
    }

    #[tokio::test]
    async fn an_answer_of_the_disk_counts_though_another_file_got_into_force() {
        let (watch, stop) = (Watch::new(true), CancellationToken::new());
        let mut answers = tokio::spawn(async { 7 });
        while !answers.is_finished() {
            tokio::task::yield_now().await;
        }
        watch.look_again();
        assert_eq!(hear(&mut answers, &watch, &stop).await, Heard::Answer(7));
    }
}

//! The runs that a task of the file has had on one machine.

use jiff::Timestamp;
use vm_agent_schemas::fleet::TaskSpec;
use vm_agent_schemas::names::TaskName;

use crate::calendar::LastRun;
use crate::inputs::FileTask;
use crate::situation::Situation;

/// How many runs of a task of the file are remembered for planning, of each wording and machine: the
/// latest. A task that comes after another falls at most so far behind it.
pub const RUNS_KNOWN: usize = 8;

/// Takes note of how far a run is, among those of its agent. They stay in the order in which they were
/// accepted; of each task the oldest are dropped beyond [`RUNS_KNOWN`].
pub fn note_run(known: &mut Vec<FileTask>, run: FileTask) {
    if let Some(same) = known.iter_mut().find(|other| other.id == run.id) {
        *same = run;
        return;
    }
    let alike = |other: &FileTask| (&other.name, &other.digest, other.claim) == (&run.name, &run.digest, run.claim);
    if known.iter().filter(|other| alike(other)).count() >= RUNS_KNOWN
        && let Some(oldest) = known.iter().position(alike)
    {
        known.remove(oldest);
    }
    known.push(run);
}

/// The runs of a task, in its present wording, on the present machine, in the order in which they were
/// accepted.
pub(crate) struct Runs<'a>(Vec<&'a FileTask>);

impl<'a> Runs<'a> {
    pub(crate) fn of(situation: &Situation<'a>, name: &TaskName, spec: &TaskSpec) -> Self {
        let Some(claim) = situation.claim else { return Self(Vec::new()) };
        let here = |task: &&FileTask| task.name == *name && task.claim == claim.id;
        let mut runs: Vec<&FileTask> = situation.tasks.iter().filter(here).collect();
        // Most tasks have no run, and a digest takes its time.
        if !runs.is_empty() {
            let digest = spec.digest();
            runs.retain(|task| task.digest == digest);
        }
        Self(runs)
    }

    /// The latest.
    pub(crate) fn last(&self) -> Option<&'a FileTask> {
        self.0.last().copied()
    }

    /// The latest of those that the machine still shows: it may have gone back to a time before the others.
    pub(crate) fn last_that_stands(&self, situation: &Situation<'_>) -> Option<&'a FileTask> {
        let undone = situation.claim.and_then(|claim| claim.history.undone);
        let stands = |run: &&&FileTask| {
            undone.is_none_or(|undone| {
                run.accepted_at >= undone.until || run.ended_at.is_none_or(|ended| ended <= undone.since)
            })
        };
        self.0.iter().rev().find(stands).copied()
    }

    /// Whether one of them is not over.
    pub(crate) fn is_under_way(&self) -> bool {
        self.0.iter().any(|run| run.outcome.is_none())
    }

    /// Whether there was one for that moment.
    pub(crate) fn was_for(&self, moment: Timestamp) -> bool {
        self.0.iter().any(|run| run.due == Some(moment))
    }

    /// What a calendar needs to know of them. After the clock was set back the latest is not the one that
    /// is dated last, and that one counts: nothing is to run twice.
    pub(crate) fn last_dated(&self) -> Option<LastRun> {
        let accepted = self.0.iter().map(|run| run.accepted_at).max()?;
        let ended = self.0.iter().filter_map(|run| run.ended_at).max().unwrap_or(accepted);
        Some(LastRun { accepted, ended })
    }

    /// The first success of these that `followers`, the runs of a task that comes after, have not been for.
    /// Who has never followed is for the latest alone.
    pub(crate) fn not_followed(&self, followers: &Self) -> Option<Timestamp> {
        let successes = self.0.iter().filter(|run| run.outcome.as_ref().is_some_and(|outcome| outcome.is_success()));
        let mut moments: Vec<Timestamp> = successes.filter_map(|run| run.ended_at).collect();
        // Not by the latest run alone: that may have been an old one, done again.
        let followed = moments.iter().rposition(|moment| followers.was_for(*moment));
        match (followed, followers.last().and_then(|run| run.due)) {
            (Some(followed), _) => moments.get(followed + 1).copied(),
            // It is no longer known.
            (None, Some(last)) => moments.into_iter().find(|moment| *moment > last),
            (None, None) => moments.pop(),
        }
    }
}

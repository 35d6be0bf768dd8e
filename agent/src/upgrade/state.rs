//! Which program is to run: what is remembered of versions, and the decision that follows from it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::wire::UpgradeFailed;

use crate::folder::{Folder, FolderError, read_if_there, write};
use crate::sentence::sentence;

/// How often a program on trial is started before it is given up.
const STARTS_MAX: u32 = 3;
/// How long a program on trial has to get a welcome, in milliseconds.
const LIMIT_MS: u64 = 60_000;
/// How many versions that failed are remembered.
const FAILED_MAX: usize = 8;

/// What is remembered of versions.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    #[serde(skip)]
    file: PathBuf,
    /// The version that has stood its trial; nothing as long as that is the program that is started anyway.
    pub(super) good: Option<PathBuf>,
    /// The one that is on trial.
    pub(super) trial: Option<Trial>,
    /// Those that failed, oldest first: they are not tried again.
    failed: Vec<Failed>,
}

/// A program on trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trial {
    pub(super) version: String,
    pub(super) sha256: Digest,
    pub(super) path: PathBuf,
    /// The program that it takes the place of, and that takes its place again if it fails.
    pub(super) from: PathBuf,
    /// How often it was started.
    pub(super) starts: u32,
    /// How long it has each time to get a welcome, in milliseconds.
    pub(super) limit_ms: u64,
}

/// A version that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failed {
    #[serde(flatten)]
    what: UpgradeFailed,
    /// Whether the hub was told.
    told: bool,
}

/// Which program is to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// The one that was started.
    Me,
    /// This one.
    Exec(PathBuf),
    /// Not the one on trial any more; then it is to be decided anew.
    RollBack,
}

/// Decides which program is to run, for the program `own`, which was started.
pub(super) fn decide(state: &State, own: &Path) -> Run {
    match (&state.trial, &state.good) {
        (Some(trial), _) if trial.path == own => Run::Me,
        (Some(trial), _) if trial.starts < STARTS_MAX => Run::Exec(trial.path.clone()),
        (Some(_), _) => Run::RollBack,
        (None, Some(good)) if good != own => Run::Exec(good.clone()),
        (None, _) => Run::Me,
    }
}

impl Trial {
    /// A program that has not been started yet.
    pub(super) const fn new(version: String, sha256: Digest, path: PathBuf, from: PathBuf) -> Self {
        Self { version, sha256, path, from, starts: 0, limit_ms: LIMIT_MS }
    }
}

impl State {
    pub(super) fn load(folder: &Folder) -> Result<Self, FolderError> {
        let file = folder.upgrade();
        let Some(text) = read_if_there(&file)? else { return Ok(Self { file, ..Self::default() }) };
        match serde_json::from_slice(&text) {
            Ok(state) => Ok(Self { file, ..state }),
            Err(error) => {
                // The program that was started is a good one as well; refusing to start would help nobody.
                tracing::error!("`{}` is damaged, and other versions are forgotten: {error}", file.display());
                Ok(Self { file, ..Self::default() })
            }
        }
    }

    /// Reaches the disk before it returns.
    pub(super) fn save(&self) -> Result<(), FolderError> {
        write(&self.file, &serde_json::to_vec(self).expect("the state is plain data"))
    }

    /// Gives up the program on trial.
    pub(super) fn give_up(&mut self, reason: &str) -> Result<(), FolderError> {
        if let Some(Trial { version, sha256, .. }) = self.trial.take() {
            let what = UpgradeFailed { version, sha256, reason: sentence(reason) };
            self.failed.push(Failed { what, told: false });
            self.failed.drain(..self.failed.len().saturating_sub(FAILED_MAX));
        }
        self.save()
    }

    /// How a program failed, if it did.
    pub(super) fn failed(&self, sha256: &Digest) -> Option<&UpgradeFailed> {
        self.failed.iter().rev().map(|failed| &failed.what).find(|what| what.sha256 == *sha256)
    }

    /// The failures that the hub was not told of; it is, now. Should it not hear of one, it offers that version
    /// again, and is told then.
    pub(super) fn untold(&mut self) -> Vec<UpgradeFailed> {
        let untold: Vec<UpgradeFailed> =
            self.failed.iter().filter(|failed| !failed.told).map(|failed| failed.what.clone()).collect();
        self.failed.iter_mut().for_each(|failed| failed.told = true);
        if !untold.is_empty() {
            super::log(self.save());
        }
        untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(starts: u32) -> Option<Trial> {
        let trial = Trial::new("2".to_owned(), Digest::of(b"2"), "/versions/2".into(), "/bin/runtime".into());
        Some(Trial { starts, ..trial })
    }

    #[test]
    fn which_program_runs_follows_from_the_state_alone() {
        let exec = |path: &str| Run::Exec(path.into());
        let good = |path: &str| Some(PathBuf::from(path));
        let cases = [
            ("/bin/runtime", None, None, Run::Me),
            ("/bin/runtime", good("/versions/1"), None, exec("/versions/1")),
            ("/versions/1", good("/versions/1"), None, Run::Me),
            ("/bin/runtime", None, trial(0), exec("/versions/2")),
            ("/bin/runtime", None, trial(2), exec("/versions/2")),
            ("/bin/runtime", None, trial(3), Run::RollBack),
            ("/bin/runtime", good("/versions/1"), trial(1), exec("/versions/2")),
            ("/bin/runtime", good("/versions/1"), trial(3), Run::RollBack),
            ("/versions/1", good("/versions/1"), trial(3), Run::RollBack),
            ("/versions/2", None, trial(1), Run::Me),
            ("/versions/2", None, trial(3), Run::Me),
            ("/versions/2", good("/versions/1"), None, exec("/versions/1")),
        ];
        for (own, good, trial, expected) in cases {
            let state = State { good, trial, ..State::default() };
            assert_eq!(decide(&state, Path::new(own)), expected, "{own} with {state:?}");
        }
    }

    #[test]
    fn what_failed_is_told_once_and_remembered_through_a_restart() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let mut state = State::load(&folder).unwrap();
        state.trial = trial(3);
        state.give_up("it did not come up").unwrap();
        let mut state = State::load(&folder).unwrap();
        assert_eq!(state.failed(&Digest::of(b"2")).unwrap().reason, "it did not come up");
        assert_eq!((state.untold().len(), state.untold().len()), (1, 0));
        assert_eq!(State::load(&folder).unwrap().untold(), []);
    }

    #[test]
    fn a_damaged_state_is_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        std::fs::write(folder.upgrade(), "{").unwrap();
        assert_eq!(decide(&State::load(&folder).unwrap(), Path::new("/bin/runtime")), Run::Me);
    }
}

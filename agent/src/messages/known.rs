//! Which messages were given to a program lately. The hub may send one again whose taking it did not hear of,
//! and it must not be given twice.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use vm_agent_schemas::ids::MessageId;

use crate::folder::{FolderError, failed, read_if_there, write};

/// How many are remembered: far more than the hub has under way at once.
const KNOWN_MAX: usize = 1024;

/// The ids of messages that were given.
#[derive(Debug)]
pub(super) struct Known {
    path: PathBuf,
    ids: VecDeque<MessageId>,
    /// How many lines the file has.
    lines: usize,
}

impl Known {
    /// What earlier starts left in a file, if it is there.
    pub(super) fn load(path: PathBuf) -> Result<Self, FolderError> {
        let text = read_if_there(&path)?.unwrap_or_default();
        // A line that was torn by a crash names no message that was given.
        let ids: VecDeque<MessageId> =
            String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect();
        let mut known = Self { path, lines: ids.len(), ids };
        known.shorten()?;
        Ok(known)
    }

    pub(super) fn holds(&self, message: MessageId) -> bool {
        self.ids.contains(&message)
    }

    /// Remembers a message; on the disk when this returns.
    pub(super) fn add(&mut self, message: MessageId) -> Result<(), FolderError> {
        self.ids.push_back(message);
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(&self.path);
        file.and_then(|mut file| {
            // What a crash has left of a line before must not spoil this one.
            write!(file, "\n{message}")?;
            file.sync_data()
        })
        .map_err(failed("write", &self.path))?;
        self.lines += 1;
        self.shorten()
    }

    /// Forgets the oldest, and now and then writes the file anew.
    fn shorten(&mut self) -> Result<(), FolderError> {
        self.ids.drain(..self.ids.len().saturating_sub(KNOWN_MAX));
        if self.lines > 2 * KNOWN_MAX {
            let text: String = self.ids.iter().map(|id| format!("{id}\n")).collect();
            write(&self.path, text.as_bytes())?;
            self.lines = self.ids.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_through_a_restart_and_a_torn_line() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("known");
        let ids: Vec<MessageId> = (0..10).map(|_| MessageId::generate()).collect();
        let mut known = Known::load(path.clone()).unwrap();
        for id in &ids {
            known.add(*id).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        let mut known = Known::load(path.clone()).unwrap();
        assert!(known.holds(ids[0]) && known.holds(ids[8]) && !known.holds(ids[9]));
        known.add(ids[9]).unwrap();
        assert!(Known::load(path).unwrap().holds(ids[9]));
    }

    #[test]
    fn the_file_does_not_grow_without_end() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("known");
        let ids: Vec<MessageId> = (0..=2 * KNOWN_MAX).map(|_| MessageId::generate()).collect();
        let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
        std::fs::write(&path, &text).unwrap();
        let known = Known::load(path.clone()).unwrap();
        assert!(known.holds(ids[2 * KNOWN_MAX]) && !known.holds(ids[0]));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), KNOWN_MAX);
    }
}

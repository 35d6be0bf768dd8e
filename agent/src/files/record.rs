//! Which files the runtime wrote, so that it removes those and no others, over any crash: that a file is about
//! to be written is on the disk before it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vm_agent_schemas::ids::Digest;

use crate::folder::{FolderError, read_if_there, write};

/// What is known of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Mark {
    /// It was about to be written for the first time, with this content.
    Begun(Digest),
    /// It was written.
    Written,
}

/// The files that were written, by name.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    marks: BTreeMap<String, Mark>,
    /// Whether the disk may know less.
    unsaved: bool,
}

impl Record {
    /// Reads what earlier starts wrote. Where that is not certain, `holds` says whether a file has the content
    /// that was to be written.
    pub(super) fn load(path: PathBuf, holds: impl Fn(&str, &Digest) -> bool) -> Result<Self, FolderError> {
        let mut marks: BTreeMap<String, Mark> = match read_if_there(&path)? {
            None => BTreeMap::new(),
            Some(text) => serde_json::from_slice(&text).unwrap_or_else(|_| {
                // Without it nothing is removed that should be; with a wrong one the contrary.
                tracing::error!("{} is no record of files; what it listed is left alone", path.display());
                BTreeMap::new()
            }),
        };
        marks.retain(|name, mark| match mark {
            Mark::Begun(digest) => holds(name, digest),
            Mark::Written => true,
        });
        marks.values_mut().for_each(|mark| *mark = Mark::Written);
        Ok(Self { path, marks, unsaved: false })
    }

    /// The names of all files.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.marks.keys()
    }

    /// Notes, durably, that files are about to be written.
    pub(super) fn begin(&mut self, files: Vec<(String, Digest)>) -> Result<(), FolderError> {
        let new: Vec<_> = files.into_iter().filter(|(name, _)| !self.marks.contains_key(name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = new.iter().map(|(name, _)| name.clone()).collect();
        self.marks.extend(new.into_iter().map(|(name, digest)| (name, Mark::Begun(digest))));
        self.unsaved = true;
        let saved = self.save();
        if saved.is_err() {
            names.iter().for_each(|name| self.not_written(name));
        }
        saved
    }

    /// Notes that a file is written; it is on the disk after [`Self::save`].
    pub(super) fn written(&mut self, name: &str) {
        let former = self.marks.insert(name.to_owned(), Mark::Written);
        self.unsaved |= former != Some(Mark::Written);
    }

    /// Notes that a file could not be written. One that was written before still is.
    pub(super) fn not_written(&mut self, name: &str) {
        if let Some(Mark::Begun(_)) = self.marks.get(name) {
            self.marks.remove(name);
            self.unsaved = true;
        }
    }

    /// Forgets files that are gone, durably.
    pub(super) fn forget(&mut self, names: &[String]) -> Result<(), FolderError> {
        for name in names {
            self.unsaved |= self.marks.remove(name).is_some();
        }
        self.save()
    }

    /// Brings the disk up to date.
    pub(super) fn save(&mut self) -> Result<(), FolderError> {
        if self.unsaved {
            let content = serde_json::to_vec(&self.marks).expect("a record is plain data with texts as keys");
            write(&self.path, &content)?;
            self.unsaved = false;
        }
        Ok(())
    }
}

//! Which files the runtime wrote, and with what content, so that it removes those and no others, over any
//! crash: that a file is about to be written is on the disk before it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vm_agent_schemas::ids::Digest;

use crate::folder::{FolderError, read_if_there, write};

/// What is known of one file. A file that holds neither content is somebody else's.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// The content with which it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written: Option<Digest>,
    /// The content with which it was about to be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun: Option<Digest>,
}

/// A mark as it lies on the disk.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Mark(Mark),
    /// A former form: that the file was written, but not with what content. Nothing tells whether it still is
    /// what was written.
    Bare(#[expect(dead_code, reason = "whatever it says, it says no content")] String),
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
        let stored: BTreeMap<String, Stored> = match read_if_there(&path)? {
            None => BTreeMap::new(),
            Some(text) => serde_json::from_slice(&text).unwrap_or_else(|_| {
                // Without it nothing is removed that should be; with a wrong one the contrary.
                tracing::error!("{} is no record of files; what it listed is left alone", path.display());
                BTreeMap::new()
            }),
        };
        let (mut marks, mut unsaved) = (BTreeMap::new(), false);
        for (name, stored) in stored {
            let Stored::Mark(Mark { mut written, begun }) = stored else {
                tracing::warn!("`{name}` was written by an earlier version, and nothing tells what; it is left alone");
                unsaved = true;
                continue;
            };
            if let Some(begun) = begun
                && holds(&name, &begun)
            {
                written = Some(begun);
            }
            if written.is_some() {
                marks.insert(name, Mark { written, begun: None });
            }
        }
        Ok(Self { path, marks, unsaved })
    }

    /// All files, and the content with which each was written.
    pub(super) fn written(&self) -> impl Iterator<Item = (&String, &Digest)> {
        self.marks.iter().filter_map(|(name, mark)| Some((name, mark.written.as_ref()?)))
    }

    /// Notes, durably, that files are about to be written with these contents.
    pub(super) fn begin(&mut self, files: Vec<(String, Digest)>) -> Result<(), FolderError> {
        let mut begun = Vec::new();
        for (name, digest) in files {
            let mark = self.marks.entry(name.clone()).or_default();
            if mark.written.as_ref() != Some(&digest) {
                mark.begun = Some(digest);
                begun.push(name);
            }
        }
        if begun.is_empty() {
            return Ok(());
        }
        self.unsaved = true;
        let saved = self.save();
        if saved.is_err() {
            begun.iter().for_each(|name| self.not_written(name));
        }
        saved
    }

    /// Notes that a file is written as it was begun; it is on the disk after [`Self::save`].
    pub(super) fn done(&mut self, name: &str) {
        if let Some(mark) = self.marks.get_mut(name)
            && let Some(begun) = mark.begun.take()
        {
            mark.written = Some(begun);
            self.unsaved = true;
        }
    }

    /// Notes that a file could not be written as it was begun. What was written before still is.
    pub(super) fn not_written(&mut self, name: &str) {
        let Some(mark) = self.marks.get_mut(name) else { return };
        self.unsaved |= mark.begun.take().is_some();
        if mark.written.is_none() {
            self.marks.remove(name);
        }
    }

    /// Forgets files, durably.
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

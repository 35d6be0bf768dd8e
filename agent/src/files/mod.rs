//! The files of the configuration: written where they differ, put right when somebody changed them, and
//! removed when they are named no more and still hold what was written.
//!
//! What is remembered of each file that is as it should be is its [`Stamp`]: as long as that is the same, the
//! content need not be read again. File access blocks the loop for its moment; a configuration is small.

mod place;
mod record;

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use vm_agent_schemas::fleet::FileContent;
use vm_agent_schemas::ids::Digest;

use crate::folder::{Folder, FolderError};
use place::{Removal, Seen, Stamp};
use record::Record;

/// The files that the runtime looks after.
#[derive(Debug)]
pub(crate) struct Files {
    /// Where relative paths start.
    work: PathBuf,
    /// The runtime's own folder, in which it writes nothing that it is told to, but for the work folder.
    own: PathBuf,
    /// What was written, now and in earlier starts.
    record: Record,
    /// The files of the configuration by their cleaned names, once there is one.
    wanted: Option<BTreeMap<String, Wanted>>,
    /// Names in the configuration that are no place for a file.
    misnamed: Vec<FileError>,
}

#[derive(Debug)]
struct Wanted {
    file: FileContent,
    /// How the file looked when it was last known to be as it should be.
    stamp: Option<Stamp>,
}

/// Why a file is not as it should be.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("`{0}` can't be written: it is no path of a file, or has `..` in it")]
    Path(String),
    #[error("`{0}` can't be written: it lies in the runtime's own folder")]
    Own(String),
    #[error("`{0}` can't be written: something else than a file is there")]
    NotAFile(String),
    #[error("`{0}` can't be written: {1}")]
    Write(String, io::Error),
    #[error("`{0}` can't be removed: {1}")]
    Remove(String, io::Error),
    #[error("files can't be written, because the runtime can't note which: {}", crate::chain(.0))]
    Record(FolderError),
}

/// What is to be done about a wanted file.
enum Finding {
    /// Nothing.
    Fine,
    /// It is to be written.
    Differs,
}

impl Files {
    /// The files of the runtime with this folder, as earlier starts left them.
    pub(crate) fn load(folder: &Folder) -> Result<Self, FolderError> {
        let (own, work) = (folder.path().to_owned(), folder.work());
        let holds = |name: &str, digest: &Digest| place::path(&work, name).and_then(|path| place::holds(&path, digest));
        let record = Record::load(folder.files(), |name, digest| holds(name, digest).unwrap_or(false))?;
        Ok(Self { work, own, record, wanted: None, misnamed: Vec::new() })
    }

    /// Works with other files from now on. Answers with what could not be done, in sentences.
    pub(crate) fn apply(&mut self, files: &BTreeMap<String, FileContent>) -> Vec<String> {
        let mut before = self.wanted.take().unwrap_or_default();
        let mut wanted = BTreeMap::new();
        self.misnamed.clear();
        for (path, file) in files {
            match self.name(path) {
                Ok(name) => {
                    let stamp = before.remove(&name).filter(|it| it.file == *file).and_then(|it| it.stamp);
                    wanted.insert(name, Wanted { file: file.clone(), stamp });
                }
                Err(error) => self.misnamed.push(error),
            }
        }
        self.wanted = Some(wanted);
        self.mend()
    }

    /// Puts right what is not as it should be. Answers with what could not be done, in sentences.
    pub(crate) fn mend(&mut self) -> Vec<String> {
        let Some(mut wanted) = self.wanted.take() else { return Vec::new() };
        let mut problems: Vec<String> = self.misnamed.iter().map(ToString::to_string).collect();
        let removed = self.remove_all_but(&wanted);
        let written = self.write_where_different(&mut wanted);
        problems.extend(removed.iter().chain(&written).map(ToString::to_string));
        self.wanted = Some(wanted);
        problems
    }

    /// A path as it is remembered: clean, so that one file has one name.
    fn name(&self, path: &str) -> Result<String, FileError> {
        let wrong = || FileError::Path(path.to_owned());
        let mut clean = PathBuf::new();
        for component in Path::new(path).components() {
            match component {
                Component::RootDir | Component::Normal(_) => clean.push(component),
                Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(wrong()),
            }
        }
        clean.file_name().ok_or_else(wrong)?;
        let place = self.work.join(&clean);
        if place == self.work || (place.starts_with(&self.own) && !place.starts_with(&self.work)) {
            return Err(FileError::Own(path.to_owned()));
        }
        clean.into_os_string().into_string().map_err(|_| wrong())
    }

    /// Removes what was written and is named no more. What stands in its place by now with another content was
    /// not written here, and is forgotten.
    fn remove_all_but(&mut self, wanted: &BTreeMap<String, Wanted>) -> Vec<FileError> {
        let mut errors = Vec::new();
        let mut over = Vec::new();
        for (name, written) in self.record.written().filter(|(name, _)| !wanted.contains_key(*name)) {
            match place::path(&self.work, name).and_then(|path| place::remove_file(&path, written)) {
                Ok(Removal::Removed) => tracing::info!("removed `{name}`"),
                Ok(Removal::Gone) => {}
                Ok(Removal::Changed) => {
                    tracing::warn!("`{name}` is wanted no more, but was changed from outside, and is left alone");
                }
                Err(error) => {
                    errors.push(FileError::Remove(name.clone(), error));
                    continue;
                }
            }
            over.push(name.clone());
        }
        // Should the note of it be lost, the next start finds out by the content.
        log(self.record.forget(&over));
        errors
    }

    fn write_where_different(&mut self, wanted: &mut BTreeMap<String, Wanted>) -> Vec<FileError> {
        let mut errors = Vec::new();
        let mut due = Vec::new();
        for (name, wanted) in wanted.iter_mut() {
            match look(&self.work, name, wanted) {
                Ok(Finding::Fine) => {}
                Ok(Finding::Differs) => due.push((name, wanted)),
                Err(error) => errors.push(error),
            }
        }
        let begun = due.iter().map(|(name, wanted)| ((*name).clone(), Digest::of(wanted.file.content.as_bytes())));
        if let Err(error) = self.record.begin(begun.collect()) {
            errors.push(FileError::Record(error));
            return errors;
        }
        for (name, wanted) in due {
            match write(&self.work, name, wanted) {
                Ok(()) => self.record.done(name),
                Err(error) => {
                    self.record.not_written(name);
                    errors.push(error);
                }
            }
        }
        // Should the note be lost, the next start finds out by the content.
        log(self.record.save());
        errors
    }
}

/// Whether a file is as it should be. The content is read only when the file may have changed.
fn look(work: &Path, name: &str, wanted: &mut Wanted) -> Result<Finding, FileError> {
    let failed = |error| FileError::Write(name.to_owned(), error);
    let path = place::path(work, name).map_err(failed)?;
    match place::look(&path).map_err(failed)? {
        Seen::File(stamp) => {
            let same = wanted.stamp == Some(stamp) || place::is(&path, &stamp, &wanted.file);
            if same {
                wanted.stamp = Some(stamp);
            }
            Ok(if same { Finding::Fine } else { Finding::Differs })
        }
        Seen::Nothing | Seen::Link => Ok(Finding::Differs),
        Seen::Other => Err(FileError::NotAFile(name.to_owned())),
    }
}

fn write(work: &Path, name: &str, wanted: &mut Wanted) -> Result<(), FileError> {
    let drifted = wanted.stamp.take().is_some();
    // The way is looked at once more: much may have happened while the record reached the disk.
    let replaced = place::path(work, name).and_then(|path| place::replace(&path, &wanted.file));
    wanted.stamp = Some(replaced.map_err(|error| FileError::Write(name.to_owned(), error))?);
    if drifted {
        tracing::warn!("`{name}` was changed from outside, and is put right");
    } else {
        tracing::info!("wrote `{name}`");
    }
    Ok(())
}

fn log(result: Result<(), FolderError>) {
    if let Err(error) = result {
        tracing::error!("{}", crate::chain(&error));
    }
}

#[cfg(test)]
mod tests;

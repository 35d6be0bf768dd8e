//! Reading a fleet's files from where they lie.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use vm_agent_schemas::api::FleetSource;
use vm_agent_schemas::fleet::{Diagnostic, FILE_MAX, SourceFile, decode};

/// Why files can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or folder is not there, or may not be read.
    #[error("{} can't be read", .path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder has no fleet file in it.
    #[error("the folder {} has no *.yaml file in it", .0.display())]
    Empty(PathBuf),
    /// A file is no text.
    #[error("{0}")]
    NotText(Box<Diagnostic>),
    /// A path can't be said in JSON, in which clients and controller speak.
    #[error("the path {} is not UTF-8", .0.display())]
    Path(PathBuf),
}

/// Reads files, and of folders each `*.yaml` and `*.yml` in it, by name. Hidden files and those that
/// editors leave beside a file are none of them. What can be read only once, such as a pipe, is no root.
///
/// # Errors
/// When one of them can't be read.
pub fn read(roots: &[PathBuf]) -> Result<FleetSource, SourceError> {
    let mut source = FleetSource::default();
    for root in roots {
        if root.metadata().is_ok_and(|it| !it.is_dir() && !it.is_file()) {
            source.files.push(SourceFile { path: None, ..read_one(root)? });
            continue;
        }
        source.roots.push(absolute(root)?);
        if root.is_dir() {
            let files = files_in(root)?;
            if files.is_empty() {
                return Err(SourceError::Empty(root.clone()));
            }
            for path in files {
                source.files.push(read_one(&path)?);
            }
        } else {
            source.files.push(read_one(root)?);
        }
    }
    Ok(source)
}

/// The fleet files in a folder, by name.
pub(crate) fn files_in(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let unreadable = |source| SourceError::Unreadable { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if is_fleet_file(&path) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file in a folder of fleet files is one of them, by its name.
#[must_use]
pub fn is_fleet_file(path: &Path) -> bool {
    let named = |extension: &std::ffi::OsStr| extension == "yaml" || extension == "yml";
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let left_over = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"#"));
    path.extension().is_some_and(named) && !hidden && !left_over
}

fn read_one(path: &Path) -> Result<SourceFile, SourceError> {
    let unreadable = |source| SourceError::Unreadable { path: path.to_owned(), source };
    // A file that is too long is refused when it is parsed; no more than it takes to see that is read.
    let mut bytes = Vec::new();
    let most = u64::try_from(FILE_MAX).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(unreadable)?;
    let name = path.display().to_string();
    let text = decode(&name, &bytes).map_err(|diagnostic| SourceError::NotText(Box::new(diagnostic)))?;
    Ok(SourceFile { name, path: Some(absolute(path)?), text })
}

fn absolute(path: &Path) -> Result<PathBuf, SourceError> {
    let absolute =
        std::path::absolute(path).map_err(|source| SourceError::Unreadable { path: path.to_owned(), source })?;
    if absolute.to_str().is_none() { Err(SourceError::Path(absolute)) } else { Ok(absolute) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_means_its_fleet_files_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "#a.yaml", "b.yaml~", "notes.txt"] {
            std::fs::write(folder.path().join(name), "agents: {}\n").unwrap();
        }
        let source = read(&[folder.path().to_owned()]).unwrap();
        let names: Vec<_> = source.files.iter().map(|file| file.path.clone().unwrap()).collect();
        assert_eq!(names, [folder.path().join("a.yml"), folder.path().join("b.yaml")]);
        assert_eq!(source.roots, [folder.path()]);
    }

    #[test]
    fn what_is_no_file_is_read_once_and_has_no_place() {
        let source = read(&["/dev/null".into()]).unwrap();
        assert!(source.roots.is_empty());
        assert_eq!((source.files[0].path.as_ref(), source.files[0].text.as_str()), (None, ""));
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = read(&[folder.path().to_owned()]).unwrap_err();
        assert!(matches!(empty, SourceError::Empty(_)), "{empty}");
        let missing = read(&[folder.path().join("fleet.yaml")]).unwrap_err();
        assert!(missing.to_string().contains("fleet.yaml can't be read"), "{missing}");
        std::fs::write(folder.path().join("fleet.yaml"), b"agents: {\xff}").unwrap();
        let binary = read(&[folder.path().join("fleet.yaml")]).unwrap_err();
        assert!(binary.to_string().contains("fleet.yaml:1:10"), "{binary}");
    }
}

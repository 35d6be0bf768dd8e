//! Reading a fleet's files from where they lie.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use vm_agent_schemas::api::FleetSource;
use vm_agent_schemas::fleet::{Diagnostic, FILE_MAX, SourceFile, decode};

/// Most files that make a fleet. One for each agent is plenty; a folder with more is some other folder.
const FILES_MAX: usize = 1000;

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
    /// There are too many files.
    #[error("{} would be one file more than the {FILES_MAX} that a fleet may have: put several agents into one file", .0.display())]
    TooMany(PathBuf),
    /// The files are too long.
    #[error("with {} the fleet's files have more than {FILE_MAX} bytes together: shorten them", .0.display())]
    TooLong(PathBuf),
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
            let file = read_one(root, &source.files)?;
            source.files.push(SourceFile { path: None, ..file });
            continue;
        }
        source.roots.push(absolute(root)?);
        let files = if root.is_dir() { files_in(root)? } else { vec![root.clone()] };
        if files.is_empty() {
            return Err(SourceError::Empty(root.clone()));
        }
        for path in files {
            let file = read_one(&path, &source.files)?;
            source.files.push(file);
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
            if files.len() == FILES_MAX {
                return Err(SourceError::TooMany(path));
            }
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

/// Reads one more file, and no more of it than fits beside those that were read before.
fn read_one(path: &Path, before: &[SourceFile]) -> Result<SourceFile, SourceError> {
    if before.len() == FILES_MAX {
        return Err(SourceError::TooMany(path.to_owned()));
    }
    let room = before.iter().fold(FILE_MAX, |room, file| room.saturating_sub(file.text.len()));
    let most = u64::try_from(room).unwrap_or(u64::MAX).saturating_add(1);
    let unreadable = |source| SourceError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() > room {
        return Err(SourceError::TooLong(path.to_owned()));
    }
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

    #[test]
    fn all_files_together_are_no_longer_than_one_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, size: usize| std::fs::write(folder.path().join(name), "#".repeat(size)).unwrap();
        let roots = [folder.path().to_owned()];
        file("a.yaml", FILE_MAX - 10);
        file("b.yaml", 10);
        assert_eq!(read(&roots).unwrap().files.len(), 2);
        file("b.yaml", 11);
        let long = read(&roots).unwrap_err();
        assert!(matches!(&long, SourceError::TooLong(path) if path.ends_with("b.yaml")), "{long}");
        file("a.yaml", FILE_MAX + 1);
        let long = read(&roots).unwrap_err();
        assert!(matches!(&long, SourceError::TooLong(path) if path.ends_with("a.yaml")), "{long}");
    }

    #[test]
    fn a_fleet_has_a_thousand_files_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..FILES_MAX {
            std::fs::write(folder.path().join(format!("{index}.yaml")), "").unwrap();
        }
        let (roots, apart) = ([folder.path().to_owned()], tempfile::NamedTempFile::new().unwrap());
        assert_eq!(read(&roots).unwrap().files.len(), FILES_MAX);
        let many = read(&[folder.path().to_owned(), apart.path().to_owned()]).unwrap_err();
        assert!(matches!(&many, SourceError::TooMany(path) if path == apart.path()), "{many}");
        std::fs::write(folder.path().join("more.yaml"), "").unwrap();
        let many = read(&roots).unwrap_err();
        assert!(matches!(many, SourceError::TooMany(_)), "{many}");
    }
}

//! The fleet file on this side: finding it, reading it, and saying what is wrong with it before
//! anything is sent.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use vm_agent_daemon::source::{self, SourceError};
use vm_agent_schemas::api::{FleetSource, Problem, ProblemCode};
use vm_agent_schemas::fleet::{self, Diagnostic, Fleet, SourceFile, decode};

use crate::exit::{CommandError, Exit};
use crate::render::count;

/// What a fleet file is called.
pub(crate) const FILE_NAME: &str = "fleet.yaml";
/// What stdin is called, as a file.
const STDIN: &str = "-";

/// The flag that names the fleet file.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// A fleet file, a folder of them, or `-` for stdin (can be repeated: together they make one fleet)
    /// [default: fleet.yaml here or in a folder above]
    #[arg(short, long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// A fleet file without errors.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What the file says, and where it is.
    pub(crate) source: FleetSource,
    /// What it comes to.
    pub(crate) fleet: Fleet,
    /// What to call it in sentences.
    pub(crate) name: String,
    /// Whether a person named it. Otherwise it is the nearest one.
    pub(crate) named: bool,
}

impl FileArgs {
    /// The files that are named, or the nearest one.
    pub(crate) fn load(&self) -> Result<Loaded, CommandError> {
        self.load_if_any()?.ok_or_else(none_found)
    }

    /// The same, but nothing when no file is named and none is near.
    pub(crate) fn load_if_any(&self) -> Result<Option<Loaded>, CommandError> {
        let Some(source) = self.read()? else { return Ok(None) };
        let name = called(&source);
        match fleet::parse_all(&source.files) {
            Ok(fleet) => Ok(Some(Loaded { source, fleet, name, named: !self.files.is_empty() })),
            Err(diagnostics) => Err(invalid(diagnostics, &name)),
        }
    }

    /// Everything that is wrong with the files; nothing when nothing is.
    pub(crate) fn diagnose(&self) -> Result<Vec<Diagnostic>, CommandError> {
        match self.load() {
            Ok(_) => Ok(Vec::new()),
            Err(error) if error.diagnostics().is_empty() => Err(error),
            Err(error) => Ok(error.diagnostics().to_vec()),
        }
    }

    fn read(&self) -> Result<Option<FleetSource>, CommandError> {
        let mut roots = self.files.clone();
        if roots.is_empty() {
            let here = std::env::current_dir()
                .map_err(|error| CommandError::io("the current folder can't be found out", &error))?;
            match nearest(&here) {
                Some(path) => roots.push(path),
                None => return Ok(None),
            }
        }
        gather(&roots, read_stdin).map(Some).map_err(unreadable)
    }
}

/// Reads the files that are named, each once.
fn gather(
    named: &[PathBuf],
    stdin: impl FnOnce() -> Result<SourceFile, SourceError>,
) -> Result<FleetSource, SourceError> {
    let (from_stdin, roots): (Vec<_>, Vec<_>) = named.iter().partition(|path| path.as_os_str() == STDIN);
    let mut source = source::read(&once(roots))?;
    if !from_stdin.is_empty() {
        source.files.push(stdin()?);
        // Whoever watched the rest would miss what came from nowhere on the disk, and take it for gone.
        source.roots.clear();
    }
    Ok(source)
}

/// The paths without those that another one names already: the same one, or the folder that it is in.
fn once(paths: Vec<&PathBuf>) -> Vec<PathBuf> {
    let mut kept: Vec<(PathBuf, &PathBuf)> = Vec::new();
    for path in paths {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        if !kept.iter().any(|(other, _)| *other == absolute) {
            kept.push((absolute, path));
        }
    }
    let folders: Vec<PathBuf> = kept.iter().filter(|(path, _)| path.is_dir()).map(|(path, _)| path.clone()).collect();
    let covered = |path: &Path| {
        source::is_fleet_file(path) && path.parent().is_some_and(|folder| folders.iter().any(|it| it == folder))
    };
    kept.into_iter().filter(|(path, _)| path.is_dir() || !covered(path)).map(|(_, path)| path.clone()).collect()
}

fn nearest(here: &Path) -> Option<PathBuf> {
    here.ancestors().map(|folder| folder.join(FILE_NAME)).find(|path| path.is_file())
}

/// What to call the files in sentences.
fn called(source: &FleetSource) -> String {
    match source.files.as_slice() {
        [one] => one.name.clone(),
        files => count(files.len(), "file"),
    }
}

fn none_found() -> CommandError {
    CommandError::new(Exit::USAGE, format!("there is no {FILE_NAME} here or in a folder above"))
        .hint("`vm-agent init` writes one, and -f names one elsewhere; the least that it says is `agents: {}`")
}

fn unreadable(error: SourceError) -> CommandError {
    match error {
        SourceError::NotText(wrong) => {
            let name = wrong.file.clone();
            invalid(vec![*wrong], &name)
        }
        error => CommandError::caused(Exit::USAGE, &error),
    }
}

/// What is wrong with the files, as an error.
fn invalid(diagnostics: Vec<Diagnostic>, name: &str) -> CommandError {
    let reason = format!("{} in {name}; nothing was changed", count(diagnostics.len(), "error"));
    CommandError::from(Problem { diagnostics, ..Problem::new(ProblemCode::Invalid, reason) })
}

fn read_stdin() -> Result<SourceFile, SourceError> {
    let mut bytes = Vec::new();
    let unreadable = |source| SourceError::Unreadable { path: STDIN.into(), source };
    io::stdin().lock().read_to_end(&mut bytes).map_err(unreadable)?;
    let text = decode("stdin", &bytes).map_err(|wrong| SourceError::NotText(Box::new(wrong)))?;
    Ok(SourceFile { name: "stdin".to_owned(), path: None, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), "agents: {}").unwrap();
        }
        dir
    }

    fn no_stdin() -> Result<SourceFile, SourceError> {
        panic!("stdin was not named")
    }

    #[test]
    fn the_nearest_file_above_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "agents: {}").unwrap();
        assert_eq!(nearest(&deep), Some(dir.path().join(FILE_NAME)));
        std::fs::write(dir.path().join("a").join(FILE_NAME), "agents: {}").unwrap();
        assert_eq!(nearest(&deep), Some(dir.path().join("a").join(FILE_NAME)));
    }

    #[test]
    fn what_is_named_twice_is_read_once() {
        let dir = folder(&["a.yaml", "b.yaml", "notes.txt"]);
        let at = |name: &str| dir.path().join(name);
        let named = [at("b.yaml"), dir.path().to_owned(), at("b.yaml"), dir.path().to_owned(), at("notes.txt")];
        let source = gather(&named, no_stdin).unwrap();
        assert_eq!(source.roots, [dir.path().to_owned(), at("notes.txt")]);
        let paths: Vec<_> = source.files.into_iter().map(|file| file.path.unwrap()).collect();
        assert_eq!(paths, [at("a.yaml"), at("b.yaml"), at("notes.txt")]);
    }

    #[test]
    fn with_stdin_there_is_nothing_to_watch() {
        let dir = folder(&["a.yaml"]);
        let stdin = || Ok(SourceFile { name: "stdin".into(), path: None, text: "prune: auto".into() });
        let source = gather(&["-".into(), dir.path().join("a.yaml"), "-".into()], stdin).unwrap();
        assert!(source.roots.is_empty());
        assert_eq!(source.files.len(), 2, "stdin is read once");
    }
}

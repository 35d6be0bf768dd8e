//! The fleet file on this side: finding it, reading it, and saying what is wrong with it before
//! anything is sent.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use vm_agent_schemas::api::{FleetSource, Problem, ProblemCode};
use vm_agent_schemas::fleet::{self, Fleet, SourceFile};

use crate::exit::{CommandError, Exit};

/// What a fleet file is called.
const FILE_NAME: &str = "fleet.yaml";

/// The flag that names the fleet file.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// The fleet file; `-` reads stdin [default: fleet.yaml here or in a folder above]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
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
}

impl FileArgs {
    /// The file that is named, or the nearest one.
    pub(crate) fn load(&self) -> Result<Loaded, CommandError> {
        self.find()?.map_or_else(|| Err(none_found()), |path| load(&path))
    }

    /// The same, but nothing when no file is named and none is near.
    pub(crate) fn load_if_any(&self) -> Result<Option<Loaded>, CommandError> {
        self.find()?.map(|path| load(&path)).transpose()
    }

    fn find(&self) -> Result<Option<PathBuf>, CommandError> {
        if let Some(path) = &self.file {
            return Ok(Some(path.clone()));
        }
        let here = std::env::current_dir()
            .map_err(|error| CommandError::io("the current folder can't be found out", &error))?;
        Ok(nearest(&here))
    }
}

fn nearest(here: &Path) -> Option<PathBuf> {
    here.ancestors().map(|folder| folder.join(FILE_NAME)).find(|path| path.is_file())
}

fn none_found() -> CommandError {
    CommandError::new(Exit::USAGE, format!("there is no {FILE_NAME} here or in a folder above"))
        .hint("name one with -f; the least that a fleet file says is `agents: {}`")
}

fn load(path: &Path) -> Result<Loaded, CommandError> {
    let stdin = path.as_os_str() == "-";
    let name = if stdin { "stdin".to_owned() } else { path.display().to_string() };
    if path.is_dir() {
        return Err(CommandError::new(Exit::USAGE, format!("`{name}` is a folder, and a fleet is one file"))
            .hint(format!("name the file, such as {}", path.join(FILE_NAME).display())));
    }
    let text = if stdin { read_stdin() } else { std::fs::read_to_string(path) };
    let text = text.map_err(|error| unreadable(&name, &error))?;
    let fleet = fleet::parse(&name, &text).map_err(|diagnostics| {
        let count = diagnostics.len();
        let reason = format!("{name} has {count} error{}; nothing was changed", if count == 1 { "" } else { "s" });
        CommandError::from(Problem { diagnostics, ..Problem::new(ProblemCode::Invalid, reason) })
    })?;
    let path = if stdin { None } else { Some(std::path::absolute(path).map_err(|error| unreadable(&name, &error))?) };
    let source = FleetSource {
        roots: path.iter().cloned().collect(),
        files: vec![SourceFile { name: name.clone(), path, text }],
    };
    Ok(Loaded { source, fleet, name })
}

fn read_stdin() -> io::Result<String> {
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    Ok(text)
}

fn unreadable(name: &str, error: &io::Error) -> CommandError {
    CommandError::new(Exit::USAGE, format!("the fleet file {name} can't be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_folder_is_refused_with_what_to_write_instead() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(dir.path()).unwrap_err();
        assert_eq!(error.exit, Exit::USAGE);
        assert!(error.to_string().contains("is a folder"), "{error}");
    }
}

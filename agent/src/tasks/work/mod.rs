//! What each kind of work comes to: a program that is started, or a file that is read or written.
//!
//! Everything here is decided before anything is done, from the job and from what lies in its folder. What can't
//! come to anything is refused with a sentence.

pub(super) mod file;
mod git;
mod project;
pub(super) mod script;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vm_agent_schemas::fleet::FileMode;
use vm_agent_schemas::task::Work;

/// What work comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A program is started.
    Program(Program),
    /// A file is read.
    Read(PathBuf),
    /// A file is written.
    Write(PathBuf, Vec<u8>, FileMode),
}

/// A program that is started.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Program {
    /// The program and its arguments.
    pub(super) argv: Vec<String>,
    /// Environment that the work itself needs, over all other.
    pub(super) env: BTreeMap<String, String>,
    /// A script, and which of the arguments is to be its path.
    pub(super) script: Option<(String, usize)>,
}

impl Program {
    fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// What this work comes to in this folder, or why it comes to nothing.
pub(super) fn way(work: &Work, folder: &Path) -> Result<Way, String> {
    match work {
        Work::Exec { argv } => Ok(Program::new(argv)),
        Work::Script { interpreter, script, args } => script::program(interpreter, script, args),
        Work::FileRead { path } => return file::place(folder, path).map(Way::Read),
        Work::FileWrite { path, content, mode } => {
            return Ok(Way::Write(file::place(folder, path)?, file::bytes(content)?, *mode));
        }
        Work::GitClone { url, path, reference, depth } => {
            git::clone(url, path.as_deref(), reference.as_deref(), *depth)
        }
        Work::GitPull { path, remote, reference } => {
            git::pull(path.as_deref(), remote.as_deref(), reference.as_deref())
        }
        Work::GitPush { path, remote, reference } => {
            git::push(path.as_deref(), remote.as_deref(), reference.as_deref())
        }
        Work::Build { argv } => project::program(project::Goal::Build, argv, folder),
        Work::Test { argv } => project::program(project::Goal::Test, argv, folder),
        Work::Deploy { argv } => project::program(project::Goal::Deploy, argv, folder),
    }
    .map(Way::Program)
}

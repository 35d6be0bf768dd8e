//! Scripts: written to a file that only their user can read, and removed afterwards.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use vm_agent_schemas::wire::TaskRef;

use super::Program;

/// What runs a script.
pub(super) fn program(interpreter: &[String], script: &str, args: &[String]) -> Result<Program, String> {
    if interpreter.is_empty() {
        return Err("there is nothing to run the script with: interpreter is empty".to_owned());
    }
    let path = String::new();
    let argv = interpreter.iter().chain([&path]).chain(args);
    Ok(Program { script: Some((script.to_owned(), interpreter.len())), ..Program::new(argv) })
}

/// A script on disk. Dropping it removes it.
#[derive(Debug)]
pub(in crate::tasks) struct ScriptFile {
    path: PathBuf,
}

impl ScriptFile {
    /// Where the script of an attempt lies: in the system's folder for temporary files, because the runtime's own
    /// is closed to other users. The name is known again after a crash.
    fn at(task: TaskRef) -> PathBuf {
        std::env::temp_dir().join(format!("vm-agent-script-{}-{}", task.task, task.attempt))
    }

    /// Writes the script, for whoever this thread acts for. Nothing that lies there already is used.
    pub(in crate::tasks) fn write(task: TaskRef, script: &str) -> io::Result<Self> {
        let path = Self::at(task);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let written = Self { path };
        file.write_all(script.as_bytes())?;
        Ok(written)
    }

    /// Removes what a crash has left of an attempt's script.
    pub(in crate::tasks) fn clear(task: TaskRef) {
        // Most attempts have none.
        let _ = fs::remove_file(Self::at(task));
    }

    /// The path, as an argument.
    pub(in crate::tasks) fn argument(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

impl Drop for ScriptFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("the script {} can't be removed: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use vm_agent_schemas::ids::TaskId;

    #[test]
    fn the_script_stands_between_its_interpreter_and_its_arguments() {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let program = program(&texts(&["bash", "-e"]), "echo $1", &texts(&["one"])).unwrap();
        assert_eq!(program.argv, texts(&["bash", "-e", "", "one"]));
        assert_eq!(program.script, Some(("echo $1".to_owned(), 2)));
        assert!(super::program(&[], "", &[]).unwrap_err().contains("interpreter is empty"));
    }

    #[test]
    fn a_script_is_for_its_user_alone_and_goes_with_its_attempt() {
        let task = TaskRef { task: TaskId::generate(), attempt: 1 };
        let file = ScriptFile::write(task, "echo hi").unwrap();
        let path = PathBuf::from(file.argument());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(ScriptFile::write(task, "other").is_err(), "what lies there is not touched");
        assert_eq!(fs::read_to_string(&path).unwrap(), "echo hi");
        drop(file);
        assert!(!path.exists());
    }
}

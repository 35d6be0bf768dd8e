//! Programs of the host that do one thing and end.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::launched::inherited;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It can't be run.
    #[error("`{}` can't be run", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It failed, and said so.
    #[error("{}", words(program, said))]
    Failed {
        /// The program.
        program: PathBuf,
        /// Its last words.
        said: String,
    },
}

fn words(program: &Path, said: &str) -> String {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    if said.is_empty() { format!("`{name}` failed and said nothing") } else { format!("`{name}` failed: {said}") }
}

/// Runs a program to its end, and gives what it wrote to stdout. Dropped, it is killed.
pub(crate) async fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
) -> Result<Vec<u8>, ToolError> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(inherited()).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let ended = command.output().await;
    let output = ended.map_err(|source| ToolError::Spawn { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(ToolError::Failed { program: program.to_owned(), said: last_words(&output.stderr) })
}

/// The last lines of what a program wrote, on one line and short.
pub(crate) fn last_words(written: &[u8]) -> String {
    /// Enough for a sentence and its cause.
    const LINES: usize = 3;
    let text = String::from_utf8_lossy(written);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

/// Finds a program of this name on the `PATH`.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_is_told_by_its_last_words() {
        let sh = find("sh").expect("a shell is everywhere");
        assert_eq!(run(&sh, ["-c", "echo out"]).await.unwrap(), b"out\n");
        let error = run(&sh, ["-c", "echo first >&2; echo; echo 'no room' >&2; exit 3"]).await.unwrap_err();
        assert_eq!(error.to_string(), "`sh` failed: first; no room");
        let error = run(&sh, ["-c", "exit 3"]).await.unwrap_err();
        assert_eq!(error.to_string(), "`sh` failed and said nothing");
        let error = run(Path::new("/nowhere/tool"), ["x"]).await.unwrap_err();
        assert_eq!(error.to_string(), "`/nowhere/tool` can't be run");
    }

    #[test]
    fn only_what_can_be_run_is_found() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
        assert!(!is_program(Path::new("/etc/passwd")) && !is_program(Path::new("/")));
    }
}

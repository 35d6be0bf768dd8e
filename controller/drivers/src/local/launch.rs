//! Starting a runtime process that outlives the controller.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::layout::INSTANCE_VARIABLE;

use super::folder::is_up;
use crate::folder::Folder;
use crate::hold::Hold;
use crate::launched::{Launched, inherited};

/// The program that runs as the runtime of an instance, with the instance's folder as its last
/// argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeProgram {
    /// The program: a path, or a name to be looked up in `PATH`.
    pub path: PathBuf,
    /// Its arguments before the folder.
    pub args: Vec<OsString>,
}

/// How long a runtime may take to be up. It only has to lock a file, which takes milliseconds; the
/// rest is for a host under load. Shorter than the deadline of a start, so that the reason is told.
const UP_LIMIT: Duration = Duration::from_secs(20);

/// How long a runtime has to stay up to count as started: one that can't read its seed, or finds its
/// port taken, ends within this time.
const SETTLED: Duration = Duration::from_millis(30);

/// Why a runtime could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("the runtime program `{}` can't be run", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("the runtime ended at once ({status}){}", with_log(log))]
    Ended { status: ExitStatus, log: String },
    #[error("the runtime is not up after {} s{}", UP_LIMIT.as_secs(), with_log(log))]
    Silent { log: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn with_log(log: &str) -> String {
    if log.is_empty() { ", and wrote nothing".to_owned() } else { format!(", and wrote: {log}") }
}

/// Runs the program and waits until it is up.
pub(super) async fn launch(
    hold: &Hold,
    program: &RuntimeProgram,
    folder: &Folder,
    nonce: &Nonce,
) -> Result<(), LaunchError> {
    let opened = folder.clone();
    let (log, log_start) = hold.blocking(move || opened.open_log()).await?;
    let command = command(program, folder, nonce, log)?;
    let spawned = Launched::spawn(command, hold);
    let mut launched = spawned.map_err(|source| LaunchError::Spawn { program: program.path.clone(), source })?;
    let is_up = {
        let folder = folder.clone();
        move || is_up(&folder)
    };
    let ended = tokio::select! {
        up = hold.until(UP_LIMIT, is_up.clone()) => {
            if !up? {
                return Err(LaunchError::Silent { log: folder.log_since(log_start) });
            }
            tokio::time::timeout(SETTLED, launched.ended()).await.ok()
        }
        status = launched.ended() => Some(status),
    };
    match ended {
        // Another runtime may have had the lock, and this one gave way.
        Some(status) if !hold.blocking(is_up).await? => {
            Err(LaunchError::Ended { status: status?, log: folder.log_since(log_start) })
        }
        _ => {
            launched.let_go();
            Ok(())
        }
    }
}

fn command(program: &RuntimeProgram, folder: &Folder, nonce: &Nonce, log: std::fs::File) -> io::Result<Command> {
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .arg(folder.path())
        .current_dir(folder.path())
        .env_clear()
        .envs(inherited())
        .env(INSTANCE_VARIABLE, nonce.as_str())
        // A group of its own: Ctrl-C at the controller's terminal is not meant for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

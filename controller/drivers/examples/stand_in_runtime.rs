//! The least that driver `local` asks of a runtime, for its tests: it locks its folder, says which
//! process it is, takes back that it was stopped, and ends when asked to.
//!
//! ```text
//! stand_in_runtime [--child] [--deaf] [--broken] FOLDER
//! ```
//!
//! `--child` starts a process that outlives a killed runtime, in a session that is not the runtime's,
//! and writes its id to `child.pid`; `--deaf` ignores requests to end; `--broken` writes a sentence
//! and fails.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use vm_agent_schemas::layout::{LOCK_FILE, SEED_FILE, STOPPED_FILE};

/// The file that tells the process id of `--child`.
const CHILD_FILE: &str = "child.pid";

/// A driver that looks whether the lock is held holds it for less than a millisecond.
const TRIES: u32 = 100;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    let folder = PathBuf::from(args.pop().unwrap_or_default());
    let has = |option: &str| args.iter().any(|arg| arg == option);
    match run(&folder, has("--broken"), has("--child"), has("--deaf")).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(folder: &Path, broken: bool, child: bool, deaf: bool) -> Result<()> {
    if broken {
        return Err("this runtime is broken on purpose".into());
    }
    fs::read(folder.join(SEED_FILE))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut lock = lock(&folder.join(LOCK_FILE)).await?;
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    if let Err(error) = fs::remove_file(folder.join(STOPPED_FILE))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error.into());
    }
    if child {
        let child = Command::new("sleep").arg("600").process_group(0).spawn()?;
        fs::write(folder.join(CHILD_FILE), child.id().to_string())?;
    }
    loop {
        terminate.recv().await;
        if !deaf {
            break;
        }
    }
    fs::write(folder.join(STOPPED_FILE), "")?;
    Ok(())
}

async fn lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Err("another runtime has this folder".into())
}

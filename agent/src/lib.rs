//! The runtime: the program inside an instance. It connects to the hub, reports health, and runs tasks
//! and the processes of interactive sessions. It shares only the wire protocol with the controller.
//!
//! One loop (`runtime`) owns all state: sources (signals, the connection, ended tasks, log lines)
//! are turned into events, and each event is handled by an ordinary function that never waits.
//! Around it stand small parts: `folder` keeps what survives a restart, `connection` and
//! `handshake` make a session, `session` lives with one, `streams`, `terminals`, `tasks` and `services` run
//! processes by means of `process`, `archive` makes and reads copies, `configuration` puts into force what
//! the hub asks for, `files` among it, and `messages` passes on what programs have to say to each other.
//! `rotation` has another key take the place of the present one, `upgrade` another version, and `evidence` shows where
//! the runtime runs. `disk` does beside
//! the loop what waits for the disk, and `broken` keeps a defect to the one thing that has it.
//! `guest` is another program under the same name, which gives a machine its identity and its seed.

mod archive;
mod backoff;
mod broken;
mod configuration;
mod connection;
mod disk;
mod evidence;
mod files;
mod folder;
mod guest;
mod handshake;
mod health;
mod identity;
mod log_forward;
mod messages;
mod outgoing;
mod process;
mod redact;
mod rotation;
mod runtime;
mod sentence;
mod services;
mod session;
mod streams;
mod tasks;
mod terminals;
mod tls;
mod upgrade;
mod window;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

pub use folder::FolderError;
use log_forward::LogQueue;
use vm_agent_schemas::guest::CHANNEL_DEVICE;

/// How the program is called.
const USAGE: &str = "\
usage: vm-agent-runtime FOLDER                      run the runtime of a folder, which holds its seed
       vm-agent-runtime --await FOLDER              the same, of a folder that may get its seed later
       vm-agent-runtime message send|receive ...    pass messages from inside the machine; see message --help
       vm-agent-runtime --guest [CHANNEL]           as root: take identity and seed from the machine's driver
       vm-agent-runtime --guest-call                the same, of a driver that runs this: answer what stdin says, and end
       vm-agent-runtime --guest-boot                as root: run the runtime of a machine that was seeded before
       vm-agent-runtime --version";

/// Why a runtime did not run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Its folder can't be used.
    #[error("the runtime's folder can't be used")]
    Folder(#[from] FolderError),
    /// The operating system refused something that every program needs.
    #[error("the runtime could not {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the runtime of a folder until it is told to end (SIGTERM or SIGINT), logging to stderr. This is
/// the whole program; call it from a process that does nothing else, before any other thread starts.
#[must_use]
pub fn main(folder: &Path) -> ExitCode {
    start(folder, false)
}

fn start(folder: &Path, awaits_seed: bool) -> ExitCode {
    let logs = log_forward::install();
    match run(folder, awaits_seed, logs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Sends and receives messages on behalf of a program inside the machine: the arguments are those behind
/// `vm-agent-runtime message`.
#[must_use]
pub fn message(arguments: &[String]) -> ExitCode {
    messages::main(arguments)
}

/// The program `vm-agent-runtime`, called with these arguments.
#[must_use]
pub fn program(arguments: &[OsString]) -> ExitCode {
    let text = |argument: &OsString| argument.to_string_lossy().into_owned();
    match arguments {
        [first, rest @ ..] if first == "message" => message(&rest.iter().map(text).collect::<Vec<_>>()),
        [only] if only == "--version" => {
            // Whoever asked for it and does not listen misses it.
            let _ = writeln!(io::stdout(), "vm-agent-runtime {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        [first] if first == "--guest" => guest::main(Path::new(CHANNEL_DEVICE)),
        [first, channel] if first == "--guest" => guest::main(Path::new(channel)),
        [only] if only == "--guest-call" => guest::call(),
        [only] if only == "--guest-boot" => guest::boot(),
        [first, folder] if first == "--await" => start(Path::new(folder), true),
        // As the command line calls its own runtime, whose place this program can take.
        [first, folder] if first == "runtime" => main(Path::new(folder)),
        [folder] if !folder.to_string_lossy().starts_with('-') => main(Path::new(folder)),
        _ => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Unpacks an archive as an upload does. It is here for those who try what archives can do.
///
/// # Errors
/// When it is no archive, or one that is not taken.
#[doc(hidden)]
pub fn unpack(archive: impl Read, destination: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    Ok(archive::unpack(archive, destination)?)
}

fn run(folder: &Path, awaits_seed: bool, logs: LogQueue) -> Result<(), RuntimeError> {
    let folder = folder::Folder::open(folder)?;
    // Another version may be to run; then it goes on from here in this one's place.
    let upgrades = upgrade::start(&folder)?;
    // Away from the terminal and the process group of whoever started it: a Ctrl-C meant for them is
    // not meant for this. It fails when the process leads a group already, and then is not needed.
    let _ = rustix::process::setsid();
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| RuntimeError::System { what: "start its event loop", source })?;
    if awaits_seed {
        folder.await_seed();
    }
    match tokio.block_on(runtime::run(folder, upgrades, logs))? {
        runtime::End::Stopped => Ok(()),
        runtime::End::Replaced(path) => {
            drop(tokio);
            Err(RuntimeError::System { what: "run another version of itself", source: upgrade::replace(&path) })
        }
    }
}

/// An error with all its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

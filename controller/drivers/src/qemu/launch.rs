//! Starting a machine: its QEMU, and the word with the guest program in it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::process::Command;
use vm_agent_schemas::guest::{Entropy, FromGuest, Identity, SeedRequest, State, ToGuest};
use vm_agent_schemas::ids::RequestId;
use vm_agent_schemas::layout::INSTANCE_VARIABLE;
use vm_agent_schemas::wire::Seed;

use super::channel::{Channel, First};
use super::command::{CONSOLE, CONSOLE_KEPT, LOADED_FROM, NETWORK};
use super::machine::{CHANNEL, CONSOLE_LOG, MONITOR, Machine, Whose};
use super::qmp::{Migration, Qmp, QmpError};
use super::saved::{SaveError, leave_out_ram};
use super::snapshots::MEMORY;
use crate::DriverError;
use crate::folder::Folder;
use crate::hold::Hold;
use crate::launched::{Launched, inherited};
use crate::tool::last_words;

/// How long QEMU may take to be up. It takes a tenth of a second; the rest is for a host under load.
const UP_LIMIT: Duration = Duration::from_secs(30);

/// How long a QEMU that has closed the channel may take to be gone: then its end is what there is to tell.
const END_LIMIT: Duration = Duration::from_secs(2);

/// How long a look at the state of a guest may take whose start has failed.
const STATE_LIMIT: Duration = Duration::from_secs(10);

/// How long a machine may take to have what it is to have besides the runtime.
const PROVISION_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How often that is asked for. The answer costs an emulated guest some tenths of a second.
const PROVISION_PAUSE: Duration = Duration::from_secs(2);

/// How long what still starts in a machine that is to be copied is waited for, and how often it is looked.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
const SETTLE_PAUSE: Duration = Duration::from_millis(500);

/// How many lines are told of what could not be brought about.
const PROVISION_LINES: usize = 8;

/// How many lines of a console are told.
const CONSOLE_LINES: usize = 8;

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("`{}` can't be run", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("another QEMU has its disk open; end that one, or wait for it")]
    Locked,
    #[error("QEMU ended at once ({status}): {said}")]
    Ended { status: ExitStatus, said: String },
    #[error("QEMU is not up after {} s", UP_LIMIT.as_secs())]
    Silent,
    #[error("QEMU ended while the machine booted ({status}): {said}")]
    Fell { status: ExitStatus, said: String },
    #[error("the guest program did not come up within {} s{}", limit.as_secs(), shown(.seen))]
    NoGuest { limit: Duration, seen: String },
    #[error("the guest program could not do as it was told: {0}")]
    Refused(String),
    #[error("the machine did not get what it is to have besides the runtime: {0}")]
    Unprovisioned(String),
    #[error("what it is made of could not be put into its folder")]
    Unfurnished(#[source] DriverError),
    #[error("its memory can't be loaded: {0}")]
    Unloadable(String),
    #[error(transparent)]
    Unsaved(#[from] SaveError),
    #[error("it could not be made a while ago: {0}")]
    FailedBefore(String),
    #[error(transparent)]
    Monitor(#[from] QmpError),
    #[error("the channel to the machine was lost")]
    Channel(#[source] io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LaunchError {
    /// Whether a machine that does not go on from its memory for this reason may boot.
    pub(super) const fn is_of_the_memory(&self, is_nobodys: bool) -> bool {
        match self {
            Self::Ended { .. } | Self::Fell { .. } | Self::Unloadable(_) | Self::NoGuest { .. } => true,
            // What was ready to be copied takes any seed, or is not what it was made for.
            Self::Refused(_) => is_nobodys,
            Self::Spawn { .. }
            | Self::Locked
            | Self::Silent
            | Self::Unprovisioned(_)
            | Self::Unfurnished(_)
            | Self::Unsaved(_)
            | Self::FailedBefore(_)
            | Self::Monitor(_)
            | Self::Channel(_)
            | Self::Io(_) => false,
        }
    }
}

fn shown(seen: &str) -> String {
    if seen.is_empty() { ", and its console showed nothing".to_owned() } else { format!(": {seen}") }
}

/// Starts QEMU in the machine's folder, and waits until its monitor answers.
pub(super) async fn launch(
    hold: &Hold,
    program: &Path,
    arguments: Vec<String>,
    folder: &Folder,
    machine: &Machine,
) -> Result<Launched, LaunchError> {
    let (log, log_start) = locked_log(hold, folder).await?;
    let command = command(program, arguments, folder, machine, log)?;
    let spawned = Launched::spawn(command, hold);
    let mut launched = spawned.map_err(|source| LaunchError::Spawn { program: program.to_owned(), source })?;
    let up = async {
        loop {
            if Qmp::connect(folder.path(), MONITOR).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    tokio::select! {
        up = tokio::time::timeout(UP_LIMIT, up) => up.map_err(|_| LaunchError::Silent)?,
        status = launched.ended() => {
            let (status, said) = (status?, folder.log_since(log_start));
            let is_locked = said.contains("Failed to get") && said.contains("lock");
            return Err(if is_locked { LaunchError::Locked } else { LaunchError::Ended { status, said } });
        }
    }
    Ok(launched)
}

/// Waits until a machine has its memory, and has it go on. One that has been another is without a network until it is
/// told to have one again; what was nobody's has nothing to say there.
pub(super) async fn loaded(launched: &mut Launched, folder: &Folder, whose: Whose) -> Result<(), LaunchError> {
    /// A look costs nothing, and the memory is there in some tenths of a second.
    const PAUSE: Duration = Duration::from_millis(5);
    let load = async {
        let mut qmp = Qmp::connect(folder.path(), MONITOR).await?;
        if whose == Whose::Nobodys {
            leave_out_ram(&mut qmp, true).await?;
            qmp.execute("migrate-incoming", json!({"uri": LOADED_FROM})).await?;
        }
        loop {
            match qmp.migration().await? {
                Migration::Completed => break,
                Migration::Failed(reason) => return Err(LaunchError::Unloadable(reason)),
                Migration::UnderWay | Migration::Pausing => tokio::time::sleep(PAUSE).await,
            }
        }
        if whose == Whose::Nobodys {
            // The next that is saved is its own, as a whole.
            leave_out_ram(&mut qmp, false).await?;
        }
        if whose == Whose::Anothers {
            qmp.set_link(NETWORK, false).await?;
        }
        Ok(qmp.go_on().await?)
    };
    let loaded = tokio::select! {
        loaded = tokio::time::timeout(UP_LIMIT, load) => loaded,
        status = launched.ended() => return Err(fell(folder, status?)),
    };
    match loaded.unwrap_or(Err(LaunchError::Silent)) {
        // What can't be loaded ends QEMU, and its end says why.
        Err(error @ LaunchError::Monitor(_)) => match tokio::time::timeout(END_LIMIT, launched.ended()).await {
            Ok(status) => Err(fell(folder, status?)),
            Err(_) => Err(error),
        },
        loaded => loaded,
    }
}

/// Opens QEMU's log and locks it. QEMU has it as its output, and with that the lock, from its first moment to
/// its last.
async fn locked_log(hold: &Hold, folder: &Folder) -> io::Result<(File, u64)> {
    /// Longer than a look at the lock takes, which holds it for a moment.
    const LOCK_LIMIT: Duration = Duration::from_secs(2);
    let (folder, deadline) = (folder.clone(), std::time::Instant::now() + LOCK_LIMIT);
    hold.blocking(move || {
        let (log, length) = folder.open_log()?;
        loop {
            match log.try_lock() {
                Ok(()) => return Ok((log, length)),
                Err(TryLockError::WouldBlock) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::other("its log is locked by a process that this driver did not start"));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    })
    .await
}

fn command(
    program: &Path,
    arguments: Vec<String>,
    folder: &Folder,
    machine: &Machine,
    log: File,
) -> io::Result<Command> {
    let mut command = Command::new(program);
    let memory =
        machine.resume.as_ref().map(|resume| File::open(folder.file(&resume.from).join(MEMORY))).transpose()?;
    command
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .envs(inherited())
        .env("LC_ALL", "C")
        // By this mark it is found and ended, whatever became of the controller that started it.
        .env(INSTANCE_VARIABLE, machine.nonce.as_str())
        // A group of its own: Ctrl-C at the controller's terminal is not meant for it.
        .process_group(0)
        .stdin(memory.map_or_else(Stdio::null, Stdio::from))
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// Waits for the guest program of a machine, and gives it its seed.
pub(super) async fn seed(
    launched: &mut Launched,
    folder: &Folder,
    machine: &Machine,
    seed: &Seed,
    first: First,
    limit: Duration,
) -> Result<(), LaunchError> {
    let mut channel = Channel::connect(folder.path(), CHANNEL).await.map_err(LaunchError::Channel)?;
    let answer = ask(launched, folder, &mut channel, first, limit, |id| {
        let identity = Identity {
            hostname: machine.name.clone(),
            machine_id: machine.machine_id.clone(),
            mac: Some(machine.mac.clone()),
            time: Timestamp::now(),
            entropy: Entropy::generate(),
        };
        ToGuest::Seed(Box::new(SeedRequest { id, seed: seed.clone(), identity }))
    });
    answer.await.map(drop)
}

/// Waits until a machine has booted and is ready to be copied: its runtime is there and waits for a seed, and it has
/// what it is to have besides.
pub(super) async fn prepared(
    launched: &mut Launched,
    folder: &Folder,
    has_more: bool,
    limit: Duration,
) -> Result<(), LaunchError> {
    let mut channel = Channel::connect(folder.path(), CHANNEL).await.map_err(LaunchError::Channel)?;
    let prepare = |id| ToGuest::Prepare { id };
    ask(launched, folder, &mut channel, First::WhenReady, limit, prepare).await?;
    if has_more {
        drop(channel);
        provisioned(launched, folder).await?;
        channel = Channel::connect(folder.path(), CHANNEL).await.map_err(LaunchError::Channel)?;
    }
    // What still starts would go on starting in every copy.
    let deadline = tokio::time::Instant::now() + SETTLE_LIMIT;
    while tokio::time::Instant::now() < deadline {
        let answer = ask(launched, folder, &mut channel, First::Now, STATE_LIMIT, |id| ToGuest::Status { id }).await?;
        let FromGuest::State(state) = answer else { break };
        let boots = state.system.is_some_and(|system| ["initializing", "starting"].contains(&system.as_str()));
        if !boots && state.runtime.state == "active" {
            break;
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
    ask(launched, folder, &mut channel, First::Now, limit, prepare).await.map(drop)
}

/// Has the guest program do something, and gives what it answered, unless it could not.
async fn ask(
    launched: &mut Launched,
    folder: &Folder,
    channel: &mut Channel,
    first: First,
    limit: Duration,
    request: impl Fn(RequestId) -> ToGuest,
) -> Result<FromGuest, LaunchError> {
    let answer = tokio::select! {
        answer = tokio::time::timeout(limit, channel.ask(first, request)) => answer,
        status = launched.ended() => return Err(fell(folder, status?)),
    };
    match answer {
        Ok(Err(error)) => match tokio::time::timeout(END_LIMIT, launched.ended()).await {
            Ok(status) => Err(fell(folder, status?)),
            Err(_) => Err(LaunchError::Channel(error)),
        },
        Ok(Ok(FromGuest::Failed { reason, .. })) => Err(LaunchError::Refused(reason)),
        Ok(Ok(answer)) => Ok(answer),
        Err(_) => Err(LaunchError::NoGuest { limit, seen: seen(channel, folder).await }),
    }
}

/// Waits until a seeded machine has what it is to have besides the runtime, which starts after that.
pub(super) async fn provisioned(launched: &mut Launched, folder: &Folder) -> Result<(), LaunchError> {
    let mut channel = Channel::connect(folder.path(), CHANNEL).await.map_err(LaunchError::Channel)?;
    let mut last = Vec::new();
    let watch = async {
        loop {
            let answer = channel.ask(First::Now, |id| ToGuest::Status { id }).await.map_err(LaunchError::Channel)?;
            let FromGuest::State(State { provision: Some(unit), .. }) = answer else {
                return Err(LaunchError::Unprovisioned("its guest program knows nothing of it".to_owned()));
            };
            last = unit.journal;
            match unit.state.as_str() {
                "active" => return Ok(()),
                "failed" => return Err(LaunchError::Unprovisioned(last_lines(&last, PROVISION_LINES))),
                _ => tokio::time::sleep(PROVISION_PAUSE).await,
            }
        }
    };
    let watched = tokio::select! {
        watched = tokio::time::timeout(PROVISION_LIMIT, watch) => watched,
        status = launched.ended() => return Err(fell(folder, status?)),
    };
    watched.unwrap_or_else(|_| {
        let (limit, last) = (PROVISION_LIMIT.as_secs() / 60, last_lines(&last, PROVISION_LINES));
        Err(LaunchError::Unprovisioned(format!("it is not there after {limit} min: {last}")))
    })
}

/// The last lines that say something, in one.
fn last_lines<T: AsRef<str>>(lines: &[T], count: usize) -> String {
    let lines: Vec<_> = lines.iter().map(|line| line.as_ref().trim()).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

fn fell(folder: &Folder, status: ExitStatus) -> LaunchError {
    LaunchError::Fell { status, said: last_words(folder.log_since(0).as_bytes()) }
}

/// What can be seen of a guest that did not come up: how it goes with its runtime, where it was heard, and
/// the end of its console, which is kept in the folder too.
async fn seen(channel: &mut Channel, folder: &Folder) -> String {
    let mut seen = Vec::new();
    if channel.heard() {
        let asked = channel.ask(First::Now, |id| ToGuest::Status { id });
        if let Ok(Ok(FromGuest::State(state))) = tokio::time::timeout(STATE_LIMIT, asked).await {
            seen.push(format!("{}: {}", state.runtime.state, state.runtime.journal.join("; ")));
            seen.extend(state.provision.map(|unit| last_lines(&unit.journal, PROVISION_LINES)));
            seen.extend(state.cloud_init.into_iter().flat_map(|cloud_init| cloud_init.errors));
        }
    }
    let console = console(folder).await;
    seen.push(last_lines(&console.lines().collect::<Vec<_>>(), CONSOLE_LINES));
    seen.retain(|text| !text.is_empty());
    seen.join("; ")
}

/// Takes what the machine's console showed, and keeps it in the folder.
async fn console(folder: &Folder) -> String {
    let read = async {
        let mut qmp = Qmp::connect(folder.path(), MONITOR).await?;
        qmp.ring(CONSOLE, CONSOLE_KEPT).await
    };
    match read.await {
        Ok(console) => {
            if let Err(error) = folder.write(CONSOLE_LOG, console.as_bytes()) {
                tracing::warn!(%error, "a machine's console can't be kept");
            }
            console
        }
        Err(error) => format!("(its console can't be read: {error})"),
    }
}

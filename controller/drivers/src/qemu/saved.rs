//! Saving the memory of a machine that runs, by QEMU's migration into a file.
//!
//! The machine goes on while most of it is written. Then it stands still: what it has changed meanwhile is written,
//! with the state of its devices, and in that moment its disk can be given another layer.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::command::DISK_DEVICE;
use super::layers::Layer;
use super::machine::MONITOR;
use super::qmp::{Migration, Qmp, QmpError};
use crate::folder::Folder;
use crate::hold::Hold;

/// How long a machine may change its memory faster than it can be written. After that it stands still for it.
const LIVE_LIMIT: Duration = Duration::from_secs(20);

/// How long writing a memory may take in all.
const SAVE_LIMIT: Duration = Duration::from_secs(90);

/// How long the machine may stand still at the end, as far as QEMU can tell before.
const PAUSE_LIMIT: Duration = Duration::from_millis(300);

/// How much is written in a second at most, in bytes: as much as the disk takes.
const BANDWIDTH: u64 = 16 << 30;

/// A look at how far it has come costs QEMU next to nothing.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// The name under which QEMU is handed a memory's file.
const FILE_NAME: &str = "memory";

/// QEMU's name for the work of giving a disk fewer layers.
const FLATTENING: &str = "flatten";

/// Why a memory could not be saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error(transparent)]
    Monitor(#[from] QmpError),
    #[error("its memory can't be saved: {0}")]
    Failed(String),
    #[error("its memory is not saved after {} s", SAVE_LIMIT.as_secs())]
    Late,
    #[error("QEMU does not know of the machine's disk")]
    NoDisk,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Has a machine go on that stands still, unless that is called off: whatever becomes of the call that had it
/// stand still, it is not for ever.
pub(super) struct Halt {
    folder: Folder,
    hold: Option<Hold>,
}

impl Halt {
    pub(super) fn new(folder: &Folder, hold: &Hold) -> Self {
        Self { folder: folder.clone(), hold: Some(hold.clone()) }
    }

    /// It has gone on by now, or is to end.
    pub(super) fn call_off(mut self) {
        self.hold = None;
    }
}

impl Drop for Halt {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        let folder = self.folder.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = go_on(&folder).await {
                    tracing::warn!(instance = %folder.instance(), %error, "a machine that stands still can't be told to go on");
                }
                drop(hold);
            });
        }
    }
}

/// Has a machine go on, and ends the saving of its memory.
pub(super) async fn go_on(folder: &Folder) -> Result<(), QmpError> {
    let mut qmp = Qmp::connect(folder.path(), MONITOR).await?;
    qmp.execute("migrate_cancel", Value::Null).await?;
    let begun = Instant::now();
    // One that is being cancelled holds the machine for some moments more.
    while qmp.migration().await? == Migration::Pausing && begun.elapsed() < LIVE_LIMIT {
        sleep(LOOK_PAUSE).await;
    }
    qmp.go_on().await
}

/// Begins to write a machine's memory into a file, and returns when the machine stands still for the rest of it.
pub(super) async fn begin(qmp: &mut Qmp, file: &File) -> Result<(), SaveError> {
    stop_flattening(qmp).await?;
    let pausing = json!({"capabilities": [{"capability": "pause-before-switchover", "state": true}]});
    qmp.execute("migrate-set-capabilities", pausing).await?;
    let limits = json!({"max-bandwidth": BANDWIDTH, "downtime-limit": PAUSE_LIMIT.as_millis()});
    qmp.execute("migrate-set-parameters", limits).await?;
    qmp.hand_over(FILE_NAME, file).await?;
    qmp.execute("migrate", json!({"uri": format!("fd:{FILE_NAME}")})).await?;
    let begun = Instant::now();
    let mut stopped = false;
    loop {
        match qmp.migration().await? {
            Migration::Pausing => return Ok(()),
            Migration::Failed(reason) => return Err(SaveError::Failed(reason)),
            // Never without a pause: this is still the word of the one before.
            Migration::UnderWay | Migration::Completed => {}
        }
        if begun.elapsed() > LIVE_LIMIT && !stopped {
            qmp.execute("stop", Value::Null).await?;
            stopped = true;
        }
        if begun.elapsed() > SAVE_LIMIT {
            return Err(SaveError::Late);
        }
        sleep(LOOK_PAUSE).await;
    }
}

/// Whether QEMU leaves out of a memory what is a file of its own, when it saves or loads one.
pub(super) async fn leave_out_ram(qmp: &mut Qmp, leaves_out: bool) -> Result<(), QmpError> {
    let ignoring = json!({"capabilities": [{"capability": "x-ignore-shared", "state": leaves_out}]});
    qmp.execute("migrate-set-capabilities", ignoring).await.map(drop)
}

/// Has a machine stand still for ever, and writes what makes up its state besides the file that is its memory.
pub(super) async fn freeze(qmp: &mut Qmp, file: &File) -> Result<(), SaveError> {
    qmp.execute("stop", Value::Null).await?;
    leave_out_ram(qmp, true).await?;
    qmp.hand_over(FILE_NAME, file).await?;
    qmp.execute("migrate", json!({"uri": format!("fd:{FILE_NAME}")})).await?;
    written(qmp).await
}

/// Writes the rest of the memory of a machine that stands still, which goes on standing still.
pub(super) async fn finish(qmp: &mut Qmp) -> Result<(), SaveError> {
    qmp.execute("migrate-continue", json!({"state": "pre-switchover"})).await?;
    written(qmp).await
}

async fn written(qmp: &mut Qmp) -> Result<(), SaveError> {
    let begun = Instant::now();
    loop {
        match qmp.migration().await? {
            Migration::Completed => return Ok(()),
            Migration::Failed(reason) => return Err(SaveError::Failed(reason)),
            Migration::Pausing | Migration::UnderWay if begun.elapsed() > SAVE_LIMIT => return Err(SaveError::Late),
            Migration::Pausing | Migration::UnderWay => sleep(LOOK_PAUSE).await,
        }
    }
}

/// Has the machine write to this layer from now on, which lies over the one that it writes to. It does already:
/// nothing happens.
pub(super) async fn switch(qmp: &mut Qmp, layer: &Layer) -> Result<(), SaveError> {
    let (file, node) = qmp.disk(DISK_DEVICE).await?.ok_or(SaveError::NoDisk)?;
    if file == layer.file() {
        return Ok(());
    }
    // The longest name that QEMU takes for a node has 31 bytes; that of a layer is told by its beginning.
    let new = layer.file().chars().take(31).collect::<String>();
    let opened = json!({
        "driver": "qcow2",
        "node-name": new,
        "discard": "unmap",
        "file": {"driver": "file", "filename": layer.file()},
        "backing": null,
    });
    qmp.execute("blockdev-add", opened).await?;
    qmp.execute("blockdev-snapshot", json!({"node": node, "overlay": new})).await?;
    Ok(())
}

/// Begins to make what lies between the machine's disk and its image the disk's own. QEMU does that while the machine
/// runs, and broken off it has changed nothing that could be seen.
pub(super) async fn flatten(qmp: &mut Qmp, image: &Path) -> Result<(), SaveError> {
    let (_, node) = qmp.disk(DISK_DEVICE).await?.ok_or(SaveError::NoDisk)?;
    let stream = json!({"job-id": FLATTENING, "device": node, "base": image.to_string_lossy()});
    qmp.execute("block-stream", stream).await?;
    Ok(())
}

/// Breaks that off: as long as it goes on, the disk can be given no other layer.
async fn stop_flattening(qmp: &mut Qmp) -> Result<(), SaveError> {
    let begun = Instant::now();
    loop {
        let jobs = qmp.execute("query-block-jobs", Value::Null).await?;
        if !jobs.as_array().into_iter().flatten().any(|job| job["device"] == FLATTENING) {
            return Ok(());
        }
        if begun.elapsed() > LIVE_LIMIT {
            return Err(SaveError::Late);
        }
        // It may end by itself between the two.
        let _ = qmp.execute("block-job-cancel", json!({"device": FLATTENING, "force": true})).await;
        sleep(LOOK_PAUSE).await;
    }
}

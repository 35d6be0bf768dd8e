//! The folder of an instance of driver `local`. The file names are those of [`layout`]: the runtime knows
//! them too.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::Pid;
use vm_agent_schemas::layout;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::wire::Seed;

use crate::folder::{Files, Folder};

/// The seed shows whose a folder is, and the runtime in it locks a file.
pub(super) const FILES: Files = Files { claim: layout::SEED_FILE, lock: layout::LOCK_FILE, log: layout::LOG_FILE };

/// The folder of an instance, there or not.
pub(super) fn folder(root: &Path, instance: &InstanceName) -> Folder {
    Folder::new(root, instance, FILES)
}

/// Makes the folder, with its seed.
pub(super) fn make(folder: &Folder, seed: &Seed) -> io::Result<()> {
    folder.make(&serde_json::to_vec_pretty(seed)?)
}

/// Writes the seed, unless it is there already.
pub(super) fn write_seed(folder: &Folder, seed: &Seed) -> io::Result<()> {
    folder.write(layout::SEED_FILE, &serde_json::to_vec_pretty(seed)?)
}

/// Whether a runtime is up: it holds the lock, has said which process it is, and has taken back that it
/// was stopped.
pub(super) fn is_up(folder: &Folder) -> io::Result<bool> {
    Ok(folder.is_held()? && pid(folder).is_some() && !folder.is_marked_stopped())
}

/// The process id that the holder of the lock has written. Means nothing unless the lock is held.
pub(super) fn pid(folder: &Folder) -> Option<Pid> {
    let text = fs::read_to_string(folder.file(layout::LOCK_FILE)).ok()?;
    // Neither zero nor less, which mean whole groups to the kernel, nor init.
    text.trim().parse().ok().filter(|raw| *raw > 1).and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::an_order;

    #[test]
    fn a_runtime_is_up_once_it_has_said_which_process_it_is() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(root.path(), &"web".parse().unwrap());
        make(&folder, &an_order("web").seed).unwrap();
        let lock = fs::File::create(folder.file(layout::LOCK_FILE)).unwrap();
        lock.lock().unwrap();
        folder.unmark_stopped().unwrap();
        assert!(!is_up(&folder).unwrap());
        fs::write(folder.file(layout::LOCK_FILE), "4711").unwrap();
        assert!(is_up(&folder).unwrap());
        folder.mark_stopped().unwrap();
        assert!(!is_up(&folder).unwrap());
    }
}

//! The folder in which warm starts are kept. Everything here is synchronous; who calls it holds what it is about.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vm_agent_schemas::ids::Digest;

use super::super::machine::SEED_DISK;
use super::super::snapshots::{GONE, MEMORY, RAM, Snapshot, folders};
use super::model;
use super::recipe::{Recipe, Verdict, age, verdict};
use crate::folder::{at, remove_tree, sync_dir};

/// What it is made for.
const RECIPE_FILE: &str = "recipe.json";
/// Written at each use.
const USED_FILE: &str = "used";

/// How long a key is, in hexadecimal digits.
const KEY_LENGTH: usize = 64;

/// Most warm starts that are kept.
const KEPT_MAX: usize = 4;
/// Most bytes that they may take together, as long as there is more than one.
const BYTES_MAX: u64 = 8 << 30;

/// A warm start that is kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub(super) key: Digest,
    /// What it takes on the disk.
    bytes: u64,
    used: SystemTime,
    made_at: Timestamp,
    pub(super) recipe: Recipe,
}

/// What is remembered of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remembered {
    made_at: Timestamp,
    #[serde(flatten)]
    recipe: Recipe,
}

impl Kept {
    /// What becomes of it, where now it would be made under this key.
    pub(super) fn verdict(&self, key: &Digest, now: Timestamp) -> Verdict {
        // A use to come is one of now, by a clock that was set back.
        let unused = SystemTime::now().duration_since(self.used).unwrap_or(Duration::ZERO);
        verdict(age(self.made_at, now), unused, self.key == *key)
    }
}

/// Notes that a warm start is used. Says whether it is there.
pub(super) fn mark_used(place: &Path) -> io::Result<bool> {
    if !place.exists() {
        return Ok(false);
    }
    let used = place.join(USED_FILE);
    fs::write(&used, []).map_err(at(&used))?;
    Ok(true)
}

/// Everything that is kept. What can't be read is no warm start: it is deleted.
pub(super) fn list(root: &Path) -> io::Result<Vec<Kept>> {
    let mut all = Vec::new();
    for (place, name) in folders(root)? {
        if name.len() != KEY_LENGTH || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            continue;
        }
        let key = Digest::from(name);
        match read(&place, &key) {
            Ok(kept) => all.push(kept),
            Err(error) => {
                tracing::warn!(%error, "a warm start can't be read, and is deleted");
                drop_kept(root, &key)?;
            }
        }
    }
    Ok(all)
}

fn read(place: &Path, key: &Digest) -> io::Result<Kept> {
    Snapshot::read(place)?;
    let path = place.join(RECIPE_FILE);
    let remembered = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Remembered>(&bytes)?));
    let Remembered { made_at, recipe } = remembered.map_err(at(&path))?;
    let mut bytes = 0;
    for entry in fs::read_dir(place).map_err(at(place))? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    let used = fs::metadata(place.join(USED_FILE)).or_else(|_| fs::metadata(&path))?.modified()?;
    Ok(Kept { key: key.clone(), bytes, used, made_at, recipe })
}

/// What is too much: those that were used longest ago, beyond a number and a size. The one that was made just now
/// stays.
pub(super) fn surplus(all: &[Kept], fresh: &Digest) -> Vec<Digest> {
    let mut by_use: Vec<_> = all.iter().collect();
    by_use.sort_by_key(|kept| (kept.key != *fresh, Reverse(kept.used)));
    let mut bytes = 0_u64;
    let mut too_much = Vec::new();
    for (count, kept) in by_use.into_iter().enumerate() {
        bytes = bytes.saturating_add(kept.bytes);
        if count > 0 && (count >= KEPT_MAX || bytes > BYTES_MAX) {
            too_much.push(kept.key.clone());
        }
    }
    too_much
}

/// Keeps what was made in a folder, in place of any that is there under its key. It appears whole.
pub(super) fn keep(root: &Path, key: &Digest, made: &Path, snapshot: &Snapshot, recipe: Recipe) -> io::Result<()> {
    let wanted = [snapshot.disk.file(), SEED_DISK, MEMORY, RAM];
    for entry in fs::read_dir(made).map_err(at(made))? {
        let entry = entry?;
        if entry.file_name().to_str().is_none_or(|name| !wanted.contains(&name)) {
            remove_tree_or_file(&entry.path())?;
        }
    }
    fs::set_permissions(made.join(RAM), fs::Permissions::from_mode(0o600)).map_err(at(made))?;
    let remembered = Remembered { made_at: Timestamp::now(), recipe };
    fs::write(made.join(RECIPE_FILE), serde_json::to_vec_pretty(&remembered)?).map_err(at(made))?;
    drop_kept(root, key)?;
    snapshot.publish(made, &root.join(key.as_str()))
}

/// Deletes a warm start, if it is there. What began as it goes on: it has names of its own for all it needs.
pub(super) fn drop_kept(root: &Path, key: &Digest) -> io::Result<()> {
    let (place, gone) =
        (root.join(key.as_str()), root.join(format!("{GONE}{}.{}", model("warm", key), Uuid::new_v4().simple())));
    match fs::rename(&place, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(at(&place))?,
    }
    sync_dir(root)?;
    remove_tree(&gone)
}

fn remove_tree_or_file(path: &Path) -> io::Result<()> {
    if path.is_dir() { remove_tree(path) } else { fs::remove_file(path).map_err(at(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::private_dirs;
    use crate::qemu::layers::Layer;
    use vm_agent_schemas::fleet::Provision;
    use vm_agent_schemas::observe::Sizes;
    use vm_agent_schemas::units::ByteSize;

    fn recipe() -> Recipe {
        let sizes = Sizes { cpus: 1, memory: ByteSize::from_gib(1), disk: ByteSize::from_gib(5) };
        Recipe { image: "debian".to_owned(), sizes, provision: Provision::default() }
    }

    fn key(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn kept(name: &str, used_secs: u64, bytes: u64) -> Kept {
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(used_secs);
        Kept { key: key(name), bytes, used, made_at: Timestamp::UNIX_EPOCH, recipe: recipe() }
    }

    /// Makes one as a machine that was saved leaves it.
    fn make(root: &Path, name: &str) {
        let made = root.join("making");
        private_dirs(&made).unwrap();
        for file in ["disk.qcow2", SEED_DISK, MEMORY, RAM, "machine.json", "qemu.log", "stopped"] {
            fs::write(made.join(file), file).unwrap();
        }
        let snapshot = Snapshot { disk: Layer::first(), sizes: recipe().sizes, memory: None };
        keep(root, &key(name), &made, &snapshot, recipe()).unwrap();
    }

    #[test]
    fn what_was_used_longest_ago_is_too_much_beyond_a_number() {
        let all = [kept("a", 5, 1), kept("b", 1, 1), kept("c", 4, 1), kept("d", 3, 1), kept("e", 2, 1)];
        assert_eq!(surplus(&all[..4], &key("a")), []);
        assert_eq!(surplus(&all, &key("a")), [key("b")]);
        assert_eq!(surplus(&all, &key("b")), [key("e")], "the one of now stays, however it looks");
    }

    #[test]
    fn what_was_used_longest_ago_is_too_much_beyond_a_size_but_never_the_only_one() {
        let all = [kept("a", 3, BYTES_MAX / 2), kept("b", 2, BYTES_MAX / 2), kept("c", 1, 1)];
        assert_eq!(surplus(&all, &key("a")), [key("c")]);
        assert_eq!(surplus(&[kept("a", 1, BYTES_MAX * 2)], &key("a")), []);
        assert_eq!(surplus(&[kept("a", 1, BYTES_MAX * 2), kept("b", 2, 1)], &key("a")), [key("b")]);
    }

    #[test]
    fn it_appears_whole_with_what_a_copy_needs_and_nothing_else_and_takes_the_place_of_another() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(list(&root.path().join("none")).unwrap(), []);
        assert!(!mark_used(&root.path().join(key("a").as_str())).unwrap());
        for _ in 0..2 {
            make(root.path(), "a");
        }
        let place = root.path().join(key("a").as_str());
        let mut names: Vec<_> =
            fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["disk.qcow2", "memory", "ram", "recipe.json", "seed.img", "snapshot.json"]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing is left beside it");
        let all = list(root.path()).unwrap();
        assert_eq!((all.len(), &all[0].key, &all[0].recipe), (1, &key("a"), &recipe()));
        assert!(all[0].bytes > 0);
        assert!(mark_used(&place).unwrap());
        assert!(list(root.path()).unwrap()[0].used >= all[0].used);
        drop_kept(root.path(), &key("a")).unwrap();
        drop_kept(root.path(), &key("a")).unwrap();
        assert_eq!(list(root.path()).unwrap(), []);
    }

    #[test]
    fn what_can_not_be_read_is_deleted_and_hides_no_other() {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), "a");
        make(root.path(), "b");
        fs::write(root.path().join(key("a").as_str()).join("snapshot.json"), "{").unwrap();
        let all = list(root.path()).unwrap();
        assert_eq!(all.iter().map(|kept| &kept.key).collect::<Vec<_>>(), [&key("b")]);
        assert!(!root.path().join(key("a").as_str()).exists());
    }
}

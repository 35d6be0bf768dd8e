//! Messages on the disk, in the order in which they came: a file for each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_agent_schemas::ids::MessageId;

use crate::folder::{FolderError, create_dir, failed, read_if_there, remove, write};

/// A folder of messages.
#[derive(Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
    /// What is there, by its place in the order.
    index: BTreeMap<u64, MessageId>,
}

impl Shelf {
    /// What earlier starts left in a folder; made where it is missing.
    pub(super) fn open(folder: PathBuf) -> Result<Self, FolderError> {
        create_dir(&folder)?;
        let mut index = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let path = entry.map_err(failed("read", &folder))?.path();
            match place(&path) {
                Some((place, message)) => drop(index.insert(place, message)),
                // A crash has left it while it was written.
                None => remove(&path)?,
            }
        }
        Ok(Self { folder, index })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> impl DoubleEndedIterator<Item = MessageId> {
        self.index.values().copied()
    }

    pub(super) fn holds(&self, message: MessageId) -> bool {
        self.index.values().any(|it| *it == message)
    }

    /// Keeps a message behind all others; it is on the disk when this returns.
    pub(super) fn put(&mut self, message: MessageId, content: &impl Serialize) -> Result<(), FolderError> {
        let place = self.index.last_key_value().map_or(0, |(last, _)| last + 1);
        let text = serde_json::to_vec(content).expect("messages are plain data with texts as keys");
        write(&self.path(place, message), &text)?;
        self.index.insert(place, message);
        Ok(())
    }

    /// Reads a message.
    pub(super) fn get<T: DeserializeOwned>(&self, message: MessageId) -> Result<Option<T>, FolderError> {
        let Some(place) = self.place(message) else { return Ok(None) };
        let path = self.path(place, message);
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|_| FolderError::Damaged { path, expected: "message" })
    }

    /// Forgets a message.
    pub(super) fn remove(&mut self, message: MessageId) -> Result<(), FolderError> {
        let Some(place) = self.place(message) else { return Ok(()) };
        self.index.remove(&place);
        remove(&self.path(place, message))
    }

    fn place(&self, message: MessageId) -> Option<u64> {
        self.index.iter().find(|(_, it)| **it == message).map(|(place, _)| *place)
    }

    fn path(&self, place: u64, message: MessageId) -> PathBuf {
        self.folder.join(format!("{place:016x}-{message}.json"))
    }
}

#[cfg(test)]
impl Shelf {
    /// Counts a message that is not there.
    pub(super) fn pretend(&mut self, message: MessageId) {
        let place = self.index.last_key_value().map_or(0, |(last, _)| last + 1);
        self.index.insert(place, message);
    }
}

/// What a file's name says: its place, and the message.
fn place(path: &Path) -> Option<(u64, MessageId)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
    let (place, message) = name.split_once('-')?;
    Some((u64::from_str_radix(place, 16).ok()?, message.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_in_order_through_a_restart() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("inbox");
        let ids = [(); 4].map(|()| MessageId::generate());
        let mut shelf = Shelf::open(folder.clone()).unwrap();
        for (number, id) in ids.iter().rev().enumerate() {
            shelf.put(*id, &number).unwrap();
        }
        shelf.remove(ids[2]).unwrap();
        fs::write(folder.join("0000000000000009-torn.json.new"), "[").unwrap();
        let shelf = Shelf::open(folder.clone()).unwrap();
        assert_eq!(shelf.all().collect::<Vec<_>>(), [ids[3], ids[1], ids[0]]);
        assert_eq!(shelf.get::<usize>(ids[1]).unwrap(), Some(2));
        assert_eq!(shelf.get::<usize>(ids[2]).unwrap(), None);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 3);
    }
}

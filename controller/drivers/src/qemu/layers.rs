//! The layers of a machine's disk: files of its folder, each over another and the last over the image. A layer
//! that another lies over is never written again, so machines may share it: each has it under a name of its own
//! (a hard link), and what nobody has any more is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::disk;
use crate::folder::at;
use crate::hold::blocking;

/// Start of the name of every layer.
const PREFIX: &str = "disk";

/// Most layers of a disk. Each costs memory and a look at every read of what was never written.
pub(super) const LAYERS_MAX: usize = 16;

/// A layer, by the name of its file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Layer(String);

impl Layer {
    /// The first of a machine that is made from an image.
    pub(super) fn first() -> Self {
        Self(format!("{PREFIX}.qcow2"))
    }

    /// One with a name that no other has, in whatever folder.
    pub(super) fn new() -> Self {
        Self(format!("{PREFIX}-{}.qcow2", Uuid::new_v4().simple()))
    }

    /// The name of its file.
    pub(super) fn file(&self) -> &str {
        &self.0
    }
}

/// Makes a layer over another of the same folder, whether or not a machine writes to that one; as large as that
/// and at least as large as asked. It appears whole, in place of any that is there.
pub(super) async fn lay(img: &Path, folder: &Path, over: &Layer, layer: &Layer, size: u64) -> io::Result<()> {
    let below = disk::info(img, &folder.join(over.file())).await.map_err(io::Error::other)?.virtual_size;
    let new = folder.join("disk.new");
    disk::overlay_unseen(img, over.file(), &new, size.max(below)).await.map_err(io::Error::other)?;
    let to = folder.join(layer.file());
    blocking(move || {
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &to)
    })
    .await
}

/// The layers from this one down, without the image.
pub(super) fn chain(folder: &Path, top: &Layer) -> io::Result<Vec<Layer>> {
    let mut chain = vec![top.clone()];
    while let Some(layer) = chain.last()
        && let Some(below) = below(&folder.join(layer.file()))?
        && !chain.contains(&below)
    {
        chain.push(below);
    }
    Ok(chain)
}

/// Gives another folder a layer with all that it lies over.
pub(super) fn share(folder: &Path, top: &Layer, with: &Path) -> io::Result<()> {
    for layer in chain(folder, top)? {
        let (from, to) = (folder.join(layer.file()), with.join(layer.file()));
        fs::hard_link(&from, &to).map_err(at(&to))?;
    }
    Ok(())
}

/// Deletes the layers of a folder that none of these rests on.
pub(super) fn sweep<'a>(folder: &Path, used: impl IntoIterator<Item = &'a Layer>) -> io::Result<()> {
    let mut lies = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with(PREFIX)
            && name.ends_with(".qcow2")
        {
            lies.insert(Layer(name), below(&entry.path())?);
        }
    }
    let mut kept = BTreeSet::new();
    for layer in used {
        let mut next = Some(layer);
        while let Some(layer) = next.filter(|layer| kept.insert((*layer).clone())) {
            next = lies.get(layer).and_then(Option::as_ref);
        }
    }
    for layer in lies.keys().filter(|layer| !kept.contains(*layer)) {
        let path = folder.join(layer.file());
        fs::remove_file(&path).map_err(at(&path))?;
    }
    Ok(())
}

/// The layer that a file lies over; nothing where that is an image, which lies in another folder.
fn below(path: &Path) -> io::Result<Option<Layer>> {
    /// Longest name of a layer below that the format has, in bytes.
    const NAME_MAX: u32 = 1023;
    let read = || {
        let mut file = File::open(path)?;
        // A qcow2 file begins with its magic, its version, and where the name of what it lies over is: how far
        // from the beginning, and how long.
        let (mut magic, mut offset, mut length) = ([0; 8], [0; 8], [0; 4]);
        for part in [&mut magic[..], &mut offset, &mut length] {
            file.read_exact(part)?;
        }
        let (offset, length) = (u64::from_be_bytes(offset), u32::from_be_bytes(length));
        if !magic.starts_with(b"QFI\xfb") || length > NAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no qcow2 file"));
        }
        if offset == 0 {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut name = vec![0; length as usize];
        file.read_exact(&mut name)?;
        let name = String::from_utf8(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((!name.contains('/')).then_some(Layer(name)))
    };
    read().map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Programs;
    use crate::tool;
    use std::path::PathBuf;

    const MIB: u64 = 1024 * 1024;

    /// A folder with a first layer over an image.
    async fn a_folder(root: &Path) -> (PathBuf, PathBuf) {
        let img = Programs::find().unwrap_or_else(|missing| panic!("{missing}")).img;
        let (image, folder) = (root.join("image.qcow2"), root.join("web"));
        fs::create_dir(&folder).unwrap();
        tool::run(&img, ["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "8M"]).await.unwrap();
        disk::overlay(&img, &image, &folder.join(Layer::first().file()), MIB).await.unwrap();
        (img, folder)
    }

    fn names(folder: &Path) -> BTreeSet<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_chain_ends_at_the_image_and_can_be_shared() {
        let root = tempfile::tempdir().unwrap();
        let (img, folder) = a_folder(root.path()).await;
        let (first, second, third) = (Layer::first(), Layer::new(), Layer::new());
        lay(&img, &folder, &first, &second, 16 * MIB).await.unwrap();
        lay(&img, &folder, &second, &third, MIB).await.unwrap();
        assert_eq!(chain(&folder, &third).unwrap(), [third.clone(), second.clone(), first]);
        let found = disk::info(&img, &folder.join(third.file())).await.unwrap();
        assert_eq!(found.virtual_size, 16 * MIB, "no smaller than what it lies over");

        let other = root.path().join("db");
        fs::create_dir(&other).unwrap();
        share(&folder, &second, &other).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(chain(&other, &second).unwrap().len(), 2, "what is shared outlives its first folder");
        tool::run(&img, ["check", other.join(second.file()).to_str().unwrap()]).await.unwrap();
    }

    #[tokio::test]
    async fn a_sweep_deletes_what_nothing_rests_on() {
        let root = tempfile::tempdir().unwrap();
        let (img, folder) = a_folder(root.path()).await;
        let (first, kept, dead, top) = (Layer::first(), Layer::new(), Layer::new(), Layer::new());
        for (over, layer) in [(&first, &kept), (&kept, &dead), (&kept, &top)] {
            lay(&img, &folder, over, layer, MIB).await.unwrap();
        }
        fs::write(folder.join("disk.new"), "half of something").unwrap();
        sweep(&folder, [&top]).unwrap();
        let left: BTreeSet<_> = [first.file(), kept.file(), top.file(), "disk.new"].map(str::to_owned).into();
        assert_eq!(names(&folder), left);
        fs::write(folder.join(dead.file()), "no layer").unwrap();
        let error = sweep(&folder, [&top]).unwrap_err().to_string();
        assert!(error.contains(dead.file()), "{error}");
        assert!(folder.join(first.file()).exists(), "where one can't be read nothing is deleted");
    }
}

//! Images that are files. Multipass keeps none of them: each instance has a copy of the file, and is known by the digest
//! of what is in it.
//!
//! To find out how large such an image is, 1.16.3 looks at the disk of *any* instance with that digest: the first in a
//! hash table over the names of all (`DefaultVMImageVault::minimum_image_size_for` in
//! `src/daemon/default_vm_image_vault.cpp`, called by `Daemon::create_vm`). Mostly that is the new one, which was put in
//! last. But where its name shares a bucket of the table with another, it stands behind those that came since; and the
//! disk of one that runs can't be looked at, because its QEMU has it locked. In a fleet of ten this happens to every
//! fourth, and happens to the same ones each time they are tried: neither time nor a new daemon helps.
//!
//! A copy that has a digest of its own is looked at itself. To images by name or address this does not happen
//! (`prepared_image_records` has those).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::InstanceName;

use super::{Held, Multipass};
use crate::folder::{at, private_dirs};

/// How addresses of files begin.
const FILE: &str = "file://";
/// What is appended to a copy: one sector, which lies behind all that the image says it has.
const BLOCK: usize = 512;

/// A copy of an image that has a digest of its own. It is gone when this is dropped: the daemon has one more by then.
#[derive(Debug)]
pub(super) struct OwnImage {
    folder: PathBuf,
    file: PathBuf,
}

impl OwnImage {
    /// Copies an image into a folder, of which nothing else is left.
    fn copy(image: &Path, folder: PathBuf) -> io::Result<Self> {
        let name = image.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        // One that is packed would not be unpacked with something behind it.
        if image.extension().is_some_and(|kind| kind == "xz") {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it is packed"));
        }
        sweep(&folder)?;
        private_dirs(&folder)?;
        let own = Self { file: folder.join(name), folder };
        fs::copy(image, &own.file).map_err(at(image))?;
        let mut block = Nonce::generate().as_str().as_bytes().to_vec();
        block.resize(BLOCK, 0);
        let mut file = OpenOptions::new().append(true).open(&own.file).map_err(at(&own.file))?;
        file.write_all(&block).map_err(at(&own.file))?;
        Ok(own)
    }

    /// How a launch names it.
    pub(super) fn address(&self) -> String {
        format!("{FILE}{}", self.file.display())
    }
}

impl Drop for OwnImage {
    fn drop(&mut self) {
        if let Err(error) = sweep(&self.folder) {
            tracing::warn!(%error, "a copy of an image is left behind");
        }
    }
}

/// Removes a folder and what is in it.
fn sweep(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(folder)(error)),
        _ => Ok(()),
    }
}

impl Multipass {
    /// A copy for an instance alone of an image that is a file.
    pub(super) async fn own_image(&self, held: &Held<'_>, image: Option<&str>) -> io::Result<OwnImage> {
        let Some(file) = image.and_then(|image| image.strip_prefix(FILE)).map(PathBuf::from) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        };
        let folder = self.copies(held.act.1);
        held.hold.blocking(move || OwnImage::copy(&file, folder)).await
    }

    /// Removes what a controller that died may have left of that.
    pub(super) async fn sweep_copies(&self, held: &Held<'_>) -> io::Result<()> {
        let folder = self.copies(held.act.1);
        held.hold.blocking(move || sweep(&folder)).await
    }

    fn copies(&self, instance: &InstanceName) -> PathBuf {
        self.records.root().join("images").join(instance.as_str())
    }
}

/// What is the matter, and what a person can do, where a launch failed with these words because a disk is locked.
pub(super) fn locked(said: &str) -> String {
    let other = said.split_once("/instances/").and_then(|(_, rest)| Some(rest.split_once('/')?.0));
    let (other, stop) = match other {
        Some(name) => (format!("`{name}`"), format!("stop `{name}` until this one is made")),
        None => ("another instance".to_owned(), "stop that until this one is made".to_owned()),
    };
    format!(
        "to find out how large its image is, Multipass looks at the disk of {other}, which was made from the same file \
         and runs: {stop}, give this agent another name, or give the image by its name or address instead of as a file"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_differs_from_its_image_and_from_other_copies_and_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let (image, folder) = (place.path().join("debian.img"), place.path().join("images/web"));
        fs::write(&image, b"image").unwrap();
        let content = || {
            let own = OwnImage::copy(&image, folder.clone()).unwrap();
            assert_eq!(own.address(), format!("file://{}/debian.img", folder.display()));
            fs::read(folder.join("debian.img")).unwrap()
        };
        let (one, two) = (content(), content());
        assert!(one.starts_with(b"image") && two.starts_with(b"image"));
        assert_eq!((one.len(), two.len()), (5 + BLOCK, 5 + BLOCK));
        assert_ne!(one, two);
        assert!(!folder.exists());
        let packed = place.path().join("debian.img.xz");
        fs::write(&packed, b"").unwrap();
        assert_eq!(OwnImage::copy(&packed, folder.clone()).unwrap_err().to_string(), "it is packed");
        assert!(!folder.exists());
    }

    #[test]
    fn who_has_the_disk_locked_is_named_with_what_to_do() {
        let said = "Cannot get image info: qemu-img failed (Process returned exit code: 1) with output:; qemu-img: Could \
                    not open '/var/vault/instances/one-db/debian.img': Failed to get shared \"write\" lock";
        insta::assert_snapshot!(locked(said), @"to find out how large its image is, Multipass looks at the disk of `one-db`, which was made from the same file and runs: stop `one-db` until this one is made, give this agent another name, or give the image by its name or address instead of as a file");
        assert!(locked("nothing").contains("the disk of another instance, which"));
    }
}

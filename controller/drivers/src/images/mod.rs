//! Images: what machines' disks lie over. They are kept in one folder, each under the digest of what it was
//! made from, and are never changed: many machines share one.
//!
//! ```text
//! <images>/<digest>/disk.qcow2      read-only
//!                   kernel, initrd  the kernel, where QEMU is to load it itself
//!                   image.json      what it is: written last
//! <images>/<digest>.lock            locked while somebody makes it, so that it is made once
//! <images>/<digest>.part            a download that is not over
//! <images>/.making-<digest>.*       being made; renamed when whole
//! <images>/lock                     shared by who uses an image, exclusive for who deletes one
//! ```

mod build;
mod debian;
mod download;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vm_agent_schemas::fleet::ImageReference;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::InstanceName;

use crate::folder::{at, private_dirs, remove_tree};
use crate::hold::{Backoff, blocking};
use crate::qemu::disk;
use crate::tool::{self, ToolError};

pub use self::build::{Recipe, RecipeFile};
pub use self::debian::debian;
pub use self::download::DownloadError;

const DISK: &str = "disk.qcow2";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
const IMAGE_FILE: &str = "image.json";
const LOCK: &str = "lock";

/// The store of images of this host's machines.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
    /// Where machines lie that may use them.
    machines: PathBuf,
    img: PathBuf,
    recipe: Arc<Recipe>,
}

/// What happens while an image is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Somebody else makes it; this waits.
    Waits,
    /// So much of it is here, of so much where that is known.
    Downloaded {
        /// Bytes that are here.
        bytes: u64,
        /// Bytes in all.
        of: Option<u64>,
    },
    /// What was downloaded is compared with its checksum.
    Checks,
    /// It is being brought into the form that machines use.
    Converts,
    /// A word of the recipe that builds it.
    Builds(&'a str),
}

/// Hears what happens.
pub type OnProgress<'a> = dyn Fn(Progress<'_>) + Send + Sync + 'a;

/// For who wants to hear nothing.
pub fn ignore_progress(_: Progress<'_>) {}

/// What an image is, as it is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    /// What it was made from: of a recipe's files, of a download's or of a file's content.
    pub digest: Digest,
    /// How it was asked for.
    pub source: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// What a machine sees of its disk, in bytes.
    pub disk_size: u64,
    /// What it takes on this host, in bytes.
    pub bytes: u64,
}

/// An image, and the right to use it: it is not deleted meanwhile.
#[derive(Debug, Clone)]
pub struct Image {
    folder: PathBuf,
    info: ImageInfo,
    _used: Arc<File>,
}

impl Image {
    /// What it was made from.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.info.digest
    }

    /// What it is.
    #[must_use]
    pub const fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// Its kernel and its initial memory disk, where QEMU is to load them itself.
    #[must_use]
    pub fn kernel(&self) -> Option<(PathBuf, PathBuf)> {
        let (kernel, initrd) = (self.folder.join(KERNEL), self.folder.join(INITRD));
        (kernel.exists() && initrd.exists()).then_some((kernel, initrd))
    }
}

/// Why an image can't be had, or not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is not here.
    #[error("image {} is not here any more; get it again with `vm-agent image pull` or `vm-agent image build`", digest.short())]
    Missing {
        /// Its digest.
        digest: Digest,
    },
    /// No image is called so.
    #[error("there is no image `{name}` here; `vm-agent image ls` shows those that are")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// More than one image begins so.
    #[error("more than one image is called `{name}`; write more of its digest")]
    Ambiguous {
        /// What was asked for.
        name: String,
    },
    /// Machines have their disks over it.
    #[error("image {} is in use by {}; destroy them first", digest.short(), names(.by))]
    InUse {
        /// Its digest.
        digest: Digest,
        /// The instances.
        by: Vec<InstanceName>,
    },
    /// Somebody takes an image into use right now.
    #[error("an image is just being taken into use; try again in a moment")]
    Busy,
    /// It has its content from another file, which could be any file of this host.
    #[error("image `{image}` lies over another file, `{other}`; merge it first: `qemu-img convert -O qcow2 OLD NEW`")]
    LiesOver {
        /// How it was asked for.
        image: String,
        /// The other file.
        other: String,
    },
    /// It could not be downloaded.
    #[error(transparent)]
    Download(Box<DownloadError>),
    /// It could not be built or brought into form.
    #[error("image `{image}` could not be made")]
    Made {
        /// How it was asked for.
        image: String,
        /// Why.
        source: ToolError,
    },
    /// The recipe did not leave behind what it should.
    #[error("the recipe of image `{image}` left no {file} behind")]
    Incomplete {
        /// How it was asked for.
        image: String,
        /// What is missing.
        file: &'static str,
    },
    /// The disk of this host fails.
    #[error("the store of images can't be used")]
    Io(#[from] io::Error),
}

impl From<DownloadError> for ImageError {
    fn from(error: DownloadError) -> Self {
        Self::Download(Box::new(error))
    }
}

fn names(instances: &[InstanceName]) -> String {
    instances.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl Images {
    /// The store in this folder, for the machines in that one. `img` is `qemu-img`.
    #[must_use]
    pub fn new(root: PathBuf, machines: PathBuf, img: PathBuf, recipe: Recipe) -> Self {
        let root = std::path::absolute(&root).unwrap_or(root);
        Self { root, machines, img, recipe: Arc::new(recipe) }
    }

    /// All images, by when they were made.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub async fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let root = self.root.clone();
        Ok(blocking(move || list(&root)).await?)
    }

    /// The machines that use each image.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn users(&self) -> Result<BTreeMap<Digest, Vec<InstanceName>>, ImageError> {
        let machines = self.machines.clone();
        Ok(blocking(move || users(&machines)).await?)
    }

    /// An image that is here.
    ///
    /// # Errors
    /// When it is not.
    pub async fn get(&self, digest: &Digest) -> Result<Image, ImageError> {
        let (root, digest) = (self.root.clone(), digest.clone());
        blocking(move || get(&root, &digest)?.ok_or(ImageError::Missing { digest })).await
    }

    /// An image, if it is here.
    ///
    /// # Errors
    /// When it is not, or can't be told.
    pub async fn at_hand(&self, reference: &ImageReference) -> Result<Image, ImageError> {
        self.get(&self.digest(reference).await?).await
    }

    /// An image: the one that is here, or else it is downloaded, copied or built.
    ///
    /// # Errors
    /// When it can't be had, and why.
    pub async fn obtain(&self, reference: &ImageReference, on: &OnProgress<'_>) -> Result<Image, ImageError> {
        let digest = self.digest(reference).await?;
        if let Ok(image) = self.get(&digest).await {
            return Ok(image);
        }
        let _making = self.making(&digest, on).await?;
        // Who waited finds it made.
        match self.get(&digest).await {
            Err(ImageError::Missing { .. }) => {}
            found => return found,
        }
        self.make(reference, &digest, on).await?;
        self.get(&digest).await
    }

    /// Has an image made anew, whether or not it is here. One that is in use stays.
    ///
    /// # Errors
    /// When it can't be had, and why.
    pub async fn obtain_anew(&self, reference: &ImageReference, on: &OnProgress<'_>) -> Result<Image, ImageError> {
        let digest = self.digest(reference).await?;
        match self.remove_digest(&digest).await {
            Ok(()) | Err(ImageError::Missing { .. } | ImageError::InUse { .. }) => {}
            Err(error) => return Err(error),
        }
        self.obtain(reference, on).await
    }

    /// Deletes an image, by its source or the beginning of its digest, and says which.
    ///
    /// # Errors
    /// When it is in use, is not here, or can't be deleted.
    pub async fn remove(&self, name: &str) -> Result<ImageInfo, ImageError> {
        let all = self.list().await?;
        let called: Vec<_> =
            all.into_iter().filter(|it| it.source == name || it.digest.as_str().starts_with(name)).collect();
        let [image] = called.as_slice() else {
            let name = name.to_owned();
            return Err(if called.is_empty() { ImageError::Unknown { name } } else { ImageError::Ambiguous { name } });
        };
        self.remove_digest(&image.digest).await?;
        Ok(image.clone())
    }

    async fn remove_digest(&self, digest: &Digest) -> Result<(), ImageError> {
        let (root, machines, digest) = (self.root.clone(), self.machines.clone(), digest.clone());
        blocking(move || {
            if !root.join(digest.as_str()).exists() {
                return Err(ImageError::Missing { digest });
            }
            let lock = File::create(root.join(LOCK))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(ImageError::Busy),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            if let Some(by) = users(&machines)?.remove(&digest) {
                return Err(ImageError::InUse { digest, by });
            }
            let gone = root.join(format!(".gone-{digest}"));
            fs::rename(root.join(digest.as_str()), &gone)?;
            Ok(remove_tree(&gone)?)
        })
        .await
    }

    /// What an image is kept under.
    async fn digest(&self, reference: &ImageReference) -> Result<Digest, ImageError> {
        match reference {
            ImageReference::Recipe => Ok(self.recipe.digest()),
            ImageReference::CloudRecipe => Ok(self.recipe.with_cloud_init().digest()),
            ImageReference::Download { sha256, .. } => Ok(sha256.clone()),
            ImageReference::File(path) => {
                let path = path.clone();
                Ok(blocking(move || download::digest_of(&path).map_err(at(&path))).await?)
            }
        }
    }

    /// Waits until nobody else makes the image.
    async fn making(&self, digest: &Digest, on: &OnProgress<'_>) -> Result<File, ImageError> {
        let (root, path) = (self.root.clone(), self.root.join(format!("{digest}.lock")));
        let lock = blocking(move || private_dirs(&root).and_then(|()| File::create(&path).map_err(at(&path)))).await?;
        let (mut backoff, mut told) = (Backoff::new(), false);
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        on(Progress::Waits);
                    }
                    backoff.pause().await;
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
    }

    /// Makes an image, whole or not at all.
    async fn make(&self, reference: &ImageReference, digest: &Digest, on: &OnProgress<'_>) -> Result<(), ImageError> {
        let name = reference.to_string();
        let (root, stem) = (self.root.clone(), format!(".making-{digest}."));
        let scratch = blocking(move || {
            // What dead makers left: the lock is ours.
            for left in fs::read_dir(&root)?.flatten() {
                if left.file_name().to_string_lossy().starts_with(&stem) {
                    remove_tree(&left.path())?;
                }
            }
            tempfile::Builder::new().prefix(&stem).tempdir_in(&root)
        })
        .await?;
        let disk = scratch.path().join(DISK);
        match reference {
            ImageReference::Recipe => {
                self.recipe.build(scratch.path(), on).await.map_err(|source| made(&name, source))?;
            }
            ImageReference::CloudRecipe => {
                let recipe = self.recipe.with_cloud_init();
                recipe.build(scratch.path(), on).await.map_err(|source| made(&name, source))?;
            }
            ImageReference::File(path) => self.import(&name, path, &disk, on).await?,
            ImageReference::Download { url, sha256 } => {
                let part = self.root.join(format!("{digest}.part"));
                download::download(url, sha256, &part, on).await?;
                self.import(&name, &part, &disk, on).await?;
                fs::remove_file(&part).map_err(at(&part))?;
            }
        }
        if !disk.exists() {
            return Err(ImageError::Incomplete { image: name, file: "disk" });
        }
        let disk_size = disk::info(&self.img, &disk).await.map_err(|source| made(&name, source))?.virtual_size;
        let (root, digest) = (self.root.clone(), digest.clone());
        Ok(blocking(move || publish(&root, scratch, digest, name, disk_size)).await?)
    }

    /// Brings a disk into the form that machines use. A disk of strangers may name other files as the source
    /// of its content, and those would be this host's: it is refused.
    async fn import(&self, name: &str, from: &Path, to: &Path, on: &OnProgress<'_>) -> Result<(), ImageError> {
        let failed = |source| made(name, source);
        let info = disk::info(&self.img, from).await.map_err(failed)?;
        if let Some(other) = info.other_file() {
            return Err(ImageError::LiesOver { image: name.to_owned(), other: other.to_owned() });
        }
        on(Progress::Converts);
        let arguments = ["convert".as_ref(), "-q".as_ref(), "-f".as_ref(), info.format.as_ref(), "-O".as_ref()];
        let paths = ["qcow2".as_ref(), from.as_os_str(), to.as_os_str()];
        tool::run(&self.img, arguments.into_iter().chain(paths)).await.map_err(failed)?;
        Ok(())
    }
}

fn made(image: &str, source: ToolError) -> ImageError {
    ImageError::Made { image: image.to_owned(), source }
}

/// Gives a whole image its place.
fn publish(root: &Path, scratch: tempfile::TempDir, digest: Digest, source: String, disk_size: u64) -> io::Result<()> {
    let mut bytes = 0;
    for file in fs::read_dir(scratch.path())? {
        let file = file?;
        bytes += std::os::unix::fs::MetadataExt::blocks(&file.metadata()?) * 512;
        fs::set_permissions(file.path(), Permissions::from_mode(0o444))?;
        File::open(file.path())?.sync_all()?;
    }
    let place = root.join(digest.as_str());
    let info = ImageInfo { digest, source, made_at: Timestamp::now(), disk_size, bytes };
    fs::write(scratch.path().join(IMAGE_FILE), serde_json::to_vec_pretty(&info)?)?;
    fs::rename(scratch.path(), place)?;
    // It is not where it was made any more.
    let _ = scratch.keep();
    File::open(root)?.sync_all()
}

fn get(root: &Path, digest: &Digest) -> Result<Option<Image>, ImageError> {
    let folder = root.join(digest.as_str());
    if !folder.exists() {
        return Ok(None);
    }
    let used = File::create(root.join(LOCK))?;
    used.lock_shared()?;
    Ok(read(&folder)?.map(|info| Image { folder, info, _used: Arc::new(used) }))
}

fn read(folder: &Path) -> io::Result<Option<ImageInfo>> {
    let path = folder.join(IMAGE_FILE);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from).map_err(at(&path)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(at(&path)(error)),
    }
}

fn list(root: &Path) -> io::Result<Vec<ImageInfo>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(root))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            found.extend(read(&entry.path())?);
        }
    }
    found.sort_by_key(|info| info.made_at);
    Ok(found)
}

/// Which machines lie over which image, by what their folders say.
fn users(machines: &Path) -> io::Result<BTreeMap<Digest, Vec<InstanceName>>> {
    /// Of a machine only what matters here.
    #[derive(Deserialize)]
    struct Uses {
        name: InstanceName,
        image: Digest,
    }
    let entries = match fs::read_dir(machines) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.map_err(at(machines))?,
    };
    let mut users: BTreeMap<Digest, Vec<InstanceName>> = BTreeMap::new();
    for entry in entries.flatten() {
        let Ok(bytes) = fs::read(entry.path().join("machine.json")) else { continue };
        let Ok(Uses { name, image }) = serde_json::from_slice(&bytes) else { continue };
        users.entry(image).or_default().push(name);
    }
    Ok(users)
}

#[cfg(test)]
mod tests;

//! Disks of machines, by `qemu-img`.

use std::path::Path;

use serde::Deserialize;

use crate::tool::{self, ToolError};

/// What `qemu-img info` says of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Info {
    /// `raw`, `qcow2`, ….
    pub(crate) format: String,
    /// What a machine sees, in bytes.
    pub(crate) virtual_size: u64,
    /// The file that it lies over.
    pub(crate) backing_filename: Option<String>,
    #[serde(default)]
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct FormatSpecific {
    data: Option<SpecificData>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<String>,
}

impl Info {
    /// Another file that the disk has its content from, if any: whoever made the disk chose which.
    pub(crate) fn other_file(&self) -> Option<&str> {
        let data = self.format_specific.as_ref().and_then(|specific| specific.data.as_ref());
        self.backing_filename.as_deref().or_else(|| data?.data_file.as_deref())
    }
}

/// Looks at a disk. Its lock is not asked for: a machine may be running on it.
pub(crate) async fn info(img: &Path, disk: &Path) -> Result<Info, ToolError> {
    let said = tool::run(img, ["info".as_ref(), "--force-share".as_ref(), "--output=json".as_ref(), disk.as_os_str()]);
    serde_json::from_slice(&said.await?).map_err(|error| ToolError::Failed {
        program: img.to_owned(),
        said: format!("what it tells is strange: {error}"),
    })
}

/// Makes an overlay over a base, as large as the machine's disk is to be; at least as large as the base.
pub(super) async fn overlay(img: &Path, base: &Path, disk: &Path, size: u64) -> Result<(), ToolError> {
    let size = size.max(info(img, base).await?.virtual_size).to_string();
    let options = ["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), "-F".as_ref(), "qcow2".as_ref()];
    let what = ["-b".as_ref(), base.as_os_str(), disk.as_os_str(), size.as_ref()];
    tool::run(img, options.into_iter().chain(what)).await.map(drop)
}

/// Makes an overlay of this size over a base, which is named as the overlay is to name it and is not looked at.
pub(super) async fn overlay_unseen(img: &Path, base: &str, disk: &Path, size: u64) -> Result<(), ToolError> {
    let size = size.to_string();
    let options = ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base].map(AsRef::as_ref);
    tool::run(img, options.into_iter().chain([disk.as_os_str(), size.as_ref()])).await.map(drop)
}

/// Has a disk lie over this base alone: what was between becomes its own. Broken off, it is as it was.
pub(super) async fn flatten(img: &Path, base: &Path, disk: &Path) -> Result<(), ToolError> {
    let options = ["rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b"].map(AsRef::as_ref);
    tool::run(img, options.into_iter().chain([base.as_os_str(), disk.as_os_str()])).await.map(drop)
}

/// Makes a disk larger. Says how large it is when it is larger already: disks do not shrink.
pub(super) async fn grow(img: &Path, disk: &Path, size: u64) -> Result<Option<u64>, ToolError> {
    let found = info(img, disk).await?.virtual_size;
    if found >= size {
        return Ok((found > size).then_some(found));
    }
    let size = size.to_string();
    let arguments =
        ["resize".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), disk.as_os_str(), size.as_ref()];
    tool::run(img, arguments).await.map(|_| None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Programs;
    use std::path::PathBuf;

    const MIB: u64 = 1024 * 1024;

    async fn a_base(folder: &Path) -> (PathBuf, PathBuf) {
        let img = Programs::find().unwrap_or_else(|missing| panic!("{missing}")).img;
        let base = folder.join("base.qcow2");
        let arguments = ["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "8M"];
        tool::run(&img, arguments).await.unwrap();
        (img, base)
    }

    #[tokio::test]
    async fn an_overlay_lies_over_its_base_and_only_grows() {
        let folder = tempfile::tempdir().unwrap();
        let (img, base) = a_base(folder.path()).await;
        let disk = folder.path().join("disk.qcow2");
        overlay(&img, &base, &disk, 4 * MIB).await.unwrap();
        let found = info(&img, &disk).await.unwrap();
        assert_eq!((found.virtual_size, found.other_file()), (8 * MIB, base.to_str()), "no smaller than its base");
        assert_eq!(grow(&img, &disk, 16 * MIB).await.unwrap(), None);
        assert_eq!(grow(&img, &disk, 16 * MIB).await.unwrap(), None);
        assert_eq!(info(&img, &disk).await.unwrap().virtual_size, 16 * MIB);
        assert_eq!(grow(&img, &disk, 8 * MIB).await.unwrap(), Some(16 * MIB));
        assert_eq!(info(&img, &base).await.unwrap().virtual_size, 8 * MIB, "a base is never changed");
    }

    #[tokio::test]
    async fn what_is_no_disk_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (img, base) = a_base(folder.path()).await;
        assert_eq!(info(&img, &base).await.unwrap().other_file(), None);
        let missing = folder.path().join("missing.qcow2");
        let error = overlay(&img, &missing, &folder.path().join("disk"), MIB).await.unwrap_err().to_string();
        assert!(error.contains("missing.qcow2") && error.contains("No such file"), "{error}");
    }
}

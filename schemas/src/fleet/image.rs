//! What driver `qemu` takes for an image.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::{Host, Url};

use super::provision::{DEBIAN_CLOUD_IMAGE, DEBIAN_IMAGE, DEFAULT_IMAGE};
use crate::ids::Digest;

/// An image, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageReference {
    /// `debian`, which is the default: built by the recipe that comes with this program.
    Recipe,
    /// `debian+cloud-init`: the same with cloud-init in it.
    CloudRecipe,
    /// A disk of this host.
    File(PathBuf),
    /// A disk elsewhere, and the SHA-256 that it must have.
    Download {
        /// Where it is.
        url: Url,
        /// What it must be.
        sha256: Digest,
    },
}

/// Why a text is no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// It is none of the ways to write one.
    #[error(
        "image `{0}` is none that driver qemu can make; write `debian`, `debian+cloud-init`, the path of a disk (`/…`, `./…`), or \
         `https://…#sha256=…` with the disk's checksum"
    )]
    Unknown(String),
    /// It says nothing of what it must be.
    #[error("image `{0}` has no checksum; add it: `#sha256=` and the 64 digits that its publisher tells")]
    NoChecksum(String),
    /// It comes over a line that anyone could change.
    #[error("image `{0}` comes over plain HTTP; only https:// is taken from other machines")]
    Plain(String),
}

impl FromStr for ImageReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let text = text.trim();
        if [DEBIAN_IMAGE, DEFAULT_IMAGE].contains(&text) {
            return Ok(Self::Recipe);
        }
        if text == DEBIAN_CLOUD_IMAGE {
            return Ok(Self::CloudRecipe);
        }
        if text.starts_with('/') {
            return Ok(Self::File(PathBuf::from(text)));
        }
        let unknown = || InvalidReference::Unknown(text.to_owned());
        let mut url: Url = text.parse().map_err(|_| unknown())?;
        match url.scheme() {
            "https" => {}
            "file" => return url.to_file_path().map(Self::File).map_err(|()| unknown()),
            "http" if is_loopback(&url) => {}
            "http" => return Err(InvalidReference::Plain(text.to_owned())),
            _ => return Err(unknown()),
        }
        let sha256 = url.fragment().and_then(|fragment| fragment.strip_prefix("sha256=")).map(str::to_ascii_lowercase);
        let is_checksum = |text: &String| text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let sha256 = sha256.filter(is_checksum).ok_or_else(|| InvalidReference::NoChecksum(text.to_owned()))?;
        url.set_fragment(None);
        Ok(Self::Download { url, sha256: sha256.into() })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recipe => f.write_str(DEBIAN_IMAGE),
            Self::CloudRecipe => f.write_str(DEBIAN_CLOUD_IMAGE),
            Self::File(path) => path.display().fmt(f),
            Self::Download { url, .. } => url.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_write_an_image() {
        let digest = Digest::of(b"image");
        let read = |text: &str| text.parse::<ImageReference>();
        assert_eq!(read("debian"), Ok(ImageReference::Recipe));
        assert_eq!(read("default"), Ok(ImageReference::Recipe));
        assert_eq!(read("debian+cloud-init"), Ok(ImageReference::CloudRecipe));
        assert_eq!(read("/disks/a b.qcow2"), Ok(ImageReference::File("/disks/a b.qcow2".into())));
        assert_eq!(read("file:///disks/a%20b.qcow2"), Ok(ImageReference::File("/disks/a b.qcow2".into())));
        for base in ["https://example.org/disk.img", "http://127.0.0.1:9/d", "http://[::1]/d", "http://localhost/d"] {
            let url: Url = base.parse().unwrap();
            let upper = digest.as_str().to_ascii_uppercase();
            let expected = ImageReference::Download { url, sha256: digest.clone() };
            assert_eq!(read(&format!("{base}#sha256={upper}")), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_image_is_told_with_what_to_write() {
        let error = |text: &str| text.parse::<ImageReference>().unwrap_err().to_string();
        for text in ["24.04", "disk.qcow2", "ftp://example.org/d#sha256=00", "file://elsewhere/d", ""] {
            assert!(error(text).contains("write `debian`"), "{text}");
        }
        assert!(error("https://example.org/d").contains("add it"));
        assert!(error("https://example.org/d#sha256=12").contains("64 digits"));
        assert!(error("http://example.org/d#sha256=00").contains("only https"));
    }
}

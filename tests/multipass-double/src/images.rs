//! The images that there are, as far as anybody can see: none of them is one.

use std::path::{Path, PathBuf};

use crate::knobs::Knobs;
use crate::state::Image;

/// The least disk that an image needs, in bytes.
pub(crate) const LEAST: u64 = 1_468_006_400;
/// The hash of every image of the manifests.
const HASH: &str = "da9a1214894878af09969861013170fb2625495f594676d926ba3b83812779d7";

/// An image of the manifests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed {
    /// The name that it goes by.
    pub(crate) name: &'static str,
    /// Other names.
    pub(crate) aliases: &'static [&'static str],
    /// Such as `24.04 LTS`.
    pub(crate) release: &'static str,
    /// A date.
    pub(crate) version: &'static str,
    /// Where it is from; empty for `release`.
    pub(crate) remote: &'static str,
    /// No longer supported.
    pub(crate) old: bool,
}

const fn of(
    name: &'static str,
    aliases: &'static [&'static str],
    release: &'static str,
    version: &'static str,
) -> Listed {
    Listed { name, aliases, release, version, remote: "", old: false }
}

/// All images, in the order in which they are listed.
pub(crate) const IMAGES: [Listed; 11] = [
    of("core", &["core16"], "Core 16", "20261122"),
    of("core18", &[], "Core 18", "20261122"),
    of("core20", &[], "Core 20", "20261122"),
    of("core22", &[], "Core 22", "20261122"),
    of("core24", &[], "Core 24", "20261122"),
    of("core26", &[], "Core 26", "20261122"),
    Listed { old: true, ..of("20.04", &["focal"], "20.04 LTS", "20250529") },
    of("22.04", &["jammy"], "22.04 LTS", "20260515"),
    of("24.04", &["lts", "noble"], "24.04 LTS", "20260518"),
    of("25.10", &["questing"], "25.10", "20260520"),
    Listed { remote: "appliance", ..of("appliance:adguard-home", &[], "adguard-home", "20200812") },
];

/// Where an image comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// The manifests.
    Listed(Listed),
    /// A file.
    File(PathBuf),
    /// An address.
    Url(String),
}

impl Source {
    /// What the cache knows it by.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Listed(listed) => listed.name.to_owned(),
            Self::File(path) => path.display().to_string(),
            Self::Url(url) => url.clone(),
        }
    }

    /// What an instance remembers of it.
    pub(crate) fn image(&self) -> Image {
        match self {
            Self::Listed(listed) => {
                Image { release: listed.release.to_owned(), hash: HASH.to_owned(), uncloneable: false }
            }
            Self::File(path) => {
                let uncloneable = path.extension().is_none_or(|kind| kind != "img");
                // A file that holds nothing but the name of a listed image is taken for a copy of that.
                let text = std::fs::read(path).unwrap_or_default();
                let named = IMAGES.iter().find(|listed| text.trim_ascii() == listed.name.as_bytes());
                match named {
                    Some(listed) => Image { release: listed.release.to_owned(), hash: HASH.to_owned(), uncloneable },
                    None => Image { release: String::new(), hash: hash(&text), uncloneable },
                }
            }
            Self::Url(url) => Image { release: String::new(), hash: hash(url.as_bytes()), uncloneable: false },
        }
    }
}

/// Digits that stand for a hash, always the same ones for the same bytes.
fn hash(bytes: &[u8]) -> String {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    let mut digits = String::new();
    for round in 0..4_u8 {
        for byte in bytes.iter().copied().chain([round]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        digits.push_str(&format!("{state:016x}"));
    }
    digits
}

/// Whether a name has more parts than a remote and an image.
pub(crate) fn is_malformed(name: &str) -> bool {
    !name.contains("://") && name.matches(':').count() > 1
}

/// Finds an image, or says why not.
pub(crate) fn look_up(knobs: &Knobs, name: &str) -> Result<Source, String> {
    if let Some(path) = name.strip_prefix("file://") {
        return Ok(Source::File(std::path::absolute(Path::new(path)).unwrap_or_default()));
    }
    if name.starts_with("http://") || name.starts_with("https://") {
        return Ok(Source::Url(name.to_owned()));
    }
    let (remote, alias) = name.split_once(':').unwrap_or(("", name));
    if !matches!(remote, "" | "release" | "daily" | "snapcraft" | "appliance") {
        return Err(format!(
            "Remote '{remote}' is not found. Please use `multipass find` for supported remotes and images."
        ));
    }
    if knobs.images_unreachable {
        return Err(format!("Remote \"{remote}\" is unknown or unreachable."));
    }
    let alias = if alias.is_empty() || alias == "default" { "lts" } else { alias };
    let fits = |listed: &&Listed| {
        listed.name == alias || listed.aliases.contains(&alias) || (alias.len() >= 3 && HASH.starts_with(alias))
    };
    let found = IMAGES.iter().find(|listed| fits(listed) && !listed.name.starts_with("appliance"));
    found
        .map(|listed| Source::Listed(*listed))
        .ok_or_else(|| format!("Unable to find an image matching \"{alias}\" in remote \"{remote}\"."))
}

/// A name for an instance that was given none.
pub(crate) fn pet_name() -> String {
    const ADJECTIVES: [&str; 8] = ["quick", "calm", "bright", "fitting", "eager", "polite", "sound", "humble"];
    const NOUNS: [&str; 8] = ["shrimp", "otter", "falcon", "gecko", "lark", "badger", "moth", "heron"];
    let of = |words: [&'static str; 8]| words[fastrand::usize(..words.len())];
    format!("{}-{}", of(ADJECTIVES), of(NOUNS))
}

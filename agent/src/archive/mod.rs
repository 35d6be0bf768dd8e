//! Files and folders as tar archives with one top-level entry.

mod pack;
mod unpack;

use std::io;
use std::path::PathBuf;

pub(crate) use pack::pack;
pub(crate) use unpack::unpack;

/// Longest path within an archive, in bytes: what operating systems take.
const PATH_MAX: usize = 4096;
/// Most parts of a path within an archive. Whatever walks through folders later holds something open for each.
const DEPTH_MAX: usize = 256;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("there is no folder `{0}` to put it in; make it first")]
    NoFolder(PathBuf),
    #[error("`{0}` has no name that an archive could carry")]
    NoName(PathBuf),
    #[error("the archive holds nothing")]
    Empty,
    #[error("the archive holds `{0}` beside `{1}`; it may have one top-level entry only")]
    TwoTops(PathBuf, PathBuf),
    #[error("the archive's `{0}` leads out of the place that it is for")]
    Outside(PathBuf),
    #[error("the archive's `{0}` is a link to `{1}`, which leads out of it")]
    LinkOutside(PathBuf, PathBuf),
    #[error("the archive holds a path of more than {PATH_MAX} bytes or {DEPTH_MAX} parts")]
    TooDeep,
    #[error("the archive's `{0}` lies in something that is no folder")]
    NotInFolder(PathBuf),
    #[error("the archive holds `{0}` twice")]
    Twice(PathBuf),
    #[error("the archive's `{0}` is neither a file nor a folder nor a link")]
    Special(PathBuf),
    #[error("`{0}` is neither a file nor a folder")]
    NoFile(PathBuf),
    #[error("`{0}` is there already; remove it first")]
    Exists(PathBuf),
    #[error("the disk of the machine is full")]
    Full,
    #[error("the copy was not completed")]
    Stream(#[from] io::Error),
    #[error("`{path}` can't be {what}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
}

/// What a failure with a file means.
fn failed<E: Into<io::Error>>(what: &'static str, path: &std::path::Path) -> impl FnOnce(E) -> ArchiveError {
    move |error| {
        let source: io::Error = error.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ArchiveError::Full,
            _ => ArchiveError::File { what, path: path.to_owned(), source },
        }
    }
}

#[cfg(test)]
mod tests;

//! An archive becomes a file or folder, as a whole or not at all: it is unpacked into a folder beside its
//! destination, which nobody else can enter, and moved into place when all of it has come.
//!
//! Nothing in an archive is trusted. Every path is walked folder by folder from the one that it is unpacked
//! in, following no link; so nothing can be written elsewhere, whatever the archive or another program does
//! meanwhile.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags, linkat, mkdirat, openat, renameat, symlinkat};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType, Header};
use vm_agent_schemas::ids::Nonce;

use super::{ArchiveError, DEPTH_MAX, PATH_MAX, failed};

/// The bits of a mode that are kept. Nothing that comes from elsewhere gets to run as somebody else.
const MODE_KEPT: u32 = 0o777;
/// The mode of folders of which the archive says nothing.
const FOLDER_MODE: u32 = 0o755;
/// Most bytes between the contents of two entries: headers, names, attributes of the entry, and the map of a file with
/// holes. What stands as content where no content belongs counts as well.
const HEADING_MAX: u64 = 1 << 20;
/// How much is written at once, in bytes.
const BLOCK: usize = 32 * 1024;

/// Unpacks an archive with one top-level entry, which gets the path `destination`, or its own name within
/// `destination` if that is a folder.
pub(crate) fn unpack(archive: impl Read, destination: &Path) -> Result<(), ArchiveError> {
    let (folder, name) = if destination.is_dir() {
        (destination, None)
    } else {
        let name = destination.file_name().ok_or_else(|| ArchiveError::NoName(destination.to_owned()))?;
        (destination.parent().unwrap_or(Path::new("/")), Some(name))
    };
    if !folder.is_dir() {
        return Err(ArchiveError::NoFolder(folder.to_owned()));
    }
    let beside = open_folder(rustix::fs::CWD, folder.as_os_str(), OFlags::empty()).map_err(failed("opened", folder))?;
    let staging = Staging::new(&beside, folder)?;
    let mut unpacking = Unpacking { root: &staging.root, top: None, folders: BTreeMap::new() };
    unpacking.unpack(archive)?;
    unpacking.set_modes()?;
    let top = unpacking.top.ok_or(ArchiveError::Empty)?;
    let name = name.unwrap_or(&top);
    renameat(&staging.root, &top, &beside, name).map_err(|error| match error {
        Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR => ArchiveError::Exists(folder.join(name)),
        other => failed("made", &folder.join(name))(other),
    })
}

/// The folder in which an archive is unpacked. What is left in it goes with it.
struct Staging {
    path: PathBuf,
    root: OwnedFd,
}

impl Staging {
    fn new(beside: &OwnedFd, folder: &Path) -> Result<Self, ArchiveError> {
        let name = format!(".vm-agent-copy-{}", Nonce::generate());
        let path = folder.join(&name);
        mkdirat(beside, &name, Mode::RWXU).map_err(failed("made", &path))?;
        let root = open_folder(beside, OsStr::new(&name), OFlags::NOFOLLOW).map_err(failed("opened", &path))?;
        Ok(Self { path, root })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("`{}` is left over from a copy and can't be removed: {error}", self.path.display());
        }
    }
}

struct Unpacking<'a> {
    /// What the archive's paths start from.
    root: &'a OwnedFd,
    /// The name of the one top-level entry.
    top: Option<OsString>,
    /// The folders and their modes, which they get last: one that may not be written could not be filled.
    folders: BTreeMap<PathBuf, u32>,
}

impl Unpacking<'_> {
    fn unpack(&mut self, archive: impl Read) -> Result<(), ArchiveError> {
        let heading = Rc::new(Cell::new(Some(HEADING_MAX)));
        let mut archive = Archive::new(Bounded { inner: archive, heading: Rc::clone(&heading) });
        for entry in archive.entries()? {
            let mut entry = entry?;
            heading.set(None);
            self.entry(&mut entry)?;
            heading.set(Some(HEADING_MAX));
        }
        heading.set(None);
        // What comes behind the last entry says nothing, but that it comes to its end says that this is all.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        Ok(())
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = clean(&entry.path()?)?;
        // The folder in which the archive was made, as some programs name it.
        let Some(name) = path.file_name() else { return Ok(()) };
        self.hold_to_one_top(&path)?;
        let parent = self.folder(path.parent().unwrap_or(Path::new("")))?;
        let made = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return write_file(&parent, name, entry, &path);
            }
            EntryType::Directory => {
                self.folders.insert(path.clone(), mode(entry.header())?);
                match mkdirat(&parent, name, Mode::RWXU) {
                    // It was made for what lies in it.
                    Err(Errno::EXIST) => open_folder(&parent, name, OFlags::NOFOLLOW).map(drop),
                    made => made,
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.unwrap_or_default();
                if !stays(&path, &target) {
                    return Err(ArchiveError::LinkOutside(path, target.into_owned()));
                }
                symlinkat(&*target, &parent, name)
            }
            EntryType::Link => {
                let target = clean(&entry.link_name()?.unwrap_or_default())?;
                let there = self.folder(target.parent().unwrap_or(Path::new("")))?;
                linkat(&there, target.file_name().unwrap_or_default(), &parent, name, AtFlags::empty())
            }
            _ => return Err(ArchiveError::Special(path)),
        };
        made.map_err(|error| not_made(error, &path))
    }

    fn hold_to_one_top(&mut self, path: &Path) -> Result<(), ArchiveError> {
        let top = path.iter().next().unwrap_or_default();
        match &self.top {
            Some(known) if known != top => Err(ArchiveError::TwoTops(top.into(), known.into())),
            Some(_) => Ok(()),
            None => {
                self.top = Some(top.to_owned());
                Ok(())
            }
        }
    }

    /// Opens a folder of the archive, and makes those on the way that are missing.
    fn folder(&mut self, path: &Path) -> Result<OwnedFd, ArchiveError> {
        let mut folder = self.root.try_clone().map_err(failed("opened", path))?;
        let mut way = PathBuf::new();
        for name in path {
            way.push(name);
            folder = match open_folder(&folder, name, OFlags::NOFOLLOW) {
                Err(Errno::NOENT) => {
                    mkdirat(&folder, name, Mode::RWXU).map_err(failed("made", &way))?;
                    self.folders.insert(way.clone(), FOLDER_MODE);
                    open_folder(&folder, name, OFlags::NOFOLLOW)
                }
                opened => opened,
            }
            .map_err(|error| not_made(error, &way))?;
        }
        Ok(folder)
    }

    /// Gives the folders their modes, the innermost first.
    fn set_modes(&mut self) -> Result<(), ArchiveError> {
        let mut folders: Vec<(PathBuf, u32)> = std::mem::take(&mut self.folders).into_iter().collect();
        folders.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
        for (path, mode) in folders {
            // The outermost has to be written to once more, to be moved.
            let mode = if path.components().count() == 1 { mode | Mode::WUSR.bits() } else { mode };
            let folder = File::from(self.folder(&path)?);
            folder.set_permissions(Permissions::from_mode(mode)).map_err(failed("made", &path))?;
        }
        Ok(())
    }
}

/// An archive of which no more is read between the contents of two entries than these can need: what is read there
/// is kept in memory.
struct Bounded<R> {
    inner: R,
    /// How much may still be read before the next content; nothing within one.
    heading: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.heading.get() else { return self.inner.read(buffer) };
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other("the archive's names are longer than any could be"));
        }
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..len])?;
        self.heading.set(Some(left - count as u64));
        Ok(count)
    }
}

fn write_file(
    parent: &OwnedFd,
    name: &OsStr,
    entry: &mut Entry<'_, impl Read>,
    path: &Path,
) -> Result<(), ArchiveError> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(|error| not_made(error, path))?;
    let mut file = File::from(file);
    let mut block = vec![0; BLOCK];
    loop {
        let count = entry.read(&mut block)?;
        if count == 0 {
            break;
        }
        file.write_all(&block[..count]).map_err(failed("written", path))?;
    }
    let modified = UNIX_EPOCH + Duration::from_secs(entry.header().mtime()?);
    let mode = Permissions::from_mode(mode(entry.header())?);
    file.set_modified(modified).and_then(|()| file.set_permissions(mode)).map_err(failed("written", path))
}

fn mode(header: &Header) -> Result<u32, ArchiveError> {
    Ok(header.mode()? & MODE_KEPT)
}

fn open_folder(from: impl AsFd, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(from, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | flags, Mode::empty())
}

fn not_made(error: Errno, path: &Path) -> ArchiveError {
    match error {
        Errno::EXIST => ArchiveError::Twice(path.to_owned()),
        Errno::NOTDIR | Errno::LOOP => ArchiveError::NotInFolder(path.to_owned()),
        other => failed("made", path)(other),
    }
}

/// A path of an archive, if it leads down and nowhere else.
fn clean(path: &Path) -> Result<PathBuf, ArchiveError> {
    if path.as_os_str().len() > PATH_MAX || path.components().count() > DEPTH_MAX {
        return Err(ArchiveError::TooDeep);
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(ArchiveError::Outside(path.to_owned()));
            }
        }
    }
    Ok(clean)
}

/// Whether a symbolic link leads nowhere outside the archive's top-level entry. It may go up first, through
/// folders that are none but folders, and then down; further up after that it could be led astray by other
/// links.
fn stays(link: &Path, target: &Path) -> bool {
    let ups = target.components().take_while(|it| *it == Component::ParentDir).count();
    let downs = target.components().skip(ups);
    let depth = link.components().count();
    depth >= 2 && ups <= depth - 2 && downs.into_iter().all(|it| matches!(it, Component::Normal(_) | Component::CurDir))
}

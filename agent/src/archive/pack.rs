//! A file or folder becomes an archive. Links within it stay what they are; what is neither a file nor a
//! folder nor a link is left out, since nothing could be made of it elsewhere.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tar::{Builder, Header};

use super::{ArchiveError, failed};

/// Writes `source` into an archive, under its own last name.
pub(crate) fn pack(source: &Path, sink: impl Write) -> Result<(), ArchiveError> {
    // A link that is asked for by name stands for what it leads to.
    let real = fs::canonicalize(source).map_err(failed("read", source))?;
    let name = source.file_name().or_else(|| real.file_name());
    let name = PathBuf::from(name.ok_or_else(|| ArchiveError::NoName(source.to_owned()))?);
    let metadata = fs::metadata(&real).map_err(failed("read", source))?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(ArchiveError::NoFile(source.to_owned()));
    }
    let mut archive = Builder::new(sink);
    let mut waiting = vec![(real, name)];
    while let Some((path, name)) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).map_err(failed("read", &path))?;
        if metadata.is_dir() {
            append(&mut archive, &metadata, 0, &name, io::empty(), &path)?;
            let entries = fs::read_dir(&path).map_err(failed("read", &path))?;
            for entry in entries {
                let entry = entry.map_err(failed("read", &path))?;
                waiting.push((entry.path(), name.join(entry.file_name())));
            }
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(failed("read", &path))?;
            let mut header = header(&metadata, 0);
            archive.append_link(&mut header, &name, target).map_err(failed("sent", &path))?;
        } else if metadata.is_file() {
            append_file(&mut archive, &path, &name)?;
        }
    }
    let mut sink = archive.into_inner()?;
    Ok(sink.flush()?)
}

fn append_file(archive: &mut Builder<impl Write>, path: &Path, name: &Path) -> Result<(), ArchiveError> {
    // Whatever took the file's place meanwhile is neither followed nor waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(failed("read", path))?);
    let metadata = file.metadata().map_err(failed("read", path))?;
    let size = if metadata.is_file() { metadata.len() } else { 0 };
    append(archive, &metadata, size, name, Exactly { file, left: size }, path)
}

fn append(
    archive: &mut Builder<impl Write>,
    metadata: &Metadata,
    size: u64,
    name: &Path,
    data: impl Read,
    path: &Path,
) -> Result<(), ArchiveError> {
    archive.append_data(&mut header(metadata, size), name, data).map_err(failed("sent", path))
}

fn header(metadata: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    header.set_size(size);
    header
}

/// As much of a file as the archive has said: one that grows meanwhile would spoil it.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read(&mut buffer[..len])?;
        if count == 0 && len > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

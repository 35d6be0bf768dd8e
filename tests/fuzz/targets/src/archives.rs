//! Archives that are unpacked inside an agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The size of a header, and what contents are filled up to, in bytes.
const BLOCK: usize = 512;
/// Where a header says what kind of entry it is of.
const KIND: usize = 156;

/// An archive becomes one thing that lies where it should, or nothing at all, and nothing beside it changes.
pub(crate) fn archive(bytes: &[u8]) {
    let place = tempfile::tempdir().expect("there is room for a folder");
    let inside = place.path().join("in");
    fs::create_dir(&inside).expect("the folder is new");
    fs::write(place.path().join("beside"), "untouched").expect("the folder is new");
    let unpacked = vm_agent_runtime::unpack(with_sums(bytes).as_slice(), &inside);
    assert_eq!(names(place.path()), ["beside", "in"]);
    assert_eq!(fs::read(place.path().join("beside")).ok().as_deref(), Some(b"untouched".as_slice()));
    let made = names(&inside).len();
    assert_eq!(made, usize::from(unpacked.is_ok()), "{:?}", unpacked.err());
    look(&inside, &inside);
}

/// The same with right sums in the headers, so that it is what they say that is tried. A file with holes becomes a
/// plain one: it may say to be of any size, and would fill the disk with nothing.
fn with_sums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        if header[KIND] == b'S' {
            header[KIND] = b'0';
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = str::from_utf8(&header[124..136]).ok();
        let size = size.and_then(|size| usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).ok()).unwrap_or(0);
        at = (at + BLOCK).saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
    }
    bytes
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What was made leads nowhere else, and lets nobody run anything as somebody else.
fn look(folder: &Path, root: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).expect("nobody else removes it");
        let kind = metadata.file_type();
        assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "{kind:?}");
        if kind.is_symlink() {
            let target = fs::read_link(&path).expect("it is a link");
            assert!(target.is_relative(), "{}", target.display());
            // One that leads nowhere leads nowhere else either.
            let real = fs::canonicalize(&path);
            let root = fs::canonicalize(root).expect("the folder is there");
            assert!(real.as_ref().map_or(true, |real| real.starts_with(&root)), "{real:?}");
            continue;
        }
        assert_eq!(metadata.permissions().mode() & 0o7000, 0);
        if kind.is_dir() {
            // It may have been made so that not even its owner gets in.
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
            look(&path, root);
        }
    }
}

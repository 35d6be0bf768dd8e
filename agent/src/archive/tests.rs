use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::{pack, unpack};

/// A place with an empty folder `in` to unpack in.
fn place() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let inside = place.path().join("in");
    fs::create_dir(&inside).unwrap();
    (place, inside)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// An archive of entries by hand, with names and targets as they are, however hostile.
struct Made(Builder<Vec<u8>>);

impl Made {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn with(mut self, kind: EntryType, name: &str, target: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_size(data.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn folder(self, name: &str) -> Self {
        self.with(EntryType::Directory, name, "", b"")
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.with(EntryType::Regular, name, "", data)
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.with(EntryType::Symlink, name, target, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// What unpacking in the folder `in` of a fresh place says; nothing may be left there, nor be made beside it.
fn refusal(made: Made) -> String {
    let (place, inside) = place();
    let error = unpack(made.bytes().as_slice(), &inside).unwrap_err();
    assert_eq!(entries(&inside), [""; 0], "nothing is left behind");
    assert_eq!(entries(place.path()), ["in"], "nothing is made elsewhere");
    crate::chain(&error)
}

#[test]
fn a_folder_arrives_as_it_was() {
    let (place, inside) = place();
    let source = place.path().join("project");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    fs::write(source.join("deep/er/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("deep/er/run"), Permissions::from_mode(0o750)).unwrap();
    fs::write(source.join(format!("{}.txt", "long".repeat(40))), vec![7; 100_000]).unwrap();
    symlink("er/run", source.join("deep/link")).unwrap();
    fs::set_permissions(source.join("deep/er"), Permissions::from_mode(0o555)).unwrap();
    let mut archive = Vec::new();
    pack(&source, &mut archive).unwrap();
    unpack(archive.as_slice(), &inside.join("renamed")).unwrap();
    let there = inside.join("renamed");
    assert_eq!(entries(&inside), ["renamed"]);
    assert_eq!(entries(&there), entries(&source));
    assert_eq!(fs::read(there.join("deep/er/run")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(mode(&there.join("deep/er/run")), 0o750);
    assert_eq!(mode(&there.join("deep/er")), 0o555);
    assert_eq!(fs::read_link(there.join("deep/link")).unwrap(), Path::new("er/run"));
    let modified = |folder: &Path| fs::metadata(folder.join("deep/er/run")).unwrap().modified().unwrap();
    assert!(modified(&source).duration_since(modified(&there)).unwrap().as_secs() < 1, "to the second");
    // Or the folder can't be removed.
    for folder in [&source, &there] {
        fs::set_permissions(folder.join("deep/er"), Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_file_replaces_a_file_and_goes_into_a_folder() {
    let (place, inside) = place();
    let source = place.path().join("new.txt");
    fs::write(&source, "new").unwrap();
    let mut archive = Vec::new();
    pack(&source, &mut archive).unwrap();
    fs::write(inside.join("old.txt"), "old").unwrap();
    unpack(archive.as_slice(), &inside.join("old.txt")).unwrap();
    assert_eq!(fs::read_to_string(inside.join("old.txt")).unwrap(), "new");
    unpack(archive.as_slice(), &inside).unwrap();
    assert_eq!(entries(&inside), ["new.txt", "old.txt"]);
}

#[test]
fn what_is_no_file_is_left_out_and_a_link_by_name_is_followed() {
    let (place, inside) = place();
    let source = place.path().join("project");
    fs::create_dir(&source).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    fs::write(source.join("file"), "here").unwrap();
    symlink(&source, place.path().join("current")).unwrap();
    let mut archive = Vec::new();
    pack(&place.path().join("current"), &mut archive).unwrap();
    unpack(archive.as_slice(), &inside).unwrap();
    assert_eq!((entries(&inside), entries(&inside.join("current"))), (vec!["current".into()], vec!["file".into()]));
}

#[test]
fn what_is_not_there_is_named() {
    let place = tempfile::tempdir().unwrap();
    let missing = place.path().join("nothing");
    let error = crate::chain(&pack(&missing, io::sink()).unwrap_err());
    assert!(error.contains("nothing` can't be read: No such file"), "{error}");
    let error = unpack(Made::new().file("a", b"").bytes().as_slice(), &missing.join("a")).unwrap_err().to_string();
    assert!(error.ends_with("nothing` to put it in; make it first"), "{error}");
}

#[test]
fn no_path_leads_out() {
    for name in ["../evil", "/evil", "top/../../evil", "top/../evil"] {
        let said = refusal(Made::new().folder("top").file(name, b"x"));
        assert_eq!(said, format!("the archive's `{name}` leads out of the place that it is for"));
    }
}

#[test]
fn no_name_fills_the_memory_and_no_path_is_too_deep_to_be_removed_again() {
    let long = "x".repeat(2 << 20);
    let said = refusal(Made::new().folder("top").with(EntryType::GNULongName, "long", "", long.as_bytes()));
    assert!(said.contains("the archive's names are longer than any could be"), "{said}");
    for path in ["top".to_owned() + &"/a".repeat(300), format!("top/{}", "x/yy".repeat(1100))] {
        let made = Made::new().folder("top").with(EntryType::GNULongName, "long", "", path.as_bytes()).folder("short");
        assert_eq!(refusal(made), "the archive holds a path of more than 4096 bytes or 256 parts");
    }
}

#[test]
fn no_link_leads_out() {
    let outside = [
        ("top/l", "/etc"),
        ("top/l", ".."),
        ("top/a/l", "../../in"),
        ("top/l", "a/.."),
        ("l", "in"),
        ("top/a/b/l", "../../../x"),
    ];
    for (name, target) in outside {
        let said = refusal(Made::new().link(name, target));
        assert_eq!(said, format!("the archive's `{name}` is a link to `{target}`, which leads out of it"));
    }
    let (_place, inside) = place();
    let made = Made::new().link("top/a/l", "../b").link("top/m", "a/l").file("top/b", b"b");
    unpack(made.bytes().as_slice(), &inside).unwrap();
    assert_eq!(fs::read(inside.join("top/m")).unwrap(), b"b");
}

#[test]
fn nothing_is_written_through_a_link() {
    let made = Made::new().folder("top").folder("top/real").link("top/l", "real").file("top/l/evil", b"x");
    assert_eq!(refusal(made), "the archive's `top/l` lies in something that is no folder");
    let made = Made::new().link("top/l", "b").file("top/l", b"x");
    assert_eq!(refusal(made), "the archive holds `top/l` twice");
}

#[test]
fn a_hard_link_is_one_to_what_the_archive_holds() {
    let (_place, inside) = place();
    let made = Made::new().file("top/a", b"same").with(EntryType::Link, "top/b", "top/a", b"");
    unpack(made.bytes().as_slice(), &inside).unwrap();
    assert_eq!(fs::read(inside.join("top/b")).unwrap(), b"same");
    let said = refusal(Made::new().folder("top").with(EntryType::Link, "top/b", "/etc/passwd", b""));
    assert_eq!(said, "the archive's `/etc/passwd` leads out of the place that it is for");
}

#[test]
fn devices_are_refused() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let said = refusal(Made::new().folder("top").with(kind, "top/null", "", b""));
        assert_eq!(said, "the archive's `top/null` is neither a file nor a folder nor a link");
    }
}

#[test]
fn nothing_gets_to_run_as_somebody_else() {
    let (_place, inside) = place();
    unpack(Made::new().folder("top").file("top/tool", b"x").bytes().as_slice(), &inside).unwrap();
    assert_eq!((mode(&inside.join("top")), mode(&inside.join("top/tool"))), (0o755, 0o755));
}

#[test]
fn there_is_exactly_one_top_level_entry() {
    assert_eq!(refusal(Made::new()), "the archive holds nothing");
    let said = refusal(Made::new().file("a", b"").file("b", b""));
    assert_eq!(said, "the archive holds `b` beside `a`; it may have one top-level entry only");
}

#[test]
fn what_is_there_already_stays_as_it_is() {
    let (_place, inside) = place();
    fs::create_dir(inside.join("top")).unwrap();
    fs::write(inside.join("top/kept"), "").unwrap();
    let error = unpack(Made::new().folder("top").bytes().as_slice(), &inside).unwrap_err().to_string();
    assert!(error.ends_with("top` is there already; remove it first"), "{error}");
    assert_eq!((entries(&inside), entries(&inside.join("top"))), (vec!["top".into()], vec!["kept".into()]));
}

#[test]
fn an_archive_that_is_cut_off_leaves_nothing() {
    struct Cut;
    impl Read for Cut {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it was broken off"))
        }
    }
    let (_place, inside) = place();
    let bytes = Made::new().file("top", &[1; 10_000]).bytes();
    // Also one of which only the end is missing.
    for length in [0, 700, 5000, bytes.len()] {
        let error = unpack(bytes[..length].chain(Cut), &inside).unwrap_err();
        assert!(crate::chain(&error).contains("it was broken off"), "{error}");
        assert_eq!(entries(&inside), [""; 0]);
    }
}

#[test]
fn a_full_disk_is_called_one() {
    let full = super::failed("written", Path::new("big"))(io::Error::from(io::ErrorKind::StorageFull));
    assert_eq!(crate::chain(&full), "the disk of the machine is full");
    let other = super::failed("written", Path::new("big"))(io::Error::other("it is worn out"));
    assert_eq!(crate::chain(&other), "`big` can't be written: it is worn out");
}

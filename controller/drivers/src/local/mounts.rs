//! The mounts of an instance: symbolic links in its work folder to folders of the host.
//!
//! A link is this driver's own if it is remembered and still leads where it was made to lead; nothing
//! else in the work folder is ever removed. What is remembered is written down before the links are
//! made: after a crash it may tell of links that are not there, and lacks none that is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use vm_agent_schemas::layout::WORK_DIR;

use crate::Mounts;
use crate::folder::{Folder, at, private_dirs};

/// The file, in the instance's folder, that remembers the links.
const RECORD_FILE: &str = "mounts.json";

/// A link, made or to be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Link {
    /// Where it lies, below the work folder.
    target: PathBuf,
    /// The folder of the host that it leads to.
    source: PathBuf,
}

/// Why mounts could not be put in place.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("mount `{0}`: driver local has no root of its own; write a path below the work folder")]
    Absolute(String),
    #[error("mount `{0}` is no path below the work folder")]
    Outside(String),
    #[error("mount `{inner}` would lie in the folder of mount `{outer}`, and driver local changes nothing there")]
    Nested { outer: String, inner: String },
    #[error("mount `{target}`: the folder {} of the host can't be used", folder.display())]
    NoSource { target: String, folder: PathBuf, source: io::Error },
    #[error("mount `{target}`: {} is no absolute path of a folder of the host", folder.display())]
    NotAFolder { target: String, folder: PathBuf },
    #[error(
        "mount `{}`: {} is in its place, and is no link of this driver's; move it away",
        target.display(), path.display()
    )]
    InTheWay { target: PathBuf, path: PathBuf },
    #[error(
        "{} does not tell any more which links in the work folder are this driver's; delete it, and those links",
        path.display()
    )]
    Record { path: PathBuf },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Has the work folder of an instance that does not run hold links for these mounts, and of those made
/// before no others.
pub(super) fn apply(folder: &Folder, mounts: &Mounts) -> Result<(), MountError> {
    let (wanted, remembered) = (links(mounts)?, recall(folder)?);
    for (target, mount) in mounts {
        check_source(target, &mount.source)?;
    }
    let work = folder.file(WORK_DIR);
    for link in remembered.difference(&wanted) {
        remove(&work, link)?;
    }
    let mut missing = Vec::new();
    for link in &wanted {
        if !(remembered.contains(link) && is_in_place(&work, link)?) {
            make_room(&work, link)?;
            missing.push(link);
        }
    }
    if remembered != wanted {
        folder.write(RECORD_FILE, &serde_json::to_vec_pretty(&wanted).map_err(io::Error::from)?)?;
    }
    for Link { target, source } in missing {
        let path = work.join(target);
        private_dirs(path.parent().unwrap_or(&work))?;
        symlink(source, &path).map_err(at(&path))?;
    }
    Ok(())
}

/// The links that these mounts ask for.
fn links(mounts: &Mounts) -> Result<BTreeSet<Link>, MountError> {
    let mut places: Vec<(&String, PathBuf)> = Vec::new();
    for target in mounts.keys() {
        if Path::new(target).is_absolute() {
            return Err(MountError::Absolute(target.clone()));
        }
        let place = below(Path::new(target)).ok_or_else(|| MountError::Outside(target.clone()))?;
        for (other, taken) in &places {
            let nested = |outer: &str, inner: &str| MountError::Nested { outer: outer.into(), inner: inner.into() };
            if place.starts_with(taken) {
                return Err(nested(other, target));
            }
            if taken.starts_with(&place) {
                return Err(nested(target, other));
            }
        }
        places.push((target, place));
    }
    let links = places.into_iter().zip(mounts.values());
    Ok(links.map(|((_, target), mount)| Link { target, source: mount.source.clone() }).collect())
}

/// A relative path in its shortest form, unless it leads out of the folder that it begins in or nowhere.
fn below(path: &Path) -> Option<PathBuf> {
    let mut shortest = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => shortest.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (shortest != Path::new("")).then_some(shortest)
}

fn check_source(target: &str, folder: &Path) -> Result<(), MountError> {
    let (target, folder) = (target.to_owned(), folder.to_owned());
    match fs::metadata(&folder) {
        Ok(found) if found.is_dir() && folder.is_absolute() => Ok(()),
        Ok(_) => Err(MountError::NotAFolder { target, folder }),
        Err(source) => Err(MountError::NoSource { target, folder, source }),
    }
}

/// The links that were made, as far as anybody knows.
fn recall(folder: &Folder) -> Result<BTreeSet<Link>, MountError> {
    let path = folder.file(RECORD_FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(at(&path)(error).into()),
    };
    let links: Option<BTreeSet<Link>> = serde_json::from_slice(&bytes).ok();
    // The runtime can write there too: no link outside of the work folder is taken for ours.
    let links = links.filter(|links| links.iter().all(|link| below(&link.target).is_some()));
    links.ok_or(MountError::Record { path })
}

/// Removes a link that was made, if it is still that, and the folders that it leaves empty.
fn remove(work: &Path, link: &Link) -> io::Result<()> {
    if !is_in_place(work, link)? {
        return Ok(());
    }
    let mut path = work.join(&link.target);
    fs::remove_file(&path).map_err(at(&path))?;
    // A folder with anything in it can't be removed, and is kept with those around it.
    while path.pop() && path != work && fs::remove_dir(&path).is_ok() {}
    Ok(())
}

/// Whether a link lies where it should and leads where it should.
fn is_in_place(work: &Path, link: &Link) -> io::Result<bool> {
    let leads = || fs::read_link(work.join(&link.target)).is_ok_and(|to| to == link.source);
    Ok(obstacle(work, &link.target)?.is_none() && leads())
}

/// Sees to it that there is nothing where a link is to lie. Only an empty folder makes room for it.
fn make_room(work: &Path, link: &Link) -> Result<(), MountError> {
    let in_the_way = |path| Err(MountError::InTheWay { target: link.target.clone(), path });
    if let Some(path) = obstacle(work, &link.target)? {
        return in_the_way(path);
    }
    let path = work.join(&link.target);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(&path)(error).into()),
        Ok(found) if found.is_dir() && fs::remove_dir(&path).is_ok() => Ok(()),
        Ok(_) => in_the_way(path),
    }
}

/// What on the way to a target is no folder of the instance's own: a file, or a link that would lead
/// elsewhere.
fn obstacle(work: &Path, target: &Path) -> io::Result<Option<PathBuf>> {
    let mut path = work.to_owned();
    for part in target {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => path.push(part),
            Ok(_) => return Ok(Some(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(at(&path)(error)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::fleet::Mount;

    use super::*;
    use crate::contract::an_order;
    use crate::local::folder::{folder, make};

    /// An instance's folder, and a host beside it with folders `one` and `two`, each with a file in it.
    struct Ground {
        root: tempfile::TempDir,
        folder: Folder,
    }

    impl Ground {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let folder = folder(&root.path().join("instances"), &"web".parse().unwrap());
            make(&folder, &an_order("web").seed).unwrap();
            for name in ["one", "two"] {
                fs::create_dir(root.path().join(name)).unwrap();
                fs::write(root.path().join(name).join("file"), name).unwrap();
            }
            Self { root, folder }
        }

        fn host(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn work(&self, path: &str) -> PathBuf {
            self.folder.file(WORK_DIR).join(path)
        }

        fn apply(&self, mounts: &[(&str, &str)]) -> Result<(), MountError> {
            let mount = |name: &str| Mount { source: self.host(name), writable: true };
            apply(&self.folder, &mounts.iter().map(|(target, name)| ((*target).into(), mount(name))).collect())
        }

        /// What is wrong with these mounts. Nothing of the host may have changed.
        fn refused(&self, mounts: &[(&str, &str)]) -> String {
            let error = self.apply(mounts).unwrap_err();
            for name in ["one", "two"] {
                let names: Vec<_> = fs::read_dir(self.host(name)).unwrap().map(|it| it.unwrap().file_name()).collect();
                assert_eq!(names, ["file"]);
            }
            error.to_string()
        }

        fn read(&self, path: &str) -> Option<String> {
            fs::read_to_string(self.work(path)).ok()
        }
    }

    #[test]
    fn mounts_follow_what_is_wanted_and_leave_no_empty_folders() {
        let ground = Ground::new();
        ground.apply(&[]).unwrap();
        assert!(!ground.folder.file(RECORD_FILE).exists(), "without mounts nothing is written");
        ground.apply(&[("./src//app/", "one"), ("data", "two")]).unwrap();
        assert_eq!(
            (ground.read("src/app/file").as_deref(), ground.read("data/file").as_deref()),
            (Some("one"), Some("two"))
        );
        ground.apply(&[("src/app", "two")]).unwrap();
        assert_eq!((ground.read("src/app/file").as_deref(), ground.read("data/file")), (Some("two"), None));
        ground.apply(&[("src", "one")]).unwrap();
        assert_eq!(ground.read("src/file").as_deref(), Some("one"));
        ground.apply(&[]).unwrap();
        assert_eq!(fs::read_dir(ground.work("")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(ground.host("one/file")).unwrap(), "one");
    }

    #[test]
    fn a_place_that_is_not_below_the_work_folder_is_refused() {
        let ground = Ground::new();
        for (target, words) in [
            ("/src", "mount `/src`: driver local has no root of its own; write a path below the work folder"),
            ("../src", "mount `../src` is no path below the work folder"),
            ("a/../..", "mount `a/../..` is no path below the work folder"),
            (".", "mount `.` is no path below the work folder"),
            ("", "mount `` is no path below the work folder"),
        ] {
            assert_eq!(ground.refused(&[(target, "one")]), words);
        }
        assert!(!ground.work("").exists());
    }

    #[test]
    fn no_mount_lies_in_another() {
        let ground = Ground::new();
        for (outer, inner) in [("src", "src/app"), ("./src", "src"), ("zoo/..data", "./zoo/..data/x")] {
            let error = ground.refused(&[(outer, "one"), (inner, "two")]);
            assert!(error.contains(" would lie in the folder of mount "), "{error}");
        }
        ground.apply(&[("src", "one"), ("src-app", "two")]).unwrap();
    }

    #[test]
    fn a_source_that_is_no_folder_is_named() {
        let ground = Ground::new();
        let error = ground.apply(&[("src", "three")]).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().contains("/three of the host can't be used"), "{error}");
        assert!(cause.contains("No such file"), "{cause}");
        assert!(ground.refused(&[("src", "one/file")]).contains("one/file is no absolute path of a folder"));
        let relative = Mounts::from([("src".to_owned(), Mount { source: ".".into(), writable: true })]);
        assert!(matches!(apply(&ground.folder, &relative), Err(MountError::NotAFolder { .. })));
    }

    #[test]
    fn what_is_not_ours_stays_and_is_named() {
        let ground = Ground::new();
        fs::create_dir_all(ground.work("full/inner")).unwrap();
        fs::write(ground.work("file"), "precious").unwrap();
        symlink(ground.host("one"), ground.work("link")).unwrap();
        for target in ["full", "file", "link"] {
            let error = ground.refused(&[(target, "one")]);
            assert!(error.contains(&ground.work(target).display().to_string()), "{error}");
        }
        // Neither a file nor a link that leads to the host is a way to a mount.
        for (target, obstacle) in [("file/src", "file"), ("link/src", "link")] {
            let error = ground.refused(&[(target, "two")]);
            assert!(error.contains(&format!("{} is in its place", ground.work(obstacle).display())), "{error}");
        }
        ground.apply(&[]).unwrap();
        assert!(ground.work("full/inner").exists());
        assert_eq!(ground.read("file").as_deref(), Some("precious"));
        assert!(ground.work("link/file").exists());
    }

    #[test]
    fn a_link_that_somebody_has_replaced_is_no_longer_ours() {
        let ground = Ground::new();
        ground.apply(&[("src/app", "one"), ("data", "one")]).unwrap();
        fs::remove_file(ground.work("data")).unwrap();
        symlink(ground.host("two"), ground.work("data")).unwrap();
        // The way to the other leads elsewhere now, to a link that looks like ours.
        fs::rename(ground.work("src"), ground.host("moved")).unwrap();
        symlink(ground.host("moved"), ground.work("src")).unwrap();
        ground.apply(&[]).unwrap();
        assert_eq!(ground.read("data/file").as_deref(), Some("two"));
        assert!(ground.host("moved/app/file").exists());
    }

    #[test]
    fn links_of_a_start_that_was_cut_off_are_made_or_removed_by_the_next() {
        let ground = Ground::new();
        ground.apply(&[("src", "one")]).unwrap();
        fs::remove_file(ground.work("src")).unwrap();
        ground.apply(&[("src", "one")]).unwrap();
        assert_eq!(ground.read("src/file").as_deref(), Some("one"));
        fs::remove_file(ground.work("src")).unwrap();
        ground.apply(&[]).unwrap();
        ground.apply(&[("src", "two")]).unwrap();
        assert_eq!(ground.read("src/file").as_deref(), Some("two"));
    }

    #[test]
    fn a_record_that_can_not_be_trusted_is_told_and_nothing_is_done() {
        let ground = Ground::new();
        let outside = ground.host("outside");
        symlink(ground.host("one"), &outside).unwrap();
        let lie = BTreeSet::from([Link { target: "../../../outside".into(), source: ground.host("one") }]);
        for record in [b"{".to_vec(), serde_json::to_vec(&lie).unwrap()] {
            fs::write(ground.folder.file(RECORD_FILE), record).unwrap();
            assert!(ground.refused(&[]).contains("mounts.json does not tell any more which links"));
        }
        assert!(outside.join("file").exists());
    }
}

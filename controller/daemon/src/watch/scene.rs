//! Where the watched files are on the disk, links and all: what there is to listen to, and by what a
//! change shows that was not heard. Only looks at metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use crate::source;

/// Most links on the way to a file: as many as Linux follows.
const LINKS_MAX: usize = 40;

/// What tells a file from one that was changed or put in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    /// Nothing for a folder, in which much may happen that is of no interest.
    content: Option<Content>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    size: u64,
    /// When its content, and when anything about it changed last: in seconds, and nanoseconds beyond those.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let content = (!metadata.is_dir()).then(|| Content {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        });
        Self { device: metadata.dev(), inode: metadata.ino(), content }
    }
}

/// The watched files as they are on the disk. Two that are equal say that nothing has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scene {
    /// Each place at which somebody may put something else that would be read in its stead: files, and
    /// the links on the way to them. What is not there has no stamp. Only the last part of a path may be
    /// a link.
    places: BTreeMap<PathBuf, Option<Stamp>>,
    /// The folders whose fleet files are read, without links.
    roots: BTreeSet<PathBuf>,
}

impl Scene {
    /// The scene of these files and folders.
    pub(super) fn of(roots: &[PathBuf]) -> Self {
        let mut scene = Self::default();
        for root in roots {
            let Some(end) = scene.follow(root) else { continue };
            if end.is_dir() {
                // A folder that can't be listed is told by whoever reads it.
                for file in source::files_in(&end).unwrap_or_default() {
                    scene.follow(&file);
                }
                scene.roots.insert(end);
            }
        }
        scene
    }

    /// Each place at which somebody may put something else.
    pub(super) fn places(&self) -> impl Iterator<Item = &Path> {
        self.places.keys().map(PathBuf::as_path).chain(self.roots.iter().map(PathBuf::as_path))
    }

    /// The folders in which something may happen.
    pub(super) fn folders(&self) -> BTreeSet<&Path> {
        let around = self.places.keys().filter_map(|place| place.parent());
        around.chain(self.roots.iter().map(PathBuf::as_path)).collect()
    }

    /// Whether something that happened at that path may have changed what is read.
    pub(super) fn concerns(&self, path: &Path) -> bool {
        let in_root = path.parent().is_some_and(|folder| self.roots.contains(folder)) && source::is_fleet_file(path);
        let holds_one = || self.roots.contains(path) || self.places.keys().any(|place| place.parent() == Some(path));
        in_root || self.places.contains_key(path) || holds_one()
    }

    /// Walks along a path with all its links, notes each place on the way where it could be led
    /// elsewhere, and gives its end.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        let mut rest: Vec<PathBuf> = steps(path);
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(step) = rest.pop() {
            if step == Path::new("..") {
                here.pop();
                continue;
            }
            let place = here.join(step);
            let metadata = fs::symlink_metadata(&place).ok();
            let stamp = metadata.as_ref().map(Stamp::of);
            match metadata {
                Some(metadata) if metadata.is_symlink() => {
                    let target = fs::read_link(&place).ok()?;
                    self.places.insert(place, stamp);
                    links += 1;
                    if links > LINKS_MAX {
                        return None;
                    }
                    rest.extend(steps(&target));
                }
                Some(_) if !rest.is_empty() => here = place,
                Some(_) => {
                    self.places.insert(place.clone(), stamp);
                    return Some(place);
                }
                None => {
                    self.places.insert(place, None);
                    return None;
                }
            }
        }
        Some(here)
    }
}

/// The parts of a path, the last one first.
fn steps(path: &Path) -> Vec<PathBuf> {
    let kept = path.components().filter(|part| !matches!(part, Component::CurDir));
    let mut steps: Vec<PathBuf> = kept.map(|part| PathBuf::from(part.as_os_str())).collect();
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(folder.path()).unwrap();
        (folder, path)
    }

    #[test]
    fn every_link_on_the_way_is_a_place_whose_folder_is_listened_to() {
        let (_folder, top) = folder();
        for name in ["config/..one", "elsewhere"] {
            fs::create_dir_all(top.join(name)).unwrap();
        }
        fs::write(top.join("config/..one/fleet.yaml"), "agents: {}").unwrap();
        symlink("..one", top.join("config/..data")).unwrap();
        symlink("..data/fleet.yaml", top.join("config/fleet.yaml")).unwrap();
        symlink("../config", top.join("elsewhere/config")).unwrap();
        let scene = Scene::of(&[top.join("elsewhere/config/fleet.yaml")]);
        let places: Vec<_> = scene.places().map(|place| place.strip_prefix(&top).unwrap()).collect();
        let expected = ["config/..data", "config/..one/fleet.yaml", "config/fleet.yaml", "elsewhere/config"];
        assert_eq!(places, expected.map(Path::new));
        let folders: Vec<_> = scene.folders().into_iter().map(|it| it.strip_prefix(&top).unwrap()).collect();
        assert_eq!(folders, ["config", "config/..one", "elsewhere"].map(Path::new));

        fs::create_dir(top.join("config/..two")).unwrap();
        fs::write(top.join("config/..two/fleet.yaml"), "agents: {}").unwrap();
        assert_eq!(Scene::of(&[top.join("elsewhere/config/fleet.yaml")]), scene);
        symlink("..two", top.join("config/..tmp")).unwrap();
        fs::rename(top.join("config/..tmp"), top.join("config/..data")).unwrap();
        assert_ne!(Scene::of(&[top.join("elsewhere/config/fleet.yaml")]), scene);
    }

    #[test]
    fn what_happens_beside_a_file_is_of_no_interest() {
        let (_folder, top) = folder();
        let root = top.join("fleet.yaml");
        fs::write(&root, "agents: {}").unwrap();
        let scene = Scene::of(std::slice::from_ref(&root));
        assert!(scene.concerns(&root));
        assert!(scene.concerns(&top), "the folder itself may go");
        assert!(!scene.concerns(&top.join("other.yaml")));
        fs::write(top.join("other.yaml"), "agents: {}").unwrap();
        assert_eq!(Scene::of(std::slice::from_ref(&root)), scene);
        fs::write(&root, "agents: {} ").unwrap();
        assert_ne!(Scene::of(&[root]), scene);
    }

    #[test]
    fn of_a_folder_every_fleet_file_counts_and_nothing_else() {
        let (_folder, top) = folder();
        fs::write(top.join("a.yaml"), "agents: {}").unwrap();
        let scene = Scene::of(std::slice::from_ref(&top));
        assert!(scene.concerns(&top.join("a.yaml")) && scene.concerns(&top.join("new.yml")));
        assert!(!scene.concerns(&top.join(".a.yaml.swp")) && !scene.concerns(&top.join("notes.txt")));
        fs::write(top.join("notes.txt"), "").unwrap();
        assert_eq!(Scene::of(std::slice::from_ref(&top)), scene);
        fs::write(top.join("b.yaml"), "agents: {}").unwrap();
        assert_ne!(Scene::of(&[top]), scene);
    }

    #[test]
    fn what_is_not_there_yet_is_waited_for_in_the_nearest_folder() {
        let (_folder, top) = folder();
        let root = top.join("later/deep/fleet.yaml");
        let scene = Scene::of(std::slice::from_ref(&root));
        assert_eq!(scene.folders().into_iter().collect::<Vec<_>>(), [top.as_path()]);
        assert!(scene.concerns(&top.join("later")));
        fs::create_dir_all(root.parent().unwrap()).unwrap();
        assert_ne!(Scene::of(&[root]), scene);
    }

    #[test]
    fn links_in_a_circle_come_to_an_end() {
        let (_folder, top) = folder();
        symlink("b.yaml", top.join("a.yaml")).unwrap();
        symlink("a.yaml", top.join("b.yaml")).unwrap();
        assert_eq!(Scene::of(&[top.join("a.yaml")]).places().count(), 2);
    }
}

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

struct World {
    place: TempDir,
    files: Files,
}

fn map(files: &[(&str, &str)]) -> BTreeMap<String, FileContent> {
    let file = |content: &str| FileContent { content: content.to_owned(), mode: "0640".parse().unwrap() };
    files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
}

impl World {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let files = Files::load(&Folder::open(place.path()).unwrap()).unwrap();
        Self { place, files }
    }

    /// As a start of the runtime finds it.
    fn restarted(self) -> Self {
        let Self { place, files } = self;
        drop(files);
        let files = Files::load(&Folder::open(place.path()).unwrap()).unwrap();
        Self { place, files }
    }

    fn work(&self, name: &str) -> PathBuf {
        self.place.path().join("work").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.work(name)).unwrap()
    }

    fn apply(&mut self, files: &[(&str, &str)]) -> Vec<String> {
        self.files.apply(&map(files))
    }

    fn inode(&self, name: &str) -> u64 {
        fs::metadata(self.work(name)).unwrap().ino()
    }
}

const NONE: [String; 0] = [];

#[test]
fn files_are_written_with_their_mode_and_folders_and_only_where_they_differ() {
    let mut world = World::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let absolute = elsewhere.path().join("deep/er/file");
    let absolute = absolute.to_str().unwrap();
    fs::write(world.work("same"), "same").unwrap();
    fs::set_permissions(world.work("same"), Permissions::from_mode(0o640)).unwrap();
    let same = world.inode("same");
    assert_eq!(world.apply(&[("a/./b", "one"), (absolute, "two"), ("same", "same")]), NONE);
    assert_eq!((world.read("a/b"), fs::read_to_string(absolute).unwrap()), ("one".to_owned(), "two".to_owned()));
    assert_eq!(fs::metadata(absolute).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(world.inode("same"), same, "it was as it should be");
    let before = world.inode("a/b");
    assert_eq!(world.apply(&[("a/b", "one"), (absolute, "2")]), NONE);
    assert_eq!(world.inode("a/b"), before);
    assert_eq!(fs::read_to_string(absolute).unwrap(), "2");
    let stray = fs::read_dir(elsewhere.path().join("deep/er")).unwrap().count();
    assert_eq!(stray, 1, "nothing else is left in the folder");
}

#[test]
fn what_is_named_no_more_is_removed_also_after_a_restart() {
    let mut world = World::new();
    world.apply(&[("kept", "k"), ("dropped", "d"), ("late", "l")]);
    assert_eq!(world.apply(&[("kept", "k"), ("late", "l")]), NONE);
    assert!(!world.work("dropped").exists());
    let mut world = world.restarted();
    assert_eq!(world.files.mend(), NONE);
    assert!(world.work("late").exists(), "nothing is named as long as there is no configuration");
    world.apply(&[("kept", "k")]);
    assert!(!world.work("late").exists() && world.work("kept").exists());
    let mut world = world.restarted();
    world.apply(&[]);
    assert!(!world.work("kept").exists());
}

#[test]
fn what_it_did_not_write_is_never_removed() {
    let mut world = World::new();
    fs::write(world.work("mine"), "mine").unwrap();
    fs::set_permissions(world.work("mine"), Permissions::from_mode(0o640)).unwrap();
    world.apply(&[("mine", "mine"), ("folder", "f"), ("link", "l")]);
    for name in ["folder", "link"] {
        fs::remove_file(world.work(name)).unwrap();
    }
    fs::create_dir(world.work("folder")).unwrap();
    symlink(world.work("mine"), world.work("link")).unwrap();
    assert_eq!(world.apply(&[]), NONE);
    assert!(world.work("mine").exists() && world.work("folder").exists() && world.work("link").is_symlink());
}

#[test]
fn a_crash_while_a_file_is_written_removes_nothing_of_others() {
    let mut world = World::new();
    let begun = |name: &str| (name.to_owned(), Digest::of(b"ours"));
    world.files.record.begin(vec![begun("ours"), begun("theirs"), begun("neither")]).unwrap();
    fs::write(world.work("ours"), "ours").unwrap();
    fs::write(world.work("theirs"), "theirs").unwrap();
    let mut world = world.restarted();
    world.apply(&[]);
    assert!(!world.work("ours").exists(), "it had been written");
    assert!(world.work("theirs").exists(), "it had not");
}

#[test]
fn what_somebody_changes_is_put_right() {
    let mut world = World::new();
    world.apply(&[("content", "right"), ("mode", "m"), ("gone", "g"), ("linked", "l"), ("fine", "f")]);
    fs::write(world.work("content"), "wrong").unwrap();
    fs::set_permissions(world.work("mode"), Permissions::from_mode(0o777)).unwrap();
    fs::remove_file(world.work("gone")).unwrap();
    fs::write(world.work("target"), "untouched").unwrap();
    fs::remove_file(world.work("linked")).unwrap();
    symlink(world.work("target"), world.work("linked")).unwrap();
    let fine = world.inode("fine");
    // Touched, and still as it should be.
    fs::write(world.work("fine"), "f").unwrap();
    assert_eq!(world.files.mend(), NONE);
    assert_eq!((world.read("content"), world.read("gone")), ("right".to_owned(), "g".to_owned()));
    assert_eq!(fs::metadata(world.work("mode")).unwrap().mode() & 0o7777, 0o640);
    assert!(!world.work("linked").is_symlink());
    assert_eq!((world.read("linked"), world.read("target")), ("l".to_owned(), "untouched".to_owned()));
    assert_eq!(world.inode("fine"), fine);
}

#[test]
fn what_can_not_be_written_is_a_sentence_and_the_rest_is_done() {
    let mut world = World::new();
    fs::create_dir(world.work("folder")).unwrap();
    fs::write(world.work("file"), "").unwrap();
    let own = world.place.path().canonicalize().unwrap().join("seed.json");
    let own = own.to_str().unwrap();
    let problems =
        world.apply(&[("../out", ""), ("folder", ""), ("file/below", ""), (own, ""), ("/", ""), ("good", "g")]);
    assert_eq!(world.read("good"), "g");
    let expected = [
        "`../out` can't be written: it is no path of a file, or has `..` in it".to_owned(),
        "`/` can't be written: it is no path of a file, or has `..` in it".to_owned(),
        format!("`{own}` can't be written: it lies in the runtime's own folder"),
        "`file/below` can't be written: Not a directory (os error 20)".to_owned(),
        "`folder` can't be written: something else than a file is there".to_owned(),
    ];
    for sentence in &expected {
        assert!(problems.contains(sentence), "{sentence} in {problems:?}");
    }
    assert_eq!(problems.len(), expected.len());
    assert_eq!(world.files.mend(), problems, "it stays so");
    fs::remove_dir(world.work("folder")).unwrap();
    assert_eq!(world.files.mend().len(), problems.len() - 1, "until it can be done");
    assert_eq!(world.read("folder"), "");
    world.apply(&[]);
    assert!(world.work("file").exists(), "what could not be written was not");
}

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
fn a_crash_while_a_file_is_written_anew_leaves_it_removable_with_either_content() {
    for (now, removed) in [("old", true), ("new", true), ("theirs", false)] {
        let mut world = World::new();
        world.apply(&[("file", "old")]);
        world.files.record.begin(vec![("file".to_owned(), Digest::of(b"new"))]).unwrap();
        fs::write(world.work("file"), now).unwrap();
        let mut world = world.restarted();
        assert_eq!(world.apply(&[]), NONE);
        assert_eq!(world.work("file").exists(), !removed, "{now}");
    }
}

#[test]
fn a_file_that_somebody_changed_is_put_right_while_it_is_named_and_left_alone_when_it_is_not() {
    let mut world = World::new();
    world.apply(&[("mended", "ours"), ("changed", "ours"), ("grown", "ours")]);
    fs::write(world.work("mended"), "theirs").unwrap();
    assert_eq!(world.files.mend(), NONE);
    assert_eq!(world.read("mended"), "ours");
    fs::write(world.work("changed"), "theirs").unwrap();
    fs::write(world.work("grown"), "ours".repeat(1024 * 1024)).unwrap();
    assert_eq!(world.apply(&[]), NONE);
    assert!(!world.work("mended").exists());
    assert_eq!(world.read("changed"), "theirs");
    assert!(world.work("grown").exists());
    // It is forgotten: even with the old content it is not the runtime's any more.
    fs::write(world.work("changed"), "ours").unwrap();
    assert_eq!(world.apply(&[]), NONE);
    let mut world = world.restarted();
    assert_eq!(world.apply(&[]), NONE);
    assert_eq!(world.read("changed"), "ours");
}

#[test]
fn what_a_failed_write_was_to_replace_is_still_removed() {
    let mut world = World::new();
    world.apply(&[("file", "old")]);
    fs::create_dir(world.work(".vm-agent-new")).unwrap();
    assert_eq!(world.apply(&[("file", "new")]).len(), 1);
    assert_eq!((world.apply(&[]), world.work("file").exists()), (NONE.to_vec(), false));
}

#[test]
fn a_file_of_a_record_without_contents_is_left_alone_until_it_is_written_again() {
    let mut world = World::new();
    world.apply(&[("left", "l"), ("again", "a")]);
    fs::write(world.place.path().join("files.json"), r#"{"left":"written","again":"written"}"#).unwrap();
    let mut world = world.restarted();
    assert_eq!(world.apply(&[("again", "b")]), NONE);
    assert_eq!(world.read("left"), "l");
    assert_eq!(world.apply(&[]), NONE);
    assert!(!world.work("again").exists());
}

#[test]
fn a_link_in_place_of_a_folder_leads_neither_writing_nor_removing_astray() {
    let mut world = World::new();
    let below = world.place.path().canonicalize().unwrap().join("work/a/absolute");
    let below = below.to_str().unwrap();
    let files = [("a/b/differs", "ours"), ("a/b/same", "ours"), (below, "ours")];
    assert_eq!(world.apply(&files), NONE);
    // The folder moves away, with a file that looks just like the one that was written.
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("moved");
    fs::rename(world.work("a"), &moved).unwrap();
    symlink(&moved, world.work("a")).unwrap();
    fs::write(moved.join("b/differs"), "theirs").unwrap();
    let sentences = |deed: &str| {
        let why = "`a` is a symbolic link, and in the work folder none is followed; put a folder in its place";
        let mut all = files.map(|(name, _)| format!("`{name}` can't be {deed}: {why}"));
        all.sort();
        all
    };
    let contents = || {
        let read = |name| fs::read_to_string(moved.join(name)).unwrap();
        (read("b/differs"), read("b/same"), read("absolute"), fs::read_dir(moved.join("b")).unwrap().count())
    };
    let untouched = ("theirs".to_owned(), "ours".to_owned(), "ours".to_owned(), 2);
    assert_eq!((world.files.mend(), contents()), (sentences("written").to_vec(), untouched.clone()));
    let mut world = world.restarted();
    assert_eq!((world.apply(&files), contents()), (sentences("written").to_vec(), untouched.clone()));
    assert_eq!((world.apply(&[]), contents()), (sentences("removed").to_vec(), untouched.clone()));
    // Without the link there is nothing to remove.
    fs::remove_file(world.work("a")).unwrap();
    assert_eq!((world.files.mend(), contents()), (NONE.to_vec(), untouched));
}

#[test]
fn links_outside_the_work_folder_are_followed_and_a_changed_file_stays_there_too() {
    let mut world = World::new();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir(elsewhere.path().join("folder")).unwrap();
    symlink("folder", elsewhere.path().join("link")).unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| elsewhere.path().join("link").join(name));
    assert_eq!(world.apply(&[(ours.to_str().unwrap(), "1"), (theirs.to_str().unwrap(), "2")]), NONE);
    assert!(elsewhere.path().join("folder/ours").exists());
    fs::write(&theirs, "changed").unwrap();
    assert_eq!(world.apply(&[]), NONE);
    assert!(!ours.exists() && theirs.exists());
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

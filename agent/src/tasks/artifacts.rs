//! The files that a task was asked to make: found by patterns, measured, and summed up.
//!
//! `*` and `?` stand for what a name can have in one folder, `**` as a whole part of a path for any folders, and at
//! its end for all that is in them. As in a shell, none of them stands for names that begin with a dot. Folders are
//! no files; symbolic links to files are, as long as they lead to no place outside. Links to folders are followed
//! where a pattern names them, and nowhere else: one that leads back up would never come to an end.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use ring::digest::{Context, SHA256};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::task::Artifact;
use vm_agent_schemas::units::ByteSize;
use walkdir::WalkDir;

/// Most files that a task can be asked for: what it left behind is told in one message.
const FILES_MAX: usize = 256;
/// Most bytes of all their paths together, for the same reason.
const PATHS_MAX: usize = 64 * 1024;
/// How much of a file is read at once, in bytes.
const READ: usize = 64 * 1024;

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// What a job has to make.
#[derive(Debug)]
pub(super) struct Wanted {
    places: Vec<Place>,
    /// Where the files of patterns that are not absolute have to lie: the job's folder, and the work folder.
    inside: [PathBuf; 2],
}

/// Where the files of one pattern are looked for.
#[derive(Debug)]
struct Place {
    /// As it was written.
    pattern: String,
    /// As far as it names what is meant.
    root: PathBuf,
    /// The rest of it; nothing where it names a file.
    below: Option<Pattern>,
    /// How deep files can lie below.
    depth: usize,
}

impl Wanted {
    /// The patterns of a job, checked, from its folder on.
    pub(super) fn new(folder: &Path, work: &Path, patterns: &[String]) -> Result<Self, String> {
        let places = patterns.iter().map(|pattern| Place::new(folder, pattern)).collect::<Result<_, _>>()?;
        Ok(Self { places, inside: [folder.to_owned(), work.to_owned()] })
    }

    /// Whether there is nothing to look for.
    pub(super) const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Finds the files, and what is in them. A pattern that finds none is an error.
    pub(super) fn collect(&self) -> Result<Vec<Artifact>, String> {
        let (mut paths, mut len) = (Vec::<PathBuf>::new(), 0);
        for place in &self.places {
            let (pattern, before) = (&place.pattern, paths.len());
            for path in place.files() {
                if !pattern.starts_with('/') {
                    self.hold_inside(pattern, &path)?;
                }
                len += told_len(&path);
                paths.push(path);
                if paths.len() > FILES_MAX || len > PATHS_MAX {
                    return Err(format!(
                        "there are more than {FILES_MAX} artifacts, or their paths are too long; pack them"
                    ));
                }
            }
            if paths.len() == before {
                return Err(format!("the artifact `{pattern}` is missing: no such file was made"));
            }
        }
        paths.sort_unstable();
        paths.dedup();
        paths.iter().map(|path| measure(path).map_err(|error| format!("{}: {error}", path.display()))).collect()
    }

    /// Refuses a file that a link has led to from inside.
    fn hold_inside(&self, pattern: &str, path: &Path) -> Result<(), String> {
        let real = fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let within = |place: &PathBuf| fs::canonicalize(place).is_ok_and(|place| real.starts_with(place));
        if self.inside.iter().any(within) {
            return Ok(());
        }
        let (path, real) = (path.display(), real.display());
        Err(format!("the artifact `{pattern}` leads out of its folder: {path} is a link to {real}; copy what is meant"))
    }
}

impl Place {
    /// Where to look for what a pattern means, from this folder on.
    fn new(folder: &Path, pattern: &str) -> Result<Self, String> {
        let mut parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.contains(&"..") {
            return Err(format!("the artifact `{pattern}` leads out of its folder; name it without `..`"));
        }
        // Folders alone are never meant, however deep.
        if parts.last() == Some(&"**") {
            parts.push("*");
        }
        let named = parts.iter().take_while(|part| !part.contains(['*', '?'])).count();
        let (named, below) = parts.split_at(named);
        let folder = if pattern.starts_with('/') { Path::new("/") } else { folder };
        let root = folder.join(named.join("/"));
        let depth = if below.contains(&"**") { usize::MAX } else { below.len() };
        // Brackets have no meaning here.
        let below = below.join("/").replace('[', "[[]");
        let compiled = (!below.is_empty()).then(|| Pattern::new(&below)).transpose();
        match compiled {
            Ok(below) if !parts.is_empty() => Ok(Self { pattern: pattern.to_owned(), root, below, depth }),
            _ => Err(format!("`{pattern}` is no pattern of artifacts: `**` stands for folders, alone between slashes")),
        }
    }

    /// The files that there are. What can't be listed has no files for this user.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        // What is named is not itself below.
        let least = usize::from(self.below.is_some());
        let found = WalkDir::new(&self.root).min_depth(least).max_depth(self.depth).into_iter().filter_map(Result::ok);
        let is_meant = |path: &PathBuf| {
            let below = path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy();
            let matches = |pattern: &Pattern| pattern.matches_with(&below, OPTIONS);
            self.below.as_ref().map_or(below.is_empty(), matches) && path.is_file()
        };
        found.map(walkdir::DirEntry::into_path).filter(is_meant)
    }
}

/// How long a path is when it is told, in bytes: where it holds odd characters, longer than it is.
fn told_len(path: &Path) -> usize {
    serde_json::to_string(&path.to_string_lossy()).map_or(usize::MAX, |text| text.len())
}

fn measure(path: &Path) -> io::Result<Artifact> {
    let mut file = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let (mut size, mut buffer) = (0, vec![0; READ]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                context.update(&buffer[..len]);
                size += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let path = path.to_str().ok_or_else(|| io::Error::other("its name is not UTF-8"))?.to_owned();
    Ok(Artifact { path, size: ByteSize::from_bytes(size), sha256: Digest::of_sha256(&context.finish()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn found(files: &[&str], asked: &[&str]) -> Result<Vec<String>, String> {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("a[b]c");
        for file in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        let asked: Vec<String> = asked.iter().map(|&it| it.to_owned()).collect();
        let artifacts = Wanted::new(&folder, &folder, &asked)?.collect()?;
        artifacts.iter().for_each(|it| assert_eq!(it.sha256, Digest::of(&fs::read(&it.path).unwrap())));
        let name = |it: &Artifact| Path::new(&it.path).strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        Ok(artifacts.iter().map(name).collect())
    }

    #[test]
    fn patterns_find_files_and_each_file_is_told_once() {
        let files = ["app.tar", "app.sig", ".hidden", "out/a.log", "out/deep/b.log", "out/.x/c.log", "x[1]"];
        assert_eq!(found(&files, &["app.*", "app.tar"]).unwrap(), ["app.sig", "app.tar"]);
        assert_eq!(found(&files, &["**/*.log"]).unwrap(), ["out/a.log", "out/deep/b.log"]);
        assert_eq!(found(&files, &["x[1]"]).unwrap(), ["x[1]"]);
        assert_eq!(found(&files, &["*"]).unwrap(), ["app.sig", "app.tar", "x[1]"]);
    }

    #[test]
    fn two_stars_stand_for_all_that_is_below_at_any_depth() {
        let files = ["a.txt", "out/b.txt", "out/c.bin", "out/deep/er/d.txt", "out/.x/e.txt"];
        assert_eq!(found(&files, &["out/**"]).unwrap(), ["out/b.txt", "out/c.bin", "out/deep/er/d.txt"]);
        assert_eq!(found(&files, &["**"]).unwrap().len(), 4);
        assert_eq!(found(&files, &["**/*.txt"]).unwrap(), ["a.txt", "out/b.txt", "out/deep/er/d.txt"]);
        assert_eq!(found(&files, &["out/**/*.txt"]).unwrap(), ["out/b.txt", "out/deep/er/d.txt"]);
        assert_eq!(found(&files, &["out/*"]).unwrap(), ["out/b.txt", "out/c.bin"]);
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        for pattern in ["../x", "out/../../x", "..", "**/../x"] {
            let refused = found(&["x"], &[pattern]).unwrap_err();
            assert_eq!(refused, format!("the artifact `{pattern}` leads out of its folder; name it without `..`"));
        }
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let (work, folder) = (place.join("work"), place.join("work/project"));
        fs::create_dir_all(work.join("cache")).unwrap();
        fs::create_dir_all(folder.join("out")).unwrap();
        fs::write(place.join("secret"), "").unwrap();
        fs::write(work.join("cache/kept"), "").unwrap();
        let collect = |pattern: &str| Wanted::new(&folder, &work, &[pattern.to_owned()])?.collect();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
        link("../../cache/kept", "out/inside");
        assert_eq!(collect("out/*").unwrap().len(), 1);
        link("../../../secret", "out/link");
        link("../..", "way");
        for pattern in ["out/**", "out/link", "way/secret"] {
            let refused = collect(pattern).unwrap_err();
            assert!(refused.starts_with(&format!("the artifact `{pattern}` leads out of its folder: ")), "{refused}");
        }
        let absolute = place.join("secret").display().to_string();
        assert_eq!(collect(&absolute).unwrap().len(), 1, "a file elsewhere is named from the root on");
    }

    #[test]
    fn links_to_folders_are_followed_where_they_are_named_and_nowhere_else() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().canonicalize().unwrap();
        fs::create_dir_all(folder.join("out/deep")).unwrap();
        fs::write(folder.join("out/deep/a.txt"), "").unwrap();
        for name in ["out/deep/up", "out/deep/again", "out/round"] {
            std::os::unix::fs::symlink(&folder, folder.join(name)).unwrap();
        }
        let collect = |pattern: &str| {
            let found = Wanted::new(&folder, &folder, &[pattern.to_owned()])?.collect()?;
            Ok::<_, String>(found.into_iter().map(|it| it.path).collect::<Vec<_>>())
        };
        let file = |name: &str| vec![folder.join(name).display().to_string()];
        for pattern in ["**", "out/**/*.txt", "**/deep/*"] {
            assert_eq!(collect(pattern).unwrap(), file("out/deep/a.txt"), "{pattern}");
        }
        assert_eq!(collect("out/round/out/**").unwrap(), file("out/round/out/deep/a.txt"));
    }

    #[test]
    fn paths_count_as_they_are_told() {
        let odd = "\u{1}".repeat(200);
        let names: Vec<String> = (0..60).map(|number| format!("{odd}{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(found(&names, &["*"]).unwrap_err().ends_with("their paths are too long; pack them"));
    }

    #[test]
    fn what_is_missing_or_too_much_or_no_pattern_is_said() {
        let missing = found(&["out/a"], &["out"]).unwrap_err();
        assert_eq!(missing, "the artifact `out` is missing: no such file was made");
        assert!(found(&["out"], &["out/*"]).unwrap_err().ends_with("is missing: no such file was made"));
        let names: Vec<String> = (0..=FILES_MAX).map(|number| format!("f{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(found(&names, &["f*"]).unwrap_err().starts_with("there are more than 256 artifacts"));
        assert!(found(&[], &["a**"]).unwrap_err().starts_with("`a**` is no pattern"));
        assert!(found(&[], &[""]).is_err());
    }
}

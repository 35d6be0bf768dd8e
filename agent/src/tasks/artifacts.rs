//! The files that a task was asked to make: found by patterns, measured, and summed up.
//!
//! `*` and `?` stand for what a name can have in one folder, `**` as a whole part of a path for any folders. As in
//! a shell, none of them stands for names that begin with a dot. Folders are no files; symbolic links to files are.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern, glob_with};
use ring::digest::{Context, SHA256};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::task::Artifact;
use vm_agent_schemas::units::ByteSize;

/// Most files that a task can be asked for: what it left behind is told in one message.
const FILES_MAX: usize = 256;
/// Most bytes of all their paths together, for the same reason.
const PATHS_MAX: usize = 64 * 1024;
/// How much of a file is read at once, in bytes.
const READ: usize = 64 * 1024;

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// The patterns of a job, checked, from this folder on.
pub(super) fn patterns(folder: &Path, patterns: &[String]) -> Result<Vec<(String, String)>, String> {
    let folder = Pattern::escape(&folder.to_string_lossy());
    let absolute = |pattern: &String| {
        // Brackets have no meaning here.
        let plain: String =
            pattern.chars().map(|it| if "[]".contains(it) { format!("[{it}]") } else { it.into() }).collect();
        let whole = if pattern.starts_with('/') { plain } else { format!("{folder}/{plain}") };
        match Pattern::new(&whole) {
            Ok(_) if !pattern.is_empty() => Ok((pattern.clone(), whole)),
            _ => Err(format!("`{pattern}` is no pattern of artifacts: `**` stands for folders, alone between slashes")),
        }
    };
    patterns.iter().map(absolute).collect()
}

/// Finds the files, and what is in them. A pattern that finds none is an error.
pub(super) fn collect(patterns: &[(String, String)]) -> Result<Vec<Artifact>, String> {
    let (mut paths, mut len) = (Vec::<PathBuf>::new(), 0);
    for (pattern, whole) in patterns {
        let found = glob_with(whole, OPTIONS).map_err(|error| format!("`{pattern}` is no pattern: {error}"))?;
        let before = paths.len();
        // What can't be listed has no files for this user.
        for path in found.filter_map(Result::ok).filter(|path| path.is_file()) {
            len += path.as_os_str().len();
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
        let artifacts = collect(&patterns(&folder, &asked)?)?;
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
    fn what_is_missing_or_too_much_or_no_pattern_is_said() {
        let missing = found(&["out/a"], &["out"]).unwrap_err();
        assert_eq!(missing, "the artifact `out` is missing: no such file was made");
        let names: Vec<String> = (0..=FILES_MAX).map(|number| format!("f{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(found(&names, &["f*"]).unwrap_err().starts_with("there are more than 256 artifacts"));
        assert!(found(&[], &["a**"]).unwrap_err().starts_with("`a**` is no pattern"));
        assert!(found(&[], &[""]).is_err());
    }
}

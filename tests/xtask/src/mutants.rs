//! `cargo xtask mutants`: a simulation that notices nothing shows nothing. So the product is broken on
//! purpose, in a copy of its sources, in one way after the other, and each must be noticed by some seed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::Deserialize;

use crate::run::{answer_of, cargo, root};

/// Where the ways to break the product stand.
const LIST: &str = "tests/mutations/mutations.yaml";

/// One way to break the product.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutation {
    name: String,
    /// The promise that does not hold any more.
    breaks: String,
    file: String,
    /// What stands in the file, once. How it is broken into lines does not matter.
    find: String,
    replace: String,
}

impl Mutation {
    /// The file's text, broken.
    fn broken(&self, text: &str) -> Result<String, String> {
        let places = places(text, &self.find);
        let [place] = places.as_slice() else {
            let (count, Self { name, file, .. }) = (places.len(), self);
            return Err(format!("mutation `{name}`: its text stands {count} times in {file}, and not once"));
        };
        Ok(format!("{}{}{}", &text[..place.start], self.replace.trim_end(), &text[place.end..]))
    }
}

fn list(root: &Path) -> Result<Vec<Mutation>, String> {
    let path = root.join(LIST);
    let text = read(&path)?;
    serde_yaml::from_str(&text).map_err(|error| format!("{} can't be read: {error}", path.display()))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{} can't be read: {error}", path.display()))
}

/// Where the words of `wanted` follow each other in a text, with any space between them.
fn places(text: &str, wanted: &str) -> Vec<Range<usize>> {
    let words: Vec<&str> = wanted.split_whitespace().collect();
    let Some((first, others)) = words.split_first() else { return Vec::new() };
    let found = text.match_indices(first).filter_map(|(start, _)| {
        let mut end = start + first.len();
        for word in others {
            let rest = text[end..].trim_start();
            rest.strip_prefix(word)?;
            end = text.len() - rest.len() + word.len();
        }
        Some(start..end)
    });
    found.collect()
}

/// Breaks the product in every way, or in those with `only` in their name.
///
/// # Errors
/// When one of them is not noticed within `limit` seconds.
pub(crate) fn run(only: Option<&str>, limit: u64) -> Result<(), String> {
    let copy = copy()?;
    let simulation = Simulation { copy: copy.clone(), limit };
    simulation.build()?;
    if let Some(noticed) = simulation.look(5)? {
        return Err(format!("the product is broken as it is: {noticed}"));
    }
    let mut unnoticed = Vec::new();
    let all = list(&copy)?;
    for mutation in all.iter().filter(|it| only.is_none_or(|only| it.name.contains(only))) {
        let path = copy.join(&mutation.file);
        let text = read(&path)?;
        write(&path, &mutation.broken(&text)?)?;
        let built = simulation.build();
        let begun = Instant::now();
        let noticed = built.and_then(|()| simulation.look(limit));
        write(&path, &text)?;
        let seconds = begun.elapsed().as_secs_f64();
        match noticed? {
            Some(how) => eprintln!("xtask: {}: {seconds:.1} s: {how}", mutation.name),
            None => {
                eprintln!(
                    "xtask: {}: NOT noticed in {seconds:.0} s, though it breaks: {}",
                    mutation.name, mutation.breaks
                );
                unnoticed.push(mutation.name.clone());
            }
        }
    }
    if unnoticed.is_empty() { Ok(()) } else { Err(format!("not noticed: {}", unnoticed.join(", "))) }
}

/// Copies the files that git knows to a folder of their own. Only what differs is written, so that
/// cargo builds only that anew.
fn copy() -> Result<PathBuf, String> {
    let from = root();
    let to = from.join("target/mutants/sources");
    let mut git = Command::new("git");
    git.args(["ls-files", "-z"]).current_dir(&from);
    let answer = answer_of(git)?;
    let names: BTreeSet<PathBuf> =
        answer.split('\0').filter(|name| !name.is_empty()).map(|name| to.join(name)).collect();
    remove_others(&to, &names).map_err(|error| format!("{} can't be tidied up: {error}", to.display()))?;
    for target in names {
        let source = from.join(target.strip_prefix(&to).unwrap_or(&target));
        // What git knows may be deleted here.
        let Ok(content) = fs::read(&source) else { continue };
        if fs::read(&target).is_ok_and(|known| known == content) {
            continue;
        }
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(|error| format!("{} can't be made: {error}", folder.display()))?;
        }
        fs::write(&target, content).map_err(|error| format!("{} can't be written: {error}", target.display()))?;
    }
    Ok(to)
}

/// Removes the files of an earlier copy that are no more.
fn remove_others(folder: &Path, names: &BTreeSet<PathBuf>) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let (path, is_folder) = entry.and_then(|it| Ok((it.path(), it.file_type()?.is_dir())))?;
        if is_folder {
            remove_others(&path, names)?;
        } else if !names.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{} can't be written: {error}", path.display()))
}

/// The simulation of the copy.
struct Simulation {
    copy: PathBuf,
    limit: u64,
}

impl Simulation {
    fn target(&self) -> PathBuf {
        self.copy.with_file_name("target")
    }

    fn build(&self) -> Result<(), String> {
        let mut build = cargo(&["build", "--quiet", "--package", "vm-agent-simulation"]);
        // What is broken on purpose may leave something unused.
        build.current_dir(&self.copy).env("CARGO_TARGET_DIR", self.target()).env("RUSTFLAGS", "-Awarnings");
        crate::run::run(build)
    }

    /// Runs seeds for that long, and tells which promise was broken, if any was.
    fn look(&self, seconds: u64) -> Result<Option<String>, String> {
        let mut command = Command::new(self.target().join("debug/simulate"));
        command.args(["--seeds", "1000000000", "--limit", &seconds.min(self.limit).to_string()]);
        let output = command.output().map_err(|error| format!("the simulation can't be run: {error}"))?;
        if output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let broke = text.lines().find(|line| line.starts_with("seed ") && line.contains(" broke "));
        let how = broke.or_else(|| text.lines().find(|line| line.contains("panicked"))).unwrap_or("it ended badly");
        Ok(Some(how.chars().take(160).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_fits_its_file_in_exactly_one_place() {
        let root = root();
        let all = list(&root).unwrap();
        assert!(all.len() >= 12, "only {} mutations", all.len());
        for mutation in &all {
            let text = read(&root.join(&mutation.file)).unwrap();
            let broken = mutation.broken(&text).unwrap();
            assert_ne!(broken, text, "{}", mutation.name);
            assert!(!mutation.breaks.is_empty());
        }
    }

    #[test]
    fn how_a_text_is_broken_into_lines_does_not_matter() {
        assert_eq!(places("a  b\n  c a b d", "a b c").first(), Some(&(0..8)));
        assert_eq!(places("a b a b", "a b").len(), 2);
        assert_eq!(places("a b", "a c"), []);
    }
}

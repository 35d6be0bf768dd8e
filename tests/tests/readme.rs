//! What README.md shows is what happens: the commands of its tour are run as they are typed, and print
//! what stands there.

use std::path::Path;
use std::process::{Command, Stdio};

use vm_agent_tests::e2e::Fleet;

/// The code blocks of a language in a part of the README.
fn blocks<'a>(part: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    part.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// The words of a line, with those that differ from one time to the next told by their kind.
fn words(line: &str) -> Vec<&str> {
    let word = |word| match str::trim_matches(word, |c: char| !c.is_ascii_alphanumeric()) {
        id if id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()) => "an id",
        time if time.starts_with(|c: char| c.is_ascii_digit()) && time.ends_with(['s', 'm', 'h']) => "a time",
        _ => word,
    };
    line.split_whitespace().map(word).collect()
}

#[test]
fn the_tour_of_the_readme_goes_as_it_is_written() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let tour = readme.split("\n## ").find(|part| part.starts_with("Five minutes")).expect("there is a tour");
    let fleet = Fleet::new(blocks(tour, "yaml")[0]);
    let program = fleet.command(&[]).get_program().to_owned();
    let path = format!("{}:{}", Path::new(&program).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let consoles = blocks(tour, "console");
    assert!(!consoles.is_empty());
    for block in consoles {
        let (typed, shown): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| line.starts_with("$ "));
        let script: Vec<&str> = typed.iter().map(|line| &line[2..]).collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", &script.join("\n")]).current_dir(fleet.path()).stdin(Stdio::null());
        shell.env("PATH", &path).env("HOME", fleet.path()).env("VM_AGENT_STATE_DIR", fleet.state_dir());
        let output = shell.output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let printed: Vec<_> = printed.lines().map(words).collect();
        let shown: Vec<_> = shown.into_iter().map(words).collect();
        assert_eq!(printed, shown, "{script:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    fleet.up();
    fleet.finish();
}

//! What README.md shows is what happens: the commands of its walks are run as they are typed, and print what stands
//! there.
#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

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
        id if [12, 36].contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') => "an id",
        time if time.starts_with(|c: char| c.is_ascii_digit()) && time.ends_with(['s', 'm', 'h']) => "a time",
        _ => word,
    };
    line.split_whitespace().map(word).collect()
}

/// Does what a part of the README says, as it is typed, in a folder with the first file that stands there, and compares
/// what is printed with what is shown.
fn walk(part: &str) -> Fleet {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let part = readme.split("\n## ").find(|text| text.starts_with(part)).expect("the README has this part");
    let fleet = Fleet::new(blocks(part, "yaml")[0]);
    let program = fleet.command(&[]).get_program().to_owned();
    let path = format!("{}:{}", Path::new(&program).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let consoles = blocks(part, "console");
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
    fleet
}

#[test]
fn the_five_minutes_go_as_they_are_written() {
    let fleet = walk("Five minutes");
    fleet.up();
    fleet.finish();
}

#[test]
fn tasks_sessions_and_messages_go_as_they_are_written() {
    let fleet = walk("Tasks, sessions and messages");
    fleet.wait_until_quiet();
}

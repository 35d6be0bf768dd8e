//! What README.md names is there: every command that stands in it is one that the program takes.

use std::path::Path;

use clap::error::ErrorKind;

/// The words of a command as a shell would take them, up to where the shell does something else with it.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | ';' | ')') => break,
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// A word that stands for something, as something that it could stand for.
fn filled(word: String) -> String {
    match word.as_str() {
        "ID" | "$id" | "$again" => "0190c5a8-0000-7000-8000-000000000000".to_owned(),
        "SPAN" => "1h".to_owned(),
        _ if word.bytes().all(|byte| byte.is_ascii_uppercase()) => word.to_lowercase(),
        _ => word,
    }
}

/// Every command of the program that stands in a text: typed in a block, or named in a line.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (index, block) in text.split("```").enumerate() {
        let lines: Vec<&str> = if index % 2 == 1 {
            block.lines().filter_map(|line| line.strip_prefix("$ ")).collect()
        } else {
            block.split('`').skip(1).step_by(2).collect()
        };
        let of_program = lines.iter().filter_map(|line| line.find("vm-agent ").map(|at| &line[at..]));
        found.extend(of_program.map(words).filter(|words| !words.contains(&"ARGS".to_owned())));
    }
    found
}

#[test]
fn every_command_of_the_readme_is_one() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let commands = commands(&readme);
    assert!(commands.len() > 30, "{commands:?}");
    for words in commands {
        let command: Vec<String> = words.into_iter().map(filled).collect();
        if let Err(error) = vm_agent_cli::command().try_get_matches_from(&command) {
            assert_eq!(error.kind(), ErrorKind::DisplayHelp, "{command:?}: {error}");
        }
    }
}

#[test]
fn a_command_ends_where_the_shell_goes_on() {
    assert_eq!(words("vm-agent task a -- 'b | c' > d"), ["vm-agent", "task", "a", "--", "b | c"]);
    assert_eq!(words("vm-agent exec a -- x; echo $?"), ["vm-agent", "exec", "a", "--", "x"]);
}

//! Fleet files.

use vm_agent_schemas::fleet::{Diagnostic, SourceFile, decode, parse_all};

/// Ends one file and begins the next.
const NEXT: char = '\u{1e}';

/// Files are a fleet, or every sentence about them names a place that is there.
pub(crate) fn files(bytes: &[u8]) {
    let text = match decode("f0", bytes) {
        Ok(text) => text,
        Err(diagnostic) => return inside(&diagnostic, "f0", &String::from_utf8_lossy(bytes)),
    };
    let files: Vec<SourceFile> = text
        .split(NEXT)
        .enumerate()
        .map(|(index, text)| SourceFile { name: format!("f{index}"), path: None, text: text.to_owned() })
        .collect();
    if let Err(diagnostics) = parse_all(&files) {
        assert!(!diagnostics.is_empty(), "it is wrong, and nothing says why");
        for diagnostic in diagnostics {
            let file = files.iter().find(|file| file.name == diagnostic.file).expect("it is about one of the files");
            inside(&diagnostic, &file.name, &file.text);
        }
    }
}

fn inside(diagnostic: &Diagnostic, file: &str, text: &str) {
    assert_eq!(diagnostic.file, file);
    assert!(!diagnostic.message.is_empty());
    assert!(!diagnostic.to_string().is_empty());
    let Some(place) = diagnostic.place else { return };
    let line = place.line.checked_sub(1).and_then(|line| text.split('\n').nth(line));
    let line = line.unwrap_or_else(|| panic!("there is no line {}: {diagnostic}", place.line));
    // The column behind the last character is where something is missing.
    let columns = line.chars().count() + 1;
    assert!((1..=columns).contains(&place.column), "line {} has {columns} columns: {diagnostic}", place.line);
}

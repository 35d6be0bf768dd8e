//! The texts that make a fleet, before anything in them is understood.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::diagnostic::{Diagnostic, Finding, Place};

/// Largest fleet file read: ten thousand agents with every key take about a third of it.
pub const FILE_MAX: usize = 10 * 1024 * 1024;

/// One of the texts that make a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceFile {
    /// Its name as the user wrote it, for sentences.
    pub name: String,
    /// Where it is, absolute; nothing for a text that came from nowhere on the disk. Relative paths in
    /// it begin in its folder.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// What it says.
    pub text: String,
}

/// The bytes of a file as text.
///
/// # Errors
/// The first byte that is not UTF-8, with its place.
#[expect(clippy::result_large_err, reason = "it is made once for a file, and callers keep it beside others")]
pub fn decode(name: &str, bytes: &[u8]) -> Result<String, Diagnostic> {
    let wrong = match std::str::from_utf8(bytes) {
        Ok(text) => return Ok(text.to_owned()),
        Err(error) => error.valid_up_to(),
    };
    let before = String::from_utf8_lossy(&bytes[..wrong]);
    let place = place_of(&before, wrong);
    let start = wrong - lines(&before).last().map_or(0, |line| line.len());
    let end = bytes[wrong..].iter().position(|byte| matches!(byte, b'\n' | b'\r'));
    let line = String::from_utf8_lossy(&bytes[start..end.map_or(bytes.len(), |end| wrong + end)]);
    let mut shown = vec![""; place.line];
    shown[place.line - 1] = &line;
    let encoding = match bytes {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "the file seems to be UTF-16: save it as UTF-8",
        _ => "save the file as UTF-8",
    };
    let message = format!("the byte 0x{:02X} is not UTF-8", bytes[wrong]);
    Err(Finding::of_file(message).advised(encoding.to_owned()).told(name, Some(place), "", &shown))
}

/// The lines of a text.
pub(super) fn lines(text: &str) -> Vec<&str> {
    text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect()
}

/// The place of the character at a byte.
pub(super) fn place_of(text: &str, byte: usize) -> Place {
    let lines = lines(&text[..byte]);
    Place { line: lines.len(), column: lines.last().map_or(0, |line| line.chars().count()) + 1 }
}

/// The text without the mark that some editors begin a file with.
///
/// # Errors
/// When it is too long, or has characters that YAML does not allow or that its readers disagree about.
pub(super) fn sound(text: &str) -> Result<&str, Finding> {
    if text.len() > FILE_MAX {
        return Err(Finding::of_file(format!("the file has {} bytes; at most {FILE_MAX} are read", text.len())));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Some((index, stray)) = text.char_indices().find(|&(at, c)| is_stray(c, &text[at..])) else { return Ok(text) };
    let place = place_of(text, index);
    let message = format!("the character U+{:04X} can't be seen and may not stand here", u32::from(stray));
    let hint = format!("remove it, or write it in double quotes as \"\\u{:04X}\"", u32::from(stray));
    Err(Finding::in_text(place, message).advised(hint))
}

/// YAML forbids control characters. U+0085, U+2028 and U+2029 end a line in YAML 1.1 and not in YAML 1.2,
/// a lone carriage return does so for few programs, and a byte order mark inside a text makes a word
/// that looks like another.
fn is_stray(c: char, rest: &str) -> bool {
    match c {
        '\t' | '\n' => false,
        '\r' => !rest.starts_with("\r\n"),
        '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        decode("fleet.yaml", bytes).expect_err("not UTF-8").to_string()
    }

    #[test]
    fn a_byte_that_is_no_text_is_named_with_its_place() {
        insta::assert_snapshot!(refusal(b"agents:\r\n  web: {image: caf\xE9}\r\n"), @"
        fleet.yaml:2:19: the byte 0xE9 is not UTF-8
         2 |   web: {image: caf�}
           |                   ^
        hint: save the file as UTF-8
        ");
        insta::assert_snapshot!(refusal(b"\xFF\xFEa\0"), @"
        fleet.yaml:1:1: the byte 0xFF is not UTF-8
         1 | ��a�
           | ^
        hint: the file seems to be UTF-16: save it as UTF-8
        ");
    }

    #[test]
    fn a_place_counts_lines_of_either_kind_and_characters() {
        assert_eq!(lines("a\r\nb\nc\n"), ["a", "b", "c", ""]);
        assert_eq!(place_of("é\r\näb", "é\r\nä".len()), Place { line: 2, column: 2 });
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_text_or_have_a_first_place_that_is_not(bytes: Vec<u8>) {
            match decode("f", &bytes) {
                Ok(text) => proptest::prop_assert_eq!(text.as_bytes(), &bytes),
                Err(diagnostic) => proptest::prop_assert!(diagnostic.place.is_some()),
            }
        }
    }
}

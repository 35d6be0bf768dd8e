//! What is wrong with a fleet file: as it is found, at a path of the document, and as it is told, with
//! the place in the text, the line, and what to write instead.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unicode_width::UnicodeWidthChar;

/// A place in a file, as editors count: from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// One thing that is wrong with a fleet file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// The file, as it was named.
    pub file: String,
    /// Where in the file; nothing when it is about the file as a whole.
    pub place: Option<Place>,
    /// Where in the document, such as `agents.web.memory`.
    pub path: String,
    /// What is wrong, and what was expected.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// The line itself. Of a long line, the part around the place.
    pub excerpt: Option<String>,
}

/// Most findings that are told. Who has more has something else wrong than a hundred single things.
pub(super) const FINDINGS_MAX: usize = 100;

/// Most characters of a line that are shown.
const EXCERPT_MAX: usize = 160;

/// Up to this column a line is shown from its beginning.
const SHOWN_FROM_START: usize = 100;

/// Characters shown before the place, in a line that is not shown from its beginning.
const SHOWN_BEFORE: usize = 60;

/// How many characters of a line are left out before its excerpt. It hangs on the column alone, so that
/// whoever shows a diagnostic knows where in the excerpt its place is.
fn left_out(column: usize) -> usize {
    if column <= SHOWN_FROM_START { 0 } else { column - SHOWN_BEFORE }
}

fn excerpt(line: &str, column: usize) -> String {
    let start = left_out(column);
    let mut rest = line.chars().skip(start);
    let dots = |shown: bool| if shown { "…" } else { "" };
    let shown: String = rest.by_ref().take(EXCERPT_MAX).collect();
    format!("{}{}{}", dots(start > 0), printable(&shown), dots(rest.next().is_some()))
}

/// The text without characters that would do something to a terminal instead of being seen.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(place) = &self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let (Some(place), Some(excerpt)) = (&self.place, &self.excerpt) {
            let number = place.line.to_string();
            let indent = " ".repeat(number.len());
            let marker = marker(excerpt, place.column);
            write!(f, "\n {number} | {excerpt}\n {indent} | {marker}^")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Blanks as wide as what stands before the place in its excerpt. Tabs stay tabs: only the terminal
/// knows how wide they are.
fn marker(excerpt: &str, column: usize) -> String {
    let start = left_out(column);
    let before = column.saturating_sub(1 + start) + usize::from(start > 0);
    let blank = |c: char| if c == '\t' { "\t".into() } else { " ".repeat(c.width().unwrap_or(0)) };
    excerpt.chars().take(before).map(blank).collect()
}

/// Something wrong at a path of the document, before its place in the text is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(super) path: Vec<String>,
    pub(super) spot: Spot,
    pub(crate) message: String,
    pub(super) hint: Option<String>,
}

/// What of the element at a finding's path the finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// Its value.
    Value,
    /// Its key.
    Key,
    /// A place in the text that is known already.
    At(Place),
}

impl Finding {
    pub(crate) fn at(path: &[String], message: String) -> Self {
        Self { path: path.to_vec(), spot: Spot::Value, message, hint: None }
    }

    pub(super) fn of_key(path: &[String], message: String) -> Self {
        Self { spot: Spot::Key, ..Self::at(path, message) }
    }

    pub(super) fn in_text(place: Place, message: impl Into<String>) -> Self {
        Self { spot: Spot::At(place), ..Self::at(&[], message.into()) }
    }

    pub(super) fn of_file(message: impl Into<String>) -> Self {
        Self::at(&[], message.into())
    }

    pub(crate) fn hinted(self, word: Option<String>) -> Self {
        Self { hint: word.map(|word| format!("did you mean `{word}`?")), ..self }
    }

    pub(super) fn advised(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// The finding where there is no file that it could have a place in.
    pub(super) fn sentence(self) -> String {
        match self.hint {
            Some(hint) => format!("{}; {hint}", self.message),
            None => self.message,
        }
    }

    /// The finding in words for people, once its place and the file's lines are known.
    pub(super) fn told(self, file: &str, place: Option<Place>, path: &str, lines: &[&str]) -> Diagnostic {
        let line = place.and_then(|place| lines.get(place.line.checked_sub(1)?));
        Diagnostic {
            file: file.to_owned(),
            path: printable(path),
            message: printable(&self.message),
            hint: self.hint.as_deref().map(printable),
            excerpt: place.zip(line).map(|(place, line)| excerpt(line, place.column)),
            place,
        }
    }
}

/// The known word nearest to a mistyped one, if any is near.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .filter(|candidate| word.len().abs_diff(candidate.len()) <= 1 + candidate.len() / 4)
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        // Nothing is like a word of which no letter is left.
        .filter(|(distance, candidate)| {
            *distance < candidate.len().max(word.len()) && *distance <= 1 + candidate.len() / 4
        })
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_without_a_letter_in_common_is_not_near() {
        assert_eq!(nearest("b", ["a"].into_iter()), None);
        assert_eq!(nearest("dp", ["db", "web"].into_iter()).as_deref(), Some("db"));
    }

    fn shown(line: &str, column: usize) -> String {
        let place = Some(Place { line: 1, column });
        Finding::of_file("wrong").told("f", place, "", &[line]).to_string()
    }

    #[test]
    fn the_marker_stands_under_its_character_after_tabs_and_wide_characters() {
        insta::assert_snapshot!(shown("name: 東京 é x", 12), @"
        f:1:12: wrong
         1 | name: 東京 é x
           |              ^
        ");
        assert!(shown("a:\tb", 4).ends_with("\n   |   \t^"));
    }

    #[test]
    fn a_long_line_is_cut_around_the_marker() {
        let line = format!("{}!{}", "x".repeat(5000), "y".repeat(5000));
        let text = shown(&line, 5001);
        let rows: Vec<&str> = text.lines().collect();
        let column = rows[2].chars().position(|c| c == '^').unwrap();
        assert_eq!(rows[1].chars().nth(column), Some('!'));
        assert!(rows[1].starts_with(" 1 | …x") && rows[1].ends_with("y…"));
        assert!(rows[1].chars().count() < 180);
    }

    #[test]
    fn nothing_of_a_file_is_a_command_to_the_terminal() {
        assert!(!shown("a: \u{1b}[31m", 4).contains('\u{1b}'));
    }
}

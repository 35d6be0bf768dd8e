//! Aligned columns without lines around them.

use std::fmt::Write as _;

use anstyle::Style;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::ui::{PLAIN, STRONG};

/// One field of a table.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn new(text: &impl ToString, style: Style) -> Self {
        Self { text: printable(&text.to_string()), style }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(&text, PLAIN)
    }
}

/// Rows under a header.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|name| Cell::new(name, STRONG)).collect(), rows: Vec::new() }
    }

    /// Adds a row; empty cells are shown as `-`.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.header.len(), "a row has a cell for each column");
        self.rows.push(cells);
    }

    /// The table as text, with styles.
    pub(crate) fn render(&self) -> String {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let mut widths = vec![1; self.header.len()];
        for row in lines() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.text.width().max(*width);
            }
        }
        let mut text = String::new();
        for row in lines() {
            for (index, (width, Cell { text: cell, style })) in widths.iter().zip(row).enumerate() {
                let shown = if cell.is_empty() { "-" } else { cell };
                let _ = write!(text, "{style}{shown}{style:#}");
                // The last column is not padded: lines end with what they say.
                if index + 1 < row.len() {
                    text.push_str(&" ".repeat(width - shown.width() + 2));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// A text on one line, with what a terminal would obey written out: it may come from inside a machine.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(' '),
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
    }
    shown
}

/// A text of our own styles and lines, with everything else that a terminal would obey written out. Each page writes
/// out what comes from inside a machine by itself; this holds for what no page has thought of.
pub(crate) fn tame(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_control() && !matches!(c, '\n' | '\t')) {
        shown.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match style(rest) {
            Some(length) => {
                shown.push_str(&rest[..length]);
                length
            }
            None => {
                let control = rest.chars().next().expect("a character was found");
                shown.extend(control.escape_default());
                control.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    shown + rest
}

/// The length of the sequence that sets a style, where one stands at the beginning.
fn style(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
    parameters[end..].starts_with('m').then_some("\x1b[".len() + end + "m".len())
}

/// The beginning of a line that fits into `width` columns. Styles are dropped from a line that is
/// cut: half a sequence is worse than none.
pub(crate) fn truncate(line: &str, width: usize) -> String {
    let plain = anstream::adapter::strip_str(line).to_string();
    if plain.width() <= width {
        return line.to_owned();
    }
    let mut used = 1;
    let kept = plain.chars().take_while(|character| {
        used += character.width().unwrap_or(0);
        used <= width
    });
    kept.collect::<String>() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::GOOD;

    #[test]
    fn columns_align_whatever_the_width_of_their_letters_and_styles() {
        let mut table = Table::new(&["NAME", "HEALTH", "NOTES"]);
        table.row(vec!["web".into(), Cell::new(&"Healthy", GOOD), "".into()]);
        table.row(vec!["データ".into(), "Failed".into(), "two\nlines".into()]);
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        insta::assert_snapshot!(plain, @r"
        NAME    HEALTH   NOTES
        web     Healthy  -
        データ  Failed   two lines
        ");
    }

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(printable("it\tis\nfine"), "it is fine");
        assert_eq!(printable("\u{1b}]0;owned\u{7} \u{9b}2J é"), r"\u{1b}]0;owned\u{7} \u{9b}2J é");
    }

    #[test]
    fn only_styles_and_lines_reach_a_terminal() {
        let ours = format!("{GOOD}fine{GOOD:#}\n\tand so on");
        assert_eq!(tame(&ours), ours);
        assert_eq!(tame("\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}1A\u{1b}"), r"\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}1A\u{1b}");
    }

    #[test]
    fn a_line_that_is_too_long_ends_with_a_mark() {
        assert_eq!(truncate("abcdef", 6), "abcdef");
        assert_eq!(truncate("abcdefg", 6), "abcde…");
        assert_eq!(truncate(&format!("{GOOD}abc{GOOD:#}"), 3), format!("{GOOD}abc{GOOD:#}"));
    }
}

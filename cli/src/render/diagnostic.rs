//! What is wrong with a fleet file, with the place of it in colour.

use unicode_width::UnicodeWidthChar as _;
use vm_agent_schemas::fleet::Diagnostic;

use crate::ui::{BAD, STRONG};

/// A diagnostic as its own text has it, with the wrong word and the mark under it in colour.
pub(crate) fn diagnostic(diagnostic: &Diagnostic) -> String {
    let text = diagnostic.to_string();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let head = lines.first_mut().expect("a diagnostic says something");
    *head = format!("{STRONG}{}{STRONG:#}{}", diagnostic.file, &head[diagnostic.file.len()..]);
    if diagnostic.excerpt.is_some()
        && let [_, shown, mark, ..] = &mut lines[..]
        && let Some(before) = mark.strip_suffix('^')
    {
        let word = word_under(shown, before);
        *shown = format!("{}{BAD}{}{BAD:#}{}", &shown[..word.start], &shown[word.clone()], &shown[word.end..]);
        *mark = format!("{before}{BAD}^{BAD:#}");
    }
    if let Some(hint) = lines.last_mut().filter(|line| diagnostic.hint.is_some() && line.starts_with("hint:")) {
        *hint = format!("{STRONG}hint:{STRONG:#}{}", &hint["hint:".len()..]);
    }
    lines.join("\n")
}

/// The bytes of the word that begins above the mark. The blanks before the mark are as wide as what
/// stands above them, letter by letter, and tabs are tabs in both lines.
fn word_under(shown: &str, before: &str) -> std::ops::Range<usize> {
    let width = |c: char| c.width().unwrap_or(1);
    let mut left: usize = before.chars().map(width).sum();
    let mut letters = shown.char_indices();
    let start = letters.by_ref().find_map(|(index, letter)| {
        if left == 0 {
            return Some(index);
        }
        left = left.saturating_sub(width(letter));
        None
    });
    let start = start.unwrap_or(shown.len());
    let ends = |letter: char| letter.is_whitespace() || ":,[]{}".contains(letter);
    let rest = &shown[start..];
    // A mark at such a letter is about the letter itself.
    let first = rest.chars().next().map_or(0, char::len_utf8);
    let length = rest.find(ends).unwrap_or(rest.len()).max(first);
    start..start + length
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::BAD;
    use vm_agent_schemas::fleet::parse;

    fn marked(text: &str) -> Vec<String> {
        let shown: Vec<String> = parse("fleet.yaml", text).unwrap_err().iter().map(diagnostic).collect();
        let begin = BAD.to_string();
        let end = format!("{BAD:#}");
        let words = |text: &String| {
            text.split(&begin).skip(1).map(|rest| rest.split(&end).next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        shown.iter().flat_map(words).collect()
    }

    #[test]
    fn the_wrong_word_and_its_mark_are_in_colour() {
        assert_eq!(marked("agents:\n  web: {memroy: 8G}\n"), ["memroy", "^"]);
        assert_eq!(marked("agents:\n  web: {labels: {東京: x}, memroy: 8G}\n"), ["memroy", "^"]);
    }

    #[test]
    fn without_colour_it_is_the_plain_text() {
        for error in parse("fleet.yaml", "agents:\n  web: {memroy: 8G, cpus: 0}\nprun: auto\n").unwrap_err() {
            assert_eq!(anstream::adapter::strip_str(&diagnostic(&error)).to_string(), error.to_string());
        }
    }
}

//! How things are printed.

pub(crate) mod json;
pub(crate) mod screen;
pub(crate) mod terminal;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The mark that a line of a log begins with.
pub(crate) fn log_line(category: &str, text: &str) -> String {
    let now = Timestamp::now().to_zoned(TimeZone::system());
    format!("[{}] [error] [{category}] {text}\n", now.strftime("%Y-%m-%dT%H:%M:%S%.3f"))
}

/// The width of a column whose widest entries are these.
pub(crate) fn column<'a>(entries: impl Iterator<Item = &'a str>, header: &str, least: usize) -> usize {
    const BUFFER: usize = 3;
    let widest = entries.map(|entry| entry.chars().count()).max().unwrap_or_default();
    (widest + BUFFER).max(header.len() + BUFFER).max(least)
}

/// A scalar of YAML as yaml-cpp writes it: plain where that is possible, else in double quotes.
pub(crate) fn yaml(text: &str) -> String {
    let plain = !text.is_empty()
        && !text.starts_with([
            ' ', '-', '?', ',', '[', ']', '{', '}', '#', '&', '*', '!', '|', '>', '\'', '"', '%', '@', '`',
        ])
        && !text.ends_with(' ')
        && !text.contains([':', '#', '\n', '"', ',', '{', '}', '[', ']']);
    if plain {
        text.to_owned()
    } else {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    }
}

/// A scalar of YAML, `~` where it is empty.
pub(crate) fn yaml_or_null(text: &str) -> String {
    if text.is_empty() { "~".to_owned() } else { yaml(text) }
}

/// A text, `--` where it is empty.
pub(crate) fn or_dashes(text: &str) -> &str {
    if text.is_empty() { "--" } else { text }
}

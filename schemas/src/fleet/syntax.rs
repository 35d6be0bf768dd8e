//! Plain words for what is wrong with a text that is no YAML.

use granit_parser::{ErrorKind, ScanError};

use super::diagnostic::{Finding, Place};
use super::outline::DEPTH_MAX;
use super::source::{lines, place_of};

/// Where the parser stopped, and why, in words. `bracket` is the line of the innermost bracket that has
/// not ended.
pub(super) fn in_words(error: &ScanError, text: &str, bracket: Option<usize>) -> Finding {
    let mark = error.marker();
    let place = Place { line: mark.line().max(1), column: mark.col() + 1 };
    let offset = mark.byte_offset().filter(|offset| text.is_char_boundary(*offset)).unwrap_or(text.len());
    let (before, after) = text.split_at(offset);
    if matches!(error.kind(), ErrorKind::TabInPlainScalar) {
        return tab_after(text, offset);
    }
    if matches!(
        error.kind(),
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidSimpleKey | ErrorKind::SimpleKeyExpected
    ) {
        return misplaced_key(place, before);
    }
    let indent = before.rsplit('\n').next().unwrap_or_default();
    if after.starts_with('\t') || indent.trim().is_empty() && indent.contains('\t') {
        return indented_by_tab(place);
    }
    let (mut message, hint) = words(error.kind());
    if let Some(line) = bracket.filter(|line| *line != place.line) {
        message.push_str(&format!("; a bracket of line {line} has not ended"));
    }
    Finding::in_text(place, message).advised(hint.map(str::to_owned))
}

fn indented_by_tab(place: Place) -> Finding {
    Finding::in_text(place, "a tab can't indent a line in YAML").advised("indent with spaces".to_owned())
}

/// The parser marks the value before the line that a tab indents.
fn tab_after(text: &str, offset: usize) -> Finding {
    let tab = text[offset..].find('\t').map_or(offset, |index| offset + index);
    indented_by_tab(place_of(text, tab))
}

/// A colon where no key can end: behind a value, behind a line that was meant to be a key, or in a line
/// that is indented unlike those around it.
fn misplaced_key(place: Place, before: &str) -> Finding {
    let mut lines = lines(before);
    let line = lines.pop().unwrap_or_default();
    if line.contains(": ") {
        let message = "a value without quotes can't have a colon and a blank in it";
        return Finding::in_text(place, message).advised(QUOTE.to_owned());
    }
    let is_comment = |line: &str| line.trim_start().is_empty() || line.trim_start().starts_with('#');
    let earlier = lines.iter().enumerate().rev().find(|(_, line)| !is_comment(line));
    match earlier.map(|(index, line)| (index, line.trim())) {
        Some((index, word)) if !word.contains(": ") && !word.ends_with(':') => {
            let column = lines[index].chars().take_while(|c| c.is_whitespace()).count() + 1;
            Finding::in_text(Place { line: index + 1, column }, "expected a key with a colon and a blank after it")
                .advised("a key is written `key: value`".to_owned())
        }
        _ => {
            let column = line.chars().take_while(|c| c.is_whitespace()).count() + 1;
            Finding::in_text(Place { column, ..place }, UNALIGNED).advised(ALIGN.to_owned())
        }
    }
}

const UNALIGNED: &str = "this does not line up with what stands before it";
const QUOTE: &str = "a value with special characters is written in quotes, such as \"a: b\"";
const ALIGN: &str = "keys of one map begin in the same column, and what belongs to a key is indented further";

fn words(kind: &ErrorKind) -> (String, Option<&'static str>) {
    use ErrorKind as K;
    let (message, hint) = match kind {
        K::TabNotAllowed | K::TabInBlockIndentation | K::TabInIndentation | K::TabAtBlockScalarStart => {
            ("a tab can't stand here", Some("indent with spaces"))
        }
        K::UnclosedQuotedScalar | K::DocumentIndicatorInQuotedScalar => {
            ("a quote begins here and never ends", Some("add the missing quote"))
        }
        K::UnclosedFlowCollection { open } => return (unclosed(*open), None),
        K::UnexpectedEofFlowSequence => return (unclosed('['), None),
        K::UnexpectedEofFlowMapping | K::UnexpectedEofImplicitFlowMapping => return (unclosed('{'), None),
        K::MismatchedFlowCollectionEnd { open, close } => {
            return (format!("`{open}` begins and `{close}` ends: brackets come in pairs"), None);
        }
        K::MisplacedFlowCollectionEnd => ("a bracket ends here that never began", None),
        K::ExpectedFlowMappingSeparator => ("expected `,` or `}` here", Some("a map on one line is `{a: 1, b: 2}`")),
        K::ExpectedFlowSequenceSeparator => ("expected `,` or `]` here", Some("a list on one line is `[a, b]`")),
        K::ExpectedBlockMappingKey
        | K::ExpectedBlockSequenceEntry
        | K::InvalidIndentation
        | K::InvalidBlockScalarIndent
        | K::InvalidQuotedScalarIndent
        | K::InvalidFlowScalarIndent => (UNALIGNED, Some(ALIGN)),
        K::ExpectedDocumentStart => {
            ("what follows does not belong to the document before it", Some("a fleet file begins with its first key"))
        }
        K::MappingKeyNotAllowed | K::InvalidColonPlacement => ("a key can't stand here", Some(QUOTE)),
        K::BlockSequenceEntryNotAllowed | K::BlockEntryInFlowCollection => (
            "an item with `- ` can't stand here",
            Some("items stand on lines of their own, or in brackets as `[a, b]`"),
        ),
        K::InvalidTrailingSingleQuotedScalar | K::InvalidTrailingDoubleQuotedScalar => {
            ("something follows a value in quotes", Some("put all of the value in one pair of quotes"))
        }
        K::UnknownQuotedScalarEscape => {
            ("there is no such escape after `\\`", Some("write `\\\\` for a backslash, or use single quotes"))
        }
        K::UnknownAnchor => {
            ("nothing has been marked with this name by `&`", Some("a text that begins with `*` is written in quotes"))
        }
        K::MissingAnchorOrAliasName => (
            "`*` and `&` are followed by a name in YAML",
            Some("a text that begins with one of them is written in quotes"),
        ),
        K::UnexpectedCharacter { character } => {
            return (format!("a value can't begin with `{character}`"), Some(QUOTE));
        }
        K::RecursionLimitExceeded => {
            return (format!("maps and lists lie in each other more than {DEPTH_MAX} deep"), None);
        }
        K::CommentNotSeparated => ("a comment begins after a blank", Some("write ` #`")),
        other => return (format!("this is no YAML: {other}"), None),
    };
    (message.to_owned(), hint)
}

fn unclosed(open: char) -> String {
    format!("`{open}` begins here and never ends")
}

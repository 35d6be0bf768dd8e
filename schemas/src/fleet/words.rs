//! What the libraries say of a wrong value, in the words of the fleet file: texts, lists and maps, and
//! not the types of the program.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_yaml::Value;

use super::diagnostic::{Finding, nearest};
use super::task;

/// What a library complains of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// A key that there is not, and those that there are.
    UnknownKey { key: String, known: Vec<String> },
    /// A key that belongs to maps of another type, and those that belong to this one.
    ForeignKey { known: Vec<String> },
    /// A key that has to be there.
    MissingKey(String),
    /// A word that is none of those that there are.
    UnknownWord { word: String, known: Vec<String> },
    /// A value of another kind than was expected.
    Expected(String),
    /// A sentence of our own.
    Said(String),
}

impl Complaint {
    /// Reads serde's sentence.
    pub(super) fn of(message: &str) -> Self {
        if let Some((key, known)) = message.strip_prefix("unknown field ").and_then(choice) {
            return Self::UnknownKey { key, known };
        }
        if let Some((word, known)) = message.strip_prefix("unknown variant ").and_then(choice) {
            return Self::UnknownWord { word, known };
        }
        if let Some(key) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            return Self::MissingKey(key.to_owned());
        }
        let wrong = ["invalid type: ", "invalid value: ", "invalid length "];
        if let Some(rest) = wrong.iter().find_map(|prefix| message.strip_prefix(prefix))
            && let Some((found, expected)) = rest.rsplit_once(", expected ")
        {
            return Self::Expected(expectation(expected, found.starts_with("integer")));
        }
        if let Some(known) = task::belonging(message) {
            return Self::ForeignKey { known };
        }
        // An untagged type says only what it expects.
        if message.starts_with("a ") || message.starts_with("an ") {
            return Self::Expected(message.to_owned());
        }
        Self::Said(message.to_owned())
    }
}

const TEXT: &str = "a text";
const WHOLE: &str = "a whole number";
const TRUTH: &str = "true or false";

/// "`word`, expected one of `a`, `b`": the word, and those expected.
fn choice(rest: &str) -> Option<(String, Vec<String>)> {
    let rest = rest.strip_prefix('`')?;
    let (word, known) = rest.rsplit_once("`, expected ").or_else(|| rest.split_once("`, there are no "))?;
    Some((word.to_owned(), known.split('`').skip(1).step_by(2).map(str::to_owned).collect()))
}

/// `integer`: whether a whole number was found, which then is out of the range.
fn expectation(expected: &str, integer: bool) -> String {
    let range = |max: u64| if integer { format!("{WHOLE} from 0 to {max}") } else { WHOLE.to_owned() };
    match expected {
        "a string" | "string or map" | "a Value::Tagged enum" | "a borrowed string" | "a character" => TEXT.to_owned(),
        "path string" => TEXT.to_owned(),
        "u8" => range(u8::MAX.into()),
        "u16" => range(u16::MAX.into()),
        "u32" => range(u32::MAX.into()),
        "u64" | "usize" if integer => format!("{WHOLE}, 0 or more"),
        "u64" | "usize" | "i8" | "i16" | "i32" | "i64" | "isize" => WHOLE.to_owned(),
        "a nonzero u16" => format!("{WHOLE} from 1 to {}", u16::MAX),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => TRUTH.to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other == "a map" || other.starts_with("struct ") => "a map of keys".to_owned(),
        other if other.starts_with("a nonzero ") => format!("{WHOLE}, 1 or more"),
        other if other.starts_with("a tuple ") || other.starts_with("tuple ") => "a list".to_owned(),
        other => other.to_owned(),
    }
}

/// A key that there is not.
pub(super) fn unknown_key(path: &[String], key: &str, known: &[String]) -> Finding {
    let finding = Finding::of_key(path, format!("there is no key `{key}` here"));
    let schema = schema();
    let holds = |owner: &str| schema.pointer(&format!("{owner}/properties/{key}")).is_some();
    if holds("") {
        return finding.advised(format!("`{key}` is a key of the whole file, beside `agents`"));
    }
    if let Some(hint) = elsewhere(key, known) {
        return finding.advised(hint);
    }
    if holds("/$defs/AgentEntry") {
        return finding.advised(format!("`{key}` is a key of an agent, a profile or the defaults"));
    }
    match near(key, known) {
        Some(word) => finding.hinted(Some(word)),
        None => finding.advised(list_of_keys(known)),
    }
}

/// Where a key that a task does not have is to be written: under another of its keys, or in a task of
/// another type.
fn elsewhere(key: &str, known: &[String]) -> Option<String> {
    if !task::is_task(known) {
        return None;
    }
    let inside = [("when", "WhenMap"), ("retry", "Retry")];
    if let Some((outer, _)) = inside.iter().find(|(_, map)| schema()["$defs"][map]["properties"].get(key).is_some()) {
        return Some(format!("`{key}` is a key of `{outer}`: {outer}: {{{key}: …}}"));
    }
    let types = task::types_with(key);
    let keys = list_of_keys(known)?;
    (!types.is_empty()).then(|| format!("`{key}` belongs to a task of type {}; {keys}", types.join(", ")))
}

/// Keys that are only planned are known, and are not recommended: the schema does not have them.
fn list_of_keys(known: &[String]) -> Option<String> {
    static REAL: OnceLock<BTreeSet<&str>> = OnceLock::new();
    let real = REAL.get_or_init(|| properties(schema()).collect());
    let keys: Vec<&str> = known.iter().map(String::as_str).filter(|key| real.contains(key)).collect();
    (!keys.is_empty()).then(|| format!("the keys here are {}", keys.join(", ")))
}

/// The schema of the fleet file: it knows where each key belongs.
fn schema() -> &'static serde_json::Value {
    static SCHEMA: OnceLock<serde_json::Value> = OnceLock::new();
    SCHEMA.get_or_init(|| super::json_schema().to_value())
}

/// The keys of all maps in a schema.
fn properties(schema: &serde_json::Value) -> Box<dyn Iterator<Item = &str> + '_> {
    let own = schema.get("properties").and_then(serde_json::Value::as_object);
    let own = own.into_iter().flat_map(|keys| keys.keys().map(String::as_str));
    match schema {
        serde_json::Value::Object(parts) => Box::new(own.chain(parts.values().flat_map(properties))),
        serde_json::Value::Array(parts) => Box::new(own.chain(parts.iter().flat_map(properties))),
        _ => Box::new(own),
    }
}

/// A word that is none of those that there are.
pub(super) fn unknown_word(path: &[String], word: &str, known: &[String]) -> Finding {
    Finding::at(path, format!("`{word}` is none of {}", known.join(", "))).hinted(near(word, known))
}

/// The nearest known word, whatever the case of its letters.
fn near(word: &str, known: &[String]) -> Option<String> {
    let same = known.iter().find(|known| known.eq_ignore_ascii_case(word)).cloned();
    same.or_else(|| nearest(word, known.iter().map(String::as_str)))
}

/// A value of another kind than was expected. `written` is what stands in the file, letter by letter,
/// where it has no quotes.
pub(super) fn unexpected(path: &[String], expected: &str, value: &Value, written: Option<&str>) -> Finding {
    let message = format!("expected {expected}, found {}", found(value, written));
    Finding::at(path, message).advised(remedy(expected, value, written))
}

fn found(value: &Value, written: Option<&str>) -> String {
    let read = match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() > 40 => "a longer text".to_owned(),
        Value::String(text) => format!("the text {text:?}"),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a map of keys".to_owned(),
        Value::Tagged(_) => "a value with a tag".to_owned(),
    };
    match (value, written) {
        (Value::Number(number), Some(written)) if number.to_string() != written => {
            format!("{written}, which YAML reads as {read}")
        }
        _ => read,
    }
}

/// How the same would be written as what was expected.
fn remedy(expected: &str, value: &Value, written: Option<&str>) -> Option<String> {
    match value {
        Value::Null if expected == TEXT => Some("write \"\" for an empty text".to_owned()),
        Value::Bool(_) | Value::Number(_) if expected == TEXT => written.map(|written| format!("write \"{written}\"")),
        Value::String(text) if expected == TRUTH => truth(text).map(|truth| format!("write {truth}")),
        Value::String(text) if expected.starts_with(WHOLE) && text.parse::<u64>().is_ok() => {
            Some(format!("write {text} without quotes"))
        }
        Value::String(text) if expected.starts_with("a list") => Some(format!("a list of one is written [{text}]")),
        _ => None,
    }
}

/// What YAML 1.1 and many people take for true or false, and YAML 1.2 for a text.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "y" | "on" | "true" => Some(true),
        "no" | "n" | "off" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_s_sentences_are_understood() {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let cases = [
            (
                "unknown field `x`, expected `a` or `b`",
                Complaint::UnknownKey { key: "x".into(), known: words(&["a", "b"]) },
            ),
            (
                "unknown field ``x``, expected one of `a`, `b`, `c`",
                Complaint::UnknownKey { key: "`x`".into(), known: words(&["a", "b", "c"]) },
            ),
            ("unknown variant `x`, expected `a`", Complaint::UnknownWord { word: "x".into(), known: words(&["a"]) }),
            ("unknown field `x`, there are no fields", Complaint::UnknownKey { key: "x".into(), known: vec![] }),
            ("missing field `exec`", Complaint::MissingKey("exec".into())),
            ("invalid type: integer `5`, expected a string", Complaint::Expected("a text".into())),
            ("invalid type: string \"a, expected b\", expected u32", Complaint::Expected("a whole number".into())),
            ("invalid value: integer `-1`, expected u8", Complaint::Expected("a whole number from 0 to 255".into())),
            ("a folder of the host", Complaint::Expected("a folder of the host".into())),
            ("`1T` is not a size", Complaint::Said("`1T` is not a size".into())),
        ];
        for (message, complaint) in cases {
            assert_eq!(Complaint::of(message), complaint, "{message}");
        }
    }
}

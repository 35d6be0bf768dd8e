//! Selectors: what labels have to be like.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What labels have to be like: `team=build,!spare`. Every requirement has to hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, with = "String")]
pub struct Selector {
    requirements: Vec<Requirement>,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Requirement {
    Is(String, String),
    /// Another value, or no such label.
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{requirement}` {what}: write KEY=VALUE, KEY!=VALUE, KEY or !KEY, separated by commas")]
pub struct InvalidSelector {
    requirement: String,
    what: &'static str,
}

impl FromStr for Selector {
    type Err = InvalidSelector;
    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let requirements = text.split(',').map(requirement).collect::<Result<_, _>>()?;
        Ok(Self { requirements, text: text.to_owned() })
    }
}

fn requirement(text: &str) -> Result<Requirement, InvalidSelector> {
    let text = text.trim();
    let invalid = |what| InvalidSelector { requirement: text.to_owned(), what };
    let (key, rest) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.strip_prefix('=').unwrap_or(value).trim().to_owned())),
        None => (text, None),
    };
    let found = match (key.strip_suffix('!'), key.strip_prefix('!'), rest) {
        (Some(key), None, Some(value)) => Requirement::IsNot(key.trim().to_owned(), value),
        (None, None, Some(value)) => Requirement::Is(key.trim().to_owned(), value),
        (None, Some(key), None) => Requirement::HasNot(key.trim().to_owned()),
        (None, None, None) => Requirement::Has(key.trim().to_owned()),
        _ => return Err(invalid("is no requirement")),
    };
    let (Requirement::Is(key, _) | Requirement::IsNot(key, _) | Requirement::Has(key) | Requirement::HasNot(key)) =
        &found;
    if key.is_empty() || key.contains('!') {
        return Err(invalid("names no label"));
    }
    Ok(found)
}

impl Selector {
    /// Whether labels are so.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::Is(key, value) => labels.get(key) == Some(value),
            Requirement::IsNot(key, value) => labels.get(key) != Some(value),
            Requirement::Has(key) => labels.contains_key(key),
            Requirement::HasNot(key) => !labels.contains_key(key),
        })
    }
}

impl TryFrom<String> for Selector {
    type Error = InvalidSelector;
    fn try_from(text: String) -> Result<Self, InvalidSelector> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.text
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str) -> bool {
        let labels = [("team", "build"), ("arch", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        selector.parse::<Selector>().unwrap().matches(&labels.into())
    }

    #[test]
    fn every_requirement_has_to_hold() {
        for held in ["team=build", "team==build", "team != web", "zone!=a", "arch", "!zone", "team=build, !zone,arch"] {
            assert!(matches(held), "{held}");
        }
        for broken in ["team=web", "team!=build", "zone", "!team", "team=build,zone"] {
            assert!(!matches(broken), "{broken}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["", "=x", "!", "a,,b", "!a=b", "a!b"] {
            assert!(text.parse::<Selector>().is_err(), "{text:?}");
        }
    }
}

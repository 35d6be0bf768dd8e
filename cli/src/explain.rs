//! What a key of the fleet file means, from its JSON Schema. Nothing here knows a key by name.
//!
//! A path leads from key to key. Where the file has a name of the user's (an agent's, a profile's, a
//! task's), the path may have any name or none: `agents.web.memory` and `agents.memory` are one.

use serde::Serialize;
use serde_json::{Map, Value};

/// What stands in a path for a name of the user's.
const ANY_NAME: &str = "NAME";

/// What can be said of one key.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    /// Where it stands; empty for the whole file.
    pub(crate) path: String,
    /// What it means.
    pub(crate) meaning: String,
    /// What is written there, in plain words.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Whether it has to be written.
    pub(crate) required: bool,
    /// What holds where it is not written.
    pub(crate) default: Option<Value>,
    /// Values that could stand there.
    pub(crate) examples: Vec<Value>,
    /// What changing it costs.
    pub(crate) cost: Option<String>,
    /// The words to choose from, where there are some.
    pub(crate) words: Vec<Word>,
    /// The keys below it, or below each name in it.
    pub(crate) keys: Vec<Key>,
}

/// A word to choose.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Word {
    /// The word.
    pub(crate) word: String,
    /// What it means.
    pub(crate) meaning: String,
}

/// A key below another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Key {
    /// The key.
    pub(crate) key: String,
    /// What is written there.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// What it means, in a sentence.
    pub(crate) meaning: String,
}

/// A path that leads nowhere, and where it may have been meant to lead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub(crate) near: Vec<String>,
}

/// The JSON Schema of the fleet file.
pub(crate) struct Schema {
    root: Value,
}

impl Schema {
    pub(crate) fn new(root: Value) -> Self {
        Self { root }
    }

    /// What can be said of the key at a path such as `agents.memory`.
    pub(crate) fn explain(&self, path: &str) -> Result<Explanation, Unknown> {
        let words: Vec<&str> = path.split('.').filter(|word| !word.is_empty()).collect();
        let root = Node { schema: &self.root, required: true };
        let unknown = || Unknown { near: self.near(&words) };
        let (trail, node) = self.follow(root, &words).ok_or_else(unknown)?;
        // A name at the end that is almost a key was meant to be the key.
        if trail.last().is_some_and(|last| last == ANY_NAME) {
            let near = self.near(&words);
            if !near.is_empty() {
                return Err(Unknown { near });
            }
        }
        let said = self.say(trail.join("."), node);
        // What lies inside a key is changed with it.
        let above = || (1..words.len()).rev().find_map(|length| self.cost_of(&words[..length]));
        Ok(Explanation { cost: said.cost.or_else(above), ..said })
    }

    /// What changing a key itself costs.
    fn cost_of(&self, words: &[&str]) -> Option<String> {
        let (_, node) = self.follow(Node { schema: &self.root, required: true }, words)?;
        self.say(String::new(), node).cost
    }

    /// The node at the end of a path, and the path with names replaced. A word that is a key is taken
    /// for it, unless that leads nowhere and taking it for a name does not.
    fn follow<'a>(&'a self, node: Node<'a>, words: &[&str]) -> Option<(Vec<String>, Node<'a>)> {
        let Some((word, rest)) = words.split_first() else { return Some((Vec::new(), node)) };
        let step = |name: &[&str], next: Node<'a>| {
            let (trail, end) = self.follow(next, rest)?;
            Some((name.iter().map(|&word| word.to_owned()).chain(trail).collect(), end))
        };
        let Node { schema, .. } = node;
        if let Some(below) = self.key(schema, word) {
            return step(&[word], below);
        }
        let value = self.values(schema)?;
        let as_key = self.key(value.schema, word).and_then(|below| step(&[ANY_NAME, word], below));
        as_key.or_else(|| step(&[ANY_NAME], value))
    }

    /// The schema of a key of a map of keys, or of each map in a list of them.
    fn key<'a>(&'a self, schema: &'a Value, key: &str) -> Option<Node<'a>> {
        let of_map = self.forms(schema).into_iter().find_map(|form| {
            let below = form.get("properties")?.get(key)?;
            let required = form.get("required").and_then(Value::as_array);
            let required = required.is_some_and(|keys| keys.iter().any(|required| required == key));
            Some(Node { schema: below, required })
        });
        of_map.or_else(|| self.key(self.items(schema)?, key))
    }

    /// The schema of what is in a list.
    fn items<'a>(&'a self, schema: &'a Value) -> Option<&'a Value> {
        self.forms(schema).into_iter().find_map(|form| form.get("items").filter(|items| items.is_object()))
    }

    /// The schema of the values of a map by name.
    fn values<'a>(&'a self, schema: &'a Value) -> Option<Node<'a>> {
        self.forms(schema).into_iter().find_map(|form| {
            let by_pattern =
                form.get("patternProperties").and_then(Value::as_object).and_then(|map| map.values().next());
            let schema = by_pattern.or_else(|| form.get("additionalProperties").filter(|it| it.is_object()))?;
            Some(Node { schema, required: false })
        })
    }

    /// The forms in which something may be written: each alternative, references followed, without the
    /// one that stands for not being written at all.
    fn forms<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let found = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            return found.map_or_else(Vec::new, |found| self.forms(found));
        }
        let alternatives = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
        match alternatives {
            Some(forms) => forms.iter().flat_map(|form| self.forms(form)).collect(),
            None if schema.get("type").is_some_and(|kind| kind == "null") => Vec::new(),
            None => vec![schema],
        }
    }

    fn say(&self, path: String, node: Node<'_>) -> Explanation {
        let Node { schema, required } = node;
        let of_all = |key: &str| self.own(schema, key).cloned();
        let each = self.values(schema);
        let words = self.words(schema);
        Explanation {
            meaning: text(of_all("description")),
            kind: self.kind(schema),
            required,
            default: of_all("default").filter(|default| !default.is_null()),
            examples: of_all("examples").and_then(|it| it.as_array().cloned()).unwrap_or_default(),
            cost: of_all("x-cost").and_then(|cost| cost.as_str().map(str::to_owned)),
            words: if words.is_empty() { each.map_or_else(Vec::new, |each| self.words(each.schema)) } else { words },
            keys: self.keys(schema).or_else(|| self.keys(each?.schema)).unwrap_or_default(),
            path,
        }
    }

    /// What is said where something is referred to, else what is said of it itself.
    fn own<'a>(&'a self, schema: &'a Value, key: &str) -> Option<&'a Value> {
        if let Some(found) = schema.get(key) {
            return Some(found);
        }
        let reference = schema.get("$ref").and_then(Value::as_str)?;
        self.own(self.root.pointer(reference.strip_prefix('#')?)?, key)
    }

    fn keys(&self, schema: &Value) -> Option<Vec<Key>> {
        let forms = self.forms(schema);
        let Some(properties) = forms.into_iter().find_map(|form| form.get("properties")?.as_object()) else {
            return self.keys(self.items(schema)?);
        };
        let say = |(key, schema): (&String, &Value)| Key {
            key: key.clone(),
            kind: self.kind(schema),
            meaning: sentence(&text(self.own(schema, "description").cloned())),
        };
        Some(properties.iter().map(say).collect())
    }

    fn words(&self, schema: &Value) -> Vec<Word> {
        let word = |form: &Value| {
            let word = form.get("const")?.as_str()?.to_owned();
            Some(Word { word, meaning: text(form.get("description").cloned()) })
        };
        self.forms(schema).into_iter().filter_map(word).collect()
    }

    /// What is written there, in plain words.
    fn kind(&self, schema: &Value) -> String {
        let forms = self.forms(schema);
        let words: Vec<&str> = forms.iter().filter_map(|form| form.get("const")?.as_str()).collect();
        let mut kinds: Vec<String> = Vec::new();
        if !words.is_empty() {
            kinds.push(either(&words));
        }
        for form in forms.into_iter().filter(|form| form.get("const").is_none()) {
            let kind = self.kind_of_form(form);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds.join(", or ")
    }

    fn kind_of_form(&self, form: &Value) -> String {
        let kind = match form.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(Value::Array(kinds)) => {
                kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("")
            }
            _ => "",
        };
        match kind {
            "string" => "a text".to_owned(),
            "boolean" => "true or false".to_owned(),
            "integer" => whole_number(form),
            "number" => "a number".to_owned(),
            "array" => match form.get("items").map(|items| self.kind(items)) {
                Some(each) => format!("a list, each {each}"),
                None => "a list".to_owned(),
            },
            "object" if form.get("properties").is_some() => "a map of keys".to_owned(),
            "object" => match self.values(form) {
                Some(each) => format!("a map by name, each {}", self.kind(each.schema)),
                None => "a map of keys".to_owned(),
            },
            _ => "a value".to_owned(),
        }
    }

    /// The paths that a path that leads nowhere may have been meant for, nearest first.
    fn near(&self, words: &[&str]) -> Vec<String> {
        let mut known = Vec::new();
        self.collect("", &self.root, &mut known);
        // A key by itself: wherever there is one like it.
        if let [word] = words {
            let ends = |path: &&String| path.rsplit('.').next() == Some(word);
            let same: Vec<String> = known.iter().filter(ends).take(3).cloned().collect();
            if !same.is_empty() {
                return same;
            }
        }
        // Names of the user's stand in none of the known paths, so each word between others may be one.
        let without = |left_out: usize| {
            let kept = words.iter().enumerate().filter(|(index, _)| *index != left_out);
            kept.map(|(_, word)| *word).collect::<Vec<_>>().join(".")
        };
        let mut meant = vec![words.join(".")];
        meant.extend((1..words.len().saturating_sub(1)).map(without));
        let distance = |path: &String| {
            let last = path.rsplit('.').next().unwrap_or_default();
            let least = meant.iter().map(|meant| strsim::damerau_levenshtein(meant, path)).min()?;
            (least > 0 && least <= 1 + last.len() / 4).then(|| (least, path.clone()))
        };
        known.iter().filter_map(distance).min().map(|(_, path)| path).into_iter().collect()
    }

    /// Every path that there is, without names.
    fn collect(&self, path: &str, schema: &Value, known: &mut Vec<String>) {
        let below =
            |schema: &Value| self.forms(schema).into_iter().find_map(|it| it.get("properties")?.as_object().cloned());
        let properties = below(schema).or_else(|| below(self.values(schema)?.schema));
        let properties = properties.or_else(|| below(self.items(schema)?));
        for (key, schema) in properties.iter().flat_map(Map::iter) {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            known.push(path.clone());
            self.collect(&path, schema, known);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Node<'a> {
    schema: &'a Value,
    required: bool,
}

fn text(value: Option<Value>) -> String {
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The first sentence of a text, on one line.
fn sentence(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.split_once(". ") {
        Some((first, _)) => format!("{first}."),
        None => line,
    }
}

fn either(words: &[&str]) -> String {
    match words {
        [one] => format!("`{one}`"),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
        [] => String::new(),
    }
}

fn whole_number(form: &Value) -> String {
    // One word is what is counted; more is the description of the key.
    let unit = form.get("description").and_then(Value::as_str).filter(|what| !what.contains([' ', '.']));
    let of = unit.map_or_else(String::new, |unit| format!(" of {unit}"));
    match (form.get("minimum").and_then(Value::as_u64), form.get("maximum").and_then(Value::as_u64)) {
        (Some(least), Some(most)) => format!("a whole number{of} from {least} to {most}"),
        (Some(least), None) if least > 0 => format!("a whole number{of}, {least} or more"),
        _ => format!("a whole number{of}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        Schema::new(vm_agent_schemas::fleet::json_schema().to_value())
    }

    fn path(asked: &str) -> String {
        schema().explain(asked).unwrap().path
    }

    fn near(asked: &str) -> Vec<String> {
        schema().explain(asked).unwrap_err().near
    }

    #[test]
    fn a_path_may_name_an_agent_or_leave_the_name_out() {
        assert_eq!(path(""), "");
        assert_eq!(path("agents"), "agents");
        assert_eq!(path("agents.memory"), "agents.NAME.memory");
        assert_eq!(path("agents.web.memory"), "agents.NAME.memory");
        assert_eq!(path("agents.web"), "agents.NAME");
        assert_eq!(path("agents.tasks.exec"), "agents.NAME.tasks.NAME.exec");
        assert_eq!(path("agents.web.tasks.setup.exec"), "agents.NAME.tasks.NAME.exec");
        assert_eq!(path("profiles.small.cpus"), "profiles.NAME.cpus");
        assert_eq!(path("defaults.cpus"), "defaults.cpus");
        assert_eq!(path("limits.reserve.memory"), "limits.reserve.memory");
    }

    #[test]
    fn a_list_of_maps_is_explained_with_the_keys_of_each() {
        let keys: Vec<String> = schema().explain("webhooks").unwrap().keys.into_iter().map(|it| it.key).collect();
        assert_eq!(keys, ["url", "events", "secret"]);
        assert_eq!(path("webhooks.secret"), "webhooks.secret");
        assert_eq!(near("webhooks.secrt"), ["webhooks.secret"]);
    }

    #[test]
    fn a_name_that_is_also_a_key_is_a_name_where_that_leads_on() {
        assert_eq!(path("agents.image.memory"), "agents.NAME.memory");
        assert_eq!(path("agents.image"), "agents.NAME.image");
    }

    #[test]
    fn a_mistyped_path_gets_the_nearest_one() {
        assert_eq!(near("agents.memroy"), ["agents.memory"]);
        assert_eq!(near("agents.web.memroy"), ["agents.memory"]);
        assert_eq!(near("agent.memory"), ["agents.memory"]);
        assert_eq!(near("agents.task.exec"), ["agents.tasks.exec"]);
        assert_eq!(near("limits.reserv"), ["limits.reserve"]);
        assert_eq!(near("zebra"), Vec::<String>::new());
    }

    #[test]
    fn a_key_by_itself_is_found_where_it_belongs() {
        assert_eq!(near("parallelism"), ["limits.parallelism"]);
        assert!(near("cpus").contains(&"agents.cpus".to_owned()));
    }

    #[test]
    fn every_key_of_the_file_can_be_explained() {
        let schema = schema();
        let mut known = Vec::new();
        schema.collect("", &schema.root, &mut known);
        assert!(known.len() > 50, "{known:?}");
        for path in known {
            let Explanation { meaning, kind, cost, .. } = schema.explain(&path).unwrap();
            assert!(!meaning.is_empty() && kind != "a value", "{path}: {kind}");
            assert!(cost.is_some(), "{path} does not say what it costs");
        }
    }

    #[test]
    fn types_are_told_in_plain_words() {
        let kind = |path: &str| schema().explain(path).unwrap().kind;
        assert_eq!(kind("agents.cpus"), "a whole number from 1 to 1024");
        assert_eq!(kind("agents.memory"), "a text, or a whole number of bytes");
        assert_eq!(kind("agents.restart"), "always, on-failure or never");
        assert_eq!(kind("agents.protect"), "true or false");
        assert_eq!(kind("agents.env"), "a map by name, each a text");
        assert_eq!(kind("agents.tasks.exec"), "a text, or a list, each a text");
        assert_eq!(kind("agents"), "a map by name, each a map of keys");
    }
}

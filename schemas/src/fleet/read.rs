//! From a text to the typed file, past everything that is wrong with it: an element that can't be read
//! is told, taken out, and the rest is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess};
use serde::de::{VariantAccess, Visitor};
use serde_path_to_error::Segment;
use serde_yaml::{Mapping, Value};

use super::diagnostic::{FINDINGS_MAX, Finding, Place};
use super::file::FleetFile;
use super::outline::{MERGE, Outline};
use super::task;
use super::words::{self, Complaint};

/// What was found wrong, and what was taken out for it.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    /// Paths of the elements that are missing in what was read.
    pub(super) removed: Vec<Vec<String>>,
}

impl Report {
    pub(super) fn is_full(&self) -> bool {
        self.findings.len() >= FINDINGS_MAX
    }

    /// Notes a finding, unless one of the same element is known: the second would follow from the first.
    fn note(&mut self, finding: Finding) {
        if !self.findings.iter().any(|known| !known.path.is_empty() && known.path == finding.path) {
            self.findings.push(finding);
        }
    }
}

/// Reads a text of known shape. Nothing when nothing of it can be used.
pub(super) fn read(text: &str, outline: &Outline<'_>, report: &mut Report) -> Option<FleetFile> {
    let odd = !outline.findings.is_empty();
    report.findings.extend(outline.findings.iter().cloned());
    let untyped = Untyped { keep_first: odd };
    let root = match untyped.deserialize(serde_yaml::Deserializer::from_str(text)) {
        Ok(root) if odd || outline.merges => tidy(root),
        Ok(root) => root,
        Err(error) => {
            report.note(of_library(&error));
            return None;
        }
    };
    let none = "write `agents: {}` for a fleet of none".to_owned();
    match root {
        Value::Mapping(root) => {
            // What is left when somebody comments out all agents is no wish to have none.
            if root.get("agents").is_some_and(Value::is_null) {
                report.note(
                    Finding::of_key(&["agents".to_owned()], "there is nothing under it".to_owned()).advised(none),
                );
            }
            typed(root, outline, report)
        }
        other => {
            let finding = words::unexpected(&[], "a map of keys such as `agents`", &other, None);
            let place = outline.beginning().unwrap_or(Place { line: 1, column: 1 });
            report.note(Finding::in_text(place, finding.message).advised(none));
            None
        }
    }
}

/// What the library says of a text that has a sound outline: rarely anything.
fn of_library(error: &serde_yaml::Error) -> Finding {
    let full = error.to_string();
    let message = full.rsplit_once(" at line ").map_or(full.as_str(), |(message, _)| message);
    let message = format!("this can't be read as YAML: {message}");
    match error.location() {
        Some(at) => Finding::in_text(Place { line: at.line(), column: at.column() }, message),
        None => Finding::of_file(message),
    }
}

/// Agents and profiles one by one, so that an error in one does not cost a reading of all.
fn typed(mut root: Mapping, outline: &Outline<'_>, report: &mut Report) -> Option<FleetFile> {
    let agents = entries(&mut root, "agents", outline, report);
    let profiles = entries(&mut root, "profiles", outline, report);
    if !root.contains_key("agents") {
        root.insert("agents".into(), Mapping::new().into());
    }
    let mut reader = Reader { at: &[], outline, report, lists: HashMap::new(), guess: None };
    let mut file: FleetFile = reader.read(&mut Value::Mapping(root))?;
    file.agents.extend(agents);
    file.profiles.extend(profiles);
    Some(file)
}

/// The entries of a map of the file. An entry of which nothing can be read is kept empty: it is there,
/// and others may name it.
fn entries<K, V>(root: &mut Mapping, key: &str, outline: &Outline<'_>, report: &mut Report) -> BTreeMap<K, V>
where
    K: FromStr<Err: fmt::Display> + Ord,
    V: DeserializeOwned + Default,
{
    let Some(Value::Mapping(map)) = root.get_mut(key) else { return BTreeMap::new() };
    let mut read = BTreeMap::new();
    for (name, mut value) in std::mem::take(map) {
        let Value::String(name) = name else { continue };
        let path = [key.to_owned(), name];
        let name = path[1].parse::<K>();
        if let Err(error) = &name {
            report.note(Finding::of_key(&path, error.to_string()));
            report.removed.push(path.to_vec());
        }
        let mut reader = Reader { at: &path, outline, report, lists: HashMap::new(), guess: None };
        let entry = reader.read(&mut value).unwrap_or_default();
        read.extend(name.ok().map(|name| (name, entry)));
    }
    read
}

/// Reads one value, taking out what is wrong. Each turn takes an element out or makes a text of one
/// that was none, so it ends.
struct Reader<'a, 't> {
    /// The path of the value.
    at: &'a [String],
    outline: &'a Outline<'t>,
    report: &'a mut Report,
    /// For each list that lost items: where those that are left stand in the text.
    lists: HashMap<Vec<String>, Vec<usize>>,
    guess: Option<Guess>,
}

/// A value that was put into quotes for its writer, to see whether that is all that is wrong with it.
struct Guess {
    path: Vec<String>,
    value: Value,
    /// How many findings there were before.
    findings: usize,
}

impl Reader<'_, '_> {
    fn read<T: DeserializeOwned>(&mut self, value: &mut Value) -> Option<T> {
        while !self.report.is_full() {
            let (path, message) = match attempt::<T>(value) {
                Ok(read) => return Some(read),
                Err(failure) => failure,
            };
            let path = reachable(value, &path);
            let guess = self.guess.take().filter(|guess| path.starts_with(&guess.path));
            let (path, may_guess) = match guess {
                Some(guess) => {
                    self.report.findings.truncate(guess.findings);
                    let path = guess.path;
                    if let Some(element) = element(value, &path) {
                        *element = guess.value;
                    }
                    (path, false)
                }
                None => (path, true),
            };
            if !self.handle::<T>(value, &path, &message, may_guess) {
                return None;
            }
        }
        None
    }

    /// Tells what is wrong and takes it out. Nothing is left to read when that is the whole value.
    fn handle<T: DeserializeOwned>(
        &mut self,
        value: &mut Value,
        path: &[String],
        message: &str,
        may_guess: bool,
    ) -> bool {
        let complaint = Complaint::of(message);
        if may_guess && complaint.may_be_quotes() && self.put_in_quotes(value, path) {
            return true;
        }
        let whole = self.written_path(path);
        match complaint {
            Complaint::UnknownKey { key, known } => {
                let (last, outer) = path.split_last().map_or(("", path), |(last, outer)| (last.as_str(), outer));
                return self.strange_keys(value, if last == key { outer } else { path }, &known);
            }
            Complaint::ForeignKey { known } => return self.strange_keys(value, path, &known),
            Complaint::MissingKey(key) => {
                let taken_out: Vec<String> = whole.iter().chain([&key]).cloned().collect();
                if !self.report.removed.contains(&taken_out) {
                    self.report.note(Finding::of_key(&whole, format!("the key `{key}` is missing")));
                }
            }
            Complaint::UnknownWord { word, known } => self.report.note(words::unknown_word(&whole, &word, &known)),
            Complaint::Expected(expected) => {
                let written = self.outline.plain_text(&whole);
                let found = element(value, path).map_or(&Value::Null, |value| &*value);
                self.report.note(words::unexpected(&whole, &expected, found, written));
            }
            // What is said of a map that has just lost a key may be said for want of that.
            Complaint::Said(_)
                if self.report.removed.iter().any(|it| it.split_last().is_some_and(|it| *it.1 == whole)) => {}
            Complaint::Said(said) => {
                let of_key = is_about_key::<T>(value, path, message);
                self.report.note(if of_key { Finding::of_key(&whole, said) } else { Finding::at(&whole, said) });
            }
        }
        self.remove(value, path)
    }

    /// Every key of the map that does not belong there, at once.
    fn strange_keys(&mut self, value: &mut Value, path: &[String], known: &[String]) -> bool {
        let Some(Value::Mapping(map)) = element(value, path) else { return self.remove(value, path) };
        let known = &task::narrowed(map, known);
        let strange: Vec<String> = map
            .keys()
            .filter_map(Value::as_str)
            .filter(|key| !known.iter().any(|k| k == key))
            .map(str::to_owned)
            .collect();
        let whole = self.written_path(path);
        for key in strange.iter().take(FINDINGS_MAX) {
            let path: Vec<String> = whole.iter().chain([key]).cloned().collect();
            self.report.note(words::unknown_key(&path, key, known));
            self.report.removed.push(path);
            map.remove(key.as_str());
        }
        !strange.is_empty() || self.remove(value, path)
    }

    /// Takes an element for a text, or the items of a list for texts, as if it had been written in
    /// quotes. If it can then be read, the quotes are what was missing.
    fn put_in_quotes(&mut self, value: &mut Value, path: &[String]) -> bool {
        let whole = self.written_path(path);
        let Some(element) = element(value, path) else { return false };
        let before = element.clone();
        let findings = self.report.findings.len();
        let mut quote = |value: &mut Value, path: &[String]| {
            let written = self.outline.plain_text(path).map(str::to_owned);
            let Some(written) = written.filter(|_| !self.report.is_full()) else { return };
            self.report.note(words::unexpected(path, "a text", value, Some(&written)));
            *value = Value::String(written);
        };
        let is_word = |value: &Value| value.is_bool() || value.is_number();
        match &mut *element {
            Value::Sequence(items) => {
                for (index, item) in items.iter_mut().enumerate().filter(|(_, item)| is_word(item)) {
                    let index = self.lists.get(&whole).map_or(index, |left| left[index]);
                    let path: Vec<String> = whole.iter().cloned().chain([index.to_string()]).collect();
                    quote(item, &path);
                }
            }
            other if is_word(other) => quote(other, &whole),
            _ => return false,
        }
        if *element == before {
            return false;
        }
        self.guess = Some(Guess { path: path.to_vec(), value: before, findings });
        true
    }

    fn remove(&mut self, value: &mut Value, path: &[String]) -> bool {
        let path = task::taken_with(path);
        self.report.removed.push(self.written_path(path));
        let Some((last, outer)) = path.split_last() else { return false };
        let outer_written = self.written_path(outer);
        match element(value, outer) {
            Some(Value::Mapping(map)) => map.remove(last.as_str()).is_some(),
            Some(Value::Sequence(items)) => {
                let Some(index) = last.parse().ok().filter(|index| *index < items.len()) else { return false };
                let left = self.lists.entry(outer_written).or_insert_with(|| (0..items.len()).collect());
                left.remove(index);
                items.remove(index);
                true
            }
            _ => false,
        }
    }

    /// A path as it is in the text: from the document on, and with the items that were taken out.
    fn written_path(&self, path: &[String]) -> Vec<String> {
        let mut whole = self.at.to_vec();
        for part in path {
            let left = self.lists.get(&whole).and_then(|left| left.get(part.parse::<usize>().ok()?));
            whole.push(left.map_or_else(|| part.clone(), ToString::to_string));
        }
        whole
    }
}

impl Complaint {
    /// Whether quotes around a number or a `true` might be all that is missing.
    fn may_be_quotes(&self) -> bool {
        matches!(self, Self::Expected(_)) && !matches!(self, Self::Expected(what) if what.contains("number"))
    }
}

fn attempt<T: DeserializeOwned>(value: &Value) -> Result<T, (Vec<String>, String)> {
    serde_path_to_error::deserialize(value).map_err(|error: serde_path_to_error::Error<serde_yaml::Error>| {
        let part = |segment: &Segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } | Segment::Enum { variant: key } => Some(key.clone()),
            Segment::Unknown => None,
        };
        (error.path().iter().map_while(part).collect(), error.inner().to_string())
    })
}

/// The part of a path that there is in the value.
fn reachable(value: &mut Value, path: &[String]) -> Vec<String> {
    let mut end = path.len();
    while end > 0 && element(value, &path[..end]).is_none() {
        end -= 1;
    }
    path[..end].to_vec()
}

fn element<'v>(value: &'v mut Value, path: &[String]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |value, part| match value {
        Value::Mapping(map) => map.get_mut(part.as_str()),
        Value::Sequence(items) => items.get_mut(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Whether a sentence is about the key of an element: it is if another value does not change it.
fn is_about_key<T: DeserializeOwned>(value: &mut Value, path: &[String], message: &str) -> bool {
    let Some(found) = element(value, path) else { return false };
    let other = if found.is_null() { Value::Bool(true) } else { Value::Null };
    let original = std::mem::replace(found, other);
    let same = attempt::<T>(value).is_err_and(|(at, said)| at == path && said == message);
    if let Some(found) = element(value, path) {
        *found = original;
    }
    same
}

/// Lays what is under `<<` under its map, in any depth, and leaves out keys that are no texts: of
/// those the outline has told.
fn tidy(value: Value) -> Value {
    match value {
        Value::Mapping(map) => {
            let mut own: Mapping =
                map.into_iter().filter(|(key, _)| key.is_string()).map(|(k, v)| (k, tidy(v))).collect();
            let merged = match own.remove(MERGE) {
                Some(Value::Sequence(maps)) => maps,
                Some(one) => vec![one],
                None => Vec::new(),
            };
            for map in merged {
                let Value::Mapping(map) = map else { continue };
                for (key, value) in map {
                    own.entry(key).or_insert(value);
                }
            }
            Value::Mapping(own)
        }
        Value::Sequence(items) => Value::Sequence(items.into_iter().map(tidy).collect()),
        other => other,
    }
}

/// Reads any value. A key that stands twice is an error, unless the outline has told of it: then the
/// first one counts, so that the rest can be read.
#[derive(Clone, Copy)]
struct Untyped {
    keep_first: bool,
}

impl<'de> DeserializeSeed<'de> for Untyped {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Untyped {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(truth.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i128<E>(self, number: i128) -> Result<Value, E> {
        Ok((number as f64).into())
    }

    fn visit_u128<E>(self, number: u128) -> Result<Value, E> {
        Ok((number as f64).into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Mapping::new();
        while let Some(key) = map.next_key_seed(self)? {
            let value = map.next_value_seed(self)?;
            if !entries.contains_key(&key) {
                entries.insert(key, value);
            } else if !self.keep_first {
                return Err(A::Error::custom("a key stands twice"));
            }
        }
        Ok(Value::Mapping(entries))
    }

    /// A tag: the outline has told of it, and what it stands at is read without.
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Value, A::Error> {
        let (_, value): (String, _) = data.variant()?;
        value.newtype_variant_seed(self)
    }
}

/// What a contradiction names, in backquotes.
pub(super) fn named(message: &str) -> BTreeSet<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

/// Whether a contradiction is there only because something was taken out.
pub(super) fn follows(finding: &Finding, removed: &[Vec<String>]) -> bool {
    let named = named(&finding.message);
    let is_replica_of = |word: &str, agent: &str| word.strip_prefix(agent).is_some_and(|rest| rest.starts_with('-'));
    removed.iter().any(|path| match path.as_slice() {
        _ if finding.path.starts_with(path) => true,
        [.., map, name] if matches!(map.as_str(), "agents" | "profiles" | "tasks" | "services") => {
            named.contains(name.as_str())
        }
        // Of a list that lost items little can be said.
        [list @ .., _] if finding.path == list => list.last().is_some_and(|key| named.iter().eq([key])),
        // How many agents there are of a name hangs on these.
        [.., agent, key] if matches!(key.as_str(), "replicas" | "profile") => {
            named.iter().any(|word| is_replica_of(word, agent))
        }
        _ => false,
    })
}

//! From text to fleet, or to sentences that say where the text is wrong and what was expected.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::file::FleetFile;
use super::resolve::{Fleet, resolve};
use crate::ids::Digest;

/// Largest fleet file read: ten thousand agents with every key take about a third of it.
pub const FILE_MAX: usize = 10 * 1024 * 1024;

/// A place in a file, as editors count: from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
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
    /// The line itself.
    pub excerpt: Option<String>,
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
            let marker = " ".repeat(place.column.saturating_sub(1));
            write!(f, "\n {number} | {excerpt}\n {indent} | {marker}^")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Reads a fleet file. `file` is its name, for the sentences.
///
/// # Errors
/// Everything found wrong. Nothing of a file with an error is used.
pub fn parse(file: &str, text: &str) -> Result<Fleet, Vec<Diagnostic>> {
    let diagnose = |findings: Vec<Finding>| -> Vec<Diagnostic> {
        findings.into_iter().map(|finding| finding.into_diagnostic(file, text)).collect()
    };
    let document = read(text).map_err(|finding| diagnose(vec![finding]))?;
    let fleet = resolve(&document).map_err(diagnose)?;
    Ok(Fleet { digest: Some(Digest::of(text.as_bytes())), ..fleet })
}

/// Something wrong at a path of the document, before its place in the text is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    path: Vec<String>,
    place: Option<Place>,
    pub(crate) message: String,
    hint: Option<String>,
}

impl Finding {
    pub(crate) fn at(path: &[String], message: String) -> Self {
        Self { path: path.to_vec(), place: None, message, hint: None }
    }

    pub(crate) fn hinted(mut self, word: Option<String>) -> Self {
        self.hint = word.map(|word| format!("did you mean `{word}`?"));
        self
    }

    fn into_diagnostic(self, file: &str, text: &str) -> Diagnostic {
        let place = self.place.or_else(|| locate(text, &self.path));
        let excerpt = place.as_ref().and_then(|place| text.lines().nth(place.line.saturating_sub(1)));
        Diagnostic {
            file: file.to_owned(),
            path: self.path.join("."),
            message: self.message,
            hint: self.hint,
            excerpt: excerpt.map(str::to_owned),
            place,
        }
    }
}

fn read(text: &str) -> Result<FleetFile, Finding> {
    let whole = |message: String| Finding::at(&[], message);
    if text.len() > FILE_MAX {
        return Err(whole(format!("the file has {} bytes; at most {FILE_MAX} are read", text.len())));
    }
    // A typed map takes the last of two equal keys in silence; an untyped one refuses the second.
    let untyped: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| from_yaml(&error, &[]))?;
    let none = Some("write `agents: {}` for a fleet of none".to_owned());
    if untyped.is_null() {
        let finding = whole("the file says nothing: a fleet file has at least the key `agents`".into());
        return Err(Finding { hint: none, ..finding });
    }
    // What is left when somebody comments out all agents is no wish to have none.
    if untyped.get("agents").is_some_and(serde_yaml::Value::is_null) {
        let finding = Finding::at(&["agents".to_owned()], "there is nothing under it".into());
        return Err(Finding { hint: none, ..finding });
    }
    let deserializer = serde_yaml::Deserializer::from_str(text);
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path: Vec<String> = error.path().iter().filter_map(segment_text).collect();
        from_yaml(error.inner(), &path)
    })
}

fn segment_text(segment: &serde_path_to_error::Segment) -> Option<String> {
    match segment {
        serde_path_to_error::Segment::Unknown => None,
        other => Some(other.to_string()),
    }
}

fn from_yaml(error: &serde_yaml::Error, path: &[String]) -> Finding {
    let place = error.location().map(|at| Place { line: at.line(), column: at.column() });
    let full = error.to_string();
    // The library writes its own idea of path and place around the message; ours stand beside it.
    let message = full.rsplit_once(" at line ").map_or(full.as_str(), |(message, _)| message);
    let prefix = message.split_once(": ").filter(|(prefix, _)| !prefix.contains([' ', '`']));
    let message = prefix.map_or(message, |(_, message)| message).to_owned();
    match unknown_key(&message) {
        Some((key, known)) => {
            let finding = Finding::at(path, format!("there is no key `{key}` here"));
            let hint = nearest(&key, known.iter().map(String::as_str));
            let list = (hint.is_none() && !known.is_empty()).then(|| format!("known keys: {}", known.join(", ")));
            let mut finding = finding.hinted(hint);
            finding.hint = finding.hint.or(list);
            Finding { place, ..finding }
        }
        None => Finding { place, ..Finding::at(path, message) },
    }
}

/// Reads serde's sentence about an unknown key or variant: the word, and the words it knows.
fn unknown_key(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut words = rest.split('`').skip(1).step_by(2).map(str::to_owned);
    Some((words.next()?, words.collect()))
}

/// The known word nearest to a mistyped one, if any is near.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// Where a path of the document stands in the text: reads the text down the path and fails there on
/// purpose, so that the library says where it was.
fn locate(text: &str, path: &[String]) -> Option<Place> {
    let error =
        (!path.is_empty()).then(|| Descent(path).deserialize(serde_yaml::Deserializer::from_str(text)).err())??;
    error.location().map(|at| Place { line: at.line(), column: at.column() })
}

struct Descent<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Descent<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Descent<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what stands at the path")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Err(A::Error::custom("here")) };
        while let Some(key) = map.next_key::<String>()? {
            if key == *first {
                return map.next_value_seed(Descent(rest));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Err(A::Error::custom("here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom("here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Field, Origin};
    use crate::names::AgentName;

    fn complaint(text: &str) -> String {
        let diagnostics = parse("fleet.yaml", text).expect_err("the text has an error");
        diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    fn agent(name: &str) -> AgentName {
        name.parse().unwrap()
    }

    #[test]
    fn a_mistyped_key_is_named_with_its_place_and_the_right_word() {
        insta::assert_snapshot!(complaint("agents:\n  web:\n    memroy: 1G\n"), @"
        fleet.yaml:3:5: agents.web.memroy: there is no key `memroy` here
         3 |     memroy: 1G
           |     ^
        hint: did you mean `memory`?
        ");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_path() {
        insta::assert_snapshot!(complaint("agents:\n  web:\n    memory: 1T\n"), @"
        fleet.yaml:3:13: agents.web.memory: `1T` is not a size: write a number with K, M or G, such as 512M, 8G or 1.5G
         3 |     memory: 1T
           |             ^
        ");
    }

    #[test]
    fn a_planned_key_is_refused_as_planned() {
        insta::assert_snapshot!(complaint("agents:\n  web:\n    mounts: []\n"), @"
        fleet.yaml:3:5: agents.web.mounts: this key is planned: nothing acts on it yet, so it is refused rather than ignored
         3 |     mounts: []
           |     ^
        ");
    }

    #[test]
    fn duplicate_keys_are_refused() {
        insta::assert_snapshot!(complaint("agents:\n  web: {}\n  web: {cpus: 2}\n"), @r#"
        fleet.yaml:2:3: duplicate entry with key "web"
         2 |   web: {}
           |   ^
        "#);
    }

    #[test]
    fn a_file_that_says_nothing_is_no_fleet() {
        insta::assert_snapshot!(complaint("# nothing\n"), @"
        fleet.yaml: the file says nothing: a fleet file has at least the key `agents`
        hint: write `agents: {}` for a fleet of none
        ");
        insta::assert_snapshot!(complaint("agents:\n#  web: {}\n"), @"
        fleet.yaml:1:8: agents: there is nothing under it
         1 | agents:
           |        ^
        hint: write `agents: {}` for a fleet of none
        ");
        insta::assert_snapshot!(complaint("name: lab\n"), @"
        fleet.yaml:1:1: missing field `agents`
         1 | name: lab
           | ^
        ");
    }

    #[test]
    fn a_dependency_on_nobody_is_found_with_its_place() {
        insta::assert_snapshot!(complaint("agents:\n  web:\n    dependsOn: [databse]\n  database: {}\n"), @"
        fleet.yaml:3:16: agents.web.dependsOn: there is no agent `databse` to depend on
         3 |     dependsOn: [databse]
           |                ^
        hint: did you mean `database`?
        ");
    }

    #[test]
    fn a_cycle_of_dependencies_is_found() {
        insta::assert_snapshot!(complaint("agents:\n  a: {dependsOn: [b]}\n  b: {dependsOn: [c]}\n  c: {dependsOn: [a]}\n"), @"
        fleet.yaml:2:18: agents.a.dependsOn: agents wait for each other: a -> b -> c -> a
         2 |   a: {dependsOn: [b]}
           |                  ^
        ");
    }

    #[test]
    fn every_contradiction_is_told_at_once() {
        insta::assert_snapshot!(complaint("agents:\n  a: {profile: smal}\n  b: {cpus: 0, env: {A-B: x}}\nprofiles:\n  small: {}\n"), @"
        fleet.yaml:2:16: agents.a.profile: there is no profile `smal`
         2 |   a: {profile: smal}
           |                ^
        hint: did you mean `small`?
        fleet.yaml:3:13: agents.b.cpus: a machine has at least 1 processor
         3 |   b: {cpus: 0, env: {A-B: x}}
           |             ^
        fleet.yaml:3:27: agents.b.env.A-B: `A-B` is no name for an environment variable
         3 |   b: {cpus: 0, env: {A-B: x}}
           |                           ^
        ");
    }

    #[test]
    fn layers_lie_over_each_other_and_fields_know_where_they_came_from() {
        let text = "
defaults: {driver: local, cpus: 2, env: {A: defaults, B: defaults}}
profiles:
  base: {memory: 2G, env: {B: base}}
  big: {profile: base, cpus: 8}
agents:
  web: {profile: big, env: {C: web}}
";
        let fleet = parse("fleet.yaml", text).unwrap();
        let web = &fleet.agents[&agent("web")];
        assert_eq!((web.spec.cpus, web.spec.memory.to_string().as_str()), (8, "2G"));
        let env: Vec<_> = web.spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=defaults", "B=base", "C=web"]);
        assert_eq!(web.origins[&Field::Driver], Origin::Defaults);
        assert_eq!(web.origins[&Field::Cpus], Origin::Profile("big".parse().unwrap()));
        assert_eq!(web.origins[&Field::Memory], Origin::Profile("base".parse().unwrap()));
        assert_eq!(web.origins[&Field::Env], Origin::Agent);
        assert_eq!(web.origins[&Field::Disk], Origin::BuiltIn);
    }

    #[test]
    fn replicas_have_stable_names_and_stand_for_all_in_dependencies() {
        let text = "agents:\n  db: {replicas: 2}\n  web: {dependsOn: [db]}\n";
        let fleet = parse("fleet.yaml", text).unwrap();
        let names: Vec<&str> = fleet.agents.keys().map(AgentName::as_str).collect();
        assert_eq!(names, ["db-1", "db-2", "web"]);
        let wanted: Vec<&str> = fleet.agents[&agent("web")].spec.depends_on.0.keys().map(AgentName::as_str).collect();
        assert_eq!(wanted, ["db-1", "db-2"]);
    }

    #[test]
    fn a_replica_and_an_agent_of_one_name_contradict() {
        assert!(complaint("agents:\n  db: {replicas: 2}\n  db-1: {}\n").contains("two agents would be named `db-1`"));
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,200}") {
            let _ = parse("fleet.yaml", &text);
        }
    }
}

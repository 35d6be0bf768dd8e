//! Where everything stands in a text: its maps, lists and words with their places, and without their
//! meaning. What they mean is read by `serde_yaml`, which knows no places.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

use super::diagnostic::{FINDINGS_MAX, Finding, Place, Spot};
use super::source::FILE_MAX;
use super::syntax;

/// Most maps and lists inside each other. A fleet file needs about eight.
pub(super) const DEPTH_MAX: usize = 64;

/// The key whose value is laid under the map that it stands in.
pub(super) const MERGE: &str = "<<";

/// The shape of a document, and what is wrong with the shape.
#[derive(Debug, Default)]
pub(super) struct Outline<'t> {
    nodes: Vec<Node<'t>>,
    root: Option<usize>,
    /// What is wrong though it can be read: keys that stand twice, tags, keys that are no texts.
    pub(super) findings: Vec<Finding>,
    /// Whether there is a map that another is laid under.
    pub(super) merges: bool,
}

#[derive(Debug)]
struct Node<'t> {
    place: Place,
    kind: Kind<'t>,
}

#[derive(Debug)]
enum Kind<'t> {
    Word {
        text: Cow<'t, str>,
        plain: bool,
    },
    List(Vec<usize>),
    /// Keys and values.
    Map(Vec<(usize, usize)>),
    Alias(usize),
}

impl<'t> Outline<'t> {
    /// Reads the shape of a text.
    ///
    /// # Errors
    /// The place where the text stops being one YAML document of a bounded size.
    pub(super) fn read(text: &'t str) -> Result<Self, Finding> {
        let options = granit_parser::options! { flow_nesting_limit: DEPTH_MAX, block_nesting_limit: DEPTH_MAX };
        let mut builder = Builder { size: text.len(), ..Builder::default() };
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|error| syntax::in_words(&error, text, builder.open_bracket()))?;
            builder.take(event, &span)?;
        }
        Ok(builder.outline)
    }

    /// Whether there is nothing but blanks and comments.
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Whether a key stands at the top of the document.
    pub(super) fn has(&self, key: &str) -> bool {
        self.root.is_some_and(|root| self.entry(root, key).is_some())
    }

    /// The keys at the top of the document.
    pub(super) fn top_keys(&self) -> Vec<&str> {
        match self.root.map(|root| &self.nodes[root].kind) {
            Some(Kind::Map(entries)) => entries.iter().filter_map(|(key, _)| self.word(*key)).collect(),
            _ => Vec::new(),
        }
    }

    /// How many elements of a path there are in this document.
    pub(super) fn reach(&self, path: &[impl AsRef<str>]) -> usize {
        self.walk(path).len().saturating_sub(1)
    }

    /// The place of an element, or of the nearest one around it that was written.
    pub(super) fn place(&self, path: &[String], spot: Spot) -> Option<Place> {
        if let Spot::At(place) = spot {
            return Some(place);
        }
        if path.is_empty() {
            return None;
        }
        let steps = self.walk(path);
        let found = steps.last()?;
        let whole = steps.len() == path.len() + 1;
        let node = &self.nodes[found.value];
        let silent = matches!(&node.kind, Kind::Word { text, plain: true } if text.is_empty());
        match found.key {
            Some(key) if spot == Spot::Key || silent || !whole => Some(self.nodes[key].place),
            _ => Some(node.place),
        }
    }

    /// The place of the document's first word.
    pub(super) fn beginning(&self) -> Option<Place> {
        self.root.map(|root| self.nodes[root].place)
    }

    /// What is written at a path without quotes, letter by letter.
    pub(super) fn plain_text(&self, path: &[String]) -> Option<&str> {
        let steps = self.walk(path);
        let found = steps.last().filter(|_| steps.len() == path.len() + 1)?;
        match &self.nodes[self.meant(found.value)].kind {
            Kind::Word { text, plain: true } => Some(text),
            _ => None,
        }
    }

    /// A path in writing: `agents.web.dependsOn[0]`.
    pub(super) fn path_text(&self, path: &[String]) -> String {
        let steps = self.walk(path);
        let mut text = String::new();
        for (index, part) in path.iter().enumerate() {
            let inside = steps.get(index).map(|step| &self.nodes[self.meant(step.value)].kind);
            if matches!(inside, Some(Kind::List(_))) {
                text.push_str(&format!("[{part}]"));
                continue;
            }
            if index > 0 {
                text.push('.');
            }
            let quoted = part.is_empty() || part.contains(|c: char| c == '.' || c.is_whitespace());
            text.push_str(&if quoted { format!("{part:?}") } else { part.clone() });
        }
        text
    }

    /// The path, led on to the item or key of its list or map that one of the words names.
    pub(super) fn narrowed(&self, path: &[String], words: &BTreeSet<&str>) -> Vec<String> {
        let steps = self.walk(path);
        let last = steps.last().filter(|_| steps.len() == path.len() + 1);
        let is_named = |node: usize| self.word(node).is_some_and(|word| words.contains(word));
        let part = match last.map(|step| &self.nodes[self.meant(step.value)].kind) {
            Some(Kind::List(items)) => items.iter().position(|item| is_named(*item)).map(|index| index.to_string()),
            Some(Kind::Map(entries)) => {
                entries.iter().find(|(key, _)| is_named(*key)).and_then(|(key, _)| self.word(*key)).map(str::to_owned)
            }
            _ => None,
        };
        path.iter().cloned().chain(part).collect()
    }

    /// The elements down a path, the document itself first, as far as they were written.
    fn walk(&self, path: &[impl AsRef<str>]) -> Vec<Step> {
        let Some(root) = self.root else { return Vec::new() };
        let mut steps = vec![Step { key: None, value: root }];
        for part in path {
            let here = steps.last().map_or(root, |step| step.value);
            let Some(step) = self.entry(here, part.as_ref()) else { break };
            steps.push(step);
        }
        steps
    }

    /// The element of a map or list, or one that a merge lays under the map.
    fn entry(&self, node: usize, part: &str) -> Option<Step> {
        match &self.nodes[self.meant(node)].kind {
            Kind::List(items) => {
                let value = *items.get(part.parse::<usize>().ok()?)?;
                Some(Step { key: None, value })
            }
            Kind::Map(entries) => {
                let own = |name: &str| entries.iter().find(|(key, _)| self.word(*key) == Some(name));
                if let Some(&(key, value)) = own(part) {
                    return Some(Step { key: Some(key), value });
                }
                let merged = own(MERGE).map(|&(_, value)| self.meant(value))?;
                match &self.nodes[merged].kind {
                    Kind::Map(_) => self.entry(merged, part),
                    Kind::List(items) => items.iter().find_map(|item| self.entry(*item, part)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn word(&self, node: usize) -> Option<&str> {
        match &self.nodes[self.meant(node)].kind {
            Kind::Word { text, .. } => Some(text),
            _ => None,
        }
    }

    /// What an alias stands for. That is never another alias.
    fn meant(&self, node: usize) -> usize {
        match self.nodes[node].kind {
            Kind::Alias(target) => target,
            _ => node,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Step {
    key: Option<usize>,
    value: usize,
}

/// Makes the outline from what the parser comes across.
#[derive(Default)]
struct Builder<'t> {
    outline: Outline<'t>,
    open: Vec<Open>,
    anchors: HashMap<usize, Anchor>,
    documents: usize,
    /// Bytes that the text would have if what its aliases stand for were written out.
    size: usize,
}

/// A map or list whose end has not come.
struct Open {
    node: usize,
    anchor: usize,
    /// Whether it is written in brackets.
    flow: bool,
    start: usize,
    size_before: usize,
    height: usize,
    /// The key whose value comes next.
    key: Option<usize>,
    /// The keys so far.
    seen: HashMap<String, usize>,
}

/// What an alias may stand for.
#[derive(Clone, Copy)]
struct Anchor {
    node: usize,
    /// Bytes, with the aliases inside written out.
    size: usize,
    /// How many maps and lists lie inside each other.
    height: usize,
}

impl<'t> Builder<'t> {
    fn take(&mut self, event: Event<'t>, span: &Span) -> Result<(), Finding> {
        let place = Place { line: span.start.line().max(1), column: span.start.col() + 1 };
        let start = span.start.byte_offset().unwrap_or(0);
        let end = span.end.byte_offset().unwrap_or(start);
        self.refuse_tag(&event, span);
        match event {
            Event::DocumentStart(..) => self.begin_document(place),
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let node = self.add(place, Kind::Word { text, plain });
                self.remember(anchor, Anchor { node, size: end.saturating_sub(start) + 1, height: 0 });
                self.complete(node, 0)
            }
            Event::SequenceStart(style, anchor, _) => self.begin(place, Kind::List(Vec::new()), style, anchor, start),
            Event::MappingStart(style, anchor, _) => self.begin(place, Kind::Map(Vec::new()), style, anchor, start),
            Event::SequenceEnd | Event::MappingEnd => self.end(end),
            Event::Alias(id) => self.alias(id, place),
            _ => Ok(()),
        }
    }

    fn begin_document(&mut self, place: Place) -> Result<(), Finding> {
        self.documents += 1;
        if self.documents == 1 {
            return Ok(());
        }
        let hint = "leave `---` out, or put each part into a file of its own and give all of them with `-f`";
        Err(Finding::in_text(place, "a second document begins here; a file has one").advised(hint.to_owned()))
    }

    fn add(&mut self, place: Place, kind: Kind<'t>) -> usize {
        self.outline.nodes.push(Node { place, kind });
        self.outline.nodes.len() - 1
    }

    fn begin(
        &mut self,
        place: Place,
        kind: Kind<'t>,
        style: StructureStyle,
        anchor: usize,
        start: usize,
    ) -> Result<(), Finding> {
        self.check_depth(1, place)?;
        let node = self.add(place, kind);
        let flow = style == StructureStyle::Flow;
        let size_before = self.size;
        self.open.push(Open { node, anchor, flow, start, size_before, height: 1, key: None, seen: HashMap::new() });
        Ok(())
    }

    /// The line of the innermost bracket whose end has not come.
    fn open_bracket(&self) -> Option<usize> {
        let open = self.open.last().filter(|open| open.flow)?;
        Some(self.outline.nodes[open.node].place.line)
    }

    fn end(&mut self, end: usize) -> Result<(), Finding> {
        let Some(done) = self.open.pop() else { return Ok(()) };
        let size = end.saturating_sub(done.start) + 1 + (self.size - done.size_before);
        self.remember(done.anchor, Anchor { node: done.node, size, height: done.height });
        self.complete(done.node, done.height)
    }

    fn alias(&mut self, id: usize, place: Place) -> Result<(), Finding> {
        let Some(&Anchor { node, size, height }) = self.anchors.get(&id) else {
            return Err(Finding::in_text(place, "an alias can't stand inside of what it stands for"));
        };
        self.size += size;
        if self.size > FILE_MAX {
            let message = format!("with its aliases written out the file has more than {FILE_MAX} bytes");
            return Err(Finding::in_text(place, message));
        }
        self.check_depth(height, place)?;
        let alias = self.add(place, Kind::Alias(node));
        self.complete(alias, height)
    }

    fn check_depth(&self, more: usize, place: Place) -> Result<(), Finding> {
        if self.open.len() + more <= DEPTH_MAX {
            return Ok(());
        }
        let message = format!("maps and lists lie in each other more than {DEPTH_MAX} deep");
        Err(Finding::in_text(place, message))
    }

    /// Id 0 stands for no anchor.
    fn remember(&mut self, id: usize, anchor: Anchor) {
        if id != 0 {
            self.anchors.insert(id, anchor);
        }
    }

    /// Puts a whole element where it belongs.
    fn complete(&mut self, node: usize, height: usize) -> Result<(), Finding> {
        let Some(open) = self.open.last_mut() else {
            self.outline.root = Some(node);
            return Ok(());
        };
        open.height = open.height.max(height + 1);
        let container = open.node;
        match (open.key.take(), &mut self.outline.nodes[container].kind) {
            (Some(key), Kind::Map(entries)) => {
                entries.push((key, node));
                self.check_merge(key, node);
            }
            (None, Kind::Map(_)) => {
                open.key = Some(node);
                self.check_key(node);
            }
            (_, Kind::List(items)) => items.push(node),
            (_, Kind::Word { .. } | Kind::Alias(_)) => {}
        }
        Ok(())
    }

    /// Keys are texts, and stand once.
    fn check_key(&mut self, node: usize) {
        let place = self.outline.nodes[node].place;
        let (text, found) = match &self.outline.nodes[self.outline.meant(node)].kind {
            Kind::Word { text, plain } => (text.to_string(), plain.then(|| not_text(text)).flatten()),
            Kind::List(_) => return self.refuse_key(place, "a list"),
            Kind::Map(_) | Kind::Alias(_) => return self.refuse_key(place, "a map"),
        };
        let Some(open) = self.open.last_mut() else { return };
        let first = *open.seen.entry(text.clone()).or_insert(node);
        let finding = if let Some(found) = found {
            let finding = Finding::in_text(place, format!("a key is a text, and this is {found}"));
            finding.advised(format!("write \"{text}\""))
        } else if first != node {
            let line = self.outline.nodes[first].place.line;
            Finding::in_text(place, format!("`{text}` is here twice; the first is on line {line}"))
        } else {
            return;
        };
        let path = self.path();
        self.note(Finding { path, ..finding });
    }

    /// A key with no name: it is told at its map.
    fn refuse_key(&mut self, place: Place, found: &str) {
        let mut path = self.path();
        path.pop();
        let finding = Finding { path, ..Finding::in_text(place, format!("a key is a text, and this is {found}")) };
        self.outline
            .findings
            .push(finding.advised("a text that begins with a bracket is written in quotes".to_owned()));
    }

    fn check_merge(&mut self, key: usize, value: usize) {
        if self.outline.word(key) != Some(MERGE) {
            return;
        }
        self.outline.merges = true;
        let is_map = |node: usize| matches!(self.outline.nodes[self.outline.meant(node)].kind, Kind::Map(_));
        let right = match &self.outline.nodes[self.outline.meant(value)].kind {
            Kind::Map(_) => true,
            Kind::List(items) => items.iter().all(|item| is_map(*item)),
            _ => false,
        };
        if !right {
            let message = "only a map, or a list of maps, can be laid under a map".to_owned();
            let mut path = self.path();
            path.push(MERGE.to_owned());
            let finding = Finding { path, ..Finding::in_text(self.outline.nodes[value].place, message) };
            self.note(finding.advised("write `<<: *name`, and `&name` at the map meant".to_owned()));
        }
    }

    /// A tag of somebody's own would be ignored, and so is refused.
    fn refuse_tag(&mut self, event: &Event<'t>, span: &Span) {
        let Some(tag) = event.tag().filter(|tag| !tag.is_yaml_core_schema()) else { return };
        let mark = span.tag_start.unwrap_or(span.start);
        let place = Place { line: mark.line().max(1), column: mark.col() + 1 };
        let message = format!("the tag `{}` has no meaning in a fleet file", tag.original());
        let finding = Finding { path: self.path(), ..Finding::in_text(place, message) };
        let hint = "a text that begins with `!` is written in quotes";
        self.note(finding.advised(hint.to_owned()));
    }

    /// What is told is bounded, and so is what is remembered.
    fn note(&mut self, finding: Finding) {
        if self.outline.findings.len() < FINDINGS_MAX {
            self.outline.findings.push(finding);
        }
    }

    /// The path of what comes next, or of the key that has just come.
    fn path(&self) -> Vec<String> {
        let part = |open: &Open| match &self.outline.nodes[open.node].kind {
            Kind::List(items) => Some(items.len().to_string()),
            _ => open.key.map(|key| self.outline.word(key).unwrap_or_default().to_owned()),
        };
        self.open.iter().filter_map(part).collect()
    }
}

/// What a word without quotes is when it is no text. Only few beginnings are worth asking `serde_yaml`.
fn not_text(word: &str) -> Option<&'static str> {
    let first = word.bytes().next();
    if first.is_some_and(|byte| !byte.is_ascii_digit() && !b"+-.~nNtTfF".contains(&byte)) {
        return None;
    }
    match serde_yaml::from_str(word) {
        Ok(serde_yaml::Value::Null) => Some("nothing"),
        Ok(serde_yaml::Value::Bool(_)) => Some("true or false"),
        Ok(serde_yaml::Value::Number(_)) => Some("a number"),
        _ => None,
    }
}

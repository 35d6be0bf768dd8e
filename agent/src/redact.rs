//! Secrets are taken out of what processes write, by their values, before it goes anywhere.
//!
//! This guards against accidents: a program that prints its environment, a command that echoes a token. A
//! program that wants to give a secret away can encode it, and nothing here would know it then.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use bytes::Bytes;
use vm_agent_schemas::ids::Secret;

/// What stands in the place of a secret.
const MASK: &str = "***";
/// The shortest value that is taken out, in bytes. Shorter ones are found in innocent text all the time, which
/// would tell what they are.
const VALUE_MIN: usize = 6;

/// What is to be taken out. Where one value begins with another the longer one is found; white space around a
/// value does not count.
#[derive(Clone)]
pub(crate) struct Redaction {
    /// Nothing where there is nothing to find.
    values: Option<Arc<Values>>,
}

struct Values {
    values: Vec<Vec<u8>>,
    search: AhoCorasick,
    /// Which bytes a value begins with.
    begins: [bool; 256],
    longest: usize,
}

impl Redaction {
    /// Takes out the values of these secrets.
    pub(crate) fn new(secrets: &BTreeMap<String, Secret>) -> Self {
        let values = secrets.values().map(|secret| secret.expose().trim()).filter(|value| value.len() >= VALUE_MIN);
        let values: Vec<Vec<u8>> = values.map(|value| value.as_bytes().to_vec()).collect();
        Self { values: Values::new(values).map(Arc::new) }
    }

    /// A text without secrets.
    pub(crate) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.values {
            Some(values) if values.search.is_match(text) => {
                // Values and mask are whole texts, so what is left is text as well.
                Cow::Owned(values.search.replace_all(text, &vec![MASK; values.values.len()]))
            }
            _ => Cow::Borrowed(text),
        }
    }

    /// Takes secrets out of something that comes in pieces.
    pub(crate) fn stream(&self) -> Redactor {
        Redactor { values: self.values.clone(), held: Vec::new() }
    }
}

impl Values {
    fn new(values: Vec<Vec<u8>>) -> Option<Self> {
        let longest = values.iter().map(Vec::len).max()?;
        // It fails when the values are longer together than any configuration can be.
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&values).ok()?;
        let mut begins = [false; 256];
        values.iter().for_each(|value| begins[usize::from(value[0])] = true);
        Some(Self { values, search, begins, longest })
    }

    /// Where in `data`, from `from` on, a value begins that does not end in it.
    fn begun(&self, data: &[u8], from: usize) -> Option<usize> {
        let first = from.max(data.len().saturating_sub(self.longest - 1));
        (first..data.len()).find(|&at| {
            let rest = &data[at..];
            let begun = |value: &Vec<u8>| value.len() > rest.len() && value.starts_with(rest);
            self.begins[usize::from(rest[0])] && self.values.iter().any(begun)
        })
    }
}

/// Takes secrets out of something that comes in pieces. However it is cut, the same comes out: what may be the
/// beginning of a secret is held back until it is known.
pub(crate) struct Redactor {
    values: Option<Arc<Values>>,
    held: Vec<u8>,
}

impl Redactor {
    /// What can be let go of after this piece.
    pub(crate) fn push(&mut self, data: Bytes) -> Bytes {
        let Some(values) = self.values.clone() else { return data };
        let data =
            if self.held.is_empty() { data } else { [&std::mem::take(&mut self.held), &data[..]].concat().into() };
        let (clean, rest) = clean(&values, &data);
        self.held = data[rest..].to_vec();
        match clean {
            Some(clean) => clean.into(),
            None => data.slice(..rest),
        }
    }

    /// What was held back, when nothing more comes.
    pub(crate) fn finish(&mut self) -> Bytes {
        let Some(values) = &self.values else { return Bytes::new() };
        // What is held may have whole values in it: the beginning of a longer one that did not come.
        let mut clean = Vec::new();
        values.search.replace_all_with_bytes(&self.held, &mut clean, |_, _, clean| {
            clean.extend_from_slice(MASK.as_bytes());
            true
        });
        self.held.clear();
        clean.into()
    }
}

/// What of some data is certain: how far it goes, and what it is without secrets; nothing if it has none.
fn clean(values: &Values, data: &[u8]) -> (Option<Vec<u8>>, usize) {
    let (mut clean, mut done) = (None::<Vec<u8>>, 0);
    loop {
        let begun = values.begun(data, done);
        // Before a value that may have begun, each value found is the longest there.
        let found = values.search.find(&data[done..]).map(|found| done + found.start()..done + found.end());
        let Some(found) = found.filter(|found| begun.is_none_or(|begun| found.start < begun)) else {
            let rest = begun.unwrap_or(data.len());
            if let Some(clean) = &mut clean {
                clean.extend_from_slice(&data[done..rest]);
            }
            return (clean, rest);
        };
        let clean = clean.get_or_insert_default();
        clean.extend_from_slice(&data[done..found.start]);
        clean.extend_from_slice(MASK.as_bytes());
        done = found.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redaction(values: &[&str]) -> Redaction {
        let secret = |(number, value): (usize, &&str)| (format!("S{number}"), Secret::from_text(*value));
        Redaction::new(&values.iter().enumerate().map(secret).collect())
    }

    fn through(redaction: &Redaction, pieces: &[&[u8]]) -> Vec<u8> {
        let mut redactor = redaction.stream();
        let mut out = Vec::new();
        pieces.iter().for_each(|piece| out.extend_from_slice(&redactor.push(Bytes::copy_from_slice(piece))));
        out.extend_from_slice(&redactor.finish());
        out
    }

    #[test]
    fn values_are_taken_out_and_short_ones_are_not() {
        let redaction = redaction(&["hunter22", "short", " spaced\n", "hunter22-long"]);
        let text = "a hunter22b short spaced; hunter22-long hunter22-lo";
        let clean = "a ***b short ***; *** ***-lo";
        assert_eq!(redaction.text(text), clean);
        assert_eq!(through(&redaction, &[text.as_bytes()]), clean.as_bytes());
        assert_eq!(redaction.text("nothing"), "nothing");
    }

    #[test]
    fn only_what_may_be_a_secret_is_held_back() {
        let mut redactor = redaction(&["hunter22"]).stream();
        assert_eq!(redactor.push(Bytes::from_static(b"password: hunt")), "password: ");
        assert_eq!(redactor.push(Bytes::from_static(b"ing\n> ")), "hunting\n> ");
        assert_eq!(redactor.push(Bytes::from_static(b"hunter2")), "");
        assert_eq!(redactor.push(Bytes::from_static(b"2")), "***");
        assert_eq!(redactor.finish(), "");
    }

    #[test]
    fn without_secrets_nothing_is_copied() {
        let data = Bytes::from_static(b"data");
        assert_eq!(redaction(&["tiny"]).stream().push(data.clone()).as_ptr(), data.as_ptr());
    }

    proptest! {
        #[test]
        fn however_the_input_is_cut_the_same_comes_out(
            values in proptest::collection::vec("[ab]{6,9}", 0..5),
            text in "[abc]{0,80}",
            mut cuts in proptest::collection::vec(0..=80_usize, 0..8),
        ) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let redaction = redaction(&values);
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(text.len()));
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([text.len()]);
            let mut from = 0;
            let pieces: Vec<&[u8]> =
                ends.map(|to| &text.as_bytes()[std::mem::replace(&mut from, to)..to]).collect();
            let whole = redaction.text(&text);
            let clean = through(&redaction, &pieces);
            prop_assert_eq!(str::from_utf8(&clean).unwrap(), whole.as_ref());
            prop_assert!(values.iter().all(|value| !whole.contains(value)));
        }
    }
}

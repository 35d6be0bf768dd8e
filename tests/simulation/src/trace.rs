//! What happens, line by line. Ids are random and decide nothing, so each is shown by the order in which
//! it first appears: the same seed reads the same.

use std::collections::BTreeMap;

use crate::clock::{Millis, SECOND};

/// How long the text of a UUID is.
const UUID: usize = 36;

/// How long a digest is where people read it. Those of approvals are made from ids.
const SHORT_DIGEST: usize = 12;

/// The lines.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Vec<String>,
    names: BTreeMap<String, usize>,
}

impl Trace {
    /// Notes a line.
    pub fn note(&mut self, at: Millis, line: &str) {
        let (seconds, millis) = (at / SECOND, at % SECOND);
        let line = self.rename(line);
        self.lines.push(format!("{seconds:>6}.{millis:03} {line}"));
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    fn rename(&mut self, line: &str) -> String {
        let mut renamed = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(character) = rest.chars().next() {
            let uuid = rest.get(..UUID).filter(|text| is_uuid(text));
            if let Some(id) = uuid.or_else(|| rest.get(..SHORT_DIGEST).filter(|text| is_hexadecimal(text))) {
                let next = self.names.len() + 1;
                let number = *self.names.entry(id.to_owned()).or_insert(next);
                renamed.push_str(&format!("#{number}"));
                rest = &rest[id.len()..];
            } else {
                renamed.push(character);
                rest = &rest[character.len_utf8()..];
            }
        }
        renamed
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_uuid(text: &str) -> bool {
    text.bytes().enumerate().all(|(index, byte)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_shown_by_its_first_appearance() {
        let mut trace = Trace::default();
        trace.note(1234, "task 01a204b1-4248-7681-ba6b-b4afd42e8909 began");
        trace.note(1235, "01a204b1-4248-7681-ba6b-b4afd42e8900, 01a204b1-4248-7681-ba6b-b4afd42e8909");
        assert_eq!(trace.lines(), ["     1.234 task #1 began", "     1.235 #2, #1"]);
    }
}

//! What a unit's file says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where units lie.
pub(super) const UNITS: &str = "/etc/systemd/system";

/// A unit: its file, with the drop-ins over it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unit {
    values: BTreeMap<(String, String), Vec<String>>,
}

impl Unit {
    /// Reads a unit.
    pub(super) fn read(name: &str) -> Option<Self> {
        let places = [UNITS, "/run/systemd/system", "/usr/local/lib/systemd/system"];
        let path = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists())?;
        let mut unit = Self::default();
        unit.lay(&fs::read_to_string(&path).ok()?);
        for place in places {
            let folder = Path::new(place).join(format!("{name}.d"));
            let mut more: Vec<PathBuf> =
                fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path()).collect();
            more.sort();
            for text in more.iter().filter_map(|path| fs::read_to_string(path).ok()) {
                unit.lay(&text);
            }
        }
        Some(unit)
    }

    /// Lays a text over what there is: an empty value takes back those before it.
    pub(super) fn lay(&mut self, text: &str) {
        let mut section = String::new();
        let joined = text.replace("\\\n", " ");
        for line in joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name.to_owned();
            } else if let Some((key, value)) = line.split_once('=') {
                let values = self.values.entry((section.clone(), key.trim().to_owned())).or_default();
                match value.trim() {
                    "" => values.clear(),
                    value => values.push(value.to_owned()),
                }
            }
        }
    }

    fn all(&self, section: &str, key: &str) -> &[String] {
        self.values.get(&(section.to_owned(), key.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// All values of a key of its service.
    pub(super) fn service(&self, key: &str) -> &[String] {
        self.all("Service", key)
    }

    /// The last value of a key of its service.
    pub(super) fn last(&self, key: &str) -> Option<&str> {
        self.service(key).last().map(String::as_str)
    }

    /// Other units, by the key that names them.
    pub(super) fn others(&self, key: &str) -> impl Iterator<Item = &str> {
        self.all("Unit", key).iter().flat_map(|names| names.split_whitespace())
    }

    /// What wants it when it is enabled.
    pub(super) fn wanted_by(&self) -> impl Iterator<Item = &str> {
        self.all("Install", "WantedBy").iter().flat_map(|names| names.split_whitespace())
    }

    /// Whether it may start.
    pub(super) fn condition(&self) -> bool {
        self.all("Unit", "ConditionPathExists").iter().all(|path| match path.strip_prefix('!') {
            Some(path) => !Path::new(path).exists(),
            None => Path::new(path).exists(),
        })
    }

    /// Whether it is to do something once rather than to run.
    pub(super) fn is_oneshot(&self) -> bool {
        self.last("Type") == Some("oneshot")
    }

    /// Whether it counts as there when its process has ended well.
    pub(super) fn stays(&self) -> bool {
        self.last("RemainAfterExit").is_some_and(|stays| matches!(stays, "yes" | "true"))
    }

    /// Whether it is to be started again after such an end.
    pub(super) fn restarts(&self, well: bool) -> bool {
        match self.last("Restart").unwrap_or("no") {
            "always" => true,
            "on-failure" | "on-abnormal" | "on-abort" => !well,
            "on-success" => well,
            _ => false,
        }
    }

    /// A time among the keys of its service.
    pub(super) fn time(&self, key: &str, default: Duration) -> Duration {
        let Some(text) = self.last(key) else { return default };
        let (number, factor) = match text {
            "infinity" => return Duration::from_secs(u64::from(u32::MAX)),
            text if text.ends_with("ms") => (text.trim_end_matches("ms"), 0.001),
            text if text.ends_with("min") => (text.trim_end_matches("min"), 60.0),
            text => (text.trim_end_matches('s'), 1.0),
        };
        number.trim().parse::<f64>().map_or(default, |number| Duration::from_secs_f64(number * factor))
    }
}

/// Cuts a command line into words, as systemd does for those without anything special.
pub(super) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut begun) = (String::new(), None, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(end), letter) if letter == end => quote = None,
            (None, '"' | '\'') => (quote, begun) = (Some(letter), true),
            (_, '\\') => word.extend(letters.next()),
            (None, letter) if letter.is_whitespace() => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                    begun = false;
                }
            }
            (_, letter) => word.push(letter),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_values_lie_over_earlier_ones_and_an_empty_one_takes_them_back() {
        let mut unit = Unit::default();
        unit.lay("# x\n[Service]\nType=exec\nUser=a\nExecStart=/bin/one --x\nRestart=always\nRestartSec=2\n");
        unit.lay("[Unit]\nAfter=a.service b.service\n[Service]\nUser=b\nExecStart=\nExecStart=/bin/two\n");
        assert_eq!((unit.last("User"), unit.service("ExecStart")), (Some("b"), ["/bin/two".to_owned()].as_slice()));
        assert_eq!(unit.others("After").collect::<Vec<_>>(), ["a.service", "b.service"]);
        assert!(unit.restarts(true) && !unit.is_oneshot());
        assert_eq!(unit.time("RestartSec", Duration::ZERO), Duration::from_secs(2));
    }

    #[test]
    fn words_may_be_quoted() {
        assert_eq!(words(r#"/bin/sh -c "echo 'a b'" '' c\ d"#), ["/bin/sh", "-c", "echo 'a b'", "", "c d"]);
    }
}

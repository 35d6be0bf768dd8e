//! The log of units: a file for each, and the program that prints it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{JOURNAL, say};

fn path(unit: &str) -> PathBuf {
    Path::new(JOURNAL).join(unit)
}

/// Where a unit's processes write to.
pub(super) fn open(unit: &str) -> io::Result<File> {
    fs::create_dir_all(JOURNAL)?;
    OpenOptions::new().create(true).append(true).open(path(unit))
}

/// The program `journalctl`.
pub(super) fn main(arguments: &[String]) -> ExitCode {
    let (mut unit, mut lines, mut dated) = (None, usize::MAX, true);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let (key, value) =
            word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value.to_owned())));
        match key {
            "--unit" | "-u" => unit = value.or_else(|| words.next().cloned()),
            "_SYSTEMD_UNIT" => unit = value,
            "--lines" | "-n" => {
                lines = value.or_else(|| words.next().cloned()).and_then(|lines| lines.parse().ok()).unwrap_or(lines);
            }
            "--output" | "-o" => dated = value.or_else(|| words.next().cloned()).as_deref() != Some("cat"),
            _ => {}
        }
    }
    let Some(unit) = unit.map(|unit| super::systemctl::full(&unit)) else { return ExitCode::SUCCESS };
    let text = fs::read_to_string(path(&unit)).unwrap_or_default();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let now = jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%z").to_string();
    let all: Vec<&str> = text.lines().collect();
    let mut told = String::new();
    for line in &all[all.len().saturating_sub(lines)..] {
        if dated {
            told.push_str(&format!("{now} {} {}[1]: ", host.trim(), unit.trim_end_matches(".service")));
        }
        told.push_str(line);
        told.push('\n');
    }
    say(&told)
}

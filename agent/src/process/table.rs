//! The table of processes, read from `/proc`. Where there is none it is empty.

use std::io;

use rustix::process::Pid;

/// One process, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its id.
    pub(crate) id: u32,
    /// Its parent's id.
    pub(crate) parent: u32,
    /// Its group.
    pub(crate) group: u32,
    /// Whether it has ended, and only waits to be waited for.
    pub(crate) ended: bool,
    /// Its own processor time and that of its children which were waited for, in ticks.
    pub(crate) ticks: u64,
    /// When it started, in ticks since the machine did: tells it from an earlier process with its id.
    pub(crate) start: u64,
    /// The memory that it holds, in pages.
    pub(crate) pages: u64,
}

impl Entry {
    /// The process's id as system calls take it.
    pub(crate) const fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.id.cast_signed())
    }
}

/// All processes that can be read.
pub(crate) fn entries() -> Vec<Entry> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry_of(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

/// One process, if it is there.
pub(crate) fn entry_of(id: u32) -> Option<Entry> {
    parse(&std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// Whether a process carries such a value of an environment variable. What may not be looked into does not.
/// Nothing when it has no environment: it may be about to run another program, and have one in an instant, or it
/// is gone, and may have left another behind.
pub(crate) fn carries(process: u32, variable: &str, such: impl Fn(&str) -> bool) -> Option<bool> {
    let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => b"hidden".into(),
        _ => Vec::new(),
    });
    let carried = environment.split(|byte| *byte == 0).any(|entry| {
        let value = str::from_utf8(entry).ok().and_then(|entry| entry.strip_prefix(variable)?.strip_prefix('='));
        value.is_some_and(&such)
    });
    (!environment.is_empty()).then_some(carried)
}

/// Reads a line of `/proc/*/stat`. The program's name stands in brackets and can hold anything.
fn parse(line: &str) -> Option<Entry> {
    let (id, _) = line.split_once(' ')?;
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // In the manual's counting state is field 3, and the four times are fields 14 to 17.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let id_at = |field: usize| u32::try_from(number(field)?).ok();
    let ticks = (14..=17).map(number).sum::<Option<u64>>()?;
    let ended = matches!(*fields.first()?, "Z" | "X");
    let (parent, group) = (id_at(4)?, id_at(5)?);
    Some(Entry { id: id.parse().ok()?, parent, group, ended, ticks, start: number(22)?, pages: number(24)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read_whatever_the_program_is_called() {
        let line = "42 (a) R 1 (b) S 7 40 40 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 5 6 7";
        let entry = Entry { id: 42, parent: 7, group: 40, ended: false, ticks: 110, start: 5, pages: 7 };
        assert_eq!(parse(line), Some(entry));
        assert_eq!(parse(&line.replace(") S", ") Z")), Some(Entry { ended: true, ..entry }));
        assert_eq!(parse("42 (torn"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_seen() {
        let own = std::process::id();
        assert!(entries().iter().any(|process| process.id == own && !process.ended && process.pages > 0));
        assert_eq!(carries(own, "CARGO_PKG_NAME", |value| value == env!("CARGO_PKG_NAME")), Some(true));
        assert_eq!(carries(own, "CARGO_PKG_NAME", |value| value == "another"), Some(false));
    }
}

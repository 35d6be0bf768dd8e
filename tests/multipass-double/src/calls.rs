//! The record of calls: one line when a call begins, one when it ends.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::home::Home;

/// One call of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The arguments, without the program's name.
    pub argv: Vec<String>,
    /// The process.
    pub pid: u32,
    /// When it began.
    pub began: Timestamp,
    /// When it ended; nothing while it lasts, or when it was killed.
    pub ended: Option<Timestamp>,
    /// The exit code.
    pub code: Option<u8>,
}

impl Call {
    /// The command: the first argument that is no option.
    #[must_use]
    pub fn command(&self) -> &str {
        self.argv.iter().find(|argument| !argument.starts_with('-')).map_or("", String::as_str)
    }

    /// Whether this call and another were under way at the same time.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let ends = |call: &Self| call.ended.unwrap_or(Timestamp::MAX);
        self.began < ends(other) && other.began < ends(self)
    }
}

/// A line of the record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Began { argv: Vec<String>, pid: u32, began: Timestamp },
    Ended { pid: u32, ended: Timestamp, code: u8 },
}

/// Notes that this process begins a call.
pub(crate) fn begin(home: &Home, argv: &[String]) -> io::Result<()> {
    append(home, &Line::Began { argv: argv.to_owned(), pid: std::process::id(), began: Timestamp::now() })
}

/// Notes that this process ends its call.
pub(crate) fn end(home: &Home, code: u8) -> io::Result<()> {
    append(home, &Line::Ended { pid: std::process::id(), ended: Timestamp::now(), code })
}

fn append(home: &Home, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    // One write to a file opened for appending: lines of several processes don't mix.
    OpenOptions::new().create(true).append(true).open(home.calls())?.write_all(&text)
}

/// All calls in the order in which they began.
pub(crate) fn read(home: &Home) -> Vec<Call> {
    let text = fs::read_to_string(home.calls()).unwrap_or_default();
    let mut calls: Vec<Call> = Vec::new();
    // Ids of processes come again: an end belongs to the last beginning.
    let mut open: BTreeMap<u32, usize> = BTreeMap::new();
    for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
        match line {
            Line::Began { argv, pid, began } => {
                open.insert(pid, calls.len());
                calls.push(Call { argv, pid, began, ended: None, code: None });
            }
            Line::Ended { pid, ended, code } => {
                if let Some(call) = open.remove(&pid).map(|index| &mut calls[index]) {
                    (call.ended, call.code) = (Some(ended), Some(code));
                }
            }
        }
    }
    calls
}

//! From documents to text for people: pure functions, so that what is printed can be tested.

mod agents;
mod diagnostic;
mod diff;
mod explain;
mod history;
pub(crate) mod images;
mod messages;
mod plan;
mod snapshots;
mod spec;
mod status;
mod tasks;
mod why;

pub(crate) use agents::{agent, agent_table, stopped};
pub(crate) use diagnostic::diagnostic;
pub(crate) use diff::diff;
pub(crate) use explain::explain;
pub(crate) use history::{history, revision};
pub(crate) use messages::{dead_table, message_line, message_table};
pub(crate) use plan::{Planned, covering, field, lost, origin, origin_of, plan, toll};
pub(crate) use snapshots::snapshot_table;
pub(crate) use spec::spec;
pub(crate) use status::{approval_table, audit_table, controller, drift_table, event, override_table, token_table};
pub(crate) use tasks::{artifact_table, bytes, task, task_table, terminal_table, whose};
pub(crate) use why::{Known, next, why};

use jiff::Timestamp;
use serde_json::Value;
use vm_agent_schemas::fleet::CommandLine;
use vm_agent_schemas::intent::{Change, Override, Presence};
use vm_agent_schemas::plan::{Health, Rest, Sync};
use vm_agent_schemas::units::ByteSize;

use crate::table::Cell;
use crate::ui::{BAD, BUSY, FAINT, GOOD};

/// A length of time in its two largest units.
fn coarse(seconds: i64) -> String {
    match seconds.max(0) {
        s @ ..60 => format!("{s}s"),
        s @ ..3600 => format!("{}m{}s", s / 60, s % 60),
        s @ ..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        s => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// How long it is until then.
fn left(now: Timestamp, end: Timestamp) -> String {
    if end <= now { "over".to_owned() } else { format!("in {}", coarse(end.duration_since(now).as_secs())) }
}

/// A word of the API, as it stands in its documents.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn ago(now: Timestamp, then: Timestamp) -> String {
    format!("{} ago", coarse(now.duration_since(then).as_secs()))
}

fn sync_cell(sync: Sync) -> Cell {
    let style = match sync {
        Sync::Synced => GOOD,
        Sync::Drifted | Sync::Reconciling => BUSY,
        Sync::Blocked => BAD,
        Sync::Unknown => FAINT,
    };
    Cell::new(&sync, style)
}

fn health_cell(health: Health, rests: Option<Rest>) -> Cell {
    let style = match health {
        Health::Healthy => GOOD,
        Health::Starting | Health::Degraded => BUSY,
        Health::Offline | Health::Failed => BAD,
        Health::Stopped | Health::Suspended | Health::Unknown => FAINT,
    };
    Cell::new(&health_text(health, rests), style)
}

/// Whether an agent is well, and why it is down where that is because it rests.
fn health_text(health: Health, rests: Option<Rest>) -> String {
    match rests {
        Some(Rest::Idle) => format!("{health} (idle)"),
        Some(Rest::Aged) => format!("{health} (aged)"),
        None => health.to_string(),
    }
}

/// One value of a drift: sizes as the fleet file writes them, and all else as it is.
fn value(path: &str, value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Number(bytes) if matches!(path, "memory" | "disk") => {
            bytes.as_u64().map_or_else(|| bytes.to_string(), |bytes| ByteSize::from_bytes(bytes).to_string())
        }
        Value::String(text) => text.clone(),
        other => written(other),
    }
}

/// A value on one line, as the fleet file would have it.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let said = map.iter().filter(|(_, value)| !says_nothing(value));
            let entries: Vec<String> = said.map(|(key, value)| format!("{key}: {}", written(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// Whether a value is what stands there when nothing is written.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Whether a text means itself without quotes, wherever it stands.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || " -_./".contains(c);
    let a_text = matches!(serde_yaml::from_str::<Value>(text), Ok(Value::String(read)) if read == text);
    // What begins with 0 is a text to some readers and a number to others.
    a_text && text.starts_with(|c: char| c.is_alphanumeric() && c != '0' || "./".contains(c)) && text.chars().all(plain)
}

/// What an override says, in a word or two.
pub(crate) fn change(change: &Change) -> String {
    match change {
        Change::Power { wanted, .. } => format!("power: {wanted}"),
        Change::Reconcile { wanted, .. } => format!("reconcile: {wanted}"),
        Change::Presence(Presence::Present(_)) => "made by hand".to_owned(),
        Change::Presence(Presence::Absent) => "destroyed by hand".to_owned(),
    }
}

fn time_left(now: Timestamp, it: &Override) -> String {
    it.expires_at.map_or_else(|| "until cleared".to_owned(), |end| coarse(end.duration_since(now).as_secs()) + " left")
}

/// A command as a person would type it, quoted only where it must be.
fn command(argv: &[String]) -> String {
    let shell = CommandLine::Shell(String::new()).argv();
    match argv {
        // A line for the shell is shown as the line that it was.
        [program, flag, line] if [program, flag] == [&shell[0], &shell[1]] => line.clone(),
        _ => argv.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// `1 agent`, `2 agents`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
pub(crate) mod samples;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_told_in_two_units() {
        let told: Vec<String> = [-5, 59, 61, 3660, 90_000].into_iter().map(coarse).collect();
        assert_eq!(told, ["0s", "59s", "1m1s", "1h1m", "1d1h"]);
    }

    #[test]
    fn values_are_written_as_the_fleet_file_writes_them() {
        assert_eq!(value("memory", &json!(8u64 << 30)), "8G");
        assert_eq!(value("cpus", &json!(4)), "4");
        assert_eq!(value("power", &json!("running")), "running");
        assert_eq!(value("image", &Value::Null), "nothing");
    }

    #[test]
    fn values_are_written_so_that_they_can_be_copied() {
        let value = json!({"exec": "make deps", "cron": "0 3 * * *", "mode": "0644", "on": ["a", true, 3]});
        let line = written(&value);
        assert_eq!(line, r#"{exec: make deps, cron: "0 3 * * *", mode: "0644", on: [a, true, 3]}"#);
        assert_eq!(serde_yaml::from_str::<Value>(&line).unwrap(), value);
    }

    #[test]
    fn commands_are_quoted_only_where_they_must_be() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(command(&words(&["/bin/sh", "-c", "make && make test"])), "make && make test");
        assert_eq!(command(&words(&["echo", "it's", ""])), r"echo 'it'\''s' ''");
    }
}

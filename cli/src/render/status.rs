//! The controller itself, and the smaller lists.

use std::fmt::Write as _;

use jiff::Timestamp;
use vm_agent_schemas::api::{AgentDrift, ControllerStatus};
use vm_agent_schemas::credential::ApiToken;
use vm_agent_schemas::event::Event;
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::plan::{ApprovalRequest, ConditionStatus, Fuse};
use vm_agent_schemas::task::Task;

use super::{ago, change, coarse, command, count, task_state, time_left, value};
use crate::table::{Cell, Table};
use crate::ui::{BAD, FAINT, GOOD, STRONG};

/// The controller.
pub(crate) fn controller(status: &ControllerStatus, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{STRONG}{name:<10}{STRONG:#}  {value}");
    };
    let up = coarse(now.duration_since(status.started_at).as_secs());
    line("Fleet", status.fleet.to_string());
    let (pid, version, life) = (status.pid, &status.version, status.life);
    line("Controller", format!("process {pid}, version {version}, life {life}, up for {up}"));
    line("State", status.state_dir.display().to_string());
    line("File", file(status, now));
    let addresses = &status.addresses;
    line("Hub", addresses.hub.to_string());
    line("API", format!("http://{}, {}", addresses.api, addresses.socket.display()));
    line("Dashboard", format!("http://{}/", addresses.dashboard));
    if let Some(pause) = &status.paused {
        let until = pause
            .expires_at
            .map_or_else(|| "until resumed".to_owned(), |end| coarse(end.duration_since(now).as_secs()) + " left");
        let why = pause.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        line("Paused", format!("by {}, {}, {until}{why}", pause.author, ago(now, pause.created_at)));
    }
    line(
        "Fuse",
        match status.fuse {
            Fuse::Closed { .. } => "closed".to_owned(),
            Fuse::Blown { since, failed, of } => {
                format!("{BAD}blown{BAD:#} {}: {failed} of {of} agents had failed", ago(now, since))
            }
        },
    );
    line("Sync", counts(&status.sync));
    line("Health", counts(&status.health));
    for driver in &status.drivers {
        let (name, instances) = (driver.name, count(driver.instances as usize, "instance"));
        line(
            "Driver",
            match (&driver.problem, driver.answering) {
                (_, true) => format!("{name} {GOOD}answers{GOOD:#}, {instances}"),
                (problem, false) => {
                    let last = driver.last_answer.map_or_else(|| "never".to_owned(), |at| ago(now, at));
                    let problem = problem.as_deref().unwrap_or("it says nothing");
                    format!("{name} {BAD}does not answer{BAD:#} (last answer: {last}): {problem}")
                }
            },
        );
    }
    for condition in &status.conditions {
        let holds = match condition.status {
            ConditionStatus::True => "yes",
            ConditionStatus::False => "no",
            ConditionStatus::Unknown => "unknown",
        };
        line("Condition", format!("{}: {holds} ({}): {}", condition.kind, condition.reason, condition.message));
    }
    text
}

fn file(status: &ControllerStatus, now: Timestamp) -> String {
    let Some(revision) = status.file.revision else { return "none accepted yet".to_owned() };
    let path = status.file.roots.first().map_or_else(|| "stdin".to_owned(), |path| path.display().to_string());
    let when = status.file.applied_at.map_or_else(String::new, |at| format!(", accepted {}", ago(now, at)));
    format!("{path}, revision {revision}{when}")
}

fn counts(counts: &std::collections::BTreeMap<String, u32>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, number)| format!("{number} {name}")).collect();
    if parts.is_empty() { "no agents".to_owned() } else { parts.join(", ") }
}

/// What differs, one line for each difference.
pub(crate) fn drift_table(agents: &[AgentDrift]) -> String {
    let mut table = Table::new(&["AGENT", "PATH", "OBSERVED", "WANTED", "COST", "WAITS FOR"]);
    for agent in agents {
        let waits = agent.waits_for.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        for drift in &agent.drift {
            table.row(vec![
                Cell::new(&agent.agent, STRONG),
                (&drift.path).into(),
                value(&drift.path, &drift.observed).into(),
                value(&drift.path, &drift.wanted).into(),
                drift.cost.into(),
                (&waits).into(),
            ]);
        }
    }
    table.render()
}

/// Overrides.
pub(crate) fn override_table(overrides: &[Override], now: Timestamp) -> String {
    let mut table = Table::new(&["AGENT", "CHANGE", "BY", "SINCE", "ENDS", "REASON"]);
    for it in overrides {
        table.row(vec![
            Cell::new(&it.agent, STRONG),
            change(&it.change).into(),
            (&it.author).into(),
            ago(now, it.created_at).into(),
            time_left(now, it).into(),
            it.reason.as_deref().unwrap_or_default().into(),
        ]);
    }
    table.render()
}

/// What waits for a person's yes.
pub(crate) fn approval_table(waiting: &[ApprovalRequest]) -> String {
    let mut table = Table::new(&["ID", "WHAT"]);
    for it in waiting {
        table.row(vec![Cell::new(&it.id.short(), STRONG), (&it.what).into()]);
    }
    table.render()
}

/// Tasks.
pub(crate) fn task_table(tasks: &[Task], now: Timestamp) -> String {
    let mut table = Table::new(&["ID", "STATE", "ATTEMPT", "ACCEPTED", "COMMAND"]);
    for task in tasks {
        table.row(vec![
            task.id.into(),
            task_state(task).into(),
            task.attempt.into(),
            ago(now, task.created_at).into(),
            command(&task.run.argv).into(),
        ]);
    }
    table.render()
}

/// Tokens.
pub(crate) fn token_table(tokens: &[ApiToken], now: Timestamp) -> String {
    let mut table = Table::new(&["ID", "NAME", "MADE"]);
    for token in tokens {
        table.row(vec![token.id.into(), (&token.name).into(), ago(now, token.created_at).into()]);
    }
    table.render()
}

/// One event, on one line.
pub(crate) fn event(event: &Event) -> String {
    let about = event.agent.as_ref().map_or_else(String::new, |agent| format!(" {STRONG}{agent}{STRONG:#}"));
    let at = event.at.strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("{FAINT}{at}{FAINT:#} {}{about}: {}", event.kind, event.message.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let line = anstream::adapter::strip_str(&event(&samples::event(7, "web"))).to_string();
        assert_eq!(line, "2026-01-02T03:04:00Z StepSucceeded web: created");
    }

    #[test]
    fn drift_is_told_difference_by_difference() {
        let agent = samples::overridden("db");
        let drift = [AgentDrift { agent: agent.name, drift: agent.drift, waits_for: agent.waits_for }];
        let table = anstream::adapter::strip_str(&drift_table(&drift)).to_string();
        insta::assert_snapshot!(table, @"
        AGENT  PATH    OBSERVED  WANTED  COST          WAITS FOR
        db     memory  1G        8G      needs a stop  -
        ");
    }
}

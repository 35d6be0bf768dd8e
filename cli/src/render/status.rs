//! The controller itself, and the smaller lists.

use std::fmt::Write as _;

use jiff::Timestamp;
use vm_agent_schemas::api::{AgentDrift, Approval, AuditEntry, ControllerStatus, FileState, FileStatus};
use vm_agent_schemas::credential::ApiToken;
use vm_agent_schemas::event::Event;
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::plan::{ConditionStatus, Fuse};

use super::plan::transition_values;
use super::{ago, change, coarse, count, diagnostic, left, time_left, word};
use crate::table::{Cell, Table, printable, tame};
use crate::ui::{BAD, BUSY, FAINT, GOOD, STRONG};

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
    for text in file(&status.file, now) {
        line("File", text);
    }
    let addresses = &status.addresses;
    line("Hub", addresses.hub.to_string());
    line("API", format!("http://{}, {}", addresses.api, addresses.socket.display()));
    line("Dashboard", format!("http://{}/", addresses.dashboard));
    if let Some(pause) = &status.paused {
        let until = pause
            .expires_at
            .map_or_else(|| "until resumed".to_owned(), |end| coarse(end.duration_since(now).as_secs()) + " left");
        let why = pause.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let said = format!("by {}, {}, {until}{why}", pause.author, ago(now, pause.created_at));
        line("Paused", printable(&said));
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
                    let problem = printable(problem.as_deref().unwrap_or("it says nothing"));
                    format!("{name} {BAD}does not answer{BAD:#} (last answer: {last}): {problem}")
                }
            },
        );
    }
    // What is known of the file stands above already.
    for condition in status.conditions.iter().filter(|it| it.message != status.file.message) {
        let holds = match condition.status {
            ConditionStatus::True => "yes",
            ConditionStatus::False => "no",
            ConditionStatus::Unknown => "unknown",
        };
        let told = format!("{}: {holds} ({}): {}", condition.kind, condition.reason, condition.message);
        line("Condition", printable(&told));
    }
    text
}

/// The file in force, how what is on the disk stands to it, and what is wrong with that.
fn file(file: &FileStatus, now: Timestamp) -> Vec<String> {
    let Some(revision) = file.revision else { return vec!["none accepted yet".to_owned()] };
    let paths: Vec<String> = file.roots.iter().map(|path| path.display().to_string()).collect();
    let from = if paths.is_empty() { "stdin".to_owned() } else { paths.join(", ") };
    let when = file.applied_at.map_or_else(String::new, |at| format!(", accepted {}", ago(now, at)));
    let by = file.author.as_ref().map_or_else(String::new, |author| format!(" by {author}"));
    let style = match file.state {
        FileState::InForce | FileState::Unwatched => GOOD,
        FileState::Held | FileState::Guarded | FileState::RolledBack => BUSY,
        FileState::Invalid | FileState::Missing => BAD,
    };
    let mut lines = vec![printable(&format!("{from}, revision {revision}{when}{by}"))];
    // The message repeats the first of what stands below.
    let message = match file.diagnostics.len() {
        0 => printable(&file.message),
        wrong => format!("{}; the accepted file stays in force", count(wrong, "error")),
    };
    lines.push(format!("{style}{}{style:#}: {message}", state(file.state)));
    // The text of a diagnostic has a mark under a word: it stays in one piece, and in its columns.
    lines.extend(file.diagnostics.iter().map(|it| tame(&diagnostic(it)).replace('\n', "\n            ")));
    lines
}

const fn state(state: FileState) -> &'static str {
    match state {
        FileState::InForce => "in force",
        FileState::Unwatched => "not watched",
        FileState::Invalid => "invalid",
        FileState::Missing => "missing",
        FileState::Held => "held",
        FileState::Guarded => "guarded",
        FileState::RolledBack => "rolled back",
    }
}

fn counts(counts: &std::collections::BTreeMap<String, u32>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, number)| format!("{number} {name}")).collect();
    if parts.is_empty() { "no agents".to_owned() } else { parts.join(", ") }
}

/// What differs, one line for each difference.
pub(crate) fn drift_table(agents: &[AgentDrift]) -> String {
    let mut table = Table::new(&["AGENT", "PATH", "OBSERVED", "WANTED", "COST", "POLICY", "WAITS FOR"]);
    for agent in agents {
        let waits = agent.waits_for.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        for drift in &agent.drift {
            let (observed, wanted) = transition_values(drift);
            table.row(vec![
                Cell::new(&agent.agent, STRONG),
                (&drift.path).into(),
                observed.into(),
                wanted.into(),
                drift.cost.into(),
                drift.policy.into(),
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
pub(crate) fn approval_table(waiting: &[Approval]) -> String {
    let mut table = Table::new(&["ID", "ABOUT", "WHAT"]);
    for it in waiting {
        let about = it.agent.as_ref().map_or("the file", |agent| agent.as_str());
        table.row(vec![Cell::new(&it.id.short(), STRONG), about.into(), (&it.what).into()]);
    }
    table.render()
}

/// Tokens.
pub(crate) fn token_table(tokens: &[ApiToken], now: Timestamp) -> String {
    let mut table = Table::new(&["ID", "NAME", "ROLE", "MADE", "ENDS"]);
    for token in tokens {
        let ends = token.expires_at.map_or_else(|| "when revoked".to_owned(), |end| left(now, end));
        let role = word(&token.role);
        table.row(vec![
            token.id.into(),
            (&token.name).into(),
            role.into(),
            ago(now, token.created_at).into(),
            ends.into(),
        ]);
    }
    table.render()
}

pub(crate) fn audit_table(entries: &[AuditEntry]) -> String {
    let mut table = Table::new(&["SEQ", "AT", "WHO", "STATUS", "WHAT"]);
    for entry in entries {
        table.row(vec![
            entry.seq.into(),
            entry.at.strftime("%Y-%m-%dT%H:%M:%SZ").into(),
            (&entry.actor).into(),
            entry.status.into(),
            format!("{} {}", entry.method, entry.path).into(),
        ]);
    }
    table.render()
}

/// One event, on one line.
pub(crate) fn event(event: &Event) -> String {
    let about = event.agent.as_ref().map_or_else(String::new, |agent| format!(" {STRONG}{agent}{STRONG:#}"));
    let at = event.at.strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("{FAINT}{at}{FAINT:#} {}{about}: {}", event.kind, printable(&event.message))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use vm_agent_schemas::ids::Digest;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn an_event_is_one_line() {
        let line = anstream::adapter::strip_str(&event(&samples::event(7, "web"))).to_string();
        assert_eq!(line, "2026-01-02T03:04:00Z StepSucceeded web: created");
    }

    #[test]
    fn a_controller_tells_of_its_file_and_what_is_wrong_with_it() {
        let wrong = vm_agent_schemas::fleet::parse("/fleet.yaml", "agents:\n  web: {memroy: 8G}\n").unwrap_err();
        let status = samples::controller(FileState::Invalid, wrong);
        insta::assert_snapshot!(plain(&controller(&status, samples::now())));
        let text = plain(&controller(&samples::controller(FileState::Held, Vec::new()), samples::now()));
        assert!(text.contains("File        held: what is on the disk is told here\n"), "{text}");
    }

    #[test]
    fn what_drivers_people_and_conditions_say_is_written_out() {
        let mut status = samples::controller(FileState::Held, Vec::new());
        status.file.message = samples::HOSTILE.into();
        status.conditions = samples::hostile_agent("web").conditions;
        for driver in &mut status.drivers {
            (driver.answering, driver.problem) = (false, Some(samples::HOSTILE.into()));
        }
        samples::assert_tame(&controller(&status, samples::now()));
        samples::assert_tame(&event(&Event { message: samples::HOSTILE.into(), ..samples::event(7, "web") }));
    }

    #[test]
    fn approvals_say_what_they_are_about() {
        let what = "let agents read /srv";
        let of_file = Approval { id: Digest::of(b"reach"), agent: None, what: what.into() };
        let of_agent = Approval { agent: Some(samples::name("web")), ..of_file.clone() };
        insta::assert_snapshot!(plain(&approval_table(&[of_file, of_agent])), @"
        ID            ABOUT     WHAT
        ed4561f685f1  the file  let agents read /srv
        ed4561f685f1  web       let agents read /srv
        ");
    }

    #[test]
    fn drift_is_told_difference_by_difference() {
        let agent = samples::overridden("db");
        let drift = [AgentDrift { agent: agent.name, drift: agent.drift, waits_for: agent.waits_for }];
        let table = anstream::adapter::strip_str(&drift_table(&drift)).to_string();
        insta::assert_snapshot!(table, @"
        AGENT  PATH    OBSERVED  WANTED  COST          POLICY   WAITS FOR
        db     memory  1G        8G      needs a stop  correct  -
        ");
    }
}

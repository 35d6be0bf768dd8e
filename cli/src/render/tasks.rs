//! Tasks, what they left behind, and terminals that are kept.

use std::fmt::Write as _;

use jiff::Timestamp;
use vm_agent_schemas::task::{Artifact, Attempt, Task, TaskSource, TaskState, Work};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{TaskOutcome, TerminalReport};

use super::{ago, command, count, left, word};
use crate::table::{Cell, Table, printable, truncate};
use crate::ui::{BAD, BUSY, FAINT, GOOD, PLAIN, STRONG};

/// Widest state in a table that is not `wide`, in columns: as much as tells one from another.
const STATE_MAX: usize = 40;

/// Tasks; `of` has each say whose it is.
pub(crate) fn task_table(tasks: &[Task], of: bool, wide: bool, now: Timestamp) -> String {
    let header = ["AGENT", "ID", "NAME", "STATE", "ATTEMPT", "ACCEPTED", "WORK"];
    let first = usize::from(!of);
    let width = if wide { usize::MAX } else { STATE_MAX };
    let mut table = Table::new(&header[first..]);
    for task in tasks {
        let cells = [
            Cell::new(&whose(task), STRONG),
            task.id.into(),
            file_name(task).unwrap_or_default().into(),
            Cell::new(&truncate(&printable(&task_state(task)), width), style(task)),
            task.attempt.into(),
            ago(now, task.created_at).into(),
            work(&task.job.work).into(),
        ];
        table.row(cells[first..].to_vec());
    }
    table.render()
}

/// Everything about one task.
pub(crate) fn task(task: &Task, now: Timestamp) -> String {
    let mut page = String::new();
    let mut styled = |name: &str, value: &str, style: anstyle::Style| {
        let value = printable(value);
        let _ = writeln!(page, "{STRONG}{name:<10}{STRONG:#}  {style}{value}{style:#}");
    };
    let mut line = |name: &str, value: &str| match name {
        "State" => styled(name, value, style(task)),
        "Dead" => styled(name, value, BAD),
        _ => styled(name, value, PLAIN),
    };
    line("Task", &task.id.to_string());
    line("Agent", &whose(task));
    line("Work", &work(&task.job.work));
    line("State", &task_state(task));
    line("Attempt", &task.attempt.to_string());
    line("Source", &source(&task.source));
    line("Accepted", &ago(now, task.created_at));
    if let Some(at) = task.started_at {
        line("Begun", &ago(now, at));
    }
    if let Some(at) = task.ended_at {
        line("Ended", &ago(now, at));
    }
    line("Terms", &terms(task, now));
    if let Some(group) = task.group {
        line("Group", &group.to_string());
    }
    if let Some(of) = task.replay_of {
        line("Replay of", &of.to_string());
    }
    if let Some(who) = task.canceled_by.as_ref().filter(|_| task.outcome().is_none()) {
        line("Cancelled", &format!("by {who}; its end has not come yet"));
    }
    if let Some(reason) = &task.dead {
        line("Dead", reason);
    }
    for attempt in &task.former {
        line("Before", &former(attempt, now));
    }
    left_behind(task, &mut line);
    page
}

fn left_behind(task: &Task, line: &mut impl FnMut(&str, &str)) {
    let Some(report) = &task.report else { return };
    line("Output", &format!("{} on stdout, {} on stderr", bytes(report.stdout), bytes(report.stderr)));
    if let Some(usage) = &report.usage {
        let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
        let (wall, cpu, memory) = (seconds(usage.wall_ms), seconds(usage.cpu_ms), usage.memory_max.rounded());
        line("Used", &format!("{wall}, {cpu} of a processor, at most {memory} of memory"));
    }
    for artifact in &report.artifacts {
        line("Artifact", &format!("{} ({})", artifact.path, artifact.size.rounded()));
    }
}

/// An amount of data, for people.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => count(usize::try_from(bytes).unwrap_or_default(), "byte"),
        bytes => ByteSize::from_bytes(bytes).rounded(),
    }
}

/// The files that a task left behind.
pub(crate) fn artifact_table(artifacts: &[Artifact]) -> String {
    let mut table = Table::new(&["PATH", "SIZE", "SHA-256"]);
    for artifact in artifacts {
        table.row(vec![(&artifact.path).into(), artifact.size.rounded().into(), (&artifact.sha256).into()]);
    }
    table.render()
}

/// Terminals that are kept.
pub(crate) fn terminal_table(terminals: &[TerminalReport], now: Timestamp) -> String {
    let mut table = Table::new(&["ID", "STATE", "OPENED", "COMMAND"]);
    for terminal in terminals {
        let opened = Timestamp::from_millisecond(terminal.opened_at).map_or_else(|_| String::new(), |at| ago(now, at));
        let state = match (terminal.ended, terminal.attached) {
            (true, _) => Cell::new(&"ended", FAINT),
            (false, true) => Cell::new(&"attached", GOOD),
            (false, false) => Cell::new(&"detached", BUSY),
        };
        let argv = if terminal.argv.is_empty() { "the user's shell".to_owned() } else { command(&terminal.argv) };
        table.row(vec![Cell::new(&terminal.terminal, STRONG), state, opened.into(), argv.into()]);
    }
    table.render()
}

/// The agent that does a task, or which may.
pub(crate) fn whose(task: &Task) -> String {
    match (&task.agent, &task.pool) {
        (Some(agent), _) => agent.to_string(),
        (None, Some(pool)) => format!("any of {pool}"),
        (None, None) => String::new(),
    }
}

/// What a task of the fleet file is called there.
pub(super) fn file_name(task: &Task) -> Option<&str> {
    match &task.source {
        TaskSource::File { name, .. } => Some(name.as_str()),
        TaskSource::Request { .. } => None,
    }
}

pub(super) fn task_state(task: &Task) -> String {
    let canceled = if task.canceled_by.is_some() { ", to be cancelled" } else { "" };
    match &task.state {
        TaskState::Queued { not_before: Some(at) } => format!("queued until {}{canceled}", at.strftime("%H:%M:%SZ")),
        TaskState::Queued { not_before: None } => format!("queued{canceled}"),
        TaskState::Sent { .. } => format!("sent{canceled}"),
        TaskState::Running { .. } => format!("running{canceled}"),
        TaskState::Ended { outcome } => outcome.to_string(),
    }
}

fn style(task: &Task) -> anstyle::Style {
    match task.outcome() {
        None => BUSY,
        Some(outcome) if outcome.is_success() => GOOD,
        Some(TaskOutcome::Canceled) => FAINT,
        Some(_) => BAD,
    }
}

/// What is done, as a person would write it down.
pub(super) fn work(work: &Work) -> String {
    match work {
        Work::Exec { argv } => command(argv),
        other => other.to_string(),
    }
}

fn source(source: &TaskSource) -> String {
    match source {
        TaskSource::File { name, .. } => format!("task `{name}` of the fleet file"),
        TaskSource::Request { author, key: None } => author.clone(),
        TaskSource::Request { author, key: Some(key) } => format!("{author}, as `{key}`"),
    }
}

fn terms(task: &Task, now: Timestamp) -> String {
    let terms = &task.terms;
    let mut text = format!("at most {}", terms.timeout);
    if let Some(deadline) = terms.deadline {
        let _ = write!(text, ", to be over {}", left(now, deadline));
    }
    if let Some(retry) = &terms.retry {
        let on: Vec<String> = retry.on.iter().map(word).collect();
        let _ = write!(text, ", up to {} attempts after {}", retry.attempts, on.join(" or "));
    }
    if task.is_idempotent() {
        text.push_str(", may be repeated");
    }
    if let Some(key) = &terms.key {
        let _ = write!(text, ", in order with others of `{key}`");
    }
    text
}

fn former(attempt: &Attempt, now: Timestamp) -> String {
    let on = attempt.agent.as_ref().map_or_else(String::new, |agent| format!(" on {agent}"));
    format!("attempt {}{on} {}, {}", attempt.attempt, attempt.outcome, ago(now, attempt.ended_at))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use vm_agent_schemas::ids::{Digest, Incarnation, TerminalId};
    use vm_agent_schemas::task::{Job, Report, Retry, Terms, Usage};

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn artifact() -> Artifact {
        Artifact { path: "/work/out/app".into(), size: ByteSize::from_bytes(1536), sha256: Digest::of(b"app") }
    }

    #[test]
    fn tasks_say_whose_they_are_where_they_are_of_several() {
        let pooled = Task {
            agent: None,
            pool: Some("team=build".parse().unwrap()),
            job: Job::new(Work::Build { argv: Vec::new() }),
            state: TaskState::QUEUED,
            ..samples::task("web")
        };
        let tasks = [samples::file_task("web", "check"), pooled];
        insta::assert_snapshot!(plain(&task_table(&tasks, true, false, samples::now())), @r"
        AGENT              ID                                    NAME   STATE                   ATTEMPT  ACCEPTED  WORK
        web                0190c5a8-0000-7000-8000-000000000000  check  ended with exit code 2  1        1m0s ago  make test
        any of team=build  0190c5a8-0000-7000-8000-000000000000  -      queued                  1        1m0s ago  build
        ");
        assert!(!plain(&task_table(&tasks, false, false, samples::now())).contains("web"));
    }

    #[test]
    fn a_long_reason_is_cut_where_there_is_no_room_for_it() {
        let reason = "there is no room left ".repeat(10);
        let outcome = TaskOutcome::Failed { reason: reason.clone() };
        let task = Task { state: TaskState::Ended { outcome }, ..samples::task("web") };
        let shown = |wide| plain(&task_table(std::slice::from_ref(&task), true, wide, samples::now()));
        assert!(
            !shown(false).contains("failed: there is no room left there is no room")
                && shown(true).contains(reason.trim())
        );
        assert!(shown(false).contains("failed: there is no room"), "{}", shown(false));
    }

    #[test]
    fn one_task_is_told_with_all_that_is_known() {
        let before = samples::task("db");
        let former = Attempt {
            attempt: 1,
            agent: before.agent.clone(),
            started_at: before.started_at,
            ended_at: before.ended_at.unwrap(),
            outcome: TaskOutcome::Interrupted,
        };
        let usage = Usage { wall_ms: 58_000, cpu_ms: 93_250, memory_max: ByteSize::from_mib(300) };
        let report = Report { stdout: 2048, stderr: 8, usage: Some(usage), artifacts: vec![artifact()] };
        let ended = Task {
            attempt: 2,
            former: vec![former],
            report: Some(report),
            dead: Some("it failed in each of 3 attempts".into()),
            terms: Terms { retry: Some(Retry::default()), key: Some("deploys".into()), ..Terms::default() },
            ..samples::task("web")
        };
        insta::assert_snapshot!(plain(&task(&ended, samples::now())));
        let running = Task {
            state: TaskState::Running { incarnation: Incarnation(1) },
            canceled_by: Some("ana".into()),
            ended_at: None,
            ..samples::task("web")
        };
        insta::assert_snapshot!(plain(&task(&running, samples::now())));
    }

    #[test]
    fn what_a_task_says_of_itself_is_written_out() {
        let artifact = Artifact { path: samples::HOSTILE.into(), ..artifact() };
        let report = Report { stdout: 0, stderr: 0, usage: None, artifacts: vec![artifact.clone()] };
        let task = Task { report: Some(report), dead: Some(samples::HOSTILE.into()), ..samples::hostile_task("web") };
        samples::assert_tame(&super::task(&task, samples::now()));
        samples::assert_tame(&task_table(&[task], true, false, samples::now()));
        samples::assert_tame(&artifact_table(&[artifact]));
    }

    #[test]
    fn artifacts_are_listed_with_what_they_are_checked_against() {
        insta::assert_snapshot!(plain(&artifact_table(&[artifact()])), @"
        PATH           SIZE  SHA-256
        /work/out/app  1.5K  a172cedcae47474b615c54d510a5d84a8dea3032e958587430b413538be3f333
        ");
    }

    #[test]
    fn terminals_say_whether_somebody_is_there_and_whether_they_have_ended() {
        let terminal = TerminalReport {
            terminal: TerminalId::from_uuid("0190c5a8-0000-7000-8000-000000000002".parse().unwrap()),
            argv: Vec::new(),
            opened_at: samples::now().as_millisecond() - 60_000,
            attached: false,
            ended: false,
        };
        let attached = TerminalReport { argv: vec!["top".into()], attached: true, ..terminal.clone() };
        let ended = TerminalReport { ended: true, ..terminal.clone() };
        insta::assert_snapshot!(plain(&terminal_table(&[terminal, attached, ended], samples::now())), @"
        ID                                    STATE     OPENED    COMMAND
        0190c5a8-0000-7000-8000-000000000002  detached  1m0s ago  the user's shell
        0190c5a8-0000-7000-8000-000000000002  attached  1m0s ago  top
        0190c5a8-0000-7000-8000-000000000002  ended     1m0s ago  the user's shell
        ");
    }
}

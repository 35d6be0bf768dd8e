//! Agents: all of them in a table, or one with everything about it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use jiff::Timestamp;
use vm_agent_schemas::api::AgentView;
use vm_agent_schemas::event::Event;
use vm_agent_schemas::fleet::{DriftPolicy, Field, PowerState};
use vm_agent_schemas::intent::OverridePath;
use vm_agent_schemas::plan::ConditionStatus;
use vm_agent_schemas::task::Task;

use super::plan::{policy, said, transition};
use super::tasks::{task_state, work};
use super::{ago, change, count, health_cell, health_text, says_nothing, sync_cell, time_left, value};
use crate::table::{Cell, Table, printable};
use crate::ui::{BUSY, FAINT, PLAIN, STRONG};

const COLUMNS: [&str; 7] = ["NAME", "DRIVER", "POWER", "SYNC", "HEALTH", "LAST SEEN", "NOTES"];
const WIDE_COLUMNS: [&str; 15] = [
    "NAME",
    "DRIVER",
    "POWER",
    "SYNC",
    "HEALTH",
    "LAST SEEN",
    "INCARNATION",
    "EPOCH",
    "RUNTIME",
    "CPUS",
    "MEMORY",
    "DISK",
    "IMAGE",
    "LABELS",
    "NOTES",
];

/// A table of agents.
pub(crate) fn agent_table(agents: &[AgentView], wide: bool, now: Timestamp) -> String {
    let mut table = Table::new(if wide { &WIDE_COLUMNS } else { &COLUMNS });
    for agent in agents {
        let mut cells = vec![
            Cell::new(&agent.name, STRONG),
            text(agent.driver).into(),
            text(agent.power).into(),
            sync_cell(agent.sync),
            health_cell(agent.health, agent.rests),
            text(agent.session.as_ref().map(|session| ago(now, session.last_seen))).into(),
        ];
        if wide {
            let spec = agent.wanted.as_ref().map(|wanted| &wanted.spec);
            cells.extend([
                Cell::from(text(agent.incarnation)),
                text(agent.session.as_ref().map(|session| session.epoch)).into(),
                text(agent.session.as_ref().map(|session| &session.runtime_version)).into(),
                text(spec.map(|spec| spec.cpus)).into(),
                text(spec.map(|spec| spec.memory)).into(),
                text(spec.map(|spec| spec.disk)).into(),
                text(spec.map(|spec| &spec.image)).into(),
                text(spec.map(|spec| labels(&spec.labels))).into(),
            ]);
        }
        let style = if agent.overrides.is_empty() { PLAIN } else { BUSY };
        cells.push(Cell::new(&notes(agent, now), style));
        table.row(cells);
    }
    table.render()
}

fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// Labels as a selector has them.
fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// What stands out about an agent: overrides first, for they explain much of the rest.
fn notes(agent: &AgentView, now: Timestamp) -> String {
    let overrides = agent.overrides.iter().map(|it| {
        let reason = it.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        format!("overridden ({}, by {}, {}){reason}", change(&it.change), it.author, time_left(now, it))
    });
    let paused = agent.paused.then(|| "paused".to_owned());
    let waits = agent.waits_for.first().map(|it| format!("waits for {it}"));
    // A reason to wait says more than the number of things that wait.
    let warned = agent.drift.iter().all(|it| it.policy == DriftPolicy::Warn);
    let drift = (waits.is_none() && !agent.drift.is_empty()).then(|| {
        let differences = count(agent.drift.len(), "difference");
        if warned { format!("{differences} left as it is") } else { differences }
    });
    paused.into_iter().chain(overrides).chain(waits).chain(drift).collect::<Vec<_>>().join("; ")
}

/// Everything about one agent.
pub(crate) fn agent(agent: &AgentView, tasks: &[Task], events: &[Event], now: Timestamp) -> String {
    let mut page = Page::default();
    page.line("Name", &agent.name);
    page.line("Driver", &text(agent.driver));
    page.line("Power", &agent.power.map_or_else(|| "should not exist".to_owned(), |power| power.to_string()));
    page.line("Sync", &agent.sync);
    page.line("Health", &health_text(agent.health, agent.rests));
    let instance = agent.instance.map_or_else(|| "does not exist".to_owned(), |state| format!("{state:?}"));
    let life = agent.incarnation.map_or_else(String::new, |it| format!(", incarnation {it}"));
    page.line("Instance", &format!("{instance}{life}"));
    page.line("File seen", &text(agent.observed_generation));
    session(&mut page, agent, now);
    page.section(
        "Differences",
        agent.drift.iter().map(|it| {
            let left = if it.policy == DriftPolicy::Warn { policy(it) } else { "" };
            format!("{} ({}){left}", transition(it, ": "), it.cost)
        }),
    );
    page.section("Waits for", agent.waits_for.iter().map(ToString::to_string));
    page.section(
        "Overrides",
        agent.overrides.iter().map(|it| {
            let reason = it.reason.as_deref().unwrap_or("no reason given");
            format!("{} by {}, {}: {reason}", change(&it.change), it.author, time_left(now, it))
        }),
    );
    page.section(
        "Conditions",
        agent.conditions.iter().map(|it| {
            let status = match it.status {
                ConditionStatus::True => "yes",
                ConditionStatus::False => "no",
                ConditionStatus::Unknown => "unknown",
            };
            format!(
                "{}: {status}, since {} ({}): {}",
                it.kind,
                ago(now, it.last_transition_time),
                it.reason,
                it.message
            )
        }),
    );
    wanted(&mut page, agent);
    page.section("Tasks", tasks.iter().map(|it| format!("{} {}: {}", it.id, work(&it.job.work), task_state(it))));
    page.section("Last events", events.iter().map(|it| format!("{} {}: {}", ago(now, it.at), it.kind, it.message)));
    page.text
}

fn session(page: &mut Page, agent: &AgentView, now: Timestamp) {
    let Some(session) = &agent.session else {
        page.line("Runtime", &"not connected");
        return;
    };
    let seen = ago(now, session.last_seen);
    let (epoch, version) = (session.epoch, &session.runtime_version);
    page.line("Runtime", &format!("version {version}, epoch {epoch}, last seen {seen}"));
    if let Some(health) = &session.health {
        let used = |used: f64, total: f64| if total > 0.0 { 100.0 * used / total } else { 0.0 };
        #[expect(clippy::cast_precision_loss, reason = "a percentage for people needs no more")]
        let of = |part: u64, whole: u64| used(part as f64, whole as f64);
        let memory = of(health.memory_used.bytes(), health.memory_total.bytes());
        let disk = of(health.disk_used.bytes(), health.disk_total.bytes());
        let (load, cpus) = (health.load, health.cpus);
        page.line("Load", &format!("{load:.2} on {cpus} processors, memory {memory:.0} %, disk {disk:.0} %"));
    }
}

fn wanted(page: &mut Page, agent: &AgentView) {
    let Some(wanted) = &agent.wanted else { return };
    let spec = serde_json::to_value(&wanted.spec).expect("a spec can be written as JSON");
    page.styled(
        "Wanted",
        Field::ALL.iter().filter_map(|field| {
            let origin = wanted.origins.get(field)?;
            let found = spec.get(field.key()).filter(|found| !says_nothing(found))?;
            let found = printable(&value(field.key(), found));
            Some(format!("{field}: {found} {FAINT}({origin}){FAINT:#}"))
        }),
    );
}

/// Names with values, then headings with lines under them.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, name: &str, value: &dyn fmt::Display) {
        let value = printable(&value.to_string());
        let value = if value.is_empty() { "-" } else { &value };
        let _ = writeln!(self.text, "{STRONG}{name:<10}{STRONG:#}  {value}");
    }

    fn section(&mut self, name: &str, lines: impl Iterator<Item = String>) {
        self.styled(name, lines.map(|line| printable(&line)));
    }

    /// Lines that have styles; what comes from elsewhere is written out in them.
    fn styled(&mut self, name: &str, lines: impl Iterator<Item = String>) {
        for (index, line) in lines.enumerate() {
            if index == 0 {
                let _ = writeln!(self.text, "{STRONG}{name}{STRONG:#}");
            }
            let _ = writeln!(self.text, "  {line}");
        }
    }
}

/// That an agent is wanted stopped, and who says so.
pub(crate) fn stopped(agent: &AgentView, now: Timestamp) -> Option<String> {
    if agent.power != Some(PowerState::Stopped) {
        return None;
    }
    let power = agent.overrides.iter().find(|it| it.change.path() == OverridePath::Power);
    Some(power.map_or_else(
        || "is stopped, as the fleet file says".to_owned(),
        |it| format!("is stopped ({})", said(it, now)),
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_stopped_agent_says_who_stopped_it() {
        let told = |agent: &AgentView| stopped(agent, samples::now());
        assert_eq!(told(&samples::healthy("db")), None);
        let by_ana = "is stopped (ana, 55m0s left, \"debug a flake\")";
        assert_eq!(told(&samples::overridden("db")).as_deref(), Some(by_ana));
        let by_file = AgentView { overrides: Vec::new(), ..samples::overridden("db") };
        assert_eq!(told(&by_file).as_deref(), Some("is stopped, as the fleet file says"));
    }

    use super::super::samples;
    use super::*;
    use vm_agent_schemas::plan::{Drift, Health, Rest};

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn the_table_tells_overrides_and_what_is_waited_for() {
        let warned = vec![Drift { policy: DriftPolicy::Warn, ..samples::memory_drift() }];
        let idle =
            AgentView { rests: Some(Rest::Idle), health: Health::Suspended, session: None, ..samples::healthy("rest") };
        let agents = [
            AgentView { drift: warned, ..samples::healthy("web") },
            samples::overridden("db"),
            samples::blocked("old"),
            idle,
        ];
        insta::assert_snapshot!(plain(&agent_table(&agents, false, samples::now())), @"
        NAME  DRIVER  POWER    SYNC     HEALTH            LAST SEEN  NOTES
        web   local   running  Synced   Healthy           4s ago     1 difference left as it is
        db    local   stopped  Drifted  Stopped           -          overridden (power: stopped, by ana, 55m0s left): debug a flake; 1 difference
        old   local   -        Blocked  Healthy           4s ago     waits for an approval (c1d7b17c9b7a)
        rest  local   running  Synced   Suspended (idle)  -          -
        ");
    }

    #[test]
    fn the_wide_table_adds_lives_versions_and_sizes() {
        insta::assert_snapshot!(plain(&agent_table(&[samples::healthy("web")], true, samples::now())), @"
        NAME  DRIVER  POWER    SYNC    HEALTH   LAST SEEN  INCARNATION  EPOCH  RUNTIME  CPUS  MEMORY  DISK  IMAGE    LABELS  NOTES
        web   local   running  Synced  Healthy  4s ago     1            3      0.1.0    1     8G      5G    default  -       -
        ");
    }

    #[test]
    fn nothing_from_inside_reaches_the_terminal_as_it_is() {
        let mut hostile = samples::hostile_agent("web");
        let task = samples::hostile_task("web");
        let event = Event { message: samples::HOSTILE.into(), ..samples::event(7, "web") };
        samples::assert_tame(&agent(&hostile, &[task], &[event], samples::now()));
        hostile.waits_for = vec![vm_agent_schemas::plan::WaitsFor::Problem { what: samples::HOSTILE.into() }];
        samples::assert_tame(&agent_table(&[hostile], true, samples::now()));
    }

    #[test]
    fn one_agent_is_told_with_all_that_is_known() {
        let tasks = [samples::task("web")];
        let events = [samples::event(7, "web")];
        insta::assert_snapshot!(plain(&agent(&samples::overridden("web"), &tasks, &events, samples::now())), @"
        Name        web
        Driver      local
        Power       stopped
        Sync        Drifted
        Health      Stopped
        Instance    Stopped, incarnation 1
        File seen   1
        Runtime     not connected
        Differences
          memory: 1G -> 8G (needs a stop)
        Overrides
          power: stopped by ana, 55m0s left: debug a flake
        Wanted
          driver: local (override)
          image: default (built-in)
          cpus: 1 (built-in)
          memory: 8G (override)
          disk: 5G (built-in)
          power: running (built-in)
          restart: always (built-in)
          reconcile: auto (built-in)
          protect: false (built-in)
          slots: 4 (built-in)
          sudo: false (built-in)
          warm: false (built-in)
        Tasks
          0190c5a8-0000-7000-8000-000000000000 make test: ended with exit code 2
        Last events
          5s ago StepSucceeded: created
        ");
    }
}

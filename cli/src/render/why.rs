//! One page on one agent: what is wanted and who said so, what is seen and how long ago, what differs,
//! what that waits for, and what a person could do.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use jiff::Timestamp;
use vm_agent_schemas::api::{AgentView, DriverStatus};
use vm_agent_schemas::event::Event;
use vm_agent_schemas::fleet::{DriftPolicy, Field, Origin};
use vm_agent_schemas::names::{AgentName, TaskName};
use vm_agent_schemas::plan::{Condition, ConditionStatus, Drift, DriftClass, Health, Rest, Step, Sync, WaitsFor};
use vm_agent_schemas::task::{Task, TaskState};
use vm_agent_schemas::wire::TaskOutcome;

use super::plan::{covering, origin, origin_of, policy, said, toll, transition};
use super::tasks::{file_name, work};
use super::{ago, change, coarse, value};
use crate::table::printable;
use crate::ui::{BAD, BUSY, FAINT, STRONG};

/// Most failed tasks that are shown.
const TASKS_SHOWN: usize = 3;

/// All that is known of one agent.
pub(crate) struct Known<'a> {
    pub(crate) agent: &'a AgentView,
    /// Its driver, as it answered the last time.
    pub(crate) driver: Option<&'a DriverStatus>,
    /// What would be done about it.
    pub(crate) steps: &'a [Step],
    /// Its tasks, newest first.
    pub(crate) tasks: &'a [Task],
    /// What happened to it last, oldest first.
    pub(crate) events: &'a [Event],
    pub(crate) now: Timestamp,
}

/// The page.
pub(crate) fn why(known: &Known<'_>) -> String {
    let Known { agent, now, .. } = known;
    let mut text = String::new();
    let paused = if agent.paused { ", paused" } else { "" };
    let _ = writeln!(text, "{STRONG}{}{STRONG:#} is {} and {}{paused}.", agent.name, agent.sync, agent.health);
    section(&mut text, "Wanted", wanted(known));
    let overrides = agent.overrides.iter().map(|it| format!("{} ({})", change(&it.change), said(it, *now)));
    section(&mut text, "Said beside the file", overrides.map(|line| printable(&line)).collect());
    section(&mut text, "Seen", seen(known).iter().map(|line| printable(line)).collect());
    section(&mut text, &since("Differs", "Converged", known), differences(known));
    section(&mut text, "Next steps", steps(known));
    let waits = agent.waits_for.iter().filter(|it| !known.steps.iter().any(|step| step.waits_for.contains(it)));
    section(&mut text, "Waits for", waits.map(|it| waits_for(it, *now)).collect());
    section(&mut text, "Tasks that failed", failed_tasks(known));
    let events = known.events.iter().map(|it| format!("{} {}: {}", ago(*now, it.at), it.kind, printable(&it.message)));
    section(&mut text, "Last events", events.collect());
    let _ = writeln!(text, "\n{STRONG}Next:{STRONG:#} {}", printable(&next(agent, known.steps, known.tasks, *now)));
    text
}

fn section(text: &mut String, name: &str, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{STRONG}{name}{STRONG:#}");
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
}

/// What somebody has said: defaults that are built in tell nothing of this agent, but for its power.
fn wanted(known: &Known<'_>) -> Vec<String> {
    let Some(wanted) = &known.agent.wanted else { return vec!["that it does not exist".to_owned()] };
    let spec = serde_json::to_value(&wanted.spec).expect("a spec can be written as JSON");
    let line = |field: Field| {
        let layer = wanted.origins.get(&field)?;
        let said = *layer != Origin::BuiltIn || field == Field::Power;
        let found = spec.get(field.key()).filter(|found| said && !found.is_null())?;
        let layer = origin(layer, covering(&known.agent.overrides, &known.agent.name, field.key()), known.now);
        let (found, layer) = (printable(&value(field.key(), found)), printable(&layer));
        Some(format!("{field}: {found} {FAINT}({layer}){FAINT:#}"))
    };
    Field::ALL.into_iter().filter_map(line).collect()
}

fn seen(known: &Known<'_>) -> Vec<String> {
    let Known { agent, now, .. } = known;
    let life = agent.incarnation.map_or_else(String::new, |it| format!(", incarnation {it}"));
    let machine =
        agent.instance.map_or_else(|| "no machine".to_owned(), |state| format!("its machine {state:?}{life}"));
    let driver = known.driver.map(|driver| {
        let last = driver
            .last_answer
            .map_or_else(|| "has never answered".to_owned(), |at| format!("answered {}", ago(*now, at)));
        let problem = driver.problem.as_ref().filter(|_| !driver.answering);
        let problem = problem.map_or_else(String::new, |problem| format!(", and not since: {problem}"));
        format!("driver {} {last}{problem}", driver.name)
    });
    let runtime = match &agent.session {
        Some(session) => format!(
            "its runtime, version {}, connected {}, heard {}",
            session.runtime_version,
            ago(*now, session.connected_at),
            ago(*now, session.last_seen)
        ),
        None => "its runtime is not connected".to_owned(),
    };
    let rests = agent.rests.map(|rest| format!("it rests: {rest}"));
    [Some(machine), driver, Some(runtime), rests].into_iter().flatten().collect()
}

/// A heading with the time since when a condition does not hold.
fn since(heading: &str, condition: &str, known: &Known<'_>) -> String {
    let fails = |it: &&Condition| it.kind == condition && it.status == ConditionStatus::False;
    let since = known.agent.conditions.iter().find(fails);
    since.map_or_else(
        || heading.to_owned(),
        |it| format!("{heading} for {}", coarse(known.now.duration_since(it.last_transition_time).as_secs())),
    )
}

fn differences(known: &Known<'_>) -> Vec<String> {
    let agent = known.agent;
    let line = |it: &Drift| {
        let layer = agent.wanted.as_ref();
        let layer = layer.and_then(|wanted| origin_of(it, wanted, &agent.overrides, &agent.name, known.now));
        let layer = layer.map_or_else(String::new, |layer| format!("; {}", printable(&layer)));
        let left = if it.policy == DriftPolicy::Warn { policy(it) } else { "" };
        format!("{} {FAINT}({}{layer}){left}{FAINT:#}", printable(&transition(it, ": ")), it.cost)
    };
    agent.drift.iter().map(line).collect()
}

fn steps(known: &Known<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for step in known.steps {
        lines.push(format!(
            "{} {}: {} {FAINT}({}){FAINT:#}",
            step.action.symbol(),
            printable(&step.action.to_string()),
            printable(&step.reason),
            toll(step)
        ));
        let waits = step.waits_for.iter().filter(|it| **it != WaitsFor::EarlierStep);
        lines.extend(waits.map(|it| format!("  {BUSY}!{BUSY:#} waits for {}", waits_for(it, known.now))));
        if step.waits_for.is_empty() {
            lines.push("  may begin now".to_owned());
        }
    }
    lines
}

/// What is waited for, with how long that still takes or has taken.
fn waits_for(it: &WaitsFor, now: Timestamp) -> String {
    let left = |end: Timestamp| format!(" (in {})", coarse(end.duration_since(now).as_secs()));
    let time = match it {
        WaitsFor::Backoff { until, .. } => left(*until),
        WaitsFor::Window { opens: Some(opens) } => left(*opens),
        WaitsFor::Driver { since, .. } => format!(" (for {})", coarse(now.duration_since(*since).as_secs())),
        _ => String::new(),
    };
    printable(&format!("{it}{time}"))
}

/// Tasks whose latest run did not succeed; they come newest first.
fn failed_tasks(known: &Known<'_>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let latest = known.tasks.iter().filter(|task| seen.insert(work(&task.job.work)));
    let line = |task: &Task| {
        let TaskState::Ended { outcome } = &task.state else { return None };
        if *outcome == (TaskOutcome::Exited { code: 0 }) {
            return None;
        }
        let when = task.ended_at.map_or_else(String::new, |at| format!(", {}", ago(known.now, at)));
        let name = file_name(task).map_or_else(String::new, |name| format!("{name}, "));
        let (work, outcome) = (printable(&work(&task.job.work)), printable(&outcome.to_string()));
        Some(format!("{name}{work}: {BAD}{outcome}{BAD:#}{when} {FAINT}({}){FAINT:#}", task.id))
    };
    latest.filter_map(line).take(TASKS_SHOWN).collect()
}

/// What a person could do, or that there is nothing to do.
pub(crate) fn next(agent: &AgentView, steps: &[Step], tasks: &[Task], now: Timestamp) -> String {
    let name = &agent.name;
    let waits = agent.waits_for.iter().chain(steps.iter().flat_map(|step| &step.waits_for));
    // What only a person can end comes before what ends by itself.
    let mut remedies: Vec<(bool, String)> = waits.filter_map(|it| remedy(it, name, tasks, now)).collect();
    remedies.sort_by_key(|(by_itself, _)| *by_itself);
    if let Some((_, remedy)) = remedies.into_iter().next() {
        return remedy;
    }
    let failing = agent.drift.iter().find(|it| it.class == DriftClass::Service);
    if let Some(service) = failing.filter(|_| agent.health == Health::Degraded) {
        return format!("{} does not work; its output may say why: vm-agent logs {name}", service.path);
    }
    match agent.rests {
        Some(Rest::Idle) => {
            return format!("nothing to do: it is idle, and any task wakes it, as does `vm-agent start {name}`");
        }
        Some(Rest::Aged) => return format!("its time to live is over; `vm-agent start {name}` brings it back"),
        None => {}
    }
    match (agent.sync, agent.health) {
        (Sync::Drifted | Sync::Reconciling, _) => {
            "nothing to do: the controller is at it; `vm-agent events --follow` shows how it goes".to_owned()
        }
        (Sync::Blocked | Sync::Unknown, _) => "wait, or look at the controller: vm-agent status".to_owned(),
        (Sync::Synced, Health::Healthy | Health::Stopped | Health::Suspended) => match agent.overrides.first() {
            Some(it) => format!(
                "nothing to do: it is as it was asked to be; `vm-agent override clear {name} {}` lets the file hold again",
                it.change.path().as_str()
            ),
            None => "nothing to do: it is as wanted, and well".to_owned(),
        },
        (Sync::Synced, Health::Starting) => "nothing to do: it comes up".to_owned(),
        (Sync::Synced, _) => format!("it is as wanted and not well; its log may say why: vm-agent logs {name}"),
    }
}

/// What would help with what is waited for, and whether it ends without that.
fn remedy(it: &WaitsFor, name: &AgentName, tasks: &[Task], now: Timestamp) -> Option<(bool, String)> {
    let (by_itself, text) = match it {
        WaitsFor::EarlierStep => return None,
        WaitsFor::Approval { id } => (false, format!("vm-agent approve {}", id.short())),
        WaitsFor::Paused { fleet: true } => (false, "vm-agent resume".to_owned()),
        WaitsFor::Paused { fleet: false } => (false, format!("vm-agent resume {name}")),
        WaitsFor::RestartPolicy => (false, format!("vm-agent start {name}")),
        WaitsFor::PruneNever => (false, format!("vm-agent destroy {name}")),
        WaitsFor::Protected => (false, "take `protect: true` out of the file, and run vm-agent apply".to_owned()),
        WaitsFor::NoDriver | WaitsFor::DriverMissing { .. } | WaitsFor::Unsupported { .. } => {
            (false, format!("write another driver for it (vm-agent explain agents.driver); it waits for {it}"))
        }
        WaitsFor::ForeignInstance { instance } => {
            (false, format!("rename or delete the instance `{instance}` yourself: it is not ours to touch"))
        }
        WaitsFor::Tombstone { instance } => (
            false,
            format!("free the name yourself: multipass recover {instance}, or multipass delete --purge {instance}"),
        ),
        WaitsFor::TaskFailed { task, .. } => (false, task_failed(task, tasks, name)),
        WaitsFor::Problem { what } => {
            (false, format!("mend what is wrong: {what}; its log may say more: vm-agent logs {name}"))
        }
        WaitsFor::Capacity { resource, .. } => (
            false,
            format!("stop another agent, or give the fleet more {resource}: vm-agent explain limits.{resource}"),
        ),
        WaitsFor::Drain { .. } => (true, format!("wait for what runs in it, or end it: vm-agent stop {name}")),
        WaitsFor::Window { .. } => {
            (true, format!("wait for the window; what you ask for waits for none: vm-agent stop {name}"))
        }
        WaitsFor::Snapshot { agent, .. } | WaitsFor::Clone { agent } | WaitsFor::Dependency { agent, .. } => {
            (true, format!("vm-agent why {agent}"))
        }
        WaitsFor::Backoff { until, .. } => {
            let left = coarse(until.duration_since(now).as_secs());
            (true, format!("nothing to do: it is tried again in {left}; what went wrong: vm-agent events"))
        }
        WaitsFor::Fuse | WaitsFor::Driver { .. } => {
            (true, "look at the host and the driver: vm-agent status".to_owned())
        }
        WaitsFor::Proof | WaitsFor::Runtime => (true, format!("wait for its runtime; its log: vm-agent logs {name}")),
        WaitsFor::Operation { .. }
        | WaitsFor::Lane { .. }
        | WaitsFor::Transition { .. }
        | WaitsFor::UnknownState
        | WaitsFor::TaskRunning { .. } => (true, format!("nothing to do but wait for {it}")),
    };
    Some((by_itself, text))
}

/// What would help with a task of the file that failed: the latest run of that name, where it is among these.
fn task_failed(task: &TaskName, tasks: &[Task], name: &AgentName) -> String {
    match tasks.iter().find(|it| file_name(it) == Some(task.as_str())) {
        Some(Task { id, .. }) => format!(
            "see what task `{task}` printed (vm-agent task output {id}), mend that, and have it done again \
             (vm-agent task replay {id})"
        ),
        None => {
            format!("see what task `{task}` printed (vm-agent task ls {name}, vm-agent task output ID), and mend it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn shown(known: &Known<'_>) -> String {
        anstream::adapter::strip_str(&why(known)).to_string()
    }

    fn known(agent: &AgentView) -> Known<'_> {
        Known { agent, driver: None, steps: &[], tasks: &[], events: &[], now: samples::now() }
    }

    #[test]
    fn the_page_tells_what_is_wanted_seen_done_and_to_do() {
        let (tasks, events) = ([samples::task("db")], [samples::event(7, "db")]);
        let (agent, plan, driver) = (samples::overridden("db"), samples::disruptive_plan(), samples::driver());
        let steps: Vec<Step> = plan.steps.into_iter().filter(|step| step.agent == agent.name).collect();
        let all = Known { driver: Some(&driver), steps: &steps, tasks: &tasks, events: &events, ..known(&agent) };
        insta::assert_snapshot!(shown(&all));
    }

    #[test]
    fn nothing_from_inside_reaches_the_terminal_as_it_is() {
        let (agent, tasks) = (samples::hostile_agent("db"), [samples::hostile_task("db")]);
        let events = [Event { message: samples::HOSTILE.into(), ..samples::event(7, "db") }];
        let mut driver = samples::driver();
        (driver.answering, driver.problem) = (false, Some(samples::HOSTILE.into()));
        let mut steps = samples::disruptive_plan().steps;
        for step in &mut steps {
            step.reason = samples::HOSTILE.into();
            step.waits_for = vec![WaitsFor::Problem { what: samples::HOSTILE.into() }];
        }
        let all = Known { driver: Some(&driver), steps: &steps, tasks: &tasks, events: &events, ..known(&agent) };
        samples::assert_tame(&why(&all));
    }

    #[test]
    fn an_agent_that_is_well_has_nothing_to_do() {
        insta::assert_snapshot!(shown(&known(&samples::healthy("web"))));
    }

    #[test]
    fn what_only_a_person_can_end_comes_first() {
        let waits = |waits_for| AgentView { waits_for, sync: Sync::Blocked, ..samples::healthy("web") };
        let on = WaitsFor::Dependency { agent: samples::name("db"), until: Default::default() };
        let tasks = [samples::file_task("web", "setup")];
        let told = |waits_for| next(&waits(waits_for), &[], &tasks, samples::now());
        let failed = WaitsFor::TaskFailed { task: "setup".parse().unwrap(), outcome: String::new(), next: None };
        assert!(told(vec![failed]).contains(&format!("vm-agent task replay {}", tasks[0].id)));
        assert_eq!(told(vec![on.clone()]), "vm-agent why db");
        assert_eq!(told(vec![on, WaitsFor::Paused { fleet: false }]), "vm-agent resume web");
        let until = samples::now() + jiff::SignedDuration::from_secs(20);
        let backoff = WaitsFor::Backoff { until, failures: 1, last: "no room".into() };
        assert!(told(vec![backoff]).starts_with("nothing to do: it is tried again in 20s"));
    }

    #[test]
    fn rest_and_overrides_say_how_they_end() {
        let told = |agent: &AgentView| next(agent, &[], &[], samples::now());
        let idle = AgentView { rests: Some(Rest::Idle), health: Health::Suspended, ..samples::healthy("web") };
        assert!(told(&idle).contains("vm-agent start web"));
        let settled = AgentView { sync: Sync::Synced, drift: Vec::new(), ..samples::overridden("web") };
        assert!(told(&settled).contains("vm-agent override clear web power"));
    }
}

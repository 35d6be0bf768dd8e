//! Where the tasks and services of the file stand on an agent's present machine.

use std::fmt;

use jiff::Timestamp;
use vm_agent_schemas::fleet::{RestartPolicy, ServiceEntry, TaskSpec, TaskWhen};
use vm_agent_schemas::names::{ServiceName, TaskName};
use vm_agent_schemas::wire::{ServiceReport, ServiceState};

use crate::calendar::Rounds;
use crate::drift::configuration_digest;
use crate::inputs::FileTask;
use crate::runs::Runs;
use crate::situation::Situation;

/// Where a task of the file stands.
#[derive(Debug)]
pub(crate) enum Standing<'a> {
    /// It should be accepted: why, and the moment that the run is for.
    Due(Cause<'a>, Option<Timestamp>),
    /// It is accepted, and not over.
    UnderWay,
    /// Nothing is to be done: it succeeded, or its moment is to come.
    Done,
    /// It ended otherwise, and runs again at its next moment, if it has moments.
    Failed(&'a FileTask, Option<Timestamp>),
}

/// Why a task of the file should run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cause<'a> {
    New,
    Session,
    After(&'a TaskName),
    Moment,
}

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("it has not run on this machine"),
            Self::Session => f.write_str("its runtime has connected"),
            Self::After(before) => write!(f, "task {before} has succeeded"),
            Self::Moment => f.write_str("its moment has come"),
        }
    }
}

/// The tasks of the file, each with where it stands.
pub(crate) fn standings<'a>(situation: &Situation<'a>) -> impl Iterator<Item = (&'a TaskName, Standing<'a>)> + use<'a> {
    let situation = *situation;
    tasks(situation).map(move |(name, spec)| (name, standing(&situation, name, spec)))
}

/// When tasks of the file stand otherwise because time goes by.
pub(crate) fn turns<'a>(situation: Situation<'a>) -> impl Iterator<Item = Timestamp> + use<'a> {
    tasks(situation).flat_map(move |(name, spec)| {
        let rounds = rounds(&situation, spec, &Runs::of(&situation, name, spec));
        rounds.into_iter().flat_map(move |rounds| rounds.turns(situation.inputs.now))
    })
}

/// Whether every task of the file that runs once has succeeded, and whatever comes after those.
pub(crate) fn is_completed(situation: &Situation<'_>) -> bool {
    let mut counted = tasks(*situation).filter(|(_, spec)| follows_from_once(situation, spec));
    counted.all(|(name, spec)| matches!(standing(situation, name, spec), Standing::Done))
}

/// Whether a task runs once, or because one did. The fleet file has no rounds of tasks.
fn follows_from_once(situation: &Situation<'_>, spec: &TaskSpec) -> bool {
    let Some(before) = spec.when.after() else { return spec.when == TaskWhen::Once };
    task(situation, before).is_some_and(|spec| follows_from_once(situation, spec))
}

fn tasks<'a>(situation: Situation<'a>) -> impl Iterator<Item = (&'a TaskName, &'a TaskSpec)> + use<'a> {
    situation.wanted.into_iter().flat_map(|agent| &agent.spec.tasks)
}

fn task<'a>(situation: &Situation<'a>, name: &TaskName) -> Option<&'a TaskSpec> {
    situation.wanted?.spec.tasks.get(name)
}

fn standing<'a>(situation: &Situation<'a>, name: &TaskName, spec: &'a TaskSpec) -> Standing<'a> {
    let runs = Runs::of(situation, name, spec);
    if runs.is_under_way() {
        return Standing::UnderWay;
    }
    if let Some((cause, due)) = due(situation, spec, &runs) {
        return Standing::Due(cause, due);
    }
    let failed = runs.last().filter(|run| run.outcome.as_ref().is_some_and(|outcome| !outcome.is_success()));
    failed.map_or(Standing::Done, |run| {
        let next = rounds(situation, spec, &runs).and_then(|rounds| rounds.next(situation.inputs.now));
        Standing::Failed(run, next)
    })
}

/// Why a task that does not run should run now, and for which moment.
fn due<'a>(situation: &Situation<'a>, spec: &'a TaskSpec, runs: &Runs<'a>) -> Option<(Cause<'a>, Option<Timestamp>)> {
    let (cause, moment) = match &spec.when {
        TaskWhen::Once => return runs.last_that_stands(situation).is_none().then_some((Cause::New, None)),
        // While nobody is connected there is no session to run for, so that it wakes no agent.
        TaskWhen::Connect => {
            let session = situation.session.filter(|_| situation.is_reachable())?;
            (Cause::Session, Some(session.connected_at).filter(|moment| !runs.was_for(*moment)))
        }
        TaskWhen::After(when) => {
            let before = Runs::of(situation, &when.after, task(situation, &when.after)?);
            (Cause::After(&when.after), before.not_followed(runs))
        }
        TaskWhen::Cron(_) => (Cause::Moment, rounds(situation, spec, runs)?.due(situation.inputs.now)),
    };
    moment.map(|moment| (cause, Some(moment)))
}

fn rounds<'a>(situation: &Situation<'a>, spec: &'a TaskSpec, runs: &Runs<'_>) -> Option<Rounds<'a>> {
    let TaskWhen::Cron(when) = &spec.when else { return None };
    let (last, made) = (runs.last_dated(), situation.claim?.created_at);
    // What has never run may be new in the file: a moment from before that was none of its own.
    let asked = situation.inputs.accepted_at.filter(|_| last.is_none());
    Some(Rounds { when, last, begins: asked.map_or(made, |asked| asked.max(made)) })
}

/// Where a service of the file stands that does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// It comes up, as far as is known.
    Starting,
    /// It failed.
    Failed,
}

/// The services of the file that don't work, each with what is known of it.
pub(crate) fn outages<'a>(
    situation: &Situation<'a>,
) -> impl Iterator<Item = (&'a ServiceName, Outage, Option<&'a ServiceReport>)> {
    let agent = situation.wanted.filter(|agent| !agent.spec.services.is_empty());
    let both = agent.zip(situation.session).filter(|_| situation.is_reachable());
    both.into_iter().flat_map(|(agent, session)| {
        // Of a service that the runtime does not know yet nothing can be said.
        let told = session.configured.as_ref() == Some(&configuration_digest(agent));
        agent.spec.services.iter().filter_map(move |(name, service)| match session.services.get(name) {
            Some(report) => outage(service, report).map(|outage| (name, outage, Some(report))),
            None => told.then_some((name, Outage::Starting, None)),
        })
    })
}

fn outage(service: &ServiceEntry, report: &ServiceReport) -> Option<Outage> {
    match report.state {
        ServiceState::Running => None,
        ServiceState::Starting => Some(Outage::Starting),
        // It has done what it had to do.
        ServiceState::Ended if service.restart != RestartPolicy::Always && report.problem.is_none() => None,
        ServiceState::Failing | ServiceState::Ended => Some(Outage::Failed),
    }
}

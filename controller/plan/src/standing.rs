//! Where the tasks and services of the file stand on an agent's present machine.

use jiff::Timestamp;
use vm_agent_schemas::fleet::{RestartPolicy, ServiceEntry, TaskSpec, TaskWhen};
use vm_agent_schemas::names::{ServiceName, TaskName};
use vm_agent_schemas::wire::{ServiceReport, ServiceState};

use crate::calendar::Rounds;
use crate::drift::configuration_digest;
use crate::inputs::FileTask;
use crate::situation::Situation;

/// Where a task of the file stands.
#[derive(Debug)]
pub(crate) enum Standing<'a> {
    /// It should be accepted, for this reason.
    Due(&'static str, Option<Timestamp>),
    /// It is accepted, and not over.
    UnderWay,
    /// Nothing is to be done: it succeeded, or its moment is to come.
    Done,
    /// It ended otherwise, and runs again at its next moment, if it has moments.
    Failed(&'a FileTask, Option<Timestamp>),
}

/// The tasks of the file, each with where it stands.
pub(crate) fn standings<'a>(situation: &Situation<'a>) -> impl Iterator<Item = (&'a TaskName, Standing<'a>)> + use<'a> {
    let situation = *situation;
    tasks(situation).map(move |(name, spec)| (name, standing(&situation, name, spec)))
}

/// When tasks of the file stand otherwise because time goes by.
pub(crate) fn turns<'a>(situation: Situation<'a>) -> impl Iterator<Item = Timestamp> + use<'a> {
    tasks(situation).flat_map(move |(name, spec)| {
        let rounds = rounds(&situation, spec, last_run(&situation, name, spec));
        rounds.into_iter().flat_map(move |rounds| rounds.turns(situation.inputs.now))
    })
}

/// Whether every task of the file that runs once has succeeded.
pub(crate) fn is_completed(situation: &Situation<'_>) -> bool {
    let mut once = tasks(*situation).filter(|(_, spec)| spec.when == TaskWhen::Once);
    once.all(|(name, spec)| matches!(standing(situation, name, spec), Standing::Done))
}

fn tasks<'a>(situation: Situation<'a>) -> impl Iterator<Item = (&'a TaskName, &'a TaskSpec)> + use<'a> {
    situation.wanted.into_iter().flat_map(|agent| &agent.spec.tasks)
}

fn standing<'a>(situation: &Situation<'a>, name: &TaskName, spec: &'a TaskSpec) -> Standing<'a> {
    let now = situation.inputs.now;
    let last = last_run(situation, name, spec);
    let rounds = rounds(situation, spec, last);
    let due = rounds.and_then(|rounds| rounds.due(now));
    match (last.map(|task| (task, task.outcome.as_ref())), rounds) {
        (Some((_, None)), _) => Standing::UnderWay,
        _ if due.is_some() => Standing::Due("its moment has come", due),
        (Some((task, Some(outcome))), _) if !outcome.is_success() => {
            Standing::Failed(task, rounds.and_then(|rounds| rounds.next(now)))
        }
        (Some(_), _) => Standing::Done,
        (None, _) if spec.when == TaskWhen::Once => Standing::Due("it has not run on this machine", None),
        (None, _) => Standing::Done,
    }
}

/// The latest run of a task, in its present wording, on the present machine.
fn last_run<'a>(situation: &Situation<'a>, name: &TaskName, spec: &TaskSpec) -> Option<&'a FileTask> {
    let claim = situation.claim?;
    let mut runs = situation.tasks.iter().filter(|task| task.name == *name && task.claim == claim.id).peekable();
    // Most tasks have no run, and a digest takes its time.
    runs.peek()?;
    let digest = spec.digest();
    runs.filter(|task| task.digest == digest).max_by_key(|task| task.accepted_at)
}

fn rounds<'a>(situation: &Situation<'a>, spec: &'a TaskSpec, last: Option<&FileTask>) -> Option<Rounds<'a>> {
    let TaskWhen::Cron(when) = &spec.when else { return None };
    Some(Rounds { when, last: last.map(|task| task.accepted_at), made: situation.claim?.created_at })
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

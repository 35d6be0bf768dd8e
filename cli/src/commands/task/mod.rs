//! Tasks: giving them, and looking after them.

mod artifacts;
mod job;
mod records;
mod watch;

pub(super) use job::JobArgs;
pub(super) use watch::{OnInterrupt, watch};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::Value;
use vm_agent_schemas::api::{AgentView, Document, List, TaskRequest, TaskTo, TasksRequest};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::TaskOutcome;

use crate::Context;
use crate::client::Client;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::{about, known};
use crate::ui::{Format, OutputArgs};
use job::TermsArgs;

/// Give agents a task, and look after tasks
///
/// A task is durable: it waits for its agent, survives restarts, and has one outcome. After `--` stands what it works
/// on; one argument is a line for the shell, several are a program and its arguments. Several names, -l and --all give
/// each agent a task of its own; --any gives one task to whichever of them is idle first. Without anything to do the
/// tasks of the agent are listed.
///
/// With --wait it ends with the exit code of what ran, with 128 and the signal's number when a signal ended it, with 1
/// when work that is no process failed or not all of several tasks succeeded, and with 255 when there is no code: the
/// task never began, ran longer than it may, was cancelled, or its end is not known.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:\n  vm-agent task builder --wait -- make test\n  vm-agent task builder --script \
                        setup.sh\n  vm-agent task builder --type git:clone -- https://example.org/app.git\n  \
                        vm-agent task --any -l team=build --type build -w app")]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    command: Option<TaskCommand>,
    #[command(flatten)]
    to: ToArgs,
    #[command(flatten)]
    wait: WatchArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    terms: TermsArgs,
    /// What it works on
    #[arg(last = true, value_name = "COMMAND")]
    operands: Vec<String>,
}

/// Who is to do a task.
#[derive(Debug, Args)]
struct ToArgs {
    /// The agent, or several
    #[arg(required_unless_present_any = ["selector", "all", "any"], conflicts_with_all = ["selector", "all", "any"],
          value_name = "NAME")]
    names: Vec<AgentName>,
    /// Each agent with these labels: KEY=VALUE, KEY!=VALUE, KEY, !KEY, separated by commas
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "all")]
    selector: Option<Selector>,
    /// Each agent
    #[arg(long)]
    all: bool,
    /// Any one of the agents with these labels, whichever is idle first
    #[arg(long, requires = "selector", conflicts_with = "all")]
    any: bool,
}

/// Whether to wait for the end, and what Ctrl-C means meanwhile.
#[derive(Debug, Args)]
struct WatchArgs {
    /// Wait until it ends, with its output here, and end with its exit code
    #[arg(long, visible_alias = "follow")]
    wait: bool,
    /// Let Ctrl-C cancel the task; without this it only waits no longer
    #[arg(long, requires = "wait")]
    cancel_on_interrupt: bool,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    Ls(records::LsArgs),
    Show(records::ShowArgs),
    Output(records::OutputOfArgs),
    Cancel(records::IdsArgs),
    Replay(records::ReplayArgs),
    Dead(records::DeadArgs),
    Drop(records::DropArgs),
    Artifacts(artifacts::ArtifactsArgs),
}

pub(crate) async fn run(context: &mut Context, args: TaskArgs) -> CommandResult {
    match args.command {
        None => give(context, args).await,
        Some(TaskCommand::Ls(args)) => records::list(context, args).await,
        Some(TaskCommand::Show(args)) => records::show(context, args).await,
        Some(TaskCommand::Output(args)) => records::output(context, args).await,
        Some(TaskCommand::Cancel(args)) => records::cancel(context, args).await,
        Some(TaskCommand::Replay(args)) => records::replay(context, args).await,
        Some(TaskCommand::Dead(args)) => records::dead(context, args).await,
        Some(TaskCommand::Drop(args)) => records::drop_dead(context, args).await,
        Some(TaskCommand::Artifacts(args)) => artifacts::run(context, args).await,
    }
}

async fn give(context: &mut Context, args: TaskArgs) -> CommandResult {
    let format = args.output.output;
    let asks_nothing = args.operands.is_empty() && args.job.is_bare() && args.terms.is_bare() && !args.wait.wait;
    if asks_nothing && !args.to.names.is_empty() {
        let client = context.place.client().await?;
        return records::tasks_of(context, &client, &args.to.names, format).await;
    }
    let waits = args.wait.wait;
    // Who waits takes every code for that of what ran.
    let told = |error: CommandError| if waits { error.of_exec() } else { error };
    let timeout = args.job.timeout();
    let key = args.terms.idempotency_key.clone();
    let terms = args.terms.into_terms(timeout, Timestamp::now()).map_err(told)?;
    let job = args.job.into_job(args.operands).map_err(told)?;
    let request = TaskRequest { job, terms, id: None, key };
    let client = context.place.client().await.map_err(told)?;
    let (tasks, raw) = accepted(&client, args.to, request).await.map_err(told)?;
    if !waits {
        context.ui.document(format, &raw, || tasks.iter().map(|task| format!("{}\n", task.id)).collect())?;
        hint(context, &tasks)?;
        return Ok(Exit::SUCCESS);
    }
    let on_interrupt = if args.wait.cancel_on_interrupt { OnInterrupt::Cancel } else { OnInterrupt::Detach };
    finish(context, &client, &tasks, format, on_interrupt).await
}

/// Gives the task to whom it is for.
async fn accepted(client: &Client, to: ToArgs, request: TaskRequest) -> Result<(Vec<Task>, Value), CommandError> {
    let to = match (to.selector, to.any, to.all, to.names) {
        (Some(selector), true, ..) => TaskTo::Any(selector),
        (Some(selector), false, ..) => TaskTo::Each(selector),
        (None, _, true, _) => TaskTo::Agents(all(client).await?),
        (None, _, false, names) => match <[AgentName; 1]>::try_from(names) {
            Ok([name]) => {
                // The id is ours, so that a request that is sent again is still one task.
                let request = TaskRequest { id: Some(TaskId::generate()), ..request };
                let answer = client.post::<Task>(&format!("/agents/{name}/task"), &request).await;
                let answer = about(client, &name, answer).await?;
                return Ok((vec![answer.content], answer.raw));
            }
            Err(names) => {
                known(client, &names).await?;
                TaskTo::Agents(names)
            }
        },
    };
    let answer = client.post::<List<Task>>("/tasks", &TasksRequest { to, task: request }).await?;
    Ok((answer.content.items, answer.raw))
}

async fn all(client: &Client) -> Result<Vec<AgentName>, CommandError> {
    let agents = client.get::<List<AgentView>>("/agents").await?.content.items;
    // What should not exist has nothing to do.
    let names: Vec<AgentName> =
        agents.into_iter().filter(|agent| agent.wanted.is_some()).map(|agent| agent.name).collect();
    if names.is_empty() {
        return Err(CommandError::new(Exit::NOT_FOUND, "there are no agents")
            .hint("declare some in fleet.yaml and run `vm-agent apply`"));
    }
    Ok(names)
}

fn hint(context: &mut Context, tasks: &[Task]) -> Result<(), CommandError> {
    match tasks {
        [task] => context.ui.hint(format_args!("`vm-agent task output --follow {}` shows its output", task.id)),
        [first, ..] if first.group.is_some() => {
            let group = first.group.expect("it was looked at");
            context.ui.hint(format_args!("`vm-agent task ls --group {group}` shows how far they are"))
        }
        _ => Ok(()),
    }
}

/// Waits for the ends of tasks, with their output here, and ends as they did.
async fn finish(
    context: &mut Context,
    client: &Client,
    tasks: &[Task],
    format: Format,
    on_interrupt: OnInterrupt,
) -> CommandResult {
    for task in tasks {
        context.ui.status(format_args!("task {} for {} is accepted", task.id, render::whose(task)))?;
    }
    tell_stopped(context, client, tasks).await?;
    let for_people = matches!(format, Format::Table | Format::Wide);
    let ended = watch(context, client, tasks, for_people, on_interrupt).await.map_err(CommandError::of_exec)?;
    if !for_people {
        let document = match ended.as_slice() {
            [task] => serde_json::to_value(Document::from(task.clone())),
            tasks => serde_json::to_value(Document::from(List { items: tasks.to_vec() })),
        };
        context.ui.document(format, &document.expect("tasks can be written as JSON"), String::new)?;
    }
    conclude(&ended)
}

/// Says whose tasks wait until somebody starts their agents: that may take for ever.
async fn tell_stopped(context: &mut Context, client: &Client, tasks: &[Task]) -> Result<(), CommandError> {
    let agents = match tasks {
        [Task { agent: Some(name), .. }] => vec![client.get::<AgentView>(&format!("/agents/{name}")).await?.content],
        _ => client.get::<List<AgentView>>("/agents").await?.content.items,
    };
    for agent in agents.iter().filter(|agent| tasks.iter().any(|task| task.agent.as_ref() == Some(&agent.name))) {
        if let Some(why) = render::stopped(agent, Timestamp::now()) {
            let name = &agent.name;
            context.ui.warn(format_args!("{name} {why}; the task waits until it runs: vm-agent start {name}"))?;
        }
    }
    Ok(())
}

/// How this program ends after these tasks have.
pub(super) fn conclude(ended: &[Task]) -> CommandResult {
    if let [task] = ended {
        return conclude_one(task);
    }
    let failed: Vec<&Task> = ended.iter().filter(|task| !succeeded(task)).collect();
    if failed.is_empty() {
        return Ok(Exit::SUCCESS);
    }
    let lines = failed.iter().map(|task| {
        let outcome = task.outcome().map(ToString::to_string).unwrap_or_default();
        format!("\n  {} {}: {outcome}", render::whose(task), task.id)
    });
    let sentence = format!("{} of {} tasks did not succeed{}", failed.len(), ended.len(), lines.collect::<String>());
    Err(CommandError::new(Exit::FAILURE, sentence))
}

fn succeeded(task: &Task) -> bool {
    task.outcome().is_some_and(TaskOutcome::is_success)
}

fn conclude_one(task: &Task) -> CommandResult {
    let outcome = task.outcome().expect("it was waited for until there is one");
    // A code or a signal speaks for itself; a reason has to be told.
    match Exit::remote(outcome) {
        Some(exit) if exit != Exit::FAILURE || outcome.to_string().starts_with("ended with") => Ok(exit),
        exit => {
            let limit =
                if *outcome == TaskOutcome::TimedOut { format!(", {}", task.terms.timeout) } else { String::new() };
            let sentence = format!("the task {outcome}{limit}");
            let error = CommandError::new(exit.unwrap_or(Exit::EXEC_FAILED), sentence);
            let again = format!("vm-agent task replay {}", task.id);
            Err(if task.dead.is_some() { error.hint(format!("`{again}` tries it again")) } else { error })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;
    use vm_agent_schemas::task::TaskState;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        task: TaskArgs,
    }

    #[test]
    fn only_a_name_alone_asks_for_the_tasks_that_there_are() {
        let line = |words: &str| <Line as clap::Parser>::try_parse_from(format!("task {words}").split_whitespace());
        let is_bare = |words: &str| {
            let task = line(words).unwrap().task;
            task.job.is_bare() && task.terms.is_bare() && !task.wait.wait
        };
        assert!(is_bare("web"));
        for words in ["web --retry 3", "web --wait", "web --env A=1", "web --timeout 1s", "web --idempotency-key a"] {
            assert!(!is_bare(words), "{words}");
        }
        for words in ["--any --all -- true", "--any web -- true", "--any -- true"] {
            let error = line(words).unwrap_err().to_string();
            assert!(error.contains("--any") || error.contains("--selector"), "{words}: {error}");
            assert!(!error.contains("<NAME>\n"), "{words}: {error}");
        }
    }

    fn ended(outcome: TaskOutcome) -> Task {
        Task { state: TaskState::Ended { outcome }, ..samples::task("web") }
    }

    fn code(outcome: TaskOutcome) -> (u8, Option<String>) {
        match conclude(&[ended(outcome)]) {
            Ok(exit) => (exit.code(), None),
            Err(error) => (error.exit.code(), Some(error.to_string())),
        }
    }

    #[test]
    fn one_task_gives_its_own_code_and_its_reason_where_it_has_one() {
        assert_eq!(code(TaskOutcome::Exited { code: 0 }), (0, None));
        assert_eq!(code(TaskOutcome::Exited { code: 1 }), (1, None));
        assert_eq!(code(TaskOutcome::Signaled { signal: 9 }), (137, None));
        let failed = TaskOutcome::Failed { reason: "there is no such file".into() };
        assert_eq!(code(failed), (1, Some("the task failed: there is no such file".into())));
        assert_eq!(code(TaskOutcome::TimedOut), (255, Some("the task ran longer than it may, 1h".into())));
    }

    #[test]
    fn several_tasks_succeed_only_together() {
        let good = ended(TaskOutcome::Exited { code: 0 });
        assert_eq!(conclude(&[good.clone(), good.clone()]).unwrap(), Exit::SUCCESS);
        let error = conclude(&[good, ended(TaskOutcome::Exited { code: 3 })]).unwrap_err();
        assert_eq!(error.exit, Exit::FAILURE);
        assert!(error.to_string().starts_with("1 of 2 tasks did not succeed\n  web "), "{error}");
    }
}

use clap::{Args, Subcommand};
use jiff::Timestamp;
use vm_agent_schemas::api::{AgentView, Document, List, TaskRequest};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::units::Span;

use super::exec::RunArgs;
use crate::Context;
use crate::client::{Client, Fetched};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::{AnyTargets, about};
use crate::settle::detached;
use crate::ui::{Format, OutputArgs};

/// Give an agent a task, or list tasks
///
/// A task is durable: it waits for the agent, survives restarts, and has one outcome. One argument is a
/// line for the shell, several are a program and its arguments. Without a command the agent's tasks are
/// listed; `task ls` lists those of all agents.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    command: Option<TaskCommand>,
    /// The agent
    #[arg(required = true, value_name = "NAME")]
    name: Option<AgentName>,
    /// Wait until the task ends, print the last of its output, and end with its exit code
    #[arg(long)]
    wait: bool,
    /// How long the task may run [default: 1h]
    #[arg(long, value_name = "SPAN")]
    timeout: Option<Span>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// List the tasks of agents, newest first
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        targets: AnyTargets,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(crate) async fn run(context: &mut Context, args: TaskArgs) -> CommandResult {
    let client = context.place.client().await?;
    let name = match (args.command, args.name) {
        (Some(TaskCommand::Ls { targets, output }), _) => {
            let names = targets.resolve(&client).await?;
            return list(context, &client, names, output.output).await;
        }
        (None, name) => name.expect("clap has seen to it that there is a name or a subcommand"),
    };
    let format = args.output.output;
    let Some(run) = args.run.into_run() else {
        return list(context, &client, Some(vec![name]), format).await;
    };
    // The id is ours, so that a request that is sent again is still one task.
    let request = TaskRequest { run, timeout: args.timeout, id: Some(TaskId::generate()) };
    let answer = client.post::<Task>(&format!("/agents/{name}/task"), &request).await;
    let answer = about(&client, &name, answer).await?;
    let id = answer.content.id;
    if !args.wait {
        let shown = || id.to_string();
        context.ui.document(format, &answer.raw, shown)?;
        context.ui.hint(format_args!("`vm-agent task {name}` shows how far it is"))?;
        return Ok(Exit::SUCCESS);
    }
    context.ui.status(format_args!("task {id} is accepted"))?;
    let ended = wait(&client, id).await.map_err(CommandError::of_exec)?;
    context.ui.document(format, &ended.raw, || ended.content.output.clone())?;
    let outcome = ended.content.outcome().expect("it was waited for until there is one");
    Exit::remote(outcome).ok_or_else(|| CommandError::new(Exit::EXEC_FAILED, format!("the task {outcome}")))
}

/// Lists the tasks of these agents, or of all.
async fn list(context: &mut Context, client: &Client, names: Option<Vec<AgentName>>, format: Format) -> CommandResult {
    let one = names.as_ref().and_then(|names| if let [one] = names.as_slice() { Some(one.clone()) } else { None });
    let names = match names {
        Some(names) => names,
        None => {
            let agents = client.get::<List<AgentView>>("/agents").await?.content.items;
            agents.into_iter().map(|agent| agent.name).collect()
        }
    };
    let mut items = Vec::new();
    for name in &names {
        let answer = client.get::<List<Task>>(&format!("/agents/{name}/tasks")).await;
        items.extend(about(client, name, answer).await?.content.items);
    }
    items.sort_by_key(|task| std::cmp::Reverse((task.created_at, task.id)));
    if items.is_empty() && matches!(format, Format::Table | Format::Wide) {
        let (who, name) =
            one.map_or(("there are".to_owned(), "NAME".to_owned()), |one| (format!("{one} has"), one.to_string()));
        context.ui.hint(format_args!("{who} no tasks; give one with `vm-agent task {name} -- COMMAND`"))?;
    } else {
        let raw =
            serde_json::to_value(Document::from(List { items: items.clone() })).expect("tasks can be written as JSON");
        context.ui.document(format, &raw, || render::task_table(&items, one.is_none(), Timestamp::now()))?;
    }
    Ok(Exit::SUCCESS)
}

/// Waits until the task has its outcome: looks, and looks again after each event.
async fn wait(client: &Client, id: TaskId) -> Result<Fetched<Task>, CommandError> {
    let mut events = client.stream("/events?follow=true&limit=1").await?;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let task = client.get::<Task>(&format!("/tasks/{id}")).await?;
        if task.content.outcome().is_some() {
            return Ok(task);
        }
        tokio::select! {
            event = events.next() => {
                event?.ok_or_else(|| CommandError::new(Exit::UNREACHABLE, "the controller went away meanwhile"))?;
                events.drain().for_each(drop);
            }
            _ = &mut interrupt => return Err(detached()),
        }
    }
}

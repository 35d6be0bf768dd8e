use clap::Args;
use jiff::Timestamp;
use vm_agent_schemas::api::{List, TaskRequest};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::units::Span;

use super::exec::RunArgs;
use crate::Context;
use crate::client::{Client, Fetched};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::settle::detached;
use crate::ui::{Format, OutputArgs};

/// Give an agent a task, or list its tasks
///
/// A task is durable: it waits for the agent, survives restarts, and has one outcome. One argument is a
/// line for the shell, several are a program and its arguments. Without a command the agent's tasks are
/// listed.
#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    /// The agent
    name: AgentName,
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

pub(crate) async fn run(context: &mut Context, args: TaskArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    let Some(run) = args.run.into_run() else {
        return list(context, &client, &args.name, format).await;
    };
    // The id is ours, so that a request that is sent again is still one task.
    let request = TaskRequest { run, timeout: args.timeout, id: Some(TaskId::generate()) };
    let answer = client.post::<Task>(&format!("/agents/{}/task", args.name), &request).await?;
    let id = answer.content.id;
    if !args.wait {
        let shown = || id.to_string();
        context.ui.document(format, &answer.raw, shown)?;
        context.ui.hint(format_args!("`vm-agent task {}` shows how far it is", args.name))?;
        return Ok(Exit::SUCCESS);
    }
    context.ui.status(format_args!("task {id} is accepted"))?;
    let ended = wait(&client, id).await.map_err(CommandError::of_exec)?;
    context.ui.document(format, &ended.raw, || ended.content.output.clone())?;
    let outcome = ended.content.outcome().expect("it was waited for until there is one");
    Exit::remote(outcome).ok_or_else(|| CommandError::new(Exit::EXEC_FAILED, format!("the task {outcome}")))
}

async fn list(context: &mut Context, client: &Client, name: &AgentName, format: Format) -> CommandResult {
    let answer = client.get::<List<Task>>(&format!("/agents/{name}/tasks")).await?;
    let tasks = &answer.content.items;
    if tasks.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.hint(format_args!("{name} has no tasks; give it one with `vm-agent task {name} -- COMMAND`"))?;
    } else {
        context.ui.document(format, &answer.raw, || render::task_table(tasks, Timestamp::now()))?;
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

//! The tasks that there are: listing them, looking at one, ending one, doing one again.

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use vm_agent_schemas::api::{Document, List};
use vm_agent_schemas::ids::GroupId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;

use super::{OnInterrupt, conclude, watch};
use crate::Context;
use crate::client::{Client, Fetched, query};
use crate::commands::each;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::select::{AnyTargets, known};
use crate::ui::{Format, OutputArgs};
use crate::{ids, render};

/// List tasks, newest first
#[derive(Debug, Args)]
#[command(visible_alias = "list")]
pub(super) struct LsArgs {
    #[command(flatten)]
    targets: AnyTargets,
    /// Only those that are so far
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only those that one request made together
    #[arg(long, value_name = "GROUP")]
    group: Option<GroupId>,
    /// Only dead letters
    #[arg(long)]
    dead: bool,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value = "100")]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// How far a task is.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// Accepted, and begun nowhere.
    Queued,
    /// Handed to a runtime.
    Sent,
    /// Running.
    Running,
    /// Over.
    Ended,
}

/// Show one task
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The task: its id, or as much of its beginning or end as tells it apart
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Print what a task has written, its stdout here and its stderr there
#[derive(Debug, Args)]
pub(super) struct OutputOfArgs {
    /// The task: its id, or as much of its beginning or end as tells it apart
    #[arg(value_name = "ID")]
    id: String,
    /// Go on with what comes until the task ends, and end with its exit code
    #[arg(short, long, conflicts_with_all = ["stdout", "stderr", "attempt"])]
    follow: bool,
    /// Only its stdout
    #[arg(long)]
    stdout: bool,
    /// Only its stderr, on stdout here
    #[arg(long, conflicts_with = "stdout")]
    stderr: bool,
    /// Only of this attempt [default: of all of them, one after the other]
    #[arg(long, value_name = "NUMBER")]
    attempt: Option<u32>,
}

/// Cancel tasks: what has begun is ended
#[derive(Debug, Args)]
pub(super) struct IdsArgs {
    /// The tasks: their ids, or as much of them as tells them apart
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Do ended tasks again, as new tasks
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The tasks: their ids, or as much of them as tells them apart
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// List the tasks that are dead letters
#[derive(Debug, Args)]
pub(super) struct DeadArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Give dead letters up: they are tasks like others again
#[derive(Debug, Args)]
pub(super) struct DropArgs {
    /// The tasks: their ids, or as much of them as tells them apart
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

pub(super) async fn list(context: &mut Context, args: LsArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    let names = args.targets.resolve(&client).await?;
    let state = args.state.and_then(|state| state.to_possible_value()).map(|value| value.get_name().to_owned());
    let path = |agent: Option<&AgentName>| {
        let fields = [
            ("agent", agent.map(ToString::to_string)),
            ("state", state.clone()),
            ("group", args.group.map(|group| group.to_string())),
            ("dead", args.dead.then(|| "true".to_owned())),
            ("limit", Some(args.limit.to_string())),
        ];
        query("/tasks", &fields)
    };
    let Some(names) = names else {
        let answer = client.get::<List<Task>>(&path(None)).await?;
        return print(context, &answer, true, format);
    };
    let mut found = Vec::new();
    for name in &names {
        found.extend(client.get::<List<Task>>(&path(Some(name))).await?.content.items);
    }
    // No tasks of a mistyped name are no answer; of an agent that is gone there may be some.
    known(&client, &without(&names, &found)).await?;
    found.sort_by_key(|task| std::cmp::Reverse((task.created_at, task.id)));
    found.truncate(args.limit);
    print(context, &listed(found), names.len() != 1, format)
}

/// Lists the tasks of these agents.
pub(super) async fn tasks_of(
    context: &mut Context,
    client: &Client,
    names: &[AgentName],
    format: Format,
) -> CommandResult {
    let mut found = Vec::new();
    for name in names {
        let path = query("/tasks", &[("agent", Some(name.to_string()))]);
        found.extend(client.get::<List<Task>>(&path).await?.content.items);
    }
    known(client, &without(names, &found)).await?;
    found.sort_by_key(|task| std::cmp::Reverse((task.created_at, task.id)));
    print(context, &listed(found), names.len() != 1, format)
}

/// Of these agents those that have none of these tasks.
fn without(names: &[AgentName], tasks: &[Task]) -> Vec<AgentName> {
    let has = |name: &AgentName| tasks.iter().any(|task| task.agent.as_ref() == Some(name));
    names.iter().filter(|name| !has(name)).cloned().collect()
}

/// Tasks as the controller would list them.
fn listed(items: Vec<Task>) -> Fetched<List<Task>> {
    let content = List { items };
    let raw = serde_json::to_value(Document::from(content.clone())).expect("tasks can be written as JSON");
    Fetched { raw, content }
}

fn print(context: &mut Context, answer: &Fetched<List<Task>>, of: bool, format: Format) -> CommandResult {
    let tasks = &answer.content.items;
    if tasks.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.hint("there are no such tasks; `vm-agent task NAME -- COMMAND` gives one")?;
    } else {
        context.ui.document(format, &answer.raw, || {
            render::task_table(tasks, of, format == Format::Wide, Timestamp::now())
        })?;
    }
    Ok(Exit::SUCCESS)
}

pub(super) async fn show(context: &mut Context, args: ShowArgs) -> CommandResult {
    let client = context.place.client().await?;
    let id = ids::task(&client, &args.id).await?;
    let answer = client.get::<Task>(&format!("/tasks/{id}")).await.map_err(unknown)?;
    context.ui.document(args.output.output, &answer.raw, || render::task(&answer.content, Timestamp::now()))?;
    Ok(Exit::SUCCESS)
}

pub(super) async fn output(context: &mut Context, args: OutputOfArgs) -> CommandResult {
    let client = context.place.client().await?;
    let id = ids::task(&client, &args.id).await?;
    if args.follow {
        let task = client.get::<Task>(&format!("/tasks/{id}")).await.map_err(unknown)?.content;
        let ended = watch(context, &client, &[task], true, OnInterrupt::Detach).await;
        return conclude(&ended.map_err(CommandError::of_exec)?);
    }
    let path = |channel: &str| {
        let fields =
            [("channel", Some(channel.to_owned())), ("attempt", args.attempt.map(|attempt| attempt.to_string()))];
        query(&format!("/tasks/{id}/output"), &fields)
    };
    if !args.stderr {
        client.copy(&path("stdout"), tokio::io::stdout()).await.map_err(unknown)?;
    }
    if args.stderr {
        client.copy(&path("stderr"), tokio::io::stdout()).await.map_err(unknown)?;
    } else if !args.stdout {
        client.copy(&path("stderr"), tokio::io::stderr()).await?;
    }
    Ok(Exit::SUCCESS)
}

pub(super) async fn cancel(context: &mut Context, args: IdsArgs) -> CommandResult {
    let client = context.place.client().await?;
    each(context, Format::Table, args.ids, async |context, word| {
        let id = ids::task(&client, &word).await?;
        let task = client.ask::<Task>(&format!("/tasks/{id}/cancel")).await.map_err(unknown)?.content;
        context.ui.status(match task.outcome() {
            Some(outcome) => format!("task {id} {outcome}"),
            None => format!("task {id} is being ended"),
        })
    })
    .await
}

pub(super) async fn replay(context: &mut Context, args: ReplayArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    each(context, format, args.ids, async |context, word| {
        let id = ids::task(&client, &word).await?;
        let answer = client.ask::<Task>(&format!("/tasks/{id}/replay")).await.map_err(unknown)?;
        context.ui.document(format, &answer.raw, || answer.content.id.to_string())?;
        context.ui.status(format_args!("task {id} is done again as {}", answer.content.id))
    })
    .await
}

pub(super) async fn dead(context: &mut Context, args: DeadArgs) -> CommandResult {
    let client = context.place.client().await?;
    let answer = client.get::<List<Task>>("/tasks?dead=true").await?;
    let format = args.output.output;
    if answer.content.items.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.status("No task is a dead letter.")?;
        return Ok(Exit::SUCCESS);
    }
    print(context, &answer, true, format)
}

pub(super) async fn drop_dead(context: &mut Context, args: DropArgs) -> CommandResult {
    let client = context.place.client().await?;
    each(context, Format::Table, args.ids, async |context, word| {
        let id = ids::dead_task(&client, &word).await?;
        client.delete(&format!("/tasks/{id}/dead")).await.map_err(no_dead_letter)?;
        context.ui.status(format_args!("task {id} is given up"))
    })
    .await
}

/// A task that is no dead letter, with where to look for those.
fn no_dead_letter(error: CommandError) -> CommandError {
    if error.exit == Exit::NOT_FOUND && error.hints().is_empty() {
        return error.hint("see which there are: vm-agent dead");
    }
    error
}

/// A task that there is none of, with where to look.
pub(super) fn unknown(error: CommandError) -> CommandError {
    if error.exit == Exit::NOT_FOUND && error.hints().is_empty() {
        return error.hint("see which there are: vm-agent task ls");
    }
    error
}

use clap::Args;
use jiff::Timestamp;
use vm_agent_schemas::api::{AgentView, ControllerStatus, List};
use vm_agent_schemas::event::Event;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;

use crate::Context;
use crate::client::Client;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::about;
use crate::ui::{Format, OutputArgs};

/// How many events, and tasks, are shown.
const SHOWN: usize = 5;

/// Show the controller, or everything about one agent
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The agent; without one, the controller
    name: Option<AgentName>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: StatusArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    let Some(name) = args.name else {
        let answer = client.get::<ControllerStatus>("/status").await?;
        if !matches!(format, Format::Table | Format::Wide) {
            context.ui.document(format, &answer.raw, String::new)?;
            return Ok(Exit::SUCCESS);
        }
        context.ui.print(render::controller(&answer.content, Timestamp::now()))?;
        context.ui.hint("`vm-agent list` shows the agents")?;
        return Ok(Exit::SUCCESS);
    };
    let answer = client.get::<AgentView>(&format!("/agents/{name}")).await;
    let answer = about(&client, &name, answer).await?;
    if !matches!(format, Format::Table | Format::Wide) {
        context.ui.document(format, &answer.raw, String::new)?;
        return Ok(Exit::SUCCESS);
    }
    let mut tasks = client.get::<List<Task>>(&format!("/agents/{name}/tasks")).await?.content.items;
    tasks.sort_by_key(|task| std::cmp::Reverse(task.created_at));
    tasks.truncate(SHOWN);
    let last = last_events(&client, &name, SHOWN).await?;
    context.ui.print(render::agent(&answer.content, &tasks, &last, Timestamp::now()))?;
    context.ui.hint(format_args!("`vm-agent why {name}` says what happens next, and what you could do"))?;
    Ok(Exit::SUCCESS)
}

/// What happened to an agent last, oldest first.
pub(super) async fn last_events(client: &Client, name: &AgentName, most: usize) -> Result<Vec<Event>, CommandError> {
    Ok(client.get::<List<Event>>(&format!("/events?agent={name}&limit={most}")).await?.content.items)
}

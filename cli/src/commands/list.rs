use clap::Args;
use jiff::Timestamp;
use vm_agent_schemas::api::{AgentView, List};

use crate::Context;
use crate::client::Client;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::ui::{Format, OutputArgs};

/// List the agents
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: ListArgs) -> CommandResult {
    let client = context.place.client().await?;
    print(context, &client, args.output.output).await?;
    Ok(Exit::SUCCESS)
}

/// Prints every agent.
pub(super) async fn print(context: &mut Context, client: &Client, format: Format) -> Result<(), CommandError> {
    let answer = client.get::<List<AgentView>>("/agents").await?;
    let agents = &answer.content.items;
    if agents.is_empty() && matches!(format, Format::Table | Format::Wide) {
        return context.ui.hint("there are no agents; declare some in fleet.yaml and run `vm-agent apply`");
    }
    context.ui.document(format, &answer.raw, || render::agent_table(agents, format == Format::Wide, Timestamp::now()))
}

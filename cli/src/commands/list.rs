use clap::Args;
use jiff::Timestamp;
use serde_json::Value;
use vm_agent_schemas::api::{AgentView, List};
use vm_agent_schemas::names::AgentName;

use crate::Context;
use crate::client::{Client, Fetched};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::{AnyTargets, no_such_agent};
use crate::ui::{Format, OutputArgs};

/// List the agents
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    targets: AnyTargets,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: ListArgs) -> CommandResult {
    let client = context.place.client().await?;
    let mut answer = client.get::<List<AgentView>>("/agents").await?;
    if let Some(names) = args.targets.resolve(&client).await? {
        let known: Vec<&AgentName> = answer.content.items.iter().map(|agent| &agent.name).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
            return Err(no_such_agent(unknown, &known));
        }
        answer.content.items.retain(|agent| names.contains(&agent.name));
        retain(&mut answer.raw, "name", &names);
    }
    show(context, &answer, args.output.output)?;
    Ok(Exit::SUCCESS)
}

/// Prints every agent.
pub(super) async fn print(context: &mut Context, client: &Client, format: Format) -> Result<(), CommandError> {
    let answer = client.get::<List<AgentView>>("/agents").await?;
    show(context, &answer, format)
}

fn show(context: &mut Context, answer: &Fetched<List<AgentView>>, format: Format) -> Result<(), CommandError> {
    let agents = &answer.content.items;
    if agents.is_empty() && matches!(format, Format::Table | Format::Wide) {
        return context.ui.hint("there are no agents; declare some in fleet.yaml and run `vm-agent apply`");
    }
    context.ui.document(format, &answer.raw, || render::agent_table(agents, format == Format::Wide, Timestamp::now()))
}

/// Keeps the items of a document that are about these agents. `key` is where an item says which it is.
pub(super) fn retain(document: &mut Value, key: &str, names: &[AgentName]) {
    if let Some(items) = document.get_mut("items").and_then(Value::as_array_mut) {
        items.retain(|item| names.iter().any(|name| item[key] == name.as_str()));
    }
}

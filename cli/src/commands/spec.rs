use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use vm_agent_schemas::api::AgentView;
use vm_agent_schemas::fleet::DeclaredAgent;
use vm_agent_schemas::names::AgentName;

use super::document;
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::about;
use crate::ui::OutputArgs;

/// Show what is wanted of an agent, field by field
///
/// Each with where it comes from: the file, a profile, a default, or a person.
#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// The agent
    name: AgentName,
    #[command(flatten)]
    output: OutputArgs,
}

/// An agent's effective spec, as a document.
#[derive(Serialize)]
struct Spec<'a> {
    name: &'a AgentName,
    #[serde(flatten)]
    wanted: &'a DeclaredAgent,
}

pub(crate) async fn run(context: &mut Context, args: SpecArgs) -> CommandResult {
    let client = context.place.client().await?;
    let name = &args.name;
    let answer = client.get::<AgentView>(&format!("/agents/{name}")).await;
    let agent = about(&client, name, answer).await?.content;
    let Some(wanted) = &agent.wanted else {
        let sentence = format!("nothing is wanted of `{name}`: it should not exist");
        return Err(CommandError::new(Exit::NOT_FOUND, sentence).hint(format!("see why: vm-agent why {name}")));
    };
    let whole = document("Spec", Spec { name, wanted });
    context
        .ui
        .document(args.output.output, &whole, || render::spec(wanted, &agent.overrides, name, Timestamp::now()))?;
    Ok(Exit::SUCCESS)
}

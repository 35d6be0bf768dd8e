use clap::Args;
use vm_agent_schemas::api::{AgentDrift, List};

use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::render;
use crate::ui::{Format, OutputArgs};

/// Show where the fleet differs from what is wanted, and propose nothing
#[derive(Debug, Args)]
pub(crate) struct DriftArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: DriftArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    let answer = client.get::<List<AgentDrift>>("/drift").await?;
    let agents = &answer.content.items;
    if matches!(format, Format::Table | Format::Wide) && agents.iter().all(|agent| agent.drift.is_empty()) {
        context.ui.status("Nothing differs.")?;
    } else {
        context.ui.document(format, &answer.raw, || render::drift_table(agents))?;
    }
    Ok(Exit::SUCCESS)
}

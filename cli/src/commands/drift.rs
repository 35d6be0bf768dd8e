use clap::Args;
use vm_agent_schemas::api::{AgentDrift, List};

use super::list::retain;
use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::render;
use crate::select::{AnyTargets, known};
use crate::ui::{Format, OutputArgs};

/// Show where the fleet differs from what is wanted, and propose nothing
///
/// What an agent's `drift` only warns of is shown as well.
#[derive(Debug, Args)]
pub(crate) struct DriftArgs {
    #[command(flatten)]
    targets: AnyTargets,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: DriftArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    let mut answer = client.get::<List<AgentDrift>>("/drift").await?;
    if let Some(names) = args.targets.resolve(&client).await? {
        known(&client, &names).await?;
        answer.content.items.retain(|item| names.contains(&item.agent));
        retain(&mut answer.raw, "agent", &names);
    }
    let agents = &answer.content.items;
    if matches!(format, Format::Table | Format::Wide) && agents.iter().all(|agent| agent.drift.is_empty()) {
        context.ui.status("Nothing differs.")?;
    } else {
        context.ui.document(format, &answer.raw, || render::drift_table(agents))?;
    }
    Ok(Exit::SUCCESS)
}

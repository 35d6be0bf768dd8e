use clap::{Args, Subcommand};
use jiff::Timestamp;
use vm_agent_schemas::api::List;
use vm_agent_schemas::intent::Override;

use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::render;
use crate::ui::{Format, OutputArgs};

/// Look at what people said beside the file
///
/// An override ends when a command says what the file says, at its time, or when the file changes what
/// it covers.
#[derive(Debug, Args)]
pub(crate) struct OverrideArgs {
    #[command(subcommand)]
    command: OverrideCommand,
}

#[derive(Debug, Subcommand)]
enum OverrideCommand {
    /// List the overrides in force
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(crate) async fn run(context: &mut Context, args: OverrideArgs) -> CommandResult {
    let OverrideCommand::Ls { output } = args.command;
    let client = context.place.client().await?;
    let answer = client.get::<List<Override>>("/overrides").await?;
    let overrides = &answer.content.items;
    if overrides.is_empty() && matches!(output.output, Format::Table | Format::Wide) {
        context.ui.status("Nothing is overridden.")?;
    } else {
        context.ui.document(output.output, &answer.raw, || render::override_table(overrides, Timestamp::now()))?;
    }
    Ok(Exit::SUCCESS)
}

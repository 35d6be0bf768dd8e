use clap::Args;

use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::file::FileArgs;
use crate::render::count;

/// Check a fleet file; needs no controller
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    file: FileArgs,
}

pub(crate) fn run(context: &mut Context, args: &ValidateArgs) -> CommandResult {
    let loaded = args.file.load()?;
    let agents = count(loaded.fleet.agents.len(), "agent");
    context.ui.print(format_args!("{} is valid: fleet `{}` with {agents}", loaded.name, loaded.fleet.name))?;
    Ok(Exit::SUCCESS)
}

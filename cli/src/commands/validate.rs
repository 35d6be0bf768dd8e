use clap::Args;
use vm_agent_schemas::api::List;

use super::document;
use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::file::FileArgs;
use crate::render::count;
use crate::ui::{Format, OutputArgs};

/// Check a fleet file; needs no controller, and runs nothing that is in it
///
/// Everything that is wrong is shown at once. With `-o json` the answer is a DiagnosticList, empty for
/// a valid file.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(context: &mut Context, args: &ValidateArgs) -> CommandResult {
    let format = args.output.output;
    if matches!(format, Format::Json | Format::Yaml) {
        let items = args.file.diagnose()?;
        let exit = if items.is_empty() { Exit::SUCCESS } else { Exit::USAGE };
        context.ui.document(format, &document("DiagnosticList", List { items }), String::new)?;
        return Ok(exit);
    }
    let loaded = args.file.load()?;
    let agents = count(loaded.fleet.agents.len(), "agent");
    let verb = if loaded.source.files.len() == 1 { "is" } else { "are" };
    context.ui.print(format_args!("{} {verb} valid: fleet `{}` with {agents}", loaded.name, loaded.fleet.name))?;
    Ok(Exit::SUCCESS)
}

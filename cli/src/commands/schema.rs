use clap::Args;

use crate::Context;
use crate::exit::{CommandResult, Exit};

/// Print the JSON Schema of the fleet file, for editors
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct SchemaArgs {}

pub(crate) fn run(context: &mut Context, SchemaArgs {}: SchemaArgs) -> CommandResult {
    let schema = vm_agent_schemas::fleet::json_schema();
    context.ui.print(format_args!("{:#}", schema.as_value()))?;
    Ok(Exit::SUCCESS)
}

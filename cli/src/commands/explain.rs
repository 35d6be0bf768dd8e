use clap::Args;

use super::document;
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::explain::{Schema, Unknown};
use crate::render;
use crate::ui::OutputArgs;

/// Explain a key of the fleet file
///
/// Its meaning, type, default and example, and what changing it costs. Examples: `explain`, `explain agents.memory`, `explain agents.tasks.exec`, `explain limits.reserve`.
/// Names of agents, profiles and tasks may stand in the path or be left out.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The path of the key; without one, the whole file
    #[arg(value_name = "PATH", default_value = "", hide_default_value = true)]
    path: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(context: &mut Context, args: &ExplainArgs) -> CommandResult {
    let schema = Schema::new(vm_agent_schemas::fleet::json_schema().to_value());
    let found = schema.explain(&args.path).map_err(|unknown| nowhere(&args.path, &unknown))?;
    let whole = document("Explanation", &found);
    context.ui.document(args.output.output, &whole, || render::explain(&found))?;
    Ok(Exit::SUCCESS)
}

fn nowhere(path: &str, unknown: &Unknown) -> CommandError {
    let error = CommandError::new(Exit::NOT_FOUND, format!("the fleet file has no key `{path}`"));
    if unknown.near.is_empty() {
        return error.hint("`vm-agent explain` lists the keys at the top, `vm-agent explain agents` those of an agent");
    }
    let near: Vec<String> = unknown.near.iter().map(|path| format!("`{path}`")).collect();
    error.hint(format!("did you mean {}?", near.join(" or ")))
}

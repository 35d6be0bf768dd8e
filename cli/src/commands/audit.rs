use clap::Args;
use vm_agent_schemas::api::{AuditEntry, List};

use crate::Context;
use crate::client::query;
use crate::exit::{CommandResult, Exit};
use crate::render;
use crate::ui::{Format, OutputArgs};

/// Show who changed what through the API, and who was not allowed to
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Only what came after the entry with this number
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// At most so many; without --after the latest
    #[arg(long, value_name = "COUNT", default_value = "100")]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: AuditArgs) -> CommandResult {
    let client = context.place.client().await?;
    let fields = [("limit", Some(args.limit.to_string())), ("after", args.after.map(|seq| seq.to_string()))];
    let answer = client.get::<List<AuditEntry>>(&query("/audit", &fields)).await?;
    let entries = &answer.content.items;
    if entries.is_empty() && matches!(args.output.output, Format::Table | Format::Wide) {
        context.ui.hint("nobody has changed anything since then")?;
    } else {
        context.ui.document(args.output.output, &answer.raw, || render::audit_table(entries))?;
    }
    Ok(Exit::SUCCESS)
}

use clap::Args;
use vm_agent_schemas::api::{Approval, ApproveRequest, List};

use super::rounds;
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::ui::{Format, OutputArgs};

/// List what waits for a person's yes, of agents and of the file
#[derive(Debug, Args)]
pub(crate) struct ApprovalsArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Say yes to what waits for it
///
/// The yes is to exactly what `vm-agent approvals` shows: when that changes, it is void.
#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    /// The ids, or as much of them as tells them apart
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Change nothing, and show what would be approved
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn list(context: &mut Context, args: ApprovalsArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    let answer = client.get::<List<Approval>>("/approvals").await?;
    let waiting = &answer.content.items;
    if waiting.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.status("Nothing waits for a yes.")?;
    } else {
        context.ui.document(format, &answer.raw, || render::approval_table(waiting))?;
    }
    Ok(Exit::SUCCESS)
}

pub(crate) async fn approve(context: &mut Context, args: ApproveArgs) -> CommandResult {
    let client = context.place.client().await?;
    for dry_run in rounds(args.dry_run, args.ids.len()) {
        for id in &args.ids {
            let request = ApproveRequest { dry_run };
            let answer = client.post::<Approval>(&format!("/approvals/{id}"), &request).await.map_err(unapplied)?;
            if dry_run == args.dry_run {
                let tense = if dry_run { "would be approved" } else { "approved" };
                context.ui.status(format_args!("{tense}: {}", answer.content.what))?;
            }
        }
    }
    Ok(Exit::SUCCESS)
}

/// An id that nothing waits for may be one of a plan that was only looked at.
fn unapplied(error: CommandError) -> CommandError {
    if error.exit != Exit::NOT_FOUND {
        return error;
    }
    error.hint("an id of a plan that is not applied yet waits for nothing: apply the file first, with vm-agent apply")
}

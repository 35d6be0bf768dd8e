use clap::Args;
use jiff::Timestamp;
use vm_agent_schemas::api::{List, RevisionView};

use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::render;
use crate::ui::{Format, OutputArgs};

/// List the fleet files that were accepted, newest first, or print one of them
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The revision whose text to print
    #[arg(value_name = "REV")]
    revision: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: HistoryArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    if let Some(revision) = args.revision {
        let answer = client.get::<RevisionView>(&format!("/fleet/revisions/{revision}")).await?;
        context.ui.document(format, &answer.raw, || render::revision(&answer.content))?;
        return Ok(Exit::SUCCESS);
    }
    let answer = client.get::<List<RevisionView>>("/fleet/revisions").await?;
    let revisions = &answer.content.items;
    if revisions.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.hint("no file was accepted yet; `vm-agent apply` has one accepted")?;
    } else if format == Format::Name {
        context.ui.print(revisions.iter().map(|it| format!("{}\n", it.revision)).collect::<String>())?;
    } else {
        context.ui.document(format, &answer.raw, || render::history(revisions, Timestamp::now()))?;
    }
    Ok(Exit::SUCCESS)
}

use clap::Args;
use jiff::Timestamp;
use vm_agent_schemas::api::DeadLetters;

use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::render;
use crate::ui::{Format, OutputArgs};

/// List the dead letters: tasks and messages that came to nothing and that nobody has decided about
///
/// `task replay` and `message replay` try one again; `task drop` and `message drop` give it up.
#[derive(Debug, Args)]
pub(crate) struct DeadArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: DeadArgs) -> CommandResult {
    let client = context.place.client().await?;
    let answer = client.get::<DeadLetters>("/dead-letters").await?;
    let dead = &answer.content;
    let format = args.output.output;
    if dead.tasks.is_empty() && dead.messages.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.status("There are no dead letters.")?;
    } else {
        context.ui.document(format, &answer.raw, || render::dead_table(dead, Timestamp::now()))?;
        for (kind, is_there) in [("task", !dead.tasks.is_empty()), ("message", !dead.messages.is_empty())] {
            if is_there {
                let (replay, drop) = (format!("vm-agent {kind} replay ID"), format!("vm-agent {kind} drop ID"));
                context.ui.hint(format_args!("`{replay}` tries a {kind} again, `{drop}` gives it up"))?;
            }
        }
    }
    Ok(Exit::SUCCESS)
}

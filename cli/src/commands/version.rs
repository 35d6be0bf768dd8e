use clap::Args;
use vm_agent_schemas::api::{Document, Version};
use vm_agent_schemas::wire::PROTOCOL;

use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::ui::{Format, OutputArgs};

/// Print this program's version, and the controller's where one runs
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: VersionArgs) -> CommandResult {
    let ours = Version { version: env!("CARGO_PKG_VERSION").to_owned(), protocol: PROTOCOL };
    let line = format!("vm-agent {} (protocol {})", ours.version, ours.protocol);
    let format = args.output.output;
    let document = serde_json::to_value(Document::from(ours)).expect("a version can be written as JSON");
    context.ui.document(format, &document, || line)?;
    if !matches!(format, Format::Table | Format::Wide) {
        return Ok(Exit::SUCCESS);
    }
    // That the controller can't be asked does not make our own version unknown.
    let theirs = match context.place.running().await {
        Ok(Some(client)) => client.get::<Version>("/version").await.map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    match theirs {
        Ok(Some(theirs)) => {
            let Version { version, protocol } = theirs.content;
            context.ui.print(format_args!("controller {version} (protocol {protocol})"))?;
        }
        Ok(None) => {}
        Err(error) => context.ui.warn(error)?,
    }
    Ok(Exit::SUCCESS)
}

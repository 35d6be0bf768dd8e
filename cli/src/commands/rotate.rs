use clap::Args;

use super::each;
use crate::Context;
use crate::exit::CommandResult;
use crate::select::{Targets, about};
use crate::ui::Format;

/// Give the runtimes of agents another key
///
/// Each makes itself a new one, which only it knows, and uses it from its next connection on. Nothing is interrupted.
/// For a token of the API it is `vm-agent token rotate`.
#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    targets: Targets,
}

pub(crate) async fn run(context: &mut Context, args: RotateArgs) -> CommandResult {
    let client = context.place.client().await?;
    let names = args.targets.resolve(&client).await?;
    each(context, Format::Table, names, async |context, name| {
        let rotated = client.post_quiet(&format!("/agents/{name}/rotate")).await;
        about(&client, &name, rotated).await?;
        context.ui.status(format_args!("{name}: its runtime has another key from its next connection on"))
    })
    .await
}

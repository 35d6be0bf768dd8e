use clap::Args;
use hyper::Method;
use vm_agent_schemas::api::{ChangeRequest, Changed};
use vm_agent_schemas::names::AgentName;

use super::{finish, rounds};
use crate::Context;
use crate::exit::CommandResult;
use crate::select::{Targets, about};
use crate::settle::{Goal, WaitArgs};
use crate::ui::OutputArgs;

/// Delete agents with their machines and all that is in them
///
/// An agent of the file stays destroyed, as an override, until you create it again.
#[derive(Debug, Args)]
pub(crate) struct DestroyArgs {
    #[command(flatten)]
    targets: Targets,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Why, for everybody who sees the override
    #[arg(long)]
    reason: Option<String>,
    /// Change nothing, and show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: DestroyArgs) -> CommandResult {
    let client = context.place.client().await?;
    let targets = args.targets.resolve(&client).await?;
    if !args.yes && !args.dry_run {
        let names = targets.iter().map(AgentName::as_str).collect::<Vec<_>>().join(" ");
        context.ui.confirm(&format!("this deletes the machines and all data of: {names}"), &names)?;
    }
    let mut request = ChangeRequest { reason: args.reason, ..ChangeRequest::default() };
    let mut changed = Vec::new();
    for dry_run in rounds(args.dry_run, targets.len()) {
        request.dry_run = dry_run;
        changed.clear();
        for name in &targets {
            let answer = client.call::<Changed>(Method::DELETE, &format!("/agents/{name}"), &request).await;
            let answer = about(&client, name, answer).await?;
            changed.push((name.clone(), Goal::Gone, answer));
        }
    }
    finish(context, &client, &changed, &args.wait, args.output.output).await
}

use clap::Args;
use hyper::Method;
use vm_agent_schemas::api::{ChangeRequest, Changed};
use vm_agent_schemas::names::AgentName;

use super::{finish, rounds};
use crate::Context;
use crate::client::{Client, Fetched};
use crate::exit::{CommandError, CommandResult};
use crate::render;
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
    let mut request = ChangeRequest { reason: args.reason, dry_run: true, ..ChangeRequest::default() };
    if !args.yes && !args.dry_run {
        // Where nobody can be asked, there is nothing to find out for the question.
        let would = if context.ui.can_ask() { ask(&client, &targets, &request).await? } else { Vec::new() };
        let steps =
            would.iter().flat_map(|(name, _, it)| it.content.plan.steps.iter().filter(move |s| s.agent == *name));
        let names = targets.iter().map(AgentName::as_str).collect::<Vec<_>>().join(" ");
        let question = format!("this deletes the machines and all data of: {names}{}", render::lost(steps));
        context.ui.confirm(&question, &names)?;
    }
    let mut changed = Vec::new();
    for dry_run in rounds(args.dry_run, targets.len()) {
        request.dry_run = dry_run;
        changed = ask(&client, &targets, &request).await?;
    }
    finish(context, &client, &changed, &args.wait, args.output.output).await
}

/// Asks for agents to go, one after the other.
async fn ask(
    client: &Client,
    targets: &[AgentName],
    request: &ChangeRequest,
) -> Result<Vec<(AgentName, Goal, Fetched<Changed>)>, CommandError> {
    let mut changed = Vec::new();
    for name in targets {
        let answer = client.call::<Changed>(Method::DELETE, &format!("/agents/{name}"), request).await;
        changed.push((name.clone(), Goal::Gone, about(client, name, answer).await?));
    }
    Ok(changed)
}

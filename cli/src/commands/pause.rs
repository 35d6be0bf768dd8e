use clap::Args;
use vm_agent_schemas::api::{ChangeRequest, Changed, Resumable};
use vm_agent_schemas::units::Span;

use super::power::lasting;
use super::rounds;
use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::select::{AnyTargets, about};

/// Let agents, or the whole fleet, be: look and plan, and touch nothing
///
/// Without a name or a selector it is the whole fleet.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// How long [default: until resumed]
    #[arg(long = "for", value_name = "SPAN", value_parser = lasting)]
    lasting: Option<Span>,
}

/// Look after agents, or the whole fleet, again
///
/// Without a name or a selector it is the whole fleet.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    target: TargetArgs,
}

/// What pausing and resuming have in common.
#[derive(Debug, Args)]
struct TargetArgs {
    #[command(flatten)]
    targets: AnyTargets,
    /// Why, for everybody who sees it
    #[arg(long)]
    reason: Option<String>,
    /// Change nothing, and say what would be
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn pause(context: &mut Context, args: PauseArgs) -> CommandResult {
    set(context, args.target, args.lasting, "pause").await
}

pub(crate) async fn resume(context: &mut Context, args: ResumeArgs) -> CommandResult {
    set(context, args.target, None, "resume").await
}

async fn set(context: &mut Context, target: TargetArgs, lasting: Option<Span>, verb: &str) -> CommandResult {
    let client = context.place.client().await?;
    let mut request = ChangeRequest { lasting, sticky: false, reason: target.reason, dry_run: target.dry_run };
    let tense = if target.dry_run { "would be" } else { "is" };
    let Some(names) = target.targets.resolve(&client).await? else {
        let answer = client.post::<Resumable>(&format!("/{verb}"), &request).await?;
        let state = if answer.content.pause.is_some() { "paused" } else { "looked after" };
        context.ui.status(format_args!("the fleet {tense} {state}"))?;
        return Ok(Exit::SUCCESS);
    };
    for dry_run in rounds(target.dry_run, names.len()) {
        request.dry_run = dry_run;
        for name in &names {
            let answer = client.post::<Changed>(&format!("/agents/{name}/{verb}"), &request).await;
            let answer = about(&client, name, answer).await?;
            if dry_run != target.dry_run {
                continue;
            }
            let state = if verb == "pause" { "paused" } else { "looked after" };
            context.ui.status(match &answer.content.overridden {
                Some(_) => format!("{name} {tense} {state}, whatever the file says"),
                None => format!("{name} {tense} {state}, as the file says"),
            })?;
        }
    }
    Ok(Exit::SUCCESS)
}

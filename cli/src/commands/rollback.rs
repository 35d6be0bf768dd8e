use clap::Args;
use vm_agent_schemas::api::{Applied, RollbackRequest};
use vm_agent_schemas::ids::Revision;

use super::apply;
use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::settle::WaitArgs;
use crate::ui::{Format, OutputArgs};

/// Go back to an earlier fleet file: what it said becomes the newest revision
///
/// Shows the plan on stderr, with what it would newly let guests do to the host, goes back, and waits
/// until every agent is as wanted. What would delete machines or their data waits for --yes, or for an
/// answer on a terminal. The file on the disk stays as it is, and is not applied by itself until it
/// changes or you apply it.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The revision, as `vm-agent history` lists it
    #[arg(value_name = "REV")]
    revision: u64,
    /// Change nothing, and show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Say yes to everything in the plan that waits for an approval
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: RollbackArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    let revision = Revision(args.revision);
    let asked = RollbackRequest { revision, plan: None, approve: false, dry_run: true };
    let seen = client.post::<Applied>("/fleet/rollback", &asked).await?;
    let Applied { plan, reach, .. } = &seen.content;
    let yes = format!("vm-agent rollback {revision} --yes");
    if args.dry_run {
        let text = apply::told(&client, plan, reach, (!args.yes).then_some(&yes), format == Format::Wide).await?;
        context.ui.document(format, &seen.raw, || text)?;
        context.ui.status("Nothing was changed.")?;
        return Ok(Exit::SUCCESS);
    }
    context.ui.status(apply::told(&client, plan, reach, (!args.yes).then_some(&yes), false).await?)?;
    let approve = apply::consent(context, plan, args.yes)?;
    let request = RollbackRequest { plan: approve.then(|| plan.id.clone()), approve, dry_run: false, ..asked };
    let answer = client.post::<Applied>("/fleet/rollback", &request).await?;
    if let Some(newest) = answer.content.revision {
        context.ui.status(format_args!("what revision {revision} said is in force now, as revision {newest}"))?;
    }
    apply::see_through(context, &client, &answer, &args.wait, format).await?;
    Ok(Exit::SUCCESS)
}

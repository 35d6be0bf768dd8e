use clap::Args;
use jiff::Timestamp;
use vm_agent_schemas::api::{AgentView, Applied, ApplyRequest, ControllerStatus, List, PlanRequest, PlanView};
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::plan::Plan;

use crate::Context;
use crate::client::{Client, Fetched};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::file::{FileArgs, Loaded};
use crate::render::{self, Planned};
use crate::settle::{WaitArgs, goals_of, settle};
use crate::ui::{Format, OutputArgs};

use super::diff::accepted;
use super::list;

/// The command that says yes to all that waits for it in a plan for a file.
pub(super) const YES: &str = "vm-agent apply --yes";

/// Make the fleet as the file says
///
/// Shows the plan on stderr, has the file accepted, and waits until every agent is as wanted. What
/// would delete machines or their data waits for --yes, or for an answer on a terminal. `vm-agent help
/// plan` says how a plan reads.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Change nothing, and show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Say yes to everything in the plan that waits for an approval
    #[arg(short, long)]
    yes: bool,
    /// End with 2 when there was something to change, with 0 when not
    #[arg(long)]
    detailed_exitcode: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: ApplyArgs) -> CommandResult {
    let loaded = args.file.load()?;
    let client = context.place.client().await?;
    let format = args.output.output;
    if args.dry_run {
        replace(context, &client, &loaded, false).await?;
        let request = ApplyRequest { source: loaded.source, plan: None, approve: false, dry_run: true };
        let answer = client.post::<Applied>("/apply", &request).await?;
        let Applied { plan, reach, .. } = &answer.content;
        let text = told(&client, plan, reach, (!args.yes).then_some(YES), format == Format::Wide).await?;
        context.ui.document(format, &answer.raw, || text)?;
        context.ui.status("Nothing was changed.")?;
        return Ok(exit(args.detailed_exitcode, plan));
    }
    let answer = apply(context, &client, &loaded, args.yes).await?;
    see_through(context, &client, &answer, &args.wait, format).await?;
    Ok(exit(args.detailed_exitcode, &answer.content.plan))
}

/// Waits until every agent is as an accepted file wants it, and shows them.
pub(super) async fn see_through(
    context: &mut Context,
    client: &Client,
    answer: &Fetched<Applied>,
    wait: &WaitArgs,
    format: Format,
) -> Result<(), CommandError> {
    let Applied { revision, plan, .. } = &answer.content;
    let document = matches!(format, Format::Json | Format::Yaml);
    if document {
        context.ui.document(format, &answer.raw, String::new)?;
    }
    let Some(limit) = wait.limit() else { return Ok(()) };
    let settled = settle(&mut context.ui, client, &goals_of(plan, *revision), limit).await;
    let seen = !matches!(&settled, Err(error) if error.exit == Exit::INTERRUPTED);
    if seen && !document {
        list::print(context, client, format).await?;
    }
    settled
}

/// How a command ends that tells with --detailed-exitcode whether there was something to do.
pub(super) fn exit(detailed: bool, plan: &Plan) -> Exit {
    if detailed && !plan.is_empty() { Exit::CHANGES } else { Exit::SUCCESS }
}

/// Tells that a file takes the place of one from elsewhere. That it was merely the nearest one must not put another
/// fleet in the place of one that has machines: that needs a yes.
pub(super) async fn replace(
    context: &mut Context,
    client: &Client,
    loaded: &Loaded,
    asks: bool,
) -> Result<(), CommandError> {
    let Some(replaced) = replaced(context, client, loaded).await? else { return Ok(()) };
    let name = &loaded.name;
    let sentence = format!("{name} replaces {replaced}, which is in force");
    let has_machines = async {
        let agents = client.get::<List<AgentView>>("/agents").await?.content.items;
        Ok::<_, CommandError>(agents.iter().any(|agent| agent.incarnation.is_some()))
    };
    if !asks || loaded.named || !has_machines.await? {
        return context.ui.warn(sentence);
    }
    context.ui.confirm(&sentence, "yes").map_err(|error| {
        error.hint(format!("so does `-f {name}`; a fleet of its own beside the other takes a --state-dir of its own"))
    })
}

/// The files in force, where these are others, from another place.
async fn replaced(context: &mut Context, client: &Client, loaded: &Loaded) -> Result<Option<String>, CommandError> {
    let roots = client.get::<ControllerStatus>("/status").await?.content.file.roots;
    let elsewhere = !roots.is_empty() && !loaded.source.roots.is_empty() && roots != loaded.source.roots;
    // One that was only moved says the same.
    if !elsewhere || accepted(context, client).await?.is_some_and(|fleet| fleet.digest == loaded.fleet.digest) {
        return Ok(None);
    }
    let roots: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
    Ok(Some(roots.join(", ")))
}

/// Shows the plan, asks where something waits for a yes, and has the file accepted.
pub(super) async fn apply(
    context: &mut Context,
    client: &Client,
    loaded: &Loaded,
    yes: bool,
) -> Result<Fetched<Applied>, CommandError> {
    let request = PlanRequest { source: Some(loaded.source.clone()) };
    let PlanView { plan, reach } = client.post::<PlanView>("/plan", &request).await?.content;
    context.ui.status(told(client, &plan, &reach, (!yes).then_some(YES), false).await?)?;
    replace(context, client, loaded, !yes).await?;
    let approve = consent(context, &plan, yes)?;
    // A yes is to what was shown, so it holds for this plan only. Without one the file is accepted
    // whatever has happened meanwhile: the loop plans anew anyway.
    let request =
        ApplyRequest { source: loaded.source.clone(), plan: approve.then_some(plan.id), approve, dry_run: false };
    client.post("/apply", &request).await
}

/// A plan as text, with the overrides that it reckons with.
pub(super) async fn told(
    client: &Client,
    plan: &Plan,
    reach: &[String],
    yes: Option<&str>,
    wide: bool,
) -> Result<String, CommandError> {
    let overrides = client.get::<List<Override>>("/overrides").await?.content.items;
    Ok(render::plan(&Planned { plan, overrides: &overrides, reach, yes, wide, now: Timestamp::now() }))
}

/// Whether there is a yes to what waits for one in a plan that was shown.
pub(super) fn consent(context: &mut Context, plan: &Plan, yes: bool) -> Result<bool, CommandError> {
    let open = !plan.approvals.is_empty();
    let approve = open && (yes || asked(context)?);
    if open && !approve {
        context.ui.warn("what waits for a yes is left as it is; all else is done")?;
    }
    Ok(approve)
}

/// Asks for the yes where somebody is there to give it. Nobody there is a no.
fn asked(context: &mut Context) -> Result<bool, CommandError> {
    if !context.ui.can_ask() {
        return Ok(false);
    }
    match context.ui.confirm("say yes to what waits for it", "yes") {
        Ok(()) => Ok(true),
        Err(error) if error.exit == Exit::FAILURE && !error.is_silent() => Ok(false),
        Err(error) => Err(error),
    }
}

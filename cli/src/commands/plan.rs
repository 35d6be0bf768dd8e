use clap::Args;
use serde_json::Value;
use vm_agent_schemas::api::{Document, PlanRequest, PlanView};
use vm_agent_schemas::plan::Plan;

use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::file::FileArgs;
use crate::render;
use crate::ui::{Format, OutputArgs};

/// Show what would be done, and do nothing
///
/// Without a file, here or named, it plans for the one that the controller has accepted. Without a
/// controller, it plans as if nothing existed yet.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    file: FileArgs,
    /// End with 2 when there is something to do, with 0 when not
    #[arg(long)]
    detailed_exitcode: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: PlanArgs) -> CommandResult {
    let format = args.output.output;
    let (raw, plan) = made(context, &args.file).await?;
    if format == Format::Name {
        let names = plan.steps.iter().map(|step| format!("{}\n", step.agent));
        context.ui.print(names.collect::<String>())?;
    } else {
        context.ui.document(format, &raw, || render::plan(&plan, format == Format::Wide))?;
    }
    Ok(super::apply::exit(args.detailed_exitcode, &plan))
}

async fn made(context: &mut Context, file: &FileArgs) -> Result<(Value, Plan), CommandError> {
    if let Some(client) = context.place.running().await? {
        let source = file.load_if_any()?.map(|loaded| loaded.source);
        let answer = client.post::<PlanView>("/plan", &PlanRequest { source }).await?;
        return Ok((answer.raw, answer.content.plan));
    }
    let loaded = file.load()?;
    context.ui.status("no controller runs, so this is the plan for a fleet of which nothing exists yet")?;
    let view = PlanView { plan: offline(&loaded.fleet)? };
    let raw = serde_json::to_value(Document::from(view.clone())).expect("a plan can be written as JSON");
    Ok((raw, view.plan))
}

/// The plan for a fleet of which nothing exists yet.
fn offline(_: &vm_agent_schemas::fleet::Fleet) -> Result<Plan, CommandError> {
    Err(CommandError::new(Exit::FAILURE, "planning without a controller is not built in"))
}

use clap::Args;
use jiff::Timestamp;
use vm_agent_schemas::api::{PlanRequest, PlanView};
use vm_agent_schemas::fleet::Fleet;
use vm_agent_schemas::plan::Plan;

use super::apply::{YES, exit, replace, told};
use super::document;
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::file::FileArgs;
use crate::render::{self, Planned};
use crate::ui::{Format, OutputArgs};

/// How a plan reads.
const LEGEND: &str = "\
Each line of a plan is a step, with its reason and what it takes:
  + create      - destroy     -/+ replace: delete, and make anew
  ^ start       v stop        * resize, with a restart where the machine runs
  ~ in place    ! waits, and for what
Below it stand the values that change, and where each new one comes from. The last line counts agents.";

/// Show what would be done, and do nothing
///
/// Without a file, here or named, it plans for the one that the controller has accepted. Without a
/// controller, it plans from what the state folder knows.
#[derive(Debug, Args)]
#[command(after_long_help = LEGEND)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    file: FileArgs,
    /// End with 2 when there is something to do, with 0 when not, and with 1 on any error
    #[arg(long)]
    detailed_exitcode: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: PlanArgs) -> CommandResult {
    let detailed = args.detailed_exitcode;
    let shown = show(context, args).await;
    // A script that tells 0 from 2 takes every other number for something else than an error.
    shown.map_err(|mut error| {
        if detailed {
            error.exit = Exit::FAILURE;
        }
        error
    })
}

async fn show(context: &mut Context, args: PlanArgs) -> CommandResult {
    let format = args.output.output;
    let wide = format == Format::Wide;
    let (raw, plan, text) = match context.place.running().await? {
        Some(client) => {
            let loaded = args.file.load_if_any()?;
            if let Some(loaded) = &loaded {
                replace(context, &client, loaded, false).await?;
            }
            let source = loaded.map(|loaded| loaded.source);
            let answer = client.post::<PlanView>("/plan", &PlanRequest { source }).await?;
            let PlanView { plan, reach } = answer.content;
            let text = told(&client, &plan, &reach, Some(YES), wide).await?;
            (answer.raw, plan, text)
        }
        None => {
            let loaded = args.file.load()?;
            context.ui.status("no controller runs, so this plan is made from what its state folder knows")?;
            let plan = offline(context, loaded.fleet).await?;
            let planned =
                Planned { plan: &plan, overrides: &[], reach: &[], yes: Some(YES), wide, now: Timestamp::now() };
            (document("Plan", &plan), plan.clone(), render::plan(&planned))
        }
    };
    if format == Format::Name {
        let names = plan.steps.iter().map(|step| format!("{}\n", step.agent));
        context.ui.print(names.collect::<String>())?;
    } else {
        context.ui.document(format, &raw, || text)?;
    }
    Ok(exit(args.detailed_exitcode, &plan))
}

/// The plan that a controller would make if it ran.
pub(super) async fn offline(context: &Context, fleet: Fleet) -> Result<Plan, CommandError> {
    let program = std::env::current_exe()
        .map_err(|error| CommandError::io("the path of this program can't be found out", &error))?;
    let state_dir = context.place.here("vm-agent plan without a controller")?.to_owned();
    let options = vm_agent_daemon::Options {
        state_dir,
        hub: fleet.hub.clone(),
        fleet: Some(fleet.name.clone()),
        program,
        up: false,
        expects_file: false,
        watch: false,
    };
    vm_agent_daemon::plan_offline(options, fleet).await.map_err(|error| CommandError::from_daemon(&error))
}

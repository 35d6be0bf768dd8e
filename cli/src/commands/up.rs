use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use tokio::time::{sleep, timeout};
use vm_agent_schemas::api::Alive;
use vm_agent_schemas::units::Span;

use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::file::{FileArgs, Loaded};
use crate::launch::launch;
use crate::locate::{Local, find};
use crate::settle::{goals_of, settle};
use crate::ui::{Format, OutputArgs};

use super::{apply, events, list};

/// How long a killed process may take until its sockets are closed.
const DYING: Duration = Duration::from_millis(500);

/// Bring a fleet up: start its controller if none runs, apply the file, wait until all is well
///
/// On a terminal it then follows events until Ctrl-C; the fleet goes on without it. Your own `up` is
/// the go-ahead for everything in the file but what deletes machines or their data, which needs --yes.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    file: FileArgs,
    /// End after the table, even on a terminal
    #[arg(short, long)]
    detach: bool,
    /// Say yes to everything in the plan that waits for an approval
    #[arg(short, long)]
    yes: bool,
    /// A controller that this starts does not watch the file: a change takes effect with `vm-agent apply`
    #[arg(long)]
    no_watch: bool,
    /// How long to wait until every agent is as wanted
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    timeout: Span,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: UpArgs) -> CommandResult {
    let loaded = args.file.load()?;
    let Local { file, client } = controller(context, &loaded, !args.no_watch).await?;
    context.ui.status(format_args!(
        "controller of fleet `{}`: process {}, dashboard http://{}/",
        file.fleet, file.pid, file.addresses.dashboard
    ))?;
    let applied = apply::apply(context, &client, &loaded, args.yes).await?.content;
    let goals = goals_of(&applied.plan, applied.revision);
    let settled = settle(&mut context.ui, &client, &goals, args.timeout).await;
    if !matches!(&settled, Err(error) if error.exit == Exit::INTERRUPTED) {
        list::print(context, &client, args.output.output).await?;
    }
    settled?;
    let watched = std::io::stdout().is_terminal() && matches!(args.output.output, Format::Table | Format::Wide);
    if watched && !args.detach {
        follow(context, &client).await?;
    }
    Ok(Exit::SUCCESS)
}

/// The controller of this fleet, started if none runs.
async fn controller(context: &mut Context, loaded: &Loaded, watch: bool) -> Result<Local, CommandError> {
    let state_dir = context.place.here("vm-agent up")?.to_owned();
    let mut found = find(&state_dir).await?;
    if let Some(local) = &found
        && let Ok(Err(_)) = timeout(DYING, local.client.get::<Alive>("/health")).await
    {
        // One that was killed this very moment still takes connections, and answers none.
        sleep(DYING).await;
        found = find(&state_dir).await?;
    }
    let Some(local) = found else {
        context.ui.status(format_args!("starting a controller on {}", state_dir.display()))?;
        let program = std::env::current_exe()
            .map_err(|error| CommandError::io("the path of this program can't be found out", &error))?;
        return launch(&program, &state_dir, &loaded.fleet, watch).await;
    };
    if local.file.fleet == loaded.fleet.name {
        return Ok(local);
    }
    let (running, wanted) = (&local.file.fleet, &loaded.fleet.name);
    let sentence = format!(
        "the controller on {} looks after fleet `{running}`, and the file ({}) is of fleet `{wanted}`",
        state_dir.display(),
        loaded.name
    );
    Err(CommandError::new(Exit::CONFLICT, sentence)
        .hint("give this fleet a state folder of its own with --state-dir, or bring the other down first"))
}

async fn follow(context: &mut Context, client: &crate::client::Client) -> Result<(), CommandError> {
    context.ui.status("following events; Ctrl-C detaches, and the fleet goes on")?;
    let stream = events::from_now(client).await?;
    tokio::select! {
        result = events::follow(context, stream, false) => return result,
        _ = tokio::signal::ctrl_c() => {}
    }
    context.ui.status("\ndetached; the fleet goes on; `vm-agent down` stops it")
}

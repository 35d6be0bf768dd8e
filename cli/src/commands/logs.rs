use clap::Args;
use vm_agent_schemas::api::LogPage;
use vm_agent_schemas::names::AgentName;

use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::launch::LOG_FILE;
use crate::select::about;

/// Show the log of an agent's runtime
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The agent
    name: Option<AgentName>,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to show
    #[arg(long, value_name = "COUNT", default_value = "100")]
    tail: usize,
}

pub(crate) async fn run(context: &mut Context, args: LogsArgs) -> CommandResult {
    let name = args.name.ok_or_else(|| no_name(context))?;
    let client = context.place.client().await?;
    let path = format!("/agents/{name}/logs?tail={}", args.tail);
    if !args.follow {
        let page = about(&client, &name, client.get::<LogPage>(&path).await).await?.content;
        print(context, &page)?;
        return Ok(Exit::SUCCESS);
    }
    let mut stream = about(&client, &name, client.stream(&(path + "&follow=true")).await).await?;
    while let Some(message) = stream.next().await? {
        if message.kind == "dropped" {
            context
                .ui
                .warn(format_args!("{} lines are left out: they came faster than they could be shown", message.data))?;
            continue;
        }
        let page: LogPage = serde_json::from_str(&message.data).map_err(|error| {
            CommandError::new(Exit::FAILURE, format!("a page of the log is not understood: {error}"))
        })?;
        print(context, &page)?;
    }
    Err(CommandError::new(Exit::UNREACHABLE, "the controller went away"))
}

/// That an agent has to be named, and where to read the controller's own log, which may be meant.
fn no_name(context: &Context) -> CommandError {
    let error = CommandError::new(Exit::USAGE, "name the agent whose log to show: vm-agent logs NAME");
    match context.place.here("vm-agent logs") {
        Ok(folder) => error.hint(format!(
            "the log of a controller that `vm-agent up` started is {}; any other writes it to its stderr",
            folder.join(LOG_FILE).display()
        )),
        Err(_) => error,
    }
}

fn print(context: &mut Context, page: &LogPage) -> Result<(), CommandError> {
    context.ui.print(page.lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

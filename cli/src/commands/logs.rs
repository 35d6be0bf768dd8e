use clap::Args;
use vm_agent_schemas::api::LogPage;
use vm_agent_schemas::names::AgentName;

use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};

/// Show the log of an agent's runtime
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The agent
    name: AgentName,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to show
    #[arg(long, value_name = "COUNT", default_value = "100")]
    tail: usize,
}

pub(crate) async fn run(context: &mut Context, args: LogsArgs) -> CommandResult {
    let client = context.place.client().await?;
    let path = format!("/agents/{}/logs?tail={}", args.name, args.tail);
    if !args.follow {
        let page = client.get::<LogPage>(&path).await?.content;
        print(context, &page)?;
        return Ok(Exit::SUCCESS);
    }
    let mut stream = client.stream(&(path + "&follow=true")).await?;
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

fn print(context: &mut Context, page: &LogPage) -> Result<(), CommandError> {
    context.ui.print(page.lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

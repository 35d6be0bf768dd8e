use clap::Args;
use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::api::{AgentView, List, LogPage};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::units::Span;

use crate::Context;
use crate::client::query;
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
    /// Only lines that are not older than that, such as 10m
    #[arg(long, value_name = "SPAN")]
    since: Option<Span>,
}

pub(crate) async fn run(context: &mut Context, args: LogsArgs) -> CommandResult {
    let Some(name) = args.name else { return Err(no_name(context).await) };
    let since = args.since.map(|span| before(Timestamp::now(), span));
    let path = |follow: bool| {
        let fields = [
            ("tail", Some(args.tail.to_string())),
            ("since", since.map(|at| at.to_string())),
            ("follow", follow.then(|| "true".to_owned())),
        ];
        query(&format!("/agents/{name}/logs"), &fields)
    };
    let client = context.place.client().await?;
    if !args.follow {
        let page = about(&client, &name, client.get::<LogPage>(&path(false)).await).await?.content;
        print(context, &page)?;
        return Ok(Exit::SUCCESS);
    }
    let mut stream = about(&client, &name, client.stream(&path(true)).await).await?;
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

/// The moment that was so long ago; the first of all where that was before it.
fn before(now: Timestamp, span: Span) -> Timestamp {
    let span = SignedDuration::try_from(span.get()).ok();
    span.and_then(|span| now.checked_sub(span).ok()).unwrap_or(Timestamp::MIN)
}

/// That an agent has to be named, which there are, and where to read the controller's own log, which may be meant.
async fn no_name(context: &Context) -> CommandError {
    let mut error = CommandError::new(Exit::USAGE, "name the agent whose log to show: vm-agent logs NAME");
    // Where no controller answers there is nothing to name.
    if let Ok(Some(client)) = context.place.running().await
        && let Ok(agents) = client.get::<List<AgentView>>("/agents").await
        && !agents.content.items.is_empty()
    {
        let names: Vec<&str> = agents.content.items.iter().map(|agent| agent.name.as_str()).collect();
        error = error.hint(format!("there are {}", names.join(", ")));
    }
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

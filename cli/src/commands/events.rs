use clap::Args;
use vm_agent_schemas::api::{AgentView, List};
use vm_agent_schemas::event::Event;
use vm_agent_schemas::names::AgentName;

use crate::Context;
use crate::client::{Client, SseStream};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::about;
use crate::ui::{Format, OutputArgs};

/// Show what happened
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only those of this agent
    name: Option<AgentName>,
    /// Go on with what happens, until Ctrl-C; with `-o json` one document a line
    #[arg(short, long)]
    follow: bool,
    /// Only events after the one with this number
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
    /// At most so many events; without --since the latest
    #[arg(long, value_name = "COUNT", default_value = "100")]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: EventsArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    if args.follow {
        let stream = client.stream(&(path(args.name.as_ref(), args.since, args.limit) + "&follow=true")).await?;
        follow(context, stream, format == Format::Json).await?;
        return Ok(Exit::SUCCESS);
    }
    let answer = client.get::<List<Event>>(&path(args.name.as_ref(), args.since, args.limit)).await?;
    if let Some(name) = args.name.as_ref().filter(|_| answer.content.items.is_empty()) {
        // Nothing happened to it, or there never was one.
        about(&client, name, client.get::<AgentView>(&format!("/agents/{name}")).await).await?;
    }
    let lines = || answer.content.items.iter().map(|event| render::event(event) + "\n").collect();
    context.ui.document(format, &answer.raw, lines)?;
    Ok(Exit::SUCCESS)
}

fn path(of: Option<&AgentName>, since: Option<u64>, limit: usize) -> String {
    let of = of.map_or_else(String::new, |agent| format!("&agent={agent}"));
    let since = since.map_or_else(String::new, |since| format!("&since={since}"));
    format!("/events?limit={limit}{of}{since}")
}

/// Events from now on, without any of before.
pub(super) async fn from_now(client: &Client) -> Result<SseStream, CommandError> {
    let last = client.get::<List<Event>>(&path(None, None, 1)).await?.content.items.pop();
    client.stream(&(path(None, Some(last.map_or(0, |event| event.seq)), 1) + "&follow=true")).await
}

/// Prints events as they come, until the controller goes away.
pub(super) async fn follow(context: &mut Context, mut stream: SseStream, json: bool) -> Result<(), CommandError> {
    while let Some(message) = stream.next().await? {
        if message.kind != "message" {
            continue;
        }
        let event: Event = serde_json::from_str(&message.data)
            .map_err(|error| CommandError::new(Exit::FAILURE, format!("an event is not understood: {error}")))?;
        if json {
            context.ui.print(&message.data)?;
        } else {
            context.ui.print(render::event(&event))?;
        }
    }
    Err(CommandError::new(Exit::UNREACHABLE, "the controller went away"))
}

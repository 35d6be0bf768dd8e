use std::collections::BTreeSet;
use std::io::Read as _;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::timeout;
use vm_agent_schemas::api::{List, MessageRequest, MessageTo};
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{Message, MessageState, Post};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::Address;

use super::each;
use crate::Context;
use crate::client::{Client, SseStream, query};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::select::about;
use crate::ui::{Format, OutputArgs};
use crate::{ids, render};

/// Send messages to programs in agents, and read theirs
///
/// Programs in an agent take their messages with `vm-agent-runtime message receive` and send some with `message
/// send`; where the driver is `local` that program is called `vm-agent runtime`. A message is taken once it lies on the
/// disk of the agent's runtime: there it waits until a program asks for it.
#[derive(Debug, Args)]
pub(crate) struct MessageArgs {
    #[command(subcommand)]
    command: MessageCommand,
}

#[derive(Debug, Subcommand)]
enum MessageCommand {
    Send(SendArgs),
    Ls(LsArgs),
    Dead(DeadArgs),
    /// Send dead letters again
    Replay(IdsArgs),
    /// Give dead letters up
    Drop(IdsArgs),
}

/// Send a message
///
/// The body is JSON where it is JSON, else a text; `-` reads it from stdin. Whoever is away gets it when it is back.
#[derive(Debug, Args)]
#[command(override_usage = "vm-agent message send [OPTIONS] NAME SUBJECT [BODY|-]\n       \
                            vm-agent message send [OPTIONS] {-l SELECTOR|--all} SUBJECT [BODY|-]")]
struct SendArgs {
    /// The agent (without -l and --all), the subject, and the body
    #[arg(required = true, num_args = 1..=3, value_name = "WORD")]
    words: Vec<String>,
    /// To each agent with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "all")]
    selector: Option<Selector>,
    /// To each agent
    #[arg(long)]
    all: bool,
    /// Take the body as a text, even where it is JSON
    #[arg(long)]
    text: bool,
    /// The message that it answers
    #[arg(long, value_name = "ID", value_parser = ids::message)]
    reply_to: Option<MessageId>,
    /// How long it may wait until the agent's runtime has it; later it is a dead letter [default: 24h]
    #[arg(long, value_name = "SPAN")]
    ttl: Option<Span>,
    /// Wait that long for the answer, and print its body
    #[arg(long, value_name = "SPAN")]
    wait: Option<Span>,
    #[command(flatten)]
    output: OutputArgs,
}

/// List messages: those to the host, or those of one agent
#[derive(Debug, Args)]
#[command(visible_alias = "list")]
struct LsArgs {
    /// Those from and to this agent [default: those to the host]
    #[arg(value_name = "NAME")]
    agent: Option<AgentName>,
    /// Go on with what comes, until Ctrl-C; with `-o json` one document a line
    #[arg(short, long)]
    follow: bool,
    /// Only those after this one
    #[arg(long, value_name = "ID", value_parser = ids::message)]
    after: Option<MessageId>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value = "100")]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// List the messages that are dead letters
#[derive(Debug, Args)]
struct DeadArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Messages by their ids.
#[derive(Debug, Args)]
struct IdsArgs {
    /// The messages: their ids, or as much of them as tells them apart
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

pub(crate) async fn run(context: &mut Context, args: MessageArgs) -> CommandResult {
    match args.command {
        MessageCommand::Send(args) => send(context, args).await,
        MessageCommand::Ls(args) => list(context, args).await,
        MessageCommand::Dead(args) => dead(context, args.output.output).await,
        MessageCommand::Replay(args) => {
            let client = context.place.client().await?;
            each(context, Format::Table, args.ids, async |context, word| {
                let id = ids::dead_message(&client, &word).await?;
                let again = client.ask::<List<Message>>(&format!("/messages/{id}/replay")).await?.content.items;
                for message in again {
                    context.ui.print(message.id)?;
                    context.ui.status(format_args!("message {id} is sent to {} again", message.to))?;
                }
                Ok(())
            })
            .await
        }
        MessageCommand::Drop(args) => {
            let client = context.place.client().await?;
            each(context, Format::Table, args.ids, async |context, word| {
                let id = ids::dead_message(&client, &word).await?;
                client.delete(&format!("/messages/{id}/dead")).await?;
                context.ui.status(format_args!("message {id} is given up"))
            })
            .await
        }
    }
}

async fn send(context: &mut Context, args: SendArgs) -> CommandResult {
    let (to, subject, words) = addressed(args.words, args.selector, args.all)?;
    let body = body(words, args.text)?;
    let ttl_ms = args.ttl.map(|span| u64::try_from(span.get().as_millis()).unwrap_or(u64::MAX));
    let id = MessageId::generate();
    let post = Post { subject, body, in_reply_to: args.reply_to, ttl_ms };
    let request = MessageRequest { to: to.clone(), post, id: Some(id) };
    let client = context.place.client().await?;
    // Opened before it is sent: an answer can't come unheard.
    let answers = match args.wait {
        Some(span) => Some((client.stream(&follow_path(None)).await?, span)),
        None => None,
    };
    let sent = client.post::<List<Message>>("/messages", &request).await;
    let sent = match &to {
        MessageTo::Agent(name) => about(&client, name, sent).await?,
        MessageTo::Each(_) | MessageTo::All => sent?,
    };
    let mut from = BTreeSet::new();
    for Message { to, state, .. } in &sent.content.items {
        match state {
            MessageState::Dead { reason, .. } => context.ui.warn(format_args!("{to} does not get it: {reason}"))?,
            MessageState::Waiting | MessageState::Taken { .. } => drop(from.insert(to.clone())),
        }
    }
    let Some((stream, span)) = answers else {
        let shown = || format!("{id}\n");
        context.ui.document(args.output.output, &sent.raw, shown)?;
        return Ok(Exit::SUCCESS);
    };
    context.ui.status(format_args!("message {id} is sent"))?;
    print_answers(context, stream, id, from, span, args.output.output).await
}

/// Whom a message is for, its subject, and what stands for its body.
fn addressed(
    words: Vec<String>,
    selector: Option<Selector>,
    all: bool,
) -> Result<(MessageTo, String, Option<String>), CommandError> {
    let usage = |what: &str| {
        CommandError::new(Exit::USAGE, what)
            .hint("vm-agent message send NAME SUBJECT [BODY], or -l SELECTOR or --all for NAME")
    };
    let mut words = words.into_iter();
    let to = match (selector, all) {
        (Some(selector), _) => MessageTo::Each(selector),
        (None, true) => MessageTo::All,
        (None, false) => {
            let name = words.next().unwrap_or_default();
            MessageTo::Agent(name.parse().map_err(|error| usage(&format!("{error}")))?)
        }
    };
    let subject = words.next().ok_or_else(|| usage("there is no subject"))?;
    let body = words.next();
    match words.next() {
        Some(more) => Err(usage(&format!("`{more}` is one word too many; put the body in quotes"))),
        None => Ok((to, subject, body)),
    }
}

/// What a message says: nothing, JSON, or a text.
fn body(word: Option<String>, as_text: bool) -> Result<Value, CommandError> {
    let text = match word {
        None => return Ok(Value::Null),
        Some(word) if word == "-" => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).map_err(|error| {
                CommandError::new(Exit::USAGE, format!("the body can't be read from stdin: {error}"))
            })?;
            text
        }
        Some(word) => word,
    };
    if as_text {
        return Ok(Value::String(text));
    }
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Prints the answers of these receivers, or gives up after a while.
async fn print_answers(
    context: &mut Context,
    mut stream: SseStream,
    id: MessageId,
    mut from: BTreeSet<Address>,
    span: Span,
    format: Format,
) -> CommandResult {
    let answered = async {
        while !from.is_empty() {
            let message = next(&mut stream).await?;
            if message.in_reply_to == Some(id) && from.remove(&message.from) {
                print_one(context, &message, format)?;
            }
        }
        Ok(Exit::SUCCESS)
    };
    let interrupted = tokio::signal::ctrl_c();
    let limited = timeout(span.get(), answered);
    let error = tokio::select! {
        result = limited => match result {
            Ok(result) => return result,
            Err(_) => CommandError::new(Exit::TIMED_OUT, format!("no answer within {span}; one may still come")),
        },
        _ = interrupted => CommandError::new(Exit::INTERRUPTED, "detached; an answer may still come"),
    };
    Err(error.hint("`vm-agent message ls` shows what came"))
}

/// For people and scripts an answer is its body; a text is printed as it is.
fn print_one(context: &mut Context, message: &Message, format: Format) -> Result<(), CommandError> {
    match format {
        Format::Table | Format::Wide => match &message.body {
            Value::String(text) => context.ui.print(text),
            other => context.ui.print(other),
        },
        _ => {
            let document = super::document("Message", message);
            context.ui.document(format, &document, String::new)
        }
    }
}

fn follow_path(after: Option<MessageId>) -> String {
    let after = after.map(|id| id.to_string());
    query("/messages", &[("box", Some("host".to_owned())), ("after", after), ("follow", Some("true".to_owned()))])
}

/// The next message of a stream.
async fn next(stream: &mut SseStream) -> Result<Message, CommandError> {
    while let Some(event) = stream.next().await? {
        if let Some(message) = read(&event.kind, &event.data)? {
            return Ok(message);
        }
    }
    Err(CommandError::new(Exit::UNREACHABLE, "the controller went away"))
}

fn read(kind: &str, data: &str) -> Result<Option<Message>, CommandError> {
    if kind != "message" {
        return Ok(None);
    }
    let odd = |error| CommandError::new(Exit::FAILURE, format!("a message is not understood: {error}"));
    serde_json::from_str(data).map(Some).map_err(odd)
}

async fn list(context: &mut Context, args: LsArgs) -> CommandResult {
    let client = context.place.client().await?;
    let format = args.output.output;
    let fields = [
        ("box", args.agent.is_none().then(|| "host".to_owned())),
        ("agent", args.agent.as_ref().map(ToString::to_string)),
        ("after", args.after.map(|id| id.to_string())),
        ("limit", Some(args.limit.to_string())),
        ("follow", args.follow.then(|| "true".to_owned())),
    ];
    let path = query("/messages", &fields);
    if args.follow {
        return follow(context, client.stream(&path).await, &client, args.agent.as_ref(), format).await;
    }
    let answer = client.get::<List<Message>>(&path).await;
    let answer = match &args.agent {
        Some(name) => about(&client, name, answer).await?,
        None => answer?,
    };
    let messages = &answer.content.items;
    if messages.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.hint("there are no such messages")?;
    } else {
        context.ui.document(format, &answer.raw, || render::message_table(messages, Timestamp::now()))?;
    }
    Ok(Exit::SUCCESS)
}

async fn follow(
    context: &mut Context,
    stream: Result<SseStream, CommandError>,
    client: &Client,
    agent: Option<&AgentName>,
    format: Format,
) -> CommandResult {
    let mut stream = match agent {
        Some(name) => about(client, name, stream).await?,
        None => stream?,
    };
    loop {
        let message = next(&mut stream).await?;
        if format == Format::Json {
            context.ui.print(super::document("Message", &message))?;
        } else {
            context.ui.print(render::message_line(&message))?;
        }
    }
}

async fn dead(context: &mut Context, format: Format) -> CommandResult {
    let client = context.place.client().await?;
    let messages = client.get::<vm_agent_schemas::api::DeadLetters>("/dead-letters").await?.content.messages;
    let dead: Vec<Message> =
        messages.into_iter().filter(|message| matches!(message.state, MessageState::Dead { .. })).collect();
    if dead.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.status("No message is a dead letter.")?;
        return Ok(Exit::SUCCESS);
    }
    let document = super::document("MessageList", List { items: dead.clone() });
    context.ui.document(format, &document, || render::message_table(&dead, Timestamp::now()))?;
    Ok(Exit::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(
        words: &[&str],
        selector: Option<&str>,
        all: bool,
    ) -> Result<(MessageTo, String, Option<String>), String> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        addressed(words, selector.map(|it| it.parse().unwrap()), all).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_word_is_the_agent_unless_labels_name_them() {
        let web = MessageTo::Agent("web".parse().unwrap());
        assert_eq!(parsed(&["web", "build"], None, false), Ok((web.clone(), "build".into(), None)));
        assert_eq!(parsed(&["web", "build", "{}"], None, false), Ok((web, "build".into(), Some("{}".into()))));
        let each = MessageTo::Each("team=web".parse().unwrap());
        assert_eq!(parsed(&["build", "{}"], Some("team=web"), false), Ok((each, "build".into(), Some("{}".into()))));
        assert_eq!(parsed(&["build"], None, true), Ok((MessageTo::All, "build".into(), None)));
        assert_eq!(parsed(&["web"], None, false), Err("there is no subject".into()));
        assert!(parsed(&["a", "b", "c"], None, true).unwrap_err().contains("one word too many"));
        assert!(parsed(&["No Name", "b"], None, false).is_err());
    }

    #[test]
    fn a_body_is_json_where_it_is_json() {
        let body = |word: &str, text| super::body(Some(word.to_owned()), text).unwrap();
        assert_eq!(body(r#"{"ref": "main"}"#, false), json!({"ref": "main"}));
        assert_eq!(body("5", false), json!(5));
        assert_eq!(body("5", true), json!("5"));
        assert_eq!(body("hello there", false), json!("hello there"));
        assert_eq!(super::body(None, false).unwrap(), Value::Null);
    }
}

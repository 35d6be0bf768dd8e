use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use tokio::io::{self, AsyncRead, AsyncWrite};
use tokio::time::sleep;
use vm_agent_schemas::api::AgentView;
use vm_agent_schemas::ids::TerminalId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{StreamTarget, TaskOutcome, TerminalReport};

use super::document;
use super::exec::{RunArgs, exit_of};
use crate::Context;
use crate::client::{Client, Console, Control};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::about;
use crate::terminal::{self, KEYS, RawMode, notice};
use crate::ui::{Format, OutputArgs};

/// First and longest pause before a lost terminal is attached to again.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Open a terminal in an agent
///
/// The user's own shell, or a command after `--`. The terminal outlives this program: Enter ~ . leaves it
/// running, and --attach comes back to it. When the connection is lost it is attached to again by itself.
/// Ends with the exit code of what ran in it, with 0 when you left it, and with 255 when it was lost.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ShellArgs {
    #[command(subcommand)]
    command: Option<ShellCommand>,
    /// The agent
    #[arg(required = true, value_name = "NAME")]
    name: Option<AgentName>,
    /// Come back to a terminal that is kept: the one with this id or the end of it, else the latest that nobody is
    /// attached to. Whoever is attached to it is detached
    #[arg(long, value_name = "ID", num_args = 0..=1, conflicts_with_all = ["env", "workdir", "user", "command"])]
    attach: Option<Option<String>>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum ShellCommand {
    /// List the terminals that an agent keeps
    #[command(visible_alias = "list")]
    Ls {
        /// The agent
        name: AgentName,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// The terminals of an agent, as a document.
#[derive(Serialize)]
struct Terminals<'a> {
    items: &'a [TerminalReport],
}

pub(crate) async fn run(context: &mut Context, args: ShellArgs) -> CommandResult {
    let name = match (args.command, args.name) {
        (Some(ShellCommand::Ls { name, output }), _) => return list(context, &name, output.output).await,
        (None, name) => name.expect("clap has seen to it that there is a name or a subcommand"),
    };
    terminal::require("scripts run commands: vm-agent exec NAME -i -- COMMAND").map_err(CommandError::of_exec)?;
    open(context, &name, args.attach, args.run).await.map_err(CommandError::of_exec)
}

async fn open(context: &mut Context, name: &AgentName, attach: Option<Option<String>>, args: RunArgs) -> CommandResult {
    let client = context.place.client().await?;
    let (terminal, target) = match attach {
        Some(wanted) => {
            let terminal = choose(&terminals(&client, name).await?, wanted.as_deref(), name)?;
            (terminal, StreamTarget::Attach { terminal, offset: 0, size: terminal::size() })
        }
        None => {
            let (terminal, mut run) = (TerminalId::generate(), args.into_run());
            run.env = terminal::environment().chain(run.env).collect();
            (terminal, StreamTarget::Terminal { run, size: terminal::size(), keep: Some(terminal) })
        }
    };
    context.ui.status(format_args!("{KEYS} leaves this terminal running; Enter ~ ~ types a ~"))?;
    let (keys, controls) = terminal::hand_over(io::stdin())?;
    let mut console = Console::new(Some(keys), io::stdout(), io::stderr(), controls);
    let stayed = {
        let _raw = RawMode::enter()?;
        stay(&client, name, terminal, target, &mut console).await
    };
    // What has written nothing has left nothing behind.
    if !matches!(stayed, Ok(Some(_))) && console.written() > 0 {
        terminal::put_right();
    }
    let stayed = about(&client, name, stayed).await?;
    let Some(outcome) = stayed else {
        context.ui.status("\nleft; the terminal goes on")?;
        context.ui.hint(format_args!("`vm-agent shell {name} --attach {terminal}` comes back to it"))?;
        return Ok(Exit::SUCCESS);
    };
    exit_of(&outcome)
}

/// Stays in a terminal until it ends, or until the person leaves: then there is no outcome. A connection that
/// is lost is made again, for as long as the person waits for it.
async fn stay<I, O, E>(
    client: &Client,
    name: &AgentName,
    terminal: TerminalId,
    first: StreamTarget,
    console: &mut Console<I, O, E>,
) -> Result<Option<TaskOutcome>, CommandError>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let mut target = first;
    let mut stage = Stage::New;
    let mut pause = TRY_AGAIN.0;
    loop {
        let session = tokio::select! {
            session = client.exec(name.as_str()) => session,
            () = left(console) => return Ok(None),
        };
        let known = console.written();
        let ended = match session {
            Ok(session) => {
                let opened = |offset| {
                    if stage == Stage::Lost {
                        notice(&back(known, offset));
                    }
                    stage = Stage::Open;
                    pause = TRY_AGAIN.0;
                };
                session.run(target, console, opened).await
            }
            Err(error) => Err(error),
        };
        let error = match ended {
            Err(error) if error.exit == Exit::UNREACHABLE && stage != Stage::New => error,
            ended => return ended,
        };
        if stage == Stage::Open {
            notice(&format!("{error}; it is made again; {KEYS} leaves"));
        }
        stage = Stage::Lost;
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(TRY_AGAIN.1),
            () = left(console) => return Ok(None),
        }
        target = StreamTarget::Attach { terminal, offset: console.written(), size: terminal::size() };
    }
}

/// How a stay in a terminal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The terminal was never open: there is nothing to come back to.
    New,
    Open,
    Lost,
}

/// That the terminal is back, and what of its output is not.
fn back(known: u64, offset: u64) -> String {
    match offset.saturating_sub(known) {
        0 => "connected again".to_owned(),
        missing => format!("connected again; {missing} bytes of output are left out"),
    }
}

/// Waits until the person leaves, while there is nobody to tell anything else.
async fn left<I, O, E>(console: &mut Console<I, O, E>) {
    while let Some(control) = console.controls.recv().await {
        if control == Control::LetGo {
            return;
        }
    }
    std::future::pending::<()>().await;
}

async fn terminals(client: &Client, name: &AgentName) -> Result<Vec<TerminalReport>, CommandError> {
    let answer = client.get::<AgentView>(&format!("/agents/{name}")).await;
    let agent = about(client, name, answer).await?.content;
    let health = agent.session.and_then(|session| session.health);
    health.map(|health| health.terminals).ok_or_else(|| {
        CommandError::new(Exit::UNREACHABLE, format!("the runtime of `{name}` is not connected"))
            .hint(format!("see why: vm-agent why {name}"))
    })
}

async fn list(context: &mut Context, name: &AgentName, format: Format) -> CommandResult {
    let client = context.place.client().await?;
    let items = terminals(&client, name).await?;
    if items.is_empty() && matches!(format, Format::Table | Format::Wide) {
        context.ui.hint(format_args!("{name} keeps no terminal; `vm-agent shell {name}` opens one"))?;
        return Ok(Exit::SUCCESS);
    }
    let document = document("TerminalList", Terminals { items: &items });
    context.ui.document(format, &document, || render::terminal_table(&items, Timestamp::now()))?;
    Ok(Exit::SUCCESS)
}

/// The terminal that is meant: by its id, or the end of it; else the latest that nobody is attached to.
fn choose(terminals: &[TerminalReport], wanted: Option<&str>, name: &AgentName) -> Result<TerminalId, CommandError> {
    let none = |what: String| {
        CommandError::new(Exit::NOT_FOUND, what).hint(format!("see which there are: vm-agent shell ls {name}"))
    };
    let Some(wanted) = wanted else {
        let free = terminals.iter().filter(|it| !it.attached).max_by_key(|it| it.opened_at);
        return free.map(|it| it.terminal).ok_or_else(|| none(format!("`{name}` keeps no terminal that is free")));
    };
    let matching: Vec<TerminalId> =
        terminals.iter().map(|it| it.terminal).filter(|id| id.to_string().ends_with(wanted)).collect();
    match matching.as_slice() {
        [one] => Ok(*one),
        // A report is as old as a heartbeat: the runtime knows better.
        [] => wanted.parse().map_err(|_| none(format!("`{name}` keeps no terminal `{wanted}`"))),
        _ => Err(none(format!("`{name}` keeps several terminals that end with `{wanted}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{Peer, console, say};
    use crate::render::samples::name;
    use futures::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    use vm_agent_schemas::api::{ExecEvent, ExecRequest, Problem, ProblemCode};
    use vm_agent_schemas::wire::{Channel, Frame, Run, TerminalSize};

    fn report(end: &str, opened_at: i64, attached: bool) -> TerminalReport {
        let terminal = format!("0190c5a8-0000-7000-8000-0000000000{end}").parse().unwrap();
        TerminalReport { terminal, argv: Vec::new(), opened_at, attached, ended: false }
    }

    #[test]
    fn a_terminal_is_named_by_the_end_of_its_id_or_is_the_latest_free_one() {
        let terminals = [report("1a", 10, false), report("2a", 20, false), report("2b", 30, true)];
        let chosen = |wanted| choose(&terminals, wanted, &name("web")).map_err(|error| error.exit);
        assert_eq!(chosen(None), Ok(terminals[1].terminal));
        assert_eq!(chosen(Some("2b")), Ok(terminals[2].terminal));
        assert_eq!(chosen(Some("a")), Err(Exit::NOT_FOUND));
        assert_eq!(chosen(Some("zz")), Err(Exit::NOT_FOUND));
        let unheard = report("3c", 40, false).terminal;
        assert_eq!(chosen(Some(&unheard.to_string())), Ok(unheard));
    }

    fn first(terminal: TerminalId) -> StreamTarget {
        StreamTarget::Terminal { run: Run::default(), size: TerminalSize::default(), keep: Some(terminal) }
    }

    #[tokio::test]
    async fn a_lost_terminal_is_attached_to_again_where_its_output_broke_off() {
        let peer = Peer::new();
        let (mut console, mut far) = console();
        let terminal = TerminalId::generate();
        let agent = name("web");
        let client = stay(&peer.client, &agent, terminal, first(terminal), &mut console);
        let server = async {
            let mut socket = peer.answer_exec().await;
            socket.next().await.unwrap().unwrap();
            say(&mut socket, &ExecEvent::Opened { offset: 0 }).await;
            put(&mut socket, 0, b"$ make\r\n").await;
            let problem = Problem::new(ProblemCode::Offline, "the runtime went away");
            say(&mut socket, &ExecEvent::Failed { problem }).await;
            drop(socket);
            // Nobody there yet: it is tried again.
            drop(peer.answer_exec().await);
            let mut socket = peer.answer_exec().await;
            let Message::Text(text) = socket.next().await.unwrap().unwrap() else { panic!("expected `open`") };
            let ExecRequest::Open { target: StreamTarget::Attach { terminal: asked, offset, .. }, stdin: true } =
                serde_json::from_str(&text).unwrap()
            else {
                panic!("expected an attach, got {text}")
            };
            assert_eq!((asked, offset), (terminal, 8));
            say(&mut socket, &ExecEvent::Opened { offset: 8 }).await;
            put(&mut socket, 8, b"done\r\n").await;
            say(&mut socket, &ExecEvent::Ended { outcome: TaskOutcome::Exited { code: 3 } }).await;
        };
        let (outcome, ()) = tokio::join!(client, server);
        assert_eq!(outcome.unwrap(), Some(TaskOutcome::Exited { code: 3 }));
        drop(console);
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut far.stdout, &mut text).await.unwrap();
        assert_eq!(text, "$ make\r\ndone\r\n");
    }

    #[tokio::test]
    async fn a_terminal_that_never_opened_is_an_error_and_one_that_is_lost_can_be_left() {
        let peer = Peer::new();
        let (agent, terminal) = (name("web"), TerminalId::generate());
        let (mut console, _far) = crate::client::tests::console();
        let client = stay(&peer.client, &agent, terminal, first(terminal), &mut console);
        let server = async { drop(peer.answer_exec().await) };
        let (outcome, ()) = tokio::join!(client, server);
        assert_eq!(outcome.unwrap_err().exit, Exit::UNREACHABLE);

        let (mut console, far) = crate::client::tests::console();
        let client = stay(&peer.client, &agent, terminal, first(terminal), &mut console);
        let server = async {
            let mut socket = peer.answer_exec().await;
            socket.next().await.unwrap().unwrap();
            say(&mut socket, &ExecEvent::Opened { offset: 0 }).await;
            socket.close(None).await.unwrap();
            far.controls.send(Control::LetGo).await.unwrap();
        };
        let (outcome, ()) = tokio::join!(client, server);
        assert_eq!(outcome.unwrap(), None);
    }

    async fn put(
        socket: &mut tokio_tungstenite::WebSocketStream<tokio::net::UnixStream>,
        offset: u64,
        data: &'static [u8],
    ) {
        let frame = Frame { stream: 0, channel: Channel::Stdout, offset, end: false, data: data.into() };
        socket.send(Message::Binary(frame.encode())).await.unwrap();
    }
}

use clap::Args;
use tokio::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vm_agent_schemas::fleet::CommandLine;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Run, Signal, StreamTarget, TaskOutcome};

use super::key_value;
use crate::Context;
use crate::client::{Console, Control};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::select::about;
use crate::terminal::{self, RawMode};

/// Run a command in an agent, with its output here
///
/// One argument is a line for the shell, several are a program and its arguments. Ctrl-C interrupts the
/// command, a second one lets go of it. Ends with the command's own exit code; with 128 and the signal's
/// number when a signal ended it, and with 255 when it could not be run or was lost.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The agent
    name: AgentName,
    /// Hand stdin to the command; without this its input is empty
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal: with -i this one, whose every key goes to it
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// What to run, and how.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Environment of the command, over the agent's (can be repeated)
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// The folder to run it in, absolute or below the agent's work folder
    #[arg(short, long, visible_alias = "cwd", value_name = "DIR")]
    workdir: Option<String>,
    /// The user to run it as [default: the runtime's own]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// The command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl RunArgs {
    /// What to run; an empty `argv` when no command was given.
    pub(super) fn into_run(self) -> Run {
        Run { argv: argv(self.command), env: self.env.into_iter().collect(), cwd: self.workdir, user: self.user }
    }
}

/// A command as it was given: one argument is a line for the shell, several are a program and its arguments.
/// Empty when there is none.
pub(super) fn argv(command: Vec<String>) -> Vec<String> {
    let line = match <[String; 1]>::try_from(command) {
        Ok([line]) => CommandLine::Shell(line),
        Err(argv) => CommandLine::Argv(argv),
    };
    if line.is_empty() { Vec::new() } else { line.argv() }
}

pub(crate) async fn run(context: &mut Context, args: ExecArgs) -> CommandResult {
    let mut run = args.run.into_run();
    if run.argv.is_empty() {
        return Err(CommandError::new(Exit::USAGE, "there is no command")
            .hint("write it after `--`: vm-agent exec NAME -- COMMAND"));
    }
    let attended = args.interactive && args.tty;
    if attended {
        terminal::require("leave out -t: vm-agent exec NAME -i -- COMMAND")?;
    }
    let target = if args.tty {
        run.env = terminal::environment().chain(run.env).collect();
        StreamTarget::Terminal { run, size: terminal::size(), keep: None }
    } else {
        StreamTarget::Run { run }
    };
    let client = context.place.client().await?;
    let session = client.exec(args.name.as_str()).await;
    let session = about(&client, &args.name, session).await?;
    let outcome = if attended {
        let (keys, controls) = terminal::hand_over(io::stdin())?;
        let mut console = Console::new(Some(keys), io::stdout(), io::stderr(), controls);
        let _raw = RawMode::enter()?;
        session.run(target, &mut console, |_| {}).await
    } else {
        let stdin = args.interactive.then(io::stdin);
        let mut console = Console::new(stdin, io::stdout(), io::stderr(), interrupts()?);
        session.run(target, &mut console, |_| {}).await
    };
    let outcome = outcome?.ok_or_else(|| CommandError::new(Exit::INTERRUPTED, "let go of the command"))?;
    exit_of(&outcome)
}

/// How a command that ran elsewhere ends this program.
pub(super) fn exit_of(outcome: &TaskOutcome) -> CommandResult {
    if let TaskOutcome::Failed { .. } = outcome {
        return Err(CommandError::new(Exit::FAILURE, format!("the command {outcome}")));
    }
    Exit::remote(outcome).ok_or_else(|| CommandError::new(Exit::EXEC_FAILED, format!("the command {outcome}")))
}

/// What each Ctrl-C from now on means: the first interrupts the command, the second lets go of it.
pub(super) fn interrupts() -> Result<mpsc::Receiver<Control>, CommandError> {
    let mut signals =
        signal(SignalKind::interrupt()).map_err(|error| CommandError::io("Ctrl-C can't be listened for", &error))?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        for control in [Control::Signal(Signal::Int), Control::LetGo] {
            if signals.recv().await.is_none() || sender.send(control).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_argument_is_a_shell_line_and_several_are_a_vector() {
        let argv = |command: &[&str]| argv(command.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(argv(&["make && make test"]), ["/bin/sh", "-c", "make && make test"]);
        assert_eq!(argv(&["echo", "a b"]), ["echo", "a b"]);
        assert!(argv(&[]).is_empty() && argv(&[" "]).is_empty());
    }
}

use clap::Args;
use tokio::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vm_agent_schemas::fleet::CommandLine;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::Run;

use super::key_value;
use crate::Context;
use crate::client::Console;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::select::about;

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
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl RunArgs {
    /// What to run; nothing when no command was given.
    pub(super) fn into_run(self) -> Option<Run> {
        let line = match <[String; 1]>::try_from(self.command) {
            Ok([line]) => CommandLine::Shell(line),
            Err(argv) => CommandLine::Argv(argv),
        };
        let env = self.env.into_iter().collect();
        (!line.is_empty()).then(|| Run { argv: line.argv(), env, cwd: self.workdir })
    }
}

pub(crate) async fn run(context: &mut Context, args: ExecArgs) -> CommandResult {
    let run = args.run.into_run().ok_or_else(|| {
        CommandError::new(Exit::USAGE, "there is no command").hint("write it after `--`: vm-agent exec NAME -- COMMAND")
    })?;
    let client = context.place.client().await?;
    let session = client.exec(args.name.as_str()).await;
    let session = about(&client, &args.name, session).await?;
    let console = Console {
        stdin: args.interactive.then(io::stdin),
        stdout: io::stdout(),
        stderr: io::stderr(),
        interrupts: interrupts()?,
    };
    let Some(outcome) = session.run(run, console).await? else {
        return Err(CommandError::new(Exit::INTERRUPTED, "let go of the command"));
    };
    Exit::remote(&outcome).ok_or_else(|| CommandError::new(Exit::EXEC_FAILED, format!("the command {outcome}")))
}

/// Each Ctrl-C from now on.
fn interrupts() -> Result<mpsc::Receiver<()>, CommandError> {
    let mut signals =
        signal(SignalKind::interrupt()).map_err(|error| CommandError::io("Ctrl-C can't be listened for", &error))?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move { while signals.recv().await.is_some() && sender.send(()).await.is_ok() {} });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(command: &[&str]) -> Option<Vec<String>> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        RunArgs { env: Vec::new(), workdir: None, command }.into_run().map(|run| run.argv)
    }

    #[test]
    fn one_argument_is_a_shell_line_and_several_are_a_vector() {
        assert_eq!(argv(&["make && make test"]).unwrap(), ["/bin/sh", "-c", "make && make test"]);
        assert_eq!(argv(&["echo", "a b"]).unwrap(), ["echo", "a b"]);
        assert_eq!(argv(&[]), None);
    }
}

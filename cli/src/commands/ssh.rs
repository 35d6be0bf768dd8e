use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use vm_agent_schemas::api::{AgentView, ControllerStatus, List};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Run, StreamTarget, TaskOutcome};

use crate::Context;
use crate::client::{Client, Console};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::select::{about, no_such_agent};
use crate::ssh::config::{self, Fleet};
use crate::ssh::server::serve;
use crate::ssh::{Machine, NearEnd, identity};

/// Print what an SSH client needs to reach agents, for editors, scp and rsync
///
/// Each agent is a host, NAME.vm-agent, or NAME.FLEET.vm-agent in a fleet that has a name. Keep it in a file of its
/// own and include that in ~/.ssh/config: vm-agent ssh-config > ~/.ssh/vm-agent.conf, and `Include vm-agent.conf`
/// as the first line. Agents need no SSH server.
#[derive(Debug, Args)]
pub(crate) struct SshConfigArgs {
    /// The agents [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<AgentName>,
}

/// Speak SSH on stdin and stdout, as the ProxyCommand of a client that wants an agent
///
/// Serves shells, commands, terminals, SFTP where the agent has an sftp-server, and connections to its ports
/// (ssh -L). Nobody needs to call it: `vm-agent ssh-config` says how clients do.
#[derive(Debug, Args)]
pub(crate) struct SshProxyArgs {
    /// The agent
    name: AgentName,
}

pub(crate) async fn config(context: &mut Context, args: SshConfigArgs) -> CommandResult {
    let client = context.place.client().await?;
    let fleet = client.get::<ControllerStatus>("/status").await?.content.fleet;
    let agents = client.get::<List<AgentView>>("/agents").await?.content.items;
    let known: Vec<&AgentName> = agents.iter().map(|agent| &agent.name).collect();
    if let Some(name) = args.names.iter().find(|name| !known.contains(name)) {
        return Err(no_such_agent(name, &known));
    }
    let names = if args.names.is_empty() { known.into_iter().cloned().collect() } else { args.names };
    let folder = context.place.own_folder()?;
    identity::load(&folder)?;
    let fleet = Fleet { name: &fleet, command: &command(context)?, known_hosts: &identity::known_hosts(&folder) };
    context.ui.print(config::render(&fleet, &names))?;
    context.ui.status("to use it: vm-agent ssh-config > ~/.ssh/vm-agent.conf")?;
    context.ui.status("and as the first line of ~/.ssh/config: Include vm-agent.conf")?;
    Ok(Exit::SUCCESS)
}

/// This program, with the flags that lead to the same controller.
fn command(context: &Context) -> Result<Vec<String>, CommandError> {
    let program: PathBuf = std::env::current_exe()
        .map_err(|error| CommandError::io("this program's own path can't be found out", &error))?;
    let mut command = vec![program.to_string_lossy().into_owned()];
    command.extend(context.place.flags()?);
    Ok(command)
}

pub(crate) async fn proxy(context: &mut Context, args: SshProxyArgs) -> CommandResult {
    let client = context.place.client().await?;
    let machine = Arc::new(Agent { client, name: args.name });
    machine.wake().await?;
    let key = identity::load(&context.place.own_folder()?)?;
    let both = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    match serve(both, key, machine).await {
        // However the client leaves, it has what it wanted.
        Ok(()) | Err(russh::Error::Disconnect | russh::Error::HUP) => Ok(Exit::SUCCESS),
        Err(russh::Error::IO(error)) if is_leave(&error) => Ok(Exit::SUCCESS),
        Err(error) => Err(CommandError::new(Exit::FAILURE, format!("the SSH client is not understood: {error}"))),
    }
}

fn is_leave(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// The agent, through its controller.
struct Agent {
    client: Client,
    name: AgentName,
}

impl Agent {
    /// Sees whether commands can be run, before the client is answered: afterwards no sentence would reach the
    /// person. An agent that sleeps wakes up for it.
    async fn wake(&self) -> Result<(), CommandError> {
        let session = about(&self.client, &self.name, self.client.exec(self.name.as_str()).await).await?;
        let run = Run { argv: ["/bin/sh", "-c", ":"].map(str::to_owned).to_vec(), ..Run::default() };
        let mut console = Console::unattended(None::<tokio::io::Empty>, tokio::io::sink(), tokio::io::sink());
        match session.run(StreamTarget::Run { run }, &mut console, |_| {}).await? {
            Some(TaskOutcome::NotStarted { reason }) => Err(CommandError::new(Exit::EXEC_FAILED, reason)),
            _ => Ok(()),
        }
    }
}

impl Machine for Agent {
    fn carry(&self, target: StreamTarget, near: NearEnd) -> BoxFuture<'static, Result<TaskOutcome, CommandError>> {
        let (client, name) = (self.client.clone(), self.name.clone());
        async move {
            let NearEnd { stdin, stdout, stderr, controls, opened } = near;
            let mut opened = Some(opened);
            let session = about(&client, &name, client.exec(name.as_str()).await).await?;
            let mut console = Console::new(Some(stdin), stdout, stderr, controls);
            let told = |_| {
                // Nobody may want to know.
                let _ = opened.take().map(|opened| opened.send(()));
            };
            let outcome = session.run(target, &mut console, told).await?;
            outcome.ok_or_else(|| CommandError::new(Exit::INTERRUPTED, "let go of the command"))
        }
        .boxed()
    }
}

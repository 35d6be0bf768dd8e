use clap::Args;
use hyper::Method;
use tokio::signal::unix::{SignalKind, signal};
use vm_agent_schemas::api::{ChangeRequest, Changed, CreateRequest, TaskRequest};
use vm_agent_schemas::fleet::{AgentEntry, PowerState};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Task, Terms};
use vm_agent_schemas::units::Span;

use super::create::{MachineArgs, check};
use super::task::{JobArgs, OnInterrupt, conclude, watch};
use crate::Context;
use crate::client::Client;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::settle::{Goal, settle};

/// Letters of a name that nobody chose: no vowels, so that they spell nothing.
const LETTERS: &[u8] = b"bcdfghjkmnpqrstvwxz23456789";

/// Make an agent for one task, and do it there
///
/// The agent is made by hand, beside the file, over the file's defaults and the profile that is named; --env is that of
/// the task. With --rm the agent is deleted afterwards, whatever came of the task. Ends with the exit code of what ran,
/// and with 255 when there is none: it never began, ran longer than it may, or its end is not known.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Delete the agent afterwards, also after Ctrl-C and when something fails
    #[arg(long)]
    rm: bool,
    /// The agent's name [default: one that is free]
    #[arg(long, value_name = "NAME")]
    name: Option<AgentName>,
    /// How long to wait until the agent is there
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    ready_timeout: Span,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    job: JobArgs,
    /// What it works on
    #[arg(last = true, value_name = "COMMAND")]
    operands: Vec<String>,
}

pub(crate) async fn run(context: &mut Context, args: RunArgs) -> CommandResult {
    let terms = Terms { timeout: args.job.timeout(), ..Terms::default() };
    let job = args.job.into_job(args.operands).map_err(CommandError::of_exec)?;
    let id = TaskId::generate();
    let task = TaskRequest { job, terms, id: Some(id), key: None };
    let spec = AgentEntry { power: Some(PowerState::Running), ..args.machine.into_entry() };
    check(&spec).map_err(CommandError::of_exec)?;
    let client = context.place.client().await.map_err(CommandError::of_exec)?;
    let name = args.name.unwrap_or_else(new_name);
    let create = CreateRequest { spec, reason: Some("vm-agent run".to_owned()), dry_run: false };
    client.call::<Changed>(Method::PUT, &format!("/agents/{name}"), &create).await.map_err(CommandError::of_exec)?;
    context.ui.status(format_args!("{name}: made by hand"))?;
    // A second Ctrl-C, or somebody who wants this program gone, must not get past the deletion.
    let done = tokio::select! {
        done = work(context, &client, &name, &task, args.ready_timeout) => done,
        error = ended() => Err(error),
    };
    if !args.rm {
        context.ui.hint(format_args!("`vm-agent destroy {name}` deletes the agent; `run --rm` does so by itself"))?;
        return done;
    }
    // What nobody waits for any more must not become a dead letter for want of its machine. When it can't be
    // cancelled, because it has ended or was never given, that is none of anybody's concern.
    let _ = client.ask::<Task>(&format!("/tasks/{id}/cancel")).await;
    let removed = remove(context, &client, &name, args.ready_timeout).await;
    let _ = client.delete(&format!("/tasks/{id}/dead")).await;
    match (removed, done) {
        (Ok(()), Err(error)) if error.exit == Exit::INTERRUPTED => {
            Err(CommandError::new(Exit::INTERRUPTED, format!("interrupted; the task and agent `{name}` are gone")))
        }
        (Ok(()), done) => done,
        (Err(left), Ok(_)) => Err(left.of_exec()),
        (Err(left), Err(error)) => Err(error.hint(left.to_string()).hint(format!("vm-agent destroy {name}"))),
    }
}

/// Waits for the agent, and does the task in it.
async fn work(
    context: &mut Context,
    client: &Client,
    name: &AgentName,
    task: &TaskRequest,
    limit: Span,
) -> CommandResult {
    let goal = [(name.clone(), Goal::Power(PowerState::Running))].into();
    settle(&mut context.ui, client, &goal, limit).await.map_err(CommandError::of_exec)?;
    let task = client.post::<Task>(&format!("/agents/{name}/task"), task).await.map_err(CommandError::of_exec)?.content;
    let ended = watch(context, client, &[task], true, OnInterrupt::Detach).await.map_err(CommandError::of_exec)?;
    conclude(&ended)
}

/// Deletes the agent, and waits until it is gone. Ctrl-C waits no longer.
async fn remove(context: &mut Context, client: &Client, name: &AgentName, limit: Span) -> Result<(), CommandError> {
    let left = |error: &CommandError| {
        CommandError::new(Exit::FAILURE, format!("agent `{name}` may be left: {error}"))
            .hint(format!("`vm-agent destroy {name}` deletes it; `vm-agent why {name}` says how it is"))
    };
    let request = ChangeRequest { reason: Some("vm-agent run --rm".to_owned()), ..ChangeRequest::default() };
    let asked = client.call::<Changed>(Method::DELETE, &format!("/agents/{name}"), &request).await;
    asked.map_err(|error| left(&error))?;
    let goal = [(name.clone(), Goal::Gone)].into();
    settle(&mut context.ui, client, &goal, limit).await.map_err(|error| left(&error))
}

/// Somebody wants this program gone.
async fn ended() -> CommandError {
    let error = |error| CommandError::io("signals can't be listened for", &error);
    let (mut term, mut hup) = match (signal(SignalKind::terminate()), signal(SignalKind::hangup())) {
        (Ok(term), Ok(hup)) => (term, hup),
        (Err(cause), _) | (_, Err(cause)) => return error(cause),
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
    CommandError::new(Exit::INTERRUPTED, "ended from outside")
}

fn new_name() -> AgentName {
    let letter = || char::from(LETTERS[fastrand::usize(..LETTERS.len())]);
    let tail: String = std::iter::repeat_with(letter).take(6).collect();
    format!("run-{tail}").parse().expect("letters and digits after `run-` are a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_nobody_chose_is_a_name_and_another_each_time() {
        let (one, other) = (new_name(), new_name());
        assert!(one.as_str().starts_with("run-"));
        assert_ne!(one, other);
    }
}

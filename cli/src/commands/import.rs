//! Instances that others made: taken over, and let go again.

use clap::Args;
use vm_agent_schemas::api::{ChangeRequest, Changed, ImportRequest};
use vm_agent_schemas::fleet::{DriverName, PowerState};
use vm_agent_schemas::names::{AgentName, InstanceName};

use super::create::driver;
use super::finish;
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::select::about;
use crate::settle::{Goal, WaitArgs};
use crate::ui::OutputArgs;

/// Take over an instance that somebody else made
///
/// A runtime is put into it, and from then on it is the agent's, with all that is in it. Nothing else ever touches an
/// instance that the controller has not made. An agent that the file does not declare is made by hand, as the instance is
/// found, and is protected; `vm-agent export` writes it down for the file.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vm-agent import builder\n  vm-agent import old-vm --as builder --driver multipass"
)]
pub(crate) struct ImportArgs {
    /// The instance, as its driver knows it
    #[arg(value_name = "INSTANCE")]
    instance: InstanceName,
    /// What the agent is called [default: as the instance]
    #[arg(long = "as", value_name = "NAME")]
    agent: Option<AgentName>,
    /// The driver whose instance it is
    #[arg(long, default_value = "multipass", value_parser = driver)]
    driver: DriverName,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Why, for everybody who sees it
    #[arg(long)]
    reason: Option<String>,
    /// Change nothing, and show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Let an agent go, and leave its machine as it is
///
/// The controller forgets the machine, which goes on as it is; its runtime is not heard any more. For an agent that the
/// file declares this is refused: it would be made anew.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The agent
    name: AgentName,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Why, for everybody who sees it
    #[arg(long)]
    reason: Option<String>,
    /// Change nothing, and show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: ImportArgs) -> CommandResult {
    let ImportArgs { instance, driver, reason, dry_run, .. } = args;
    let agent = match args.agent {
        Some(agent) => agent,
        None => instance.as_str().parse().map_err(|error| {
            CommandError::new(Exit::USAGE, format!("no agent can be called `{instance}`: {error}"))
                .hint("give it another name: --as NAME")
        })?,
    };
    let client = context.place.client().await?;
    if !args.yes && !dry_run {
        let question =
            format!("this puts a runtime into instance `{instance}` of {driver}, and makes it agent `{agent}`");
        context.ui.confirm(&question, agent.as_str())?;
    }
    let request = ImportRequest { driver, instance, reason, dry_run };
    let answer = client.post::<Changed>(&format!("/agents/{agent}/import"), &request).await?;
    let plan = &answer.content.plan;
    let wanted = plan.agent(&agent).and_then(|agent| agent.wanted.as_ref());
    let power = wanted.map_or(PowerState::Running, |wanted| wanted.spec.power);
    finish(context, &client, &[(agent, Goal::Power(power), answer)], &args.wait, args.output.output).await
}

pub(crate) async fn release(context: &mut Context, args: ReleaseArgs) -> CommandResult {
    let ReleaseArgs { name, reason, dry_run, .. } = args;
    let client = context.place.client().await?;
    if !args.yes && !dry_run {
        let question = format!("this lets `{name}` go: its machine stays, and nobody looks after it any more");
        context.ui.confirm(&question, name.as_str())?;
    }
    let request = ChangeRequest { reason, dry_run, ..ChangeRequest::default() };
    let answer = client.post::<Changed>(&format!("/agents/{name}/release"), &request).await;
    let answer = about(&client, &name, answer).await?;
    finish(context, &client, &[(name, Goal::Gone, answer)], &args.wait, args.output.output).await
}

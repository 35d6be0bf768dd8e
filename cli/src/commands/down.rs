use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use vm_agent_schemas::api::{ControllerStatus, DownRequest, PlanView};
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_schemas::plan::{AgentPlan, Plan, WaitsFor};
use vm_agent_schemas::units::Span;

use crate::Context;
use crate::client::SseStream;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::locate::{ended_in_order, is_held};
use crate::render::{self, count};
use crate::settle::detached;

use super::events;

/// Pause between two looks at the lock of a controller that is ending: no event tells of that.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Stop the machines, and then the controller
///
/// Nothing is lost: `vm-agent up` brings all of it back. With --destroy the machines are deleted.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Delete the machines and all that is in them
    #[arg(long)]
    destroy: bool,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Change nothing, and show what would be done
    #[arg(long)]
    dry_run: bool,
    /// How long to wait until all is down
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    timeout: Span,
}

pub(crate) async fn run(context: &mut Context, args: DownArgs) -> CommandResult {
    let Some(client) = context.place.running().await? else {
        if args.destroy && context.place.here("vm-agent down --destroy")?.join("state.db").exists() {
            let text = "no controller runs, so nothing can be deleted: the stopped machines stay";
            return Err(CommandError::new(Exit::UNREACHABLE, text)
                .hint("bring the fleet up, and take it down again: vm-agent up --detach && vm-agent down --destroy"));
        }
        context.ui.status("Nothing is running.")?;
        return Ok(Exit::SUCCESS);
    };
    let request = DownRequest { destroy: args.destroy, dry_run: true };
    let plan = client.post::<PlanView>("/down", &request).await?.content.plan;
    context.ui.status(what(&plan, args.destroy))?;
    if args.dry_run {
        context.ui.status("Nothing was changed.")?;
        return Ok(Exit::SUCCESS);
    }
    if args.destroy && !args.yes {
        let fleet = client.get::<ControllerStatus>("/status").await?.content.fleet;
        let lost = render::lost(&plan.steps);
        let question = format!("this deletes the machines of fleet `{fleet}` and all their data{lost}");
        context.ui.confirm(&question, fleet.as_str())?;
    }
    // Opened before it begins: nothing that happens is missed.
    let events = events::from_now(&client).await?;
    client.post::<PlanView>("/down", &DownRequest { dry_run: false, ..request }).await?;
    tokio::select! {
        result = ended(context, events) => result?,
        () = tokio::time::sleep(args.timeout.get()) => {
            let sentence = format!("the controller is not down after {}", args.timeout);
            return Err(CommandError::new(Exit::TIMED_OUT, sentence).hint("it goes on; run `vm-agent down` again to wait"));
        }
        _ = tokio::signal::ctrl_c() => return Err(detached()),
    }
    let verb = if args.destroy { "deleted" } else { "stopped" };
    let agents: BTreeSet<_> =
        plan.steps.iter().map(|step| &step.agent).chain(in_the_middle(&plan).map(|it| &it.0.name)).collect();
    let machines = count(agents.len(), "machine");
    context.ui.print(format_args!("fleet `{}` is down: {machines} {verb}, controller ended", plan.fleet))?;
    Ok(Exit::SUCCESS)
}

/// What is about to happen.
fn what(plan: &Plan, destroy: bool) -> String {
    let mut text: String = plan
        .steps
        .iter()
        .map(|step| format!("{} {} {} ({})\n", step.action.symbol(), step.action, step.agent, render::toll(step)))
        .collect();
    for (agent, reason) in in_the_middle(plan) {
        text.push_str(&match (destroy, agent.moot) {
            (true, Some(_)) => format!("destroy {} instead of {reason}\n", agent.name),
            (true, None) => format!("destroy {} after {reason}\n", agent.name),
            (false, _) => format!("stop {} after {reason}\n", agent.name),
        });
    }
    if text.is_empty() {
        text.push_str(if destroy { "There are no machines to delete.\n" } else { "No machine runs.\n" });
    }
    text + "Then the controller ends."
}

/// Agents whose machines are in the middle of something, and of what.
fn in_the_middle(plan: &Plan) -> impl Iterator<Item = (&AgentPlan, &WaitsFor)> {
    plan.agents.iter().filter_map(|agent| {
        let busy = agent.waits_for.iter().find(|it| matches!(it, WaitsFor::Operation { .. }))?;
        Some((agent, busy))
    })
}

/// Tells what happens until the controller has ended: its stream ends first, its lock last.
async fn ended(context: &mut Context, mut events: SseStream) -> Result<(), CommandError> {
    // How the stream ends does not matter: with its process it can only break off.
    while let Ok(Some(message)) = events.next().await {
        if let Ok(event) = serde_json::from_str::<Event>(&message.data)
            && matches!(
                event.kind,
                EventKind::StepSucceeded | EventKind::StepFailed | EventKind::StepTimedOut | EventKind::StepGivenUp
            )
        {
            context.ui.status(render::event(&event))?;
        }
    }
    if context.place.is_remote() {
        return Ok(());
    }
    let state_dir = context.place.here("vm-agent down")?;
    while is_held(state_dir)? {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // A controller goes down only once the fleet is down. One that was killed has proven nothing.
    if ended_in_order(state_dir) {
        return Ok(());
    }
    Err(CommandError::new(Exit::FAILURE, "the controller died before all was down")
        .hint("`vm-agent up` brings it back and shows what is; then run `vm-agent down` again"))
}

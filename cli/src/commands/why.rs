use clap::Args;
use jiff::Timestamp;
use serde_json::Value;
use vm_agent_schemas::api::{AgentView, ControllerStatus, List, PlanRequest, PlanView};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::Step;
use vm_agent_schemas::task::Task;

use super::status::last_events;
use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::render;
use crate::render::Known;
use crate::select::about;
use crate::ui::OutputArgs;

/// How many events are shown.
const SHOWN: usize = 10;

/// Say why an agent is as it is, and what would help
///
/// One page: what is wanted and who said so, what is seen and how long ago, what differs, what happens
/// next and what that waits for, what happened last, and what you could do. With `-o json` the Agent document, with its `steps`, its last `events`, and `next`.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The agent
    name: AgentName,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: WhyArgs) -> CommandResult {
    let client = context.place.client().await?;
    let name = &args.name;
    let answer = client.get::<AgentView>(&format!("/agents/{name}")).await;
    let answer = about(&client, name, answer).await?;
    let agent = &answer.content;
    let plan = client.post::<PlanView>("/plan", &PlanRequest { source: None }).await?.content.plan;
    let steps: Vec<Step> = plan.steps.into_iter().filter(|step| step.agent == *name).collect();
    let events = last_events(&client, name, SHOWN).await?;
    let now = Timestamp::now();
    let mut raw = answer.raw.clone();
    raw["steps"] = json(&steps);
    raw["events"] = json(&events);
    let mut tasks = client.get::<List<Task>>(&format!("/agents/{name}/tasks")).await?.content.items;
    tasks.sort_by_key(|task| std::cmp::Reverse(task.created_at));
    raw["next"] = render::next(agent, &steps, &tasks, now).into();
    let drivers = client.get::<ControllerStatus>("/status").await?.content.drivers;
    let driver = drivers.iter().find(|driver| Some(driver.name) == agent.driver);
    let known = Known { agent, driver, steps: &steps, tasks: &tasks, events: &events, now };
    context.ui.document(args.output.output, &raw, || render::why(&known))?;
    Ok(Exit::SUCCESS)
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> Value {
    serde_json::to_value(value).expect("what came as JSON can be written as JSON")
}

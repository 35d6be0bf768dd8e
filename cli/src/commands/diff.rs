use clap::Args;
use jiff::Timestamp;
use vm_agent_schemas::api::{FleetView, List, PlanRequest, PlanView, RevisionView};
use vm_agent_schemas::fleet::{self, Fleet};
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::names::AgentName;

use super::{document, plan};
use crate::Context;
use crate::client::Client;
use crate::diff::{Diff, diff};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::file::FileArgs;
use crate::render;
use crate::select::no_such_agent;
use crate::ui::{Format, OutputArgs};

/// Show what applying the file would change, field by field
///
/// Each line says `agent.field: observed -> wanted (cost; origin)`; `+` and `-` are agents that come and
/// go. What `drift` only warns of is shown and does not count. Without a controller the file is compared
/// with what its state folder knows.
///
/// Exit codes: 0 nothing differs, 1 something differs, more than 1 on errors.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Only these agents
    #[arg(value_name = "NAME")]
    names: Vec<AgentName>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: DiffArgs) -> CommandResult {
    let loaded = args.file.load()?;
    let (plan, accepted, overrides) = match context.place.running().await? {
        Some(client) => {
            let request = PlanRequest { source: Some(loaded.source.clone()) };
            let plan = client.post::<PlanView>("/plan", &request).await?.content.plan;
            let overrides = client.get::<List<Override>>("/overrides").await?.content.items;
            (plan, accepted(context, &client).await?, overrides)
        }
        None => {
            context.ui.status("no controller runs, so the file is compared with what its state folder knows")?;
            (plan::offline(context, loaded.fleet.clone()).await?, None, Vec::new())
        }
    };
    let known: Vec<&AgentName> = plan.agents.iter().map(|agent| &agent.name).collect();
    if let Some(unknown) = args.names.iter().find(|name| !known.contains(name)) {
        return Err(no_such_agent(unknown, &known));
    }
    let mut found = diff(&plan, accepted.as_ref(), &loaded.fleet, &overrides, Timestamp::now());
    if !args.names.is_empty() {
        found.fleet.clear();
        found.items.retain(|item| args.names.contains(&item.agent));
    }
    print(context, args.output.output, &found)
}

fn print(context: &mut Context, format: Format, found: &Diff) -> CommandResult {
    if format == Format::Name {
        context.ui.print(found.items.iter().map(|item| format!("{}\n", item.agent)).collect::<String>())?;
    } else {
        context.ui.document(format, &document("Diff", found), || render::diff(found))?;
    }
    if !found.is_empty() {
        return Ok(Exit::DIFFERENCES);
    }
    if matches!(format, Format::Table | Format::Wide) {
        context.ui.status("Applying it would change nothing.")?;
    }
    Ok(Exit::SUCCESS)
}

/// The file that is in force, as this program reads it; nothing when none is, or when it can't be had.
pub(super) async fn accepted(context: &mut Context, client: &Client) -> Result<Option<Fleet>, CommandError> {
    let Some(revision) = client.get::<FleetView>("/fleet").await?.content.revision else { return Ok(None) };
    let answer = client.get::<RevisionView>(&format!("/fleet/revisions/{revision}")).await?;
    let source = answer.content.source.unwrap_or_default();
    let read = fleet::parse_all(&source.files);
    if read.is_err() {
        context.ui.warn(
            "this program does not understand the file that is in force, so only the machines are compared; compare \
             versions with `vm-agent version`",
        )?;
    }
    Ok(read.ok())
}

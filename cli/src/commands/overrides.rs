use clap::{Args, Subcommand};
use hyper::Method;
use jiff::Timestamp;
use vm_agent_schemas::api::{ChangeRequest, Changed, List};
use vm_agent_schemas::intent::{Override, OverridePath};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::units::Span;

use super::power::lasting;
use crate::Context;
use crate::client::Client;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::{about, known};
use crate::ui::{Format, OutputArgs};

/// Look at what people said beside the file, and change how long it holds
///
/// An override ends when a command says what the file says, at its time, or when the file changes what
/// it covers.
#[derive(Debug, Args)]
pub(crate) struct OverrideArgs {
    #[command(subcommand)]
    command: OverrideCommand,
}

#[derive(Debug, Subcommand)]
enum OverrideCommand {
    /// List the overrides in force
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// End an override before its time
    Clear {
        #[command(flatten)]
        target: OverrideTarget,
    },
    /// Give an override another time to end, counted from now
    Extend {
        #[command(flatten)]
        target: OverrideTarget,
        /// How long it shall hold
        #[arg(long = "for", value_name = "SPAN", value_parser = lasting, required_unless_present = "sticky")]
        lasting: Option<Span>,
        /// Let it hold until it is cleared
        #[arg(long, conflicts_with = "lasting")]
        sticky: bool,
    },
}

/// Which override.
#[derive(Debug, Args)]
struct OverrideTarget {
    /// The agent
    #[arg(value_name = "NAME")]
    name: AgentName,
    /// What is overridden [default: what is, where that is one thing]
    #[arg(value_parser = OverridePath::ALL.map(OverridePath::as_str))]
    path: Option<String>,
    /// Change nothing, and say what would be
    #[arg(long)]
    dry_run: bool,
}

impl OverrideTarget {
    /// What is overridden: what was said, or the one thing that is.
    async fn path(&self, client: &Client) -> Result<String, CommandError> {
        if let Some(path) = &self.path {
            return Ok(path.clone());
        }
        let name = &self.name;
        let overrides = client.get::<List<Override>>("/overrides").await?.content.items;
        let paths: Vec<&str> =
            overrides.iter().filter(|it| it.agent == *name).map(|it| it.change.path().as_str()).collect();
        match paths.as_slice() {
            [path] => Ok((*path).to_owned()),
            [] => {
                known(client, std::slice::from_ref(name)).await?;
                Err(CommandError::new(Exit::NOT_FOUND, format!("nothing is overridden of `{name}`"))
                    .hint("see what is: vm-agent override ls"))
            }
            several => {
                Err(CommandError::new(Exit::USAGE, format!("{} things are overridden of `{name}`", several.len()))
                    .hint(format!("say which: {}", several.join(", "))))
            }
        }
    }
}

pub(crate) async fn run(context: &mut Context, args: OverrideArgs) -> CommandResult {
    match args.command {
        OverrideCommand::Ls { output } => list(context, &output).await,
        OverrideCommand::Clear { target } => clear(context, target).await,
        OverrideCommand::Extend { target, lasting, sticky } => extend(context, target, lasting, sticky).await,
    }
}

async fn clear(context: &mut Context, target: OverrideTarget) -> CommandResult {
    let client = context.place.client().await?;
    let request = ChangeRequest { dry_run: target.dry_run, ..ChangeRequest::default() };
    let overridden = target.path(&client).await?;
    let path = format!("/agents/{}/overrides/{overridden}", target.name);
    let answer = client.call::<Changed>(Method::DELETE, &path, &request).await;
    about(&client, &target.name, answer).await?;
    let tense = if target.dry_run { "would be" } else { "is" };
    context.ui.status(format_args!("{}: {overridden} {tense} as the file says", target.name))?;
    Ok(Exit::SUCCESS)
}

async fn extend(context: &mut Context, target: OverrideTarget, lasting: Option<Span>, sticky: bool) -> CommandResult {
    let client = context.place.client().await?;
    let request = ChangeRequest { lasting, sticky, dry_run: target.dry_run, reason: None };
    let path = format!("/agents/{}/overrides/{}", target.name, target.path(&client).await?);
    let answer = client.post::<Changed>(&path, &request).await;
    let answer = about(&client, &target.name, answer).await?;
    if let Some(entry) = &answer.content.overridden {
        let until = entry.expires_at.map_or_else(|| "until it is cleared".to_owned(), |end| format!("until {end:.0}"));
        let tense = if target.dry_run { "would hold" } else { "holds" };
        context.ui.status(format_args!("{}: {} {tense} {until}", target.name, render::change(&entry.change)))?;
    }
    Ok(Exit::SUCCESS)
}

async fn list(context: &mut Context, output: &OutputArgs) -> CommandResult {
    let client = context.place.client().await?;
    let answer = client.get::<List<Override>>("/overrides").await?;
    let overrides = &answer.content.items;
    if overrides.is_empty() && matches!(output.output, Format::Table | Format::Wide) {
        context.ui.status("Nothing is overridden.")?;
    } else {
        context.ui.document(output.output, &answer.raw, || render::override_table(overrides, Timestamp::now()))?;
    }
    Ok(Exit::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{Peer, http};
    use crate::render::samples::{healthy, name, overridden};
    use vm_agent_schemas::intent::{Change, Presence};

    #[tokio::test]
    async fn the_only_thing_that_is_overridden_needs_no_name() {
        let peer = Peer::new();
        let power = overridden("db").overrides.remove(0);
        let absent = Override { change: Change::Presence(Presence::Absent), ..power.clone() };
        let target = OverrideTarget { name: name("db"), path: None, dry_run: false };
        let listed = |items: &[&Override]| http("200 OK", &serde_json::json!({ "items": items }).to_string());
        for (overrides, meant) in [
            (vec![&absent], Ok("presence")),
            (vec![&power], Ok("power")),
            (vec![&power, &absent], Err((Exit::USAGE, "say which: power, presence"))),
        ] {
            let answer = listed(&overrides);
            let (found, _) = tokio::join!(target.path(&peer.client), peer.answer(&answer));
            let meant = meant.map(str::to_owned).map_err(|(exit, hint)| (exit, hint.to_owned()));
            assert_eq!(found.map_err(|error| (error.exit, error.hints()[0].clone())), meant);
        }
        let agents = http("200 OK", &serde_json::json!({ "items": [healthy("db")] }).to_string());
        let none = listed(&[]);
        let (found, ()) = tokio::join!(target.path(&peer.client), async {
            peer.answer(&none).await;
            peer.answer(&agents).await;
        });
        assert_eq!(found.unwrap_err().to_string(), "nothing is overridden of `db`");
    }
}

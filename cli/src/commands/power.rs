use std::time::Duration;

use clap::Args;
use vm_agent_schemas::api::{ChangeRequest, Changed};
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::units::Span;

use super::{finish, rounds};
use crate::Context;
use crate::exit::CommandResult;
use crate::select::{Targets, about};
use crate::settle::{Goal, WaitArgs};
use crate::ui::OutputArgs;

/// Start agents, for an hour unless told otherwise
///
/// The file is not changed; after the time the agents are as it says again.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    power: PowerArgs,
}

/// Stop agents, for an hour unless told otherwise
///
/// The file is not changed; after the time the agents are as it says again.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    power: PowerArgs,
}

/// What starting and stopping have in common.
#[derive(Debug, Args)]
struct PowerArgs {
    #[command(flatten)]
    targets: Targets,
    /// How long this holds against the file [default: 1h]
    #[arg(long = "for", value_name = "SPAN", value_parser = lasting)]
    lasting: Option<Span>,
    /// Let it hold until it is cleared
    #[arg(long, conflicts_with = "lasting")]
    sticky: bool,
    /// Why, for everybody who sees the override
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

/// A time for which something can hold: what is shorter is over before anything has come of it.
pub(super) fn lasting(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|error| format!("{error}"))?;
    if span.get() < Duration::from_secs(1) {
        return Err("it would be over at once; the shortest is 1s".to_owned());
    }
    Ok(span)
}

pub(crate) async fn start(context: &mut Context, args: StartArgs) -> CommandResult {
    set(context, args.power, "start", PowerState::Running).await
}

pub(crate) async fn stop(context: &mut Context, args: StopArgs) -> CommandResult {
    set(context, args.power, "stop", PowerState::Stopped).await
}

async fn set(context: &mut Context, args: PowerArgs, verb: &str, power: PowerState) -> CommandResult {
    let client = context.place.client().await?;
    let mut request =
        ChangeRequest { lasting: args.lasting, sticky: args.sticky, reason: args.reason, dry_run: args.dry_run };
    let names = args.targets.resolve(&client).await?;
    let mut changed = Vec::new();
    for dry_run in rounds(args.dry_run, names.len()) {
        request.dry_run = dry_run;
        changed.clear();
        for name in &names {
            let answer = client.post::<Changed>(&format!("/agents/{name}/{verb}"), &request).await;
            let answer = about(&client, name, answer).await?;
            changed.push((name.clone(), Goal::Power(power), answer));
        }
    }
    finish(context, &client, &changed, &args.wait, args.output.output).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_holds_for_less_than_a_second() {
        assert_eq!(lasting("1s").unwrap(), Span::from_secs(1));
        for short in ["0s", "500ms", "0"] {
            assert!(lasting(short).is_err(), "{short}");
        }
    }
}

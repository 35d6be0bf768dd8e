use clap::Args;
use vm_agent_schemas::verification::{Verdict, Verification};

use super::each;
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::select::{Targets, about};
use crate::ui::OutputArgs;

/// Find out whether agents' runtimes run in their machines
///
/// A challenge goes into the machine by its driver, past the runtime, and the runtime has to answer by means of it. So it is
/// shown, and not believed, that what speaks for the agent runs in the machine that it speaks for, and that the machine is
/// one. A runtime that runs elsewhere is refused from then on, and the machine gets another seed. Each new connection is
/// asked by itself: condition IsolationVerified tells what came of it. Exits with 0 when all of them are where they should be.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vm-agent verify builder\n  vm-agent verify -l team=build -o json")]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    targets: Targets,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: VerifyArgs) -> CommandResult {
    let client = context.place.client().await?;
    let names = args.targets.resolve(&client).await?;
    let format = args.output.output;
    each(context, format, names, async |context, name| {
        let asked = client.ask::<Verification>(&format!("/agents/{name}/verify")).await;
        let asked = about(&client, &name, asked).await?;
        let Verification { agent, verdict, message, remediation, .. } = &asked.content;
        let told = format!("{agent}: {message}\n");
        if verdict.is_verified() {
            return context.ui.document(format, &asked.raw, || told);
        }
        context.ui.document(format, &asked.raw, String::new)?;
        let exit = match verdict {
            Verdict::NotInMachine { .. } => Exit::FAILURE,
            Verdict::Verified { .. } | Verdict::Unable { .. } => Exit::BLOCKED,
        };
        let error = CommandError::new(exit, told.trim_end());
        Err(remediation.iter().fold(error, |error, remedy| error.hint(remedy)))
    })
    .await
}

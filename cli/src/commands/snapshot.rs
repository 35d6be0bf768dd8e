//! Snapshots of machines, the way back to them, and new agents made from them.

use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use vm_agent_schemas::api::{
    Changed, CloneRequest, List, RestoreRequest, SnapshotChange, SnapshotDeletion, SnapshotRequest, SnapshotView,
};
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::names::{AgentName, SnapshotName};
use vm_agent_schemas::snapshot::{Ask, Errand, Snapshot};

use super::{each, finish};
use crate::Context;
use crate::client::{Client, Fetched};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::{Targets, about};
use crate::settle::{Goal, WaitArgs, settle};
use crate::ui::{Format, OutputArgs};

/// How often it is asked how far something is. A snapshot takes seconds, and nobody is told of one errand alone.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Take snapshots of agents' machines, and look after them
///
/// A machine that runs is kept with its memory and goes on; where its driver can't do that it is stopped for it, and
/// started again. What a person took stays until a person deletes it.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(
    after_help = "Examples:\n  vm-agent snapshot builder --comment 'before the upgrade'\n  vm-agent snapshot ls\n  \
                        vm-agent snapshot rm builder snapshot-20260701-120000\n  vm-agent restore builder \
                        snapshot-20260701-120000"
)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: Option<SnapshotCommand>,
    #[command(flatten)]
    targets: Targets,
    /// What to call it [default: snapshot-, and the time]
    #[arg(long = "as", value_name = "SNAPSHOT")]
    name: Option<SnapshotName>,
    /// What there is to say about it
    #[arg(long)]
    comment: Option<String>,
    /// Change nothing, and say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// List snapshots, the oldest first
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this agent
        name: Option<AgentName>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete snapshots of an agent
    Rm {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let nobody and no schedule delete these snapshots, unless with their whole machine
    Protect {
        #[command(flatten)]
        which: Which,
    },
    /// Let these snapshots be deleted again
    Unprotect {
        #[command(flatten)]
        which: Which,
    },
}

/// Snapshots of one agent.
#[derive(Debug, Args)]
struct Which {
    /// The agent
    name: AgentName,
    /// The snapshots
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<SnapshotName>,
    /// Change nothing, and say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Bring an agent's machine back to a snapshot
///
/// What runs in it ends, and all that it wrote since is gone from it; a snapshot of what it is now is taken before. It is
/// a new life of the machine: its runtime joins anew, and tasks of the file run again that had not ended by then. An agent
/// that should not run stays down.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The agent
    name: AgentName,
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: SnapshotName,
    /// Take no snapshot of what it is now: that is lost
    #[arg(long)]
    without_safety: bool,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Change nothing, and say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Make a new agent from an agent's machine as it is, or as a snapshot has it
///
/// It has the spec of the other and a machine of its own, which goes on from the snapshot as somebody else. It is an agent
/// made by hand: it stays until you destroy it.
#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    /// The agent
    name: AgentName,
    /// What to call the new one
    #[arg(value_name = "NEW")]
    new: AgentName,
    /// The snapshot to make it from [default: one that is taken now, and goes once the machine is there]
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<SnapshotName>,
    /// Change nothing, and show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: SnapshotArgs) -> CommandResult {
    match args.command {
        None => take(context, args).await,
        Some(SnapshotCommand::Ls { name, output }) => list(context, name, output.output).await,
        Some(SnapshotCommand::Rm { which, wait }) => remove(context, which, &wait).await,
        Some(SnapshotCommand::Protect { which }) => protect(context, which, true).await,
        Some(SnapshotCommand::Unprotect { which }) => protect(context, which, false).await,
    }
}

async fn take(context: &mut Context, args: SnapshotArgs) -> CommandResult {
    let client = context.place.client().await?;
    let names = args.targets.resolve(&client).await?;
    let (format, limit) = (args.output.output, args.wait.limit());
    let request = SnapshotRequest { name: args.name, comment: args.comment, dry_run: args.dry_run };
    each(context, format, names, async |context, name| {
        let asked = client.post::<Errand>(&format!("/agents/{name}/snapshots"), &request).await;
        let asked = about(&client, &name, asked).await?;
        carry_through(context, &client, asked, request.dry_run, limit, format).await
    })
    .await
}

async fn list(context: &mut Context, name: Option<AgentName>, format: Format) -> CommandResult {
    let client = context.place.client().await?;
    let answer = match &name {
        Some(name) => about(&client, name, client.get(&format!("/agents/{name}/snapshots")).await).await?,
        None => client.get::<List<SnapshotView>>("/snapshots").await?,
    };
    let snapshots = &answer.content.items;
    if snapshots.is_empty() && matches!(format, Format::Table | Format::Wide) {
        let whose = name.map_or_else(|| "NAME".to_owned(), |name| name.to_string());
        context.ui.hint(format_args!("there are no snapshots; `vm-agent snapshot {whose}` takes one"))?;
    } else {
        let wide = format == Format::Wide;
        context.ui.document(format, &answer.raw, || render::snapshot_table(snapshots, Timestamp::now(), wide))?;
    }
    Ok(Exit::SUCCESS)
}

async fn remove(context: &mut Context, which: Which, wait: &WaitArgs) -> CommandResult {
    let client = context.place.client().await?;
    let Which { name, snapshots, dry_run } = which;
    let request = SnapshotDeletion { dry_run };
    each(context, Format::Table, snapshots, async |context, snapshot| {
        let path = format!("/agents/{name}/snapshots/{snapshot}");
        let asked = about(&client, &name, client.call::<Errand>(Method::DELETE, &path, &request).await).await?;
        carry_through(context, &client, asked, dry_run, wait.limit(), Format::Table).await
    })
    .await
}

async fn protect(context: &mut Context, which: Which, protect: bool) -> CommandResult {
    let client = context.place.client().await?;
    let Which { name, snapshots, dry_run } = which;
    let request = SnapshotChange { protect: Some(protect), comment: None, dry_run };
    each(context, Format::Table, snapshots, async |context, snapshot| {
        let path = format!("/agents/{name}/snapshots/{snapshot}");
        about(&client, &name, client.call::<Snapshot>(Method::PATCH, &path, &request).await).await?;
        let told = match (protect, dry_run) {
            (true, false) => "only deleting its machine deletes it",
            (true, true) => "only deleting its machine would delete it",
            (false, false) => "it may be deleted",
            (false, true) => "it could be deleted",
        };
        context.ui.status(format_args!("{name}: snapshot {snapshot}: {told}"))
    })
    .await
}

pub(crate) async fn restore(context: &mut Context, args: RestoreArgs) -> CommandResult {
    let client = context.place.client().await?;
    let RestoreArgs { name, snapshot, without_safety, dry_run, .. } = args;
    if !args.yes && !dry_run {
        let kept = if without_safety { "is lost" } else { "is kept in a snapshot only" };
        let question =
            format!("this takes `{name}` back to `{snapshot}`: what runs in it ends, and what it wrote since {kept}");
        context.ui.confirm(&question, name.as_str())?;
    }
    let request = RestoreRequest { snapshot, without_safety, dry_run };
    let asked = client.post::<Errand>(&format!("/agents/{name}/restore"), &request).await;
    let asked = about(&client, &name, asked).await?;
    carry_through(context, &client, asked, dry_run, args.wait.limit(), args.output.output).await?;
    if let Some(limit) = args.wait.limit().filter(|_| !dry_run) {
        // It is over once the agent answers again, or rests as it is to.
        settle(&mut context.ui, &client, &[(name, Goal::AsFile(None))].into(), limit).await?;
    }
    Ok(Exit::SUCCESS)
}

pub(crate) async fn clone(context: &mut Context, args: CloneArgs) -> CommandResult {
    let client = context.place.client().await?;
    let request = CloneRequest { name: args.new.clone(), snapshot: args.snapshot, dry_run: args.dry_run };
    let answer = client.post::<Changed>(&format!("/agents/{}/clone", args.name), &request).await;
    let answer = about(&client, &args.name, answer).await?;
    let changed = [(args.new, Goal::Power(PowerState::Running), answer)];
    finish(context, &client, &changed, &args.wait, args.output.output).await
}

/// Tells what was asked, and waits until it is over.
async fn carry_through(
    context: &mut Context,
    client: &Client,
    asked: Fetched<Errand>,
    dry_run: bool,
    limit: Option<vm_agent_schemas::units::Span>,
    format: Format,
) -> Result<(), CommandError> {
    let Errand { id, agent, ask, .. } = &asked.content;
    let tense = if dry_run { "would " } else { "to " };
    context.ui.status(format_args!("{agent}: {tense}{ask}"))?;
    if let Ask::Restore { safety: Some(safety), .. } = ask {
        context.ui.status(format_args!("{agent}: {tense}keep what it is now as `{safety}`"))?;
    }
    let Some(limit) = limit.filter(|_| !dry_run) else {
        return context.ui.document(format, &asked.raw, || name_of(ask));
    };
    let deadline = Instant::now() + limit.get();
    loop {
        let now = client.get::<Errand>(&format!("/errands/{id}")).await?;
        if let Some(end) = &now.content.end {
            if let Some(problem) = &end.problem {
                return Err(CommandError::new(Exit::FAILURE, format!("{agent}: it did not {ask}: {problem}"))
                    .hint(format!("what happened: vm-agent events; how it is: vm-agent why {agent}")));
            }
            context.ui.status(format_args!("{agent}: done"))?;
            return context.ui.document(format, &now.raw, || name_of(ask));
        }
        if Instant::now() >= deadline {
            return Err(CommandError::new(Exit::TIMED_OUT, format!("{agent}: it did not {ask} within {limit}"))
                .hint(format!("it goes on; what it waits for: vm-agent why {agent}")));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The snapshot, for programs that read the output.
fn name_of(ask: &Ask) -> String {
    match ask {
        Ask::Take { name, .. } => format!("{name}\n"),
        Ask::Restore { safety: Some(name), .. } => format!("{name}\n"),
        Ask::Restore { safety: None, .. } | Ask::Delete { .. } => String::new(),
    }
}

//! The commands, one in each file.

mod apply;
mod approvals;
mod audit;
mod controller;
mod cp;
mod create;
mod dead;
mod destroy;
mod diff;
mod doctor;
mod down;
mod drift;
mod events;
mod exec;
mod explain;
mod export;
mod forward;
mod history;
mod image;
mod import;
mod init;
mod list;
mod logs;
mod message;
mod overrides;
mod pause;
mod plan;
mod power;
mod rollback;
mod rotate;
mod run;
mod runtime;
mod schema;
mod shell;
mod snapshot;
mod spec;
mod ssh;
mod status;
mod task;
mod token;
mod up;
mod validate;
mod verify;
mod version;
mod why;

use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;
use vm_agent_schemas::api::{API_VERSION, Changed, Document};
use vm_agent_schemas::names::AgentName;

use crate::Context;
use crate::client::{Client, Fetched};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::settle::{Goal, WaitArgs, settle};
use crate::ui::Format;

/// Everything that `vm-agent` does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(init::InitArgs),
    Validate(validate::ValidateArgs),
    Explain(explain::ExplainArgs),
    Up(up::UpArgs),
    Down(down::DownArgs),
    Plan(plan::PlanArgs),
    Diff(diff::DiffArgs),
    Apply(apply::ApplyArgs),
    History(history::HistoryArgs),
    Rollback(rollback::RollbackArgs),
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    Status(status::StatusArgs),
    Why(why::WhyArgs),
    Spec(spec::SpecArgs),
    Drift(drift::DriftArgs),
    Events(events::EventsArgs),
    Create(create::CreateArgs),
    #[command(visible_alias = "rm")]
    Destroy(destroy::DestroyArgs),
    Start(power::StartArgs),
    Stop(power::StopArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Override(overrides::OverrideArgs),
    Approvals(approvals::ApprovalsArgs),
    Approve(approvals::ApproveArgs),
    Run(Box<run::RunArgs>),
    Exec(exec::ExecArgs),
    Shell(shell::ShellArgs),
    Cp(cp::CpArgs),
    Forward(forward::ForwardArgs),
    SshConfig(ssh::SshConfigArgs),
    SshProxy(ssh::SshProxyArgs),
    Logs(logs::LogsArgs),
    Task(Box<task::TaskArgs>),
    Snapshot(snapshot::SnapshotArgs),
    Restore(snapshot::RestoreArgs),
    Clone(snapshot::CloneArgs),
    Import(import::ImportArgs),
    Release(import::ReleaseArgs),
    Export(export::ExportArgs),
    Message(message::MessageArgs),
    Dead(dead::DeadArgs),
    Token(token::TokenArgs),
    Rotate(rotate::RotateArgs),
    Verify(verify::VerifyArgs),
    Audit(audit::AuditArgs),
    Image(image::ImageArgs),
    Doctor(doctor::DoctorArgs),
    Schema(schema::SchemaArgs),
    Version(version::VersionArgs),
    Controller(controller::ControllerArgs),
    #[command(hide = true)]
    Runtime(runtime::RuntimeArgs),
}

/// Runs a command.
pub(crate) async fn run(context: &mut Context, command: Command) -> CommandResult {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Validate(args) => validate::run(context, &args),
        Command::Explain(args) => explain::run(context, &args),
        Command::Diff(args) => diff::run(context, args).await.map_err(CommandError::of_diff),
        Command::History(args) => history::run(context, args).await,
        Command::Rollback(args) => rollback::run(context, args).await,
        Command::Why(args) => why::run(context, args).await,
        Command::Spec(args) => spec::run(context, args).await,
        Command::Up(args) => up::run(context, args).await,
        Command::Down(args) => down::run(context, args).await,
        Command::Plan(args) => plan::run(context, args).await,
        Command::Apply(args) => apply::run(context, args).await,
        Command::List(args) => list::run(context, args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Drift(args) => drift::run(context, args).await,
        Command::Events(args) => events::run(context, args).await,
        Command::Create(args) => create::run(context, args).await,
        Command::Destroy(args) => destroy::run(context, args).await,
        Command::Start(args) => power::start(context, args).await,
        Command::Stop(args) => power::stop(context, args).await,
        Command::Pause(args) => pause::pause(context, args).await,
        Command::Resume(args) => pause::resume(context, args).await,
        Command::Override(args) => overrides::run(context, args).await,
        Command::Approvals(args) => approvals::list(context, args).await,
        Command::Approve(args) => approvals::approve(context, args).await,
        Command::Exec(args) => exec::run(context, args).await.map_err(CommandError::of_exec),
        Command::Run(args) => run::run(context, *args).await,
        Command::Shell(args) => shell::run(context, args).await,
        Command::Cp(args) => cp::run(context, args).await,
        Command::Forward(args) => forward::run(context, args).await,
        Command::SshConfig(args) => ssh::config(context, args).await,
        Command::SshProxy(args) => ssh::proxy(context, args).await.map_err(CommandError::of_exec),
        Command::Logs(args) => logs::run(context, args).await,
        Command::Task(args) => task::run(context, *args).await,
        Command::Snapshot(args) => snapshot::run(context, args).await,
        Command::Restore(args) => snapshot::restore(context, args).await,
        Command::Clone(args) => snapshot::clone(context, args).await,
        Command::Import(args) => import::run(context, args).await,
        Command::Release(args) => import::release(context, args).await,
        Command::Export(args) => export::run(context, args).await,
        Command::Message(args) => message::run(context, args).await,
        Command::Dead(args) => dead::run(context, args).await,
        Command::Token(args) => token::run(context, args).await,
        Command::Rotate(args) => rotate::run(context, args).await,
        Command::Verify(args) => verify::run(context, args).await,
        Command::Audit(args) => audit::run(context, args).await,
        Command::Image(args) => image::run(context, args).await,
        Command::Doctor(args) => doctor::run(context, args).await,
        Command::Schema(args) => schema::run(context, args),
        Command::Version(args) => version::run(context, args).await,
        Command::Controller(args) => controller::run(context, args).await,
        Command::Runtime(_) => unreachable!("it was begun before any thread was"),
    }
}

/// A document of this program's own making.
fn document(kind: &str, content: impl Serialize) -> Value {
    let document = Document { api_version: API_VERSION.to_owned(), kind: kind.to_owned(), content };
    serde_json::to_value(document).expect("our own documents can be written as JSON")
}

/// `KEY=VALUE`, as flags take it.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// Whether each round is a dry run. Where several are meant they are all asked about before anything is done to one: what
/// is wrong with the last must not leave the first done.
fn rounds(dry_run: bool, count: usize) -> impl Iterator<Item = bool> {
    (!dry_run && count > 1).then_some(true).into_iter().chain([dry_run])
}

/// Does something about each of several that have nothing to do with each other. One that fails is told of and
/// keeps nobody from the others; the command ends as the first of those that failed.
async fn each<T>(
    context: &mut Context,
    format: Format,
    items: impl IntoIterator<Item = T>,
    mut act: impl AsyncFnMut(&mut Context, T) -> Result<(), CommandError>,
) -> CommandResult {
    let mut first = None;
    for item in items {
        if let Err(error) = act(context, item).await {
            context.ui.error(&error, format);
            first.get_or_insert(error.exit);
        }
    }
    Ok(first.unwrap_or(Exit::SUCCESS))
}

/// Tells what an imperative change came to, and waits until it is so.
async fn finish(
    context: &mut Context,
    client: &Client,
    changed: &[(AgentName, Goal, Fetched<Changed>)],
    wait: &WaitArgs,
    format: Format,
) -> CommandResult {
    for (agent, _, answer) in changed {
        let Changed { overridden, plan, dry_run, .. } = &answer.content;
        let tense = if *dry_run { "would be" } else { "is" };
        context.ui.status(match overridden {
            Some(it) => format!("{agent}: {}", told(it, tense)),
            None => format!("{agent}: the file says the same, so nothing {tense} overridden"),
        })?;
        for step in plan.steps.iter().filter(|step| step.agent == *agent) {
            let (symbol, toll) = (step.action.symbol(), render::toll(step));
            context.ui.status(format_args!("  {symbol} {}: {} ({toll})", step.action, step.reason))?;
        }
        if matches!(format, Format::Json | Format::Yaml) {
            context.ui.document(format, &answer.raw, String::new)?;
        }
    }
    let dry_run = changed.iter().any(|(.., answer)| answer.content.dry_run);
    if let Some(limit) = wait.limit().filter(|_| !dry_run) {
        let goals = changed.iter().map(|(agent, goal, _)| (agent.clone(), *goal)).collect();
        settle(&mut context.ui, client, &goals, limit).await?;
    }
    Ok(Exit::SUCCESS)
}

fn told(it: &vm_agent_schemas::intent::Override, tense: &str) -> String {
    let until = it.expires_at.map_or_else(
        || "until it is cleared".to_owned(),
        |end| format!("until {}", end.strftime("%Y-%m-%d %H:%M:%SZ")),
    );
    format!("{tense} overridden ({}) {until}", render::change(&it.change))
}

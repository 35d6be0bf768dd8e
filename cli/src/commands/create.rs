use clap::Args;
use hyper::Method;
use vm_agent_schemas::api::{Changed, CreateRequest};
use vm_agent_schemas::fleet::{AgentEntry, DriverName, Fleet, Package, PowerState, UserName, resolve_entry};
use vm_agent_schemas::names::{AgentName, ProfileName};
use vm_agent_schemas::units::ByteSize;

use super::{finish, key_value};
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::settle::{Goal, WaitArgs};
use crate::ui::OutputArgs;

/// Make an agent beside the file
///
/// It stays until you destroy it: an agent made by hand is never deleted because the file lacks it.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The agent's name
    name: AgentName,
    #[command(flatten)]
    machine: MachineArgs,
    /// Environment of everything that runs in it (can be repeated); not for secrets
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// A package of its distribution, there before anything runs in it (can be repeated)
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<Package>,
    /// The user that everything in it runs as
    #[arg(long, value_name = "NAME")]
    user: Option<UserName>,
    /// Let that user become root in it
    #[arg(long)]
    sudo: bool,
    /// Whether it should run: running or stopped
    #[arg(long, value_name = "POWER", default_value = "running", value_parser = power)]
    power: PowerState,
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

/// What a machine that is made by hand is like.
#[derive(Debug, Args)]
pub(super) struct MachineArgs {
    /// The profile of the fleet file whose settings lie under these [default: that of the file's `defaults`]
    #[arg(long, value_name = "NAME")]
    profile: Option<ProfileName>,
    /// What makes its machine: multipass, qemu, incus, or local (a process that isolates nothing)
    #[arg(long, value_parser = driver)]
    driver: Option<DriverName>,
    /// The image that the machine is made from
    #[arg(long)]
    image: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "COUNT")]
    cpus: Option<u32>,
    /// Memory, such as 8G
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Disk, such as 40G
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// A label (can be repeated)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Begin as a copy of a machine like it that has booted already
    #[arg(long)]
    warm: bool,
}

impl MachineArgs {
    /// The spec that these come to, over the file's defaults.
    pub(super) fn into_entry(self) -> AgentEntry {
        AgentEntry {
            profile: self.profile,
            driver: self.driver,
            image: self.image,
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            labels: self.labels.into_iter().collect(),
            warm: self.warm.then_some(true),
            ..AgentEntry::default()
        }
    }
}

/// That such an agent can be made, as far as that can be said without knowing the file's profiles.
pub(super) fn check(spec: &AgentEntry) -> Result<(), CommandError> {
    resolve_entry(&Fleet::default(), &AgentEntry { profile: None, ..spec.clone() })
        .map(drop)
        .map_err(|problems| CommandError::new(Exit::USAGE, problems.join("\n")))
}

pub(super) fn driver(text: &str) -> Result<DriverName, String> {
    word(text, "multipass, qemu, incus or local")
}

fn power(text: &str) -> Result<PowerState, String> {
    word(text, "running or stopped")
}

/// Reads a word as the fleet file does, so that there is one spelling of each.
fn word<T: serde::de::DeserializeOwned>(text: &str, known: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("write {known}"))
}

pub(crate) async fn run(context: &mut Context, args: CreateArgs) -> CommandResult {
    let env = args.env.into_iter().collect();
    let (packages, sudo) = (args.packages.into_iter().collect(), args.sudo.then_some(true));
    let spec =
        AgentEntry { power: Some(args.power), env, packages, user: args.user, sudo, ..args.machine.into_entry() };
    check(&spec)?;
    let client = context.place.client().await?;
    let request = CreateRequest { spec, reason: args.reason, dry_run: args.dry_run };
    let answer = client.call::<Changed>(Method::PUT, &format!("/agents/{}", args.name), &request).await?;
    let changed = [(args.name, Goal::Power(args.power), answer)];
    finish(context, &client, &changed, &args.wait, args.output.output).await
}

//! A fleet file of what exists.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use vm_agent_schemas::api::{AgentView, InstanceInfo, List};
use vm_agent_schemas::fleet::{AgentEntry, AgentSpec, DriverName, PowerState};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{InstanceState, Sizes};

use super::create::driver;
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::ui::{Format, OutputArgs};

/// Write a fleet file of what exists
///
/// Every instance that the drivers see becomes an agent of the file, as it is found: those of the fleet with what is
/// wanted of them, those that others made with what their driver tells. The file says which these are; nothing touches
/// them before `vm-agent import` has taken them over.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vm-agent export > fleet.yaml\n  vm-agent export --driver multipass")]
pub(crate) struct ExportArgs {
    /// Only the instances of this driver
    #[arg(long, value_parser = driver)]
    driver: Option<DriverName>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(context: &mut Context, args: ExportArgs) -> CommandResult {
    let client = context.place.client().await?;
    let path = args.driver.map_or_else(|| "/instances".to_owned(), |driver| format!("/instances?driver={driver}"));
    let instances = client.get::<List<InstanceInfo>>(&path).await?;
    let agents = client.get::<List<AgentView>>("/agents").await?.content.items;
    let file = fleet_file(&instances.content.items, &agents).map_err(|error| {
        CommandError::new(Exit::FAILURE, format!("what exists can't be written as a fleet file: {error}"))
    })?;
    match args.output.output {
        Format::Table | Format::Wide | Format::Yaml => context.ui.print(&file)?,
        format => context.ui.document(format, &instances.raw, || file)?,
    }
    Ok(Exit::SUCCESS)
}

/// The text of a fleet file in which each instance is an agent.
fn fleet_file(instances: &[InstanceInfo], agents: &[AgentView]) -> Result<String, serde_yaml::Error> {
    let mut written = BTreeMap::new();
    let mut unnamed = String::new();
    for instance in instances.iter().filter(|instance| instance.state != InstanceState::Deleted) {
        let name = instance.agent.clone().or_else(|| instance.name.as_str().parse().ok());
        let Some(name) = name else {
            let _ = writeln!(unnamed, "# {}: no agent can be called so; import it under another name", instance.name);
            continue;
        };
        let wanted = agents.iter().find(|agent| agent.name == name).and_then(|agent| agent.wanted.as_ref());
        let spec = wanted.map(|wanted| &wanted.spec).filter(|_| instance.agent.is_some());
        let text = serde_yaml::to_string(&BTreeMap::from([(&name, entry(instance, spec))]))?;
        written.insert(name.clone(), remarks(instance, &name, spec) + &text);
    }
    if written.is_empty() {
        return Ok(format!("{unnamed}agents: {{}}\n"));
    }
    let texts: String = written.into_values().collect();
    let indented = texts.lines().map(|line| format!("  {line}\n")).collect::<String>();
    Ok(format!("{unnamed}agents:\n{indented}"))
}

/// What has to be known of an entry beside what it says.
fn remarks(instance: &InstanceInfo, name: &AgentName, spec: Option<&AgentSpec>) -> String {
    let mut remarks = String::new();
    let mut say = |remark: String| remarks.extend(["# ", &remark, "\n"]);
    if instance.agent.is_none() {
        let renamed = if instance.name.as_str() == name.as_str() { String::new() } else { format!(" --as {name}") };
        say(format!(
            "Somebody else made it. Before this is applied: vm-agent import {} --driver {}{renamed}",
            instance.name, instance.driver
        ));
    }
    if let Some(problem) = &instance.problem {
        say(format!("Nothing more is known of it: {problem}"));
    }
    if spec.is_some_and(|spec| !spec.tasks.is_empty()) {
        say("Its tasks are not written here.".to_owned());
    }
    remarks
}

/// An instance as an agent of a file: what it is, and where it is ours what else is wanted of it.
fn entry(instance: &InstanceInfo, spec: Option<&AgentSpec>) -> AgentEntry {
    let usual = AgentSpec::default();
    let description = &instance.description;
    let Sizes { cpus, memory, disk } = description.sizes.unwrap_or_else(|| Sizes::of(spec.unwrap_or(&usual)));
    let known = description.sizes.is_some() || spec.is_some();
    let runs = matches!(instance.state, InstanceState::Running | InstanceState::Starting | InstanceState::Unknown);
    let found = AgentEntry {
        driver: Some(instance.driver),
        image: description.image.clone(),
        cpus: known.then_some(cpus),
        memory: known.then_some(memory),
        disk: known.then_some(disk),
        power: (!runs).then_some(PowerState::Stopped),
        mounts: description.mounts.clone(),
        ..AgentEntry::default()
    };
    let Some(spec) = spec.cloned() else { return found };
    AgentEntry {
        // Idleness stops it for a while only.
        power: (spec.power != usual.power).then_some(spec.power),
        labels: spec.labels,
        env: spec.env,
        depends_on: (spec.depends_on != usual.depends_on).then_some(spec.depends_on),
        restart: (spec.restart != usual.restart).then_some(spec.restart),
        protect: spec.protect.then_some(true),
        slots: (spec.slots != usual.slots).then_some(spec.slots),
        services: spec.services,
        files: spec.files,
        packages: spec.packages,
        networks: spec.networks,
        user: spec.user,
        sudo: spec.sudo.then_some(true),
        cloud_init: spec.cloud_init,
        secrets: spec.secrets,
        mounts: spec.mounts,
        ports: spec.ports,
        idle: spec.idle,
        ttl: spec.ttl,
        snapshots: spec.snapshots,
        drift: spec.drift,
        ..found
    }
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::fleet::parse;
    use vm_agent_schemas::observe::Description;
    use vm_agent_schemas::units::ByteSize;

    use super::*;

    fn instance(name: &str, state: InstanceState) -> InstanceInfo {
        let sizes = Sizes { cpus: 2, memory: ByteSize::from_gib(4), disk: ByteSize::from_gib(20) };
        let description = Description { image: Some("24.04".into()), sizes: Some(sizes), mounts: BTreeMap::new() };
        let (driver, name) = (DriverName::Multipass, name.parse().unwrap());
        InstanceInfo { driver, name, state, agent: None, description, problem: None }
    }

    #[test]
    fn what_is_written_reads_as_a_fleet_file_that_says_what_was_found() {
        let instances = [instance("web", InstanceState::Running), instance("db", InstanceState::Stopped)];
        let text = fleet_file(&instances, &[]).unwrap();
        let fleet = parse("fleet.yaml", &text).unwrap();
        let spec = |name: &str| fleet.agents[&name.parse::<AgentName>().unwrap()].spec.clone();
        assert_eq!(Sizes::of(&spec("web")), instances[0].description.sizes.unwrap());
        assert_eq!((spec("web").power, spec("db").power), (PowerState::Running, PowerState::Stopped));
        assert_eq!(spec("db").driver, Some(DriverName::Multipass));
        assert!(
            text.contains("# Somebody else made it. Before this is applied: vm-agent import db --driver multipass")
        );
    }

    #[test]
    fn a_host_with_nothing_on_it_has_a_file_without_agents() {
        assert!(parse("fleet.yaml", &fleet_file(&[], &[]).unwrap()).unwrap().agents.is_empty());
        let deleted = [instance("old", InstanceState::Deleted)];
        assert!(parse("fleet.yaml", &fleet_file(&deleted, &[]).unwrap()).unwrap().agents.is_empty());
    }
}

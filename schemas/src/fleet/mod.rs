//! The fleet: what a person declares ([`FleetFile`]), and what it comes to once defaults and
//! profiles are laid under each agent ([`Fleet`]).

mod file;
mod keys;
mod parse;
mod planned;
mod resolve;
mod short;
mod source;

pub use file::{
    AgentEntry, CommandLine, DriverName, FleetFile, HubSettings, Limits, PowerState, Prune, Reconcile, Reserve,
    RestartPolicy, TaskEntry,
};
pub use keys::{
    CronWhen, DependsOn, DriftField, DriftPolicy, FileContent, FileMode, Idle, InvalidMode, Missed, Mount, Probe,
    SecretSource, ServiceEntry, TaskWhen, Until, Window,
};
pub use parse::{Diagnostic, FILE_MAX, Place, parse};
pub use planned::Planned;
pub use source::SourceFile;
pub use resolve::{AgentSpec, DeclaredAgent, Field, Fleet, Origin, TaskSpec, resolve_entry};

/// The JSON Schema of the fleet file.
#[must_use]
pub fn json_schema() -> schemars::Schema {
    let mut schema = schemars::schema_for!(FleetFile);
    schema.insert("title".into(), "VM Agent System fleet file".into());
    schema
}

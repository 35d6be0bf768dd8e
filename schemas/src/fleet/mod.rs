//! The fleet: what a person declares ([`FleetFile`]), and what it comes to once defaults and
//! profiles are laid under each agent ([`Fleet`]).

mod diagnostic;
mod file;
mod host;
mod keys;
mod layer;
mod outline;
mod parse;
mod planned;
mod read;
mod resolve;
mod short;
mod source;
mod syntax;
mod unite;
mod words;

pub use diagnostic::{Diagnostic, Place};
pub use file::{
    AgentEntry, CommandLine, DriverName, FleetFile, HubSettings, Limits, PowerState, Prune, Reconcile, Reserve,
    RestartPolicy, TaskEntry,
};
pub use keys::{
    CronWhen, DependsOn, DriftField, DriftPolicy, FileContent, FileMode, Idle, InvalidMode, Missed, Mount, Probe,
    SecretSource, ServiceEntry, TaskWhen, Until, Window,
};
pub use parse::{parse, parse_all};
pub use planned::Planned;
pub use resolve::{AgentSpec, DeclaredAgent, Field, Fleet, Origin, TaskSpec, resolve_entry};
pub use source::{FILE_MAX, SourceFile, decode};

/// The JSON Schema of the fleet file.
#[must_use]
pub fn json_schema() -> schemars::Schema {
    let mut schema = schemars::schema_for!(FleetFile);
    schema.insert("title".into(), "VM Agent System fleet file".into());
    schema
}

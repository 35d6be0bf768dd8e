//! The fleet: what a person declares ([`FleetFile`]), and what it comes to once defaults and
//! profiles are laid under each agent ([`Fleet`]).

mod check;
mod diagnostic;
mod file;
mod host;
mod image;
mod keys;
mod layer;
mod messages;
mod outline;
mod parse;
mod planned;
mod ports;
mod provision;
mod read;
mod resolve;
mod short;
mod source;
mod syntax;
mod task;
mod unite;
mod webhook;
mod when;
mod words;

pub use diagnostic::{Diagnostic, Place};
pub use file::{
    AgentEntry, CommandLine, DriverName, FleetFile, HubSettings, Limits, PowerState, Prune, Reconcile, Reserve,
    RestartPolicy,
};
pub use image::{ImageReference, InvalidReference};
pub use keys::{
    DependsOn, DriftField, DriftPolicy, FileContent, FileMode, Idle, InvalidMode, Mount, Probe, SecretSource,
    ServiceEntry, Until, Window,
};
pub use messages::Messages;
pub use parse::{parse, parse_all};
pub use planned::Planned;
pub use ports::Ports;
pub use provision::{
    CloudInit, DEBIAN_CLOUD_IMAGE, DEBIAN_IMAGE, DEFAULT_IMAGE, InvalidProvision, Network, Package, Provision,
    RUNTIME_USER, UserName,
};
pub use resolve::{AgentSpec, CloneOf, DeclaredAgent, Field, Fleet, Origin, SLOTS, TaskSpec, resolve_entry};
pub(crate) use short::text_or_map;
pub use source::{FILE_MAX, SourceFile, decode};
pub use task::TaskEntry;
pub use webhook::{InvalidWebhookUrl, Webhook, WebhookUrl};
pub use when::{AfterWhen, CronWhen, Missed, Overlap, TaskWhen};

/// The JSON Schema of the fleet file.
#[must_use]
pub fn json_schema() -> schemars::Schema {
    let mut schema = schemars::schema_for!(FleetFile);
    schema.insert("title".into(), "VM Agent System fleet file".into());
    schema
}

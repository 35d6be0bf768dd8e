//! The controller: everything wired together.
//!
//! ```text
//! observer ─┐                          ┌─▶ job ─▶ driver
//! ledger  ──┼─▶ inputs ─▶ plan() ─▶ reconciler
//! hub ──────┘                          └─▶ ledger (claims, operations, events)
//! ```
//!
//! The [`ledger`] is what survives, the [`observer`] what drivers see, the hub who is heard. The
//! reconciler puts them side by side in every pass. Doors ([`http`]) reach all of it through
//! [`Controller`] alone.

mod accept;
mod conditions;
mod configuring;
pub mod controller;
mod core;
#[doc(hidden)]
pub mod disk;
#[doc(hidden)]
pub mod engine;
mod host;
pub mod http;
mod hub_storage;
mod ledger;
mod logs;
pub mod machines;
mod metrics;
mod networks;
mod notices;
mod observer;
mod output;
mod reconciler;
mod retention;
mod run;
mod secrets;
mod seldom;
pub mod source;
#[doc(hidden)]
pub mod storing;
mod under_way;
mod upgrading;
mod verifying;
mod view;
mod watch;
mod webhooks;

pub use controller::{Actor, Controller};
pub use disk::LedgerError;
pub use run::{Config, Options, RunError, Running, plan_offline, run};

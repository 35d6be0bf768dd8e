//! Whole controllers, with a driver in memory and simulated runtimes that speak the real protocol.
#![expect(clippy::unwrap_used, reason = "this is a test")]

mod calendar;
mod credentials;
mod dependencies;
mod dry_run;
mod file_watch;
mod foreign;
mod hangs;
mod isolation;
mod overrides;
mod policies;
mod provisioning;
mod prune;
mod rest;
mod restart;
mod room;
mod snapshots;
mod steady;
mod store;
mod upgrade;
mod webhooks;
mod windows;

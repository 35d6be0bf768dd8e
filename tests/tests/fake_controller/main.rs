//! Whole controllers, with a driver in memory and simulated runtimes that speak the real protocol.
#![expect(clippy::unwrap_used, reason = "this is a test")]

mod credentials;
mod dry_run;
mod file_watch;
mod foreign;
mod hangs;
mod overrides;
mod prune;
mod restart;
mod steady;
mod store;

//! What must survive a controller: records in embedded SQLite, in a folder that one controller holds
//! at a time.
//!
//! The store decides nothing; it keeps records and hands them back. Each kind of record is a module
//! of free functions over a connection, so that a caller joins several in one write:
//!
//! ```no_run
//! # use vm_agent_schemas::observe::{Claim, Operation};
//! # use vm_agent_store::{Store, StoreError, claims, operations};
//! # async fn announce(store: &Store, claim: Claim, operation: Operation) -> Result<(), StoreError> {
//! store
//!     .write(move |conn| {
//!         claims::put(conn, &claim)?;
//!         operations::open(conn, &operation)
//!     })
//!     .await
//! # }
//! ```
//!
//! A write is answered after its commit has reached the disk, never before.
//!
//! What tasks write does not go into the database: the [`output`] log beside it keeps that.

mod backup;
mod error;
mod migrations;
pub mod output;
mod records;
mod state_dir;
mod store;
mod worker;

pub use error::StoreError;
pub use records::{
    approvals, audit, backoffs, claims, credentials, errands, events, messages, meta, operations, overrides, revisions,
    snapshots, tasks, tokens,
};
pub use state_dir::{StateDir, StateDirError, is_locked, read_controller_file};
pub use store::{Store, StoreStats, in_memory};

//! The types that cross a boundary of VM Agent System: the fleet file, what is observed and planned,
//! the wire protocol between runtime and hub, the channel to a guest, the HTTP API, and events.
//!
//! Nothing here does I/O or knows of an async runtime. A value of one of these types is valid: what
//! can be refused is refused while it is parsed.

pub mod api;
pub mod credential;
pub mod event;
pub mod fleet;
pub mod guest;
pub mod ids;
pub mod intent;
pub mod layout;
pub mod message;
pub mod names;
pub mod net;
pub mod observe;
pub mod plan;
pub mod schedule;
pub mod selector;
pub mod snapshot;
pub mod task;
pub mod units;
pub mod verification;
pub mod wire;

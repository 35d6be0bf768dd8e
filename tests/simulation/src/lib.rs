//! The whole control plane, simulated: the real plan, the real engine of the loop, the real hub state
//! machine and the real records in an SQLite database, in a world that is made up from a seed. Nothing
//! here waits, sleeps or draws a number from elsewhere, so that a seed says everything.
//!
//! ```text
//!   seed ─▶ World: a queue of events on a simulated clock
//!             people (files, commands, approvals)     machines and drivers that fail, hang and answer late
//!             runtimes, ghosts, connections that break     the end of the controller's life, at any effect
//!                 │                                              ▲
//!                 ▼                                              │
//!          controller: engine::turn, settle, intent …   Record │ Hub │ Begin   (one effect, one event)
//!                 │ deeds
//!                 ▼
//!          invariants: a list, each with the promise that it holds the controller to
//! ```
//!
//! - [`world`]: the queue of events, and what they lead to
//! - [`controller`]: one life of a controller, which carries the engine's effects out
//! - [`driver`]: drivers and machines; [`runtime`]: what runs in them; [`net`]: connections;
//!   [`output`]: what tasks write
//! - [`people`]: who edits files and says things
//! - [`invariants`]: what must always hold; [`deed`]: what it is judged by
//! - [`run`]: one seed, or many; [`trace`]: what happens, line by line

pub mod clock;
pub mod controller;
pub mod deed;
pub mod driver;
pub mod invariants;
pub mod net;
pub mod output;
pub mod people;
pub mod run;
pub mod runtime;
pub mod trace;
pub mod world;

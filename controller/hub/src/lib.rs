//! The hub: one session for each connected runtime, streams to processes in agents, and the delivery
//! of tasks.
//!
//! [`state`] decides: a synchronous state machine that takes events and answers with effects.
//! [`serve`] puts it behind sockets: it listens, speaks TLS and WebSocket, and carries the effects out.
//! `schemas/PROTOCOL.md` tells what goes over the wire.

mod adapter;
mod identity;
pub mod state;
mod stream;

pub use adapter::{Closings, HubHandle, Options, ServeError, Storage, TurnedAway, serve};
pub use identity::{Identity, IdentityError};
pub use state::{
    CloseReason, Directory, Member, Notice, Offer, OpenError, OutputKnown, PostError, Record, SessionInfo, Shown,
    VerifyError, configuration_fits,
};
pub use stream::{Stream, StreamEvent};

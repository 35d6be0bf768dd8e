//! The state machine, by what it is told and what it answers.

mod handshake;
mod orders;
mod protocol;
mod silence;
mod streams;
mod tasks;
mod world;

//! The state machine, by what it is told and what it answers.

mod activity;
mod handshake;
mod orders;
mod protocol;
mod reports;
mod silence;
mod streams;
mod tasks;
mod world;

//! The state machine, by what it is told and what it answers.

mod activity;
mod delivery;
mod handshake;
mod messages;
mod orders;
mod post;
mod protocol;
mod reports;
mod rotation;
mod silence;
mod streams;
mod tasks;
mod upgrade;
mod verification;
mod world;

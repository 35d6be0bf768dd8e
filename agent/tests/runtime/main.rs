//! The runtime as a real process, against a small hub by hand.

#![allow(clippy::unwrap_used, reason = "the lint knows tests only where they are marked so")]

mod files;
mod messages;
mod services;
mod session;
mod slow_disk;
mod streams;
mod support;
mod tasks;
mod terminals;
mod upgrade;

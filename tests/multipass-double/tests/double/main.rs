//! The double against the recordings of the real one, and what it can be asked to do wrong.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "this is a test")]

mod lifecycle;
mod recordings;
mod support;
mod trouble;

//! The whole program from outside: real processes, on a state folder of their own.

mod fleet;
mod follow;
#[cfg(target_os = "linux")]
pub mod multipass;
mod process;
mod proxy;
mod records;

pub use fleet::{Fleet, HUB, LIMIT, Ran, replace, runtime_program};
pub use process::{Process, send};
pub use proxy::Proxy;
pub use records::Records;

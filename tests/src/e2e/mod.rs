//! The whole program from outside: real processes, on a state folder of their own.

mod fleet;
mod follow;
mod process;
mod records;

pub use fleet::{Fleet, HUB, LIMIT, Ran, replace};
pub use process::{Process, send};
pub use records::Records;

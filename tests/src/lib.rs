//! What tests that cross crates share.

pub mod e2e;
pub mod fleet_of_fakes;
pub mod in_process;

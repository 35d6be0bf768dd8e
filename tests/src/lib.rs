//! What tests that cross crates share.

pub mod e2e;

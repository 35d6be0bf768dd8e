//! The decisions of the controller.

pub mod intent;
pub mod job;
pub mod records;

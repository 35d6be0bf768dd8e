//! The controller: everything wired together.

pub mod controller;
pub mod http;

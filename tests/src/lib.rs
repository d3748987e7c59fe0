//! Tests that cross crates, and what they share.

pub mod backends;
pub mod browser;
pub mod files;
pub mod fuzz;
pub mod models;
pub mod ops;
pub mod random;
pub mod server;
pub mod write;

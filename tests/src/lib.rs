//! Tests that cross crates, and what they share.

pub mod backends;
pub mod random;

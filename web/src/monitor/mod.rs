//! What the monitor computes from what it hears: everything that needs no browser.

pub mod board;
pub mod feed;
pub mod format;
pub mod history;
pub mod prometheus;
pub mod rate;
pub mod replay;
pub mod snapshot;
pub mod steps;
pub mod travel;
pub mod window;

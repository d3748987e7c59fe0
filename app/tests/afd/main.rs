//! Attention here, FFNs elsewhere: over every transport, and while workers die, stop, drain and join, the tokens are those
//! of one device.

mod conformance;
#[cfg(target_os = "linux")]
mod cycles;
mod models;
#[cfg(all(feature = "cluster", target_os = "linux"))]
mod nixl;
#[cfg(unix)]
mod processes;
mod refusals;
#[cfg(target_os = "linux")]
mod serve;
mod streams;

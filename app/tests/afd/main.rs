//! Attention here, FFNs elsewhere: over every transport, and while workers die, stop, drain and join, the tokens are those
//! of one device.

#[cfg(target_os = "linux")]
mod attention;
#[cfg(target_os = "linux")]
mod attention_life;
#[cfg(target_os = "linux")]
mod clients;
mod conformance;
mod models;
#[cfg(unix)]
mod processes;
mod refusals;
#[cfg(target_os = "linux")]
mod serve;
mod streams;

//! Attention here, FFNs elsewhere: over every transport, and while workers die, stop, drain and join, the tokens are those
//! of one device.

#[cfg(target_os = "linux")]
mod attention;
#[cfg(target_os = "linux")]
mod attention_life;
#[cfg(target_os = "linux")]
mod clients;
mod conformance;
#[cfg(target_os = "linux")]
mod cycles;
#[cfg(all(feature = "cluster", target_os = "linux"))]
mod etcd;
mod lives;
mod models;
#[cfg(target_os = "linux")]
mod network;
#[cfg(all(feature = "cluster", target_os = "linux"))]
mod nixl;
#[cfg(unix)]
mod processes;
mod refusals;
#[cfg(target_os = "linux")]
mod serve;
mod streams;

//! WGSL kernels, one op a file, and the wgpu back end that runs them natively and in the browser.
//!
//! [`Wgpu`] opens an adapter. Compiling a graph goes through `plan` (graph -> fused launches, pure data), `weights`
//! (repacked, uploaded, cut into segments), `buffers`, `kernels` (pipelines, kept by the device) and `program`. A step then
//! uploads a few kilobytes, encodes one pass and submits once.

mod adapter;
#[cfg(target_family = "wasm")]
mod browser;
mod buffers;
mod device;
mod format;
mod kernels;
mod lower;
mod plan;
mod profile;
mod program;
mod results;
mod segment;
mod source;
mod step;
mod weights;

pub use adapter::{AdapterReport, Selector, adapters};
pub use device::{DeviceOptions, Tuning, Wgpu};
pub use kernels::every_variant;

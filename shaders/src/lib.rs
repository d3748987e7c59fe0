//! WGSL kernels, one op a file, and the wgpu back end that runs them natively and in the browser.
//!
//! [`Wgpu`] opens an adapter. Compiling a graph goes through `plan` (graph -> fused launches, pure data), `weights`
//! (repacked, uploaded, cut into segments) and `program` (pipelines, buffers, bind groups). A step then uploads a few
//! kilobytes, encodes one pass and submits once.

mod device;
mod format;
mod kernels;
mod lower;
mod plan;
mod program;
mod source;
mod step;
mod weights;

pub use device::{AdapterReport, DeviceOptions, Selector, Tuning, Wgpu, adapters};
pub use kernels::every_variant;

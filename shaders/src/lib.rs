//! WGSL kernels and the wgpu back end.

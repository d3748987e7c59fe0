// y = x / sqrt(mean(x^2) + eps) * weight. One workgroup a row. x is rows of X_STRIDE elements from X_OFFSET on.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
#include reduce.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let x0 = group.x * X_STRIDE + X_OFFSET;
    var squares = 0.0;
    for (var i = thread; i < WIDTH; i += WORKGROUP) {
        let v = x[x0 + i];
        squares += v * v;
    }
    let scale = inverseSqrt(sum_lanes(thread, squares) / f32(WIDTH) + bitcast<f32>(EPS_BITS));
    for (var i = thread; i < WIDTH; i += WORKGROUP) {
        y[group.x * OUT_STRIDE + i] = x[x0 + i] * scale * weight[i];
    }
}

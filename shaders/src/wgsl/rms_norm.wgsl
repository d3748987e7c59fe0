// y = x / sqrt(mean(x^2) + eps) * weight. One workgroup a row. x is rows of X_STRIDE elements from X_OFFSET on.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
// WORKGROUP is a power of two.
var<workgroup> sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let x0 = group.x * X_STRIDE + X_OFFSET;
    var squares = 0.0;
    for (var i = thread; i < WIDTH; i += WORKGROUP) {
        let v = x[x0 + i];
        squares += v * v;
    }
    sums[thread] = squares;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if thread < half { sums[thread] += sums[thread + half]; }
        workgroupBarrier();
    }
    let scale = inverseSqrt(sums[0] / f32(WIDTH) + bitcast<f32>(EPS_BITS));
    for (var i = thread; i < WIDTH; i += WORKGROUP) {
        y[group.x * OUT_STRIDE + i] = x[x0 + i] * scale * weight[i];
    }
}

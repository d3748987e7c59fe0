// y[i] = x[the i-th row whose logits are wanted]. One thread an element.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < WIDTH {
        y[id.y * OUT_STRIDE + id.x] = x[step[OUTPUT_ROWS + id.y] * X_STRIDE + X_OFFSET + id.x];
    }
}

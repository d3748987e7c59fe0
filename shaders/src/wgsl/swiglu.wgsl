// y = silu(gate) * up. One thread an element.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> up: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < WIDTH {
        let g = gate[id.y * X_STRIDE + X_OFFSET + id.x];
        y[id.y * OUT_STRIDE + id.x] = g / (1.0 + exp(-g)) * up[id.y * OTHER_STRIDE + OTHER_OFFSET + id.x];
    }
}

// y[row, i] = the sum over the row's TOP_K choices of their weight times element i of their slot, in order.
// One thread an element.
@group(0) @binding(1) var<storage, read> slots: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> routing: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < WIDTH {
        let x0 = id.y * X_STRIDE + X_OFFSET + id.x;
        let weights = (2u * id.y + 1u) * TOP_K;
        var sum = 0.0;
        for (var choice = 0u; choice < TOP_K; choice++) {
            sum += bitcast<f32>(routing[weights + choice]) * slots[x0 + choice * WIDTH];
        }
        y[id.y * OUT_STRIDE + id.x] = sum;
    }
}

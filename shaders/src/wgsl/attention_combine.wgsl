// Merges the splits of attention.wgsl in order of position. One thread a quad of a head.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> pass_base: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = pass_base[0] + id.y;
    if id.x >= HEADS * QUADS || row >= step[0] { return; }
    let splits = step[POSITIONS + row] / SPLIT + 1u;
    let first = (id.y * HEADS + id.x / QUADS) * SPLITS;
    let quad = id.x % QUADS;
    var most = -3.0e38;
    var sum = 0.0;
    var acc = vec4<f32>(0.0);
    for (var s = 0u; s < splits; s++) {
        let at = (first + s) * (QUADS + 1u);
        let state = partials[at + QUADS];
        let next = max(most, state.x);
        let old = exp(most - next);
        let fresh = exp(state.x - next);
        acc = acc * old + partials[at + quad] * fresh;
        sum = sum * old + state.y * fresh;
        most = next;
    }
    y[row * OUT_STRIDE + id.x] = acc / sum;
}

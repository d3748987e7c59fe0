// y[row] = the decoded table row of the step's token. One thread a chunk of 32; a token outside the segment
// ROW0 .. ROW0 + SEGMENT_ROWS belongs to another dispatch.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
#include weights.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let chunk = id.x;
    let token = step[TOKENS + id.y];
    if chunk < CHUNKS && token >= ROW0 && token < ROW0 + SEGMENT_ROWS {
        let raw = load0(token - ROW0, chunk);
        let scale = scale0(token - ROW0, chunk);
        #for i in 0..8
        y[id.y * OUT_STRIDE + chunk * 8u + $iu] = quad0(raw, $iu) * scale.x + vec4<f32>(scale.y);
        #end
    }
}

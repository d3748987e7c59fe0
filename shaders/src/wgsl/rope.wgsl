// Rotates every head of x by its row's position. One thread an element.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> source_0: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> angles: array<vec2<f32>>;
#for s in 0..1
#include rotate.wgsl
#end

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < WIDTH {
        let head = id.x / HEAD_DIM * HEAD_DIM;
        y[id.y * OUT_STRIDE + id.x] = rotated_0(id.y * X_STRIDE + X_OFFSET + head, id.y, id.x - head);
    }
}

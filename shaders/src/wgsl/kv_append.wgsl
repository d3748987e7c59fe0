// Writes the new rows' keys (rotated here where ROPE) and values into the paged cache. One thread a quad of a head.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> source_0: array<f32>;
@group(0) @binding(2) var<storage, read> source_1: array<f32>;
#if ROPE
@group(0) @binding(3) var<storage, read> angles: array<vec2<f32>>;
#end
@group(0) @binding(4) var<storage, read_write> keys: array<Quad>;
@group(0) @binding(5) var<storage, read_write> cached_values: array<Quad>;
#include kv.wgsl
#if ROPE
#for s in 0..1
#include rotate.wgsl
#end
#end

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y;
    if id.x >= KV_HEADS * QUADS { return; }
    let head = id.x / QUADS;
    let quad = id.x % QUADS;
    let position = step[POSITIONS + row];
    let block = step[TABLE + step[TABLE_OF + row] + position / BLOCK];
    let k = row * K_STRIDE + K_OFFSET + head * HEAD_DIM;
    let v = row * V_STRIDE + V_OFFSET + head * HEAD_DIM + quad * 4u;
    #if ROPE
    let d = quad * 4u;
    let key = vec4<f32>(rotated_0(k, row, d), rotated_0(k, row, d + 1u), rotated_0(k, row, d + 2u), rotated_0(k, row, d + 3u));
    #else
    let at = k + quad * 4u;
    let key = vec4<f32>(source_0[at], source_0[at + 1u], source_0[at + 2u], source_0[at + 3u]);
    #end
    let value = vec4<f32>(source_1[v], source_1[v + 1u], source_1[v + 2u], source_1[v + 3u]);
    keys[key_at(block, head, position % BLOCK) + quad * BLOCK] = encode_quad(key);
    cached_values[value_at(block, head, position % BLOCK) + quad] = encode_quad(value);
}

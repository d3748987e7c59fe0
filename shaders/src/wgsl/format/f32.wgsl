// F32: 8 vectors a chunk.
struct Raw$m { a: array<vec4<u32>, 8> }
fn load$m(row: u32, chunk: u32) -> Raw$m {
    let at = (row * CHUNKS + chunk) * 8u;
    return Raw$m(array<vec4<u32>, 8>(values$m[at], values$m[at + 1u], values$m[at + 2u], values$m[at + 3u],
        values$m[at + 4u], values$m[at + 5u], values$m[at + 6u], values$m[at + 7u]));
}
fn quad$m(raw: Raw$m, i: u32) -> vec4<f32> { return bitcast<vec4<f32>>(raw.a[i]); }
fn scale$m(row: u32, chunk: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }

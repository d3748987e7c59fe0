// BF16: 4 vectors a chunk, two weights a word; bfloat16 is the upper half of an f32.
struct Raw$m { a: array<vec4<u32>, 4> }
fn load$m(row: u32, chunk: u32) -> Raw$m {
    let at = (row * CHUNKS + chunk) * 4u;
    return Raw$m(array<vec4<u32>, 4>(values$m[at], values$m[at + 1u], values$m[at + 2u], values$m[at + 3u]));
}
fn quad$m(raw: Raw$m, i: u32) -> vec4<f32> {
    let v = raw.a[i / 2u];
    let w = select(v.xy, v.zw, i % 2u == 1u);
    return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}
fn scale$m(row: u32, chunk: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }

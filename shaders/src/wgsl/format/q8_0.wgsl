// Q8_0: 2 vectors of signed bytes a chunk; aux holds f16 scales, two a word.
struct Raw$m { a: array<vec4<u32>, 2> }
fn load$m(row: u32, chunk: u32) -> Raw$m {
    let at = (row * CHUNKS + chunk) * 2u;
    return Raw$m(array<vec4<u32>, 2>(values$m[at], values$m[at + 1u]));
}
fn quad$m(raw: Raw$m, i: u32) -> vec4<f32> {
    let word = bitcast<i32>(raw.a[i / 4u][i % 4u]);
    return vec4<f32>(vec4<i32>(word << 24u, word << 16u, word << 8u, word) >> vec4<u32>(24u));
}
fn scale$m(row: u32, chunk: u32) -> vec2<f32> {
    let pair = unpack2x16float(aux$m[row * AUX + chunk / 2u]);
    return vec2<f32>(select(pair.x, pair.y, chunk % 2u == 1u), 0.0);
}

// Q4_0: 1 vector of nibbles a chunk, stored plus 8; aux holds f16 scales, two a word.
struct Raw$m { a: vec4<u32> }
fn load$m(row: u32, chunk: u32) -> Raw$m { return Raw$m(values$m[row * CHUNKS + chunk]); }
fn quad$m(raw: Raw$m, i: u32) -> vec4<f32> {
    let word = raw.a[i / 2u] >> (i % 2u * 4u);
    return vec4<f32>(vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u) & vec4<u32>(15u)) - vec4<f32>(8.0);
}
fn scale$m(row: u32, chunk: u32) -> vec2<f32> {
    let pair = unpack2x16float(aux$m[row * AUX + chunk / 2u]);
    return vec2<f32>(select(pair.x, pair.y, chunk % 2u == 1u), 0.0);
}

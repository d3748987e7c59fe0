// Q4_1: 1 vector of nibbles a chunk; aux holds an f16 scale and an f16 minimum a chunk.
struct Raw$m { a: vec4<u32> }
fn load$m(row: u32, chunk: u32) -> Raw$m { return Raw$m(values$m[row * CHUNKS + chunk]); }
fn quad$m(raw: Raw$m, i: u32) -> vec4<f32> {
    let word = raw.a[i / 2u] >> (i % 2u * 4u);
    return vec4<f32>(vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u) & vec4<u32>(15u));
}
fn scale$m(row: u32, chunk: u32) -> vec2<f32> { return unpack2x16float(aux$m[row * AUX + chunk]); }

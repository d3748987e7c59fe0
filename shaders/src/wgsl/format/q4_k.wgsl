// Q4_K: 1 vector of nibbles a chunk. aux holds 5 words a superblock of 8 chunks: d | dmin, then a byte of scale and
// a byte of minimum for each chunk.
struct Raw$m { a: vec4<u32> }
fn load$m(row: u32, chunk: u32) -> Raw$m { return Raw$m(values$m[row * CHUNKS + chunk]); }
fn quad$m(raw: Raw$m, i: u32) -> vec4<f32> {
    let word = raw.a[i / 2u] >> (i % 2u * 4u);
    return vec4<f32>(vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u) & vec4<u32>(15u));
}
fn scale$m(row: u32, chunk: u32) -> vec2<f32> {
    let at = row * AUX + chunk / 8u * 5u;
    let d = unpack2x16float(aux$m[at]);
    let sub = aux$m[at + 1u + chunk % 8u / 2u] >> (chunk % 2u * 16u);
    return vec2<f32>(d.x * f32(sub & 255u), -d.y * f32((sub >> 8u) & 255u));
}

// Q6_K: 1 vector of low nibbles a chunk. aux holds 21 words a superblock of 8 chunks: d (f32), 16 signed scales of
// 16 weights each, then 2 words of high bits a chunk: bits 2 f and 2 f + 1 of byte i belong to weight 4 f + i of 16.
struct Raw$m { a: vec4<u32>, high: vec2<u32>, scales: vec2<f32> }
fn load$m(row: u32, chunk: u32) -> Raw$m {
    let at = row * AUX + chunk / 8u * 21u;
    let high = at + 5u + chunk % 8u * 2u;
    let pair = bitcast<i32>(aux$m[at + 1u + chunk % 8u / 2u] << (16u - chunk % 2u * 16u));
    let scales = vec2<f32>(vec2<i32>(pair << 8u, pair) >> vec2<u32>(24u));
    return Raw$m(values$m[row * CHUNKS + chunk], vec2<u32>(aux$m[high], aux$m[high + 1u]), scales);
}
fn quad$m(raw: Raw$m, i: u32) -> vec4<f32> {
    let low = raw.a[i / 2u] >> (i % 2u * 4u);
    let high = (raw.high[i / 4u] >> (i % 4u * 2u)) << 4u;
    let l = vec4<u32>(low, low >> 8u, low >> 16u, low >> 24u) & vec4<u32>(15u);
    let h = vec4<u32>(high, high >> 8u, high >> 16u, high >> 24u) & vec4<u32>(48u);
    return (vec4<f32>(l | h) - vec4<f32>(32.0)) * raw.scales[i / 4u];
}
fn scale$m(row: u32, chunk: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(aux$m[row * AUX + chunk / 8u * 21u]), 0.0);
}

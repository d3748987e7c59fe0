// FP8 E4M3: 2 vectors a chunk. aux holds one f32 scale a tile of TILE_ROWS x TILE_COLS of each matrix.
struct Raw$m { a: array<vec4<u32>, 2> }
fn load$m(row: u32, chunk: u32) -> Raw$m {
    let at = (row * CHUNKS + chunk) * 2u;
    return Raw$m(array<vec4<u32>, 2>(values$m[at], values$m[at + 1u]));
}
// Exponent and mantissa move into an f32 with the exponent re-biased by 120. A subnormal (exponent 0) would lose
// its implicit zero that way: it is built one binade up with an implicit one, which is then subtracted. No f32
// subnormal is ever formed, since GPUs may flush those.
fn quad$m(raw: Raw$m, i: u32) -> vec4<f32> {
    let word = raw.a[i / 4u][i % 4u];
    let b = vec4<u32>(word & 255u, (word >> 8u) & 255u, (word >> 16u) & 255u, word >> 24u);
    let tiny = (b & vec4<u32>(0x78u)) == vec4<u32>(0u);
    let bias = select(vec4<u32>(0x3c000000u), vec4<u32>(0x3c800000u), tiny);
    let one = select(vec4<f32>(0.0), vec4<f32>(0.015625), tiny);
    let magnitude = bitcast<vec4<f32>>(((b & vec4<u32>(0x7fu)) << vec4<u32>(20u)) + bias) - one;
    return select(magnitude, -magnitude, (b & vec4<u32>(0x80u)) != vec4<u32>(0u));
}
fn scale$m(row: u32, chunk: u32) -> vec2<f32> {
    let global = row + ROW0;
    let tile_row = global / MATRIX_ROWS * TILES_DOWN + global % MATRIX_ROWS / TILE_ROWS;
    return vec2<f32>(bitcast<f32>(aux$m[tile_row * TILES_ACROSS + chunk * 32u / TILE_COLS]), 0.0);
}

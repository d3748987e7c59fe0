// Element d of a head that starts at element `base` of `source`, rotated by the row's angles
// (rotary position embedding; RoFormer, and its two orders of pairs).
fn rotated_$s(base: u32, row: u32, d: u32) -> f32 {
#if INTERLEAVED
    let pair = d / 2u;
    let a = source_$s[base + 2u * pair];
    let b = source_$s[base + 2u * pair + 1u];
    let second = d % 2u == 1u;
#else
    let pair = d % (HEAD_DIM / 2u);
    let a = source_$s[base + pair];
    let b = source_$s[base + pair + HEAD_DIM / 2u];
    let second = d >= HEAD_DIM / 2u;
#end
    let angle = angles[row * (HEAD_DIM / 2u) + pair];
    return select(a * angle.x - b * angle.y, b * angle.x + a * angle.y, second);
}

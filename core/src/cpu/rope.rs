//! Rotary position embedding.

use crate::graph::RopeStyle;

/// Cosine and sine of the angle of one pair at one position. The product is exact enough only in f64: at position
/// 100,000 an f32 angle is off by a hundredth of a radian.
pub(super) fn rotation(position: usize, inv_freq: f32) -> (f32, f32) {
    let (sin, cos) = (position as f64 * f64::from(inv_freq)).sin_cos();
    (cos as f32, sin as f32)
}

/// Rotates every head of `x [rows, width]`; `rotation` is `[rows, head_dim / 2]`.
pub(super) fn rope(
    x: &[f32],
    rotation: &[(f32, f32)],
    width: usize,
    head_dim: usize,
    style: RopeStyle,
    out: &mut [f32],
) {
    let half = head_dim / 2;
    let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(rotation.chunks_exact(half));
    for ((x, out), rotation) in rows {
        for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
            for (pair, (cos, sin)) in rotation.iter().enumerate() {
                let (i, j) = match style {
                    RopeStyle::Half => (pair, pair + half),
                    RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                };
                out[i] = x[i] * cos - x[j] * sin;
                out[j] = x[j] * cos + x[i] * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_rotate_their_pairs() {
        // A quarter turn for pair 0, none for pair 1.
        let turns = [(0.0, 1.0), (1.0, 0.0)];
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let mut out = [0.0; 8];
        rope(&x, &turns, 8, 4, RopeStyle::Half, &mut out);
        assert_eq!(out, [-3.0, 2.0, 1.0, 4.0, -7.0, 6.0, 5.0, 8.0]);
        rope(&x, &turns, 8, 4, RopeStyle::Interleaved, &mut out);
        assert_eq!(out, [-2.0, 1.0, 3.0, 4.0, -6.0, 5.0, 7.0, 8.0]);
    }

    #[test]
    fn angles_far_out_are_right() {
        // The angle reduced with 60 decimal digits, then its cosine and sine.
        let (cos, sin) = rotation(100_001, 0.7);
        assert!((f64::from(cos) - 0.964_116_994_003_792_8).abs() < 1e-7, "{cos}");
        assert!((f64::from(sin) + 0.265_477_723_873_568_2).abs() < 1e-7, "{sin}");
    }
}

//! RMS norm.

use super::linear::dot;

/// `x / sqrt(mean(x^2) + eps) * weight` for each row of `weight.len()` elements.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_row_has_its_own_scale() {
        let mut out = [0.0; 4];
        super::rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0], 0.0, &mut out[..2]);
        assert_eq!(out[..2], [3.0 * (1.0 / 12.5f32.sqrt()), 4.0 * (1.0 / 12.5f32.sqrt()) * 2.0]);
        super::rms_norm(&[1.0, 1.0, 0.0, 0.0], &[1.0, 2.0], 3.0, &mut out);
        assert_eq!(out, [0.5, 1.0, 0.0, 0.0]);
    }
}

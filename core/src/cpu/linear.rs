//! Matrix products with weights in any format.

use std::ops::Range;

use rayon::prelude::*;
use wide::f32x16;

use crate::Result;
use crate::lanes::LANES;
use crate::tensor::Tensor;

/// Weight rows that are decoded together. Enough that the activations are read seldom, few enough to stay in the
/// nearest cache while every activation row passes by.
const TILE: usize = 16;

/// Working memory that lives from step to step.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The transposed product.
    product: Vec<f32>,
    /// Activations of one expert.
    pub(super) expert: [Vec<f32>; 4],
}

/// `x [rows, in] -> x weight[range]^T [rows, range.len()]`.
///
/// # Errors
/// When the weight cannot be read.
pub(super) fn linear(
    x: &[f32],
    weight: &Tensor,
    range: Range<usize>,
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<()> {
    let (cols, width) = (weight.cols(), range.len());
    let rows = x.len() / cols;
    if rows == 0 {
        return Ok(());
    }
    // Each thread owns some weight rows, hence some columns of `out`. It fills rows of the transposed product
    // instead, which are contiguous.
    scratch.product.resize(rows * width, 0.0);
    scratch.product.par_chunks_mut(TILE * rows).enumerate().try_for_each_init(
        || vec![0.0; TILE * cols],
        |tile, (index, product)| {
            let first = range.start + index * TILE;
            let tile = &mut tile[..product.len() / rows * cols];
            weight.dequantize_rows(first..first + product.len() / rows, tile)?;
            for (row, x) in x.chunks_exact(cols).enumerate() {
                for (weight, product) in tile.chunks_exact(cols).zip(product.chunks_exact_mut(rows)) {
                    product[row] = dot(x, weight);
                }
            }
            Ok(())
        },
    )?;
    out.par_chunks_exact_mut(width).enumerate().for_each(|(row, out)| {
        for (out, product) in out.iter_mut().zip(scratch.product.chunks_exact(rows)) {
            *out = product[row];
        }
    });
    Ok(())
}

/// Inner product of vectors of one length. The order of the sum depends on the length alone.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = f32x16::ZERO;
    for (a, b) in a.iter().zip(b) {
        sums += f32x16::new(*a) * f32x16::new(*b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    let mut sums = sums.to_array();
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0] + rest
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tensor::{Bytes, DType};

    #[test]
    fn dot_takes_lanes_and_rest() {
        let a: Vec<f32> = (1..=37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), 37.0 * 38.0 * 75.0 / 6.0);
        assert_eq!(dot(&[], &[]), 0.0);
    }

    #[test]
    fn the_order_of_a_sum_is_fixed() {
        let numbers: Vec<f32> = (0..200).map(|i| (i as f32 * 0.7).sin()).collect();
        for len in 0..100 {
            let (a, b) = (&numbers[..len], &numbers[100..][..len]);
            let whole = len / 16 * 16;
            let mut lanes = [0.0; 16];
            (0..whole).for_each(|i| lanes[i % 16] += a[i] * b[i]);
            for width in [8, 4, 2, 1] {
                (0..width).for_each(|i| lanes[i] += lanes[i + width]);
            }
            let mut rest = 0.0;
            (whole..len).for_each(|i| rest += a[i] * b[i]);
            assert_eq!(dot(a, b).to_bits(), (lanes[0] + rest).to_bits(), "length {len}");
        }
    }

    #[test]
    fn range_and_ragged_tile() {
        // weight[i] = [i, 1], so row r = [r + 1, 10] gives (r + 1) * i + 10.
        let bytes: Vec<u8> = (0..40).flat_map(|i| [i as f32, 1.0]).flat_map(f32::to_le_bytes).collect();
        let weight =
            Tensor::new("w", DType::F32, vec![40, 2], Arc::new(Bytes::new("test", bytes)), 0).unwrap();
        let x = [1.0, 10.0, 2.0, 10.0, 3.0, 10.0];
        let mut out = vec![0.0; 3 * 35];
        linear(&x, &weight, 5..40, &mut out, &mut Scratch::default()).unwrap();
        for (r, row) in out.chunks(35).enumerate() {
            for (i, &y) in row.iter().enumerate() {
                assert_eq!(y, (r as f32 + 1.0) * (i as f32 + 5.0) + 10.0);
            }
        }
    }
}

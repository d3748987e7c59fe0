//! Activations on their way from pool to pool: rounded, packed and unpacked.
//!
//! What is packed was rounded to the same type before, by an op of the graph, so packing loses nothing.

use half::bf16;

use crate::graph::EdgeDType;
use crate::{Error, Result};

/// Columns that share a scale in [`EdgeDType::F8`].
pub const F8_GROUP: usize = 128;

/// The largest E4M3 number is 1.75 * 2^8.
const F8_TOP: (u32, i32) = (0x60_0000, 8);

/// Smallest exponent of a group's largest element. Smaller ones are as good as zero, on devices without subnormals too.
const F8_SMALLEST: i32 = -100;

/// `x [rows, width]` as it arrives when it crosses in the type `dtype`.
pub fn round(dtype: EdgeDType, x: &[f32], width: usize, out: &mut [f32]) {
    match dtype {
        EdgeDType::F32 => out.copy_from_slice(x),
        EdgeDType::BF16 => out.iter_mut().zip(x).for_each(|(out, &x)| *out = bf16::from_f32(x).to_f32()),
        EdgeDType::F8 => {
            for (x, out) in
                groups(x, width).zip(out.chunks_exact_mut(width).flat_map(|o| o.chunks_mut(F8_GROUP)))
            {
                let exponent = f8_exponent(x);
                let (down, up) = (exp2(-exponent), exp2(exponent));
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = f8_decode(f8_encode(x * down)) * up);
            }
        }
    }
}

/// Bytes of `rows` rows of `width` elements.
pub fn packed_bytes(dtype: EdgeDType, rows: usize, width: usize) -> usize {
    rows * match dtype {
        EdgeDType::F32 => 4 * width,
        EdgeDType::BF16 => 2 * width,
        EdgeDType::F8 => width + width.div_ceil(F8_GROUP),
    }
}

/// Appends `x [rows, width]`: little-endian floats; in F8 a row's elements, then a byte for each group's exponent.
pub fn pack(dtype: EdgeDType, x: &[f32], width: usize, out: &mut Vec<u8>) {
    out.reserve(packed_bytes(dtype, x.len() / width.max(1), width));
    match dtype {
        EdgeDType::F32 => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        EdgeDType::BF16 => out.extend(x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        EdgeDType::F8 => {
            for row in x.chunks_exact(width) {
                for group in row.chunks(F8_GROUP) {
                    let down = exp2(-f8_exponent(group));
                    out.extend(group.iter().map(|x| f8_encode(x * down)));
                }
                out.extend(row.chunks(F8_GROUP).map(|group| f8_exponent(group) as i8 as u8));
            }
        }
    }
}

/// What [`pack`] packed, as `[rows, width]`.
///
/// # Errors
/// [`Error::Format`] naming `from` when the bytes are not of that many rows.
pub fn unpack(dtype: EdgeDType, bytes: &[u8], rows: usize, width: usize, from: &str) -> Result<Vec<f32>> {
    let wanted = packed_bytes(dtype, rows, width);
    if bytes.len() != wanted {
        let message = format!("{} bytes where {rows} rows of {width} take {wanted}", bytes.len());
        return Err(Error::format(from, message));
    }
    let mut out = Vec::with_capacity(rows * width);
    match dtype {
        EdgeDType::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        EdgeDType::BF16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        EdgeDType::F8 => {
            for row in bytes.chunks_exact(packed_bytes(dtype, 1, width).max(1)) {
                let (elements, exponents) = row.split_at(width);
                for (elements, &exponent) in elements.chunks(F8_GROUP).zip(exponents) {
                    let up = exp2(i32::from(exponent as i8));
                    out.extend(elements.iter().map(|&e| f8_decode(e) * up));
                }
            }
        }
    }
    Ok(out)
}

/// The groups of all rows.
fn groups(x: &[f32], width: usize) -> impl Iterator<Item = &[f32]> {
    x.chunks_exact(width).flat_map(|row| row.chunks(F8_GROUP))
}

/// The exponent of the least power of two by which a group must be divided to fit E4M3.
fn f8_exponent(group: &[f32]) -> i32 {
    let largest = group.iter().fold(0f32, |max, x| max.max(x.abs())).to_bits();
    let exponent = ((largest >> 23) as i32 - 127).max(F8_SMALLEST);
    exponent - F8_TOP.1 + i32::from(largest & 0x7f_ffff > F8_TOP.0)
}

/// `2^exponent`, which must be a normal number.
const fn exp2(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The nearest E4M3 number (ties to even) of something at most 448; NaN for all that is not finite.
fn f8_encode(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    if !x.is_finite() {
        return sign | 0x7f;
    }
    let exponent = ((x.abs().to_bits() >> 23) as i32 - 127).max(-6);
    // In units of the last of the three bits of mantissa.
    let units = (x.abs() * exp2(3 - exponent)).round_ties_even() as i32;
    // Sixteen units are the next exponent's eight; fewer than eight are subnormal.
    sign | (8 * (exponent + 6) + units) as u8
}

/// The number of an E4M3 byte.
fn f8_decode(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), i32::from(byte & 7));
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa as f32 * exp2(-9),
        _ => (8 + mantissa) as f32 * exp2(exponent - 10),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quant;
    use crate::tensor::DType;

    fn rounded(dtype: EdgeDType, x: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        round(dtype, x, width, &mut out);
        out
    }

    #[test]
    fn every_f8_byte_equals_the_checkpoints_format() {
        let mut expected = [0.0; 256];
        let bytes: Vec<u8> = (0..=255).collect();
        quant::dequantize(DType::F8E4M3, &bytes, &mut expected);
        for (byte, expected) in bytes.into_iter().zip(expected) {
            let found = f8_decode(byte);
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{byte:#x}");
            assert!(f8_encode(found) & 0x7f == byte & 0x7f, "{byte:#x} becomes {:#x}", f8_encode(found));
        }
    }

    #[test]
    fn f8_takes_the_nearest_and_of_two_the_even() {
        // Between 16 and 18 with the largest 448: units of 2.
        let x = [448.0, 17.0, 17.1, 19.0, -16.9, 0.0, 2f32.powi(-10), 1.5 * 2f32.powi(-9)];
        let expected = [448.0, 16.0, 18.0, 20.0, -16.0, 0.0, 0.0, 2f32.powi(-8)];
        assert_eq!(rounded(EdgeDType::F8, &x, 8), expected);
        // 449 needs the next power of two.
        assert_eq!(rounded(EdgeDType::F8, &[449.0, 1.0], 2), [448.0, 1.0]);
        assert!(rounded(EdgeDType::F8, &[f32::INFINITY, 1.0], 2)[0].is_nan());
        assert_eq!(rounded(EdgeDType::F8, &[1e-38, 1e-40], 2), [0.0, 0.0]);
    }

    #[test]
    fn bytes_of_another_size_are_refused() {
        let error = unpack(EdgeDType::F8, &[0; 10], 1, 8, "a reply").unwrap_err().to_string();
        assert!(error.contains("a reply") && error.contains("10 bytes"), "{error}");
    }

    proptest! {
        /// Packing what was rounded loses nothing, and rounding is near.
        #[test]
        fn what_is_rounded_crosses_unchanged(
            x in prop::collection::vec(prop_oneof![
                -1e3f32..1e3, -1f32..1.0, Just(0.0), -1e-30f32..1e-30,
                // What rounds up to infinity is lost anyway.
                prop::num::f32::NORMAL.prop_map(|x| x / 4.0),
            ], 300),
            width in prop_oneof![Just(1usize), Just(3), Just(100), Just(300)],
        ) {
            for dtype in [EdgeDType::F32, EdgeDType::BF16, EdgeDType::F8] {
                let once = rounded(dtype, &x, width);
                prop_assert_eq!(&rounded(dtype, &once, width), &once);
                let mut bytes = vec![];
                pack(dtype, &once, width, &mut bytes);
                let found = unpack(dtype, &bytes, 300 / width, width, "test").unwrap();
                prop_assert_eq!(&found, &once);
                for (row, once) in x.chunks(width).zip(once.chunks(width)) {
                    for (group, once) in row.chunks(F8_GROUP).zip(once.chunks(F8_GROUP)) {
                        let largest = group.iter().fold(0f32, |max, x| max.max(x.abs()));
                        for (x, y) in group.iter().zip(once) {
                            let error = (f64::from(*x) - f64::from(*y)).abs();
                            let bound = f64::from(x.abs()) / 16.0 + f64::from(largest) * 2f64.powi(-17) + 1e-30;
                            prop_assert!(error <= bound, "{x} becomes {y} beside {largest}");
                        }
                    }
                }
            }
        }
    }
}

//! Block formats: how stored bytes become f32.
//!
//! The GGUF formats follow ggml's reference (`ggml-quants.c`, `dequantize_row_*`) in arithmetic and order, so that
//! values equal ggml's bit for bit.

use std::ops::Range;

use wide::{f32x16, u8x16, u32x16};

use crate::lanes::{LANES, halves, signed, unsigned};
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};

/// Decodes whole blocks of `dtype` from `bytes` into as many elements of `out`. FP8 comes out unscaled.
///
/// # Panics
/// When `out` is not exactly as long as the blocks in `bytes`; [`Tensor`] proves that it is.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() / dtype.block_bytes() * dtype.block_len(), out.len(), "{dtype}");
    match dtype {
        DType::F32 => each_element(bytes, out, f32::from_le_bytes),
        DType::F16 => each_half(bytes, out, f16s, f16),
        DType::BF16 => each_half(bytes, out, bf16s, bf16),
        DType::F8E4M3 => each_element(bytes, out, |[byte]| F8_E4M3[usize::from(byte)]),
        DType::Q8_0 => each_block(bytes, out, q8_0),
        DType::Q4_0 => each_block(bytes, out, q4_0),
        DType::Q4_1 => each_block(bytes, out, q4_1),
        DType::Q4K => each_block(bytes, out, q4_k),
        DType::Q6K => each_block(bytes, out, q6_k),
    }
}

/// Checks that every FP8 element, or every scale of every GGUF block, is a finite number. One NaN would spread to
/// all later tokens, so back ends refuse it when they compile. Plain float tensors are not scanned.
///
/// # Errors
/// [`Error::Tensor`] naming the tensor and the row, or that the bytes cannot be read.
pub fn check_finite(tensor: &Tensor) -> Result<()> {
    row_chunks(tensor).try_for_each(|rows| check_rows(tensor, rows.start, &tensor.read_rows(rows)?))
}

/// As [`check_finite`], for rows that are read already: `bytes` are those of the rows from `first` on.
///
/// # Errors
/// As [`check_finite`].
pub fn check_rows(tensor: &Tensor, first: usize, bytes: &[u8]) -> Result<()> {
    let half_at: &[usize] = match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => return Ok(()),
        DType::F8E4M3 => &[],
        DType::Q8_0 | DType::Q4_0 => &[0],
        DType::Q4_1 | DType::Q4K => &[0, 2],
        DType::Q6K => &[208],
    };
    let block_bytes = tensor.dtype().block_bytes();
    let row_is_finite = |row: &[u8]| match half_at {
        [] => row.iter().all(|b| b & 0x7f != 0x7f),
        _ => row
            .chunks_exact(block_bytes)
            .all(|b| half_at.iter().all(|&at| f16([b[at], b[at + 1]]).is_finite())),
    };
    match bytes.chunks_exact(tensor.row_bytes().max(1)).position(|row| !row_is_finite(row)) {
        Some(row) => {
            let what = if half_at.is_empty() { "an element" } else { "a block scale" };
            let message =
                format!("row {} holds {what} that is NaN or infinite; is the file damaged?", first + row);
            Err(Error::tensor(tensor.name(), message))
        }
        None => Ok(()),
    }
}

/// The rows of `tensor` in pieces of about a mebibyte, so that ranged reads stay small.
fn row_chunks(tensor: &Tensor) -> impl Iterator<Item = Range<usize>> {
    let (rows, step) = (tensor.rows(), ((1 << 20) / tensor.row_bytes().max(1)).max(1));
    (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
}

/// Decodes elements that are each on their own.
fn each_element<const B: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; B]) -> f32) {
    let (elements, _) = bytes.as_chunks::<B>();
    elements.iter().zip(out).for_each(|(&element, out)| *out = decode(element));
}

/// Decodes elements of two bytes: `lanes` as many at once as there are lanes, `one` what is left.
fn each_half(bytes: &[u8], out: &mut [f32], lanes: impl Fn(u32x16) -> f32x16, one: impl Fn([u8; 2]) -> f32) {
    let (chunks, rest) = bytes.as_chunks::<{ 2 * LANES }>();
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    chunks.iter().zip(outs).for_each(|(chunk, out)| *out = lanes(halves(chunk)).to_array());
    each_element(rest, out_rest, one);
}

/// Decodes blocks of `B` bytes and `N` times as many elements as there are lanes.
fn each_block<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [[f32; LANES]; N]),
) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (outs, _) = out.as_chunks_mut::<LANES>().0.as_chunks_mut::<N>();
    blocks.iter().zip(outs).for_each(|(block, out)| decode(block, out));
}

/// IEEE binary16 to f32, exact. Without branches or calls, so that loops over it vectorise.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Multiplying by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let infinite_or_nan = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | infinite_or_nan | u32::from(bits & 0x8000) << 16)
}

#[inline]
fn f16(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// [`f16_to_f32`] of every lane.
#[inline]
fn f16s(bits: u32x16) -> f32x16 {
    let magnitude = (bits & u32x16::splat(0x7fff)) << 13;
    let scaled = bytemuck::cast::<_, f32x16>(magnitude) * f32x16::splat(f32::from_bits((127 + 112) << 23));
    let exponent = u32x16::splat(0x7c00);
    let infinite_or_nan = (bits & exponent).simd_eq(exponent) & u32x16::splat(0x7f80_0000);
    let sign = (bits & u32x16::splat(0x8000)) << 16;
    bytemuck::cast(bytemuck::cast::<_, u32x16>(scaled) | infinite_or_nan | sign)
}

#[inline]
fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// [`bf16`] of every lane.
#[inline]
fn bf16s(bits: u32x16) -> f32x16 {
    bytemuck::cast(bits << 16)
}

/// As [`f16_to_f32`] for a number that is finite, as [`check_finite`] sees to for the scales of blocks: with half the
/// work, which for small blocks is a good part of all.
#[inline]
fn scale(bytes: [u8; 2]) -> f32 {
    let bits = i32::from(i16::from_le_bytes(bytes)) << 13;
    // The sign was copied downwards; only its topmost place counts.
    f32::from_bits(bits as u32 & 0x8fff_e000) * f32::from_bits((127 + 112) << 23)
}

/// The lanes of `bytes` from `at` on.
#[inline]
fn load(bytes: &[u8], at: usize) -> u8x16 {
    bytes[at..][..LANES].into()
}

/// The numbers in the lower and in the upper nibbles.
#[inline]
fn nibbles(bytes: u8x16) -> [f32x16; 2] {
    [unsigned(bytes & u8x16::splat(15)), unsigned(bytes >> 4)]
}

fn q8_0(block: &[u8; 34], out: &mut [[f32; LANES]; 2]) {
    let d = f32x16::splat(scale([block[0], block[1]]));
    for (i, out) in out.iter_mut().enumerate() {
        *out = (signed(load(block, 2 + i * LANES)) * d).to_array();
    }
}

fn q4_0(block: &[u8; 18], out: &mut [[f32; LANES]; 2]) {
    let d = f32x16::splat(scale([block[0], block[1]]));
    *out = nibbles(load(block, 2)).map(|q| ((q - f32x16::splat(8.0)) * d).to_array());
}

fn q4_1(block: &[u8; 20], out: &mut [[f32; LANES]; 2]) {
    let [d, m] = [0, 2].map(|at| f32x16::splat(scale([block[at], block[at + 1]])));
    *out = nibbles(load(block, 4)).map(|q| (q * d + m).to_array());
}

/// f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, 128 bytes of nibbles: each 32 bytes hold one sub-block
/// in their low and the next in their high nibbles.
fn q4_k(block: &[u8; 144], out: &mut [[f32; LANES]; 16]) {
    let [d, dmin] = [0, 2].map(|at| scale([block[at], block[at + 1]]));
    let (packed, qs) = block[4..].split_at(12);
    for pair in 0..4 {
        let scales = [2 * pair, 2 * pair + 1].map(|sub_block| {
            let (scale, min) = q4_k_scale(packed, sub_block);
            (f32x16::splat(d * scale), f32x16::splat(dmin * min))
        });
        for half in 0..2 {
            let q = nibbles(load(qs, pair * 32 + half * LANES));
            for (which, (q, (d, m))) in q.into_iter().zip(scales).enumerate() {
                out[pair * 4 + which * 2 + half] = (d * q - m).to_array();
            }
        }
    }
}

/// The 6-bit scale and minimum of sub-block `i` of 8: the last four keep their upper 2 bits in the first eight bytes.
fn q4_k_scale(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        ((packed[i + 4] & 15) | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// 128 bytes of low nibbles, 64 bytes of upper 2 bits, 16 signed scales, f16 d; each half of the block spreads its
/// 128 elements over 64 + 32 bytes.
fn q6_k(block: &[u8; 210], out: &mut [[f32; LANES]; 16]) {
    let d = scale([block[208], block[209]]);
    let (low, two) = (u8x16::splat(15), u8x16::splat(3));
    for half in 0..2 {
        for part in 0..2 {
            let [l0, l1] = [0, 32].map(|at| load(block, half * 64 + at + part * LANES));
            let h = load(block, 128 + half * 32 + part * LANES);
            let q = [
                l0 & low | (h & two) << 4,
                l1 & low | (h >> 2 & two) << 4,
                l0 >> 4 | (h >> 4 & two) << 4,
                l1 >> 4 | (h >> 6) << 4,
            ];
            for (quarter, q) in q.into_iter().enumerate() {
                let scale = d * f32::from(block[192 + half * 8 + quarter * 2 + part] as i8);
                let q = unsigned(q) - f32x16::splat(32.0);
                out[half * 8 + quarter * 2 + part] = (f32x16::splat(scale) * q).to_array();
            }
        }
    }
}

/// Value of every E4M3 byte: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7f and 0xff are NaN.
static F8_E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = (byte as u32 >> 3 & 15, byte as u32 & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa as f32 / 512.0,
            _ => f32::from_bits((exponent + 127 - 7) << 23 | mantissa << 20),
        };
        table[byte] = if byte & 0x80 == 0 { magnitude } else { -magnitude };
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests;

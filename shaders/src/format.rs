//! How weights lie in GPU memory: the bits of their format, regrouped so that a thread reads 16 aligned bytes.
//!
//! A row is padded to chunks of 32 weights. Each chunk has `vecs` 16-byte vectors in the *values* plane; scales
//! and high bits stand in the *aux* plane, `aux_words` a row. Nothing is rounded: every format decodes to the same
//! numbers as on the CPU. `wgsl/format/*.wgsl` read these layouts.

use half::f16;
use tread_core::tensor::DType;

/// Weights in a chunk.
pub(crate) const CHUNK: usize = 32;

/// Chunks in a row of `cols` weights.
pub(crate) fn chunks(cols: usize) -> usize {
    cols.div_ceil(CHUNK)
}

/// 16-byte vectors of values in a chunk.
pub(crate) fn vecs(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 8,
        DType::F16 | DType::BF16 => 4,
        DType::F8E4M3 | DType::Q8_0 => 2,
        DType::Q4_0 | DType::Q4_1 | DType::Q4K | DType::Q6K => 1,
    }
}

/// 32-bit words of the aux plane in a row. FP8 scales are per tile of rows, not per row, and live apart.
pub(crate) fn aux_words(dtype: DType, cols: usize) -> usize {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => 0,
        DType::Q8_0 | DType::Q4_0 => chunks(cols).div_ceil(2),
        DType::Q4_1 => chunks(cols),
        DType::Q4K => cols / 256 * 5,
        DType::Q6K => cols / 256 * 21,
    }
}

/// Whether chunks have a minimum besides a scale.
pub(crate) fn has_min(dtype: DType) -> bool {
    matches!(dtype, DType::Q4_1 | DType::Q4K)
}

/// The WGSL file that decodes the format.
pub(crate) fn wgsl(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "format/f32.wgsl",
        DType::F16 => "format/f16.wgsl",
        DType::BF16 => "format/bf16.wgsl",
        DType::F8E4M3 => "format/f8_e4m3.wgsl",
        DType::Q8_0 => "format/q8_0.wgsl",
        DType::Q4_0 => "format/q4_0.wgsl",
        DType::Q4_1 => "format/q4_1.wgsl",
        DType::Q4K => "format/q4_k.wgsl",
        DType::Q6K => "format/q6_k.wgsl",
    }
}

/// Repacks one row of `cols` weights, appending to the planes.
pub(crate) fn pack_row(dtype: DType, bytes: &[u8], cols: usize, values: &mut Vec<u8>, aux: &mut Vec<u32>) {
    let (values_start, aux_start) = (values.len(), aux.len());
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => values.extend_from_slice(bytes),
        DType::Q8_0 => {
            let blocks = bytes.chunks_exact(34);
            push_halves(blocks.clone().map(|b| [b[0], b[1]]), aux);
            blocks.for_each(|b| values.extend_from_slice(&b[2..]));
        }
        DType::Q4_0 => {
            let blocks = bytes.chunks_exact(18);
            push_halves(blocks.clone().map(|b| [b[0], b[1]]), aux);
            blocks.for_each(|b| push_split_nibbles(&b[2..], values));
        }
        DType::Q4_1 => {
            for b in bytes.chunks_exact(20) {
                aux.push(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                push_split_nibbles(&b[4..], values);
            }
        }
        DType::Q4K => bytes.chunks_exact(144).for_each(|b| pack_q4_k(b, values, aux)),
        DType::Q6K => bytes.chunks_exact(210).for_each(|b| pack_q6_k(b, values, aux)),
    }
    values.resize(values_start + chunks(cols) * vecs(dtype) * 16, 0);
    aux.resize(aux_start + aux_words(dtype, cols), 0);
}

/// Pairs of f16, two a word.
fn push_halves(halves: impl Iterator<Item = [u8; 2]>, aux: &mut Vec<u32>) {
    let halves: Vec<u16> = halves.map(u16::from_le_bytes).collect();
    aux.extend(halves.chunks(2).map(|p| u32::from(p[0]) | u32::from(p.get(1).copied().unwrap_or(0)) << 16));
}

/// 32 nibbles in kernel order: byte `4 g + i` holds weight `8 g + i` low and weight `8 g + 4 + i` high, so that
/// masking a word gives four consecutive weights.
fn push_nibbles(nibble: impl Fn(usize) -> u8, values: &mut Vec<u8>) {
    for group in 0..4 {
        for i in 0..4 {
            values.push(nibble(8 * group + i) | nibble(8 * group + 4 + i) << 4);
        }
    }
}

/// Q4_0 and Q4_1 keep weight `i` in the low and weight `i + 16` in the high nibble of byte `i`.
fn push_split_nibbles(qs: &[u8], values: &mut Vec<u8>) {
    push_nibbles(|i| if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 }, values);
}

/// Q4_K superblock: aux is `d | dmin`, then per pair of sub-blocks `scale, min, scale, min` bytes.
fn pack_q4_k(b: &[u8], values: &mut Vec<u8>, aux: &mut Vec<u32>) {
    aux.push(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let scales = &b[4..16];
    let scale_min = |j: usize| -> (u8, u8) {
        if j < 4 {
            (scales[j] & 63, scales[j + 4] & 63)
        } else {
            let (s, m) = (scales[j + 4] & 15, scales[j + 4] >> 4);
            (s | scales[j - 4] >> 6 << 4, m | scales[j] >> 6 << 4)
        }
    };
    for pair in 0..4 {
        let ((s0, m0), (s1, m1)) = (scale_min(2 * pair), scale_min(2 * pair + 1));
        aux.push(u32::from_le_bytes([s0, m0, s1, m1]));
    }
    // Sub-blocks 2n and 2n + 1 are the low and high nibbles of the same 32 bytes.
    for sub in 0..8 {
        let qs = &b[16 + sub / 2 * 32..][..32];
        push_nibbles(|i| if sub % 2 == 0 { qs[i] & 15 } else { qs[i] >> 4 }, values);
    }
}

/// Q6_K superblock: aux is d, 4 words of 16 signed scales, then 2 words a chunk of high bits, where field `f`
/// (2 bits at `2 f`) of byte `i` belongs to weight `4 f + i` of its 16.
fn pack_q6_k(b: &[u8], values: &mut Vec<u8>, aux: &mut Vec<u32>) {
    let (ql, qh, scales) = (&b[..128], &b[128..192], &b[192..208]);
    aux.push(f16::from_le_bytes([b[208], b[209]]).to_f32().to_bits());
    aux.extend(scales.chunks_exact(4).map(|s| u32::from_le_bytes([s[0], s[1], s[2], s[3]])));
    // The six bits of weight `i` of 256 (ggml's dequantize_row_q6_K): halves of 128, quarters of 32.
    let bits = |i: usize| -> u8 {
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let low = ql[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
        low | (qh[32 * half + l] >> (2 * quarter) & 3) << 4
    };
    for chunk in 0..8 {
        push_nibbles(|i| bits(32 * chunk + i) & 15, values);
        for part in 0..2 {
            let byte = |i: usize| {
                (0..4).fold(0, |a, f| a | (bits(32 * chunk + 16 * part + 4 * f + i) >> 4) << (2 * f))
            };
            aux.push(u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]));
        }
    }
}

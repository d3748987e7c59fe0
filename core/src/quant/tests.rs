use std::sync::Arc;

use rand::rngs::ChaCha12Rng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::tensor::Bytes;

const ONE: [u8; 2] = [0x00, 0x3c];
const HALF: [u8; 2] = [0x00, 0x38];
const MINUS_TWO: [u8; 2] = [0x00, 0xc0];

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dequantize(dtype, bytes, &mut out);
    out
}

#[test]
fn floats() {
    assert_eq!(decode(DType::F32, &(-1.5f32).to_le_bytes()), [-1.5]);
    assert_eq!(decode(DType::BF16, &[0xc0, 0x3f, 0x80, 0xc0]), [1.5, -4.0]);
    assert_eq!(decode(DType::F16, &[HALF, MINUS_TWO].concat()), [0.5, -2.0]);
}

#[test]
fn every_f16_equals_the_half_crate() {
    for bits in 0..=u16::MAX {
        let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
    }
}

#[test]
fn f8_extremes() {
    let bytes = [0x00, 0x80, 0x01, 0x07, 0x08, 0x38, 0xb8, 0x7e, 0xfe];
    let values = [0.0, 0.0, 2f32.powi(-9), 7.0 / 512.0, 2f32.powi(-6), 1.0, -1.0, 448.0, -448.0];
    assert_eq!(decode(DType::F8E4M3, &bytes), values);
    assert!(decode(DType::F8E4M3, &[0x7f, 0xff]).iter().all(|x| x.is_nan()));
}

#[test]
fn q8_0_is_signed() {
    let mut block = [0; 34];
    block[..2].copy_from_slice(&HALF);
    (block[2], block[3], block[33]) = (127, 0x80, 0xff);
    let out = decode(DType::Q8_0, &block);
    assert_eq!((out[0], out[1], out[2], out[31]), (63.5, -64.0, 0.0, -0.5));
}

/// One element of a block, as the formats are defined.
fn element(dtype: DType, block: &[u8], i: usize) -> f32 {
    let half = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |at: usize, i: usize| f32::from(block[at + i % 16] >> (i / 16 * 4) & 15);
    match dtype {
        DType::F32 => f32::from_le_bytes(block.try_into().unwrap()),
        DType::F16 => half(0),
        DType::BF16 => half::bf16::from_le_bytes([block[0], block[1]]).to_f32(),
        DType::F8E4M3 => F8_E4M3[usize::from(block[0])],
        DType::Q8_0 => f32::from(block[2 + i] as i8) * half(0),
        DType::Q4_0 => (nibble(2, i) - 8.0) * half(0),
        DType::Q4_1 => nibble(4, i) * half(0) + half(2),
        DType::Q4K => {
            let (scale, min) = q4_k_scale(&block[4..16], i / 32);
            let q = block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            half(0) * scale * f32::from(q) - half(2) * min
        }
        DType::Q6K => {
            let (half_block, quarter) = (i / 128, i % 128 / 32);
            let low = block[half_block * 64 + quarter % 2 * 32 + i % 32] >> (quarter / 2 * 4) & 15;
            let high = block[128 + half_block * 32 + i % 32] >> (quarter * 2) & 3;
            half(208) * f32::from(block[192 + i / 16] as i8) * (f32::from(low | high << 4) - 32.0)
        }
    }
}

#[test]
fn every_element_is_as_defined() {
    let mut random = ChaCha12Rng::seed_from_u64(1);
    for dtype in DType::ALL {
        // Blocks of one element are decoded many at a time, and the rest one by one.
        let mut bytes = vec![0; dtype.block_bytes() * 999];
        random.fill(&mut bytes[..]);
        for (index, out) in decode(dtype, &bytes).chunks(dtype.block_len()).enumerate() {
            let block = &bytes[index * dtype.block_bytes()..][..dtype.block_bytes()];
            for (i, &out) in out.iter().enumerate() {
                let expected = element(dtype, block, i);
                // Scales that are no numbers are refused before.
                if expected.is_finite() || dtype.block_len() == 1 {
                    let same = out.to_bits() == expected.to_bits() || out.is_nan() && expected.is_nan();
                    assert!(same, "{dtype} block {index} element {i}: {out} is not {expected}");
                }
            }
        }
    }
}

#[test]
fn every_scale_and_lane_equals_the_f16() {
    for first in (0..=u16::MAX).step_by(LANES) {
        let bits: [u16; LANES] = std::array::from_fn(|i| first + i as u16);
        let lanes = f16s(bits.map(u32::from).into()).to_array();
        for (bits, lane) in bits.into_iter().zip(lanes) {
            let expected = f16_to_f32(bits);
            assert!(lane.to_bits() == expected.to_bits() || lane.is_nan() && expected.is_nan());
            assert!(scale(bits.to_le_bytes()).to_bits() == expected.to_bits() || !expected.is_finite());
        }
    }
}

#[test]
fn q4_nibbles_are_half_a_block_apart() {
    let (mut q4_0, mut q4_1) = ([0x88; 18], [0x00; 20]);
    q4_0[..2].copy_from_slice(&MINUS_TWO);
    (q4_0[2], q4_0[17]) = (0xf0, 0x9a);
    let out = decode(DType::Q4_0, &q4_0);
    assert_eq!((out[0], out[16], out[15], out[31], out[1]), (16.0, -14.0, -4.0, -2.0, 0.0));

    q4_1[..2].copy_from_slice(&HALF);
    q4_1[2..4].copy_from_slice(&MINUS_TWO);
    q4_1[4] = 0xf1;
    let out = decode(DType::Q4_1, &q4_1);
    assert_eq!((out[0], out[16], out[1]), (-1.5, 5.5, -2.0));
}

#[test]
fn q4_k_scales_and_order() {
    let mut block = [0; 144];
    block[..2].copy_from_slice(&ONE);
    block[2..4].copy_from_slice(&HALF);
    // Sub-block 0: scale 3, minimum 4. Sub-block 7: scale 0b10_0101 = 37, minimum 0b01_0110 = 22.
    (block[4], block[4 + 4]) = (3, 4);
    block[4 + 3] |= 0b1000_0000;
    block[4 + 7] |= 0b0100_0000;
    block[4 + 11] = 0b0110_0101;
    block[16] = 0x05;
    block[143] = 0xf0;
    let out = decode(DType::Q4K, &block);
    assert_eq!((out[0], out[1]), (3.0 * 5.0 - 2.0, -2.0));
    assert_eq!((out[255], out[254]), (37.0 * 15.0 - 11.0, -11.0));
    assert_eq!((out[32], out[96]), (0.0, 0.0));
}

#[test]
fn q6_k_scales_and_order() {
    let mut block = [0; 210];
    block[208..].copy_from_slice(&HALF);
    for (i, scale) in block[192..208].iter_mut().enumerate() {
        *scale = if i % 2 == 0 { i as u8 + 1 } else { (-(i as i8) - 1) as u8 };
    }
    // The nibbles and upper bits of elements 0 (all ones), 96 + 31 (33), and 128 + 64 (1).
    (block[0], block[128]) = (0x0f, 0b0000_0011);
    (block[63], block[128 + 31]) = (0x10, 0b1000_0000);
    block[64] = 0x10;
    let out = decode(DType::Q6K, &block);
    assert_eq!((out[0], out[1], out[16]), (0.5 * 31.0, -16.0, 32.0));
    assert_eq!(out[127], 0.5 * -8.0 * 1.0);
    assert_eq!((out[192], out[255]), (0.5 * 13.0 * -31.0, 0.5 * -16.0 * -32.0));
}

#[test]
fn check_finite_names_tensor_and_row() {
    let tensor = |dtype, bytes: Vec<u8>, shape| {
        Tensor::new("the.weight", dtype, shape, Arc::new(Bytes::new("test", bytes)), 0).unwrap()
    };
    let mut f8 = vec![0x7e; 3 * 5];
    check_finite(&tensor(DType::F8E4M3, f8.clone(), vec![3, 5])).unwrap();
    f8[7] = 0xff;
    let error = check_finite(&tensor(DType::F8E4M3, f8, vec![3, 5])).unwrap_err().to_string();
    assert!(error.contains("the.weight") && error.contains("row 1"), "{error}");
    for (dtype, at) in
        [(DType::Q8_0, 0), (DType::Q4_0, 0), (DType::Q4_1, 2), (DType::Q4K, 2), (DType::Q6K, 208)]
    {
        let mut bytes = vec![0xff; 2 * dtype.block_bytes()];
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            block[0..4].fill(0);
            block[at..at + 2].fill(0);
        }
        check_finite(&tensor(dtype, bytes.clone(), vec![2, dtype.block_len()])).unwrap();
        bytes[dtype.block_bytes() + at + 1] = 0x7c;
        let error = check_finite(&tensor(dtype, bytes, vec![2, dtype.block_len()])).unwrap_err().to_string();
        assert!(error.contains("row 1"), "{dtype}: {error}");
    }
}

//! Random tensors in every format, valid and of sane size.

use std::sync::Arc;

use half::{bf16, f16};
use rand::rngs::ChaCha12Rng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tread_core::graph::Graph;
use tread_core::tensor::{BlockScales, Bytes, DType, Tensor};

/// The source of all randomness of a test.
pub type Rng = ChaCha12Rng;

/// A generator that gives the same numbers on every machine.
pub fn rng(seed: u64) -> Rng {
    Rng::seed_from_u64(seed)
}

/// The tile of FP8 scales in step3-fp8.
pub const FP8_TILE: [usize; 2] = [128, 128];

/// How a block format is made up: where its f16 fields are, and what they are for weights of deviation 1. All its
/// other bytes may have any value.
const fn half_fields(dtype: DType) -> &'static [(usize, f32)] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => &[],
        DType::Q8_0 => &[(0, 1.0 / 74.0)],
        DType::Q4_0 => &[(0, 1.0 / 4.6)],
        DType::Q4_1 => &[(0, 1.0 / 4.6), (2, -7.5 / 4.6)],
        DType::Q4K => &[(0, 1.0 / 270.0), (2, 7.5 / 270.0)],
        DType::Q6K => &[(208, 1.0 / 1370.0)],
    }
}

/// A tensor whose product with a vector of deviation 1 has about deviation 1.
pub fn random_tensor(rng: &mut Rng, name: &str, dtype: DType, shape: &[usize]) -> Tensor {
    let deviation = (shape.last().copied().unwrap_or(1).max(1) as f32).powf(-0.5);
    random_scaled(rng, name, dtype, shape, deviation)
}

/// A tensor whose elements have about mean 0 and the given standard deviation.
pub fn random_scaled(rng: &mut Rng, name: &str, dtype: DType, shape: &[usize], deviation: f32) -> Tensor {
    let elements: usize = shape.iter().product();
    let mut uniform = |limit: f32| rng.random_range(-limit..limit);
    // A uniform variable within sqrt(3) has deviation 1.
    let limit = 3f32.sqrt() * deviation;
    let bytes: Vec<u8> = match dtype {
        DType::F32 => (0..elements).flat_map(|_| uniform(limit).to_le_bytes()).collect(),
        DType::F16 => (0..elements).flat_map(|_| f16::from_f32(uniform(limit)).to_le_bytes()).collect(),
        DType::BF16 => (0..elements).flat_map(|_| bf16::from_f32(uniform(limit)).to_le_bytes()).collect(),
        DType::F8E4M3 => {
            let mut bytes = vec![0; elements];
            rng.fill_bytes(&mut bytes);
            // NaN becomes the largest number.
            bytes.iter_mut().filter(|b| **b & 0x7f == 0x7f).for_each(|b| *b &= 0xfe);
            bytes
        }
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q4K | DType::Q6K => {
            let mut bytes = vec![0; elements / dtype.block_len() * dtype.block_bytes()];
            rng.fill_bytes(&mut bytes);
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                let size = deviation * rng.random_range(0.5..1.5);
                for &(at, field) in half_fields(dtype) {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(field * size).to_le_bytes());
                }
            }
            bytes
        }
    };
    let tensor = Tensor::new(name, dtype, shape.to_vec(), Arc::new(Bytes::new("random", bytes)), 0);
    let tensor = tensor.expect("the shape is whole blocks");
    if dtype != DType::F8E4M3 {
        return tensor;
    }
    // All E4M3 bytes together have a deviation of about 110.
    let tiles = tensor.matrices()
        * (tensor.rows() / tensor.matrices()).div_ceil(FP8_TILE[0])
        * tensor.cols().div_ceil(FP8_TILE[1]);
    let values = (0..tiles).map(|_| deviation / 110.0 * rng.random_range(0.5..1.5)).collect();
    tensor.with_scales(BlockScales { block: FP8_TILE, values }).expect("one scale a tile")
}

/// A tensor for each weight of `graph`, in the format that `dtype` gives for its name: vectors (norms) around 1,
/// the token embedding of deviation 1, matrices as [`random_tensor`].
pub fn random_weights(rng: &mut Rng, graph: &Graph, dtype: impl Fn(&str) -> DType) -> Vec<Tensor> {
    let mut make = |name: &str, shape: &[usize]| match shape {
        [width] => {
            let bytes =
                (0..*width).flat_map(|_| rng.random_range(0.5f32..1.5).to_le_bytes()).collect::<Vec<_>>();
            Tensor::new(name, DType::F32, shape.to_vec(), Arc::new(Bytes::new("random", bytes)), 0)
                .expect("as many bytes as the shape says")
        }
        _ if name.contains("embed") => random_scaled(rng, name, dtype(name), shape, 1.0),
        _ => random_tensor(rng, name, dtype(name), shape),
    };
    graph.weights.iter().map(|w| make(&w.name, &w.shape)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_the_deviation_asked_for() {
        for dtype in DType::ALL {
            let tensor = random_tensor(&mut rng(1), "w", dtype, &[3, 130, 256]);
            tread_core::quant::check_finite(&tensor).unwrap();
            let values = tensor.to_f32().unwrap();
            let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
            let deviation = square.sqrt() * 16.0;
            assert!((0.7..1.4).contains(&deviation), "{dtype}: {deviation}");
        }
    }
}

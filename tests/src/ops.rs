//! Graphs of single ops: what the parity tests compare and the benchmarks time.

use rand::RngExt as _;
use tread_core::graph::{Builder, Graph, ValueId};

use crate::random::Rng;

/// Token ids, and so rows of input, of every case.
pub const VOCAB: usize = 61;

/// A graph that embeds tokens in rows of `width`, does what `ops` says, and ends with a head on its result.
pub fn case(width: usize, head_dim: usize, ops: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> Graph {
    let mut b = Builder::new(inv_freq(head_dim), VOCAB);
    let table = b.weight("embed", &[VOCAB, width]);
    let x = b.embed(table);
    let y = ops(&mut b, x);
    let y = b.gather_rows(y);
    let head = b.weight("head", &[VOCAB, b.width(y)]);
    let logits = b.linear(y, head, "logits");
    b.finish(logits)
}

/// Rotation speeds of a head.
pub fn inv_freq(head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect()
}

/// Random token ids of [`case`].
pub fn tokens(rng: &mut Rng, rows: usize) -> Vec<u32> {
    (0..rows).map(|_| rng.random_range(0..VOCAB as u32)).collect()
}

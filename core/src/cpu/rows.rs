//! Which rows a step has, and the ops that only move rows.

use crate::Result;
use crate::backend::{BLOCK_SIZE, Batch};
use crate::tensor::Tensor;

use super::rope::rotation;

/// The rows of the current step.
#[derive(Clone, Debug, Default)]
pub(super) struct StepRows {
    /// For each row its sequence in the batch and its position.
    pub(super) all: Vec<(usize, usize)>,
    /// The rows whose logits are wanted.
    pub(super) outputs: Vec<usize>,
    /// `[rows, head_dim / 2]`.
    pub(super) rotation: Vec<(f32, f32)>,
}

impl StepRows {
    pub(super) fn set(&mut self, batch: &Batch, inv_freq: &[f32]) {
        self.all.clear();
        self.outputs.clear();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            self.outputs.extend(sequence.outputs.iter().map(|row| self.all.len() + row));
            self.all.extend((0..sequence.tokens.len()).map(|row| (index, sequence.start + row)));
        }
        self.rotation.clear();
        for &(_, position) in &self.all {
            self.rotation.extend(inv_freq.iter().map(|&speed| rotation(position, speed)));
        }
    }
}

/// Where in the cache a position of a sequence is.
pub(super) fn slot(block_table: &[u32], position: usize) -> usize {
    block_table[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE
}

/// The table's row of each token.
///
/// # Errors
/// When the table cannot be read.
pub(super) fn embed(batch: &Batch, table: &Tensor, out: &mut [f32]) -> Result<()> {
    let tokens = batch.sequences.iter().flat_map(|s| &s.tokens);
    for (&token, out) in tokens.zip(out.chunks_exact_mut(table.cols())) {
        table.dequantize_rows(token as usize..token as usize + 1, out)?;
    }
    Ok(())
}

/// The rows of `x` whose logits are wanted.
pub(super) fn gather(x: &[f32], outputs: &[usize], width: usize, out: &mut [f32]) {
    for (row, out) in outputs.iter().zip(out.chunks_exact_mut(width)) {
        out.copy_from_slice(&x[row * width..][..width]);
    }
}

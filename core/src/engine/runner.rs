//! The executable with the batch it is given, reused from step to step.

use super::scheduler::Plan;
use super::sequence::Sequence;
use crate::Result;
use crate::backend::{Batch, Executable, LocalFuture, Output, Rows};

#[derive(Debug)]
pub(super) struct Runner {
    pub(super) executable: Box<dyn Executable>,
    batch: Batch,
}

impl Runner {
    pub(super) fn new(executable: Box<dyn Executable>) -> Self {
        Self { executable, batch: Batch::default() }
    }

    /// Starts the step that `plan` describes.
    ///
    /// # Errors
    /// As [`Executable::step`].
    pub(super) fn start(
        &mut self,
        plan: &Plan,
        running: &[Sequence],
    ) -> Result<LocalFuture<'_, Result<Output<'_>>>> {
        let batch = &mut self.batch;
        batch.copies.clone_from(&plan.copies);
        batch.sequences.resize_with(plan.chunks.len(), Rows::default);
        batch.features = false;
        for (rows, chunk) in batch.sequences.iter_mut().zip(&plan.chunks) {
            let sequence = &running[chunk.index];
            batch.features |= sequence.continuation.is_none();
            rows.start = sequence.computed;
            rows.tokens.clear();
            rows.tokens.extend_from_slice(&sequence.tokens[sequence.computed..][..chunk.rows]);
            rows.block_table.clear();
            rows.block_table.extend_from_slice(sequence.table.blocks());
            rows.outputs.clone_from(&chunk.outputs);
        }
        self.executable.step(batch)
    }
}

//! What the host tells the device of a step: tokens, positions, block tables, rotation angles.

use tread_core::backend::{BLOCK_SIZE, Batch};

use crate::plan::{SPLIT, StepLayout, StepShape};

/// The host's copy of the step buffers for the rows of one lane, reused from step to step.
#[derive(Debug)]
pub(crate) struct StepData {
    layout: StepLayout,
    inv_freq: Vec<f32>,
    words: Vec<u32>,
    /// Words in use.
    used: usize,
    shape: StepShape,
    /// `[rows, head_dim / 2]` cosine and sine.
    pub(crate) angles: Vec<[f32; 2]>,
}

impl StepData {
    pub(crate) fn new(layout: StepLayout, inv_freq: &[f32]) -> Self {
        Self {
            layout,
            inv_freq: inv_freq.to_vec(),
            words: vec![0; layout.words as usize],
            used: 0,
            shape: StepShape { rows: 0, outputs: 0, splits: 1 },
            angles: vec![],
        }
    }

    /// The sizes of the step.
    pub(crate) const fn shape(&self) -> StepShape {
        self.shape
    }

    /// What belongs in the step buffer.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words[..self.used]
    }

    /// Fills the buffers.
    pub(crate) fn fill(&mut self, batch: &Batch) {
        let layout = self.layout;
        let (mut row, mut output, mut table, mut longest) = (0, 0, 0, 1);
        self.angles.clear();
        for sequence in &batch.sequences {
            for &wanted in &sequence.outputs {
                self.words[layout.output_rows as usize + output] = row + wanted as u32;
                output += 1;
            }
            for (i, &token) in sequence.tokens.iter().enumerate() {
                let position = sequence.start + i;
                let at = row as usize;
                self.words[layout.tokens as usize + at] = token;
                self.words[layout.positions as usize + at] = position as u32;
                self.words[layout.table_of as usize + at] = table as u32;
                // f64: at position 65535 an f32 angle is off by 4e-3 radians.
                self.angles.extend(self.inv_freq.iter().map(|&f| {
                    let (sin, cos) = (position as f64 * f64::from(f)).sin_cos();
                    [cos as f32, sin as f32]
                }));
                row += 1;
                longest = longest.max(position + 1);
            }
            let used = (sequence.start + sequence.tokens.len()).div_ceil(BLOCK_SIZE);
            let blocks = &sequence.block_table[..used.min(sequence.block_table.len())];
            self.words[layout.table as usize + table..][..blocks.len()].copy_from_slice(blocks);
            table += blocks.len();
        }
        self.words[0] = row;
        self.words[1] = output as u32;
        self.shape =
            StepShape { rows: row, outputs: output as u32, splits: (longest as u32).div_ceil(SPLIT) };
        self.used = layout.table as usize + table;
    }
}

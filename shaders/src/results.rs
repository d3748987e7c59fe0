//! What a segment gives: copied to the staging buffer behind its launches, and read from there when they are done.

use tread_core::backend::{Batch, Output};
use tread_core::graph::Rows;

use crate::plan::{StepShape, Tap};

/// A slot whose rows can be copied back.
#[derive(Debug)]
pub(crate) struct ReadBack {
    pub(crate) tap: Tap,
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) rows: Rows,
    /// Rows of the slot for each row of the step.
    pub(crate) per_row: u32,
    pub(crate) width: usize,
    pub(crate) stride: usize,
}

/// What is asked for besides logits and edges, and of how many rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    shape: StepShape,
    hidden: bool,
    features: bool,
}

impl Wanted {
    pub(crate) fn new(shape: StepShape, batch: &Batch) -> Self {
        Self { shape, hidden: batch.hidden, features: batch.features }
    }

    /// Elements to copy, padding and all.
    pub(crate) fn elements(&self, from: &ReadBack) -> usize {
        let wanted = match from.tap {
            Tap::Logits | Tap::Edge(_) => true,
            Tap::Features => self.features,
            Tap::Hidden(_) => self.hidden,
        };
        if wanted { (self.shape.count(from.rows) * from.per_row) as usize * from.stride } else { 0 }
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self, from: &[ReadBack]) -> u64 {
        from.iter().map(|from| self.elements(from) as u64 * 4).sum()
    }
}

/// The last segment's results, without padding.
#[derive(Debug, Default)]
pub(crate) struct Results {
    logits: Vec<f32>,
    hidden: Vec<Vec<f32>>,
    features: Vec<f32>,
    edges: Vec<Vec<f32>>,
}

impl Results {
    /// Forgets the last segment's, but not their memory.
    pub(crate) fn clear(&mut self, hidden: usize, edges: usize) {
        self.hidden.resize(hidden, vec![]);
        self.edges.resize(edges, vec![]);
        let several = self.hidden.iter_mut().chain(&mut self.edges);
        several.chain([&mut self.logits, &mut self.features]).for_each(Vec::clear);
    }

    /// Takes the rows of one of them.
    pub(crate) fn take(&mut self, from: &ReadBack, padded: &[f32]) {
        let out = match from.tap {
            Tap::Logits => &mut self.logits,
            Tap::Features => &mut self.features,
            Tap::Hidden(at) => &mut self.hidden[at],
            Tap::Edge(at) => &mut self.edges[at],
        };
        padded.chunks_exact(from.stride).for_each(|row| out.extend_from_slice(&row[..from.width]));
    }

    pub(crate) fn output(&self) -> Output<'_> {
        let Self { logits, hidden, features, edges } = self;
        Output { logits, hidden, features, edges }
    }
}

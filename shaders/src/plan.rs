//! A plan: what to launch for a step, as pure data. [`crate::lower`] makes it, [`crate::program`] runs it.

use std::collections::BTreeMap;
use std::ops::Range;

use tread_core::backend::CompileOptions;
use tread_core::graph::{Node, Rows, Side, WeightId};
use tread_core::tensor::DType;

use crate::source::Params;

/// Tokens in a split of attention; splits start at its multiples.
pub(crate) const SPLIT: u32 = 256;
/// Words in front of the step buffer: rows, output rows.
pub(crate) const STEP_HEADER: u32 = 8;
/// Largest scratch buffer for partial attention results.
const PARTIALS_BYTES: u64 = 32 << 20;

/// A buffer a kernel binds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Operand {
    /// What the host says of the step (layout: [`StepLayout`]).
    Step,
    /// `[rows, head_dim / 2]` cosine and sine.
    Angles,
    /// Activations.
    Slot(usize),
    /// Values plane of a segment of `Plan::matrices[.0]`.
    Values(usize, usize),
    /// Aux plane of the same.
    Aux(usize, usize),
    /// A norm's weights in f32.
    Norm(WeightId),
    /// Keys of a cache layer.
    Keys(usize),
    /// Values of a cache layer.
    CachedValues(usize),
    /// Partial attention results.
    Partials,
    /// First row of an attention pass.
    PassBase(u32),
}

/// One or more weights of the same format and inner size, stacked by rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Matrix {
    pub(crate) weights: Vec<WeightId>,
}

/// Activations `[rows * per_row, stride]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) rows: Rows,
    /// Rows of the slot for each row of the step (the experts chosen).
    pub(crate) per_row: u32,
    /// Elements with meaning.
    pub(crate) width: u32,
    /// Elements from row to row; those beyond `width` are zero.
    pub(crate) stride: u32,
}

/// A pipeline to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kernel {
    pub(crate) file: &'static str,
    pub(crate) format: Option<DType>,
    pub(crate) params: Params,
}

/// Workgroups along one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Fixed(u32),
    /// Rows of the step times `times`, divided by `per`, rounded up.
    Count {
        rows: Rows,
        times: u32,
        per: u32,
    },
    /// Rows from a base on, at most `most`.
    Pass {
        base: u32,
        most: u32,
    },
    /// Splits of the longest sequence.
    Splits,
}

/// When a launch belongs to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct When {
    /// Which count is compared.
    pub(crate) rows: Rows,
    /// Smallest count.
    pub(crate) min: u32,
    /// Largest count.
    pub(crate) max: u32,
    /// Needs more than one split, or just one, or either.
    pub(crate) many_splits: Option<bool>,
}

impl When {
    /// For every step with a row of this kind.
    pub(crate) const fn any(rows: Rows) -> Self {
        Self { rows, min: 1, max: u32::MAX, many_splits: None }
    }

    pub(crate) fn holds(self, shape: StepShape) -> bool {
        let count = shape.count(self.rows);
        count >= self.min && count <= self.max && self.many_splits.is_none_or(|m| m == (shape.splits > 1))
    }
}

/// The sizes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepShape {
    pub(crate) rows: u32,
    pub(crate) outputs: u32,
    pub(crate) splits: u32,
}

impl StepShape {
    pub(crate) fn count(self, rows: Rows) -> u32 {
        match rows {
            Rows::All => self.rows,
            Rows::Output => self.outputs,
        }
    }
}

impl Extent {
    pub(crate) fn workgroups(self, shape: StepShape) -> u32 {
        match self {
            Self::Fixed(n) => n,
            Self::Count { rows, times, per } => (shape.count(rows) * times).div_ceil(per),
            Self::Pass { base, most } => shape.rows.saturating_sub(base).min(most),
            Self::Splits => shape.splits,
        }
    }
}

/// Which part of the model a launch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) name: &'static str,
    pub(crate) layer: Option<usize>,
    pub(crate) side: Side,
}

impl Label {
    pub(crate) const fn of(node: &Node) -> Self {
        Self { name: node.op.name(), layer: node.layer, side: node.side }
    }
}

/// One dispatch.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) label: Label,
    pub(crate) kernel: Kernel,
    pub(crate) when: When,
    pub(crate) grid: [Extent; 3],
    /// Binding number, buffer, written.
    pub(crate) bindings: Vec<(u32, Operand, bool)>,
}

/// Something that the host reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tap {
    Logits,
    Features,
    /// Which of the graph's.
    Hidden(usize),
    /// Which of the segment's outputs.
    Edge(usize),
}

/// Launches that run in one go, and what goes in and out, by slot.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) launches: Range<usize>,
    /// What the host writes before them.
    pub(crate) inputs: Vec<usize>,
    /// What it may read after them.
    pub(crate) results: Vec<(Tap, usize)>,
    /// What earlier segments made and this one reads.
    pub(crate) loads: Vec<usize>,
    /// What this one makes and later ones read.
    pub(crate) saves: Vec<usize>,
}

/// What to launch, in order, and over which buffers.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) launches: Vec<Launch>,
    /// As the graph's.
    pub(crate) segments: Vec<Segment>,
    pub(crate) matrices: Vec<Matrix>,
    pub(crate) slots: Vec<Slot>,
    /// Rows of an attention pass over several splits, and the bytes of its partial results.
    pub(crate) pass_rows: u32,
    pub(crate) partial_bytes: u64,
}

impl Plan {
    /// Shares buffers between slots of the same shape whose lives do not overlap: slot -> buffer.
    ///
    /// Only the same shape: elements beyond a row's width must stay zero.
    pub(crate) fn share_buffers(&self) -> (Vec<usize>, Vec<Slot>) {
        let last_use = self.last_uses();
        let mut buffers: Vec<Slot> = vec![];
        let mut buffer_of = vec![usize::MAX; self.slots.len()];
        let mut free: BTreeMap<usize, usize> = BTreeMap::new(); // buffer -> launch after which it is free
        let mut take = |slot: usize, at: usize| {
            if buffer_of[slot] != usize::MAX {
                return;
            }
            let shape = self.slots[slot];
            let reusable =
                free.iter().find(|(b, since)| **since < at && buffers[**b] == shape).map(|(b, _)| *b);
            let buffer = reusable.unwrap_or_else(|| {
                buffers.push(shape);
                buffers.len() - 1
            });
            free.insert(buffer, last_use[slot]);
            buffer_of[slot] = buffer;
        };
        for segment in &self.segments {
            // They are written before the first launch.
            segment.inputs.iter().for_each(|&slot| take(slot, segment.launches.start));
            for at in segment.launches.clone() {
                for (_, operand, _) in &self.launches[at].bindings {
                    if let Operand::Slot(slot) = *operand {
                        take(slot, at);
                    }
                }
            }
        }
        (buffer_of, buffers)
    }

    /// The last launch of each slot's life.
    fn last_uses(&self) -> Vec<usize> {
        let mut last = vec![0; self.slots.len()];
        for (at, launch) in self.launches.iter().enumerate() {
            for (_, operand, _) in &launch.bindings {
                if let Operand::Slot(slot) = operand {
                    last[*slot] = at;
                }
            }
        }
        for segment in &self.segments {
            // What the host reads lives to the end of the segment.
            let end = segment.launches.end.saturating_sub(1);
            let read = segment.results.iter().map(|&(_, slot)| (slot, end));
            let written = segment.inputs.iter().map(|&slot| (slot, segment.launches.start));
            read.chain(written).for_each(|(slot, at)| last[slot] = last[slot].max(at));
        }
        last
    }
}

/// Where things stand in the step buffer, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepLayout {
    pub(crate) tokens: u32,
    pub(crate) positions: u32,
    /// For each row, where its sequence's block table starts, relative to `table`.
    pub(crate) table_of: u32,
    pub(crate) output_rows: u32,
    pub(crate) table: u32,
    pub(crate) words: u32,
}

impl StepLayout {
    pub(crate) fn new(options: &CompileOptions) -> Self {
        let rows = options.max_rows as u32;
        let tokens = STEP_HEADER;
        let (positions, table_of, output_rows) = (tokens + rows, tokens + 2 * rows, tokens + 3 * rows);
        let table = output_rows + options.max_outputs as u32;
        Self { tokens, positions, table_of, output_rows, table, words: table + options.max_table as u32 }
    }
}

/// Rows of an attention pass, so that `heads * splits` partial results of `head_dim` fit the scratch buffer.
pub(crate) fn pass_rows(bytes_per_row: u64, max_rows: u32) -> u32 {
    (PARTIALS_BYTES / bytes_per_row.max(1)).clamp(1, u64::from(max_rows)) as u32
}

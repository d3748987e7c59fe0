//! What a back end is: a device that compiles a graph once and then runs steps.

use std::future::Future;
use std::pin::Pin;

use crate::afd::PoolStats;
use crate::graph::Graph;
use crate::monitor::{OpTime, Pool};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A future that stays on its thread: browsers have no other, and one task owns an engine.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// How the KV cache stores its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// Four bytes an element.
    F32,
    /// Two bytes an element.
    F16,
}

impl KvDType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }
}

/// Tokens in one block of the paged KV cache.
pub const BLOCK_SIZE: usize = 16;

/// Sizes that are fixed when a graph is compiled.
#[derive(Clone, Copy, Debug)]
pub struct CompileOptions {
    /// KV cache element type.
    pub kv_dtype: KvDType,
    /// Blocks of [`BLOCK_SIZE`] tokens in the KV cache, shared by all sequences.
    pub kv_blocks: usize,
    /// Most token rows in one step.
    pub max_rows: usize,
    /// Most rows whose logits are wanted in one step.
    pub max_outputs: usize,
    /// Most entries in the block tables of one step, all sequences together.
    pub max_table: usize,
    /// Micro-batches that may be between two segments of a part at the same time; 1 for whole graphs.
    pub lanes: usize,
}

impl CompileOptions {
    /// One sequence of at most `context` tokens, prefilled in chunks of `max_rows`. Logits are wanted of few rows at
    /// a time: a row is as wide as the vocabulary.
    pub fn single(context: usize, max_rows: usize, kv_dtype: KvDType) -> Self {
        let kv_blocks = context.div_ceil(BLOCK_SIZE);
        Self { kv_dtype, kv_blocks, max_rows, max_outputs: max_rows.min(64), max_table: kv_blocks, lanes: 1 }
    }
}

/// A device that can run graphs.
pub trait Backend: std::fmt::Debug {
    /// Short name: `cpu`, `wgpu`.
    fn name(&self) -> &'static str;

    /// The device, for people: `NVIDIA H100 (Vulkan)`.
    fn device(&self) -> String;

    /// The pools of devices that it is; one, unless attention and FFN are disaggregated.
    fn pools(&self) -> Vec<Pool> {
        vec![Pool::whole(self.device())]
    }

    /// Bytes of the host's own memory that a model takes whose weights and KV cache have these sizes. None on devices with
    /// memory of their own, which is not known before it is asked for: they refuse in [`Backend::compile`].
    fn host_bytes(&self, _weights: u64, _cache: u64) -> u64 {
        0
    }

    /// Makes what [`Backend::compile`] will need besides the weights' bytes, and keeps it: so that kernels can compile
    /// while a model is downloaded. Nothing is read from `weights` but what their headers say.
    ///
    /// # Errors
    /// As [`Backend::compile`].
    fn prepare(&self, _graph: &Graph, _weights: &[Tensor], _options: &CompileOptions) -> Result<()> {
        Ok(())
    }

    /// Uploads weights, makes kernels and buffers, and returns the graph ready to run. Dropping the future before its end
    /// frees all it has taken. In browsers others have their turn while it goes on.
    ///
    /// `weights[i]` is the tensor of `graph.weights[i]` (see [`crate::checkpoint::Checkpoint::bind`]).
    /// `progress` is called with weight bytes done and in all.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a weight is damaged, [`Error::Capacity`] when the model or cache does not fit the device,
    /// [`Error::Device`] when it fails.
    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>>;
}

/// What to run: a segment of a graph, for one micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The rows. In attention's part the same for all segments of a step; in FFN's only their number counts.
    pub batch: &'a Batch,
    /// Index into [`Graph::segments`]. Attention's run in order, FFN's in any.
    pub segment: usize,
    /// Where what is kept from segment to segment stays, below [`CompileOptions::lanes`].
    pub lane: usize,
    /// The segment's inputs, in its order: `[rows, width]`.
    pub inputs: &'a [Vec<f32>],
}

impl<'a> Work<'a> {
    /// A whole graph's only segment.
    pub const fn step(batch: &'a Batch) -> Self {
        Self { batch, segment: 0, lane: 0, inputs: &[] }
    }

    /// Checks the work against a graph and compile options; back ends call it first.
    ///
    /// # Errors
    /// As [`Batch::check`]; [`Error::Capacity`] too for a segment, lane or input that cannot be.
    pub fn check(&self, graph: &Graph, options: &CompileOptions) -> Result<()> {
        self.batch.check(graph, options)?;
        let Some(segment) = graph.segments.get(self.segment).filter(|_| self.lane < options.lanes) else {
            return Err(Error::Capacity(format!(
                "segment {} of {} in lane {} of {} asked for",
                self.segment,
                graph.segments.len(),
                self.lane,
                options.lanes
            )));
        };
        let rows = self.batch.rows();
        let wanted = segment.inputs.iter().map(|edge| rows * graph.value(edge.value).width);
        if !wanted.clone().eq(self.inputs.iter().map(Vec::len)) {
            let found: Vec<_> = self.inputs.iter().map(Vec::len).collect();
            let wanted: Vec<_> = wanted.collect();
            return Err(Error::Capacity(format!("inputs of {found:?} elements where {wanted:?} belong")));
        }
        Ok(())
    }
}

/// A compiled graph with its weights and KV cache on a device.
pub trait Executable: std::fmt::Debug {
    /// Starts a segment at once and returns its result as a future, so that the caller can work meanwhile.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the batch is larger than the compile options, [`Error::Device`] when the device
    /// fails. The KV cache of other sequences is untouched by an error.
    fn run<'a>(&'a mut self, work: Work<'_>) -> Result<LocalFuture<'a, Result<Output<'a>>>>;

    /// Starts a step of a whole graph.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn step<'a>(&'a mut self, batch: &Batch) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        self.run(Work::step(batch))
    }

    /// The next step also measures every op, which costs some time and changes no result.
    fn profile_next(&mut self) {}

    /// Takes what the last step measured, in order; empty where it was not asked for or the device has no clock.
    fn take_profile(&mut self) -> Vec<OpTime> {
        vec![]
    }

    /// Counters since compilation.
    fn stats(&self) -> Stats;

    /// The sizes it was compiled for.
    fn options(&self) -> &CompileOptions;
}

/// What an executable used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Kernel launches of the last step (0 where the notion does not exist).
    pub dispatches: usize,
    /// Device memory held by weights.
    pub weight_bytes: u64,
    /// Device memory held by the KV cache.
    pub kv_bytes: u64,
    /// Device memory held by activations and staging.
    pub scratch_bytes: u64,
    /// How it fares with its FFN pool, where it has one elsewhere.
    pub pool: PoolStats,
}

/// The new rows of one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// New tokens; the first stands at position `start`.
    pub tokens: Vec<u32>,
    /// Tokens of this sequence already in the cache.
    pub start: usize,
    /// Cache blocks of the sequence, enough for `start + tokens.len()` tokens.
    pub block_table: Vec<u32>,
    /// Indices into `tokens` of the rows whose logits are wanted, ascending.
    pub outputs: Vec<usize>,
}

/// A ragged batch: several sequences, each with its own new rows and block table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The sequences.
    pub sequences: Vec<Rows>,
    /// Cache blocks `(from, to)` to copy in all layers, one after another, before anything is computed: forked
    /// sequences get blocks of their own this way.
    pub copies: Vec<(u32, u32)>,
    /// Also return the hidden states.
    pub hidden: bool,
    /// Also return what the output head reads.
    pub features: bool,
}

impl Batch {
    /// So many rows of nothing: all that an FFN knows of a batch.
    pub fn of_rows(rows: usize) -> Self {
        let rows = Rows { tokens: vec![0; rows], ..Rows::default() };
        Self { sequences: vec![rows], ..Self::default() }
    }

    /// Token rows in all.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(|s| s.tokens.len()).sum()
    }

    /// Rows whose logits are wanted.
    pub fn outputs(&self) -> usize {
        self.sequences.iter().map(|s| s.outputs.len()).sum()
    }

    /// Checks the batch against a graph and compile options; back ends call it first.
    ///
    /// # Errors
    /// [`Error::Capacity`] naming the limit, [`Error::Text`] naming a token outside the vocabulary.
    pub fn check(&self, graph: &Graph, options: &CompileOptions) -> Result<()> {
        let limit = |what: &str, found: usize, limit: usize| {
            if found > limit {
                return Err(Error::Capacity(format!(
                    "a step of {found} {what} exceeds the limit of {limit}"
                )));
            }
            Ok(())
        };
        limit("rows", self.rows(), options.max_rows)?;
        limit("output rows", self.outputs(), options.max_outputs)?;
        limit(
            "block table entries",
            self.sequences.iter().map(|s| s.block_table.len()).sum(),
            options.max_table,
        )?;
        let exists = |block: u32| {
            if block as usize >= options.kv_blocks {
                return Err(Error::Capacity(format!(
                    "block {block} of {} does not exist",
                    options.kv_blocks
                )));
            }
            Ok(())
        };
        self.copies.iter().try_for_each(|&(from, to)| exists(from).and(exists(to)))?;
        if self.features && graph.features.is_none() {
            return Err(Error::Unsupported("the features of a model without a final norm".into()));
        }
        for sequence in &self.sequences {
            if !graph.kv_widths.is_empty() {
                let end = sequence.start + sequence.tokens.len();
                limit("tokens in a sequence's blocks", end, sequence.block_table.len() * BLOCK_SIZE)?;
            }
            sequence.block_table.iter().try_for_each(|&block| exists(block))?;
            if let Some(token) = sequence.tokens.iter().find(|&&t| t as usize >= graph.vocab_size) {
                return Err(Error::Text(format!(
                    "token {token} is outside the vocabulary of {}",
                    graph.vocab_size
                )));
            }
            if let Some(row) = sequence.outputs.iter().find(|&&o| o >= sequence.tokens.len()) {
                return Err(Error::Capacity(format!(
                    "output row {row} of {} asked for",
                    sequence.tokens.len()
                )));
            }
        }
        Ok(())
    }
}

/// The results of a segment, borrowed from the executable until the next one. What another segment makes is empty.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// `[output rows, vocab]`, sequence by sequence.
    pub logits: &'a [f32],
    /// For each hidden state of the graph, `[rows, hidden]`; empty unless asked for.
    pub hidden: &'a [Vec<f32>],
    /// `[output rows, hidden]`, after the final norm; empty unless asked for.
    pub features: &'a [f32],
    /// The segment's outputs, in its order: `[rows, width]`.
    pub edges: &'a [Vec<f32>],
}

//! The layers of a model as a flat list of ops over named values, in program order (SSA form).
//!
//! Values are activations `[rows, width]` in f32; a step decides the number of rows. Weights are named tensors of
//! the checkpoint. The set of ops is closed: adding one means one variant here, one CPU function, one kernel in
//! each other back end, one parity test and one benchmark row.

mod builder;
mod cut;
mod describe;
mod edges;
mod slices;

pub use builder::Builder;
pub use cut::{Part, PartGraph};
pub use edges::EdgeDType;
pub use slices::Slices;

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Index of a [`Value`] in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// Index of a [`WeightDecl`] in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// How many rows a value has in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// One for each new token of the batch.
    All,
    /// One for each row whose logits are wanted.
    Output,
}

/// An activation `[rows, width]`, f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// For people: `layers.3.ffn.gate`.
    pub name: String,
    /// Elements in a row.
    pub width: usize,
    /// Which rows it has.
    pub rows: Rows,
}

/// A weight that the graph reads.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightDecl {
    /// The name in the checkpoint (Hugging Face names; GGUF readers translate).
    pub name: String,
    /// The shape it must have.
    pub shape: Vec<usize>,
}

/// The pool that runs an op when attention and FFN are disaggregated (Step-3 paper, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Embedding, norms, attention, KV cache, router, residual adds, output head.
    Attention,
    /// Dense FFN, experts, shared expert.
    Ffn,
}

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// `(i, i + head_dim / 2)`: Hugging Face checkpoints (NeoX, rotate_half).
    Half,
    /// `(2i, 2i + 1)`: llama GGUF files, whose q and k rows are permuted.
    Interleaved,
}

/// Geometry of one attention layer: `heads` query heads share `kv_heads` heads of `head_dim` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements in a head.
    pub head_dim: usize,
}

/// One operation. Shapes are written `[rows, width]`; inputs are listed in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `() -> [rows, hidden]`: the rows of `table` (`[vocab, hidden]`) named by the step's tokens.
    Embed {
        /// `[vocab, hidden]`.
        table: WeightId,
    },
    /// `x -> x / sqrt(mean(x^2) + eps) * weight`, mean over the row.
    RmsNorm {
        /// `[width]`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
    },
    /// `x [rows, in] -> x weight^T [rows, out]`.
    Linear {
        /// `[out, in]`.
        weight: WeightId,
    },
    /// Rotates every head of `x [rows, heads * head_dim]` by its row's position times [`Graph::inv_freq`].
    Rope {
        /// Elements in a head; all of them are rotated.
        head_dim: usize,
        /// Which pairs.
        style: RopeStyle,
    },
    /// `k, v [rows, kv_heads * head_dim] -> ()`: writes the rows into the layer's KV cache. Comes before the
    /// layer's [`Op::Attention`].
    KvAppend {
        /// Cache layer.
        layer: usize,
    },
    /// `q [rows, heads * head_dim] -> [rows, heads * head_dim]`: causal softmax attention of each row over its
    /// own sequence's cache, up to and with its own position.
    Attention {
        /// Cache layer.
        layer: usize,
        /// Geometry.
        heads: Heads,
        /// Multiplies `q k^T`.
        scale: f32,
    },
    /// `gate, up [rows, w] -> silu(gate) * up`.
    SwiGlu,
    /// `a, b -> a + b`.
    Add,
    /// `logits [rows, experts] -> routing [rows, 2 * top_k]`: softmax over all experts, the `top_k` largest (ties:
    /// lowest id first). A routing row holds `top_k` expert ids as u32 bit patterns, then their `top_k` weights.
    RouterTopK {
        /// Experts chosen for a row.
        top_k: usize,
        /// Divide the chosen weights by their sum.
        renormalize: bool,
    },
    /// `x [rows, hidden], routing -> acts [rows, top_k * width]`: `silu(gate_e x) * up_e x` for the e that is a row's
    /// choice c, in its place c. Zero for experts that these weights do not hold.
    ExpertsGateUp {
        /// `[experts, width, hidden]`.
        gate: WeightId,
        /// `[experts, width, hidden]`.
        up: WeightId,
        /// Experts chosen for a row.
        top_k: usize,
        /// Id of the first expert that the weights hold.
        first: usize,
    },
    /// `acts [rows, top_k * width], routing -> slots [rows, top_k * hidden]`: slot c of a row is `down_e acts_c` for the e
    /// that is its choice c. Slots of experts that these weights do not hold are zero.
    ExpertsDown {
        /// `[experts, hidden, width]`.
        down: WeightId,
        /// Experts chosen for a row.
        top_k: usize,
        /// Id of the first expert that the weights hold.
        first: usize,
    },
    /// `slots [rows, top_k * hidden], routing -> sum over the choices c of p_c * slot_c`, in the order of the choices.
    Combine {
        /// Experts chosen for a row.
        top_k: usize,
    },
    /// `x -> x` as it arrives on the other side when it crosses in the type `to`.
    Round {
        /// What crosses.
        to: EdgeDType,
    },
    /// `x (all rows) -> x (output rows)`: keeps the rows whose logits are wanted.
    GatherRows,
}

impl Op {
    /// The op's name in listings and errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Linear { .. } => "linear",
            Self::Rope { .. } => "rope",
            Self::KvAppend { .. } => "kv_append",
            Self::Attention { .. } => "attention",
            Self::SwiGlu => "swiglu",
            Self::Add => "add",
            Self::RouterTopK { .. } => "router_top_k",
            Self::ExpertsGateUp { .. } => "experts_gate_up",
            Self::ExpertsDown { .. } => "experts_down",
            Self::Combine { .. } => "combine",
            Self::Round { .. } => "round",
            Self::GatherRows => "gather_rows",
        }
    }

    /// The weights it reads.
    pub fn weights(&self) -> Vec<WeightId> {
        self.clone().weights_mut().into_iter().map(|w| *w).collect()
    }

    fn weights_mut(&mut self) -> Vec<&mut WeightId> {
        match self {
            Self::Embed { table } => vec![table],
            Self::RmsNorm { weight, .. } | Self::Linear { weight } => vec![weight],
            Self::ExpertsGateUp { gate, up, .. } => vec![gate, up],
            Self::ExpertsDown { down, .. } => vec![down],
            Self::Rope { .. }
            | Self::KvAppend { .. }
            | Self::Attention { .. }
            | Self::SwiGlu
            | Self::Add
            | Self::RouterTopK { .. }
            | Self::Combine { .. }
            | Self::Round { .. }
            | Self::GatherRows => vec![],
        }
    }
}

/// An op with its operands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What to do.
    pub op: Op,
    /// Operands, in the order the op documents.
    pub inputs: Vec<ValueId>,
    /// The result; none for [`Op::KvAppend`].
    pub output: Option<ValueId>,
    /// The layer it belongs to; none for embedding and head.
    pub layer: Option<usize>,
    /// The pool it belongs to.
    pub side: Side,
}

/// A value that crosses from pool to pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// What crosses; the same id in every part of a graph.
    pub value: ValueId,
    /// The type that holds every element exactly.
    pub dtype: EdgeDType,
}

/// Ops of one pool that run without waiting for the other (see [`Graph::part`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Indices of its nodes.
    pub nodes: Range<usize>,
    /// The layer of its nodes that the other pool waits for.
    pub layer: Option<usize>,
    /// What the other pool gives, in the order of the values.
    pub inputs: Vec<Edge>,
    /// What the other pool wants, in the order of the values.
    pub outputs: Vec<Edge>,
    /// What later segments of the same pool still read.
    pub kept: Vec<ValueId>,
}

/// A model's computation from tokens to logits, or one pool's part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// All activations.
    pub values: Vec<Value>,
    /// All weights.
    pub weights: Vec<WeightDecl>,
    /// Ops in program order: every value is written before it is read.
    pub nodes: Vec<Node>,
    /// Rotation speed of each pair of a head, radians a position (`[head_dim / 2]`); scaling is already applied.
    pub inv_freq: Vec<f32>,
    /// KV heads times head_dim of each cache layer.
    pub kv_widths: Vec<usize>,
    /// `hidden[0]` after the embedding, `hidden[n]` after layer `n - 1` (before the final norm).
    pub hidden: Vec<ValueId>,
    /// `[output rows, hidden]`: what the output head reads, after the final norm (`last_hidden_state` in Hugging Face
    /// transformers). None in graphs without one.
    pub features: Option<ValueId>,
    /// `[output rows, vocab]`. None in the FFN pool's part.
    pub logits: Option<ValueId>,
    /// Number of token ids: ids at or above it are refused.
    pub vocab_size: usize,
    /// What runs in one go: everything, or what lies between two edges of a part.
    pub segments: Vec<Segment>,
}

impl Graph {
    /// The value `id`.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }
    /// The values that a step can return besides the logits.
    pub fn taps(&self) -> impl Iterator<Item = ValueId> {
        self.hidden.iter().copied().chain(self.features)
    }
    /// The weight `id`.
    pub fn weight(&self, id: WeightId) -> &WeightDecl {
        &self.weights[id.0]
    }
    /// Bytes of KV cache for one token over all layers, given the bytes of one element.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> usize {
        self.kv_widths.iter().map(|w| 2 * w * element_bytes).sum()
    }
}

//! What a monitor is shown: each step as it happens, and where the engine stands after it. A server sends these as its
//! event stream, a browser's worker as messages.

mod watch;

use serde::{Deserialize, Serialize};

use crate::afd::PoolStats;
use crate::graph::Side;

pub use watch::{Monitor, TokenTime};

/// What is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The model's name.
    pub model: String,
    /// The back end and its device, for people.
    pub device: String,
    /// Most tokens of a prompt and its continuation together.
    pub context: usize,
    /// What the model runs on. One pool has both sides, unless attention and FFN are disaggregated.
    pub pools: Vec<Pool>,
}

/// Devices that run one or both sides of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// For people.
    pub name: String,
    /// Its device, for people.
    pub device: String,
    /// What it runs.
    pub sides: Vec<Side>,
}

impl Pool {
    /// One device that runs everything.
    pub fn whole(device: impl Into<String>) -> Self {
        Self { name: "all".to_owned(), device: device.into(), sides: vec![Side::Attention, Side::Ffn] }
    }
}

impl Hello {
    /// One device that runs everything.
    pub fn single(model: impl Into<String>, device: impl Into<String>, context: usize) -> Self {
        let device = device.into();
        Self { model: model.into(), pools: vec![Pool::whole(device.clone())], device, context }
    }
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// Which engine made it, where a server has several.
    #[serde(default)]
    pub engine: usize,
    /// Its number since that engine started.
    pub step: u64,
    /// When it ended, in milliseconds since 1970.
    pub at_ms: u64,
    /// Choosing what runs, microseconds.
    pub schedule_us: u64,
    /// From submission to logits on the host, microseconds.
    pub compute_us: u64,
    /// Sampling, detokenising, stop conditions, microseconds.
    pub sample_us: u64,
    /// Kernel launches.
    pub dispatches: usize,
    /// Who was in the batch.
    pub rows: Vec<SequenceRows>,
    /// Seconds from arrival to first token of the requests whose first token this step made.
    pub first_tokens_s: Vec<f64>,
    /// Seconds since the previous token, for every further token that this step made.
    pub token_gaps_s: Vec<f64>,
    /// Where the time of the step went; empty unless it was measured, which costs some.
    pub ops: Vec<OpTime>,
}

/// The part of one sequence in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceRows {
    /// Its request.
    pub request: u64,
    /// Its token rows.
    pub rows: usize,
    /// Whether it decodes; else its prompt is computed.
    pub decodes: bool,
}

/// What a micro-batch goes through in a layer where attention and FFN are disaggregated: attention's segment, the way to the
/// FFN, the FFN, the way back.
pub const STAGES: [&str; 4] = ["attention", "a2f", "ffn", "f2a"];

/// One op, or several that run as one kernel; where attention and FFN are disaggregated, one of the [`STAGES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpTime {
    /// What ran: `linear`, `attention`, ...
    pub name: String,
    /// The layer it belongs to; none for embedding and head.
    pub layer: Option<usize>,
    /// The pool it belongs to.
    pub side: Side,
    /// Which of the step's micro-batches it is for, where attention and FFN are disaggregated.
    #[serde(default)]
    pub micro_batch: usize,
    /// Since the step's first op began, microseconds.
    pub start_us: f64,
    /// How long it took, microseconds.
    pub us: f64,
}

/// Where the engine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Sequences that are being computed.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Cache blocks in all.
    pub blocks: usize,
    /// Blocks that running sequences hold.
    pub blocks_used: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Of these, how many it held.
    pub prefix_hits: u64,
    /// Sequences that lost their blocks and were computed again.
    pub preemptions: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub generation_tokens: u64,
    /// Device memory held by weights.
    pub weight_bytes: u64,
    /// Device memory held by the KV cache.
    pub kv_bytes: u64,
    /// Device memory held by activations and staging.
    pub scratch_bytes: u64,
    /// How it fares with its FFN pool, where it has one elsewhere.
    pub pool: PoolStats,
}

impl Standing {
    /// What it counted since it started: what stays when it has gone.
    #[must_use]
    pub fn counted(self) -> Self {
        Self {
            prefix_queries: self.prefix_queries,
            prefix_hits: self.prefix_hits,
            preemptions: self.preemptions,
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.generation_tokens,
            pool: self.pool.counted(),
            ..Self::default()
        }
    }
}

impl std::iter::Sum for Standing {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            running: a.running + b.running,
            waiting: a.waiting + b.waiting,
            blocks: a.blocks + b.blocks,
            blocks_used: a.blocks_used + b.blocks_used,
            prefix_queries: a.prefix_queries + b.prefix_queries,
            prefix_hits: a.prefix_hits + b.prefix_hits,
            preemptions: a.preemptions + b.preemptions,
            prompt_tokens: a.prompt_tokens + b.prompt_tokens,
            generation_tokens: a.generation_tokens + b.generation_tokens,
            weight_bytes: a.weight_bytes + b.weight_bytes,
            kv_bytes: a.kv_bytes + b.kv_bytes,
            scratch_bytes: a.scratch_bytes + b.scratch_bytes,
            pool: a.pool + b.pool,
        })
    }
}

//! Attention-FFN disaggregation (Step-3 paper, section 4): the two sides of every layer run on pools of their own.
//!
//! [`crate::graph::Graph::part`] cuts a graph, and each device compiles its part as it would a whole one. [`Pipeline`] is
//! the whole again: an executable whose attention is here and whose FFNs answer from wherever an [`Ffn`] reaches.

pub mod activations;
pub mod frame;
mod local;
mod micro_batch;
mod pipeline;
mod shards;
mod tensor_parallel;
mod worker;

pub use local::LocalFfn;
pub use pipeline::Pipeline;
pub use shards::{Layout, Shard, Sharding};
pub use tensor_parallel::TensorParallel;
pub use worker::{Outputs, Worker};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::backend::LocalFuture;

/// One layer's FFN for one micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// The step it belongs to.
    pub step: u64,
    /// Which of the step's micro-batches.
    pub micro_batch: usize,
    /// The layer.
    pub layer: usize,
    /// Rows of every input.
    pub rows: usize,
    /// What attention's segment gave, in the order of its outputs: `[rows, width]`.
    pub inputs: Vec<Vec<f32>>,
}

/// What became of a [`Call`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// As in the call.
    pub step: u64,
    /// As in the call.
    pub micro_batch: usize,
    /// As in the call.
    pub layer: usize,
    /// What attention's next segment wants, in the order of its inputs: `[rows, width]`.
    pub outputs: Vec<Vec<f32>>,
    /// How long the FFN itself took, in microseconds; of several workers the longest.
    pub ffn_us: f64,
}

/// The FFN pool as attention sees it.
pub trait Ffn: std::fmt::Debug {
    /// Sends a call and returns at once.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the pool is beyond repair, [`crate::Error::Capacity`] when the call is larger than
    /// what its workers take.
    fn post(&mut self, call: Call) -> Result<()>;

    /// The next answer, to whichever call. Answers to calls of steps that were given up may come too.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] when it was waited for long enough, [`crate::Error::Device`] when it will never come.
    fn answer(&mut self) -> LocalFuture<'_, Result<Answer>>;

    /// The pool for people, and the bytes of its weights.
    fn describe(&self) -> (String, u64);

    /// How it fares; all 0 where nothing can go wrong.
    fn stats(&self) -> PoolStats {
        PoolStats::default()
    }
}

/// How an engine fares with its FFN pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStats {
    /// Workers that it has a connection to.
    pub workers: usize,
    /// Calls sent to workers, one for each shard that was wanted, since the start.
    pub calls: u64,
    /// Of these, sent once more because a worker was late, gone, or refused.
    pub resent: u64,
    /// Answers that nobody waited for any more.
    pub dropped: u64,
}

impl PoolStats {
    /// What it counted: what stays when the pool has gone.
    #[must_use]
    pub fn counted(self) -> Self {
        Self { workers: 0, ..self }
    }
}

impl std::ops::Add for PoolStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            workers: self.workers + other.workers,
            calls: self.calls + other.calls,
            resent: self.resent + other.resent,
            dropped: self.dropped + other.dropped,
        }
    }
}

//! What an FFN worker is, wherever it runs: one shard on a device.

use std::sync::Arc;

use web_time::Instant;

use super::{Call, Layout};
use crate::backend::{Backend, Batch, CompileOptions, Executable, KvDType, Work};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// One shard on a device.
#[derive(Debug)]
pub struct Worker {
    layout: Arc<Layout>,
    shard: usize,
    executable: Box<dyn Executable>,
}

/// The outputs of a segment, in its order.
pub type Outputs = Vec<Vec<f32>>;

impl Worker {
    /// Compiles a shard; of the whole graph's `weights` only its own are read.
    ///
    /// # Errors
    /// As [`Backend::compile`].
    pub async fn new(
        layout: Arc<Layout>,
        shard: usize,
        weights: &[Tensor],
        backend: &dyn Backend,
        max_rows: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let part = &layout.shards[shard].graph;
        let weights = part.bind(weights)?;
        // It has no cache and makes no logits.
        let options = CompileOptions {
            kv_blocks: 0,
            max_rows,
            max_outputs: 1,
            max_table: 1,
            ..CompileOptions::single(0, max_rows, KvDType::F32)
        };
        let executable = backend.compile(&part.graph, &weights, options, progress).await?;
        Ok(Self { layout, shard, executable })
    }

    /// For each of `calls`, which are of one layer, the outputs of its segment; and how many microseconds all took
    /// together. Rows do not know of each other, so what is computed together is as if it were computed alone.
    ///
    /// # Errors
    /// As [`Executable::run`].
    pub async fn compute(&mut self, calls: &[Call]) -> Result<(Vec<Outputs>, f64)> {
        let Some(first) = calls.first() else { return Ok((vec![], 0.0)) };
        let shard = &self.layout.shards[self.shard];
        let Some(segment) = shard.segment(first.layer) else {
            return Err(Error::Device(format!("layer {} was asked of a worker without it", first.layer)));
        };
        let rows: usize = calls.iter().map(|call| call.rows).sum();
        if rows == 0 {
            let nothing = vec![vec![]; shard.outputs(first.layer).len()];
            return Ok((vec![nothing; calls.len()], 0.0));
        }
        let given = self.layout.edges(first.layer).0;
        let wanted = shard.inputs(first.layer).iter();
        let inputs: Vec<_> = wanted
            .filter_map(|edge| given.iter().position(|e| e.value == edge.value))
            .map(|at| calls.iter().flat_map(|call| &call.inputs[at]).copied().collect::<Vec<_>>())
            .collect();
        let (batch, start) = (Batch::of_rows(rows), Instant::now());
        let work = Work { batch: &batch, segment, lane: 0, inputs: &inputs };
        let together = self.executable.run(work)?.await?.edges;
        let us = start.elapsed().as_secs_f64() * 1e6;
        let mut before = 0;
        let outputs = calls.iter().map(|call| {
            let own = before..before + call.rows;
            before = own.end;
            together.iter().map(|all| of_rows(all, rows, own.clone())).collect()
        });
        Ok((outputs.collect(), us))
    }

    /// The executable, for its statistics.
    pub fn executable(&self) -> &dyn Executable {
        &*self.executable
    }
}

/// Some of the `rows` of a value.
fn of_rows(all: &[f32], rows: usize, some: std::ops::Range<usize>) -> Vec<f32> {
    let width = all.len() / rows;
    all[some.start * width..some.end * width].to_vec()
}

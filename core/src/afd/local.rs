//! FFN workers in this process, on this thread: for browsers, and for tests of everything else.

use std::collections::VecDeque;
use std::sync::Arc;

use web_time::Instant;

use super::{Answer, Call, Ffn, Layout};
use crate::backend::{Backend, Batch, CompileOptions, Executable, LocalFuture, Work};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// One shard on a device: what an FFN worker is, wherever it runs.
#[derive(Debug)]
pub struct Worker {
    layout: Arc<Layout>,
    shard: usize,
    executable: Box<dyn Executable>,
}

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
            ..CompileOptions::single(0, max_rows, crate::backend::KvDType::F32)
        };
        let executable = backend.compile(&part.graph, &weights, options, progress).await?;
        Ok(Self { layout, shard, executable })
    }

    /// The outputs of its segment for the call's layer, and how many microseconds they took.
    ///
    /// # Errors
    /// As [`Executable::run`].
    pub async fn compute(&mut self, call: &Call) -> Result<(Vec<Vec<f32>>, f64)> {
        let shard = &self.layout.shards[self.shard];
        let Some(segment) = shard.segment(call.layer) else {
            return Err(Error::Device(format!("layer {} was asked of a worker without it", call.layer)));
        };
        let given = self.layout.edges(call.layer).0;
        let wanted = shard.inputs(call.layer).iter();
        let inputs: Vec<_> = wanted
            .filter_map(|edge| given.iter().position(|e| e.value == edge.value))
            .map(|at| call.inputs[at].clone())
            .collect();
        let (batch, start) = (Batch::of_rows(call.rows), Instant::now());
        let work = Work { batch: &batch, segment, lane: 0, inputs: &inputs };
        let outputs = self.executable.run(work)?.await?.edges.to_vec();
        Ok((outputs, start.elapsed().as_secs_f64() * 1e6))
    }

    /// The executable, for its statistics.
    pub fn executable(&self) -> &dyn Executable {
        &*self.executable
    }
}

/// Workers that compute when they are asked for their answer.
#[derive(Debug)]
pub struct LocalFfn {
    layout: Arc<Layout>,
    workers: Vec<Worker>,
    calls: VecDeque<Call>,
}

impl LocalFfn {
    /// One worker for each shard, in their order.
    pub fn new(layout: Arc<Layout>, workers: Vec<Worker>) -> Self {
        Self { layout, workers, calls: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<Answer> {
        let Some(call) = self.calls.pop_front() else {
            return Err(Error::Device("an answer was awaited that nobody was asked for".to_owned()));
        };
        let mut answer = self.layout.begin(&call);
        for shard in self.layout.wanted(&call) {
            let (outputs, us) = self.workers[shard].compute(&call).await?;
            self.layout.add(&mut answer, &call, shard, &outputs, us);
        }
        Ok(answer)
    }
}

impl Ffn for LocalFfn {
    fn post(&mut self, call: Call) -> Result<()> {
        self.calls.push_back(call);
        Ok(())
    }

    fn answer(&mut self) -> LocalFuture<'_, Result<Answer>> {
        Box::pin(self.next())
    }

    fn describe(&self) -> (String, u64) {
        let bytes = self.workers.iter().map(|w| w.executable.stats().weight_bytes).sum();
        (format!("{} workers in this process", self.workers.len()), bytes)
    }
}

//! A back end made of others: attention on one device, FFNs in a pool.

use std::sync::Arc;

use super::{Ffn, Layout, Pipeline, Sharding};
use crate::Result;
use crate::backend::{Backend, CompileOptions, Executable, LocalFuture};
use crate::graph::{EdgeDType, Graph, Part, Side};
use crate::monitor::Pool;
use crate::tensor::Tensor;

/// How attention and FFN are taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How FFNs are spread over the pool.
    pub sharding: Sharding,
    /// The type in which activations cross.
    pub dtype: EdgeDType,
    /// Micro-batches in flight.
    pub micro_batches: usize,
}

impl Default for Cut {
    /// As in the paper's three-stage pipeline; activations cross as they are.
    fn default() -> Self {
        Self { sharding: Sharding::default(), dtype: EdgeDType::default(), micro_batches: 3 }
    }
}

impl Cut {
    /// The graph with what crosses where it is cut, so that one device computes the same as two pools.
    fn graph(&self, graph: &Graph) -> Graph {
        let graph = match self.sharding {
            Sharding::Layers => graph.clone(),
            Sharding::Experts => graph.clone().combined_on_attention(),
        };
        graph.rounded(self.dtype)
    }
}

/// Where FFN workers come from.
pub trait OpenPool: std::fmt::Debug {
    /// Into how many shards the FFNs are cut.
    fn shards(&self) -> usize;

    /// The pool for people.
    fn name(&self) -> String;

    /// Starts or finds a worker for every shard. `weights` are those of the whole graph; calls have at most `max_rows`.
    ///
    /// # Errors
    /// As [`Backend::compile`]; [`crate::Error::Device`] too when workers cannot be reached or hold something else.
    fn open<'a>(
        &'a self,
        layout: Arc<Layout>,
        weights: &'a [Tensor],
        max_rows: usize,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Ffn>>>;
}

/// A device for attention with a pool for FFNs; or, without a pool, a device that rounds where two pools would.
#[derive(Debug)]
pub struct Disaggregated {
    attention: Box<dyn Backend>,
    pool: Option<Box<dyn OpenPool>>,
    cut: Cut,
}

impl Disaggregated {
    /// Attention on `attention`, FFNs in `pool` or there too.
    pub fn new(attention: Box<dyn Backend>, pool: Option<Box<dyn OpenPool>>, cut: Cut) -> Self {
        Self { attention, pool, cut }
    }

    async fn compile_parts(
        &self,
        graph: &Graph,
        weights: &[Tensor],
        options: CompileOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Box<dyn Executable>> {
        let graph = self.cut.graph(graph);
        let Some(pool) = &self.pool else {
            return self.attention.compile(&graph, weights, options, progress).await;
        };
        let layout = Arc::new(Layout::new(&graph, self.cut.sharding, pool.shards())?);
        // A micro-batch is a part of a step.
        let ffn = pool.open(layout, weights, options.max_rows, progress).await?;
        let part = graph.part(&Part::Attention)?;
        let weights = part.bind(weights)?;
        let options = CompileOptions { lanes: self.cut.micro_batches.max(1), ..options };
        let attention = self.attention.compile(&part.graph, &weights, options, progress).await?;
        Ok(Box::new(Pipeline::new(part.graph, attention, ffn)))
    }
}

impl Backend for Disaggregated {
    fn name(&self) -> &'static str {
        self.attention.name()
    }

    fn device(&self) -> String {
        match &self.pool {
            Some(pool) => format!("{}; FFN on {}", self.attention.device(), pool.name()),
            None => self.attention.device(),
        }
    }

    fn pools(&self) -> Vec<Pool> {
        let Some(pool) = &self.pool else { return self.attention.pools() };
        let attention = Pool {
            name: "attention".to_owned(),
            device: self.attention.device(),
            sides: vec![Side::Attention],
        };
        vec![attention, Pool { name: "ffn".to_owned(), device: pool.name(), sides: vec![Side::Ffn] }]
    }

    fn host_bytes(&self, weights: u64, cache: u64) -> u64 {
        self.attention.host_bytes(weights, cache)
    }

    fn prepare(&self, graph: &Graph, weights: &[Tensor], options: &CompileOptions) -> Result<()> {
        match &self.pool {
            Some(_) => Ok(()),
            None => self.attention.prepare(&self.cut.graph(graph), weights, options),
        }
    }

    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>> {
        Box::pin(self.compile_parts(graph, weights, options, progress))
    }
}

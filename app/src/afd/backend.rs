//! A back end made of two pools: whatever takes a back end runs on it without knowing.

use std::sync::Arc;

use tread_core::afd::Sharding;
use tread_core::backend::{Backend, CompileOptions, Executable, LocalFuture};
use tread_core::graph::{EdgeDType, Graph, Side};
use tread_core::model::Model;
use tread_core::monitor::Pool;
use tread_core::tensor::Tensor;
use tread_core::{Error, Result};

use super::{AfdOptions, load, shape};

/// Attention of one model on a device, its FFNs in a pool.
#[derive(Debug)]
pub struct Disaggregated {
    model: Arc<Model>,
    attention: Box<dyn Backend>,
    options: AfdOptions,
}

impl Disaggregated {
    /// Nothing is opened yet but `attention`.
    pub fn new(model: Arc<Model>, attention: Box<dyn Backend>, options: AfdOptions) -> Self {
        Self { model, attention, options }
    }
}

impl Backend for Disaggregated {
    fn name(&self) -> &'static str {
        self.attention.name()
    }

    fn device(&self) -> String {
        format!("{}; FFN on {}", self.attention.device(), self.options.ffn)
    }

    fn pools(&self) -> Vec<Pool> {
        let pool = |name: &str, device, side| Pool { name: name.to_owned(), device, sides: vec![side] };
        let attention = pool("attention", self.attention.device(), Side::Attention);
        vec![attention, pool("ffn", self.options.ffn.to_string(), Side::Ffn)]
    }

    fn host_bytes(&self, weights: u64, cache: u64) -> u64 {
        self.attention.host_bytes(weights, cache)
    }

    /// Compiles the model that it was made for.
    fn compile<'a>(
        &'a self,
        _graph: &'a Graph,
        _weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>> {
        Box::pin(async move {
            let loaded = load(&self.model, &*self.attention, options, &self.options, progress).await;
            loaded
                .map_err(|error| error.downcast().unwrap_or_else(|error| Error::Device(format!("{error:#}"))))
        })
    }
}

/// One device that rounds where two pools would, so that it computes the same as they do.
#[derive(Debug)]
pub struct Rounding {
    device: Box<dyn Backend>,
    /// What crosses, and as what.
    shape: (Sharding, EdgeDType),
}

impl Rounding {
    /// Rounds as pools do over which FFNs are spread in this way.
    pub fn new(device: Box<dyn Backend>, sharding: Sharding, dtype: EdgeDType) -> Self {
        Self { device, shape: (sharding, dtype) }
    }
}

impl Backend for Rounding {
    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn device(&self) -> String {
        self.device.device()
    }

    fn host_bytes(&self, weights: u64, cache: u64) -> u64 {
        self.device.host_bytes(weights, cache)
    }

    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>> {
        let graph = shape(graph, self.shape.0, self.shape.1);
        Box::pin(async move { self.device.compile(&graph, weights, options, progress).await })
    }
}

//! Several devices of a host that compute a shard together (tensor parallelism): a back end like any other.
//!
//! Each device holds some rows of every matrix ([`Graph::slices`]). A segment is run in stages, by all of them at once;
//! between stages the host puts their pieces together and gives each device all of them.

use std::mem::take;

use crate::backend::{Backend, Batch, CompileOptions, Executable, LocalFuture, Output, Stats, Work};
use crate::graph::{Graph, Slices};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Devices of one back end as one device. It takes FFN workers' parts only.
#[derive(Debug)]
pub struct TensorParallel {
    name: &'static str,
    devices: Vec<Box<dyn Backend>>,
}

impl TensorParallel {
    /// # Errors
    /// [`Error::Config`] when the devices are of different back ends, which add in different orders: what they made together
    /// would be what no device makes alone.
    pub fn new(devices: Vec<Box<dyn Backend>>) -> Result<Self> {
        let names: Vec<_> = devices.iter().map(|device| device.name()).collect();
        let Some(&name) = names.first() else {
            return Err(Error::Config("no devices that could compute together".to_owned()));
        };
        if names.iter().any(|other| *other != name) {
            return Err(Error::Config(format!(
                "{} cannot compute a shard together: they add in different orders; take devices of one back end",
                names.join(" and ")
            )));
        }
        let device = devices[0].device();
        if let Some(other) = devices.iter().map(|d| d.device()).find(|other| *other != device) {
            tracing::warn!(
                device,
                other,
                "devices of different kinds compute a shard together; tokens may differ from those of either alone"
            );
        }
        Ok(Self { name, devices })
    }
}

impl Backend for TensorParallel {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device(&self) -> String {
        self.devices.iter().map(|device| device.device()).collect::<Vec<_>>().join(" + ")
    }

    /// Each holds its own piece.
    fn host_bytes(&self, weights: u64, cache: u64) -> u64 {
        self.devices[0].host_bytes(weights, cache)
    }

    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>> {
        Box::pin(async move {
            let slices = graph.slices(weights, self.devices.len())?;
            let total = weights.iter().map(Tensor::bytes).sum();
            let (mut before, mut devices) = (0, vec![]);
            for (at, device) in self.devices.iter().enumerate() {
                let own = slices.bind(at, weights)?;
                let mut loaded = |done, _| progress(before + done, total);
                devices.push(device.compile(&slices.graphs[at], &own, options, &mut loaded).await?);
                before += own.iter().map(Tensor::bytes).sum::<u64>();
            }
            let values = vec![vec![]; graph.values.len()];
            let graph = graph.clone();
            let together = Together { graph, options, slices, devices, values, edges: vec![], dispatches: 0 };
            Ok(Box::new(together) as Box<dyn Executable>)
        })
    }
}

/// A part on several devices. It does not measure ops.
#[derive(Debug)]
struct Together {
    /// The part.
    graph: Graph,
    options: CompileOptions,
    slices: Slices,
    devices: Vec<Box<dyn Executable>>,
    /// Of the part's values those that are whole, in the segment that is run.
    values: Vec<Vec<f32>>,
    edges: Vec<Vec<f32>>,
    /// Of the last segment.
    dispatches: usize,
}

impl Together {
    async fn segment(&mut self, batch: Batch, segment: usize, lane: usize) -> Result<Output<'_>> {
        self.dispatches = 0;
        for stage in self.slices.stages[segment].clone() {
            self.stage(&batch, stage, lane).await?;
        }
        let outputs = &self.graph.segments[segment].outputs;
        self.edges = outputs.iter().map(|edge| take(&mut self.values[edge.value.0])).collect();
        Ok(Output { logits: &[], hidden: &[], features: &[], edges: &self.edges })
    }

    async fn stage(&mut self, batch: &Batch, stage: usize, lane: usize) -> Result<()> {
        let Self { slices, devices, values, .. } = self;
        let of = &slices.graphs[0].segments[stage];
        let inputs: Vec<_> = of.inputs.iter().map(|edge| take(&mut values[edge.value.0])).collect();
        let work = Work { batch, segment: stage, lane, inputs: &inputs };
        // All have begun before the first is waited for.
        let begun = devices.iter_mut().map(|device| device.run(work)).collect::<Result<Vec<_>>>()?;
        let mut made = vec![];
        for output in begun {
            made.push(output.await?.edges);
        }
        for (at, edge) in of.outputs.iter().enumerate() {
            let pieces: Vec<_> = made.iter().map(|edges| edges[at].as_slice()).collect();
            let (value, whole) = slices.join(edge.value, &pieces);
            values[value.0] = whole;
        }
        for (edge, input) in of.inputs.iter().zip(inputs) {
            values[edge.value.0] = input;
        }
        self.dispatches += self.devices.iter().map(|device| device.stats().dispatches).sum::<usize>();
        Ok(())
    }
}

impl Executable for Together {
    fn run<'a>(&'a mut self, work: Work<'_>) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        work.check(&self.graph, &self.options)?;
        let Work { batch, segment, lane, inputs } = work;
        for (edge, input) in self.graph.segments[segment].inputs.iter().zip(inputs) {
            self.values[edge.value.0].clone_from(input);
        }
        Ok(Box::pin(self.segment(Batch::of_rows(batch.rows()), segment, lane)))
    }

    fn stats(&self) -> Stats {
        let all = self.devices.iter().map(|device| device.stats());
        let sum = |pick: fn(Stats) -> u64| all.clone().map(pick).sum();
        Stats {
            dispatches: self.dispatches,
            weight_bytes: sum(|stats| stats.weight_bytes),
            kv_bytes: sum(|stats| stats.kv_bytes),
            scratch_bytes: sum(|stats| stats.scratch_bytes),
            ..Stats::default()
        }
    }

    fn options(&self) -> &CompileOptions {
        &self.options
    }
}

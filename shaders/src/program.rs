//! A compiled graph: weights, buffers and bind groups made once; a segment writes, encodes one pass, submits,
//! reads back.

use std::sync::Arc;

use tread_core::backend::{CompileOptions, Executable, LocalFuture, Output, Stats, Work};
use tread_core::graph::Graph;
use tread_core::monitor::OpTime;
use tread_core::tensor::Tensor;
use tread_core::{Error, Result};

use crate::buffers::{Buffers, map};
use crate::device::{Health, Wgpu};
use crate::plan::{Extent, Label, Launch, Operand, StepLayout, StepShape, When};
use crate::profile::Profiler;
use crate::results::{Results, Wanted};
use crate::segment::Segment;
use crate::step::StepData;

/// A dispatch with everything bound.
#[derive(Debug)]
struct Dispatch {
    label: Label,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    when: When,
    grid: [Extent; 3],
}

impl Dispatch {
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, shape: StepShape) {
        let [x, y, z] = self.grid.map(|e| e.workgroups(shape));
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

/// A graph on a device.
#[derive(Debug)]
pub(crate) struct Program {
    device: wgpu::Device,
    queue: wgpu::Queue,
    health: Arc<Health>,
    graph: Graph,
    options: CompileOptions,
    dispatches: Vec<Dispatch>,
    segments: Vec<Segment>,
    /// Of each lane.
    steps: Vec<StepData>,
    buffers: Buffers,
    /// The staging buffer is being mapped: a step whose future was dropped leaves it so.
    staging_busy: bool,
    profile_next: bool,
    profile: Vec<OpTime>,
    results: Results,
    /// Rows of an input with their padding.
    padded: Vec<f32>,
}

impl Program {
    /// Lowers the graph, takes its buffers, fills them and, meanwhile, compiles its pipelines. None when the device is out of memory.
    pub(crate) async fn new(
        gpu: &Wgpu,
        graph: &Graph,
        weights: &[Tensor],
        options: CompileOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<Self>> {
        let plan = gpu.plan(graph, weights, &options)?;
        // Everything is taken before anything is compiled or uploaded: what does not fit shows at once.
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffers = Buffers::allocate(gpu, graph, &plan, weights, options);
        let full = scope.pop();
        let buffers = buffers?;
        if full.await.is_some() {
            return Ok(None);
        }
        let compiling = gpu.pipelines.begin(&gpu.device, &plan.launches);
        buffers.upload(gpu, &plan, weights, progress).await?;
        compiling.wait()?;
        match gpu.health.check() {
            Err(Error::Capacity(_)) => return Ok(None),
            checked => checked?,
        }
        let dispatches = plan.launches.iter().map(|l| bind(gpu, &buffers, l)).collect::<Result<_>>()?;
        let segments = plan.segments.iter().zip(&graph.segments);
        let segments = segments.map(|(s, of)| Segment::new(s, of.outputs.len(), &plan, &buffers));
        let step = || StepData::new(StepLayout::new(&options), &graph.inv_freq);
        Ok(Some(Self {
            device: gpu.device.clone(),
            queue: gpu.queue.clone(),
            health: Arc::clone(&gpu.health),
            graph: graph.clone(),
            steps: (0..options.lanes).map(|_| step()).collect(),
            options,
            dispatches,
            segments: segments.collect::<Result<_>>()?,
            results: Results::default(),
            padded: vec![],
            staging_busy: false,
            profile_next: false,
            profile: vec![],
            buffers,
        }))
    }

    /// Writes what the host says of the rows and what the other pool made of them.
    fn write(&mut self, work: Work<'_>) -> Result<()> {
        let step = &mut self.steps[work.lane];
        // Attention's rows stay the same for all segments of a step.
        let fresh = work.segment == 0 || self.graph.kv_widths.is_empty();
        if fresh {
            step.fill(work.batch);
        }
        if fresh || self.options.lanes > 1 {
            self.queue.write_buffer(self.buffers.get(&Operand::Step)?, 0, bytemuck::cast_slice(step.words()));
            self.queue.write_buffer(
                self.buffers.get(&Operand::Angles)?,
                0,
                bytemuck::cast_slice(&step.angles),
            );
        }
        for (to, rows) in self.segments[work.segment].inputs.iter().zip(work.inputs) {
            to.write(&self.queue, rows, &mut self.padded);
        }
        Ok(())
    }

    /// Records the copies of cache blocks, the dispatches of a segment, with timestamps if asked for, and the copies of its
    /// results.
    fn encode(
        &self,
        work: Work<'_>,
        dispatches: &[&Dispatch],
        wanted: Wanted,
        profiler: Option<&Profiler>,
    ) -> wgpu::CommandBuffer {
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        let (segment, shape) = (&self.segments[work.segment], self.steps[work.lane].shape());
        if work.segment == 0 {
            self.copy_blocks(&mut encoder, &work.batch.copies);
        }
        for kept in &segment.loads {
            kept.load(&mut encoder, shape, work.lane);
        }
        if let Some(profiler) = profiler {
            for (at, dispatch) in dispatches.iter().enumerate() {
                dispatch.encode(&mut encoder.begin_compute_pass(&profiler.pass(at)), shape);
            }
            profiler.resolve(&mut encoder);
        } else {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            dispatches.iter().for_each(|dispatch| dispatch.encode(&mut pass, shape));
        }
        for kept in &segment.saves {
            kept.save(&mut encoder, shape, work.lane);
        }
        let mut at = 0;
        for from in &segment.results {
            let bytes = wanted.elements(from) as u64 * 4;
            if bytes > 0 {
                encoder.copy_buffer_to_buffer(&from.buffer, 0, &self.buffers.staging, at, bytes);
            }
            at += bytes;
        }
        encoder.finish()
    }

    fn copy_blocks(&self, encoder: &mut wgpu::CommandEncoder, blocks: &[(u32, u32)]) {
        let block = &self.buffers.block;
        for (from, to) in blocks.iter().map(|&(from, to)| (u64::from(from), u64::from(to))) {
            for (cache, bytes) in &self.buffers.kv {
                encoder.copy_buffer_to_buffer(cache, from * bytes, block, 0, *bytes);
                encoder.copy_buffer_to_buffer(block, 0, cache, to * bytes, *bytes);
            }
        }
    }

    /// Waits for a segment and copies its results, without padding, to the output vectors.
    async fn read_back(&mut self, segment: usize, wanted: Wanted) -> Result<Output<'_>> {
        let Segment { results, edges, .. } = &self.segments[segment];
        self.results.clear(self.graph.hidden.len(), *edges);
        let bytes = wanted.bytes(results);
        if bytes > 0 {
            self.staging_busy = true;
            let mapped = map(&self.device, &self.buffers.staging, bytes).await;
            // What the device said of itself tells more.
            self.health.check()?;
            mapped?;
            {
                let view = self
                    .buffers
                    .staging
                    .get_mapped_range(..bytes)
                    .map_err(|e| Error::Device(format!("reading a step's results: {e}")))?;
                let mut rest: &[f32] = bytemuck::cast_slice(&view);
                for from in results {
                    let (padded, more) = rest.split_at(wanted.elements(from));
                    self.results.take(from, padded);
                    rest = more;
                }
            }
            self.buffers.staging.unmap();
            self.staging_busy = false;
        }
        self.health.check()?;
        Ok(self.results.output())
    }
}

fn bind(gpu: &Wgpu, buffers: &Buffers, launch: &Launch) -> Result<Dispatch> {
    let made = gpu.pipelines.get(&launch.kernel)?;
    let entries = launch.bindings.iter().map(|(binding, operand, _)| {
        let resource = buffers.get(operand)?.as_entire_binding();
        Ok(wgpu::BindGroupEntry { binding: *binding, resource })
    });
    let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(launch.kernel.file),
        layout: &made.layout,
        entries: &entries.collect::<Result<Vec<_>>>()?,
    });
    let Launch { label, when, grid, .. } = *launch;
    Ok(Dispatch { label, pipeline: made.pipeline, bind_group, when, grid })
}

impl Executable for Program {
    fn run<'a>(&'a mut self, work: Work<'_>) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        work.check(&self.graph, &self.options)?;
        self.health.check()?;
        self.write(work)?;
        let shape = self.steps[work.lane].shape();
        let wanted = Wanted::new(shape, work.batch);
        let segment = &self.segments[work.segment];
        let staged = wanted.bytes(&segment.results);
        if self.staging_busy || staged > self.buffers.staging.size() {
            self.buffers.grow_staging(&self.device, staged);
            self.staging_busy = false;
        }
        let dispatches = self.dispatches[segment.dispatches.clone()].iter();
        let dispatches: Vec<_> = dispatches.filter(|d| d.when.holds(shape)).collect();
        let labels = || dispatches.iter().map(|d| d.label).collect();
        let profiler = if std::mem::take(&mut self.profile_next) {
            Profiler::new(&self.device, &self.queue, labels())
        } else {
            None
        };
        let commands = self.encode(work, &dispatches, wanted, profiler.as_ref());
        self.buffers.stats.dispatches = dispatches.len();
        self.queue.submit([commands]);
        self.profile.clear();
        let segment = work.segment;
        Ok(Box::pin(async move {
            if let Some(profiler) = profiler {
                self.profile = profiler.read(&self.device).await?;
            }
            self.read_back(segment, wanted).await
        }))
    }

    fn profile_next(&mut self) {
        self.profile_next = true;
    }

    fn take_profile(&mut self) -> Vec<OpTime> {
        std::mem::take(&mut self.profile)
    }

    fn stats(&self) -> Stats {
        self.buffers.stats
    }

    fn options(&self) -> &CompileOptions {
        &self.options
    }
}

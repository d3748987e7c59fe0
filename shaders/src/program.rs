//! A compiled graph: weights, buffers and bind groups made once; a step writes, encodes one pass, submits, reads back.

use std::sync::Arc;

use tread_core::backend::{Batch, CompileOptions, Executable, LocalFuture, Output, Stats};
use tread_core::graph::Graph;
use tread_core::monitor::OpTime;
use tread_core::tensor::Tensor;
use tread_core::{Error, Result};

use crate::buffers::{Buffers, map};
use crate::device::{Health, Wgpu};
use crate::plan::{Extent, Label, Launch, Operand, StepLayout, StepShape, When};
use crate::profile::Profiler;
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

/// What is copied back after a step: a slot's rows.
#[derive(Debug)]
struct ReadBack {
    buffer: wgpu::Buffer,
    width: usize,
    stride: usize,
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
    step: StepData,
    buffers: Buffers,
    logits: ReadBack,
    hidden: Vec<ReadBack>,
    features: Option<ReadBack>,
    /// The staging buffer is being mapped: a step whose future was dropped leaves it so.
    staging_busy: bool,
    profile_next: bool,
    profile: Vec<OpTime>,
    logits_out: Vec<f32>,
    hidden_out: Vec<Vec<f32>>,
    features_out: Vec<f32>,
}

impl Program {
    /// Lowers the graph, fills its buffers and, meanwhile, compiles its pipelines. None when the device is out of memory.
    pub(crate) async fn new(
        gpu: &Wgpu,
        graph: &Graph,
        weights: &[Tensor],
        options: CompileOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<Self>> {
        let plan = gpu.plan(graph, weights, &options)?;
        let compiling = gpu.pipelines.begin(&gpu.device, &plan.launches);
        // Everything is taken before anything is uploaded: what does not fit shows at once.
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffers = Buffers::allocate(gpu, graph, &plan, weights, options);
        let full = scope.pop();
        let buffers = buffers?;
        if full.await.is_some() {
            return Ok(None);
        }
        buffers.upload(gpu, &plan, weights, progress).await?;
        compiling.wait()?;
        match gpu.health.check() {
            Err(Error::Capacity(_)) => return Ok(None),
            checked => checked?,
        }
        let bind = |launch: &Launch| -> Result<Dispatch> {
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
        };
        let dispatches = plan.launches.iter().map(bind).collect::<Result<_>>()?;
        let read_back = |slot: usize| -> Result<ReadBack> {
            let shape = plan.slots[slot];
            let buffer = buffers.get(&Operand::Slot(slot))?.clone();
            Ok(ReadBack { buffer, width: shape.width as usize, stride: shape.stride as usize })
        };
        let hidden = plan.hidden.iter().map(|&s| read_back(s)).collect::<Result<Vec<_>>>()?;
        Ok(Some(Self {
            device: gpu.device.clone(),
            queue: gpu.queue.clone(),
            health: Arc::clone(&gpu.health),
            graph: graph.clone(),
            step: StepData::new(StepLayout::new(&options), &graph.inv_freq),
            options,
            dispatches,
            logits: read_back(plan.logits)?,
            features: plan.features.map(read_back).transpose()?,
            logits_out: vec![],
            hidden_out: vec![vec![]; hidden.len()],
            features_out: vec![],
            hidden,
            staging_busy: false,
            profile_next: false,
            profile: vec![],
            buffers,
        }))
    }

    /// Records the copies of cache blocks, the dispatches of a step, with timestamps if asked for, and the copies of its
    /// results.
    fn encode(
        &self,
        blocks: &[(u32, u32)],
        dispatches: &[&Dispatch],
        shape: StepShape,
        copies: &[(&ReadBack, usize)],
        profiler: Option<&Profiler>,
    ) -> wgpu::CommandBuffer {
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        let block = &self.buffers.block;
        for (from, to) in blocks.iter().map(|&(from, to)| (u64::from(from), u64::from(to))) {
            for (cache, bytes) in &self.buffers.kv {
                encoder.copy_buffer_to_buffer(cache, from * bytes, block, 0, *bytes);
                encoder.copy_buffer_to_buffer(block, 0, cache, to * bytes, *bytes);
            }
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
        let mut at = 0;
        for (from, rows) in copies {
            let bytes = (rows * from.stride * 4) as u64;
            if bytes == 0 {
                continue;
            }
            encoder.copy_buffer_to_buffer(&from.buffer, 0, &self.buffers.staging, at, bytes);
            at += bytes;
        }
        encoder.finish()
    }

    /// What a step copies back, in order: logits, features, hidden states, each with its number of rows.
    fn copies(&self, batch: &Batch) -> Vec<(&ReadBack, usize)> {
        let (rows, outputs) = (batch.rows(), batch.outputs());
        let features = self.features.iter().filter(|_| batch.features).map(|f| (f, outputs));
        let hidden = self.hidden.iter().filter(|_| batch.hidden).map(|h| (h, rows));
        [(&self.logits, outputs)].into_iter().chain(features).chain(hidden).collect()
    }

    /// Waits for the staged copies (rows of each: see [`Program::copies`]) and spreads them over the output vectors.
    async fn read_back(&mut self, outputs: usize, features: usize, hidden: usize) -> Result<Output<'_>> {
        let of = |shape: &ReadBack, rows: usize| rows * shape.stride;
        let wanted_logits = of(&self.logits, outputs);
        let wanted_features = self.features.as_ref().map_or(0, |f| of(f, features));
        let wanted_hidden: usize = self.hidden.iter().map(|h| of(h, hidden)).sum();
        let bytes = (wanted_logits + wanted_features + wanted_hidden) as u64 * 4;
        self.logits_out.clear();
        self.features_out.clear();
        self.hidden_out.iter_mut().for_each(Vec::clear);
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
                let floats: &[f32] = bytemuck::cast_slice(&view);
                let (logits, rest) = floats.split_at(wanted_logits);
                copy_rows(logits, &self.logits, &mut self.logits_out);
                let (tapped, mut rest) = rest.split_at(wanted_features);
                if let Some(shape) = &self.features {
                    copy_rows(tapped, shape, &mut self.features_out);
                }
                for (from, to) in self.hidden.iter().zip(&mut self.hidden_out) {
                    let (rows, more) = rest.split_at(of(from, hidden));
                    copy_rows(rows, from, to);
                    rest = more;
                }
            }
            self.buffers.staging.unmap();
            self.staging_busy = false;
        }
        self.health.check()?;
        Ok(Output { logits: &self.logits_out, hidden: &self.hidden_out, features: &self.features_out })
    }
}

/// Drops the padding of rows.
fn copy_rows(padded: &[f32], shape: &ReadBack, out: &mut Vec<f32>) {
    padded.chunks_exact(shape.stride).for_each(|row| out.extend_from_slice(&row[..shape.width]));
}

impl Executable for Program {
    fn step<'a>(&'a mut self, batch: &Batch) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        batch.check(&self.graph, &self.options)?;
        self.health.check()?;
        let (shape, words) = self.step.fill(batch);
        let (rows, outputs) = (batch.rows(), batch.outputs());
        let staged: usize = self.copies(batch).iter().map(|(shape, rows)| shape.stride * rows * 4).sum();
        if self.staging_busy || staged as u64 > self.buffers.staging.size() {
            self.buffers.grow_staging(&self.device, staged as u64);
            self.staging_busy = false;
        }
        let [step, angles] = [Operand::Step, Operand::Angles].map(|operand| self.buffers.get(&operand));
        self.queue.write_buffer(step?, 0, bytemuck::cast_slice(&self.step.words[..words]));
        self.queue.write_buffer(angles?, 0, bytemuck::cast_slice(&self.step.angles));
        let dispatches: Vec<_> = self.dispatches.iter().filter(|d| d.when.holds(shape)).collect();
        let labels = || dispatches.iter().map(|d| d.label).collect();
        let profiler = if std::mem::take(&mut self.profile_next) {
            Profiler::new(&self.device, &self.queue, labels())
        } else {
            None
        };
        let copies = self.copies(batch);
        let commands = self.encode(&batch.copies, &dispatches, shape, &copies, profiler.as_ref());
        self.buffers.stats.dispatches = dispatches.len();
        self.queue.submit([commands]);
        self.profile.clear();
        let (features, hidden) = (outputs * usize::from(batch.features), rows * usize::from(batch.hidden));
        Ok(Box::pin(async move {
            if let Some(profiler) = profiler {
                self.profile = profiler.read(&self.device).await?;
            }
            self.read_back(outputs, features, hidden).await
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

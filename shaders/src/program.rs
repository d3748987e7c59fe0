//! A compiled graph: weights, buffers and bind groups made once; a step writes, encodes one pass, submits, reads back.

use std::collections::BTreeMap;
use std::sync::Arc;

use tread_core::backend::{BLOCK_SIZE, Batch, CompileOptions, Executable, LocalFuture, Output, Stats};
use tread_core::graph::Graph;
use tread_core::tensor::Tensor;
use tread_core::{Error, Result, quant};

use crate::device::{Health, Wgpu};
use crate::kernels;
use crate::lower::{Context, lower};
use crate::plan::{Extent, Operand, Plan, StepLayout, StepShape, When};
use crate::step::StepData;
use crate::weights::{self, Uploader};

/// A dispatch with everything bound.
#[derive(Debug)]
struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    when: When,
    grid: [Extent; 3],
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
    step_buffer: wgpu::Buffer,
    angles_buffer: wgpu::Buffer,
    logits: ReadBack,
    hidden: Vec<ReadBack>,
    /// Grows to what hidden states need; logits alone fit from the start.
    staging: wgpu::Buffer,
    /// The staging buffer is being mapped: a step whose future was dropped leaves it so.
    staging_busy: bool,
    logits_out: Vec<f32>,
    hidden_out: Vec<Vec<f32>>,
    stats: Stats,
}

impl Program {
    pub(crate) fn new(
        gpu: &Wgpu,
        graph: &Graph,
        weights: &[Tensor],
        options: CompileOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        for tensor in weights {
            quant::check_finite(tensor)?;
        }
        let context =
            Context { graph, weights, options: &options, tuning: gpu.tuning, max_segment: gpu.max_segment };
        let plan = lower(context)?;
        let mut buffers = Buffers::new(gpu, graph, &plan, options)?;
        // Pipelines compile on other threads while weights are repacked and uploaded.
        let pipelines = with_pipelines(gpu, &plan, || buffers.upload(gpu, &plan, weights, progress))?;
        let dispatches = plan
            .launches
            .iter()
            .map(|launch| {
                let made = &pipelines[&launch.kernel];
                let entries: Vec<_> = launch
                    .bindings
                    .iter()
                    .map(|(binding, operand, _)| {
                        Ok(wgpu::BindGroupEntry {
                            binding: *binding,
                            resource: buffers.get(operand)?.as_entire_binding(),
                        })
                    })
                    .collect::<Result<_>>()?;
                let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(launch.kernel.file),
                    layout: &made.layout,
                    entries: &entries,
                });
                let (when, grid) = (launch.when, launch.grid);
                Ok(Dispatch { pipeline: made.pipeline.clone(), bind_group, when, grid })
            })
            .collect::<Result<_>>()?;
        let read_back = |slot: usize| -> Result<ReadBack> {
            let shape = plan.slots[slot];
            let buffer = buffers.get(&Operand::Slot(slot))?.clone();
            Ok(ReadBack { buffer, width: shape.width as usize, stride: shape.stride as usize })
        };
        let logits = read_back(plan.logits)?;
        let hidden = plan.hidden.iter().map(|&s| read_back(s)).collect::<Result<Vec<_>>>()?;
        let staging = staging(&gpu.device, options.max_outputs * logits.stride * 4);
        let layout = StepLayout::new(&options);
        Ok(Self {
            device: gpu.device.clone(),
            queue: gpu.queue.clone(),
            health: Arc::clone(&gpu.health),
            graph: graph.clone(),
            step: StepData::new(layout, &graph.inv_freq),
            step_buffer: buffers.get(&Operand::Step)?.clone(),
            angles_buffer: buffers.get(&Operand::Angles)?.clone(),
            logits_out: vec![],
            hidden_out: vec![vec![]; hidden.len()],
            stats: buffers.stats,
            options,
            dispatches,
            logits,
            hidden,
            staging,
            staging_busy: false,
        })
    }

    /// Records the step's dispatches and copies; returns the commands and how many dispatches there are.
    fn encode(&self, shape: StepShape, copies: &[(&ReadBack, usize)]) -> (wgpu::CommandBuffer, usize) {
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        let mut count = 0;
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in self.dispatches.iter().filter(|d| d.when.holds(shape)) {
                let [x, y, z] = dispatch.grid.map(|e| e.workgroups(shape));
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.bind_group, &[]);
                pass.dispatch_workgroups(x, y, z);
                count += 1;
            }
        }
        let mut at = 0;
        for (from, rows) in copies {
            let bytes = (rows * from.stride * 4) as u64;
            encoder.copy_buffer_to_buffer(&from.buffer, 0, &self.staging, at, bytes);
            at += bytes;
        }
        (encoder.finish(), count)
    }

    /// Waits for the staged copies and spreads them over the output vectors.
    async fn read_back(&mut self, rows: usize, outputs: usize, hidden: bool) -> Result<Output<'_>> {
        let mut wanted = vec![outputs * self.logits.stride];
        if hidden {
            wanted.extend(self.hidden.iter().map(|h| rows * h.stride));
        }
        let bytes = wanted.iter().sum::<usize>() as u64 * 4;
        self.logits_out.clear();
        self.hidden_out.iter_mut().for_each(Vec::clear);
        if bytes > 0 {
            self.staging_busy = true;
            let (sender, receiver) = futures_channel::oneshot::channel();
            self.staging.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
                // The receiver is gone only when the caller gave the step up.
                let _ = sender.send(result);
            });
            self.device
                .poll(wgpu::PollType::wait_indefinitely())
                .map_err(|e| Error::Device(format!("waiting for a step: {e}")))?;
            let mapped = receiver.await.map_err(|_| Error::Device("the device dropped a read".to_owned()))?;
            self.health.check()?;
            mapped.map_err(|e| Error::Device(format!("reading a step's results: {e}")))?;
            {
                let view = self
                    .staging
                    .get_mapped_range(..bytes)
                    .map_err(|e| Error::Device(format!("reading a step's results: {e}")))?;
                let floats: &[f32] = bytemuck::cast_slice(&view);
                let (logits, mut rest) = floats.split_at(wanted[0]);
                copy_rows(logits, &self.logits, &mut self.logits_out);
                for ((from, to), count) in self.hidden.iter().zip(&mut self.hidden_out).zip(&wanted[1..]) {
                    let (rows, more) = rest.split_at(*count);
                    copy_rows(rows, from, to);
                    rest = more;
                }
            }
            self.staging.unmap();
            self.staging_busy = false;
        }
        self.health.check()?;
        Ok(Output { logits: &self.logits_out, hidden: &self.hidden_out })
    }
}

/// Drops the padding of rows.
fn copy_rows(padded: &[f32], shape: &ReadBack, out: &mut Vec<f32>) {
    padded.chunks_exact(shape.stride).for_each(|row| out.extend_from_slice(&row[..shape.width]));
}

fn staging(device: &wgpu::Device, bytes: usize) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("staging"),
        size: (bytes as u64).max(16),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

impl Executable for Program {
    fn step<'a>(&'a mut self, batch: &Batch) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        batch.check(&self.graph, &self.options)?;
        self.health.check()?;
        let (shape, words) = self.step.fill(batch);
        let (rows, outputs, hidden) = (shape.rows as usize, shape.outputs as usize, batch.hidden);
        let mut staged = outputs * self.logits.stride;
        if hidden {
            staged += self.hidden.iter().map(|h| rows * h.stride).sum::<usize>();
        }
        if self.staging_busy || staged as u64 * 4 > self.staging.size() {
            let bytes = (staged * 4).max(self.staging.size() as usize);
            self.staging = staging(&self.device, bytes);
            self.staging_busy = false;
        }
        self.queue.write_buffer(&self.step_buffer, 0, bytemuck::cast_slice(&self.step.words[..words]));
        self.queue.write_buffer(&self.angles_buffer, 0, bytemuck::cast_slice(&self.step.angles));
        let mut copies = vec![];
        if outputs > 0 {
            copies.push((&self.logits, outputs));
        }
        if hidden && rows > 0 {
            copies.extend(self.hidden.iter().map(|h| (h, rows)));
        }
        let (commands, dispatches) = self.encode(shape, &copies);
        self.stats.dispatches = dispatches;
        self.queue.submit([commands]);
        Ok(Box::pin(self.read_back(rows, outputs, hidden)))
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn options(&self) -> &CompileOptions {
        &self.options
    }
}

/// Runs `work` while the plan's pipelines compile.
fn with_pipelines(
    gpu: &Wgpu,
    plan: &Plan,
    work: impl FnOnce() -> Result<()>,
) -> Result<BTreeMap<crate::plan::Kernel, kernels::Pipeline>> {
    #[cfg(target_family = "wasm")]
    {
        let pipelines = kernels::compile(&gpu.device, &plan.launches);
        work()?;
        Ok(pipelines)
    }
    #[cfg(not(target_family = "wasm"))]
    std::thread::scope(|scope| {
        let compiling = scope.spawn(|| kernels::compile(&gpu.device, &plan.launches));
        work()?;
        compiling.join().map_err(|_| Error::Device("a kernel could not be compiled".to_owned()))
    })
}

/// All buffers of a program by operand.
struct Buffers {
    fixed: BTreeMap<Operand, wgpu::Buffer>,
    stats: Stats,
}

impl Buffers {
    fn new(gpu: &Wgpu, graph: &Graph, plan: &Plan, options: CompileOptions) -> Result<Self> {
        let uploader = Uploader::new(&gpu.device, &gpu.queue);
        let mut buffers = Self { fixed: BTreeMap::new(), stats: Stats::default() };
        let limit = |what: &str, bytes: u64| {
            if bytes > gpu.max_binding {
                let message = format!(
                    "{what} needs a buffer of {bytes} bytes, but this GPU binds at most {}: use a shorter --context or \
                     smaller steps",
                    gpu.max_binding
                );
                return Err(Error::Capacity(message));
            }
            Ok(())
        };
        let layout = StepLayout::new(&options);
        let angles = (options.max_rows * graph.inv_freq.len() * 8) as u64;
        buffers.scratch(Operand::Step, uploader.buffer("step", u64::from(layout.words) * 4));
        buffers.scratch(Operand::Angles, uploader.buffer("angles", angles));
        buffers.scratch(Operand::Partials, uploader.buffer("partial attention", plan.partial_bytes));
        for (layer, width) in graph.kv_widths.iter().enumerate() {
            let bytes = (options.kv_blocks * BLOCK_SIZE * width * options.kv_dtype.bytes()) as u64;
            limit("the KV cache of a layer", bytes)?;
            for operand in [Operand::Keys(layer), Operand::CachedValues(layer)] {
                let buffer = uploader.buffer("kv cache", bytes);
                buffers.stats.kv_bytes += buffer.size();
                buffers.fixed.insert(operand, buffer);
            }
        }
        let (buffer_of, shapes) = plan.share_buffers();
        let mut slots = Vec::with_capacity(shapes.len());
        for shape in shapes {
            let rows = match shape.rows {
                tread_core::graph::Rows::All => options.max_rows,
                tread_core::graph::Rows::Output => options.max_outputs,
            };
            let bytes = rows as u64 * u64::from(shape.per_row) * u64::from(shape.stride) * 4;
            limit("an activation", bytes)?;
            let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("activation"),
                size: bytes.max(16),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            buffers.stats.scratch_bytes += buffer.size();
            slots.push(buffer);
        }
        for (slot, buffer) in buffer_of.into_iter().enumerate().filter(|(_, b)| *b != usize::MAX) {
            buffers.fixed.insert(Operand::Slot(slot), slots[buffer].clone());
        }
        Ok(buffers)
    }

    fn scratch(&mut self, operand: Operand, buffer: wgpu::Buffer) {
        self.stats.scratch_bytes += buffer.size();
        self.fixed.insert(operand, buffer);
    }

    /// Uploads every weight that the launches bind.
    fn upload(
        &mut self,
        gpu: &Wgpu,
        plan: &Plan,
        weights: &[Tensor],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let mut uploader = Uploader::new(&gpu.device, &gpu.queue);
        let stacks: Vec<Vec<&Tensor>> =
            plan.matrices.iter().map(|m| m.weights.iter().map(|&w| &weights[w.0]).collect()).collect();
        let total: u64 = stacks.iter().flatten().map(|t| t.bytes()).sum();
        let mut sent = 0;
        progress(0, total);
        for (index, tensors) in stacks.iter().enumerate() {
            let mut done = |bytes| {
                sent += bytes;
                progress(sent, total);
            };
            let matrix = weights::upload(&mut uploader, tensors, gpu.max_segment, &mut done)?;
            self.stats.weight_bytes += matrix.bytes;
            for (number, segment) in matrix.segments.into_iter().enumerate() {
                self.fixed.insert(Operand::Values(index, number), segment.values);
                if let Some(aux) = segment.aux {
                    self.fixed.insert(Operand::Aux(index, number), aux);
                }
            }
        }
        for operand in plan.launches.iter().flat_map(|l| &l.bindings).map(|b| &b.1) {
            match operand {
                Operand::Norm(weight) if !self.fixed.contains_key(operand) => {
                    let values = weights[weight.0].to_f32()?;
                    let buffer = uploader.buffer("norm", values.len() as u64 * 4);
                    uploader.write(&buffer, 0, bytemuck::cast_slice(&values))?;
                    self.stats.weight_bytes += buffer.size();
                    self.fixed.insert(operand.clone(), buffer);
                }
                Operand::PassBase(base) if !self.fixed.contains_key(operand) => {
                    let buffer = uploader.buffer("pass", 16);
                    uploader.write(&buffer, 0, bytemuck::cast_slice(&[*base, 0, 0, 0]))?;
                    self.fixed.insert(operand.clone(), buffer);
                }
                _ => {}
            }
        }
        uploader.flush()
    }

    fn get(&self, operand: &Operand) -> Result<&wgpu::Buffer> {
        self.fixed.get(operand).ok_or_else(|| Error::Device(format!("no buffer for {operand:?}")))
    }
}

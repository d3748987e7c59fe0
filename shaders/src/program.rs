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
    features: Option<ReadBack>,
    /// The cache's buffers with the bytes of a block in each.
    kv: Vec<(wgpu::Buffer, u64)>,
    /// One block on its way: a buffer cannot be copied to itself.
    block: wgpu::Buffer,
    /// Grows to what hidden states need; logits alone fit from the start.
    staging: wgpu::Buffer,
    /// The staging buffer is being mapped: a step whose future was dropped leaves it so.
    staging_busy: bool,
    logits_out: Vec<f32>,
    hidden_out: Vec<Vec<f32>>,
    features_out: Vec<f32>,
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
        let features = plan.features.map(read_back).transpose()?;
        let block = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("cache block"),
            size: buffers.kv.iter().map(|(_, bytes)| *bytes).max().unwrap_or(16),
            usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
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
            features_out: vec![],
            stats: buffers.stats,
            options,
            dispatches,
            logits,
            hidden,
            features,
            kv: buffers.kv,
            block,
            staging,
            staging_busy: false,
        })
    }

    /// Records the copies of cache blocks, the step's dispatches, and the copies of its results; returns the commands
    /// and how many dispatches there are.
    fn encode(
        &self,
        blocks: &[(u32, u32)],
        shape: StepShape,
        copies: &[(&ReadBack, usize)],
    ) -> (wgpu::CommandBuffer, usize) {
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        for (from, to) in blocks.iter().map(|&(from, to)| (u64::from(from), u64::from(to))) {
            for (cache, bytes) in &self.kv {
                encoder.copy_buffer_to_buffer(cache, from * bytes, &self.block, 0, *bytes);
                encoder.copy_buffer_to_buffer(&self.block, 0, cache, to * bytes, *bytes);
            }
        }
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
            if bytes == 0 {
                continue;
            }
            encoder.copy_buffer_to_buffer(&from.buffer, 0, &self.staging, at, bytes);
            at += bytes;
        }
        (encoder.finish(), count)
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
            self.staging.unmap();
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
        let (rows, outputs) = (batch.rows(), batch.outputs());
        let staged: usize = self.copies(batch).iter().map(|(shape, rows)| shape.stride * rows * 4).sum();
        if self.staging_busy || staged as u64 > self.staging.size() {
            self.staging = staging(&self.device, staged.max(self.staging.size() as usize));
            self.staging_busy = false;
        }
        self.queue.write_buffer(&self.step_buffer, 0, bytemuck::cast_slice(&self.step.words[..words]));
        self.queue.write_buffer(&self.angles_buffer, 0, bytemuck::cast_slice(&self.step.angles));
        let (commands, dispatches) = self.encode(&batch.copies, shape, &self.copies(batch));
        self.stats.dispatches = dispatches;
        self.queue.submit([commands]);
        let (features, hidden) = (outputs * usize::from(batch.features), rows * usize::from(batch.hidden));
        Ok(Box::pin(self.read_back(outputs, features, hidden)))
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
    /// The cache, with the bytes of a block.
    kv: Vec<(wgpu::Buffer, u64)>,
    stats: Stats,
}

impl Buffers {
    fn new(gpu: &Wgpu, graph: &Graph, plan: &Plan, options: CompileOptions) -> Result<Self> {
        let uploader = Uploader::new(&gpu.device, &gpu.queue);
        let mut buffers = Self { fixed: BTreeMap::new(), kv: vec![], stats: Stats::default() };
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
            let block_bytes = (BLOCK_SIZE * width * options.kv_dtype.bytes()) as u64;
            let bytes = options.kv_blocks as u64 * block_bytes;
            limit("the KV cache of a layer", bytes)?;
            for operand in [Operand::Keys(layer), Operand::CachedValues(layer)] {
                let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("kv cache"),
                    size: bytes.max(16),
                    usage: wgpu::BufferUsages::STORAGE
                        | wgpu::BufferUsages::COPY_SRC
                        | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                buffers.stats.kv_bytes += buffer.size();
                buffers.kv.push((buffer.clone(), block_bytes));
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

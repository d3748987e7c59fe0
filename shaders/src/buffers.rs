//! The buffers of a program: taken all at once, filled piece by piece, destroyed together.

use std::collections::BTreeMap;

use tread_core::backend::{BLOCK_SIZE, CompileOptions, Stats};
use tread_core::graph::{Graph, Rows};
use tread_core::tensor::Tensor;
use tread_core::{Error, Result, quant};

use crate::device::Wgpu;
use crate::plan::{Operand, Plan, StepLayout};
use crate::weights::{Matrix, Uploader, buffer};

/// All buffers of a program by operand.
#[derive(Debug)]
pub(crate) struct Buffers {
    fixed: BTreeMap<Operand, wgpu::Buffer>,
    /// As `Plan::matrices`.
    matrices: Vec<Matrix>,
    /// The cache's buffers with the bytes of a block in each.
    pub(crate) kv: Vec<(wgpu::Buffer, u64)>,
    /// One block on its way: a buffer cannot be copied to itself.
    pub(crate) block: wgpu::Buffer,
    /// For each value that a later segment reads its copy in each lane, where there are several: by slot.
    pub(crate) lanes: BTreeMap<usize, Vec<wgpu::Buffer>>,
    /// Grows to what hidden states and edges need; logits alone fit from the start.
    pub(crate) staging: wgpu::Buffer,
    pub(crate) stats: Stats,
}

impl Buffers {
    /// Room for everything that the plan binds.
    pub(crate) fn allocate(
        gpu: &Wgpu,
        graph: &Graph,
        plan: &Plan,
        weights: &[Tensor],
        options: CompileOptions,
    ) -> Result<Self> {
        let device = &gpu.device;
        let block = graph.kv_widths.iter().max().map_or(0, |width| block_bytes(*width, options));
        let logits =
            graph.logits.map_or(0, |v| graph.value(v).width.next_multiple_of(32) * options.max_outputs * 4);
        let mut buffers = Self {
            fixed: BTreeMap::new(),
            matrices: vec![],
            kv: vec![],
            lanes: BTreeMap::new(),
            block: plain(device, "cache block", block, wgpu::BufferUsages::COPY_DST),
            staging: staging(device, logits as u64),
            stats: Stats::default(),
        };
        let angles = (options.max_rows * graph.inv_freq.len() * 8) as u64;
        let step = u64::from(StepLayout::new(&options).words) * 4;
        buffers.scratch(Operand::Step, buffer(device, "step", step));
        buffers.scratch(Operand::Angles, buffer(device, "angles", angles));
        buffers.scratch(Operand::Partials, buffer(device, "partial attention", plan.partial_bytes));
        buffers.allocate_cache(gpu, graph, options)?;
        buffers.allocate_slots(gpu, plan, options)?;
        buffers.allocate_weights(gpu, plan, weights)?;
        Ok(buffers)
    }

    fn scratch(&mut self, operand: Operand, buffer: wgpu::Buffer) {
        self.stats.scratch_bytes += buffer.size();
        self.fixed.insert(operand, buffer);
    }

    fn allocate_cache(&mut self, gpu: &Wgpu, graph: &Graph, options: CompileOptions) -> Result<()> {
        for (layer, width) in graph.kv_widths.iter().enumerate() {
            let block = block_bytes(*width, options);
            let bytes = options.kv_blocks as u64 * block;
            limit(gpu, "the KV cache of a layer", bytes)?;
            for operand in [Operand::Keys(layer), Operand::CachedValues(layer)] {
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
                let buffer = plain(&gpu.device, "kv cache", bytes, usage);
                self.stats.kv_bytes += buffer.size();
                self.kv.push((buffer.clone(), block));
                self.fixed.insert(operand, buffer);
            }
        }
        Ok(())
    }

    fn allocate_slots(&mut self, gpu: &Wgpu, plan: &Plan, options: CompileOptions) -> Result<()> {
        let (buffer_of, shapes) = plan.share_buffers();
        let mut slots = Vec::with_capacity(shapes.len());
        for shape in shapes {
            let rows = match shape.rows {
                Rows::All => options.max_rows,
                Rows::Output => options.max_outputs,
            };
            let bytes = rows as u64 * u64::from(shape.per_row) * u64::from(shape.stride) * 4;
            limit(gpu, "an activation", bytes)?;
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
            let buffer = plain(&gpu.device, "activation", bytes, usage);
            self.stats.scratch_bytes += buffer.size();
            slots.push(buffer);
        }
        for (slot, &buffer) in buffer_of.iter().enumerate().filter(|(_, b)| **b != usize::MAX) {
            self.fixed.insert(Operand::Slot(slot), slots[buffer].clone());
        }
        if options.lanes > 1 {
            self.allocate_lanes(gpu, plan, options.lanes, &buffer_of, &slots);
        }
        Ok(())
    }

    /// Values that share a buffer share its copies: of two that are kept at the same time none do.
    fn allocate_lanes(
        &mut self,
        gpu: &Wgpu,
        plan: &Plan,
        lanes: usize,
        buffer_of: &[usize],
        slots: &[wgpu::Buffer],
    ) {
        let mut copies: BTreeMap<usize, Vec<wgpu::Buffer>> = BTreeMap::new();
        for &slot in plan.segments.iter().flat_map(|segment| &segment.saves) {
            let buffer = buffer_of[slot];
            let copies = copies.entry(buffer).or_insert_with(|| {
                let bytes = slots[buffer].size();
                self.stats.scratch_bytes += lanes as u64 * bytes;
                let copy = |_| plain(&gpu.device, "kept activation", bytes, wgpu::BufferUsages::COPY_DST);
                (0..lanes).map(copy).collect()
            });
            self.lanes.insert(slot, copies.clone());
        }
    }

    fn allocate_weights(&mut self, gpu: &Wgpu, plan: &Plan, weights: &[Tensor]) -> Result<()> {
        for (index, matrix) in plan.matrices.iter().enumerate() {
            let tensors: Vec<&Tensor> = matrix.weights.iter().map(|w| &weights[w.0]).collect();
            let matrix = Matrix::allocate(&gpu.device, &tensors, gpu.max_segment)?;
            self.stats.weight_bytes += matrix.bytes();
            for (number, segment) in matrix.segments.iter().enumerate() {
                self.fixed.insert(Operand::Values(index, number), segment.values.clone());
                if let Some(aux) = &segment.aux {
                    self.fixed.insert(Operand::Aux(index, number), aux.clone());
                }
            }
            self.matrices.push(matrix);
        }
        for operand in plan.launches.iter().flat_map(|l| &l.bindings).map(|b| &b.1) {
            match operand {
                Operand::Norm(weight) if !self.fixed.contains_key(operand) => {
                    let buffer = buffer(&gpu.device, "norm", weights[weight.0].elements() as u64 * 4);
                    self.stats.weight_bytes += buffer.size();
                    self.fixed.insert(operand.clone(), buffer);
                }
                Operand::PassBase(_) if !self.fixed.contains_key(operand) => {
                    self.fixed.insert(operand.clone(), buffer(&gpu.device, "pass", 16));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Uploads every weight that the launches bind.
    pub(crate) async fn upload(
        &self,
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
        for (matrix, tensors) in self.matrices.iter().zip(&stacks) {
            let mut done = |bytes| {
                sent += bytes;
                progress(sent, total);
            };
            uploader.fill(matrix, tensors, &mut done).await?;
        }
        for (operand, buffer) in &self.fixed {
            match operand {
                Operand::Norm(weight) => {
                    quant::check_finite(&weights[weight.0])?;
                    uploader.write(buffer, 0, bytemuck::cast_slice(&weights[weight.0].to_f32()?));
                }
                Operand::PassBase(base) => {
                    uploader.write(buffer, 0, bytemuck::cast_slice(&[*base, 0, 0, 0]));
                }
                _ => {}
            }
        }
        uploader.flush().await
    }

    /// Replaces the staging buffer by one of at least `bytes`.
    pub(crate) fn grow_staging(&mut self, device: &wgpu::Device, bytes: u64) {
        self.staging.destroy();
        self.staging = staging(device, bytes.max(self.staging.size()));
    }

    pub(crate) fn get(&self, operand: &Operand) -> Result<&wgpu::Buffer> {
        self.fixed.get(operand).ok_or_else(|| Error::Device(format!("no buffer for {operand:?}")))
    }
}

/// In browsers, memory that nobody destroys is kept until the next garbage collection, which knows nothing of its size.
impl Drop for Buffers {
    fn drop(&mut self) {
        let lanes = self.lanes.values().flatten();
        self.fixed.values().chain(lanes).chain([&self.block, &self.staging]).for_each(wgpu::Buffer::destroy);
    }
}

/// Refuses what could not be bound.
fn limit(gpu: &Wgpu, what: &str, bytes: u64) -> Result<()> {
    if bytes <= gpu.max_binding {
        return Ok(());
    }
    Err(Error::Capacity(format!(
        "{what} needs a buffer of {bytes} bytes, but this GPU binds at most {}: use a shorter --context or smaller steps",
        gpu.max_binding
    )))
}

/// Bytes of a cache block in one of a layer's two buffers.
fn block_bytes(width: usize, options: CompileOptions) -> u64 {
    (BLOCK_SIZE * width * options.kv_dtype.bytes()) as u64
}

/// A buffer that can be copied from.
fn plain(device: &wgpu::Device, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes.max(16),
        usage: usage | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

/// A buffer that the host reads.
pub(crate) fn staging(device: &wgpu::Device, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("staging"),
        size: bytes.max(16),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

/// Waits until the host can read the first `bytes` of a staging buffer.
pub(crate) async fn map(device: &wgpu::Device, buffer: &wgpu::Buffer, bytes: u64) -> Result<()> {
    let (sender, receiver) = futures_channel::oneshot::channel();
    buffer.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
        // The receiver is gone only when the caller gave the step up.
        let _ = sender.send(result);
    });
    // Does nothing in browsers, which need no poll.
    device
        .poll(wgpu::PollType::wait_indefinitely())
        .map_err(|e| Error::Device(format!("waiting for a step: {e}")))?;
    let mapped = receiver.await.map_err(|_| Error::Device("the device dropped a read".to_owned()))?;
    mapped.map_err(|e| Error::Device(format!("reading a step's results: {e}")))
}

//! A segment of a program: which dispatches it has, and the buffers through which values come and go.

use std::ops::Range;

use tread_core::Result;
use tread_core::graph::Rows;

use crate::buffers::Buffers;
use crate::plan::{self, Operand, Plan, StepShape, Tap};
use crate::results::ReadBack;

/// Dispatches that run in one go, and what goes in and out.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) dispatches: Range<usize>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) results: Vec<ReadBack>,
    /// What earlier segments left in the lane, by slot: copied before the dispatches where there are several lanes.
    pub(crate) loads: Vec<Kept>,
    /// What later ones will need, copied behind them.
    pub(crate) saves: Vec<Kept>,
    pub(crate) edges: usize,
}

/// A slot that the host writes.
#[derive(Debug)]
pub(crate) struct Input {
    buffer: wgpu::Buffer,
    width: usize,
    stride: usize,
}

/// A slot that outlives its segment, with its copy in each lane.
#[derive(Debug)]
pub(crate) struct Kept {
    buffer: wgpu::Buffer,
    copies: Vec<wgpu::Buffer>,
    rows: Rows,
    row_bytes: u64,
}

impl Segment {
    /// `edges` is the number of its outputs.
    pub(crate) fn new(of: &plan::Segment, edges: usize, plan: &Plan, buffers: &Buffers) -> Result<Self> {
        let slot = |at: usize| Ok((plan.slots[at], buffers.get(&Operand::Slot(at))?.clone()));
        let input = |&at: &usize| {
            let (shape, buffer) = slot(at)?;
            Ok(Input { buffer, width: shape.width as usize, stride: shape.stride as usize })
        };
        let read_back = |&(tap, at): &(Tap, usize)| {
            let (shape, buffer) = slot(at)?;
            let (width, stride) = (shape.width as usize, shape.stride as usize);
            Ok(ReadBack { tap, buffer, rows: shape.rows, per_row: shape.per_row, width, stride })
        };
        let kept = |slots: &[usize]| {
            let kept = slots.iter().filter_map(|at| Some((*at, buffers.lanes.get(at)?.clone())));
            let kept = kept.map(|(at, copies)| {
                let (shape, buffer) = slot(at)?;
                let row_bytes = u64::from(shape.per_row * shape.stride) * 4;
                Ok(Kept { buffer, copies, rows: shape.rows, row_bytes })
            });
            kept.collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            dispatches: of.launches.clone(),
            inputs: of.inputs.iter().map(input).collect::<Result<_>>()?,
            results: of.results.iter().map(read_back).collect::<Result<_>>()?,
            loads: kept(&of.loads)?,
            saves: kept(&of.saves)?,
            edges,
        })
    }
}

impl Input {
    /// Writes `rows`, which have no padding, by way of `padded` where there is some.
    pub(crate) fn write(&self, queue: &wgpu::Queue, rows: &[f32], padded: &mut Vec<f32>) {
        if self.stride == self.width {
            return queue.write_buffer(&self.buffer, 0, bytemuck::cast_slice(rows));
        }
        padded.clear();
        for row in rows.chunks_exact(self.width) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + self.stride - self.width, 0.0);
        }
        queue.write_buffer(&self.buffer, 0, bytemuck::cast_slice(padded));
    }
}

impl Kept {
    /// Copies the rows of a step from the lane to the slot.
    pub(crate) fn load(&self, encoder: &mut wgpu::CommandEncoder, shape: StepShape, lane: usize) {
        self.copy(encoder, shape, [&self.copies[lane], &self.buffer]);
    }

    /// Copies the rows of a step from the slot to the lane.
    pub(crate) fn save(&self, encoder: &mut wgpu::CommandEncoder, shape: StepShape, lane: usize) {
        self.copy(encoder, shape, [&self.buffer, &self.copies[lane]]);
    }

    fn copy(&self, encoder: &mut wgpu::CommandEncoder, shape: StepShape, [from, to]: [&wgpu::Buffer; 2]) {
        let bytes = u64::from(shape.count(self.rows)) * self.row_bytes;
        if bytes > 0 {
            encoder.copy_buffer_to_buffer(from, 0, to, 0, bytes);
        }
    }
}

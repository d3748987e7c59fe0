//! The paged KV cache and causal attention over it.

use half::f16;
use rayon::prelude::*;

use super::linear::dot;
use super::rows::{StepRows, slot};
use crate::backend::{BLOCK_SIZE, Batch, CompileOptions, KvDType};
use crate::graph::Heads;
use crate::quant::f16_to_f32;
use crate::{Error, Result};

/// Keys and values of one layer: `[blocks, BLOCK_SIZE, width]` each.
#[derive(Debug)]
pub(super) struct KvCache {
    width: usize,
    k: Elements,
    v: Elements,
}

impl KvCache {
    /// An empty cache for rows of `width` elements.
    ///
    /// # Errors
    /// [`Error::Capacity`] when there is not that much memory.
    pub(super) fn new(width: usize, options: &CompileOptions) -> Result<Self> {
        let elements = options.kv_blocks.checked_mul(BLOCK_SIZE).and_then(|n| n.checked_mul(width));
        let zeroed = || elements.and_then(|n| Elements::zeroed(options.kv_dtype, n));
        match (zeroed(), zeroed()) {
            (Some(k), Some(v)) => Ok(Self { width, k, v }),
            _ => Err(Error::Capacity(format!(
                "no memory for a KV cache of {} blocks; use a shorter context",
                options.kv_blocks
            ))),
        }
    }

    /// Stores the new rows `k, v [rows, width]` of every sequence at their positions.
    pub(super) fn append(&mut self, batch: &Batch, rows: &StepRows, k: &[f32], v: &[f32]) {
        let new = k.chunks_exact(self.width).zip(v.chunks_exact(self.width));
        for (&(sequence, position), (k, v)) in rows.all.iter().zip(new) {
            let at = slot(&batch.sequences[sequence].block_table, position) * self.width;
            self.k.write(at, k);
            self.v.write(at, v);
        }
    }

    /// Copies keys and values of block `from` to block `to`.
    pub(super) fn copy_block(&mut self, from: u32, to: u32) {
        let elements = BLOCK_SIZE * self.width;
        for cache in [&mut self.k, &mut self.v] {
            cache.copy(from as usize * elements, to as usize * elements, elements);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.k.bytes() + self.v.bytes()
    }
}

#[derive(Debug)]
enum Elements {
    F32(Vec<f32>),
    F16(Vec<u16>),
}

impl Elements {
    fn zeroed(dtype: KvDType, len: usize) -> Option<Self> {
        match dtype {
            KvDType::F32 => zeroed(len, 0.0).map(Self::F32),
            KvDType::F16 => zeroed(len, 0).map(Self::F16),
        }
    }

    fn write(&mut self, at: usize, row: &[f32]) {
        match self {
            Self::F32(to) => to[at..][..row.len()].copy_from_slice(row),
            Self::F16(to) => {
                to[at..].iter_mut().zip(row).for_each(|(to, &x)| *to = f16::from_f32(x).to_bits());
            }
        }
    }

    fn copy(&mut self, from: usize, to: usize, count: usize) {
        match self {
            Self::F32(elements) => elements.copy_within(from..from + count, to),
            Self::F16(elements) => elements.copy_within(from..from + count, to),
        }
    }

    /// The elements from `at` on, as many as `buffer` holds; decoded into it where necessary.
    fn read<'a>(&'a self, at: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        match self {
            Self::F32(from) => &from[at..][..buffer.len()],
            Self::F16(from) => {
                buffer.iter_mut().zip(&from[at..]).for_each(|(x, &bits)| *x = f16_to_f32(bits));
                buffer
            }
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::F32(elements) => size_of_val(elements.as_slice()) as u64,
            Self::F16(elements) => size_of_val(elements.as_slice()) as u64,
        }
    }
}

/// Zeros that the system hands out page by page as they are used, or none when it has not that much.
fn zeroed<T: Clone>(len: usize, zero: T) -> Option<Vec<T>> {
    // `vec!` aborts where memory is refused, so ask first.
    Vec::<T>::new().try_reserve_exact(len).ok()?;
    Some(vec![zero; len])
}

/// Attends with `q [rows, heads * head_dim]`, each row over its own sequence up to and with its own position.
/// Positions are added up in their order, whatever block they lie in.
pub(super) fn attention(
    q: &[f32],
    cache: &KvCache,
    batch: &Batch,
    rows: &StepRows,
    Heads { heads, kv_heads, head_dim }: Heads,
    scale: f32,
    out: &mut [f32],
) {
    out.par_chunks_exact_mut(head_dim).zip(q.par_chunks_exact(head_dim)).enumerate().for_each_init(
        || (vec![], vec![0.0; head_dim]),
        |(scores, buffer), (index, (out, q))| {
            let (sequence, position) = rows.all[index / heads];
            let block_table = &batch.sequences[sequence].block_table;
            let kv_head = index % heads / (heads / kv_heads);
            let at = |position| slot(block_table, position) * cache.width + kv_head * head_dim;
            scores.clear();
            scores.extend((0..=position).map(|p| dot(q, cache.k.read(at(p), buffer)) * scale));
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|s| *s = (*s - max).exp());
            let total: f32 = scores.iter().sum();
            for (p, score) in scores.iter().enumerate() {
                let v = cache.v.read(at(p), buffer);
                out.iter_mut().zip(v).for_each(|(out, v)| *out += score * v);
            }
            out.iter_mut().for_each(|out| *out /= total);
        },
    );
}

//! The KV cache and attention over it.

use tread_core::backend::{BLOCK_SIZE, KvDType};
use tread_core::graph::{Heads, Node, Op, RopeStyle, Rows};
use tread_core::{Error, Result};

use super::{ELEMENT_WORKGROUP, Lowering};
use crate::plan::{Extent, Operand, SPLIT, When, pass_rows};
use crate::source::Params;

/// Threads, and positions in a tile, of attention.
const ATTENTION_WORKGROUP: u32 = 64;
/// Most query heads that share a workgroup of attention: bounds its shared memory and registers.
const MAX_GROUP: usize = 8;

impl Lowering<'_> {
    /// Parameters of the kernels that touch the cache.
    fn cache_params(&self, kv_heads: usize, head_dim: usize, rope: Option<RopeStyle>) -> Result<Params> {
        if !head_dim.is_multiple_of(4) {
            return Err(Error::Unsupported(format!(
                "head_dim {head_dim}: the GPU kernels need a multiple of 4"
            )));
        }
        Ok(Params::from([
            ("KV_HEADS", kv_heads as u32),
            ("HEAD_DIM", head_dim as u32),
            ("QUADS", head_dim as u32 / 4),
            ("BLOCK", BLOCK_SIZE as u32),
            ("KV_F16", u32::from(self.context.options.kv_dtype == KvDType::F16)),
            ("POSITIONS", self.layout.positions),
            ("TABLE_OF", self.layout.table_of),
            ("TABLE", self.layout.table),
            ("ROPE", u32::from(rope.is_some())),
            ("INTERLEAVED", u32::from(rope == Some(RopeStyle::Interleaved))),
        ]))
    }

    /// The geometry of the attention that reads cache layer `layer`.
    fn heads(&self, layer: usize) -> Result<Heads> {
        let found = self.context.graph.nodes.iter().find_map(|n| match n.op {
            Op::Attention { layer: l, heads, .. } if l == layer => Some(heads),
            _ => None,
        });
        found.ok_or_else(|| Error::Unsupported(format!("cache layer {layer} is never read")))
    }

    pub(super) fn kv_append(&mut self, node: &Node, layer: usize) -> Result<()> {
        let heads = self.heads(layer)?;
        let (k, rope) = self.rotated(node.inputs[0])?;
        let v = self.place(node.inputs[1])?;
        let mut params = self.cache_params(heads.kv_heads, heads.head_dim, rope)?;
        params.extend([
            ("WORKGROUP", ELEMENT_WORKGROUP),
            ("K_STRIDE", self.stride(k.slot)),
            ("K_OFFSET", k.offset),
            ("V_STRIDE", self.stride(v.slot)),
            ("V_OFFSET", v.offset),
        ]);
        let threads = (heads.kv_heads * heads.head_dim / 4) as u32;
        let grid = [
            Extent::Fixed(threads.div_ceil(ELEMENT_WORKGROUP)),
            Extent::Count { rows: Rows::All, times: 1, per: 1 },
            Extent::Fixed(1),
        ];
        let mut bindings = vec![
            (0, Operand::Step, false),
            (1, Operand::Slot(k.slot), false),
            (2, Operand::Slot(v.slot), false),
            (4, Operand::Keys(layer), true),
            (5, Operand::CachedValues(layer), true),
        ];
        bindings.extend(rope.map(|_| (3, Operand::Angles, false)));
        self.push("kv_append.wgsl", None, params, When::any(Rows::All), grid, bindings);
        Ok(())
    }

    pub(super) fn attention(&mut self, node: &Node, layer: usize, heads: Heads, scale: f32) -> Result<()> {
        let (q, rope) = self.rotated(node.inputs[0])?;
        let slot = self.output(node)?;
        let per_kv = heads.heads / heads.kv_heads;
        // Shared memory of a workgroup holds the group's queries and scores: 16 KiB by WebGPU's default limits.
        let fits = |g: usize| g * (heads.head_dim * 4 + ATTENTION_WORKGROUP as usize * 4 + 40) <= 15 << 10;
        let group = (1..=per_kv.min(MAX_GROUP)).rev().find(|&g| per_kv.is_multiple_of(g) && fits(g));
        let Some(group) = group else {
            return Err(Error::Unsupported(format!(
                "head_dim {} is too large for the GPU kernels",
                heads.head_dim
            )));
        };
        let quads = heads.head_dim as u32 / 4;
        let group_quads = group as u32 * quads;
        let splits = ((self.context.options.kv_blocks * BLOCK_SIZE) as u32).div_ceil(SPLIT).max(1);
        let mut params = self.cache_params(heads.kv_heads, heads.head_dim, rope)?;
        params.extend([
            ("WORKGROUP", ATTENTION_WORKGROUP),
            ("GROUP", group as u32),
            ("GROUP_QUADS", group_quads),
            ("GROUP_SCORES", group as u32 * ATTENTION_WORKGROUP),
            ("GROUP_PARTS", group as u32 * 8),
            ("ITEMS", group_quads.div_ceil(ATTENTION_WORKGROUP)),
            ("HEADS", heads.heads as u32),
            ("HEADS_PER_KV", per_kv as u32),
            ("SPLIT", SPLIT),
            ("SPLITS", splits),
            ("SCALE_BITS", scale.to_bits()),
            ("X_STRIDE", self.stride(q.slot)),
            ("X_OFFSET", q.offset),
            ("OUT_STRIDE", self.stride(slot) / 4),
            ("PARTIAL", 0),
        ]);
        let groups = Extent::Fixed((heads.heads / group) as u32);
        let mut bindings = vec![
            (0, Operand::Step, false),
            (1, Operand::Slot(q.slot), false),
            (2, Operand::Slot(slot), true),
            (4, Operand::Keys(layer), false),
            (5, Operand::CachedValues(layer), false),
        ];
        bindings.extend(rope.map(|_| (3, Operand::Angles, false)));
        let one = When { many_splits: Some(false), ..When::any(Rows::All) };
        let rows = Extent::Count { rows: Rows::All, times: 1, per: 1 };
        self.push(
            "attention.wgsl",
            None,
            params.clone(),
            one,
            [rows, groups, Extent::Fixed(1)],
            bindings.clone(),
        );
        if splits == 1 {
            return Ok(());
        }

        let bytes_per_row = u64::from(splits) * heads.heads as u64 * u64::from(quads + 1) * 16;
        let max_rows = self.context.options.max_rows as u32;
        let most = pass_rows(bytes_per_row, max_rows);
        self.plan.pass_rows = most;
        self.plan.partial_bytes = self.plan.partial_bytes.max(bytes_per_row * u64::from(most));
        params.insert("PARTIAL", 1);
        let threads = heads.heads as u32 * quads;
        let mut combine_params = params.clone();
        combine_params.insert("WORKGROUP", ELEMENT_WORKGROUP);
        for base in (0..max_rows).step_by(most as usize) {
            let when = When { many_splits: Some(true), min: base + 1, ..When::any(Rows::All) };
            let rows = Extent::Pass { base, most };
            let mut partial = bindings.clone();
            partial[2].1 = Operand::Partials;
            partial.push((6, Operand::PassBase(base), false));
            self.push("attention.wgsl", None, params.clone(), when, [rows, groups, Extent::Splits], partial);
            let combine = vec![
                (0, Operand::Step, false),
                (1, Operand::Partials, false),
                (2, Operand::Slot(slot), true),
                (6, Operand::PassBase(base), false),
            ];
            let grid = [Extent::Fixed(threads.div_ceil(ELEMENT_WORKGROUP)), rows, Extent::Fixed(1)];
            self.push("attention_combine.wgsl", None, combine_params.clone(), when, grid, combine);
        }
        Ok(())
    }
}

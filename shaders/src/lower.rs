//! Lowers a graph to a [`Plan`]: chooses what is fused, where values lie, and which kernels make them.
//!
//! Fused: linears of one input and one format into one stacked matrix; gate + up + SwiGLU; linear + add; rotation of
//! keys into the cache write and of queries into attention. A value that is captured as a hidden state is never
//! fused away.

use std::collections::BTreeMap;

use tread_core::backend::{BLOCK_SIZE, CompileOptions, KvDType};
use tread_core::graph::{Graph, Heads, Node, Op, RopeStyle, Rows, ValueId, WeightId};
use tread_core::tensor::{DType, Tensor};
use tread_core::{Error, Result};

use crate::device::Tuning;
use crate::plan::{Extent, Kernel, Launch, Matrix, Operand, Plan, SPLIT, Slot, StepLayout, When, pass_rows};
use crate::source::Params;
use crate::weights::{Packed, segments};

/// Threads of kernels that do one element a thread.
const ELEMENT_WORKGROUP: u32 = 64;
/// Threads, and positions in a tile, of attention.
const ATTENTION_WORKGROUP: u32 = 64;
/// Most query heads that share a workgroup of attention: bounds its shared memory and registers.
const MAX_GROUP: usize = 8;

/// Where a value lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: usize,
    offset: u32,
}

/// What lowering reads.
pub(crate) struct Context<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) weights: &'a [Tensor],
    pub(crate) options: &'a CompileOptions,
    pub(crate) tuning: Tuning,
    pub(crate) max_segment: u64,
}

/// The plan of a graph.
///
/// # Errors
/// [`Error::Unsupported`] for shapes that no kernel takes.
pub(crate) fn lower(context: Context<'_>) -> Result<Plan> {
    let mut lowering = Lowering {
        uses: uses(context.graph),
        layout: StepLayout::new(context.options),
        places: vec![None; context.graph.values.len()],
        done: vec![false; context.graph.nodes.len()],
        context,
        plan: Plan {
            launches: vec![],
            matrices: vec![],
            slots: vec![],
            logits: 0,
            hidden: vec![],
            pass_rows: 0,
            partial_bytes: 0,
        },
    };
    lowering.run()?;
    Ok(lowering.plan)
}

/// How often each value is read; captured ones count twice more, so that they are never fused away.
fn uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.values.len()];
    graph.nodes.iter().flat_map(|n| &n.inputs).for_each(|v| uses[v.0] += 1);
    graph.hidden.iter().chain([&graph.logits]).for_each(|v| uses[v.0] += 2);
    uses
}

struct Lowering<'a> {
    context: Context<'a>,
    uses: Vec<usize>,
    layout: StepLayout,
    places: Vec<Option<Place>>,
    done: Vec<bool>,
    plan: Plan,
}

impl<'a> Lowering<'a> {
    fn run(&mut self) -> Result<()> {
        let graph = self.context.graph;
        for (at, node) in graph.nodes.iter().enumerate() {
            if !self.done[at] && !self.waits_for_consumer(node) {
                self.node(at, node)?;
            }
        }
        self.plan.logits = self.slot_of(graph.logits)?;
        self.plan.hidden = graph.hidden.iter().map(|&v| self.slot_of(v)).collect::<Result<_>>()?;
        Ok(())
    }

    /// Whether the node is made by the launch of the node that reads it.
    fn waits_for_consumer(&self, node: &Node) -> bool {
        let Some(output) = node.output else { return false };
        if self.uses[output.0] != 1 {
            return false;
        }
        let Some(reader) = self.reader(output) else { return false };
        match (&node.op, &reader.op) {
            (Op::Rope { .. }, Op::Attention { .. }) => true,
            (Op::Rope { .. }, Op::KvAppend { .. }) => reader.inputs[0] == output,
            (Op::Linear { .. }, Op::SwiGlu) => self.gate_up(reader).is_some(),
            (Op::Linear { .. }, Op::Add) => {
                self.linear_of_add(reader).is_some_and(|n| n.output == node.output)
            }
            _ => false,
        }
    }

    /// The one node that reads `value`.
    fn reader(&self, value: ValueId) -> Option<&'a Node> {
        self.context.graph.nodes.iter().find(|n| n.inputs.contains(&value))
    }

    fn producer(&self, value: ValueId) -> Option<&'a Node> {
        self.context.graph.nodes.iter().find(|n| n.output == Some(value))
    }

    /// The weights and input of the two linears of a SwiGLU when one kernel can make it.
    fn gate_up(&self, swiglu: &Node) -> Option<([WeightId; 2], ValueId)> {
        let linears: Vec<_> = swiglu.inputs.iter().filter_map(|&v| self.sole_linear(v)).collect();
        let [(gate, a), (up, b)] = linears[..] else { return None };
        let same = self.tensor(gate).dtype() == self.tensor(up).dtype()
            && self.tile(gate) == self.tile(up)
            && a == b
            && swiglu.inputs[0] != swiglu.inputs[1];
        same.then_some(([gate, up], a))
    }

    /// The linear that makes one operand of an add and nothing else: the later one, if both are linears.
    fn linear_of_add(&self, add: &Node) -> Option<&'a Node> {
        let candidates = add.inputs.iter().rev().filter(|&&v| self.sole_linear(v).is_some());
        let chosen = *candidates.max_by_key(|v| v.0)?;
        (add.inputs[0] != add.inputs[1]).then(|| self.producer(chosen)).flatten()
    }

    /// Weight and input of the linear that makes `value`, if `value` has no other reader.
    fn sole_linear(&self, value: ValueId) -> Option<(WeightId, ValueId)> {
        let node = self.producer(value)?;
        match node.op {
            Op::Linear { weight } if self.uses[value.0] == 1 => Some((weight, node.inputs[0])),
            _ => None,
        }
    }

    fn tensor(&self, weight: WeightId) -> &'a Tensor {
        &self.context.weights[weight.0]
    }

    /// Rows and columns of an FP8 tensor's tiles.
    fn tile(&self, weight: WeightId) -> Option<[usize; 2]> {
        self.tensor(weight).scales().map(|s| s.block)
    }

    fn node(&mut self, at: usize, node: &'a Node) -> Result<()> {
        match &node.op {
            Op::Embed { table } => self.embed(node, *table),
            Op::RmsNorm { weight, eps } => self.rms_norm(node, *weight, *eps),
            Op::Linear { .. } => self.linears(at, node),
            Op::Rope { head_dim, style } => self.rope(node, *head_dim, *style),
            Op::KvAppend { layer } => self.kv_append(node, *layer),
            Op::Attention { layer, heads, scale } => self.attention(node, *layer, *heads, *scale),
            Op::SwiGlu => self.swiglu(node),
            Op::Add => self.add(node),
            Op::RouterTopK { top_k, renormalize } => self.router(node, *top_k, *renormalize),
            Op::Experts { gate, up, down, top_k } => self.experts(node, [*gate, *up, *down], *top_k),
            Op::GatherRows => self.gather(node),
        }
    }

    // --- places -----------------------------------------------------------------------------------------------

    fn slot(&mut self, rows: Rows, per_row: usize, width: usize) -> usize {
        let (width, per_row) = (width as u32, per_row as u32);
        self.plan.slots.push(Slot { rows, per_row, width, stride: width.next_multiple_of(32) });
        self.plan.slots.len() - 1
    }

    /// A slot of its own for the node's output.
    fn output(&mut self, node: &Node) -> Result<usize> {
        let id =
            node.output.ok_or_else(|| Error::Unsupported(format!("{} without output", node.op.name())))?;
        let value = self.context.graph.value(id);
        let slot = self.slot(value.rows, 1, value.width);
        if matches!(node.op, Op::RouterTopK { .. }) {
            // Read as packed pairs of ids and weights, never as a matrix operand.
            self.plan.slots[slot].stride = value.width as u32;
        }
        self.places[id.0] = Some(Place { slot, offset: 0 });
        Ok(slot)
    }

    fn place(&self, value: ValueId) -> Result<Place> {
        self.places[value.0].ok_or_else(|| {
            Error::Unsupported(format!(
                "value {} is read before it is made",
                self.context.graph.value(value).name
            ))
        })
    }

    /// The slot of a value that has one for itself.
    fn slot_of(&self, value: ValueId) -> Result<usize> {
        self.place(value).map(|p| p.slot)
    }

    fn stride(&self, slot: usize) -> u32 {
        self.plan.slots[slot].stride
    }

    fn rows_of(&self, node: &Node) -> Rows {
        node.output.map_or(Rows::All, |v| self.context.graph.value(v).rows)
    }

    // --- launches ---------------------------------------------------------------------------------------------

    fn push(
        &mut self,
        file: &'static str,
        format: Option<DType>,
        params: Params,
        when: When,
        grid: [Extent; 3],
        bindings: Vec<(u32, Operand, bool)>,
    ) {
        self.plan.launches.push(Launch { kernel: Kernel { file, format, params }, when, grid, bindings });
    }

    /// A launch of one thread an element over `width` elements of every row.
    fn elementwise(
        &mut self,
        node: &Node,
        file: &'static str,
        width: u32,
        more: &[(&'static str, u32)],
        bindings: Vec<(u32, Operand, bool)>,
    ) {
        let rows = self.rows_of(node);
        let params = Params::from_iter(
            [("WORKGROUP", ELEMENT_WORKGROUP), ("WIDTH", width)].into_iter().chain(more.iter().copied()),
        );
        let grid = [
            Extent::Fixed(width.div_ceil(ELEMENT_WORKGROUP)),
            Extent::Count { rows, times: 1, per: 1 },
            Extent::Fixed(1),
        ];
        self.push(file, None, params, When::any(rows), grid, bindings);
    }

    fn embed(&mut self, node: &Node, table: WeightId) -> Result<()> {
        let slot = self.output(node)?;
        let matrix = self.matrix(&[table])?;
        let packed = self.packed(matrix)?;
        for (segment, rows) in segments(&packed, self.context.max_segment).into_iter().enumerate() {
            let mut params = packed.params(&rows);
            params.extend([
                ("WORKGROUP", ELEMENT_WORKGROUP),
                ("TOKENS", self.layout.tokens),
                ("OUT_STRIDE", self.stride(slot) / 4),
                ("MATRICES", 1),
            ]);
            let grid = [
                Extent::Fixed(packed.chunks().div_ceil(ELEMENT_WORKGROUP)),
                Extent::Count { rows: Rows::All, times: 1, per: 1 },
                Extent::Fixed(1),
            ];
            let mut bindings = vec![(0, Operand::Step, false), (2, Operand::Slot(slot), true)];
            bindings.extend(packed.operands(0, matrix, segment));
            self.push("embed.wgsl", Some(packed.dtype), params, When::any(Rows::All), grid, bindings);
        }
        Ok(())
    }

    fn rms_norm(&mut self, node: &Node, weight: WeightId, eps: f32) -> Result<()> {
        let x = self.place(node.inputs[0])?;
        let slot = self.output(node)?;
        let rows = self.rows_of(node);
        let threads = self.context.tuning.norm_workgroup;
        let params = Params::from([
            ("WORKGROUP", threads),
            ("WIDTH", self.plan.slots[slot].width),
            ("X_STRIDE", self.stride(x.slot)),
            ("X_OFFSET", x.offset),
            ("OUT_STRIDE", self.stride(slot)),
            ("EPS_BITS", eps.to_bits()),
        ]);
        let grid = [Extent::Count { rows, times: 1, per: 1 }, Extent::Fixed(1), Extent::Fixed(1)];
        let bindings = vec![
            (0, Operand::Step, false),
            (1, Operand::Slot(x.slot), false),
            (2, Operand::Slot(slot), true),
            (3, Operand::Norm(weight), false),
        ];
        self.push("rms_norm.wgsl", None, params, When::any(rows), grid, bindings);
        Ok(())
    }

    /// The linear at `at` and all others that can be stacked with it.
    fn linears(&mut self, at: usize, node: &'a Node) -> Result<()> {
        let Op::Linear { weight } = node.op else { return Ok(()) };
        let input = node.inputs[0];
        let mut members = vec![(at, node, weight)];
        for (other_at, other) in self.context.graph.nodes.iter().enumerate().skip(at + 1) {
            let Op::Linear { weight: other_weight } = other.op else { continue };
            if other.inputs[0] == input
                && !self.done[other_at]
                && !self.waits_for_consumer(other)
                && self.stacks(members.last().map_or(weight, |m| m.2), other_weight)
                && self.only_read_by_offset(other)
            {
                members.push((other_at, other, other_weight));
            }
        }
        if !self.only_read_by_offset(node) {
            members.truncate(1);
        }
        let widths: Vec<usize> = members.iter().map(|m| self.tensor(m.2).rows()).collect();
        let slot = self.slot(self.rows_of(node), 1, widths.iter().sum());
        let mut offset = 0;
        for ((at, member, _), width) in members.iter().zip(widths) {
            let Some(output) = member.output else { continue };
            self.places[output.0] = Some(Place { slot, offset });
            self.done[*at] = true;
            offset += width as u32;
        }
        let weights: Vec<_> = members.iter().map(|m| m.2).collect();
        self.product(node, &[weights], input, slot, None)
    }

    /// Whether `next` can be stacked below `last`: the same format, and FP8 tiles that begin at `next`'s first row.
    fn stacks(&self, last: WeightId, next: WeightId) -> bool {
        let (a, b) = (self.tensor(last), self.tensor(next));
        a.dtype() == b.dtype()
            && self.tile(last) == self.tile(next)
            && self.tile(last).is_none_or(|tile| a.rows() % tile[0] == 0)
    }

    /// Whether every reader of the node's output takes it at an offset in wider rows.
    fn only_read_by_offset(&self, node: &Node) -> bool {
        let Some(output) = node.output else { return false };
        let graph = self.context.graph;
        let captured = graph.hidden.contains(&output) || graph.logits == output;
        !captured
            && graph.nodes.iter().filter(|n| n.inputs.contains(&output)).all(|n| {
                matches!(
                    n.op,
                    Op::RmsNorm { .. }
                        | Op::Rope { .. }
                        | Op::KvAppend { .. }
                        | Op::Attention { .. }
                        | Op::RouterTopK { .. }
                )
            })
    }

    /// Launches a product over the stacked weights of one matrix, or of gate and up, into `slot`.
    fn product(
        &mut self,
        node: &Node,
        matrices: &[Vec<WeightId>],
        input: ValueId,
        slot: usize,
        addend: Option<Place>,
    ) -> Result<()> {
        let x = self.place(input)?;
        let rows = self.rows_of(node);
        let matrices: Vec<usize> = matrices.iter().map(|w| self.matrix(w)).collect::<Result<_>>()?;
        let packed = self.packed(matrices[0])?;
        let tuning = self.context.tuning;
        let count = match rows {
            Rows::All => 0,
            Rows::Output => 1,
        };
        let shapes = [(1, 1, tuning.rows, 1), (2, u32::MAX, tuning.batch_rows, tuning.batch_columns)];
        for (segment, range) in segments(&packed, self.context.max_segment).into_iter().enumerate() {
            for (min, max, thread_rows, columns) in shapes {
                let mut params = packed.params(&range);
                params.extend(self.product_params(matrices.len(), thread_rows, x, slot));
                params.extend([
                    ("ADD", u32::from(addend.is_some())),
                    ("EXPERTS", 0),
                    ("COUNT", count),
                    ("COLS", columns),
                ]);
                let group_rows = tuning.workgroup / tuning.lanes * thread_rows;
                let grid = [
                    Extent::Fixed((range.len() as u32).div_ceil(group_rows)),
                    Extent::Count { rows, times: 1, per: columns },
                    Extent::Fixed(1),
                ];
                let mut bindings = vec![
                    (0, Operand::Step, false),
                    (1, Operand::Slot(x.slot), false),
                    (2, Operand::Slot(slot), true),
                ];
                bindings.extend(addend.map(|a| (3, Operand::Slot(a.slot), false)));
                for (i, &matrix) in matrices.iter().enumerate() {
                    bindings.extend(packed.operands(i as u32, matrix, segment));
                }
                let when = When { rows, min, max, many_splits: None };
                self.push("linear.wgsl", Some(packed.dtype), params, when, grid, bindings);
            }
        }
        Ok(())
    }

    /// Parameters of linear.wgsl that do not depend on the mode.
    fn product_params(&self, matrices: usize, thread_rows: u32, x: Place, slot: usize) -> Params {
        let tuning = self.context.tuning;
        Params::from([
            ("MATRICES", matrices as u32),
            ("SWIGLU", u32::from(matrices == 2)),
            ("WORKGROUP", tuning.workgroup),
            ("LANES", tuning.lanes),
            ("SHARED_LANES", u32::from(tuning.lanes > 1)),
            ("SUBGROUPS", u32::from(tuning.subgroups)),
            ("ROWS", thread_rows),
            ("X_STRIDE", self.stride(x.slot) / 4),
            ("OUT_STRIDE", self.stride(slot)),
            ("OUT_OFFSET", 0),
        ])
    }

    fn swiglu(&mut self, node: &'a Node) -> Result<()> {
        if let Some(([gate, up], input)) = self.gate_up(node) {
            let slot = self.output(node)?;
            return self.product(node, &[vec![gate], vec![up]], input, slot, None);
        }
        self.two_operands(node, "swiglu.wgsl")
    }

    fn add(&mut self, node: &'a Node) -> Result<()> {
        if let Some(linear) = self.linear_of_add(node) {
            let (Op::Linear { weight }, Some(made)) = (&linear.op, linear.output) else { return Ok(()) };
            let other = if node.inputs[0] == made { node.inputs[1] } else { node.inputs[0] };
            let addend = self.place(other)?;
            // The kernel reads the addend where it writes the sum: both have a slot of their own and the same width.
            let slot = self.output(node)?;
            return self.product(node, &[vec![*weight]], linear.inputs[0], slot, Some(addend));
        }
        self.two_operands(node, "add.wgsl")
    }

    fn two_operands(&mut self, node: &Node, file: &'static str) -> Result<()> {
        let (a, b) = (self.place(node.inputs[0])?, self.place(node.inputs[1])?);
        let slot = self.output(node)?;
        let params = [
            ("X_STRIDE", self.stride(a.slot)),
            ("X_OFFSET", a.offset),
            ("OTHER_STRIDE", self.stride(b.slot)),
            ("OTHER_OFFSET", b.offset),
            ("OUT_STRIDE", self.stride(slot)),
        ];
        let bindings = vec![
            (0, Operand::Step, false),
            (1, Operand::Slot(a.slot), false),
            (2, Operand::Slot(slot), true),
            (3, Operand::Slot(b.slot), false),
        ];
        self.elementwise(node, file, self.plan.slots[slot].width, &params, bindings);
        Ok(())
    }

    fn rope(&mut self, node: &Node, head_dim: usize, style: RopeStyle) -> Result<()> {
        let x = self.place(node.inputs[0])?;
        let slot = self.output(node)?;
        let params = [
            ("X_STRIDE", self.stride(x.slot)),
            ("X_OFFSET", x.offset),
            ("OUT_STRIDE", self.stride(slot)),
            ("HEAD_DIM", head_dim as u32),
            ("INTERLEAVED", u32::from(style == RopeStyle::Interleaved)),
        ];
        let bindings = vec![
            (0, Operand::Step, false),
            (1, Operand::Slot(x.slot), false),
            (2, Operand::Slot(slot), true),
            (3, Operand::Angles, false),
        ];
        self.elementwise(node, "rope.wgsl", self.plan.slots[slot].width, &params, bindings);
        Ok(())
    }

    /// The input of a rotation that `reader` can do itself, and its style; else the value as it is.
    fn rotated(&self, value: ValueId) -> Result<(Place, Option<RopeStyle>)> {
        match self.places[value.0] {
            Some(place) => Ok((place, None)),
            None => match self.producer(value) {
                Some(Node { op: Op::Rope { style, .. }, inputs, .. }) => {
                    Ok((self.place(inputs[0])?, Some(*style)))
                }
                _ => self.place(value).map(|p| (p, None)),
            },
        }
    }

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

    fn kv_append(&mut self, node: &Node, layer: usize) -> Result<()> {
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

    fn attention(&mut self, node: &Node, layer: usize, heads: Heads, scale: f32) -> Result<()> {
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

    fn router(&mut self, node: &Node, top_k: usize, renormalize: bool) -> Result<()> {
        let x = self.place(node.inputs[0])?;
        let slot = self.output(node)?;
        let params = Params::from([
            ("WORKGROUP", ELEMENT_WORKGROUP),
            ("EXPERTS", self.context.graph.value(node.inputs[0]).width as u32),
            ("TOP_K", top_k as u32),
            ("RENORMALIZE", u32::from(renormalize)),
            ("X_STRIDE", self.stride(x.slot)),
            ("X_OFFSET", x.offset),
        ]);
        let rows = Extent::Count { rows: Rows::All, times: 1, per: ELEMENT_WORKGROUP };
        let bindings = vec![
            (0, Operand::Step, false),
            (1, Operand::Slot(x.slot), false),
            (2, Operand::Slot(slot), true),
        ];
        let grid = [rows, Extent::Fixed(1), Extent::Fixed(1)];
        self.push("router_top_k.wgsl", None, params, When::any(Rows::All), grid, bindings);
        Ok(())
    }

    fn experts(&mut self, node: &Node, weights: [WeightId; 3], top_k: usize) -> Result<()> {
        let [gate, up, down] = weights;
        if self.tensor(gate).dtype() != self.tensor(up).dtype() || self.tile(gate) != self.tile(up) {
            let message = format!(
                "experts whose gate ({}) and up ({}) differ in format",
                self.tensor(gate).dtype(),
                self.tensor(up).dtype()
            );
            return Err(Error::Unsupported(message));
        }
        let (x, routing) = (self.place(node.inputs[0])?, self.place(node.inputs[1])?);
        let tuning = self.context.tuning;
        let width = self.tensor(gate).shape()[1];
        let act = self.slot(Rows::All, top_k, width);
        let out = self.output(node)?;
        let matrices = [self.matrix(&[gate])?, self.matrix(&[up])?];
        let packed = self.packed(matrices[0])?;
        let pairs = Extent::Count { rows: Rows::All, times: top_k as u32, per: 1 };
        for (segment, range) in segments(&packed, self.context.max_segment).into_iter().enumerate() {
            let mut params = packed.params(&range);
            params.extend(self.product_params(2, tuning.rows, x, act));
            params.extend([("ADD", 0), ("EXPERTS", 1), ("TOP_K", top_k as u32), ("COLS", 1)]);
            let group_rows = tuning.workgroup / tuning.lanes * tuning.rows;
            let grid = [Extent::Fixed((width as u32).div_ceil(group_rows)), pairs, Extent::Fixed(1)];
            let mut bindings = vec![
                (0, Operand::Step, false),
                (1, Operand::Slot(x.slot), false),
                (2, Operand::Slot(act), true),
                (3, Operand::Slot(routing.slot), false),
            ];
            bindings.extend(packed.operands(0, matrices[0], segment));
            bindings.extend(packed.operands(1, matrices[1], segment));
            self.push("linear.wgsl", Some(packed.dtype), params, When::any(Rows::All), grid, bindings);
        }

        let matrix = self.matrix(&[down])?;
        let packed = self.packed(matrix)?;
        let act_place = Place { slot: act, offset: 0 };
        for (segment, range) in segments(&packed, self.context.max_segment).into_iter().enumerate() {
            let mut params = packed.params(&range);
            params.extend(self.product_params(1, 1, act_place, out));
            params.extend([("TOP_K", top_k as u32), ("FIRST", u32::from(segment == 0))]);
            let group_rows = tuning.workgroup / tuning.lanes;
            let grid = [
                Extent::Fixed((self.tensor(down).shape()[1] as u32).div_ceil(group_rows)),
                Extent::Count { rows: Rows::All, times: 1, per: 1 },
                Extent::Fixed(1),
            ];
            let mut bindings = vec![
                (0, Operand::Step, false),
                (1, Operand::Slot(act), false),
                (2, Operand::Slot(out), true),
                (3, Operand::Slot(routing.slot), false),
            ];
            bindings.extend(packed.operands(0, matrix, segment));
            self.push("experts_down.wgsl", Some(packed.dtype), params, When::any(Rows::All), grid, bindings);
        }
        Ok(())
    }

    fn gather(&mut self, node: &Node) -> Result<()> {
        let x = self.place(node.inputs[0])?;
        let slot = self.output(node)?;
        let params = [
            ("X_STRIDE", self.stride(x.slot)),
            ("X_OFFSET", x.offset),
            ("OUT_STRIDE", self.stride(slot)),
            ("OUTPUT_ROWS", self.layout.output_rows),
        ];
        let bindings = vec![
            (0, Operand::Step, false),
            (1, Operand::Slot(x.slot), false),
            (2, Operand::Slot(slot), true),
        ];
        self.elementwise(node, "gather_rows.wgsl", self.plan.slots[slot].width, &params, bindings);
        Ok(())
    }

    // --- weights ----------------------------------------------------------------------------------------------

    /// The index of the stacked matrix of `weights`, once however often it is used.
    fn matrix(&mut self, weights: &[WeightId]) -> Result<usize> {
        let matrix = Matrix { weights: weights.to_vec() };
        let found = self.plan.matrices.iter().position(|m| *m == matrix);
        Ok(found.unwrap_or_else(|| {
            self.plan.matrices.push(matrix);
            self.plan.matrices.len() - 1
        }))
    }

    fn packed(&self, matrix: usize) -> Result<Packed> {
        let tensors: Vec<&Tensor> =
            self.plan.matrices[matrix].weights.iter().map(|&w| self.tensor(w)).collect();
        Packed::new(&tensors)
    }
}

/// Shares buffers between slots of the same shape whose lives do not overlap: slot -> buffer.
///
/// Only the same shape: elements beyond a row's width must stay zero.
pub(crate) fn share_buffers(plan: &Plan) -> (Vec<usize>, Vec<Slot>) {
    let mut last_use = vec![0; plan.slots.len()];
    for (at, launch) in plan.launches.iter().enumerate() {
        for (_, operand, _) in &launch.bindings {
            if let Operand::Slot(slot) = operand {
                last_use[*slot] = at;
            }
        }
    }
    plan.hidden.iter().chain([&plan.logits]).for_each(|&s| last_use[s] = usize::MAX);
    let mut buffers: Vec<Slot> = vec![];
    let mut buffer_of = vec![usize::MAX; plan.slots.len()];
    let mut free: BTreeMap<usize, usize> = BTreeMap::new(); // buffer -> launch after which it is free
    for (at, launch) in plan.launches.iter().enumerate() {
        for (_, operand, _) in &launch.bindings {
            let Operand::Slot(slot) = *operand else { continue };
            if buffer_of[slot] != usize::MAX {
                continue;
            }
            let shape = plan.slots[slot];
            let reusable =
                free.iter().find(|(b, since)| **since < at && buffers[**b] == shape).map(|(b, _)| *b);
            let buffer = reusable.unwrap_or_else(|| {
                buffers.push(shape);
                buffers.len() - 1
            });
            free.insert(buffer, last_use[slot]);
            buffer_of[slot] = buffer;
        }
    }
    (buffer_of, buffers)
}

//! Lowers a graph to a [`Plan`]: chooses what is fused, where values lie, and which kernels make them.
//!
//! What is fused stands in [`fusion`]; matrix products in [`products`]; experts in [`moe`]; the cache and attention in
//! [`attention`]; what crosses the edges of segments in [`segments`](mod@segments).

mod attention;
mod fusion;
mod moe;
mod products;
mod segments;

use tread_core::afd::activations::F8_GROUP;
use tread_core::backend::CompileOptions;
use tread_core::graph::{EdgeDType, Graph, Node, Op, RopeStyle, Rows, Side, ValueId, WeightId};
use tread_core::tensor::{DType, Tensor};
use tread_core::{Error, Result};

use crate::device::Tuning;
use crate::plan::{Extent, Kernel, Label, Launch, Operand, Plan, Slot, StepLayout, When};
use crate::source::Params;
use crate::weights::segments;

/// Threads of kernels that do one element a thread.
const ELEMENT_WORKGROUP: u32 = 64;

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
        uses: segments::uses(context.graph),
        captured: segments::captured(context.graph),
        layout: StepLayout::new(context.options),
        places: vec![None; context.graph.values.len()],
        done: vec![false; context.graph.nodes.len()],
        label: Label { name: "", layer: None, side: Side::Attention },
        context,
        plan: Plan {
            launches: vec![],
            segments: vec![],
            matrices: vec![],
            slots: vec![],
            pass_rows: 0,
            partial_bytes: 0,
        },
    };
    lowering.run()?;
    Ok(lowering.plan)
}

struct Lowering<'a> {
    context: Context<'a>,
    /// How often each value is read.
    uses: Vec<usize>,
    /// Whether each value is wanted beyond its segment, too: then it has a slot of its own.
    captured: Vec<bool>,
    layout: StepLayout,
    places: Vec<Option<Place>>,
    done: Vec<bool>,
    /// Of the launches that are pushed.
    label: Label,
    plan: Plan,
}

impl<'a> Lowering<'a> {
    fn run(&mut self) -> Result<()> {
        let graph = self.context.graph;
        for segment in &graph.segments {
            let (start, inputs) = (self.plan.launches.len(), self.inputs(segment));
            for at in segment.nodes.clone() {
                let node = &graph.nodes[at];
                if !self.done[at] && !self.waits_for_consumer(node) {
                    self.label = Label::of(node);
                    self.node(at, node)?;
                }
            }
            let segment = self.segment(segment, start, inputs)?;
            self.plan.segments.push(segment);
        }
        Ok(())
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
            Op::ExpertsGateUp { gate, up, top_k, first } => {
                self.experts_gate_up(node, [*gate, *up], *top_k, *first)
            }
            Op::ExpertsDown { down, top_k, first } => self.experts_down(node, *down, *top_k, *first),
            Op::Combine { top_k } => self.combine(node, *top_k),
            Op::Round { to } => self.round(node, *to),
            Op::GatherRows => self.gather(node),
        }
    }

    // --- places -----------------------------------------------------------------------------------------------

    fn slot(&mut self, rows: Rows, per_row: usize, width: usize) -> usize {
        let (width, per_row) = (width as u32, per_row as u32);
        self.plan.slots.push(Slot { rows, per_row, width, stride: width.next_multiple_of(32) });
        self.plan.slots.len() - 1
    }

    /// A slot for a value. What experts make of a row, one for each choice, are rows of the slot: each is the operand of a
    /// product, and so has padding of its own.
    fn slot_for(&mut self, id: ValueId) -> usize {
        let graph = self.context.graph;
        let (value, per_row) = (
            graph.value(id),
            graph.nodes.iter().find_map(|n| match n.op {
                Op::ExpertsGateUp { top_k, .. } if n.output == Some(id) => Some(top_k),
                Op::ExpertsDown { top_k, .. } if n.inputs[0] == id => Some(top_k),
                _ => None,
            }),
        );
        let per_row = per_row.unwrap_or(1);
        self.slot(value.rows, per_row, value.width / per_row)
    }

    /// A slot of its own for the node's output.
    fn output(&mut self, node: &Node) -> Result<usize> {
        let id =
            node.output.ok_or_else(|| Error::Unsupported(format!("{} without output", node.op.name())))?;
        let value = self.context.graph.value(id);
        let slot = self.slot_for(id);
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
        let (label, kernel) = (self.label, Kernel { file, format, params });
        self.plan.launches.push(Launch { label, kernel, when, grid, bindings });
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

    fn round(&mut self, node: &Node, to: EdgeDType) -> Result<()> {
        let x = self.place(node.inputs[0])?;
        let slot = self.output(node)?;
        let (rows, width, group) = (self.rows_of(node), self.plan.slots[slot].width, F8_GROUP as u32);
        let params = Params::from([
            ("WORKGROUP", self.context.tuning.norm_workgroup.min(group)),
            ("GROUP", group),
            ("WIDTH", width),
            ("X_STRIDE", self.stride(x.slot)),
            ("X_OFFSET", x.offset),
            ("OUT_STRIDE", self.stride(slot)),
            ("BF16", u32::from(to == EdgeDType::BF16)),
            ("F8", u32::from(to == EdgeDType::F8)),
        ]);
        let grid = [
            Extent::Fixed(width.div_ceil(group)),
            Extent::Count { rows, times: 1, per: 1 },
            Extent::Fixed(1),
        ];
        let bindings = vec![(1, Operand::Slot(x.slot), false), (2, Operand::Slot(slot), true)];
        self.push("round.wgsl", None, params, When::any(rows), grid, bindings);
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
}

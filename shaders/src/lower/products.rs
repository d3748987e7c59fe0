//! Matrix products: linears, alone, stacked or with what follows them.

use tread_core::Result;
use tread_core::graph::{Node, Op, Rows, ValueId, WeightId};
use tread_core::tensor::Tensor;

use super::{Lowering, Place};
use crate::plan::{Extent, Label, Matrix, Operand, When};
use crate::source::Params;
use crate::weights::{Packed, segments};

impl<'a> Lowering<'a> {
    /// The linear at `at` and all others of its segment that can be stacked with it.
    pub(super) fn linears(&mut self, at: usize, node: &'a Node) -> Result<()> {
        let Op::Linear { weight } = node.op else { return Ok(()) };
        let input = node.inputs[0];
        let mut members = vec![(at, node, weight)];
        let segment = self.context.graph.segments.iter().find(|s| s.nodes.contains(&at));
        for other_at in at + 1..segment.map_or(at, |s| s.nodes.end) {
            let other = &self.context.graph.nodes[other_at];
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
    pub(super) fn product_params(&self, matrices: usize, thread_rows: u32, x: Place, slot: usize) -> Params {
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

    pub(super) fn swiglu(&mut self, node: &'a Node) -> Result<()> {
        if let Some(([gate, up], input)) = self.gate_up(node) {
            let slot = self.output(node)?;
            self.label.name = "linear + swiglu";
            return self.product(node, &[vec![gate], vec![up]], input, slot, None);
        }
        self.two_operands(node, "swiglu.wgsl")
    }

    pub(super) fn add(&mut self, node: &'a Node) -> Result<()> {
        if let Some(linear) = self.linear_of_add(node) {
            let (Op::Linear { weight }, Some(made)) = (&linear.op, linear.output) else { return Ok(()) };
            let other = if node.inputs[0] == made { node.inputs[1] } else { node.inputs[0] };
            let addend = self.place(other)?;
            // The kernel reads the addend where it writes the sum: both have a slot of their own and the same width.
            let slot = self.output(node)?;
            // Nearly all of the work is the product, which may belong to the other side.
            self.label = Label { name: "linear + add", ..Label::of(linear) };
            return self.product(node, &[vec![*weight]], linear.inputs[0], slot, Some(addend));
        }
        self.two_operands(node, "add.wgsl")
    }

    /// The index of the stacked matrix of `weights`, once however often it is used.
    pub(super) fn matrix(&mut self, weights: &[WeightId]) -> Result<usize> {
        let matrix = Matrix { weights: weights.to_vec() };
        let found = self.plan.matrices.iter().position(|m| *m == matrix);
        Ok(found.unwrap_or_else(|| {
            self.plan.matrices.push(matrix);
            self.plan.matrices.len() - 1
        }))
    }

    pub(super) fn packed(&self, matrix: usize) -> Result<Packed> {
        let tensors: Vec<&Tensor> =
            self.plan.matrices[matrix].weights.iter().map(|&w| self.tensor(w)).collect();
        Packed::new(&tensors)
    }
}

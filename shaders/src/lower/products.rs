//! Matrix products: linears, alone, stacked or with what follows them, and experts.

use tread_core::graph::{Node, Op, Rows, ValueId, WeightId};
use tread_core::tensor::Tensor;
use tread_core::{Error, Result};

use super::{Lowering, Place};
use crate::plan::{Extent, Label, Matrix, Operand, When};
use crate::source::Params;
use crate::weights::{Packed, segments};

impl<'a> Lowering<'a> {
    /// The linear at `at` and all others that can be stacked with it.
    pub(super) fn linears(&mut self, at: usize, node: &'a Node) -> Result<()> {
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

    pub(super) fn experts(&mut self, node: &Node, weights: [WeightId; 3], top_k: usize) -> Result<()> {
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

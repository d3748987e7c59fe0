//! Mixture of experts: the router, the experts, and the sum of what they say.

use tread_core::graph::{Node, Rows, WeightId};
use tread_core::{Error, Result};

use super::{ELEMENT_WORKGROUP, Lowering};
use crate::plan::{Extent, Operand, When};
use crate::source::Params;
use crate::weights::segments;

/// What a half of the experts is made of.
struct Half<'a> {
    /// Gate and up, or down alone, by index into the plan's matrices.
    matrices: &'a [usize],
    top_k: u32,
    /// Ids of the experts that are here.
    first: usize,
    held: usize,
}

impl Lowering<'_> {
    pub(super) fn router(&mut self, node: &Node, top_k: usize, renormalize: bool) -> Result<()> {
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

    pub(super) fn experts_gate_up(
        &mut self,
        node: &Node,
        [gate, up]: [WeightId; 2],
        top_k: usize,
        first: usize,
    ) -> Result<()> {
        if self.tensor(gate).dtype() != self.tensor(up).dtype() || self.tile(gate) != self.tile(up) {
            let message = format!(
                "experts whose gate ({}) and up ({}) differ in format",
                self.tensor(gate).dtype(),
                self.tensor(up).dtype()
            );
            return Err(Error::Unsupported(message));
        }
        let matrices = [self.matrix(&[gate])?, self.matrix(&[up])?];
        let held = self.tensor(gate).shape()[0];
        self.half(node, &Half { matrices: &matrices, top_k: top_k as u32, first, held })
    }

    pub(super) fn experts_down(
        &mut self,
        node: &Node,
        down: WeightId,
        top_k: usize,
        first: usize,
    ) -> Result<()> {
        let (matrices, held) = ([self.matrix(&[down])?], self.tensor(down).shape()[0]);
        self.half(node, &Half { matrices: &matrices, top_k: top_k as u32, first, held })
    }

    fn half(&mut self, node: &Node, half: &Half<'_>) -> Result<()> {
        let tuning = self.context.tuning;
        let (x, routing) = (self.place(node.inputs[0])?, self.place(node.inputs[1])?);
        let out = self.output(node)?;
        let packed = self.packed(half.matrices[0])?;
        let down = half.matrices.len() == 1;
        for (number, range) in segments(&packed, self.context.max_segment).into_iter().enumerate() {
            let mut params = packed.params(&range);
            params.extend(self.product_params(half.matrices.len(), tuning.rows, x, out));
            params.extend([
                ("ADD", 0),
                ("EXPERTS", 1),
                ("DOWN", u32::from(down)),
                ("COLS", 1),
                ("TOP_K", half.top_k),
                ("FIRST", half.first as u32),
                ("HELD", half.held as u32),
                // Places of experts that are elsewhere: one dispatch has them.
                ("ZERO", u32::from(number == 0)),
            ]);
            let group_rows = tuning.workgroup / tuning.lanes * tuning.rows;
            let grid = [
                Extent::Fixed(packed.matrix_rows().div_ceil(group_rows)),
                Extent::Count { rows: Rows::All, times: half.top_k, per: 1 },
                Extent::Fixed(1),
            ];
            let mut bindings = vec![
                (0, Operand::Step, false),
                (1, Operand::Slot(x.slot), false),
                (2, Operand::Slot(out), true),
                (3, Operand::Slot(routing.slot), false),
            ];
            for (nth, &matrix) in half.matrices.iter().enumerate() {
                bindings.extend(packed.operands(nth as u32, matrix, number));
            }
            self.push("linear.wgsl", Some(packed.dtype), params, When::any(Rows::All), grid, bindings);
        }
        Ok(())
    }

    pub(super) fn combine(&mut self, node: &Node, top_k: usize) -> Result<()> {
        let (slots, routing) = (self.place(node.inputs[0])?, self.place(node.inputs[1])?);
        let out = self.output(node)?;
        let params = [
            ("TOP_K", top_k as u32),
            ("X_STRIDE", self.stride(slots.slot)),
            ("X_OFFSET", slots.offset),
            ("OUT_STRIDE", self.stride(out)),
        ];
        let bindings = vec![
            (1, Operand::Slot(slots.slot), false),
            (2, Operand::Slot(out), true),
            (3, Operand::Slot(routing.slot), false),
        ];
        self.elementwise(node, "combine.wgsl", self.plan.slots[out].width, &params, bindings);
        Ok(())
    }
}

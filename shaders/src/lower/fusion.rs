//! What is fused: linears of one input and one format into one stacked matrix; gate + up + SwiGLU; linear + add;
//! rotation of keys into the cache write and of queries into attention. A value that is captured (the host reads it, or a later
//! segment) is never fused away.

use tread_core::Result;
use tread_core::graph::{Node, Op, RopeStyle, ValueId, WeightId};

use super::{Lowering, Place};

impl<'a> Lowering<'a> {
    /// Whether the node is made by the launch of the node that reads it.
    pub(super) fn waits_for_consumer(&self, node: &Node) -> bool {
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
    pub(super) fn gate_up(&self, swiglu: &Node) -> Option<([WeightId; 2], ValueId)> {
        let linears: Vec<_> = swiglu.inputs.iter().filter_map(|&v| self.sole_linear(v)).collect();
        let [(gate, a), (up, b)] = linears[..] else { return None };
        let same = self.tensor(gate).dtype() == self.tensor(up).dtype()
            && self.tile(gate) == self.tile(up)
            && a == b
            && swiglu.inputs[0] != swiglu.inputs[1];
        same.then_some(([gate, up], a))
    }

    /// The linear that makes one operand of an add and nothing else: the later one, if both are linears.
    pub(super) fn linear_of_add(&self, add: &Node) -> Option<&'a Node> {
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

    /// Whether `next` can be stacked below `last`: the same format, and FP8 tiles that begin at `next`'s first row.
    pub(super) fn stacks(&self, last: WeightId, next: WeightId) -> bool {
        let (a, b) = (self.tensor(last), self.tensor(next));
        a.dtype() == b.dtype()
            && self.tile(last) == self.tile(next)
            && self.tile(last).is_none_or(|tile| a.rows() % tile[0] == 0)
    }

    /// Whether every reader of the node's output takes it at an offset in wider rows.
    pub(super) fn only_read_by_offset(&self, node: &Node) -> bool {
        let Some(output) = node.output else { return false };
        let graph = self.context.graph;
        !self.captured[output.0]
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

    /// The input of a rotation that `reader` can do itself, and its style; else the value as it is.
    pub(super) fn rotated(&self, value: ValueId) -> Result<(Place, Option<RopeStyle>)> {
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
}

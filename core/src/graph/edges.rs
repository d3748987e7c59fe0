//! What crosses from pool to pool, in which type, and who adds up the experts.

use serde::{Deserialize, Serialize};

use super::{Graph, Node, Op, Side, Value, ValueId};

/// The type in which activations cross from pool to pool (Step-3 paper, section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EdgeDType {
    /// As they are computed: f32.
    #[default]
    F32,
    /// bfloat16, to nearest even.
    BF16,
    /// From attention to FFN E4M3 in groups of [`F8_GROUP`](crate::afd::activations::F8_GROUP) columns, each with a power of two as its scale (the least
    /// with which the group's largest element fits); back in bfloat16.
    #[serde(rename = "fp8")]
    F8,
}

impl EdgeDType {
    /// The name users know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F8 => "fp8",
        }
    }

    /// What crosses from a pool when this was asked for.
    const fn from(self, side: Side) -> Self {
        match (self, side) {
            (Self::F8, Side::Ffn) => Self::BF16,
            _ => self,
        }
    }
}

impl Graph {
    /// The same graph where attention's pool adds up what the experts say, so that FFN workers may hold some of a
    /// layer's experts each. Otherwise FFN's pool does, and an edge is `top_k + 1` times as narrow.
    #[must_use]
    pub fn combined_on_attention(mut self) -> Self {
        let combined: Vec<_> =
            self.nodes.iter().filter(|n| matches!(n.op, Op::Combine { .. })).map(|n| n.output).collect();
        for node in &mut self.nodes {
            let adds = matches!(node.op, Op::Add) && node.inputs.iter().any(|v| combined.contains(&Some(*v)));
            if adds || matches!(node.op, Op::Combine { .. }) {
                node.side = Side::Attention;
            }
        }
        self
    }

    /// The same graph with every activation that crosses from pool to pool rounded to `to` where it leaves; what the
    /// router chose crosses as it is. Of whole graphs only.
    #[must_use]
    pub fn rounded(mut self, to: EdgeDType) -> Self {
        if to == EdgeDType::F32 {
            return self;
        }
        let nodes = std::mem::take(&mut self.nodes);
        for (at, node) in nodes.iter().enumerate() {
            self.nodes.push(node.clone());
            let Some(value) = node.output.filter(|_| !matches!(node.op, Op::RouterTopK { .. })) else {
                continue;
            };
            if nodes[at..].iter().any(|n| n.side != node.side && n.inputs.contains(&value)) {
                let op = Op::Round { to: to.from(node.side) };
                let Value { name, width, rows } = self.value(value).clone();
                let output = Some(ValueId(self.values.len()));
                self.values.push(Value { name: format!("{name}.rounded"), width, rows });
                self.nodes.push(Node { op, inputs: vec![value], output, ..*node });
            }
        }
        // Who reads a value across the cut reads it rounded.
        for at in 0..self.nodes.len() {
            let side = self.nodes[at].side;
            let rounded = |value: ValueId| {
                let round = |n: &&Node| matches!(n.op, Op::Round { .. }) && n.inputs == [value];
                self.nodes.iter().find(round).filter(|n| n.side != side).and_then(|n| n.output)
            };
            let inputs = self.nodes[at].inputs.iter().map(|&v| rounded(v).unwrap_or(v)).collect();
            self.nodes[at].inputs = inputs;
        }
        self.segments[0].nodes = 0..self.nodes.len();
        self
    }
}

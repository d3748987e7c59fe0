//! Cuts a graph into the parts of the two pools: segments that run without waiting, joined by edges of activations.

use std::ops::Range;

use super::{Edge, EdgeDType, Graph, Node, Op, Segment, Side, ValueId, WeightId};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// What one device of a pool holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All that attention's pool does, over all layers.
    Attention,
    /// The FFNs of some layers.
    Ffn {
        /// Layers.
        layers: Range<usize>,
        /// Of their experts these ids; none: all of them. A part with experts but without the first leaves dense and
        /// shared FFNs to the one that has it.
        experts: Option<Range<usize>>,
    },
}

impl Part {
    const fn side(&self) -> Side {
        match self {
            Self::Attention => Side::Attention,
            Self::Ffn { .. } => Side::Ffn,
        }
    }

    fn holds(&self, graph: &Graph, node: &Node) -> bool {
        if node.side != self.side() {
            return false;
        }
        let Self::Ffn { layers, experts } = self else { return true };
        let first = experts.as_ref().is_none_or(|ids| ids.start == 0);
        node.layer.is_some_and(|layer| layers.contains(&layer)) && (first || graph.is_of_experts(node))
    }
}

/// A part of a graph, with where its weights come from.
#[derive(Clone, Debug)]
pub struct PartGraph {
    /// The part: values keep the ids of the whole graph, weights do not.
    pub graph: Graph,
    /// For each of its weights, which of the whole graph's it is, and which matrices of a stack.
    weights: Vec<(WeightId, Option<Range<usize>>)>,
}

impl PartGraph {
    /// The part's weights, of the whole graph's; nothing is read.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a stack cannot be cut where the part says.
    pub fn bind(&self, whole: &[Tensor]) -> Result<Vec<Tensor>> {
        let bind = |(id, matrices): &(WeightId, Option<Range<usize>>)| match matrices {
            None => Ok(whole[id.0].clone()),
            Some(range) => whole[id.0].matrices_in(range.clone()),
        };
        self.weights.iter().map(bind).collect()
    }
}

impl Graph {
    /// The part of one device. Its segments alternate with those of the other pool: segment n of attention's part
    /// gives what the other pool does next, and segment n + 1 waits for it.
    ///
    /// # Errors
    /// [`Error::Config`] when the part asks for layers or experts that there are not, [`Error::Unsupported`] when an FFN
    /// would need something that it is not given by the segment of attention before it.
    pub fn part(&self, part: &Part) -> Result<PartGraph> {
        self.check_part(part)?;
        let mut graph = Self { nodes: vec![], weights: vec![], segments: vec![], ..self.clone() };
        if part.side() == Side::Ffn {
            (graph.logits, graph.features) = (None, None);
            graph.hidden.clear();
            graph.kv_widths.clear();
            graph.inv_freq.clear();
        }
        let mut weights = vec![];
        // What runs in one go: all nodes of a side between two of the other.
        let runs: Vec<_> = self.nodes.chunk_by(|a, b| a.side == b.side).collect();
        for (at, run) in runs.iter().enumerate() {
            self.check_edges(&runs[..at], run)?;
            let start = graph.nodes.len();
            for node in run.iter().filter(|n| part.holds(self, n)) {
                let mut node = node.clone();
                renumber(self, part, &mut node, &mut graph, &mut weights);
                graph.nodes.push(node);
            }
            let nodes = start..graph.nodes.len();
            if !nodes.is_empty() {
                let layer = graph.nodes[nodes.clone()].iter().rev().find_map(|n| n.layer);
                graph.segments.push(Segment { nodes, layer, ..Segment::default() });
            }
        }
        self.join(part, &mut graph)?;
        Ok(PartGraph { graph, weights })
    }

    /// Whether a node makes what chosen experts say, rounded or not.
    fn is_of_experts(&self, node: &Node) -> bool {
        let made_by_experts =
            |value| self.nodes.iter().any(|n| n.output == Some(value) && self.is_of_experts(n));
        match node.op {
            Op::ExpertsGateUp { .. } | Op::ExpertsDown { .. } => true,
            Op::Round { .. } => made_by_experts(node.inputs[0]),
            _ => false,
        }
    }

    fn check_part(&self, part: &Part) -> Result<()> {
        let Part::Ffn { layers, experts } = part else { return Ok(()) };
        let count = self.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |last| last + 1);
        if layers.is_empty() || layers.end > count {
            return Err(Error::Config(format!("layers {layers:?} of a model with {count}")));
        }
        let Some(ids) = experts else { return Ok(()) };
        for node in self.nodes.iter().filter(|n| n.layer.is_some_and(|layer| layers.contains(&layer))) {
            let count = match node.op {
                Op::ExpertsGateUp { gate, .. } => self.weight(gate).shape[0],
                _ => continue,
            };
            if ids.is_empty() || ids.end > count {
                return Err(Error::Config(format!("experts {ids:?} of a layer with {count}")));
            }
        }
        let combines = |n: &Node| n.side == Side::Ffn && matches!(n.op, Op::Combine { .. });
        if self.nodes.iter().any(combines) {
            return Err(Error::Config(
                "experts of a layer on several workers are added up by attention's pool".to_owned(),
            ));
        }
        Ok(())
    }

    /// What a run reads of the other side must come from the run just before it.
    fn check_edges(&self, before: &[&[Node]], run: &[Node]) -> Result<()> {
        let Some((_, earlier)) = before.split_last() else { return Ok(()) };
        let theirs = earlier.iter().copied().flatten().filter(|n| n.side != run[0].side);
        for value in theirs.filter_map(|n| n.output) {
            if run.iter().any(|n| n.inputs.contains(&value)) {
                let name = &self.value(value).name;
                return Err(Error::Unsupported(format!("{name} crosses to a later layer than the next")));
            }
        }
        Ok(())
    }

    /// Finds what crosses the edges of a part, and what stays from segment to segment.
    fn join(&self, part: &Part, graph: &mut Self) -> Result<()> {
        let mut segments = std::mem::take(&mut graph.segments);
        let made = |nodes: &[Node], value: ValueId| nodes.iter().any(|n| n.output == Some(value));
        for segment in &mut segments {
            let range = segment.nodes.clone();
            let (own, after) = (&graph.nodes[range.clone()], &graph.nodes[range.end..]);
            let mut inputs: Vec<_> = own.iter().flat_map(|n| &n.inputs).copied().collect();
            inputs.retain(|&v| !made(&graph.nodes, v));
            let mut outputs: Vec<_> = own.iter().filter_map(|n| n.output).collect();
            outputs.retain(|&v| self.nodes.iter().any(|n| n.side != part.side() && n.inputs.contains(&v)));
            let mut kept: Vec<_> = graph.nodes[..range.end].iter().filter_map(|n| n.output).collect();
            kept.retain(|v| after.iter().any(|n| n.inputs.contains(v)));
            if part.side() == Side::Ffn && !kept.is_empty() {
                let name = &self.value(kept[0]).name;
                return Err(Error::Unsupported(format!("an FFN that keeps {name} from layer to layer")));
            }
            let [inputs, outputs] = [inputs, outputs].map(|values| self.edges(values));
            (segment.inputs, segment.outputs, segment.kept) = (inputs, outputs, kept);
        }
        graph.segments = segments;
        Ok(())
    }

    fn edges(&self, mut values: Vec<ValueId>) -> Vec<Edge> {
        values.sort_unstable();
        values.dedup();
        let edge = |value: ValueId| {
            let made_by = self.nodes.iter().find(|n| n.output == Some(value)).map(|n| &n.op);
            let dtype = match made_by {
                Some(Op::Round { to }) => *to,
                _ => EdgeDType::F32,
            };
            Edge { value, dtype }
        };
        values.into_iter().map(edge).collect()
    }
}

/// Gives a node of a part the part's weights, adding those that it has not yet.
fn renumber(
    whole: &Graph,
    part: &Part,
    node: &mut Node,
    graph: &mut Graph,
    weights: &mut Vec<(WeightId, Option<Range<usize>>)>,
) {
    let matrices = match (part, &mut node.op) {
        (
            Part::Ffn { experts: Some(ids), .. },
            Op::ExpertsGateUp { first, .. } | Op::ExpertsDown { first, .. },
        ) => {
            *first = ids.start;
            Some(ids.clone())
        }
        _ => None,
    };
    for weight in node.op.weights_mut() {
        let wanted = (*weight, matrices.clone());
        let index = weights.iter().position(|w| *w == wanted).unwrap_or_else(|| {
            let mut decl = whole.weight(*weight).clone();
            if let Some(ids) = &matrices {
                decl.shape[0] = ids.len();
            }
            graph.weights.push(decl);
            weights.push(wanted);
            weights.len() - 1
        });
        *weight = WeightId(index);
    }
}

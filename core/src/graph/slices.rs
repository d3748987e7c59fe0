//! Cuts a part of the FFN pool for several devices that compute it together (tensor parallelism).
//!
//! Products are cut by the rows of their weights, which are the elements of their outputs: no sum is split, so the outputs
//! are those of one device bit for bit. Where an op needs whole rows of what was cut, a segment ends; the host puts the
//! pieces together, and the next segment begins with them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Edge, EdgeDType, Graph, Node, Op, Segment, Value, ValueId};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A part that is cut for several devices.
///
/// In the graphs of the devices a value of the part keeps its id where it is whole; the piece that a device has of it is
/// another value.
#[derive(Clone, Debug)]
pub struct Slices {
    /// What each device computes. Their segments are the same ones.
    pub graphs: Vec<Graph>,
    /// For each segment of the part those of the graphs that make it, one after the other.
    pub stages: Vec<Range<usize>>,
    /// Of the part's values.
    forms: Vec<Form>,
    cuts: Cuts,
}

/// How a value of the part lies on the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Each device is given all of it.
    Whole,
    /// Each device makes some columns, in a stage of its segment: of every one of the groups into which a row is divided (what
    /// the experts of a row say, one behind the other).
    Cut { stage: usize, groups: usize },
}

/// Which rows of a matrix, and so which columns of what it makes, are whose. That depends on their number alone, so that
/// values of one width can be added where they are.
#[derive(Clone, Debug)]
struct Cuts {
    devices: usize,
    /// For each number of rows how many must stay together.
    units: BTreeMap<usize, usize>,
}

impl Slices {
    /// A device's weights, of the part's; nothing is read.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a tensor is not of the part.
    pub fn bind(&self, device: usize, part: &[Tensor]) -> Result<Vec<Tensor>> {
        part.iter().map(|tensor| tensor.rows_in(self.cuts.of(matrix_rows(tensor.shape()), device))).collect()
    }

    /// The value of the part of which the devices made these pieces, and all of it.
    pub fn join(&self, piece: ValueId, pieces: &[&[f32]]) -> (ValueId, Vec<f32>) {
        let whole = self.whole_of(piece);
        let groups = self.groups(whole);
        let width = self.graphs[0].value(whole).width / groups;
        let cuts: Vec<_> = (0..pieces.len()).map(|device| self.cuts.of(width, device)).collect();
        let mut out = vec![0.0; pieces.iter().map(|piece| piece.len()).sum()];
        for (cut, piece) in cuts.iter().zip(pieces) {
            // A group of a row at a time.
            for (out, piece) in out.chunks_exact_mut(width).zip(piece.chunks_exact(cut.len())) {
                out[cut.clone()].copy_from_slice(piece);
            }
        }
        (whole, out)
    }

    /// The graph of all devices with the sizes of one's pieces.
    fn of_device(&self, graph: &Graph, device: usize) -> Graph {
        let mut graph = graph.clone();
        for decl in &mut graph.weights {
            let rows = matrix_rows(&decl.shape);
            if let [.., of_matrix, _] = decl.shape.as_mut_slice() {
                *of_matrix = self.cuts.of(rows, device).len();
            }
        }
        for (at, form) in self.forms.iter().enumerate() {
            if let Form::Cut { groups, .. } = form {
                let width = graph.values[at].width / groups;
                graph.values[self.forms.len() + at].width = groups * self.cuts.of(width, device).len();
            }
        }
        graph
    }

    /// Pieces have ids behind those of the part.
    fn whole_of(&self, piece: ValueId) -> ValueId {
        ValueId(piece.0 - self.forms.len())
    }

    fn groups(&self, value: ValueId) -> usize {
        match self.forms[value.0] {
            Form::Whole => 1,
            Form::Cut { groups, .. } => groups,
        }
    }
}

impl Graph {
    /// Cuts a part for so many devices; the part's tensors say where their formats allow it. Nothing is read.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it has an op that is not of FFNs, [`Error::Config`] when there is not a block of rows of
    /// every matrix for each device.
    pub fn slices(&self, weights: &[Tensor], devices: usize) -> Result<Slices> {
        let mut forms = vec![Form::Whole; self.values.len()];
        let mut graph = Self { nodes: vec![], segments: vec![], ..self.clone() };
        let mut stages = vec![];
        for segment in &self.segments {
            let nodes = &self.nodes[segment.nodes.clone()];
            let mut last = 0;
            for node in nodes {
                let (form, stage) = form(node, &forms)?;
                node.output.iter().for_each(|v| forms[v.0] = form);
                last = last.max(stage);
            }
            let start = graph.segments.len();
            for stage in 0..=last {
                self.stage(segment, stage, &forms, &mut graph);
            }
            stages.push(start..graph.segments.len());
        }
        let cuts = Cuts::new(weights, devices)?;
        let pieces = self.values.iter().map(|v| Value { name: format!("{}.piece", v.name), ..v.clone() });
        graph.values.extend(pieces);
        let mut slices = Slices { graphs: vec![], stages, forms, cuts };
        slices.graphs = (0..devices).map(|device| slices.of_device(&graph, device)).collect();
        Ok(slices)
    }

    /// Adds a stage of a segment to the graph of all devices.
    fn stage(&self, segment: &Segment, stage: usize, forms: &[Form], graph: &mut Self) {
        let nodes = &self.nodes[segment.nodes.clone()];
        let in_stage = |value: ValueId| matches!(forms[value.0], Form::Cut { stage: s, .. } if s == stage);
        let piece = |value: ValueId| ValueId(self.values.len() + value.0);
        let wholes = |node: &Node| -> Vec<ValueId> {
            let inputs = node.inputs.iter().enumerate();
            inputs.filter(|&(nth, _)| reads_whole(&node.op, nth)).map(|(_, &v)| v).collect()
        };
        let start = graph.nodes.len();
        let (mut inputs, mut outputs) = (vec![], vec![]);
        for node in nodes.iter().filter(|n| n.output.is_some_and(in_stage)) {
            inputs.extend(wholes(node));
            let made = node.output.into_iter();
            outputs.extend(made.filter(|v| {
                segment.outputs.iter().any(|edge| edge.value == *v)
                    || nodes.iter().any(|n| wholes(n).contains(v))
            }));
            let mut node = Node { output: node.output.map(piece), ..node.clone() };
            for (nth, input) in node.inputs.iter_mut().enumerate() {
                if !reads_whole(&node.op, nth) {
                    *input = piece(*input);
                }
            }
            graph.nodes.push(node);
        }
        inputs.sort_unstable();
        inputs.dedup();
        let edge = |value| Edge { value, dtype: EdgeDType::F32 };
        graph.segments.push(Segment {
            nodes: start..graph.nodes.len(),
            layer: segment.layer,
            inputs: inputs.into_iter().map(edge).collect(),
            outputs: outputs.into_iter().map(piece).map(edge).collect(),
            kept: vec![],
        });
    }
}

/// Whether an op needs all of an input's columns to make some of its output's.
const fn reads_whole(op: &Op, nth: usize) -> bool {
    match op {
        Op::SwiGlu | Op::Add | Op::Round { .. } => false,
        Op::Combine { .. } => nth == 1,
        _ => true,
    }
}

/// How a node's output lies on the devices, and in which stage of its segment it is made.
fn form(node: &Node, forms: &[Form]) -> Result<(Form, usize)> {
    let cannot = |why: &str| {
        Err(Error::Unsupported(format!(
            "several devices that compute together: `{}` {why}; only the shards of FFN workers can be cut so",
            node.op.name()
        )))
    };
    let (mut stage, mut pieces) = (0, vec![]);
    for (nth, input) in node.inputs.iter().enumerate() {
        match (reads_whole(&node.op, nth), forms[input.0]) {
            (true, Form::Whole) => {}
            (true, Form::Cut { stage: made, .. }) => stage = stage.max(made + 1),
            (false, form) => pieces.push(form),
        }
    }
    let groups = match (&node.op, pieces.first()) {
        (Op::Linear { .. }, _) => 1,
        (Op::ExpertsGateUp { top_k, .. } | Op::ExpertsDown { top_k, .. }, _) => *top_k,
        (Op::Combine { top_k }, Some(&Form::Cut { stage: made, groups })) if groups == *top_k => {
            stage = stage.max(made);
            1
        }
        // In groups of columns it would need whole ones.
        (Op::Round { to: EdgeDType::F8 }, _) => return cannot("to fp8 cannot be cut"),
        (Op::SwiGlu | Op::Add | Op::Round { .. }, Some(&Form::Cut { stage: made, groups })) => {
            stage = stage.max(made);
            groups
        }
        _ => return cannot("cannot be cut"),
    };
    let at_hand = |form: &Form| matches!(form, Form::Cut { stage: made, .. } if *made == stage);
    let alike = pieces.windows(2).all(|pair| pair[0] == pair[1]);
    if !alike || !pieces.iter().all(at_hand) {
        return cannot("has inputs that are not cut alike");
    }
    Ok((Form::Cut { stage, groups }, stage))
}

impl Cuts {
    fn new(weights: &[Tensor], devices: usize) -> Result<Self> {
        let mut cuts = Self { devices, units: BTreeMap::new() };
        for tensor in weights {
            let tile = tensor.scales().map_or(1, |scales| scales.block[0]);
            let unit = cuts.units.entry(matrix_rows(tensor.shape())).or_insert(1);
            *unit = (1..=tile).map(|n| n * *unit).find(|unit| unit.is_multiple_of(tile)).unwrap_or(tile);
        }
        for (&rows, &unit) in &cuts.units {
            let blocks = rows.div_ceil(unit);
            if devices == 0 || devices > blocks {
                return Err(Error::Config(format!(
                    "{devices} devices for matrices of {rows} rows in {blocks} blocks of {unit}; there must be a block for \
                     each device: join fewer"
                )));
            }
        }
        Ok(cuts)
    }

    /// What a device has of so many rows.
    fn of(&self, rows: usize, device: usize) -> Range<usize> {
        share(rows, self.units.get(&rows).copied().unwrap_or(1), self.devices, device)
    }
}

/// Rows of one matrix of a tensor.
fn matrix_rows(shape: &[usize]) -> usize {
    shape.iter().rev().nth(1).copied().unwrap_or(1)
}

/// What one of so many has of `rows`: whole units but for the last, and at most one more than any other has.
fn share(rows: usize, unit: usize, of: usize, at: usize) -> Range<usize> {
    let edge = |at: usize| (at * rows.div_ceil(unit) / of * unit).min(rows);
    edge(at)..edge(at + 1)
}

#[cfg(test)]
mod tests;

//! Which worker of the FFN pool holds what, and how their answers become one.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Answer, Call};
use crate::graph::{Edge, Graph, Op, Part, PartGraph};
use crate::{Error, Result};

/// How FFNs are spread over workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharding {
    /// Each worker has some layers, whole.
    #[default]
    Layers,
    /// Each worker has some experts of all layers, and the first has dense and shared FFNs too (expert parallelism).
    Experts,
}

impl Sharding {
    /// The name users know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Layers => "layers",
            Self::Experts => "experts",
        }
    }
}

/// What one worker holds.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Which part.
    pub part: Part,
    /// The part, ready to be compiled.
    pub graph: PartGraph,
    /// The segment of each layer.
    segments: Vec<Option<usize>>,
}

/// What all workers of a pool hold: together every FFN, none twice.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The shards.
    pub shards: Vec<Shard>,
    /// For each layer what attention's segment before it gives and the one after it wants.
    edges: Vec<(Vec<Edge>, Vec<Edge>)>,
    graph: Graph,
}

impl Layout {
    /// Spreads the FFNs of `graph` over `workers` shards, evenly but for a remainder. Experts are spread only where
    /// attention adds them up (see [`Graph::combined_on_attention`]).
    ///
    /// # Errors
    /// [`Error::Config`] when there is not something for everyone; else as [`Graph::part`].
    pub fn new(graph: &Graph, sharding: Sharding, workers: usize) -> Result<Self> {
        let layers = graph.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |last| last + 1);
        let experts = graph.nodes.iter().find_map(|n| match n.op {
            Op::ExpertsGateUp { gate, .. } => Some(graph.weight(gate).shape[0]),
            _ => None,
        });
        let (what, count) = match sharding {
            Sharding::Layers => ("layers", layers),
            Sharding::Experts => ("experts", experts.unwrap_or(0)),
        };
        if workers == 0 || workers > count {
            return Err(Error::Config(format!(
                "{workers} shards of FFN for a model with {count} {what}; give each worker at least one"
            )));
        }
        let share = |at: usize| at * count / workers..(at + 1) * count / workers;
        let part = |at| match sharding {
            Sharding::Layers => Part::Ffn { layers: share(at), experts: None },
            Sharding::Experts => Part::Ffn { layers: 0..layers, experts: Some(share(at)) },
        };
        let shards =
            (0..workers).map(|at| Shard::new(graph, part(at), layers)).collect::<Result<Vec<_>>>()?;
        let attention = graph.part(&Part::Attention)?.graph;
        if attention.segments.len() != layers + 1 {
            return Err(Error::Unsupported("a model with layers that have no FFN".to_owned()));
        }
        let pairs = attention.segments.iter().zip(&attention.segments[1..]);
        let edges = pairs.map(|(before, after)| (before.outputs.clone(), after.inputs.clone())).collect();
        Ok(Self { shards, edges, graph: graph.clone() })
    }

    /// The shards that have something to do for a call.
    pub fn wanted(&self, call: &Call) -> Vec<usize> {
        let holds = |shard: &Shard| shard.segment(call.layer).is_some();
        (0..self.shards.len()).filter(|&at| holds(&self.shards[at])).collect()
    }

    /// What attention gives a layer's FFN, and what it wants of it.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn edges(&self, layer: usize) -> (&[Edge], &[Edge]) {
        let (inputs, outputs) = &self.edges[layer];
        (inputs, outputs)
    }

    /// The whole graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// An answer to `call` without anything in it.
    pub fn begin(&self, call: &Call) -> Answer {
        let zeros = |edge: &Edge| vec![0.0; call.rows * self.graph.value(edge.value).width];
        let outputs = self.edges[call.layer].1.iter().map(zeros).collect();
        Answer { step: call.step, micro_batch: call.micro_batch, layer: call.layer, outputs, ffn_us: 0.0 }
    }

    /// Adds what a shard says to an answer. `outputs` are those of its segment, in its order.
    pub fn add(&self, answer: &mut Answer, call: &Call, shard: usize, outputs: &[Vec<f32>], ffn_us: f64) {
        let shard = &self.shards[shard];
        answer.ffn_us = answer.ffn_us.max(ffn_us);
        for (at, edge) in self.edges[call.layer].1.iter().enumerate() {
            let Some(found) = shard.outputs(call.layer).iter().position(|e| e.value == edge.value) else {
                continue;
            };
            let whole = &mut answer.outputs[at];
            match self.slots(shard, call, *edge) {
                None => whole.copy_from_slice(&outputs[found]),
                Some(slots) => slots
                    .into_iter()
                    .for_each(|slot| whole[slot.clone()].copy_from_slice(&outputs[found][slot])),
            }
        }
    }

    /// Of a layer's output that several shards make together, the elements that this one makes: the slots of its experts.
    /// None when it makes all.
    pub fn slots(&self, shard: &Shard, call: &Call, edge: Edge) -> Option<Vec<Range<usize>>> {
        let Part::Ffn { experts: Some(ids), .. } = &shard.part else { return None };
        let node = self.graph.nodes.iter().find(|n| n.output == Some(edge.value))?;
        // A rounded value is as its operand is.
        let node = match node.op {
            Op::Round { .. } => self.graph.nodes.iter().find(|n| n.output == Some(node.inputs[0]))?,
            _ => node,
        };
        let Op::ExpertsDown { top_k, .. } = node.op else { return None };
        let routing = self.edges[call.layer].0.iter().position(|e| e.value == node.inputs[1])?;
        let width = self.graph.value(edge.value).width / top_k;
        let rows = call.inputs[routing].chunks_exact(2 * top_k).enumerate();
        let slots = rows.flat_map(|(row, choices)| {
            let own =
                choices[..top_k].iter().enumerate().filter(|(_, id)| ids.contains(&(id.to_bits() as usize)));
            own.map(move |(choice, _)| (row * top_k + choice) * width..(row * top_k + choice + 1) * width)
        });
        Some(slots.collect())
    }
}

impl Shard {
    fn new(graph: &Graph, part: Part, layers: usize) -> Result<Self> {
        let graph = graph.part(&part)?;
        let mut segments = vec![None; layers];
        for (at, segment) in graph.graph.segments.iter().enumerate() {
            if let Some(layer) = segment.layer {
                segments[layer] = Some(at);
            }
        }
        Ok(Self { part, graph, segments })
    }

    /// Its segment for a layer, if it holds something of it.
    pub fn segment(&self, layer: usize) -> Option<usize> {
        self.segments.get(layer).copied().flatten()
    }

    /// What its segment for a layer gives.
    pub fn outputs(&self, layer: usize) -> &[Edge] {
        self.segment(layer).map_or(&[], |at| &self.graph.graph.segments[at].outputs)
    }

    /// What its segment for a layer wants, out of what attention gives the layer.
    pub fn inputs(&self, layer: usize) -> &[Edge] {
        self.segment(layer).map_or(&[], |at| &self.graph.graph.segments[at].inputs)
    }
}

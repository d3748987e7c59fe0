//! What crosses the edges of segments: values that the host writes, reads, or keeps for the next one.

use tread_core::Result;
use tread_core::graph::{Graph, Op, Segment, ValueId};

use super::{Lowering, Place};
use crate::plan::{self, Tap};

/// Whether each value is read by the host or by a later segment.
pub(super) fn captured(graph: &Graph) -> Vec<bool> {
    let mut captured = vec![false; graph.values.len()];
    let crossing =
        |s: &Segment| s.outputs.iter().map(|edge| edge.value).chain(s.kept.clone()).collect::<Vec<_>>();
    let values = graph.taps().chain(graph.logits).chain(graph.segments.iter().flat_map(crossing));
    values.for_each(|v| captured[v.0] = true);
    captured
}

/// How often each value is read; captured ones count twice more, so that they are never fused away.
pub(super) fn uses(graph: &Graph) -> Vec<usize> {
    let mut uses: Vec<_> = captured(graph).into_iter().map(|captured| 2 * usize::from(captured)).collect();
    graph.nodes.iter().flat_map(|n| &n.inputs).for_each(|v| uses[v.0] += 1);
    uses
}

impl Lowering<'_> {
    /// Slots for what the other pool makes.
    pub(super) fn inputs(&mut self, segment: &Segment) -> Vec<usize> {
        segment.inputs.iter().map(|edge| self.input(edge.value)).collect()
    }

    fn input(&mut self, id: ValueId) -> usize {
        let graph = self.context.graph;
        let slot = self.slot_for(id);
        let takes_routing =
            |op: &Op| matches!(op, Op::ExpertsGateUp { .. } | Op::ExpertsDown { .. } | Op::Combine { .. });
        if graph.nodes.iter().any(|n| takes_routing(&n.op) && n.inputs[1] == id) {
            self.plan.slots[slot].stride = graph.value(id).width as u32;
        }
        self.places[id.0] = Some(Place { slot, offset: 0 });
        slot
    }

    /// The segment whose launches begin at `start`, all of which are made.
    pub(super) fn segment(
        &self,
        segment: &Segment,
        start: usize,
        inputs: Vec<usize>,
    ) -> Result<plan::Segment> {
        let graph = self.context.graph;
        let nodes = &graph.nodes[segment.nodes.clone()];
        let made = |value: ValueId| nodes.iter().any(|n| n.output == Some(value));
        let taps = graph.logits.map(|v| (Tap::Logits, v)).into_iter();
        let taps = taps.chain(graph.features.map(|v| (Tap::Features, v)));
        let taps = taps.chain(graph.hidden.iter().enumerate().map(|(i, &v)| (Tap::Hidden(i), v)));
        let taps = taps.chain(segment.outputs.iter().enumerate().map(|(i, edge)| (Tap::Edge(i), edge.value)));
        let results = taps.filter(|&(_, v)| made(v)).map(|(tap, v)| Ok((tap, self.slot_of(v)?)));
        let saves = segment.kept.iter().filter(|&&v| made(v)).map(|&v| self.slot_of(v));
        let kept = |value: ValueId| graph.segments.iter().any(|s| s.kept.contains(&value));
        let mut loads: Vec<_> = nodes.iter().flat_map(|n| &n.inputs).copied().collect();
        loads.retain(|&v| !made(v) && kept(v));
        loads.sort_unstable();
        loads.dedup();
        Ok(plan::Segment {
            launches: start..self.plan.launches.len(),
            inputs,
            results: results.collect::<Result<_>>()?,
            loads: loads.into_iter().map(|v| self.slot_of(v)).collect::<Result<_>>()?,
            saves: saves.collect::<Result<_>>()?,
        })
    }
}

//! The plain back end: the oracle of every test, and the fallback where there is no GPU.
//!
//! Written to be read: one function an op, f32 throughout, one fixed order of every sum. No result depends on what
//! else is in the batch, so decoding, prefilling and batching agree bit for bit. Weights stay where they are, in
//! their format, and are decoded row by row as they are used.

mod attention;
mod elementwise;
mod linear;
mod moe;
mod norm;
mod rope;
mod rows;

use std::future::ready;
use std::time::Duration;

use web_time::Instant;

use crate::afd::activations;
use crate::backend::{Backend, Batch, CompileOptions, Executable, LocalFuture, Output, Stats, Work};
use crate::graph::{Graph, Node, Op, Rows, Segment, ValueId};
use crate::monitor::OpTime;
use crate::tensor::Tensor;
use crate::{Error, Result, quant};
use attention::KvCache;
use linear::Scratch;
use rows::StepRows;

/// The CPU as a back end, using rayon's global thread pool (one thread where there are no others, as in browsers).
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl Cpu {
    /// The CPU.
    pub fn new() -> Self {
        Self
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn device(&self) -> String {
        format!("CPU ({} threads)", rayon::current_num_threads())
    }

    /// Weights are read where they are mapped, and the system takes those pages back when it needs them.
    fn host_bytes(&self, _weights: u64, cache: u64) -> u64 {
        cache
    }

    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>> {
        let compiled = CpuExecutable::new(graph, weights, options, progress);
        Box::pin(ready(compiled.map(|executable| Box::new(executable) as Box<dyn Executable>)))
    }
}

#[derive(Debug)]
struct CpuExecutable {
    graph: Graph,
    weights: Vec<Tensor>,
    /// The weights that are vectors (norms), decoded; empty for the others.
    vectors: Vec<Vec<f32>>,
    options: CompileOptions,
    kv: Vec<KvCache>,
    lanes: Vec<Lane>,
    /// For each node, the values that no later node reads.
    dead_after: Vec<Vec<ValueId>>,
    /// Buffers of dead values, for the next ones.
    free: Vec<Vec<f32>>,
    logits: Vec<f32>,
    hidden: Vec<Vec<f32>>,
    features: Vec<f32>,
    edges: Vec<Vec<f32>>,
    scratch: Scratch,
    profile_next: bool,
    profile: Vec<OpTime>,
}

/// What stays from segment to segment.
#[derive(Clone, Debug, Default)]
struct Lane {
    /// The activations, by value; empty while not alive.
    values: Vec<Vec<f32>>,
    rows: StepRows,
}

impl CpuExecutable {
    fn new(
        graph: &Graph,
        weights: &[Tensor],
        options: CompileOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let total = weights.iter().map(Tensor::bytes).sum();
        let (mut done, mut vectors) = (0, vec![]);
        for weight in weights {
            if weight.elements() == 0 {
                return Err(Error::tensor(
                    weight.name(),
                    format!("shape {:?} has no elements", weight.shape()),
                ));
            }
            quant::check_finite(weight)?;
            vectors.push(if weight.shape().len() == 1 { weight.to_f32()? } else { vec![] });
            done += weight.bytes();
            progress(done, total);
        }
        let kv = graph.kv_widths.iter().map(|&width| KvCache::new(width, &options)).collect::<Result<_>>()?;
        let lane = Lane { values: vec![vec![]; graph.values.len()], rows: StepRows::default() };
        Ok(Self {
            weights: weights.to_vec(),
            vectors,
            lanes: vec![lane; options.lanes],
            options,
            kv,
            dead_after: dead_after(graph),
            free: vec![],
            logits: vec![],
            hidden: vec![vec![]; graph.hidden.len()],
            features: vec![],
            edges: vec![],
            scratch: Scratch::default(),
            profile_next: false,
            profile: vec![],
            graph: graph.clone(),
        })
    }

    fn segment(&mut self, work: Work<'_>) -> Result<()> {
        work.check(&self.graph, &self.options)?;
        let Work { batch, segment, lane, inputs } = work;
        let segment = self.graph.segments[segment].clone();
        // Attention's rows stay the same for all segments of a step.
        if work.segment == 0 || self.graph.kv_widths.is_empty() {
            self.lanes[lane].rows.set(batch, &self.graph.inv_freq);
            for cache in &mut self.kv {
                batch.copies.iter().for_each(|&(from, to)| cache.copy_block(from, to));
            }
        }
        // What the last segment gave is read no more.
        let read = self.edges.drain(..).chain([std::mem::take(&mut self.logits)]);
        self.free.extend(read.filter(|buffer| buffer.capacity() > 0));
        self.hidden.iter_mut().for_each(Vec::clear);
        self.features.clear();
        for (edge, input) in segment.inputs.iter().zip(inputs) {
            let mut value = self.free.pop().unwrap_or_default();
            value.clone_from(input);
            self.lanes[lane].values[edge.value.0] = value;
        }
        self.profile.clear();
        let (measured, begin) = (std::mem::take(&mut self.profile_next), Instant::now());
        for index in segment.nodes.clone() {
            let start = measured.then(|| begin.elapsed());
            self.node(index, batch, lane)?;
            if let Some(start) = start {
                let Node { op, layer, side, .. } = &self.graph.nodes[index];
                let us = |time: Duration| time.as_secs_f64() * 1e6;
                self.profile.push(OpTime {
                    name: op.name().to_owned(),
                    layer: *layer,
                    side: *side,
                    micro_batch: 0,
                    start_us: us(start),
                    us: us(begin.elapsed() - start),
                });
            }
        }
        let values = &mut self.lanes[lane].values;
        for edge in &segment.outputs {
            let value = &mut values[edge.value.0];
            let kept = segment.kept.contains(&edge.value);
            self.edges.push(if kept { value.clone() } else { std::mem::take(value) });
        }
        if let Some(logits) = self.graph.logits {
            self.logits = std::mem::take(&mut values[logits.0]);
        }
        Ok(())
    }

    fn node(&mut self, index: usize, batch: &Batch, lane: usize) -> Result<()> {
        let Some(output) = self.graph.nodes[index].output else {
            self.append(index, batch, lane);
            return Ok(());
        };
        let value = self.graph.value(output);
        let rows = match value.rows {
            Rows::All => self.lanes[lane].rows.all.len(),
            Rows::Output => self.lanes[lane].rows.outputs.len(),
        };
        let mut out = self.free.pop().unwrap_or_default();
        out.clear();
        out.resize(rows * value.width, 0.0);
        self.compute(index, batch, lane, &mut out)?;
        if batch.hidden {
            for (hidden, _) in self.hidden.iter_mut().zip(&self.graph.hidden).filter(|(_, v)| **v == output) {
                hidden.clone_from(&out);
            }
        }
        if batch.features && self.graph.features == Some(output) {
            self.features.clone_from(&out);
        }
        let values = &mut self.lanes[lane].values;
        values[output.0] = out;
        for dead in &self.dead_after[index] {
            self.free.push(std::mem::take(&mut values[dead.0]));
        }
        Ok(())
    }

    fn append(&mut self, index: usize, batch: &Batch, lane: usize) {
        let Node { op: Op::KvAppend { layer }, inputs, .. } = &self.graph.nodes[index] else { return };
        let Lane { values, rows } = &self.lanes[lane];
        let [k, v] = [0, 1].map(|i| &values[inputs[i].0]);
        self.kv[*layer].append(batch, rows, k, v);
    }

    /// Runs one op into `out`, which is all zero.
    fn compute(&mut self, index: usize, batch: &Batch, lane: usize, out: &mut [f32]) -> Result<()> {
        let Node { op, inputs, .. } = &self.graph.nodes[index];
        let (Lane { values, rows }, scratch) = (&self.lanes[lane], &mut self.scratch);
        let input = |i: usize| values[inputs[i].0].as_slice();
        let input_width = |i: usize| self.graph.value(inputs[i]).width;
        let weight = |id: crate::graph::WeightId| &self.weights[id.0];
        match *op {
            Op::Embed { table } => rows::embed(batch, weight(table), out)?,
            Op::RmsNorm { weight, eps } => norm::rms_norm(input(0), &self.vectors[weight.0], eps, out),
            Op::Linear { weight: id } => {
                linear::linear(input(0), weight(id), 0..weight(id).rows(), out, scratch)?;
            }
            Op::Rope { head_dim, style } => {
                rope::rope(input(0), &rows.rotation, input_width(0), head_dim, style, out);
            }
            // It has no output, and so is never asked to compute one.
            Op::KvAppend { .. } => {}
            Op::Attention { layer, heads, scale } => {
                attention::attention(input(0), &self.kv[layer], batch, rows, heads, scale, out);
            }
            Op::SwiGlu => elementwise::swiglu(input(0), input(1), out),
            Op::Add => elementwise::add(input(0), input(1), out),
            Op::RouterTopK { top_k, renormalize } => {
                moe::router_top_k(input(0), input_width(0), top_k, renormalize, out);
            }
            Op::ExpertsGateUp { gate, up, top_k, first } => {
                let routing = moe::Routing { choices: input(1), top_k, first };
                moe::gate_up(input(0), routing, [gate, up].map(weight), out, scratch)?;
            }
            Op::ExpertsDown { down, top_k, first } => {
                let routing = moe::Routing { choices: input(1), top_k, first };
                moe::down(input(0), routing, weight(down), out, scratch)?;
            }
            Op::Combine { top_k } => moe::combine(input(0), input(1), top_k, out),
            Op::Round { to } => activations::round(to, input(0), input_width(0), out),
            Op::GatherRows => rows::gather(input(0), &rows.outputs, input_width(0), out),
        }
        Ok(())
    }
}

impl Executable for CpuExecutable {
    fn run<'a>(&'a mut self, work: Work<'_>) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        self.segment(work)?;
        let Self { logits, hidden, features, edges, .. } = self;
        Ok(Box::pin(ready(Ok(Output { logits, hidden, features, edges }))))
    }

    fn profile_next(&mut self) {
        self.profile_next = true;
    }

    fn take_profile(&mut self) -> Vec<OpTime> {
        std::mem::take(&mut self.profile)
    }

    fn stats(&self) -> Stats {
        let results = self.hidden.iter().chain(&self.edges).chain([&self.logits, &self.features]);
        let values = self.lanes.iter().flat_map(|lane| &lane.values);
        let activations = values.chain(&self.free).chain(results).map(Vec::capacity);
        Stats {
            dispatches: 0,
            weight_bytes: self.weights.iter().map(Tensor::bytes).sum(),
            kv_bytes: self.kv.iter().map(KvCache::bytes).sum(),
            scratch_bytes: (activations.sum::<usize>() * size_of::<f32>()) as u64,
            ..Stats::default()
        }
    }

    fn options(&self) -> &CompileOptions {
        &self.options
    }
}

/// For each node, the values that are read (or, if never read, written) last by it. The logits and what crosses to the
/// other pool outlive their segment.
fn dead_after(graph: &Graph) -> Vec<Vec<ValueId>> {
    let mut dead = vec![vec![]; graph.nodes.len()];
    for value in (0..graph.values.len()).map(ValueId).filter(|&v| Some(v) != graph.logits) {
        let touches = |n: &Node| n.inputs.contains(&value) || n.output == Some(value);
        let Some(last) = graph.nodes.iter().rposition(touches) else { continue };
        let crosses_here =
            |s: &Segment| s.nodes.contains(&last) && s.outputs.iter().any(|edge| edge.value == value);
        if !graph.segments.iter().any(crosses_here) {
            dead[last].push(value);
        }
    }
    dead
}

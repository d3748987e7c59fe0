//! `tread bench --afd`: what taking attention and FFN apart costs and gives, on two processes of this machine.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::json;
use tread_core::afd::activations::packed_bytes;
use tread_core::backend::{BLOCK_SIZE, Backend, Batch, CompileOptions, Executable, Rows};
use tread_core::graph::{Edge, Graph, Part};
use tread_core::model::Model;
use tread_core::monitor::{OpTime, STAGES};

use super::median;
use crate::afd::shape;
use crate::afd::spawn::Workers;
use crate::cli::{AfdArgs, BenchArgs};
use crate::table::Table;
use crate::{devices, engine, load};

/// Sequences that decode together.
const SEQUENCES: usize = 16;

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    device: String,
    sequences: usize,
    /// Bytes that cross for a token, over all layers and workers.
    a2f_bytes_per_token: usize,
    f2a_bytes_per_token: usize,
    results: Vec<Figures>,
    /// Tokens a second with all micro-batches, to those with one.
    pipelined_ratio: f64,
}

/// What was measured with so many micro-batches; medians.
#[derive(Serialize)]
struct Figures {
    micro_batches: u32,
    decode_tokens_per_s: f64,
    /// Share of a step in which a stage had something to do.
    occupancy: BTreeMap<&'static str, f64>,
}

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let model = Arc::new(load::model(args.model.as_deref())?);
    let mut afd = args.apart.clone();
    let device = (args.backend, args.adapter.as_ref());
    let workers = match afd.pool()? {
        Some(_) => None,
        None => Some(Workers::ffn(args.model.as_deref(), device, &afd, (1, SEQUENCES))?),
    };
    afd.ffn = afd.ffn.or_else(|| workers.as_ref().map(Workers::members));
    let mut results = vec![];
    let mut shown = String::new();
    // In turns, so that whatever else the machine does meets both.
    let mut cases = vec![];
    for micro_batches in [1, afd.micro_batches] {
        let open = devices::open(args.backend, args.adapter.as_ref())?;
        let afd = AfdArgs { micro_batches, ..afd.clone() };
        let backend = devices::apart(&model, open, &afd)?;
        shown = backend.device();
        cases.push((micro_batches, Case::new(&model, &*backend, args)?));
    }
    let (mut rates, mut busy) = (vec![vec![]; cases.len()], vec![vec![]; cases.len()]);
    for _ in 0..args.repeat {
        for (at, (_, case)) in cases.iter_mut().enumerate() {
            rates[at].push(case.decode()?);
            let ops = case.measured_step()?;
            busy[at].push(STAGES.map(|stage| occupancy(&ops, stage)));
            if let (Some(path), true) = (&args.trace, at > 0) {
                let text = serde_json::to_string(&chrome_trace(&ops))?;
                fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
            }
        }
    }
    for (at, (micro_batches, _)) in cases.iter().enumerate() {
        let share = |stage: usize| median(busy[at].iter().map(|shares| shares[stage]).collect());
        results.push(Figures {
            micro_batches: *micro_batches,
            decode_tokens_per_s: median(rates[at].clone()),
            occupancy: STAGES.iter().enumerate().map(|(at, stage)| (*stage, share(at))).collect(),
        });
    }
    let pipelined_ratio = results[1].decode_tokens_per_s / results[0].decode_tokens_per_s;
    let graph = shape(&model.graph, afd.sharding.into(), afd.afd_dtype.into());
    let [a2f, f2a] = crossing(&graph)?;
    let report = Report {
        model: &model.name,
        device: shown,
        sequences: SEQUENCES,
        a2f_bytes_per_token: a2f,
        f2a_bytes_per_token: f2a,
        results,
        pipelined_ratio,
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report, args.repeat);
    }
    Ok(())
}

fn print(report: &Report<'_>, repeat: u32) {
    let title = format!(
        "{} on {}: {} sequences decode together, median of {repeat}; a token takes {} bytes to the FFN and {} back",
        report.model, report.device, report.sequences, report.a2f_bytes_per_token, report.f2a_bytes_per_token
    );
    let mut table =
        Table::new(title, ["micro-batches", "decode tok/s", "attention busy", "a2f", "ffn", "f2a"]);
    for f in &report.results {
        let share = |stage: &str| format!("{:.0} %", 100.0 * f.occupancy[stage]);
        let rate = format!("{:.1}", f.decode_tokens_per_s);
        let [attention, a2f, ffn, f2a] = STAGES.map(share);
        table.row([f.micro_batches.to_string(), rate, attention, a2f, ffn, f2a]);
    }
    print!("{table}");
    println!("pipelined to not pipelined: {:.2}", report.pipelined_ratio);
}

/// Sequences whose prompt is computed, decoding the same positions over and over.
struct Case {
    executable: Box<dyn Executable>,
    prompt: usize,
    new: usize,
}

impl Case {
    fn new(model: &Model, backend: &dyn Backend, args: &BenchArgs) -> Result<Self> {
        let (prompt, new) = (args.prompt_tokens.single()?, args.new_tokens.single()?);
        let (context, limit) = (prompt + new, model.config.context_length());
        if context > limit {
            bail!(
                "{prompt} + {new} tokens exceed the context of {limit}: use a smaller --prompt-tokens or --new-tokens"
            );
        }
        let blocks = context.div_ceil(BLOCK_SIZE) * SEQUENCES;
        let options = CompileOptions {
            kv_blocks: blocks,
            max_outputs: SEQUENCES,
            max_table: blocks,
            ..CompileOptions::single(context, SEQUENCES, args.kv.into())
        };
        let mut case = Self { executable: engine::compile(model, backend, options)?, prompt, new };
        (0..prompt).try_for_each(|at| case.step(at))?;
        Ok(case)
    }

    /// A token of every sequence, at the same position.
    fn step(&mut self, position: usize) -> Result<()> {
        let blocks = (self.prompt + self.new).div_ceil(BLOCK_SIZE);
        let rows = |sequence: usize| Rows {
            tokens: vec![(1 + sequence + position) as u32 % 64],
            start: position,
            block_table: (sequence * blocks..(sequence + 1) * blocks).map(|block| block as u32).collect(),
            outputs: vec![0],
        };
        let batch = Batch { sequences: (0..SEQUENCES).map(rows).collect(), ..Batch::default() };
        pollster::block_on(self.executable.step(&batch)?)?;
        Ok(())
    }

    /// Tokens a second.
    fn decode(&mut self) -> Result<f64> {
        let start = Instant::now();
        (self.prompt..self.prompt + self.new).try_for_each(|at| self.step(at))?;
        Ok((SEQUENCES * self.new) as f64 / start.elapsed().as_secs_f64())
    }

    /// The stages of a step.
    fn measured_step(&mut self) -> Result<Vec<OpTime>> {
        self.executable.profile_next();
        self.step(self.prompt)?;
        Ok(self.executable.take_profile())
    }
}

/// The share of a step in which some micro-batch was in a stage.
fn occupancy(ops: &[OpTime], stage: &str) -> f64 {
    let end = ops.iter().map(|op| op.start_us + op.us).fold(0.0, f64::max);
    let mut spans: Vec<_> =
        ops.iter().filter(|op| op.name == stage).map(|op| (op.start_us, op.start_us + op.us)).collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut busy, mut until) = (0.0, 0.0);
    for (from, to) in spans {
        busy += (to - f64::max(from, until)).max(0.0);
        until = f64::max(until, to);
    }
    if end > 0.0 { busy / end } else { 0.0 }
}

/// Bytes that a row takes across, to the FFN and back, over all layers.
fn crossing(graph: &Graph) -> Result<[usize; 2]> {
    let segments = graph.part(&Part::Attention)?.graph.segments;
    let bytes = |edges: &[Edge]| -> usize {
        edges.iter().map(|edge| packed_bytes(edge.dtype, 1, graph.value(edge.value).width)).sum()
    };
    Ok([segments.iter().map(|s| bytes(&s.outputs)).sum(), segments.iter().map(|s| bytes(&s.inputs)).sum()])
}

/// Stages as events that Chrome (about:tracing, Perfetto) shows, and `tread simulate --trace` reads. There a process and
/// thread are an instance of a pool; on the ways, micro-batches are beside each other.
fn chrome_trace(ops: &[OpTime]) -> serde_json::Value {
    let event = |op: &OpTime| {
        json!({
            "name": op.name, "ph": "X", "ts": op.start_us, "dur": op.us,
            "pid": STAGES.iter().position(|stage| *stage == op.name),
            "tid": if [STAGES[1], STAGES[3]].contains(&op.name.as_str()) { op.micro_batch } else { 0 },
            "args": {"layer": op.layer, "micro_batch": op.micro_batch},
        })
    };
    json!({ "traceEvents": ops.iter().map(event).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use tread_core::graph::Side;

    use super::*;

    #[test]
    fn what_overlaps_is_counted_once() {
        let op = |name: &str, start_us, us| OpTime {
            name: name.to_owned(),
            layer: Some(0),
            side: Side::Ffn,
            micro_batch: 0,
            start_us,
            us,
        };
        let ops =
            [op("attention", 0.0, 10.0), op("ffn", 5.0, 10.0), op("ffn", 10.0, 10.0), op("ffn", 12.0, 3.0)];
        assert_eq!(occupancy(&ops, "attention"), 0.5);
        assert_eq!(occupancy(&ops, "ffn"), 0.75);
        assert_eq!(occupancy(&ops, "a2f"), 0.0);
        assert_eq!(occupancy(&[], "ffn"), 0.0);
    }
}

//! `tread plan`: what decoding costs on which hardware, and how many servers of each kind keep a goal.
//!
//! The formulas are those of the Step-3 report (arXiv 2507.19427), computed from configs; docs/planning.md lists them.

mod config;
mod cost;
mod deploy;
mod hardware;
mod model;
#[cfg(test)]
mod paper;
mod report;
mod shape;
mod stage;
mod work;

use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cli::{FfnBatch, Format, GoalArgs, KvPrecision, PlanArgs};

pub(crate) use deploy::Deployment;
pub(crate) use stage::{Efficiency, Instances, Stages};

use cost::{Cost, Streaming};
use deploy::Wish;
use hardware::Hardware;
use shape::Shape;
use stage::Model;
use work::{Precision, Work};

/// What is wanted of a deployment.
#[derive(Clone, Copy, Debug, Serialize)]
struct Goal {
    /// Tokens in the cache of a sequence.
    context: usize,
    /// Between two tokens of a sequence.
    tpot_s: f64,
    micro_batches: usize,
}

impl Goal {
    /// Seconds of a stage in a layer, when as many stages as micro-batches share the time.
    fn stage(&self, shape: &Shape) -> f64 {
        self.tpot_s / self.micro_batches as f64 / shape.layers.len() as f64
    }

    /// Microseconds of a layer.
    fn period_us(&self, shape: &Shape) -> f64 {
        1e6 * self.tpot_s / shape.layers.len() as f64
    }
}

/// Everything about one model.
#[derive(Debug, Serialize)]
struct Plan {
    model: String,
    attention: String,
    layers: usize,
    hidden: usize,
    sparsity: Option<f64>,
    work: Work,
    intensity: f64,
    on: Vec<OnHardware>,
    /// The hardware on which attention and FFN are cheapest at their peaks.
    cheapest: Cheapest,
    /// On every pair of hardware that can keep the goal, the cheapest first.
    deployments: Vec<Deployment>,
}

#[derive(Debug, Serialize)]
struct OnHardware {
    hardware: String,
    dollars_per_million: Cost,
    minimum_sparsity: f64,
    streaming: Streaming,
}

#[derive(Debug, Serialize)]
struct Cheapest {
    attention: String,
    ffn: String,
    dollars_per_million: Cost,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    goal: Goal,
    precision: Precision,
    efficiency: Efficiency,
    hardware: Vec<Hardware>,
    plans: Vec<Plan>,
}

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    let names = model::names(&args.model);
    let shapes: Vec<Shape> = names.iter().map(|name| model::shape(name)).collect::<Result<_>>()?;
    let report = Report::new(&shapes, &args.goal)?;
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Table => write!(out, "{}", report.text())?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        Format::Svg => writeln!(out, "{}", report.svg()?)?,
    }
    Ok(())
}

/// A deployment, and what the simulation needs to know besides.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) deployment: Deployment,
    /// Of what an FFN instance computes at a time.
    pub(crate) stages: Stages,
    pub(crate) layers: usize,
    pub(crate) gpus_per_server: usize,
}

/// The cheapest deployment of a model, or the one that `args` name.
pub(crate) fn deployment(model: &str, args: &GoalArgs, ffn_batch: FfnBatch) -> Result<Placed> {
    let shape = model::shape(model)?;
    let report = Report::new(std::slice::from_ref(&shape), args)?;
    let best = report.plans.into_iter().next().and_then(|plan| plan.deployments.into_iter().next());
    let deployment = best.with_context(|| {
        format!(
            "no deployment of {} keeps {} ms on this hardware: allow more with --tpot, or name other --hardware",
            shape.name,
            args.tpot * 1e3
        )
    })?;
    let find =
        |name: &str| report.hardware.iter().find(|h| h.name == name).context("planned on listed hardware");
    let on = [find(&deployment.attention_hardware)?, find(&deployment.ffn_hardware)?];
    let stages = match ffn_batch {
        FfnBatch::All => deployment.stages_us,
        FfnBatch::Each => {
            let model = Model::new(&shape, report.goal.context, report.precision, report.efficiency);
            let one = Instances { attention: 1, ..deployment.instances };
            model.stages(on, one, deployment.batch_per_gpu)
        }
    };
    Ok(Placed { deployment, stages, layers: shape.layers.len(), gpus_per_server: on[0].gpus_per_server })
}

/// How many layers a model has.
pub(crate) fn layers(model: &str) -> Result<usize> {
    Ok(model::shape(model)?.layers.len())
}

impl Report {
    fn new(shapes: &[Shape], args: &GoalArgs) -> Result<Self> {
        let table = hardware::Table::load(args.hardware_file.as_deref())?;
        let hardware: Vec<Hardware> =
            args.hardware.iter().map(|key| table.find(key).cloned()).collect::<Result<_>>()?;
        let goal = Goal { context: args.context, tpot_s: args.tpot, micro_batches: args.micro_batches() };
        let bytes = |kv| if kv == KvPrecision::Bf16 { 2.0 } else { 1.0 };
        let precision = Precision { kv_bytes: bytes(args.kv), hybrid_kv_bytes: bytes(args.hybrid_kv) };
        let wish = Wish { instances: args.deployment, batch: args.batch.map(|batch| batch as usize) };
        let model = |shape| Model::new(shape, goal.context, precision, args.efficiency);
        let plans = shapes.iter().map(|shape| Plan::new(&model(shape), &goal, &hardware, wish));
        Ok(Self { goal, precision, efficiency: args.efficiency, plans: plans.collect(), hardware })
    }
}

impl Plan {
    fn new(model: &Model<'_>, goal: &Goal, hardware: &[Hardware], wish: Wish) -> Self {
        let shape = model.shape;
        let work = model.work;
        let on = hardware.iter().map(|hardware| OnHardware {
            hardware: hardware.name.clone(),
            dollars_per_million: Cost::new(&work, hardware),
            minimum_sparsity: cost::minimum_sparsity(shape, hardware, goal),
            streaming: Streaming::new(shape, hardware, goal, model.precision),
        });
        let pairs = hardware.iter().flat_map(|a| hardware.iter().map(move |f| [a, f]));
        let mut deployments: Vec<Deployment> =
            pairs.filter_map(|pair| deploy::best(model, goal, pair, wish)).collect();
        deployments.sort_by(|a, b| a.dollars_per_million.total_cmp(&b.dollars_per_million));
        Self {
            model: shape.name.clone(),
            attention: kinds(shape),
            layers: shape.layers.len(),
            hidden: shape.hidden,
            sparsity: shape.sparsity(),
            work,
            intensity: work.intensity(),
            cheapest: Cheapest::new(&work, hardware),
            on: on.collect(),
            deployments,
        }
    }
}

impl Cheapest {
    fn new(work: &Work, hardware: &[Hardware]) -> Self {
        let least = |cost: fn(&Cost) -> f64| {
            let costs = hardware.iter().map(|h| (h.name.clone(), cost(&Cost::new(work, h))));
            costs.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
        };
        let (attention, ffn) = (least(|cost| cost.attention), least(|cost| cost.ffn));
        let dollars_per_million = Cost { attention: attention.1, ffn: ffn.1 };
        Self { attention: attention.0, ffn: ffn.0, dollars_per_million }
    }
}

/// The kinds of attention, as `MFA` or `local x36 + GQA x12`.
fn kinds(shape: &Shape) -> String {
    let mut kinds: Vec<(&str, usize)> = vec![];
    for layer in &shape.layers {
        let kind = layer.attention.kind();
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, number)) => *number += 1,
            None => kinds.push((kind, 1)),
        }
    }
    match kinds.as_slice() {
        [(kind, _)] => (*kind).to_owned(),
        several => several.iter().map(|(kind, n)| format!("{kind} x{n}")).collect::<Vec<_>>().join(" + "),
    }
}

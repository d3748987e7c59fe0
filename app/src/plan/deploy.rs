//! How many servers of each kind, with which micro-batches.

use serde::Serialize;

use super::Goal;
use super::hardware::Hardware;
use super::stage::{A2F_BYTES, F2A_BYTES, Instances, Model, Stages, link_tokens};

/// Servers that work together, and what they are predicted to do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Deployment {
    pub(crate) attention_hardware: String,
    pub(crate) ffn_hardware: String,
    pub(crate) instances: Instances,
    pub(crate) gpus: usize,
    /// Sequences of a micro-batch on an attention GPU.
    pub(crate) batch_per_gpu: usize,
    /// Tokens of a micro-batch.
    pub(crate) micro_batch: usize,
    pub(crate) micro_batches: usize,
    pub(crate) stages_us: Stages,
    pub(crate) tpot_ms: f64,
    pub(crate) tokens_per_s: f64,
    pub(crate) tokens_per_gpu_s: f64,
    pub(crate) dollars_per_million: f64,
    pub(crate) link: Links,
}

/// The links of a GPU of either side.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Links {
    pub(crate) attention: Link,
    pub(crate) ffn: Link,
}

/// What a micro-batch puts on a GPU's link in a layer.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Link {
    pub(crate) a2f_bytes: f64,
    pub(crate) f2a_bytes: f64,
    /// With which both directions, one after the other, take one stage of the goal.
    pub(crate) gbit_per_s: f64,
    /// What the hardware has.
    pub(crate) has_gbit_per_s: f64,
}

/// What the user fixes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) instances: Option<Instances>,
    pub(crate) batch: Option<usize>,
}

/// Of the deployments that cost at most this much more than the cheapest, the smallest is taken.
const CLOSE_ENOUGH: f64 = 1.02;
/// Of a GPU's memory may be filled.
const FILL: f64 = 0.9;
const MOST_ATTENTION: usize = 32;
const MOST_FFN: usize = 16;
const MOST_BATCH: usize = 1 << 14;

/// The best deployment on a pair of hardware, attention first; none where no deployment meets the goal.
pub(crate) fn best(model: &Model<'_>, goal: &Goal, on: [&Hardware; 2], wish: Wish) -> Option<Deployment> {
    let mut all = vec![];
    for instances in candidates(wish) {
        if !ffn_fits(model, on[1], instances.ffn) {
            continue;
        }
        let batch = wish.batch.or_else(|| largest_batch(model, goal, on, instances));
        all.extend(batch.map(|batch| Deployment::new(model, goal, on, instances, batch)));
    }
    let cheapest = all.iter().map(|d| d.dollars_per_million).fold(f64::INFINITY, f64::min);
    let close = all.into_iter().filter(|d| d.dollars_per_million <= cheapest * CLOSE_ENOUGH);
    close.min_by_key(|d| d.gpus)
}

fn candidates(wish: Wish) -> Vec<Instances> {
    if let Some(instances) = wish.instances {
        return vec![instances];
    }
    let pairs = (1..=MOST_FFN).flat_map(|ffn| (1..=MOST_ATTENTION).map(move |attention| (attention, ffn)));
    pairs.map(|(attention, ffn)| Instances { attention, ffn }).collect()
}

fn ffn_fits(model: &Model<'_>, hardware: &Hardware, servers: usize) -> bool {
    let gpus = (servers * hardware.gpus_per_server) as f64;
    model.shape.ffn_bytes() / gpus <= FILL * hardware.memory_bytes
}

/// The most sequences an attention GPU can have in a micro-batch; none if not even one is in time.
fn largest_batch(model: &Model<'_>, goal: &Goal, on: [&Hardware; 2], instances: Instances) -> Option<usize> {
    let good = |batch: &usize| {
        let period = model.stages(on, instances, *batch).period(goal.micro_batches);
        period <= goal.period_us(model.shape) * model.efficiency.pipeline
            && attention_fits(model, goal, on[0], *batch)
    };
    // Every stage only gets longer with the batch.
    let (mut least, mut most) = (0, MOST_BATCH);
    while least < most {
        let middle = (least + most).div_ceil(2);
        if good(&middle) { least = middle } else { most = middle - 1 }
    }
    (least > 0).then_some(least)
}

/// The caches of all micro-batches, the attention weights, and a share of embedding and head.
fn attention_fits(model: &Model<'_>, goal: &Goal, hardware: &Hardware, batch: usize) -> bool {
    let shape = model.shape;
    let sequences = (batch * goal.micro_batches) as f64;
    let tables = 2.0 * 2.0 * (shape.vocabulary * shape.hidden) as f64 / hardware.gpus_per_server as f64;
    let weights = model.attention_bytes(hardware.gpus_per_server) + tables;
    let cache = sequences * model.sequence_bytes;
    weights + cache <= FILL * hardware.memory_bytes
}

impl Deployment {
    fn new(model: &Model<'_>, goal: &Goal, on: [&Hardware; 2], instances: Instances, batch: usize) -> Self {
        let stages = model.stages(on, instances, batch);
        let [sent, received] = link_tokens(on, instances, batch);
        let period = stages.period(goal.micro_batches) / model.efficiency.pipeline;
        let tpot_s = period * model.shape.layers.len() as f64 * 1e-6;
        let counts = [instances.attention * on[0].gpus_per_server, instances.ffn * on[1].gpus_per_server];
        let gpus = counts[0] + counts[1];
        let micro_batch = batch * counts[0];
        let tokens_per_s = (micro_batch * goal.micro_batches) as f64 / tpot_s;
        let price = counts[0] as f64 * on[0].price_per_hour + counts[1] as f64 * on[1].price_per_hour;
        Self {
            attention_hardware: on[0].name.clone(),
            ffn_hardware: on[1].name.clone(),
            instances,
            gpus,
            batch_per_gpu: batch,
            micro_batch,
            micro_batches: goal.micro_batches,
            stages_us: stages,
            tpot_ms: tpot_s * 1e3,
            tokens_per_s,
            tokens_per_gpu_s: tokens_per_s / gpus as f64,
            dollars_per_million: price / 3600.0 / tokens_per_s * 1e6,
            link: Links {
                attention: Link::new(model, goal, on[0], sent),
                ffn: Link::new(model, goal, on[1], received),
            },
        }
    }
}

impl Link {
    fn new(model: &Model<'_>, goal: &Goal, hardware: &Hardware, tokens: f64) -> Self {
        let bytes = |element: f64| tokens * model.shape.hidden as f64 * element;
        let (a2f_bytes, f2a_bytes) = (bytes(A2F_BYTES), bytes(F2A_BYTES));
        let gbit_per_s = (a2f_bytes + f2a_bytes) * 8.0 / goal.stage(model.shape) / 1e9;
        Self { a2f_bytes, f2a_bytes, gbit_per_s, has_gbit_per_s: hardware.link() * 8.0 / 1e9 }
    }
}

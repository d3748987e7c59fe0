//! How long the stages of a layer take.

use std::str::FromStr;

use serde::Serialize;

use super::hardware::Hardware;
use super::shape::{Ffn, Shape};
use super::work::{AttentionWeights, Precision, Work};

/// What real kernels reach of the peaks. docs/planning.md says from which measurements each number is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Efficiency {
    /// Share of the peak operations.
    pub(crate) compute: f64,
    /// Share of the memory's bandwidth.
    pub(crate) memory: f64,
    /// Share of the network's bandwidth.
    pub(crate) network: f64,
    /// Microseconds a layer's stage takes on either side besides: launches, norms, collectives within a server.
    pub(crate) overhead_us: f64,
    /// Share of the pipeline's ideal rate that is kept in spite of jitter and waiting.
    pub(crate) pipeline: f64,
}

impl Efficiency {
    /// Peaks, and nothing lost.
    const IDEAL: Self = Self { compute: 1.0, memory: 1.0, network: 1.0, overhead_us: 0.0, pipeline: 1.0 };
}

impl Default for Efficiency {
    fn default() -> Self {
        Self { compute: 0.7, memory: 0.9, network: 0.8, overhead_us: 70.0, pipeline: 0.73 }
    }
}

impl FromStr for Efficiency {
    type Err = String;

    /// `ideal`, `memory=0.8`, or several with commas, each changing what those before it said.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut efficiency = Self::default();
        for part in text.split(',').map(str::trim) {
            if part == "ideal" {
                efficiency = Self::IDEAL;
                continue;
            }
            let keys = "ideal, or compute, memory, network, pipeline (each above 0, at most 1) or overhead (us) = a number";
            let (key, value) = part.split_once('=').ok_or(format!("`{part}` is not {keys}"))?;
            let value: f64 = value.parse().map_err(|_| format!("`{value}` is not a number"))?;
            let share = value > 0.0 && value <= 1.0;
            let field = match key {
                "compute" if share => &mut efficiency.compute,
                "memory" if share => &mut efficiency.memory,
                "network" if share => &mut efficiency.network,
                "pipeline" if share => &mut efficiency.pipeline,
                "overhead" if value >= 0.0 && value.is_finite() => &mut efficiency.overhead_us,
                _ => return Err(format!("`{part}` is not {keys}")),
            };
            *field = value;
        }
        Ok(efficiency)
    }
}

/// Instances of a deployment: servers for attention and servers for FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Instances {
    pub(crate) attention: usize,
    pub(crate) ffn: usize,
}

impl FromStr for Instances {
    type Err = String;

    /// `2A2F`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a deployment like 2A2F, of 1 to 4096 instances each");
        let upper = text.to_uppercase();
        let (attention, rest) = upper.split_once('A').ok_or_else(wrong)?;
        let ffn = rest.strip_suffix('F').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().ok().filter(|number| (1..=4096).contains(number));
        match (number(attention), number(ffn)) {
            (Some(attention), Some(ffn)) => Ok(Self { attention, ffn }),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Instances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}A{}F", self.attention, self.ffn)
    }
}

/// Microseconds of one micro-batch in one layer, layers of different kinds averaged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Stages {
    pub(crate) attention: f64,
    pub(crate) a2f: f64,
    pub(crate) ffn: f64,
    pub(crate) f2a: f64,
}

impl Stages {
    /// Microseconds in which each of `micro_batches` passes a layer: either one of them has to wait for its own way
    /// round, or the slowest stage serves all.
    pub(crate) fn period(&self, micro_batches: usize) -> f64 {
        let all = [self.attention, self.a2f, self.ffn, self.f2a];
        let slowest = all.into_iter().fold(0.0, f64::max);
        all.iter().sum::<f64>().max(slowest * micro_batches as f64)
    }
}

/// Bytes of an element on its way to the FFN (FP8) and back (BF16).
pub(crate) const A2F_BYTES: f64 = 1.0;
pub(crate) const F2A_BYTES: f64 = 2.0;

/// What stage times are computed from.
#[derive(Clone, Debug)]
pub(crate) struct Model<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) precision: Precision,
    pub(crate) efficiency: Efficiency,
    pub(crate) work: Work,
    /// Bytes of cache that a sequence holds.
    pub(crate) sequence_bytes: f64,
    /// Of all layers.
    attention_weights: AttentionWeights,
    /// Kinds of FFN and how many layers have them.
    ffns: Vec<(Ffn, f64)>,
}

impl<'a> Model<'a> {
    pub(crate) fn new(
        shape: &'a Shape,
        context: usize,
        precision: Precision,
        efficiency: Efficiency,
    ) -> Self {
        let mut ffns: Vec<(Ffn, f64)> = vec![];
        for layer in &shape.layers {
            match ffns.iter_mut().find(|(ffn, _)| *ffn == layer.ffn) {
                Some((_, layers)) => *layers += 1.0,
                None => ffns.push((layer.ffn, 1.0)),
            }
        }
        Self {
            shape,
            precision,
            efficiency,
            work: Work::new(shape, context, precision),
            sequence_bytes: shape.kv_bytes_held(context, precision),
            attention_weights: shape.attention_weights(),
            ffns,
        }
    }

    /// Bytes of attention weights on each of `gpus`.
    pub(crate) fn attention_bytes(&self, gpus: usize) -> f64 {
        self.attention_weights.bytes(gpus)
    }
}

impl Model<'_> {
    /// `batch` sequences on each attention GPU.
    pub(crate) fn stages(&self, on: [&Hardware; 2], instances: Instances, batch: usize) -> Stages {
        let [attention, ffn] = on;
        let tokens = (batch * attention.gpus_per_server * instances.attention) as f64;
        Stages {
            attention: self.attention(attention, attention.gpus_per_server, batch),
            a2f: self.link(on, instances, batch, A2F_BYTES),
            ffn: self.ffn(ffn, instances.ffn, tokens),
            f2a: self.link(on, instances, batch, F2A_BYTES),
        }
    }

    /// A GPU's attention in a layer, the output projection shared by `gpus`.
    pub(crate) fn attention(&self, hardware: &Hardware, gpus: usize, batch: usize) -> f64 {
        let Efficiency { compute, memory, overhead_us, .. } = self.efficiency;
        let work = &self.work;
        let (layers, batch) = (self.shape.layers.len() as f64, batch as f64);
        let core_flops = if self.precision.kv_bytes > 1.0 { hardware.bf16_flops } else { hardware.flops() };
        let bandwidth = hardware.memory_bandwidth * memory;
        let core =
            (batch * work.attention_flops / (core_flops * compute)).max(batch * work.kv_bytes / bandwidth);
        let linear = (batch * work.linear_flops / (hardware.flops() * compute))
            .max(self.attention_bytes(gpus) / bandwidth);
        overhead_us + 1e6 * (core + linear) / layers
    }

    /// `servers` together work on `tokens`.
    fn ffn(&self, hardware: &Hardware, servers: usize, tokens: f64) -> f64 {
        let Efficiency { compute, memory, overhead_us, .. } = self.efficiency;
        let shape = self.shape;
        let gpus = (servers * hardware.gpus_per_server) as f64;
        let flops = tokens * self.work.ffn_flops;
        let weights: f64 =
            self.ffns.iter().map(|(ffn, layers)| layers * ffn.touched(shape.hidden, tokens)).sum();
        let seconds = (flops / (hardware.flops() * compute))
            .max(weights * super::work::WEIGHT_BYTES / (hardware.memory_bandwidth * memory));
        overhead_us + 1e6 * seconds / gpus / shape.layers.len() as f64
    }

    /// Every attention server sends to every FFN server and sums what they answer; a GPU talks through its own link.
    fn link(&self, on: [&Hardware; 2], instances: Instances, batch: usize, bytes: f64) -> f64 {
        let [sent, received] = link_tokens(on, instances, batch);
        let element = self.shape.hidden as f64 * bytes / self.efficiency.network;
        1e6 * (sent * element / on[0].link()).max(received * element / on[1].link())
    }
}

/// Tokens of a micro-batch on the link of an attention GPU, copies for several FFN servers counted, and of an FFN GPU.
pub(crate) fn link_tokens(on: [&Hardware; 2], instances: Instances, batch: usize) -> [f64; 2] {
    let server = (batch * on[0].gpus_per_server * instances.attention) as f64;
    [(batch * instances.ffn) as f64, server / on[1].gpus_per_server as f64]
}

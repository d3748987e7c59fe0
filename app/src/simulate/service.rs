//! How long each stage takes each time.

use rand::rngs::ChaCha8Rng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng, SeedableRng as _};
use rand_distr::{Distribution as _, StandardNormal};
use serde::Serialize;

use super::pipeline::{Time, nanoseconds};
use crate::plan::{Instances, Stages};

/// The four stages of a layer, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Attention,
    A2f,
    Ffn,
    F2a,
}

impl Stage {
    pub(super) const ALL: [Self; 4] = [Self::Attention, Self::A2f, Self::Ffn, Self::F2a];

    /// As traces call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::A2f => "a2f",
            Self::Ffn => "ffn",
            Self::F2a => "f2a",
        }
    }

    fn computes(self) -> bool {
        matches!(self, Self::Attention | Self::Ffn)
    }
}

/// Where a stage's times come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Times {
    /// The same for every GPU and time, before what trouble adds.
    Mean(f64),
    /// One of these each time, of a whole instance.
    Measured(Vec<f64>),
}

impl Times {
    pub(super) fn mean(&self) -> f64 {
        match self {
            Self::Mean(mean) => *mean,
            Self::Measured(all) => all.iter().sum::<f64>() / all.len().max(1) as f64,
        }
    }
}

pub(super) fn predicted(stages: Stages) -> [Times; 4] {
    [stages.attention, stages.a2f, stages.ffn, stages.f2a].map(Times::Mean)
}

/// What makes stages uneven.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Trouble {
    /// Coefficient of variation of a GPU's stage.
    pub(super) jitter: f64,
    /// Share of GPUs that are slow, and how many times longer they take.
    pub(super) stragglers: f64,
    pub(super) slowdown: f64,
    /// Coefficient of variation of an FFN instance's load in a layer.
    pub(super) imbalance: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Service {
    times: [Times; 4],
    gpus: usize,
    /// Of the logarithm.
    sigma: f64,
    slowdown: f64,
    /// Slow GPUs of each instance.
    slow: Vec<usize>,
    /// Load of each FFN instance in each layer; their mean in a layer is 1.
    load: Vec<f64>,
    instances: Instances,
}

impl Service {
    pub(super) fn new(
        times: [Times; 4],
        instances: Instances,
        gpus: usize,
        layers: usize,
        trouble: Trouble,
        seed: u64,
    ) -> Self {
        // Other draws than the pipeline's: which GPUs are slow must not depend on how long it runs.
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed_0f7b_1e55_ed00);
        let number = instances.attention + instances.ffn;
        Self {
            times,
            gpus,
            sigma: sigma(trouble.jitter),
            slowdown: trouble.slowdown,
            slow: slow(number, gpus, trouble.stragglers, &mut rng),
            load: load(instances.ffn, layers, trouble.imbalance, &mut rng),
            instances,
        }
    }

    /// The time that `instance` (attention first) needs.
    pub(super) fn draw(&self, stage: Stage, instance: usize, layer: usize, rng: &mut ChaCha8Rng) -> Time {
        let slow = if stage.computes() { self.slow[instance] } else { 0 };
        let base = match &self.times[stage as usize] {
            Times::Mean(mean) => mean * self.longest(slow, rng),
            Times::Measured(all) => {
                let factor = if slow > 0 { self.slowdown } else { 1.0 };
                factor * all.choose(rng).copied().unwrap_or(0.0)
            }
        };
        let load = match stage {
            Stage::Ffn => self.load[layer * self.instances.ffn + instance - self.instances.attention],
            Stage::Attention | Stage::A2f | Stage::F2a => 1.0,
        };
        nanoseconds(base * load)
    }

    /// The factor of the GPU that is last.
    fn longest(&self, slow: usize, rng: &mut ChaCha8Rng) -> f64 {
        let usual = if slow < self.gpus { self.last_of(self.gpus - slow, rng) } else { 0.0 };
        if slow == 0 { usual } else { usual.max(self.slowdown * self.last_of(slow, rng)) }
    }

    fn last_of(&self, gpus: usize, rng: &mut ChaCha8Rng) -> f64 {
        if self.sigma == 0.0 {
            return 1.0;
        }
        let normal = (0..gpus).map(|_| normal(rng)).fold(f64::NEG_INFINITY, f64::max);
        lognormal(self.sigma, normal)
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

/// Of a lognormal distribution with this coefficient of variation.
fn sigma(variation: f64) -> f64 {
    (variation * variation).ln_1p().sqrt()
}

/// Of mean 1.
fn lognormal(sigma: f64, normal: f64) -> f64 {
    (sigma * normal - sigma * sigma / 2.0).exp()
}

/// Exactly the share of GPUs, at random places.
fn slow(instances: usize, gpus: usize, share: f64, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let all = instances * gpus;
    let mut places: Vec<bool> = (0..all).map(|gpu| (gpu as f64) < (share * all as f64).round()).collect();
    places.shuffle(rng);
    places.chunks(gpus).map(|gpus| gpus.iter().filter(|&&slow| slow).count()).collect()
}

fn load(instances: usize, layers: usize, variation: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let sigma = sigma(variation);
    let mut load = Vec::with_capacity(instances * layers);
    for _ in 0..layers {
        let draws: Vec<f64> = (0..instances).map(|_| lognormal(sigma, normal(rng))).collect();
        let mean = draws.iter().sum::<f64>() / instances as f64;
        load.extend(draws.iter().map(|draw| draw / mean));
    }
    load
}

//! What a simulation counts.

use super::pipeline::Time;

/// What happened while it was measured.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Of each micro-batch's steps, sorted.
    pub(super) tpot: Vec<Time>,
    pub(super) elapsed: Time,
    /// Steps of micro-batches that ended.
    pub(super) ended: usize,
    /// Of each stage.
    pub(super) use_of: [Use; 4],
    pub(super) failures: usize,
    pub(super) events: usize,
}

/// How one stage's stations were used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Use {
    /// Share of the time a station is busy: mean, least and most over the stations.
    pub(super) busy: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    /// Micro-batches served, and their mean and longest times.
    pub(super) served: usize,
    pub(super) mean: f64,
    pub(super) longest: Time,
    /// Served in more than the budget.
    pub(super) late: usize,
}

impl Use {
    /// A micro-batch takes this long.
    pub(super) fn served(&mut self, time: Time, budget: Time) {
        self.served += 1;
        self.mean += (time as f64 - self.mean) / self.served as f64;
        self.longest = self.longest.max(time);
        self.late += usize::from(time > budget);
    }

    /// In the end each station has been busy for this share of the time.
    pub(super) fn stations(&mut self, busy: &[f64]) {
        self.busy = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        self.least = busy.iter().copied().fold(1.0, f64::min);
        self.most = busy.iter().copied().fold(0.0, f64::max);
    }
}

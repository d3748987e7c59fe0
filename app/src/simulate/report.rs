//! What a simulation found, as tables and as plots.

use anyhow::Result;
use serde::Serialize;

use super::Base;
use super::outcome::Outcome;
use super::pipeline::Time;
use super::service::{Stage, Trouble};
use super::sweep::{Key, crossing};
use crate::chart::{self, Titles};
use crate::cli::FfnBatch;
use crate::table::Table;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    source: String,
    seed: u64,
    tpot_goal_ms: f64,
    /// Of a stage in a layer.
    budget_us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep: Option<Swept>,
    runs: Vec<Run>,
    #[serde(skip)]
    about: String,
}

#[derive(Debug, Serialize)]
struct Swept {
    key: &'static str,
    values: Vec<f64>,
    /// Where the mean, the median and the 99th percentile first cross the goal, between two of the values.
    breaks: [(&'static str, Option<f64>); 3],
}

/// One simulation.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    deployment: String,
    gpus: usize,
    layers: usize,
    micro_batches: usize,
    micro_batch: Option<usize>,
    trouble: Trouble,
    mtbf_s: Option<f64>,
    pub(super) tpot_ms: Tpot,
    steps_per_s: f64,
    pub(super) tokens_per_s: Option<f64>,
    tokens_per_gpu_s: Option<f64>,
    pub(super) stages: Vec<StageUse>,
    pub(super) failures: usize,
    events: usize,
    simulated_s: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Tpot {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    most: f64,
    #[serde(skip)]
    all: Vec<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct StageUse {
    stage: &'static str,
    /// Before trouble.
    given_us: f64,
    mean_us: f64,
    longest_us: f64,
    /// Share of micro-batches that took longer than the budget.
    pub(super) over_budget: f64,
    /// Share of the time that a station is busy: mean, least and most over the stations.
    pub(super) busy: f64,
    busy_least: f64,
    busy_most: f64,
}

impl Run {
    pub(super) fn new(base: &Base, outcome: &Outcome) -> Self {
        let seconds = outcome.elapsed as f64 / 1e9;
        let steps_per_s = outcome.ended as f64 / seconds;
        let parts = if base.ffn_batch == FfnBatch::Each { base.instances.attention } else { 1 };
        let tokens_per_s = base.micro_batch.map(|tokens| tokens as f64 / parts as f64 * steps_per_s);
        let stages = Stage::ALL.map(|stage| {
            let found = outcome.use_of[stage as usize];
            StageUse {
                stage: stage.name(),
                given_us: base.times[stage as usize].mean(),
                mean_us: found.mean / 1e3,
                longest_us: found.longest as f64 / 1e3,
                over_budget: found.late as f64 / found.served.max(1) as f64,
                busy: found.busy,
                busy_least: found.least,
                busy_most: found.most,
            }
        });
        Self {
            deployment: base.instances.to_string(),
            gpus: base.gpus(),
            layers: base.layers,
            micro_batches: base.micro_batches,
            micro_batch: base.micro_batch,
            trouble: base.trouble,
            mtbf_s: base.mtbf_s,
            tpot_ms: Tpot::new(&outcome.tpot),
            steps_per_s,
            tokens_per_s,
            tokens_per_gpu_s: tokens_per_s.map(|tokens| tokens / base.gpus() as f64),
            stages: stages.into(),
            failures: outcome.failures,
            events: outcome.events,
            simulated_s: seconds,
        }
    }
}

impl Tpot {
    /// Of sorted times, by nearest rank.
    fn new(sorted: &[Time]) -> Self {
        let all: Vec<f64> = sorted.iter().map(|&time| time as f64 / 1e6).collect();
        let rank = |percent: usize| {
            let rank = (all.len() * percent).div_ceil(100).saturating_sub(1);
            all.get(rank).copied().unwrap_or_default()
        };
        let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
        Self { mean, p50: rank(50), p90: rank(90), p99: rank(99), most: rank(100), all }
    }
}

impl Report {
    pub(super) fn single(base: &Base, run: Run) -> Self {
        Self {
            source: base.source.clone(),
            seed: base.seed,
            tpot_goal_ms: base.tpot_s * 1e3,
            budget_us: base.budget_us(),
            sweep: None,
            runs: vec![run],
            about: String::new(),
        }
    }

    pub(super) fn sweep(base: &Base, key: Key, values: Vec<f64>, runs: Vec<Run>) -> Self {
        let goal = base.tpot_s * 1e3;
        let cross = |of: fn(&Tpot) -> f64| {
            let points: Vec<_> =
                values.iter().zip(&runs).map(|(&value, run)| (value, of(&run.tpot_ms))).collect();
            crossing(&points, goal)
        };
        let breaks = [("mean", cross(|t| t.mean)), ("p50", cross(|t| t.p50)), ("p99", cross(|t| t.p99))];
        Self {
            source: base.source.clone(),
            seed: base.seed,
            tpot_goal_ms: goal,
            budget_us: base.budget_us(),
            sweep: Some(Swept { key: key.name(), values, breaks }),
            runs,
            about: key.about().to_owned(),
        }
    }

    pub(super) fn text(&self) -> String {
        let budget = format!(
            "{}; {:.0} ms a token, {:.0} us for a stage of a layer\n",
            self.source, self.tpot_goal_ms, self.budget_us
        );
        match (&self.sweep, self.runs.as_slice()) {
            (None, [run]) => budget + &run.text(),
            (Some(swept), runs) => budget + &self.swept(swept, runs),
            // There is one run where there is no sweep.
            (None, _) => budget,
        }
    }

    fn swept(&self, swept: &Swept, runs: &[Run]) -> String {
        let headings = [
            swept.key,
            "servers",
            "GPUs",
            "TPOT ms",
            "p50",
            "p99",
            "tok/GPU/s",
            "A busy",
            "A->F",
            "F",
            "F->A",
            "failures",
        ];
        let mut table = Table::new(&*self.about, headings);
        for (value, run) in swept.values.iter().zip(runs) {
            let busy = |stage: Stage| percent(run.stages[stage as usize].busy);
            table.row([
                format!("{value:.3}"),
                run.deployment.clone(),
                run.gpus.to_string(),
                format!("{:.2}", run.tpot_ms.mean),
                format!("{:.2}", run.tpot_ms.p50),
                format!("{:.2}", run.tpot_ms.p99),
                rate(run.tokens_per_gpu_s),
                busy(Stage::Attention),
                busy(Stage::A2f),
                busy(Stage::Ffn),
                busy(Stage::F2a),
                run.failures.to_string(),
            ]);
        }
        let mut text = table.to_string();
        for (which, at) in swept.breaks {
            text += &match at {
                Some(at) => {
                    format!("the {which} crosses {:.0} ms at {} {at:.3}\n", self.tpot_goal_ms, swept.key)
                }
                None => {
                    format!("the {which} does not cross {:.0} ms between these values\n", self.tpot_goal_ms)
                }
            };
        }
        text
    }

    /// TPOT by percentile, or by what was swept.
    pub(super) fn svg(&self) -> Result<String> {
        let level = format!("goal: {:.0} ms", self.tpot_goal_ms);
        let level = (level.as_str(), self.tpot_goal_ms);
        if let (Some(swept), runs) = (&self.sweep, &self.runs) {
            let points = |of: fn(&Tpot) -> f64| {
                swept.values.iter().zip(runs).map(|(&value, run)| (value, of(&run.tpot_ms))).collect()
            };
            let series =
                [("mean", points(|t| t.mean)), ("p50", points(|t| t.p50)), ("p99", points(|t| t.p99))];
            let titles = Titles { plot: &self.source, x: &self.about, y: "ms a token" };
            return chart::lines(titles, &series, level);
        }
        let all = self.runs.iter().flat_map(|run| {
            let count = run.tpot_ms.all.len() as f64;
            run.tpot_ms.all.iter().enumerate().map(move |(n, &ms)| (100.0 * (n + 1) as f64 / count, ms))
        });
        let titles = Titles { plot: &self.source, x: "percentile", y: "ms a token" };
        chart::lines(titles, &[("TPOT", all.collect())], level)
    }
}

impl Run {
    fn text(&self) -> String {
        let tokens = self.micro_batch.map_or_else(String::new, |tokens| format!(" of {tokens} tokens"));
        let mut text = format!(
            "{}, {} GPUs, {} layers, {} micro-batches{tokens}; {:.2} s and {} events simulated\n",
            self.deployment, self.gpus, self.layers, self.micro_batches, self.simulated_s, self.events
        );
        let tpot = &self.tpot_ms;
        text += &format!(
            "TPOT ms      mean {:.2}, p50 {:.2}, p90 {:.2}, p99 {:.2}, most {:.2}\n",
            tpot.mean, tpot.p50, tpot.p90, tpot.p99, tpot.most
        );
        text += &format!(
            "throughput   {:.1} micro-batch steps/s, {} tok/s, {} tok/GPU/s\n",
            self.steps_per_s,
            rate(self.tokens_per_s),
            rate(self.tokens_per_gpu_s)
        );
        if self.mtbf_s.is_some() {
            text += &format!("failures     {}\n", self.failures);
        }
        let headings = ["", "given us", "mean us", "longest us", "over budget", "busy", "least", "most"];
        let mut table = Table::new("Stages", headings);
        for stage in &self.stages {
            table.row([
                stage.stage.to_owned(),
                format!("{:.1}", stage.given_us),
                format!("{:.1}", stage.mean_us),
                format!("{:.1}", stage.longest_us),
                percent(stage.over_budget),
                percent(stage.busy),
                percent(stage.busy_least),
                percent(stage.busy_most),
            ]);
        }
        text + &table.to_string()
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn rate(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))
}

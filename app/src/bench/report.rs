//! What `tread bench --serve` tells.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::client::Sample;
use super::serve::Arrivals;
use crate::memory;

#[derive(Serialize)]
pub(super) struct Report<'a> {
    model: &'a str,
    seed: u64,
    pub(super) levels: Vec<Level>,
}

/// What was measured under one load.
#[derive(Serialize)]
pub(super) struct Level {
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<u32>,
    /// Null in JSON for all at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_s_offered: Option<f64>,
    duration_s: f64,
    completed: usize,
    failed: usize,
    prompt_tokens: u64,
    new_tokens: u64,
    requests_per_s: f64,
    new_tokens_per_s: f64,
    total_tokens_per_s: f64,
    ttft_ms: Percentiles,
    /// Of the tokens after the first.
    tpot_ms: Percentiles,
    e2e_ms: Percentiles,
    /// Of the server, when it is ours: before and after.
    rss_bytes: [Option<u64>; 2],
    /// How often each message came.
    errors: BTreeMap<String, usize>,
}

#[derive(Serialize)]
struct Percentiles {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Level {
    pub(super) fn new(
        arrivals: Arrivals,
        duration: Duration,
        outcomes: &[Result<Sample>],
        rss_bytes: [Option<u64>; 2],
    ) -> Self {
        let samples: Vec<Sample> = outcomes.iter().filter_map(|o| o.as_ref().ok().copied()).collect();
        let mut errors = BTreeMap::new();
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            *errors.entry(format!("{error:#}")).or_insert(0) += 1;
        }
        let duration_s = duration.as_secs_f64();
        let prompt_tokens: u64 = samples.iter().map(|s| s.prompt_tokens).sum();
        let new_tokens: u64 = samples.iter().map(|s| s.new_tokens).sum();
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let per_token = samples.iter().filter(|s| s.new_tokens > 1);
        Self {
            concurrency: if let Arrivals::Concurrency(concurrency) = arrivals {
                Some(concurrency)
            } else {
                None
            },
            requests_per_s_offered: if let Arrivals::Rate(rate) = arrivals { Some(rate) } else { None },
            duration_s,
            completed: samples.len(),
            failed: outcomes.len() - samples.len(),
            prompt_tokens,
            new_tokens,
            requests_per_s: samples.len() as f64 / duration_s,
            new_tokens_per_s: new_tokens as f64 / duration_s,
            total_tokens_per_s: (prompt_tokens + new_tokens) as f64 / duration_s,
            ttft_ms: Percentiles::of(samples.iter().map(|s| ms(s.first)).collect()),
            tpot_ms: Percentiles::of(
                per_token.map(|s| ms(s.whole - s.first) / (s.new_tokens - 1) as f64).collect(),
            ),
            e2e_ms: Percentiles::of(samples.iter().map(|s| ms(s.whole)).collect()),
            rss_bytes,
            errors,
        }
    }
}

impl Percentiles {
    /// By nearest rank; zeros where nothing was measured.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).saturating_sub(1);
            values.get(rank).copied().unwrap_or_default()
        };
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Self { mean, p50: rank(50), p90: rank(90), p99: rank(99) }
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(model: &'a str, seed: u64) -> Self {
        Self { model, seed, levels: vec![] }
    }

    /// Prints a line for the last level, after a heading for the first.
    pub(super) fn print_last(&self) {
        let (Some(first), Some(level)) = (self.levels.first(), self.levels.last()) else { return };
        if self.levels.len() == 1 {
            println!("{}; milliseconds as p50 / p90 / p99", self.model);
            println!(
                "{:>11} {:>6} {:>6} {:>8} {:>10} {:>6} {:>25} {:>22} {:>28}  memory",
                "", "ok", "failed", "req/s", "new tok/s", "ratio", "TTFT", "TPOT", "e2e"
            );
        }
        let load = match (level.concurrency, level.requests_per_s_offered) {
            (Some(concurrency), _) => format!("{concurrency} at once"),
            (None, Some(rate)) => format!("{rate} req/s"),
            (None, None) => String::new(),
        };
        let cells = |p: &Percentiles, digits: usize| {
            format!("{:.digits$} / {:.digits$} / {:.digits$}", p.p50, p.p90, p.p99)
        };
        let [before, after] = level.rss_bytes.map(|bytes| bytes.map(memory::text));
        println!(
            "{load:>11} {:>6} {:>6} {:>8.2} {:>10.1} {:>5.2}x {:>25} {:>22} {:>28}  {}",
            level.completed,
            level.failed,
            level.requests_per_s,
            level.new_tokens_per_s,
            level.new_tokens_per_s / first.new_tokens_per_s,
            cells(&level.ttft_ms, 1),
            cells(&level.tpot_ms, 2),
            cells(&level.e2e_ms, 1),
            before
                .zip(after)
                .map_or_else(|| "-".to_owned(), |(before, after)| format!("{before} to {after}")),
        );
    }

    /// Says what went wrong, and how often.
    pub(super) fn print_errors(&self) {
        for (error, count) in self.levels.iter().flat_map(|level| &level.errors) {
            println!("{count} x {error}");
        }
    }
}

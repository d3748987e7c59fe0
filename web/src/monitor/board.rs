//! All that the monitor shows, from what it hears.

use std::collections::VecDeque;

use tread_core::monitor::{Standing, StepEvent};

use super::history::{History, KEPT_MS};
use super::prometheus::Scrape;
use super::snapshot::Snapshot;
use super::window::Window;

/// Most steps of which bars are drawn.
pub const STEPS: usize = 96;

/// Two quantiles of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// Half of all were no longer.
    pub median: Option<f64>,
    /// 95 of 100 were no longer.
    pub p95: Option<f64>,
    /// Estimated from the histogram of all requests since the server started, as none was seen in the window.
    pub lifetime: bool,
}

/// What is known of an engine.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// Numbers of the last minutes.
    pub history: History,
    /// The last numbers.
    pub snapshot: Option<Snapshot>,
    /// Blocks and more, as of the last step.
    pub standing: Option<Standing>,
    /// The last steps, oldest first.
    pub steps: VecDeque<StepEvent>,
    /// The last step whose ops were measured.
    pub profiled: Option<StepEvent>,
    first_tokens: Window,
    token_gaps: Window,
    lifetime: [Latency; 2],
    /// When numbers were last taken.
    pub now_ms: u64,
}

impl Board {
    /// A step was heard of. `now_ms` is the page's clock, which need not be the server's.
    pub fn step(&mut self, now_ms: u64, step: StepEvent, standing: Standing) {
        for seconds in &step.first_tokens_s {
            self.first_tokens.push(now_ms, *seconds);
        }
        for seconds in &step.token_gaps_s {
            self.token_gaps.push(now_ms, *seconds);
        }
        if !step.ops.is_empty() {
            self.profiled = Some(step.clone());
        }
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(StepEvent {
            ops: Vec::new(),
            first_tokens_s: Vec::new(),
            token_gaps_s: Vec::new(),
            ..step
        });
        self.standing = Some(standing);
    }

    /// Metrics were read.
    pub fn scraped(&mut self, now_ms: u64, scrape: &Scrape) {
        self.lifetime =
            ["vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"].map(|name| {
                let histogram = scrape.histogram(name);
                let quantile = |q| histogram.as_ref().and_then(|histogram| histogram.quantile(q));
                Latency { median: quantile(0.5), p95: quantile(0.95), lifetime: true }
            });
        self.tick(now_ms, Snapshot::from(scrape));
    }

    /// A second has passed with an engine that tells no more than its steps do.
    pub fn watched(&mut self, now_ms: u64) {
        if let Some(standing) = &self.standing {
            let snapshot = Snapshot::from(standing);
            self.tick(now_ms, snapshot);
        }
    }

    fn tick(&mut self, now_ms: u64, snapshot: Snapshot) {
        let second = now_ms.saturating_sub(1_000);
        let [first, further] =
            [&self.first_tokens, &self.token_gaps].map(|window| window.quantile(second, 0.5));
        self.history.push(now_ms, &snapshot, first, further);
        self.snapshot = Some(snapshot);
        self.now_ms = now_ms;
        let old = now_ms.saturating_sub(KEPT_MS);
        self.first_tokens.forget_before(old);
        self.token_gaps.forget_before(old);
    }

    /// Time to first token of the requests since then.
    pub fn first_token(&self, since_ms: u64) -> Latency {
        latency(&self.first_tokens, since_ms, self.lifetime[0])
    }

    /// Time to every further token since then.
    pub fn per_token(&self, since_ms: u64) -> Latency {
        latency(&self.token_gaps, since_ms, self.lifetime[1])
    }
}

fn latency(window: &Window, since_ms: u64, lifetime: Latency) -> Latency {
    let median = window.quantile(since_ms, 0.5);
    if median.is_none() {
        return lifetime;
    }
    Latency { median, p95: window.quantile(since_ms, 0.95), lifetime: false }
}

#[cfg(test)]
mod tests {
    use tread_core::graph::Side;
    use tread_core::monitor::OpTime;

    use super::super::history::Quantity;
    use super::*;

    fn step(number: u64, first: &[f64]) -> StepEvent {
        StepEvent { step: number, first_tokens_s: first.to_vec(), ..StepEvent::default() }
    }

    #[test]
    fn latencies_are_exact_and_fall_back_to_all_time() {
        let mut board = Board::default();
        assert_eq!(board.first_token(0), Latency::default());
        let text = "vllm:time_to_first_token_seconds_bucket{le=\"2\"} 4\n\
            vllm:time_to_first_token_seconds_bucket{le=\"+Inf\"} 4\n";
        board.scraped(1_000, &Scrape::parse(text));
        assert_eq!(board.first_token(0), Latency { median: Some(1.0), p95: Some(1.9), lifetime: true });
        board.step(1_500, step(1, &[0.25, 0.5, 0.75]), Standing::default());
        board.scraped(2_000, &Scrape::parse(text));
        assert_eq!(board.first_token(0), Latency { median: Some(0.5), p95: Some(0.75), lifetime: false });
        assert_eq!(board.history.latest(Quantity::FirstToken), Some(0.5));
        assert!(board.first_token(1_600).lifetime);
    }

    #[test]
    fn few_steps_are_kept_and_the_last_measured_one() {
        let mut board = Board::default();
        let op = OpTime {
            name: "linear".into(),
            layer: None,
            side: Side::Ffn,
            micro_batch: 0,
            start_us: 0.0,
            us: 1.0,
        };
        board.step(0, StepEvent { ops: vec![op], ..step(0, &[]) }, Standing::default());
        for number in 1..=STEPS as u64 {
            board.step(number, step(number, &[]), Standing::default());
        }
        assert_eq!(board.steps.len(), STEPS);
        assert_eq!(board.steps.front().map(|step| step.step), Some(1));
        assert_eq!(board.profiled.map(|step| step.ops.len()), Some(1));
    }

    #[test]
    fn a_worker_s_numbers_become_history() {
        let mut board = Board::default();
        board.watched(500);
        assert!(board.snapshot.is_none());
        for (at, generation_tokens) in [(1_000, 5), (2_000, 15)] {
            board.step(at, step(at, &[]), Standing { generation_tokens, ..Standing::default() });
            board.watched(at);
        }
        assert_eq!(board.history.latest(Quantity::Generation), Some(10.0));
        assert_eq!(board.now_ms, 2_000);
    }
}

//! What is remembered of a request for metrics and the log.

use std::time::{Duration, Instant};

use tread_core::engine::{Delta, Event, Finish, Request, Task};
use tread_core::monitor::TokenTime;

use super::metrics::Metrics;

/// One request from its arrival to its end.
#[derive(Debug)]
pub(super) struct Record {
    span: tracing::Span,
    arrival: Instant,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// Until its first step.
    waited: Duration,
    /// From its arrival.
    first_token: Option<Duration>,
    choices: Vec<Choice>,
}

#[derive(Clone, Debug, Default)]
struct Choice {
    tokens: usize,
    finished: bool,
}

impl Record {
    pub(super) fn new(request: &Request, span: tracing::Span) -> Self {
        let n = match &request.task {
            Task::Generate(generate) => generate.n,
            Task::Embed => 1,
        };
        Self {
            span,
            arrival: Instant::now(),
            prompt_tokens: request.prompt.len(),
            cached_tokens: 0,
            waited: Duration::ZERO,
            first_token: None,
            choices: vec![Choice::default(); n],
        }
    }

    /// Something happened; `time` says how long its token, if there is one, was waited for.
    pub(super) fn observe(&mut self, event: &Event, time: Option<TokenTime>, metrics: &Metrics) {
        match event {
            Event::Prompt { cached, waited, .. } => {
                self.cached_tokens = *cached;
                self.waited = *waited;
                metrics.live.queue_time.record(*waited);
                metrics.live.prompt_tokens.increment(self.prompt_tokens as u64);
                metrics.live.request_prompt_tokens.record(self.prompt_tokens as f64);
            }
            Event::Features(_) => {
                metrics.finished("stop");
                self.choices.clear();
            }
            Event::Delta(delta) => self.delta(delta, time, metrics),
            Event::Done => {
                let all = self.arrival.elapsed();
                metrics.live.e2e_latency.record(all);
                if let Some(first) = self.first_token {
                    metrics.live.decode_time.record(all.saturating_sub(first));
                }
                self.log("finished");
            }
            Event::Failed(error) => {
                self.end("error", metrics);
                tracing::warn!(parent: &self.span, %error, "a request was given up");
            }
        }
    }

    fn delta(&mut self, delta: &Delta, time: Option<TokenTime>, metrics: &Metrics) {
        let Some(choice) = self.choices.get_mut(delta.choice) else { return };
        let live = &metrics.live;
        if delta.token.is_some() {
            live.generation_tokens.increment(1);
            choice.tokens += 1;
        }
        match time {
            Some(TokenTime::First(since)) => {
                self.first_token = Some(since);
                live.time_to_first_token.record(since);
                live.prefill_time.record(since.saturating_sub(self.waited));
            }
            Some(TokenTime::Next(gap)) => {
                live.inter_token_latency.record(gap);
                live.time_per_output_token.record(gap);
            }
            None => {}
        }
        if let Some(finish) = &delta.finish {
            choice.finished = true;
            live.request_generation_tokens.record(choice.tokens as f64);
            metrics.finished(match finish {
                Finish::StopToken(_) | Finish::StopString(_) | Finish::GrammarEnd => "stop",
                Finish::Length | Finish::ContextFull => "length",
            });
        }
    }

    /// The request ended before it was done.
    pub(super) fn aborted(self, metrics: &Metrics) {
        self.end("abort", metrics);
        self.log("aborted");
    }

    fn end(&self, reason: &'static str, metrics: &Metrics) {
        self.choices.iter().filter(|choice| !choice.finished).for_each(|_| metrics.finished(reason));
    }

    fn log(&self, how: &'static str) {
        tracing::info!(
            parent: &self.span,
            prompt_tokens = self.prompt_tokens,
            cached_tokens = self.cached_tokens,
            generation_tokens = self.choices.iter().map(|c| c.tokens).sum::<usize>(),
            waited_s = self.waited.as_secs_f64(),
            first_token_s = self.first_token.map(|first| first.as_secs_f64()),
            total_s = self.arrival.elapsed().as_secs_f64(),
            "{how}"
        );
    }
}

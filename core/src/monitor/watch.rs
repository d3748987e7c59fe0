//! Watching an engine.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use web_time::{Instant, SystemTime, UNIX_EPOCH};

use super::{Standing, StepEvent};
use crate::engine::{Engine, Event, RequestId};

/// Makes [`StepEvent`]s and [`Standing`]s. Whoever owns an engine tells it of every request and event.
#[derive(Debug, Default)]
pub struct Monitor {
    requests: HashMap<RequestId, Progress>,
    steps: u64,
    prompt_tokens: u64,
    generation_tokens: u64,
    /// Of the step whose events are being observed.
    first_tokens_s: Vec<f64>,
    token_gaps_s: Vec<f64>,
}

/// How far a request is.
#[derive(Debug)]
struct Progress {
    arrival: Instant,
    /// When each continuation wrote its last token.
    last: HashMap<usize, Instant>,
}

/// How long a token was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenTime {
    /// The first of its request: since the request arrived.
    First(Duration),
    /// Any further one: since the one before it in the same continuation.
    Next(Duration),
}

impl Monitor {
    /// A request is here. To be called when it arrives, before the engine has it.
    pub fn arrived(&mut self, id: RequestId) {
        self.requests.insert(id, Progress { arrival: Instant::now(), last: HashMap::new() });
    }

    /// A request is given up: the engine says no more of it.
    pub fn forget(&mut self, id: RequestId) {
        self.requests.remove(&id);
    }

    /// Something happened to a request. Returns how long its token was waited for, if there is one; the first token of a
    /// second continuation has no time of its own.
    pub fn observe(&mut self, id: RequestId, event: &Event) -> Option<TokenTime> {
        match event {
            Event::Prompt { tokens, .. } => self.prompt_tokens += *tokens as u64,
            Event::Delta(delta) if delta.token.is_some() => {
                self.generation_tokens += 1;
                let progress = self.requests.get_mut(&id)?;
                let (now, first) = (Instant::now(), progress.last.is_empty());
                return match progress.last.insert(delta.choice, now) {
                    Some(last) => {
                        let gap = now - last;
                        self.token_gaps_s.push(gap.as_secs_f64());
                        Some(TokenTime::Next(gap))
                    }
                    None if first => {
                        let since = now - progress.arrival;
                        self.first_tokens_s.push(since.as_secs_f64());
                        Some(TokenTime::First(since))
                    }
                    None => None,
                };
            }
            Event::Done | Event::Failed(_) => self.forget(id),
            Event::Delta(_) | Event::Features(_) => {}
        }
        None
    }

    /// What the step did whose events were all observed since the step before.
    pub fn step(&mut self, engine: &Engine) -> StepEvent {
        self.steps += 1;
        let report = engine.last_step();
        let us = |time: Duration| time.as_micros() as u64;
        StepEvent {
            engine: 0,
            step: self.steps,
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            schedule_us: us(report.schedule),
            compute_us: us(report.compute),
            sample_us: us(report.sample),
            dispatches: report.dispatches,
            rows: report.rows.clone(),
            first_tokens_s: std::mem::take(&mut self.first_tokens_s),
            token_gaps_s: std::mem::take(&mut self.token_gaps_s),
            ops: report.ops.clone(),
        }
    }

    /// Where the engine stands now.
    pub fn standing(&self, engine: &Engine) -> Standing {
        let (stats, device) = (engine.stats(), engine.executable().stats());
        Standing {
            running: stats.running,
            waiting: stats.waiting,
            blocks: stats.blocks,
            blocks_used: stats.blocks_used,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            preemptions: stats.preemptions,
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.generation_tokens,
            weight_bytes: device.weight_bytes,
            kv_bytes: device.kv_bytes,
            scratch_bytes: device.scratch_bytes,
            pool: stats.pool,
        }
    }
}

//! The sampler chain: logits in, token out.

mod chain;
mod dry;
mod logprobs;
mod params;

use rand::rngs::ChaCha12Rng;
use rand::{RngExt as _, SeedableRng as _};
use web_time::{SystemTime, UNIX_EPOCH};

pub use logprobs::{TokenLogprob, score};
pub use params::{Dry, SamplingParams};

use self::chain::Candidates;
use crate::grammar::TokenMask;
use crate::{Error, Result};

/// The tokens before the one to be chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// All of them.
    pub tokens: &'a [u32],
    /// How many of them, the first ones, are the prompt's.
    pub prompt: usize,
}

/// Which tokens may be chosen. [`Default`] is every token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed<'a> {
    /// Only these.
    pub mask: Option<&'a TokenMask>,
    /// None of these.
    pub banned: &'a [u32],
}

/// Chooses tokens. What changes logits comes first, then the filters, in llama.cpp's order: logit bias, penalties, DRY,
/// top-k, typical-p, top-p, min-p, temperature.
///
/// A choice takes one random number, or none if it is greedy, so the outcome does not depend on what else runs.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha12Rng,
    /// Scratch, reused for every token: the logits as changed so far.
    logits: Vec<f32>,
    /// Scratch: how often each token of the vocabulary occurs; all 0 between uses.
    counts: Vec<u32>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler with its own random numbers.
    ///
    /// # Errors
    /// [`Error::Config`] naming a parameter out of range.
    pub fn new(mut params: SamplingParams) -> Result<Self> {
        params.check()?;
        params.dry.breakers.sort_unstable();
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let rng = ChaCha12Rng::seed_from_u64(params.seed.unwrap_or_else(clock));
        Ok(Self { params, rng, logits: vec![], counts: vec![], candidates: Candidates::default() })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Goes on as if this many tokens had been chosen.
    pub fn skip(&mut self, tokens: usize) {
        if self.params.temperature != 0.0 {
            (0..tokens).for_each(|_| _ = self.rng.random::<f64>());
        }
    }

    /// The next token, given the logits of the last row (`[vocab]`). Equal logits count in order of their ids, so the
    /// outcome depends on nothing else.
    ///
    /// # Errors
    /// [`Error::Device`] when the logits are not numbers, [`Error::Config`] when no token is left to choose.
    pub fn sample(&mut self, logits: &[f32], history: History<'_>, allowed: Allowed<'_>) -> Result<u32> {
        check(logits)?;
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.rule_out(allowed);
        self.add_bias();
        self.penalize(history);
        self.discourage_repetitions(history.tokens);
        let token = if self.params.temperature == 0.0 { self.most_likely() } else { self.draw() };
        token.ok_or_else(|| {
            Error::Config(
                "no token is left to choose: the grammar (response_format, tools), the banned tokens (min_tokens) and \
                 the model's logits rule every token out"
                    .into(),
            )
        })
    }

    fn rule_out(&mut self, allowed: Allowed<'_>) {
        if let Some(mask) = allowed.mask {
            mask.rule_out(&mut self.logits);
        }
        for &id in allowed.banned {
            if let Some(logit) = self.logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn add_bias(&mut self) {
        for &(id, bias) in &self.params.logit_bias {
            change(&mut self.logits, id, |logit| logit + bias);
        }
    }

    fn penalize(&mut self, history: History<'_>) {
        let SamplingParams {
            repetition_penalty, repetition_window, frequency_penalty, presence_penalty, ..
        } = self.params;
        if repetition_penalty != 1.0 {
            let window = history.tokens.len().saturating_sub(repetition_window);
            self.for_each_token(&history.tokens[window..], |logit, _| {
                if logit > 0.0 { logit / repetition_penalty } else { logit * repetition_penalty }
            });
        }
        if frequency_penalty != 0.0 || presence_penalty != 0.0 {
            let generated = history.tokens.get(history.prompt..).unwrap_or_default();
            self.for_each_token(generated, |logit, count| {
                logit - count as f32 * frequency_penalty - presence_penalty
            });
        }
    }

    /// Changes the logit of each token among `tokens`, given how often it occurs there.
    fn for_each_token(&mut self, tokens: &[u32], new: impl Fn(f32, u32) -> f32) {
        self.counts.resize(self.logits.len(), 0);
        for &id in tokens {
            if let Some(count) = self.counts.get_mut(id as usize) {
                *count += 1;
            }
        }
        for &id in tokens {
            let count = self.counts.get_mut(id as usize).map_or(0, std::mem::take);
            if count > 0 {
                change(&mut self.logits, id, |logit| new(logit, count));
            }
        }
    }

    fn discourage_repetitions(&mut self, tokens: &[u32]) {
        let dry = &self.params.dry;
        if dry.multiplier == 0.0 {
            return;
        }
        for (id, length) in dry::repetitions(dry, tokens) {
            let excess = (length - dry.allowed_length) as f32;
            change(&mut self.logits, id, |logit| logit - dry.multiplier * dry.base.powf(excess));
        }
    }

    fn most_likely(&self) -> Option<u32> {
        let max = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = self.logits.iter().position(|&logit| logit == max)?;
        (max > f32::NEG_INFINITY).then_some(first as u32)
    }

    fn draw(&mut self) -> Option<u32> {
        let candidates = &mut self.candidates;
        candidates.start(&self.logits);
        candidates.top_k(self.params.top_k);
        candidates.weigh(1.0);
        candidates.typical_p(self.params.typical_p);
        candidates.top_p(self.params.top_p);
        candidates.min_p(self.params.min_p);
        candidates.weigh(self.params.temperature);
        candidates.draw(self.rng.random())
    }
}

/// Changes one logit. A token that was ruled out stays so, and no other one becomes so, nor infinite.
fn change(logits: &mut [f32], id: u32, new: impl FnOnce(f32) -> f32) {
    match logits.get_mut(id as usize) {
        Some(logit) if *logit > f32::NEG_INFINITY => *logit = new(*logit).clamp(f32::MIN, f32::MAX),
        _ => {}
    }
}

/// Refuses logits from which no choice can be made. Minus infinity is fine: that token is ruled out.
fn check(logits: &[f32]) -> Result<()> {
    // Without an early exit, which would make it several times slower.
    let unusable = logits.iter().fold(false, |found, &l| found | l.is_nan() | (l == f32::INFINITY));
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if unusable && let Some(id) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
        let found = if logits[id].is_nan() { "NaN" } else { "infinity" };
        return Err(Error::Device(format!(
            "the device computed {found} as the logit of token {id}; `tread logits --hidden` shows the layer, and \
             `--backend cpu` may give the right answer"
        )));
    }
    if max == f32::NEG_INFINITY {
        return Err(Error::Device("the device computed no logit above minus infinity".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

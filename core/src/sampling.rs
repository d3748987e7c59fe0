//! The sampler chain: logits in, token out.

use rand::rngs::ChaCha12Rng;
use rand::{RngExt as _, SeedableRng as _};
use web_time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// A token's log probability under the model (before any filter), and the likeliest tokens with theirs.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 for the likeliest token, and so on.
    pub rank: usize,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// How the next token is chosen. [`Default`] is a good setting for chat, the one llama.cpp starts with.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token always (greedy).
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this probable relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens of the recent history less likely; 1 is off.
    pub repetition_penalty: f32,
    /// How many tokens of history the penalty looks back.
    pub repetition_window: usize,
    /// Same seed, same tokens; none takes one from the clock.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: None,
        }
    }
}

impl SamplingParams {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    fn check(&self) -> Result<()> {
        let valid = |name: &str, value: f32, ok: bool, range: &str| {
            if ok && value.is_finite() {
                return Ok(());
            }
            Err(Error::Config(format!("{name} is {value}, but must be {range}")))
        };
        valid("temperature", self.temperature, self.temperature >= 0.0, "0 or more")?;
        valid("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        valid("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1")?;
        valid("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0")
    }
}

/// Chooses tokens. Filters run in llama.cpp's order: penalty, top-k, top-p, min-p, temperature.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha12Rng,
    /// Scratch, reused for every token.
    candidates: Vec<Candidate>,
    recent: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Relative to the most likely token's.
    weight: f32,
}

impl Sampler {
    /// A sampler with its own random numbers.
    ///
    /// # Errors
    /// [`Error::Config`] naming a parameter out of range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.check()?;
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let rng = ChaCha12Rng::seed_from_u64(params.seed.unwrap_or_else(clock));
        Ok(Self { params, rng, candidates: vec![], recent: vec![] })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The next token, given the logits of the last row (`[vocab]`) and the tokens before it. Equal logits count
    /// in order of their ids, so the outcome depends on nothing else.
    ///
    /// # Errors
    /// [`Error::Device`] when the logits are not numbers.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        self.candidates.clear();
        self.candidates.extend((0..).zip(logits).map(|(id, &logit)| Candidate { id, logit, weight: 0.0 }));
        check(logits)?;
        self.penalize(history);
        if self.params.temperature == 0.0 {
            return Ok(self.most_likely());
        }
        self.keep_top_k();
        self.weigh(1.0);
        self.keep_top_p();
        self.keep_min_p();
        self.weigh(self.params.temperature);
        Ok(self.draw())
    }

    /// Divides the logits of recent tokens if positive, multiplies them if negative (Keskar et al., CTRL,
    /// arXiv 1909.05858), once however often a token occurs.
    fn penalize(&mut self, history: &[u32]) {
        let penalty = self.params.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let window = history.len().saturating_sub(self.params.repetition_window);
        self.recent.clear();
        self.recent.extend_from_slice(&history[window..]);
        self.recent.sort_unstable();
        self.recent.dedup();
        for &id in &self.recent {
            if let Some(c) = self.candidates.get_mut(id as usize) {
                c.logit = if c.logit > 0.0 { c.logit / penalty } else { c.logit * penalty };
            }
        }
    }

    fn most_likely(&self) -> u32 {
        let best = self.candidates.iter().reduce(|a, b| if b.logit > a.logit { b } else { a });
        best.map_or(0, |c| c.id)
    }

    /// Keeps the `top_k` largest logits, sorted downwards. Top-p needs the order even where all are kept.
    fn keep_top_k(&mut self) {
        let downwards = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
        let k = self.params.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, downwards);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(downwards);
    }

    /// Sets the weights from the logits, the first candidate's to 1.
    fn weigh(&mut self, temperature: f32) {
        let max = self.candidates.first().map_or(0.0, |c| c.logit);
        for c in &mut self.candidates {
            c.weight = ((c.logit - max) / temperature).exp();
        }
    }

    fn keep_top_p(&mut self) {
        if self.params.top_p >= 1.0 {
            return;
        }
        let total = self.total() * f64::from(self.params.top_p);
        let mut sum = 0.0;
        let reaches = |c: &Candidate| {
            sum += f64::from(c.weight);
            sum >= total
        };
        if let Some(last) = self.candidates.iter().position(reaches) {
            self.candidates.truncate(last + 1);
        }
    }

    fn keep_min_p(&mut self) {
        let below = |c: &Candidate| c.weight < self.params.min_p;
        if let Some(first) = self.candidates.iter().position(below) {
            self.candidates.truncate(first);
        }
    }

    fn draw(&mut self) -> u32 {
        let mut rest = self.rng.random::<f64>() * self.total();
        for c in &self.candidates {
            rest -= f64::from(c.weight);
            if rest < 0.0 {
                return c.id;
            }
        }
        // Rounding may leave a sliver; it belongs to the most likely token.
        self.candidates.first().map_or(0, |c| c.id)
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|c| f64::from(c.weight)).sum()
    }
}

/// Refuses logits from which no choice can be made. Minus infinity is fine: that token is ruled out.
fn check(logits: &[f32]) -> Result<()> {
    if let Some(id) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
        let found = if logits[id].is_nan() { "NaN" } else { "infinity" };
        return Err(Error::Device(format!(
            "the device computed {found} as the logit of token {id}; `tread logits --hidden` shows the layer, and \
             `--backend cpu` may give the right answer"
        )));
    }
    if logits.iter().all(|l| *l == f32::NEG_INFINITY) {
        return Err(Error::Device("the device computed no logit above minus infinity".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Sampler, SamplingParams};

    /// Nothing filtered, plain softmax.
    fn plain() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: Some(1),
            ..Default::default()
        }
    }

    /// The tokens that `count` draws give, with how often.
    fn draws(params: SamplingParams, logits: &[f32], history: &[u32], count: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(params).unwrap();
        let mut found = vec![0; logits.len()];
        for _ in 0..count {
            found[sampler.sample(logits, history).unwrap() as usize] += 1;
        }
        found
    }

    fn support(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
        let found = draws(params, logits, &[], 2000);
        (0..found.len()).filter(|&i| found[i] > 0).collect()
    }

    /// Probabilities 0.5, 0.25, 0.15, 0.1, not in order.
    fn known() -> [f32; 4] {
        [0.15f32, 0.5, 0.1, 0.25].map(f32::ln)
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut greedy = Sampler::new(SamplingParams::greedy()).unwrap();
        assert_eq!(greedy.sample(&[0.0, 3.0, -1.0, 3.0], &[]).unwrap(), 1);
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -5.0], &[]).unwrap(), 1);
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        let logits = known();
        assert_eq!(support(plain(), &logits), [0, 1, 2, 3]);
        assert_eq!(support(SamplingParams { top_k: 2, ..plain() }, &logits), [1, 3]);
        assert_eq!(support(SamplingParams { top_k: 9, ..plain() }, &logits), [0, 1, 2, 3]);
        assert_eq!(support(SamplingParams { top_p: 0.7, ..plain() }, &logits), [1, 3]);
        assert_eq!(support(SamplingParams { top_p: 0.8, ..plain() }, &logits), [0, 1, 3]);
        assert_eq!(support(SamplingParams { top_p: 1e-9, ..plain() }, &logits), [1]);
        assert_eq!(support(SamplingParams { min_p: 0.25, ..plain() }, &logits), [0, 1, 3]);
        assert_eq!(support(SamplingParams { min_p: 1.0, ..plain() }, &logits), [1]);
        // Top-p counts the probabilities that top-k left: 0.5 of 0.75 is enough for 0.66.
        assert_eq!(support(SamplingParams { top_k: 2, top_p: 0.66, ..plain() }, &logits), [1]);
        // Temperature comes last: it does not bring back what was cut, nor cut more.
        assert_eq!(support(SamplingParams { top_p: 0.7, temperature: 50.0, ..plain() }, &logits), [1, 3]);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let count = 100_000;
        for (temperature, expected) in
            [(1.0, [0.15, 0.5, 0.1, 0.25]), (0.5, [0.0652, 0.7246, 0.0290, 0.1812])]
        {
            let found = draws(SamplingParams { temperature, ..plain() }, &known(), &[], count);
            for (found, expected) in found.iter().zip(expected) {
                // Five standard deviations.
                let tolerance = 5.0 * (expected * (1.0 - expected) / count as f64).sqrt();
                assert!(
                    (*found as f64 / count as f64 - expected).abs() < tolerance,
                    "{found} at {temperature}"
                );
            }
        }
    }

    #[test]
    fn the_penalty_counts_a_token_once_and_only_in_its_window() {
        let params =
            SamplingParams { repetition_penalty: 2.0, repetition_window: 3, ..SamplingParams::greedy() };
        let mut sampler = Sampler::new(params).unwrap();
        let logits = [4.0, 3.0, 1.5, -1.0];
        assert_eq!(sampler.sample(&logits, &[]).unwrap(), 0);
        assert_eq!(sampler.sample(&logits, &[0]).unwrap(), 1);
        assert_eq!(sampler.sample(&logits, &[0, 0, 1]).unwrap(), 0, "2, 1.5, 1.5, -1");
        assert_eq!(sampler.sample(&logits, &[0, 2, 2, 2]).unwrap(), 0, "out of the window");
        assert_eq!(sampler.sample(&[-1.0, -1.5], &[0]).unwrap(), 1, "-2, -1.5");
        assert_eq!(sampler.sample(&logits, &[4_000_000]).unwrap(), 0);
    }

    #[test]
    fn unusable_logits_and_parameters_are_refused() {
        let mut sampler = Sampler::new(SamplingParams::default()).unwrap();
        for (logits, says) in [
            (&[0.0, f32::NAN][..], "NaN as the logit of token 1"),
            (&[f32::INFINITY, 1.0], "infinity"),
            (&[f32::NEG_INFINITY], "no logit"),
            (&[], "no logit"),
        ] {
            let error = sampler.sample(logits, &[]).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let d = SamplingParams::default;
        for (params, name) in [
            (SamplingParams { temperature: -0.1, ..d() }, "temperature"),
            (SamplingParams { temperature: f32::NAN, ..d() }, "temperature"),
            (SamplingParams { top_p: 0.0, ..d() }, "top_p"),
            (SamplingParams { min_p: 1.5, ..d() }, "min_p"),
            (SamplingParams { repetition_penalty: 0.0, ..d() }, "repetition_penalty"),
        ] {
            assert!(Sampler::new(params).unwrap_err().to_string().contains(name));
        }
    }

    proptest! {
        #[test]
        fn same_seed_same_tokens(seed: u64, logits in prop::collection::vec(-9.0f32..9.0, 1..200), top_k in 0usize..50) {
            let params = SamplingParams { seed: Some(seed), top_k, ..Default::default() };
            prop_assert_eq!(draws(params.clone(), &logits, &[], 20), draws(params, &logits, &[], 20));
        }

        /// Logits as extreme as f32 allows: always a token, and never one that is ruled out.
        #[test]
        fn a_token_is_always_found(
            logits in prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), any::<f32>().prop_filter("", |x| x.is_finite())], 1..50),
            temperature in 1e-6f32..100.0,
            top_k in 0usize..9,
        ) {
            prop_assume!(logits.iter().any(|x| x.is_finite()));
            let params = SamplingParams { temperature, top_k, seed: Some(0), ..Default::default() };
            let id = Sampler::new(params).unwrap().sample(&logits, &[]).unwrap();
            prop_assert!(logits[id as usize].is_finite());
        }
    }
}

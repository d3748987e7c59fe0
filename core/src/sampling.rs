//! The sampler chain: logits in, token out.

use rand::rngs::ChaCha12Rng;
use rand::{RngExt as _, SeedableRng as _};
use web_time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

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

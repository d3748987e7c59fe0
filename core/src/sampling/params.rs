//! How the next token is chosen: the parameters and their ranges.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the next token is chosen. [`Default`] is a good setting for chat, the one llama.cpp starts with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token always (greedy).
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the tokens whose information is closest to what is expected until they together reach this probability
    /// (Meister et al., Locally Typical Sampling, arXiv 2202.00666); 1 keeps all.
    pub typical_p: f32,
    /// Keep the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this probable relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens of the recent history less likely; 1 is off. Divides the logit if positive, multiplies it if
    /// negative, once however often the token occurs (Keskar et al., CTRL, arXiv 1909.05858).
    pub repetition_penalty: f32,
    /// How many tokens of history, the prompt's included, the repetition penalty looks back.
    pub repetition_window: usize,
    /// Subtracted from a token's logit for each time it was generated (OpenAI API); 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit if it was generated at all (OpenAI API); 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens (OpenAI API): -100 bans a token, 100 forces it, for all practical purposes.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes tokens less likely that would prolong a repetition.
    pub dry: Dry,
    /// Same seed, same tokens; none takes one from the clock.
    pub seed: Option<u64>,
}

/// "Don't repeat yourself": a token that would prolong a repetition of `n` tokens, `n` at least `allowed_length`, has
/// `multiplier * base ^ (n - allowed_length)` subtracted from its logit (as in text-generation-webui, pull request
/// 5677, and llama.cpp).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dry {
    /// Strength; 0 is off.
    pub multiplier: f32,
    /// How fast the penalty grows with the repetition's length.
    pub base: f32,
    /// Repetitions shorter than this are free.
    pub allowed_length: usize,
    /// How many tokens of history, the prompt's included, are searched.
    pub window: usize,
    /// Tokens at which a repetition ends and which are never penalised, such as those with a line break
    /// ([`crate::text::Tokenizer::tokens_containing`]).
    pub breakers: Vec<u32>,
}

impl Default for Dry {
    fn default() -> Self {
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, window: usize::MAX, breakers: vec![] }
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            typical_p: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            repetition_window: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: vec![],
            dry: Dry::default(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// # Errors
    /// [`Error::Config`] naming the parameter that is out of its range, and the range.
    pub fn check(&self) -> Result<()> {
        let valid = |name: &str, value: f32, ok: bool, range: &str| {
            if ok && value.is_finite() {
                return Ok(());
            }
            Err(Error::Config(format!("{name} is {value}, but must be {range}")))
        };
        let share = |name: &str, p: f32| valid(name, p, p > 0.0 && p <= 1.0, "above 0 and at most 1");
        let penalty = |name: &str, p: f32| valid(name, p, (-2.0..=2.0).contains(&p), "from -2 to 2");
        valid("temperature", self.temperature, self.temperature >= 0.0, "0 or more")?;
        share("typical_p", self.typical_p)?;
        share("top_p", self.top_p)?;
        valid("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1")?;
        valid("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0")?;
        penalty("frequency_penalty", self.frequency_penalty)?;
        penalty("presence_penalty", self.presence_penalty)?;
        for &(token, bias) in &self.logit_bias {
            let name = format!("logit_bias of token {token}");
            valid(&name, bias, (-100.0..=100.0).contains(&bias), "from -100 to 100")?;
        }
        valid("dry.multiplier", self.dry.multiplier, self.dry.multiplier >= 0.0, "0 or more")?;
        valid("dry.base", self.dry.base, self.dry.base >= 1.0, "1 or more")
    }
}

//! One sequence on one executable: chunked prefill, decode, and reuse of the common prefix.

use std::ops::ControlFlow;
use std::time::Duration;

use web_time::Instant;

use crate::backend::{BLOCK_SIZE, Batch, Executable, Rows};
use crate::sampling::{Allowed, History, Sampler};
use crate::{Error, Result};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model wrote a stop token.
    Stop,
    /// `max_tokens` were written.
    Length,
    /// `on_token` asked for it.
    Aborted,
    /// The sequence fills the context.
    ContextFull,
}

/// What a generation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, how many were in the cache already.
    pub reused_tokens: usize,
    /// The tokens written, without the stop token.
    pub tokens: Vec<u32>,
    /// The stop token, if one ended it.
    pub stop_token: Option<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// From the call to the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the end.
    pub decode_time: Duration,
}

/// One sequence that owns the whole cache of an executable.
///
/// Dropping a future of this type between two steps or during one is safe: the cache counts as filled only up to
/// the last step that was seen to succeed.
#[derive(Debug)]
pub struct Session {
    executable: Box<dyn Executable>,
    vocab_size: usize,
    context_length: usize,
    /// The tokens whose keys and values are in the cache.
    cached: Vec<u32>,
    /// Reused by every step.
    batch: Batch,
}

impl Session {
    /// A session of at most `context_length` tokens, or as many as the executable's cache holds.
    pub fn new(executable: Box<dyn Executable>, vocab_size: usize, context_length: usize) -> Self {
        let options = executable.options();
        let blocks = options.kv_blocks.min(options.max_table);
        let context_length = context_length.min(blocks * BLOCK_SIZE);
        let batch = Batch { sequences: vec![Rows::default()], hidden: false };
        Self { executable, vocab_size, context_length, cached: vec![], batch }
    }

    /// Most tokens of prompt and answer together.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// The tokens whose keys and values are in the cache.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// The executable, for its statistics.
    pub fn executable(&self) -> &dyn Executable {
        &*self.executable
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.cached.clear();
    }

    /// Continues `prompt` until a stop token, `max_tokens`, the end of the context, or until `on_token` breaks.
    /// `on_token` sees every token of [`Generation::tokens`] as it is chosen. The part of the prompt that the
    /// cache holds from earlier calls is not computed again.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the prompt is longer than the context, [`Error::Text`] when it is empty, and what
    /// the executable and the sampler report.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        stop_ids: &[u32],
        max_tokens: usize,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let start = Instant::now();
        self.check(prompt)?;
        let common = prompt.iter().zip(&self.cached).take_while(|(a, b)| a == b).count();
        // The last token is computed in any case: its logits are wanted.
        let reused = common.min(prompt.len() - 1);
        self.cached.truncate(reused);

        let mut sequence = prompt.to_vec();
        let mut first_token = None;
        let mut stop_token = None;
        let finish = loop {
            if sequence.len() - prompt.len() >= max_tokens {
                break Finish::Length;
            }
            if sequence.len() > self.context_length {
                break Finish::ContextFull;
            }
            let logits = self.extend(&sequence).await?;
            let token = match sampler.sample(
                logits,
                History { tokens: &sequence, prompt: prompt.len() },
                Allowed::default(),
            ) {
                Ok(token) => token,
                Err(error) => {
                    // Whatever made the logits unusable may be in the cache as well.
                    self.cached.clear();
                    return Err(error);
                }
            };
            first_token.get_or_insert_with(Instant::now);
            if stop_ids.contains(&token) {
                stop_token = Some(token);
                break Finish::Stop;
            }
            sequence.push(token);
            if on_token(token).is_break() {
                break Finish::Aborted;
            }
        };
        let first_token = first_token.unwrap_or_else(Instant::now);
        Ok(Generation {
            prompt_tokens: prompt.len(),
            reused_tokens: reused,
            tokens: sequence.split_off(prompt.len()),
            stop_token,
            finish,
            time_to_first_token: first_token - start,
            decode_time: first_token.elapsed(),
        })
    }

    /// The logits (`[tokens, vocab]`) and, if asked for, the hidden states (each `[tokens, hidden]`) of every
    /// position of `tokens`, computed from an empty cache.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub async fn logits(&mut self, tokens: &[u32], hidden: bool) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
        self.check(tokens)?;
        self.cached.clear();
        let options = self.executable.options();
        let chunk = options.max_rows.min(options.max_outputs).max(1);
        let (mut logits, mut states) = (vec![], vec![]);
        for tokens in tokens.chunks(chunk) {
            let output = self.step(tokens, 0, hidden).await?;
            logits.extend_from_slice(output.logits);
            states.resize(output.hidden.len(), vec![]);
            for (all, rows) in states.iter_mut().zip(output.hidden) {
                all.extend_from_slice(rows);
            }
        }
        Ok((logits, states))
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Text("the prompt has no tokens; give it at least one".into()));
        }
        if tokens.len() > self.context_length {
            return Err(Error::Capacity(format!(
                "the prompt has {} tokens, but the context holds {}; shorten it, or start with a longer context",
                tokens.len(),
                self.context_length
            )));
        }
        match tokens.iter().find(|&&t| t as usize >= self.vocab_size) {
            Some(token) => {
                Err(Error::Text(format!("token {token} is outside the vocabulary of {}", self.vocab_size)))
            }
            None => Ok(()),
        }
    }

    /// Computes what the cache lacks of `sequence` and returns the logits of its last row.
    async fn extend(&mut self, sequence: &[u32]) -> Result<&[f32]> {
        let chunk = self.executable.options().max_rows.max(1);
        while sequence.len() - self.cached.len() > chunk {
            let tokens = &sequence[self.cached.len()..][..chunk];
            self.step(tokens, tokens.len(), false).await?;
        }
        let tokens = &sequence[self.cached.len()..];
        let output = self.step(tokens, tokens.len() - 1, false).await?;
        Ok(output.logits)
    }

    /// Appends `tokens` to the cache; logits are wanted from row `outputs_from` on.
    async fn step(
        &mut self,
        tokens: &[u32],
        outputs_from: usize,
        hidden: bool,
    ) -> Result<crate::backend::Output<'_>> {
        let Self { executable, cached, batch, .. } = self;
        let end = cached.len() + tokens.len();
        batch.hidden = hidden;
        let rows = &mut batch.sequences[0];
        rows.start = cached.len();
        rows.tokens.clear();
        rows.tokens.extend_from_slice(tokens);
        rows.block_table.clear();
        rows.block_table.extend(0..end.div_ceil(BLOCK_SIZE) as u32);
        rows.outputs.clear();
        rows.outputs.extend(outputs_from..tokens.len());
        let output = executable.step(batch)?.await?;
        cached.extend_from_slice(tokens);
        Ok(output)
    }
}

#[cfg(test)]
mod tests;

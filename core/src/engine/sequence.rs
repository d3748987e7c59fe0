//! One sequence: its tokens, how far they are computed, and how it is continued.

use std::sync::Arc;
use std::time::Duration;

use web_time::Instant;

use super::request::{Begun, Delta, Finish, Generate, PromptLogprobs, RequestId};
use crate::cache::BlockTable;
use crate::grammar::{Grammar, TokenMask};
use crate::model::Model;
use crate::sampling::{Allowed, History, Sampler, SamplingParams, TokenLogprob, score};
use crate::text::{Detokenizer, stop::StopStrings};
use crate::{Error, Result};

/// What becomes of a sequence after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Live,
    Ended,
    /// What it computed may be wrong.
    Broken,
}

/// A prompt with what was added to it.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: RequestId,
    /// Prompt and continuation.
    pub(super) tokens: Vec<u32>,
    /// How many of `tokens` are the prompt's.
    pub(super) prompt: usize,
    pub(super) table: BlockTable,
    /// Leading tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    pub(super) arrival: Instant,
    /// Prompt tokens that the prefix cache held when the sequence first ran, and how long it had waited until then.
    pub(super) admitted: Option<(usize, Duration)>,
    /// None: only the hidden state of the last token is wanted.
    pub(super) continuation: Option<Continuation>,
    pub(super) state: State,
}

impl Sequence {
    /// A sequence that has not been computed yet.
    pub(super) fn new(request: RequestId, tokens: Vec<u32>, continuation: Option<Continuation>) -> Self {
        let prompt = tokens.len();
        Self {
            request,
            tokens,
            prompt,
            table: BlockTable::default(),
            computed: 0,
            arrival: Instant::now(),
            admitted: None,
            continuation,
            state: State::Live,
        }
    }

    /// A sequence that was begun elsewhere and has `told` tokens already.
    pub(super) fn resume(
        request: RequestId,
        prompt: Vec<u32>,
        told: &[u32],
        continuation: Continuation,
    ) -> Self {
        let mut sequence = Self::new(request, prompt, Some(continuation));
        sequence.tokens.extend_from_slice(told);
        sequence
    }

    /// A sequence with the same tokens in the blocks of `table`, continued another way.
    pub(super) fn fork(&self, table: BlockTable, continuation: Continuation) -> Self {
        Self {
            request: self.request,
            tokens: self.tokens.clone(),
            prompt: self.prompt,
            table,
            computed: self.computed,
            arrival: self.arrival,
            admitted: self.admitted,
            continuation: Some(continuation),
            state: State::Live,
        }
    }

    /// Gives up what is computed, and the blocks it is in.
    pub(super) fn give_back(&mut self) -> BlockTable {
        self.computed = 0;
        std::mem::take(&mut self.table)
    }

    /// Tokens still to be computed.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The leading tokens that need not be computed if the cache holds them: not the last one, whose logits are
    /// wanted, and none that predict a token still to be scored.
    pub(super) fn reusable(&self) -> &[u32] {
        let scored = self.next_score().map_or(usize::MAX, |position| position - 1);
        &self.tokens[..scored.min(self.tokens.len() - 1)]
    }

    /// The positions of the next `rows` tokens whose logits are wanted, relative to the first of them.
    pub(super) fn outputs(&self, rows: usize) -> Vec<usize> {
        let scores = |position: usize| {
            self.next_score().is_some_and(|next| (next..self.prompt).contains(&(position + 1)))
        };
        let last = |position: usize| position + 1 == self.tokens.len();
        (0..rows).filter(|row| last(self.computed + row) || scores(self.computed + row)).collect()
    }

    /// The sequences that it is or will become when its prompt is computed.
    pub(super) fn branches(&self) -> usize {
        self.continuation.as_ref().map_or(1, |c| if c.started { 1 } else { c.generate.n })
    }

    /// The prompt token that is scored next, if any is left. Never the first, which nothing precedes. None once the
    /// scores are told: a sequence that is computed again does not need them.
    fn next_score(&self) -> Option<usize> {
        let continuation = self.continuation.as_ref().filter(|continuation| !continuation.started)?;
        let PromptLogprobs { from, .. } = continuation.generate.prompt_logprobs?;
        let next = from.max(1) + continuation.scores.len();
        (next < self.prompt).then_some(next)
    }

    /// Scores the prompt token after `position` if that is wanted. `logits` are those of `position`.
    pub(super) fn score(&mut self, position: usize, logits: &[f32]) -> Result<()> {
        if self.next_score() != Some(position + 1) {
            return Ok(());
        }
        let token = self.tokens[position + 1];
        if let Some(continuation) = &mut self.continuation {
            let top = continuation.generate.prompt_logprobs.map_or(0, |p| p.top);
            continuation.scores.push(finite(score(logits, token, top))?);
        }
        Ok(())
    }
}

/// How a sequence is continued, and how far its text is.
#[derive(Debug)]
pub(super) struct Continuation {
    pub(super) generate: Arc<Generate>,
    pub(super) choice: usize,
    /// The prompt is computed and its event sent; a sequence that is computed again does not start again.
    pub(super) started: bool,
    /// Scores of prompt tokens so far.
    pub(super) scores: Vec<TokenLogprob>,
    /// That of choice 0.
    seed: u64,
    sampler: Sampler,
    grammar: Option<Grammar>,
    /// What the grammar allows next, computed while the device works.
    mask: Option<TokenMask>,
    detokenizer: Detokenizer,
    stops: StopStrings,
}

impl Continuation {
    /// Choice `choice` of a request. `seed` is that of choice 0.
    ///
    /// # Errors
    /// [`Error::Config`] naming a parameter out of range.
    pub(super) fn new(generate: &Arc<Generate>, choice: usize, seed: u64) -> Result<Self> {
        let own_seed = Some(seed.wrapping_add(choice as u64));
        let sampling = SamplingParams { seed: own_seed, ..generate.sampling.clone() };
        Ok(Self {
            generate: Arc::clone(generate),
            choice,
            started: false,
            scores: vec![],
            seed,
            sampler: Sampler::new(sampling)?,
            grammar: generate.grammar.clone(),
            mask: None,
            detokenizer: Detokenizer::new(generate.skip_special),
            stops: StopStrings::new(generate.stop.clone(), generate.include_stop),
        })
    }

    /// A choice that was begun elsewhere, as it was after its last token.
    ///
    /// # Errors
    /// As [`Continuation::new`] and [`Continuation::advance`].
    pub(super) fn resume(generate: &Arc<Generate>, begun: &Begun, seed: u64, model: &Model) -> Result<Self> {
        let mut continuation = Self { started: true, ..Self::new(generate, begun.choice, seed)? };
        continuation.sampler.skip(begun.tokens.len());
        for &token in &begun.tokens {
            if let Some(grammar) = &mut continuation.grammar {
                grammar.accept(token)?;
            }
            if let Some(tokenizer) = &model.tokenizer {
                let piece = continuation.detokenizer.push(tokenizer, token)?;
                // What is certain was told.
                continuation.stops.push(&piece);
            }
        }
        Ok(continuation)
    }

    /// Another choice of the same request, at the end of the prompt.
    pub(super) fn sibling(&self, choice: usize) -> Result<Self> {
        Ok(Self { started: true, ..Self::new(&self.generate, choice, self.seed)? })
    }

    /// Scores of the prompt's tokens from the first wanted one on; the very first token of all has none.
    pub(super) fn prompt_scores(&mut self) -> Vec<Option<TokenLogprob>> {
        let scores = std::mem::take(&mut self.scores).into_iter().map(Some);
        let first = self.generate.prompt_logprobs.filter(|p| p.from == 0).map(|_| None);
        first.into_iter().chain(scores).collect()
    }

    /// Computes what the grammar allows next.
    ///
    /// # Errors
    /// As [`Grammar::mask`].
    pub(super) fn prepare(&mut self) -> Result<()> {
        if let (Some(grammar), None) = (&mut self.grammar, &self.mask) {
            self.mask = Some(grammar.mask()?);
        }
        Ok(())
    }

    /// Chooses the token after `tokens` and adds it to them.
    ///
    /// # Errors
    /// [`Error::Device`] when the logits are not numbers, [`Error::Config`] when the grammar cannot go on,
    /// [`Error::Text`] when the token has no text.
    pub(super) fn advance(
        &mut self,
        model: &Model,
        context_length: usize,
        tokens: &mut Vec<u32>,
        prompt: usize,
        logits: &[f32],
    ) -> Result<Delta> {
        let generate = Arc::clone(&self.generate);
        let eos: &[u32] = if generate.ignore_eos { &[] } else { &model.stop_ids };
        let banned: Vec<u32> = if tokens.len() - prompt < generate.min_tokens {
            eos.iter().chain(&generate.stop_ids).copied().collect()
        } else {
            vec![]
        };
        self.prepare()?;
        let mask = self.mask.take();
        let allowed = Allowed { mask: mask.as_ref(), banned: &banned };
        let token = self.sampler.sample(logits, History { tokens, prompt }, allowed)?;
        let logprob = generate.logprobs.map(|top| finite(score(logits, token, top))).transpose()?;
        tokens.push(token);

        let mut delta = Delta { choice: self.choice, token: Some(token), logprob, ..Delta::default() };
        if eos.contains(&token) || generate.stop_ids.contains(&token) {
            delta.finish = Some(Finish::StopToken(token));
        } else {
            if let Some(grammar) = &mut self.grammar {
                grammar.accept(token)?;
            }
            if let Some(tokenizer) = &model.tokenizer {
                let piece = self.detokenizer.push(tokenizer, token)?;
                self.add_text(&piece, &mut delta);
            }
            if delta.finish.is_none() {
                delta.finish = self.limit(tokens.len(), prompt, context_length);
            }
        }
        if delta.finish.is_some() {
            self.end_text(model, &mut delta)?;
        }
        Ok(delta)
    }

    /// Why the continuation must end at `length` tokens, if it must.
    fn limit(&self, length: usize, prompt: usize, context_length: usize) -> Option<Finish> {
        if self.grammar.as_ref().is_some_and(Grammar::is_complete) {
            Some(Finish::GrammarEnd)
        } else if length - prompt >= self.generate.max_tokens {
            Some(Finish::Length)
        } else if length >= context_length {
            Some(Finish::ContextFull)
        } else {
            None
        }
    }

    /// Adds text to the delta up to a stop string.
    fn add_text(&mut self, piece: &str, delta: &mut Delta) {
        let stopped = self.stops.push(piece);
        delta.text.push_str(&stopped.text);
        if let Some(stop) = stopped.stop {
            delta.finish = Some(Finish::StopString(stop));
        }
    }

    /// Adds the text that was held back.
    fn end_text(&mut self, model: &Model, delta: &mut Delta) -> Result<()> {
        if matches!(delta.finish, Some(Finish::StopString(_))) {
            return Ok(());
        }
        if let Some(tokenizer) = &model.tokenizer {
            let rest = self.detokenizer.finish(tokenizer)?;
            self.add_text(&rest, delta);
        }
        if !matches!(delta.finish, Some(Finish::StopString(_))) {
            delta.text.push_str(&self.stops.finish());
        }
        Ok(())
    }
}

/// Refuses a score that is no number: it could not be told.
fn finite(score: TokenLogprob) -> Result<TokenLogprob> {
    if score.logprob.is_nan() {
        return Err(Error::Device(format!(
            "the device computed no usable logits where token {} was to be scored",
            score.token
        )));
    }
    Ok(score)
}

//! Turns what a step computed into tokens and events.

use std::collections::HashMap;

use super::request::{Delta, Event, Finish, RequestId};
use super::scheduler::{Plan, Scheduler};
use super::sequence::{Sequence, State};
use crate::backend::Output;
use crate::model::Model;
use crate::{Error, Result};

pub(super) struct Digest<'a> {
    pub(super) model: &'a Model,
    pub(super) context_length: usize,
    pub(super) scheduler: &'a mut Scheduler,
    pub(super) unfinished: &'a mut HashMap<RequestId, usize>,
    pub(super) events: Vec<(RequestId, Event)>,
}

impl Digest<'_> {
    /// Goes through the sequences of the step, then takes out those that ended.
    pub(super) fn step(&mut self, plan: &Plan, output: Output<'_>) {
        let vocab_size = self.model.config.vocab_size();
        let outputs: usize = plan.chunks.iter().map(|c| c.outputs.len()).sum();
        let width = output.features.len() / outputs.max(1);
        let (mut logits, mut features) = (output.logits, output.features);
        let mut forks = vec![];
        for chunk in &plan.chunks {
            let (own, others) = logits.split_at(chunk.outputs.len() * vocab_size);
            let (own_features, other_features) = features.split_at(chunk.outputs.len() * width);
            (logits, features) = (others, other_features);
            let sequence = &mut self.scheduler.running[chunk.index];
            let positions = chunk.outputs.iter().map(|row| sequence.computed + row);
            let rows: Vec<_> = positions.zip(own.chunks_exact(vocab_size)).collect();
            sequence.computed += chunk.rows;
            self.scheduler.blocks.enter(&mut sequence.table, &sequence.tokens[..sequence.computed]);
            // Another choice of its request failed in this step.
            if !self.unfinished.contains_key(&sequence.request) {
                continue;
            }
            match self.sequence(chunk.index, &rows, own_features) {
                Ok(new) => forks.push((chunk.index, new)),
                Err(error) => {
                    let sequence = &mut self.scheduler.running[chunk.index];
                    sequence.state = State::Broken;
                    if self.unfinished.remove(&sequence.request).is_some() {
                        self.events.push((sequence.request, Event::Failed(error)));
                    }
                }
            }
        }
        // Backwards, so that the places of those before stay what they are.
        for (index, new) in forks.into_iter().rev() {
            self.scheduler.running.splice(index + 1..index + 1, new);
        }
        let unfinished = &*self.unfinished;
        self.scheduler.sweep(|request| !unfinished.contains_key(&request));
    }

    /// What the logits at some positions (and, for an embedding, the features) make of a sequence; returns its forks.
    fn sequence(
        &mut self,
        index: usize,
        rows: &[(usize, &[f32])],
        features: &[f32],
    ) -> Result<Vec<Sequence>> {
        let sequence = &mut self.scheduler.running[index];
        for (position, logits) in rows {
            sequence.score(*position, logits)?;
        }
        let Some((_, logits)) = rows.last().filter(|_| sequence.pending() == 0) else { return Ok(vec![]) };
        let (id, tokens) = (sequence.request, sequence.prompt);
        let (cached, waited) = sequence.admitted.unwrap_or_default();
        let Some(continuation) = &mut sequence.continuation else {
            if features.iter().any(|value| !value.is_finite()) {
                return Err(Error::Device(
                    "the device computed a hidden state that is not of numbers".into(),
                ));
            }
            sequence.state = State::Ended;
            self.events.push((id, Event::Prompt { tokens, cached, waited, logprobs: vec![] }));
            self.events.push((id, Event::Features(features.to_vec())));
            self.finished(id);
            return Ok(vec![]);
        };
        let mut forks = vec![];
        if !continuation.started {
            continuation.started = true;
            let logprobs = continuation.prompt_scores();
            self.events.push((id, Event::Prompt { tokens, cached, waited, logprobs }));
            for choice in 1..continuation.generate.n {
                forks.push(continuation.sibling(choice)?);
            }
        }
        let blocks = &mut self.scheduler.blocks;
        let fork = |continuation| sequence.fork(blocks.fork(&sequence.table), continuation);
        let forks = forks.into_iter().map(fork).collect();
        self.advance_all(index, forks, logits)
    }

    /// Chooses the next token of a sequence and of those that have just been forked from it.
    fn advance_all(
        &mut self,
        index: usize,
        mut forks: Vec<Sequence>,
        logits: &[f32],
    ) -> Result<Vec<Sequence>> {
        let mut events = vec![];
        let sequence = &mut self.scheduler.running[index];
        let mut failed = None;
        for branch in [sequence].into_iter().chain(&mut forks) {
            match advance(branch, self.model, self.context_length, logits) {
                Ok(delta) => events.push((branch.request, delta)),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            forks.into_iter().for_each(|fork| self.scheduler.blocks.discard(fork.table));
            return Err(error);
        }
        for (id, delta) in events {
            let finished = delta.finish.is_some();
            self.events.push((id, Event::Delta(delta)));
            if finished {
                self.finished(id);
            }
        }
        Ok(forks)
    }

    /// Counts a finished sequence of a request; after the last the request is done.
    fn finished(&mut self, id: RequestId) {
        let Some(left) = self.unfinished.get_mut(&id) else { return };
        *left -= 1;
        if *left == 0 {
            self.unfinished.remove(&id);
            self.events.push((id, Event::Done));
        }
    }
}

/// The next token of a sequence, or its end where none is wanted.
fn advance(sequence: &mut Sequence, model: &Model, context_length: usize, logits: &[f32]) -> Result<Delta> {
    let Some(continuation) = &mut sequence.continuation else { return Ok(Delta::default()) };
    let delta = if continuation.generate.max_tokens == 0 {
        Delta { choice: continuation.choice, finish: Some(Finish::Length), ..Delta::default() }
    } else {
        continuation.advance(model, context_length, &mut sequence.tokens, sequence.prompt, logits)?
    };
    if delta.finish.is_some() {
        sequence.state = State::Ended;
    }
    Ok(delta)
}

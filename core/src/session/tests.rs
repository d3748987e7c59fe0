//! The session against a model that remembers its tokens only through the block table: whatever is wrong with
//! the cache's bookkeeping changes what it says.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;

use super::{Finish, Generation, Session};
use crate::backend::{BLOCK_SIZE, Batch, CompileOptions, Executable, KvDType, LocalFuture, Output, Stats};
use crate::sampling::{Sampler, SamplingParams};
use crate::{Error, Result};

const VOCAB: usize = 97;

/// The logits after `tokens`: one token, chosen by all of them and their order, stands out.
fn logits(tokens: &[u32]) -> Vec<f32> {
    let hash = tokens.iter().fold(7u64, |h, &t| (h * 31 + u64::from(t) + 1) % 1_000_003);
    (0..VOCAB as u64).map(|id| if id == hash % VOCAB as u64 { 5.0 } else { (id % 5) as f32 }).collect()
}

fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let logits = logits(&tokens);
        tokens.push((0..VOCAB as u32).find(|&id| logits[id as usize] == 5.0).unwrap());
    }
    tokens.split_off(prompt.len())
}

/// Shared with a test, to look and to disturb.
#[derive(Debug, Default)]
struct Control {
    /// Rows of all steps so far.
    rows: Cell<usize>,
    /// Steps until one fails after scribbling on its slots.
    fail_in: Cell<Option<usize>>,
    /// The logits are NaN.
    nan: Cell<bool>,
}

#[derive(Debug)]
struct Fake {
    options: CompileOptions,
    slots: Vec<u32>,
    logits: Vec<f32>,
    hidden: Vec<Vec<f32>>,
    control: Rc<Control>,
}

impl Executable for Fake {
    fn step<'a>(&'a mut self, batch: &Batch) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        let [rows] = batch.sequences.as_slice() else { panic!("one sequence") };
        assert!(!rows.tokens.is_empty() && rows.tokens.len() <= self.options.max_rows);
        assert!(rows.outputs.len() <= self.options.max_outputs);
        assert!(rows.block_table.len() <= self.options.max_table);
        let end = rows.start + rows.tokens.len();
        let slot = |at: usize| rows.block_table[at / BLOCK_SIZE] as usize * BLOCK_SIZE + at % BLOCK_SIZE;
        self.control.rows.update(|n| n + rows.tokens.len());
        let fail = self.control.fail_in.get() == Some(0);
        self.control.fail_in.update(|n| n.and_then(|n| n.checked_sub(1)));
        for (at, &token) in (rows.start..end).zip(&rows.tokens) {
            self.slots[slot(at)] = if fail { 96 - token } else { token };
        }
        if fail {
            return Ok(Box::pin(async { Err(Error::Device("lost".into())) }));
        }
        let past: Vec<u32> = (0..end).map(|at| self.slots[slot(at)]).collect();
        let nan = self.control.nan.get();
        let output =
            |&row: &usize| if nan { vec![f32::NAN; VOCAB] } else { logits(&past[..=rows.start + row]) };
        self.logits = rows.outputs.iter().flat_map(output).collect();
        let state = |add: f32| rows.tokens.iter().map(|&t| t as f32 + add).collect();
        self.hidden = if batch.hidden { vec![state(0.0), state(0.5)] } else { vec![] };
        let output = Output { logits: &self.logits, hidden: &self.hidden };
        Ok(Box::pin(std::future::ready(Ok(output))))
    }
    fn stats(&self) -> Stats {
        Stats::default()
    }
    fn options(&self) -> &CompileOptions {
        &self.options
    }
}

fn session(context: usize, max_rows: usize, max_outputs: usize) -> (Session, Rc<Control>) {
    let options = CompileOptions { max_outputs, ..CompileOptions::single(context, max_rows, KvDType::F32) };
    let control = Rc::new(Control::default());
    let slots = vec![u32::MAX; options.kv_blocks * BLOCK_SIZE];
    let fake = Fake { options, slots, logits: vec![], hidden: vec![], control: Rc::clone(&control) };
    (Session::new(Box::new(fake), VOCAB, context), control)
}

fn generate(session: &mut Session, prompt: &[u32], stop: &[u32], max: usize) -> Result<Generation> {
    let mut sampler = Sampler::new(SamplingParams::greedy()).unwrap();
    let mut seen = vec![];
    let mut on_token = |token| {
        seen.push(token);
        ControlFlow::Continue(())
    };
    let generation = pollster::block_on(session.generate(prompt, &mut sampler, stop, max, &mut on_token))?;
    assert_eq!(seen, generation.tokens);
    Ok(generation)
}

fn prompt(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * i % 89).collect()
}

#[test]
fn the_answer_does_not_depend_on_the_chunk_size() {
    for max_rows in [1, 2, 7, 16, 200] {
        for len in [1, 2, 15, 16, 17, 33] {
            let (mut session, control) = session(64, max_rows, 1);
            let generation = generate(&mut session, &prompt(len), &[], 20).unwrap();
            assert_eq!(generation.tokens, expected(&prompt(len), 20), "{len} tokens in chunks of {max_rows}");
            assert_eq!((generation.prompt_tokens, generation.reused_tokens), (len, 0));
            assert_eq!(generation.finish, Finish::Length);
            assert_eq!(control.rows.get(), len + 19, "no token is computed twice");
        }
    }
}

#[test]
fn a_common_prefix_is_reused_and_no_more_than_that() {
    let (mut session, control) = session(128, 8, 1);
    let mut first = prompt(20);
    let answer = generate(&mut session, &first, &[], 10).unwrap().tokens;

    // The conversation goes on: all but the last token of the answer is in the cache.
    first.extend(&answer);
    first.extend([3, 1, 4]);
    let rows = control.rows.get();
    let second = generate(&mut session, &first, &[], 5).unwrap();
    assert_eq!((second.reused_tokens, &second.tokens), (29, &expected(&first, 5)));
    assert_eq!(control.rows.get() - rows, 33 - 29 + 4);

    // The same prompt again: one token is computed, for its logits.
    let again = generate(&mut session, &first, &[], 5).unwrap();
    assert_eq!((again.reused_tokens, again.tokens), (32, second.tokens));

    // A prompt that differs in the middle, then a prefix of it, then something else.
    let mut other = first.clone();
    other[10] = 96;
    for (prompt, reused) in [(&other[..], 10), (&other[..12], 11), (&[50][..], 0)] {
        let generation = generate(&mut session, prompt, &[], 4).unwrap();
        assert_eq!((generation.reused_tokens, generation.tokens), (reused, expected(prompt, 4)));
    }
    session.reset();
    assert_eq!(generate(&mut session, &[50], &[], 1).unwrap().reused_tokens, 0);
}

#[test]
fn generation_ends_for_the_reason_it_names() {
    let (mut session, _) = session(32, 8, 1);
    let tokens = expected(&prompt(5), 27 + 1);

    let stop = generate(&mut session, &prompt(5), &[90, tokens[3]], 100).unwrap();
    let at = tokens.iter().position(|t| [90, tokens[3]].contains(t)).unwrap();
    assert_eq!((stop.finish, stop.stop_token), (Finish::Stop, Some(tokens[at])));
    assert_eq!(stop.tokens, tokens[..at]);

    // The last token is chosen from a full cache and needs no place in it.
    let full = generate(&mut session, &prompt(5), &[], 100).unwrap();
    assert_eq!((full.finish, full.stop_token), (Finish::ContextFull, None));
    assert_eq!(full.tokens, tokens);
    assert_eq!(session.cached().len(), 32);

    let none = generate(&mut session, &prompt(5), &[], 0).unwrap();
    assert_eq!((none.finish, none.tokens), (Finish::Length, vec![]));

    let mut left = 3;
    let mut on_token = |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut sampler = Sampler::new(SamplingParams::greedy()).unwrap();
    let aborted = session.generate(&[1], &mut sampler, &[], 100, &mut on_token);
    let aborted = pollster::block_on(aborted).unwrap();
    assert_eq!((aborted.finish, aborted.tokens), (Finish::Aborted, expected(&[1], 3)));
}

#[test]
fn prompts_that_cannot_be_run_are_refused() {
    let (mut session, control) = session(40, 8, 1);
    let message = |result: Result<Generation>| result.unwrap_err().to_string();
    let long = message(generate(&mut session, &prompt(41), &[], 1));
    assert!(long.contains("41 tokens") && long.contains("holds 40"), "{long}");
    assert!(message(generate(&mut session, &[], &[], 1)).contains("no tokens"));
    assert!(message(generate(&mut session, &[1, 97], &[], 1)).contains("token 97"));
    assert_eq!(control.rows.get(), 0);
    assert_eq!(generate(&mut session, &prompt(40), &[], 9).unwrap().tokens, expected(&prompt(40), 1));
}

#[test]
fn a_failed_step_leaves_only_what_is_certain() {
    for fail_in in 0..8 {
        let (mut session, control) = session(64, 8, 1);
        control.fail_in.set(Some(fail_in));
        let error = generate(&mut session, &prompt(20), &[], 6).unwrap_err();
        assert!(matches!(error, Error::Device(_)), "{error}");
        let retry = generate(&mut session, &prompt(20), &[], 6).unwrap();
        assert_eq!(retry.tokens, expected(&prompt(20), 6), "failed in step {fail_in}");
        assert_eq!(retry.reused_tokens, (fail_in * 8).min(19));
    }
}

#[test]
fn nan_logits_are_an_error_and_their_cache_is_forgotten() {
    let (mut session, control) = session(64, 8, 1);
    control.nan.set(true);
    let error = generate(&mut session, &prompt(20), &[], 6).unwrap_err();
    assert!(error.to_string().contains("the device computed NaN"), "{error}");
    control.nan.set(false);
    assert_eq!(generate(&mut session, &prompt(20), &[], 6).unwrap().reused_tokens, 0);
}

#[test]
fn logits_and_hidden_states_of_all_rows_come_in_order() {
    let tokens = prompt(21);
    let all: Vec<f32> = (1..=tokens.len()).flat_map(|end| logits(&tokens[..end])).collect();
    for (max_rows, max_outputs) in [(32, 32), (32, 5), (4, 32), (1, 1)] {
        let (mut session, _) = session(64, max_rows, max_outputs);
        generate(&mut session, &[9, 9, 9], &[], 4).unwrap();
        let (found, hidden) = pollster::block_on(session.logits(&tokens, true)).unwrap();
        assert_eq!(found, all);
        assert_eq!(hidden.len(), 2);
        assert_eq!(hidden[1], tokens.iter().map(|&t| t as f32 + 0.5).collect::<Vec<_>>());
        assert!(pollster::block_on(session.logits(&tokens, false)).unwrap().1.is_empty());
        assert_eq!(generate(&mut session, &tokens, &[], 4).unwrap().tokens, expected(&tokens, 4));
    }
}

//! Which sequences run in a step, with how many rows, in which blocks.
//!
//! Decoding sequences come first, a row each; prompts share what is left of the step in chunks, in order of arrival,
//! so that a long prompt delays nobody's next token by more than a step. When blocks run out, whoever arrived last
//! gives its own back and is computed again later.

use std::collections::VecDeque;

use super::request::RequestId;
use super::sequence::{Sequence, State};
use crate::backend::{BLOCK_SIZE, CompileOptions};
use crate::cache::BlockManager;

/// What a sequence does in a step.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Its place among the running ones.
    pub(super) index: usize,
    /// Tokens that are computed.
    pub(super) rows: usize,
    /// Those whose logits are wanted.
    pub(super) outputs: Vec<usize>,
}

/// What a step does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// In order of arrival.
    pub(super) chunks: Vec<Chunk>,
    /// Blocks to copy first.
    pub(super) copies: Vec<(u32, u32)>,
}

/// What is left of a step's limits.
#[derive(Clone, Copy, Debug)]
struct Budget {
    rows: usize,
    outputs: usize,
    table: usize,
}

/// The queues. Whoever runs arrived before everybody who waits.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub(super) blocks: BlockManager,
    /// In order of arrival.
    pub(super) running: Vec<Sequence>,
    /// In order of arrival.
    pub(super) waiting: VecDeque<Sequence>,
    pub(super) preemptions: u64,
    limits: Budget,
    max_sequences: usize,
}

impl Scheduler {
    pub(super) fn new(options: &CompileOptions, max_sequences: usize, prefix_cache: bool) -> Self {
        Self {
            blocks: BlockManager::new(options.kv_blocks, prefix_cache),
            running: vec![],
            waiting: VecDeque::new(),
            preemptions: 0,
            limits: Budget { rows: options.max_rows, outputs: options.max_outputs, table: options.max_table },
            max_sequences,
        }
    }

    /// Chooses what runs next and gives it its blocks. Empty only when nothing waits or runs.
    pub(super) fn plan(&mut self) -> Plan {
        let mut budget = self.limits;
        let mut shares = self.share_out(&mut budget);
        let mut plan = Plan::default();
        let running = self.running.len();
        let mut index = 0;
        while index < self.running.len() {
            if shares[index].rows > 0 && self.provide(index, shares[index].rows, &mut plan.copies) {
                plan.chunks.push(std::mem::replace(&mut shares[index], Chunk::none(index)));
            }
            index += 1;
        }
        // Whoever lost its blocks in this step must not see a newcomer take them.
        if self.running.len() == running {
            self.admit(budget, &mut plan);
        }
        plan
    }

    /// Takes every sequence out that has ended or whose request is `over`, and its blocks back.
    pub(super) fn sweep(&mut self, over: impl Fn(RequestId) -> bool) {
        self.waiting.retain(|s| !over(s.request));
        for sequence in self.running.extract_if(.., |s| s.state != State::Live || over(s.request)) {
            match sequence.state {
                State::Live | State::Ended => self.blocks.release(sequence.table),
                State::Broken => self.blocks.discard(sequence.table),
            }
        }
    }

    /// Begins anew on an empty cache of `options`: everything is computed again.
    pub(super) fn restart(&mut self, options: &CompileOptions, prefix_cache: bool) {
        let mut sequences: VecDeque<_> = std::mem::take(&mut self.running).into();
        sequences.append(&mut self.waiting);
        for sequence in &mut sequences {
            sequence.give_back();
        }
        let preemptions = self.preemptions;
        *self = Self::new(options, self.max_sequences, prefix_cache);
        self.waiting = sequences;
        self.preemptions = preemptions;
    }

    /// Rows for each running sequence: one for whoever lacks only one, then chunks for the others.
    fn share_out(&self, budget: &mut Budget) -> Vec<Chunk> {
        let mut shares: Vec<_> = (0..self.running.len()).map(Chunk::none).collect();
        for decoding in [true, false] {
            for (index, sequence) in self.running.iter().enumerate() {
                if (sequence.pending() == 1) == decoding {
                    shares[index] = budget.chunk(index, sequence);
                }
            }
        }
        shares
    }

    /// Sees to it that the sequence can write its next rows, if need be by taking blocks from those who came after
    /// it; false when it had to give its own back, too.
    fn provide(&mut self, index: usize, rows: usize, copies: &mut Vec<(u32, u32)>) -> bool {
        let mut copy = None;
        loop {
            let sequence = &mut self.running[index];
            let (start, table) = (sequence.computed, &mut sequence.table);
            if copy.is_none() {
                copy = self.blocks.make_writable(table, start).ok();
            }
            if let Some(copy) = copy
                && self.blocks.grow(table, start + rows)
            {
                copies.extend(copy);
                return true;
            }
            self.preempt_last();
            if self.running.len() == index {
                return false;
            }
        }
    }

    /// The last to arrive gives its blocks back and waits again, before all others.
    fn preempt_last(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.blocks.release(sequence.give_back());
            self.preemptions += 1;
            self.waiting.push_front(sequence);
        }
    }

    /// Lets waiting sequences in, strictly in order, while there are rows for their first chunk and blocks for their
    /// whole prompt. A few blocks stay free for those who run.
    fn admit(&mut self, mut budget: Budget, plan: &mut Plan) {
        let reserve = self.blocks.total() / 100;
        let mut branches: usize = self.running.iter().map(Sequence::branches).sum();
        while let Some(sequence) = self.waiting.front() {
            branches += sequence.branches();
            if branches > self.max_sequences && !self.running.is_empty() {
                break;
            }
            let (cached, taken) = self.blocks.cached(sequence.reusable());
            let missing = (sequence.tokens.len() - cached).div_ceil(BLOCK_SIZE);
            if missing + taken + reserve > self.blocks.available() && !self.running.is_empty() {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            sequence.table = self.blocks.share(sequence.reusable());
            sequence.computed = cached;
            let index = self.running.len();
            let chunk = budget.chunk(index, &sequence);
            let end = sequence.computed + chunk.rows;
            if chunk.rows == 0 || !self.blocks.grow(&mut sequence.table, end) {
                self.blocks.release(sequence.give_back());
                self.waiting.push_front(sequence);
                break;
            }
            sequence.admitted.get_or_insert_with(|| (cached, sequence.arrival.elapsed()));
            self.running.push(sequence);
            plan.chunks.push(chunk);
        }
    }
}

impl Chunk {
    fn none(index: usize) -> Self {
        Self { index, rows: 0, outputs: vec![] }
    }
}

impl Budget {
    /// Takes as many of the sequence's next rows as there is room for.
    fn chunk(&mut self, index: usize, sequence: &Sequence) -> Chunk {
        let mut rows = sequence.pending().min(self.rows);
        let mut outputs = sequence.outputs(rows);
        if outputs.len() > self.outputs {
            // Up to the first output there is no room for.
            rows = outputs[self.outputs];
            outputs.truncate(self.outputs);
        }
        let table = (sequence.computed + rows).div_ceil(BLOCK_SIZE);
        if rows == 0 || table > self.table {
            return Chunk::none(index);
        }
        self.rows -= rows;
        self.outputs -= outputs.len();
        self.table -= table;
        Chunk { index, rows, outputs }
    }
}

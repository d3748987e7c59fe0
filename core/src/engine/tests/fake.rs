//! A model that remembers its tokens only through block tables, and what is heard of it.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use super::super::*;
use crate::backend::{CompileOptions, KvDType, LocalFuture, Output, Stats, Work};
use crate::checkpoint::Checkpoint;
use crate::sampling::TokenLogprob;

/// Nano's configuration and tokenizer; its weights are never looked at.
pub(super) static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/models/nano");
    Arc::new(Model::new("nano", Checkpoint::open(&folder).unwrap()).unwrap())
});

/// The logits after `tokens`: all of them and their order decide.
pub(super) fn logits(tokens: &[u32]) -> Vec<f32> {
    let vocab = MODEL.config.vocab_size() as u64;
    let hash = tokens.iter().fold(7u64, |h, &t| (h * 31 + u64::from(t) + 1) % 1_000_003);
    (0..vocab).map(|id| if id == hash % vocab { 9.0 } else { ((id * hash) % 71) as f32 / 10.0 }).collect()
}

/// Shared with a test, to look and to disturb.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Rows of all steps so far.
    pub(super) rows: Cell<usize>,
    /// Steps until one fails after scribbling on the cache.
    pub(super) fail_in: Cell<Option<usize>>,
    /// Logits and features are NaN wherever this token stands last.
    pub(super) nan_after: Cell<Option<u32>>,
}

#[derive(Debug)]
struct Fake {
    options: CompileOptions,
    slots: Vec<u32>,
    logits: Vec<f32>,
    features: Vec<f32>,
    control: Rc<Control>,
}

impl Executable for Fake {
    fn run<'a>(&'a mut self, work: Work<'_>) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        let batch = work.batch;
        batch.check(&MODEL.graph, &self.options)?;
        assert!(batch.sequences.iter().all(|s| !s.tokens.is_empty()), "nobody comes for nothing");
        for (from, to) in batch.copies.iter().map(|&(from, to)| (from as usize, to as usize)) {
            self.slots.copy_within(from * BLOCK_SIZE..(from + 1) * BLOCK_SIZE, to * BLOCK_SIZE);
        }
        let slot = |table: &[u32], at: usize| table[at / BLOCK_SIZE] as usize * BLOCK_SIZE + at % BLOCK_SIZE;
        self.control.rows.update(|n| n + batch.rows());
        for rows in &batch.sequences {
            for (at, &token) in (rows.start..).zip(&rows.tokens) {
                self.slots[slot(&rows.block_table, at)] = token;
            }
        }
        let fail = self.control.fail_in.get() == Some(0);
        self.control.fail_in.update(|n| n.and_then(|n| n.checked_sub(1)));
        if fail {
            self.slots.fill(1);
            return Ok(Box::pin(async { Err(Error::Device("lost".into())) }));
        }
        self.logits.clear();
        self.features.clear();
        for rows in &batch.sequences {
            for row in &rows.outputs {
                let past: Vec<u32> =
                    (0..=rows.start + row).map(|at| self.slots[slot(&rows.block_table, at)]).collect();
                let nan = past.last().copied() == self.control.nan_after.get();
                self.logits.extend(logits(&past).iter().map(|&x| if nan { f32::NAN } else { x }));
                let features = [past.len() as f32, past.iter().sum::<u32>() as f32];
                self.features.extend(features.map(|x| if nan { f32::NAN } else { x }));
            }
        }
        let features = if batch.features { self.features.as_slice() } else { &[] };
        let output = Output { logits: &self.logits, hidden: &[], features, edges: &[] };
        Ok(Box::pin(std::future::ready(Ok(output))))
    }
    fn stats(&self) -> Stats {
        Stats::default()
    }
    fn options(&self) -> &CompileOptions {
        &self.options
    }
}

/// Room of an engine under test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) blocks: usize,
    pub(super) rows: usize,
    pub(super) outputs: usize,
    pub(super) sequences: usize,
    pub(super) prefix_cache: bool,
}

pub(super) const ROOMY: Room = Room { blocks: 512, rows: 64, outputs: 64, sequences: 16, prefix_cache: true };

impl Room {
    pub(super) fn executable(self, control: &Rc<Control>) -> Box<dyn Executable> {
        let options = CompileOptions {
            kv_dtype: KvDType::F32,
            kv_blocks: self.blocks,
            max_rows: self.rows,
            max_outputs: self.outputs,
            max_table: self.sequences * self.blocks,
            lanes: 1,
        };
        let slots = vec![u32::MAX; self.blocks * BLOCK_SIZE];
        Box::new(Fake { options, slots, logits: vec![], features: vec![], control: Rc::clone(control) })
    }

    pub(super) fn engine(self, control: &Rc<Control>) -> Engine {
        let options = EngineOptions {
            context_length: 200,
            max_sequences: self.sequences,
            prefix_cache: self.prefix_cache,
        };
        Engine::new(Arc::clone(&MODEL), self.executable(control), options)
    }
}

/// All that was heard of a request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Heard {
    pub(super) prompt: Option<(usize, usize)>,
    pub(super) scores: Vec<Option<TokenLogprob>>,
    pub(super) features: Vec<f32>,
    pub(super) tokens: BTreeMap<usize, Vec<u32>>,
    pub(super) texts: BTreeMap<usize, String>,
    pub(super) logprobs: BTreeMap<usize, Vec<TokenLogprob>>,
    pub(super) finish: BTreeMap<usize, Finish>,
    pub(super) done: bool,
    pub(super) failed: Option<String>,
}

impl Heard {
    pub(super) fn hear(&mut self, event: Event) {
        assert!(!self.done && self.failed.is_none(), "nothing comes after the end");
        match event {
            Event::Prompt { tokens, cached, logprobs, .. } => {
                assert!(self.prompt.replace((tokens, cached)).is_none(), "the prompt comes once");
                self.scores = logprobs;
            }
            Event::Features(features) => self.features = features,
            Event::Delta(delta) => {
                assert!(self.prompt.is_some() && !self.finish.contains_key(&delta.choice));
                self.tokens.entry(delta.choice).or_default().extend(delta.token);
                self.texts.entry(delta.choice).or_default().push_str(&delta.text);
                self.logprobs.entry(delta.choice).or_default().extend(delta.logprob);
                self.finish.extend(delta.finish.map(|finish| (delta.choice, finish)));
            }
            Event::Done => self.done = true,
            Event::Failed(error) => self.failed = Some(error.to_string()),
        }
    }

    /// What must not depend on others: everything but what the cache happened to hold.
    pub(super) fn said(mut self) -> Self {
        self.prompt = self.prompt.map(|(tokens, _)| (tokens, 0));
        self
    }
}

pub(super) fn step(engine: &mut Engine, heard: &mut HashMap<RequestId, Heard>) -> Result<()> {
    for (id, event) in pollster::block_on(engine.step())? {
        heard.entry(id).or_default().hear(event);
    }
    Ok(())
}

/// Runs requests that all come at once.
pub(super) fn run(engine: &mut Engine, requests: impl IntoIterator<Item = Request>) -> Vec<Heard> {
    let mut heard = HashMap::new();
    let mut count = 0;
    for request in requests {
        engine.submit(RequestId(count), request).unwrap();
        count += 1;
    }
    while engine.has_work() {
        step(engine, &mut heard).unwrap();
    }
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0), "all blocks came back");
    (0..count).map(|id| heard.remove(&RequestId(id)).unwrap()).collect()
}

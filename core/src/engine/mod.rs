//! Many requests on one executable: continuous batching over a paged KV cache with prefix reuse.
//!
//! A request becomes a `sequence`; the `scheduler` chooses at every step which sequences run with how many rows and in
//! which blocks; the `runner` makes a batch of that, and the `digest` makes tokens and events of what it computes. What
//! a sequence says depends on nothing but its own request: not on who else is in a step, on what the prefix cache holds,
//! or on whether it was preempted.

mod digest;
mod request;
mod runner;
mod scheduler;
mod sequence;

use std::collections::HashMap;
use std::sync::Arc;

use web_time::{Instant, SystemTime, UNIX_EPOCH};

pub use request::{
    Begun, Delta, EngineStats, Event, Finish, Generate, PromptLogprobs, Request, RequestId, StepReport, Task,
};

use crate::afd::PoolStats;
use crate::backend::{BLOCK_SIZE, Executable};
use crate::model::Model;
use crate::monitor::SequenceRows;
use crate::{Error, Result};
use digest::Digest;
use runner::Runner;
use scheduler::{Plan, Scheduler};
use sequence::{Continuation, Sequence};

/// Limits of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Most tokens of prompt and continuation together.
    pub context_length: usize,
    /// Most sequences in one step.
    pub max_sequences: usize,
    /// Keep the blocks of finished sequences for prompts that begin alike.
    pub prefix_cache: bool,
}

/// Requests in, events out, one step at a time. Owned by one thread or task.
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    options: EngineOptions,
    runner: Runner,
    scheduler: Scheduler,
    /// How many sequences of each request are not finished.
    unfinished: HashMap<RequestId, usize>,
    prefix_queries: u64,
    prefix_hits: u64,
    /// What executables before this one counted.
    pool: PoolStats,
    last_step: StepReport,
}

impl Engine {
    /// An engine for `model`, compiled as `executable`. Limits that the executable was not compiled for are lowered to
    /// what it can.
    pub fn new(model: Arc<Model>, executable: Box<dyn Executable>, options: EngineOptions) -> Self {
        let compiled = executable.options();
        let cache = compiled.kv_blocks.min(compiled.max_table) * BLOCK_SIZE;
        let options = EngineOptions {
            context_length: options.context_length.min(cache),
            max_sequences: options.max_sequences.min(compiled.max_rows).min(compiled.max_outputs).max(1),
            ..options
        };
        let scheduler = Scheduler::new(compiled, options.max_sequences, options.prefix_cache);
        Self {
            model,
            options,
            runner: Runner::new(executable),
            scheduler,
            unfinished: HashMap::new(),
            prefix_queries: 0,
            prefix_hits: 0,
            pool: PoolStats::default(),
            last_step: StepReport::default(),
        }
    }

    /// Takes a request in; its events come from [`Engine::step`].
    ///
    /// # Errors
    /// [`Error::Capacity`] when it can never fit, [`Error::Text`] when its tokens, [`Error::Config`] when its
    /// parameters are not valid.
    pub fn submit(&mut self, id: RequestId, request: Request) -> Result<()> {
        self.check(&request)?;
        let Request { prompt, task } = request;
        let sequences = match task {
            Task::Embed => vec![Sequence::new(id, prompt, None)],
            Task::Generate(generate) => {
                let seed = generate.sampling.seed.unwrap_or_else(|| fresh_seed(id));
                let generate = Arc::<Generate>::from(generate);
                match &generate.resume {
                    None => {
                        let continuation = Continuation::new(&generate, 0, seed)?;
                        vec![Sequence::new(id, prompt, Some(continuation))]
                    }
                    Some(begun) => {
                        let resume = |begun: &Begun| {
                            let continuation = Continuation::resume(&generate, begun, seed, &self.model)?;
                            Ok(Sequence::resume(id, prompt.clone(), &begun.tokens, continuation))
                        };
                        begun.iter().map(resume).collect::<Result<_>>()?
                    }
                }
            }
        };
        self.unfinished.insert(id, sequences.iter().map(Sequence::branches).sum());
        self.scheduler.waiting.extend(sequences);
        Ok(())
    }

    /// Forgets a request; no more of its events come, and its blocks are free (but stay in the prefix cache).
    pub fn abort(&mut self, id: RequestId) {
        self.unfinished.remove(&id);
        self.scheduler.sweep(|request| request == id);
    }

    /// Whether [`Engine::step`] has something to do.
    pub fn has_work(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Runs one step and returns what happened, in order for each request. Without work it returns at once. The future
    /// must be run to its end.
    ///
    /// # Errors
    /// [`Error::Device`] when the device failed: no request is lost; give the engine a new executable with
    /// [`Engine::recover`] and go on. What is wrong with a single request is an event of that request.
    pub async fn step(&mut self) -> Result<Vec<(RequestId, Event)>> {
        let begin = Instant::now();
        let plan = self.scheduler.plan();
        let mut report = self.report(&plan);
        if plan.chunks.is_empty() {
            return Ok(vec![]);
        }
        let started = Instant::now();
        report.schedule = started - begin;
        let Self { runner, scheduler, .. } = self;
        let computing = runner.start(&plan, &scheduler.running)?;
        // The device computes; meanwhile the host finds out what the grammars allow.
        for chunk in plan.chunks.iter().filter(|c| !c.outputs.is_empty()) {
            if let Some(continuation) = &mut scheduler.running[chunk.index].continuation {
                // Whatever is wrong comes again, to be told, when the token is chosen.
                let _ = continuation.prepare();
            }
        }
        let output = computing.await?;
        let computed = Instant::now();
        report.compute = computed - started;
        let mut digest = Digest {
            model: &self.model,
            context_length: self.options.context_length,
            scheduler: &mut self.scheduler,
            unfinished: &mut self.unfinished,
            events: vec![],
        };
        digest.step(&plan, output);
        let events = digest.events;
        report.sample = computed.elapsed();
        report.dispatches = self.runner.executable.stats().dispatches;
        report.ops = self.runner.executable.take_profile();
        self.last_step = report;
        for (_, event) in &events {
            if let Event::Prompt { tokens, cached, .. } = event {
                self.prefix_queries += *tokens as u64;
                self.prefix_hits += *cached as u64;
            }
        }
        Ok(events)
    }

    /// Goes on with a newly compiled executable of the same model after the device failed: every sequence is computed
    /// again from its tokens, and continues as if nothing had happened.
    pub fn recover(&mut self, executable: Box<dyn Executable>) {
        self.scheduler.restart(executable.options(), self.options.prefix_cache);
        self.pool = self.pool + self.runner.executable.stats().pool.counted();
        self.runner = Runner::new(executable);
    }

    /// The next step also measures every op (see [`StepReport::ops`]), which costs some time and changes nothing else.
    pub fn profile_next(&mut self) {
        self.runner.executable.profile_next();
    }

    /// What the last step did.
    pub fn last_step(&self) -> &StepReport {
        &self.last_step
    }

    /// Where the engine stands.
    pub fn stats(&self) -> EngineStats {
        let Scheduler { blocks, running, waiting, preemptions, .. } = &self.scheduler;
        EngineStats {
            running: running.len(),
            waiting: waiting.len(),
            blocks: blocks.total(),
            blocks_used: blocks.total() - blocks.available(),
            prefix_queries: self.prefix_queries,
            prefix_hits: self.prefix_hits,
            preemptions: *preemptions,
            pool: self.pool + self.runner.executable.stats().pool,
        }
    }

    /// The executable, for its statistics.
    pub fn executable(&self) -> &dyn Executable {
        &*self.runner.executable
    }

    fn check(&self, request: &Request) -> Result<()> {
        let (length, context) = (request.prompt.len(), self.options.context_length);
        let vocab_size = self.model.config.vocab_size();
        if length == 0 {
            return Err(Error::Text("the prompt has no tokens; give it at least one".into()));
        }
        if let Some(token) = request.prompt.iter().find(|&&t| t as usize >= vocab_size) {
            return Err(Error::Text(format!("token {token} is outside the vocabulary of {vocab_size}")));
        }
        let room = match &request.task {
            Task::Generate(generate) => usize::from(generate.max_tokens > 0),
            Task::Embed => 0,
        };
        if length + room > context {
            return Err(Error::Capacity(format!(
                "the prompt has {length} tokens, but the context holds {context}{}; shorten it, or start with a longer \
                 context",
                if room > 0 { " with the answer" } else { "" }
            )));
        }
        let Task::Generate(generate) = &request.task else { return Ok(()) };
        let most = self.options.max_sequences;
        if generate.n == 0 || generate.n > most {
            return Err(Error::Config(format!("n is {}, but must be from 1 to {most}", generate.n)));
        }
        if generate.stop.iter().any(String::is_empty) {
            return Err(Error::Config("a stop string is empty; give it text, or leave it out".into()));
        }
        if !generate.stop.is_empty() {
            self.model.tokenizer()?;
        }
        for begun in generate.resume.iter().flatten() {
            if begun.choice >= generate.n || length + begun.tokens.len() >= context {
                return Err(Error::Config(format!(
                    "choice {} of {} cannot go on after {} tokens in a context of {context}",
                    begun.choice,
                    generate.n,
                    begun.tokens.len()
                )));
            }
        }
        if generate.resume.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::Config("there is nothing to go on with".into()));
        }
        Ok(())
    }

    fn report(&self, plan: &Plan) -> StepReport {
        let mut report = StepReport::default();
        for chunk in &plan.chunks {
            let sequence = &self.scheduler.running[chunk.index];
            let started = sequence.continuation.as_ref().is_some_and(|c| c.started);
            let (request, rows, decodes) =
                (sequence.request.0, chunk.rows, started && sequence.pending() == 1);
            *if decodes { &mut report.decode_rows } else { &mut report.prefill_rows } += rows;
            report.rows.push(SequenceRows { request, rows, decodes });
        }
        report
    }
}

/// A seed nobody asked for: from the clock, another one for each request.
fn fresh_seed(id: RequestId) -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    clock ^ id.0.rotate_left(32)
}

#[cfg(test)]
mod tests;

//! A model on a device, ready for requests.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tread_core::backend::{Backend, CompileOptions, Executable, KvDType};
use tread_core::engine::{Delta, EngineOptions, Event, Finish, Generate, Request, RequestId, Task};
use tread_core::model::Model;

use crate::cli::{DeviceArgs, KvChoice};
use crate::{devices, memory, progress};

/// Context when the user names none and the model could more: memory for it is taken at once.
pub(crate) const DEFAULT_CONTEXT: usize = 4096;
/// Prompt tokens computed in one step.
pub(crate) const PREFILL_ROWS: usize = 128;

impl From<KvChoice> for KvDType {
    fn from(choice: KvChoice) -> Self {
        match choice {
            KvChoice::F32 => Self::F32,
            KvChoice::F16 => Self::F16,
        }
    }
}

/// Set by Ctrl-C: ends what is being generated, be it still in its prompt.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// A model on a device, for one request at a time.
pub(crate) struct Engine {
    pub(crate) model: Arc<Model>,
    /// For people: `wgpu, NVIDIA H100 (Vulkan)`.
    pub(crate) device: String,
    engine: tread_core::engine::Engine,
    requests: u64,
}

/// What was made of a prompt.
pub(crate) struct Generation {
    pub(crate) prompt_tokens: usize,
    /// Of these, how many the cache held from earlier prompts.
    pub(crate) cached_tokens: usize,
    /// The tokens written, a stop token included.
    pub(crate) tokens: Vec<u32>,
    /// None: it was broken off.
    pub(crate) finish: Option<Finish>,
    pub(crate) time_to_first_token: Duration,
    /// From the first token to the end.
    pub(crate) decode_time: Duration,
}

impl Engine {
    /// Opens the device and loads the model with room for one sequence.
    pub(crate) fn new(model: Model, args: &DeviceArgs) -> Result<Self> {
        let context_length = context_length(&model, args)?;
        let model = Arc::new(model);
        let backend = devices::open_for(&model, args)?;
        let rows = PREFILL_ROWS.min(context_length);
        let options = CompileOptions::single(context_length, rows, args.kv.into());
        let executable = compile(&model, &*backend, options)?;
        let device = format!("{}, {}", backend.name(), backend.device());
        let options = EngineOptions { context_length, max_sequences: 1, prefix_cache: true };
        let engine = tread_core::engine::Engine::new(Arc::clone(&model), executable, options);
        Ok(Self { model, device, engine, requests: 0 })
    }

    /// Continues `prompt`. `on_delta` sees what is new after every token and may break off; so may [`STOP`].
    pub(crate) fn generate(
        &mut self,
        prompt: Vec<u32>,
        generate: Generate,
        on_delta: &mut dyn FnMut(&Delta) -> ControlFlow<()>,
    ) -> Result<Generation> {
        self.requests += 1;
        let (id, start) = (RequestId(self.requests), Instant::now());
        let mut made = Generation {
            prompt_tokens: prompt.len(),
            cached_tokens: 0,
            tokens: vec![],
            finish: None,
            time_to_first_token: Duration::ZERO,
            decode_time: Duration::ZERO,
        };
        STOP.store(false, Ordering::Relaxed);
        self.engine.submit(id, Request { prompt, task: Task::Generate(Box::new(generate)) })?;
        let mut first_token = None;
        while self.engine.has_work() {
            let events = pollster::block_on(self.engine.step());
            // A device that failed stays with what it was asked; the next request is not to wait for it.
            let events = events.inspect_err(|_| self.engine.abort(id))?;
            let mut stop = STOP.load(Ordering::Relaxed);
            for (_, event) in events {
                match event {
                    Event::Prompt { cached, .. } => made.cached_tokens = cached,
                    Event::Delta(delta) => {
                        first_token.get_or_insert_with(Instant::now);
                        made.tokens.extend(delta.token);
                        stop |= on_delta(&delta).is_break();
                        made.finish = delta.finish;
                    }
                    Event::Failed(error) => return Err(error.into()),
                    Event::Features(_) | Event::Done => {}
                }
            }
            if stop {
                self.engine.abort(id);
            }
        }
        let first_token = first_token.unwrap_or_else(Instant::now);
        made.time_to_first_token = first_token - start;
        made.decode_time = first_token.elapsed();
        Ok(made)
    }
}

/// The context the user asked for, else what the model can, within reason.
pub(crate) fn context_length(model: &Model, args: &DeviceArgs) -> Result<usize> {
    let limit = model.config.context_length();
    let context = args.context.map_or(limit.min(DEFAULT_CONTEXT), |c| c as usize);
    if context > limit {
        bail!("--context {context} is more than the {limit} tokens the model was made for");
    }
    Ok(context)
}

/// Loads a model on a back end with a progress bar, after checking that it can fit.
pub(crate) fn compile(
    model: &Model,
    backend: &dyn Backend,
    options: CompileOptions,
) -> Result<Box<dyn Executable>> {
    check_memory(model, backend, &options)?;
    let bar = progress::bytes(&format!("loading {}", model.name), 0);
    let executable = pollster::block_on(model.load(backend, options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }));
    bar.finish_and_clear();
    Ok(executable?)
}

/// Refuses what cannot fit host memory.
fn check_memory(model: &Model, backend: &dyn Backend, options: &CompileOptions) -> Result<()> {
    let Some(available) = memory::available() else { return Ok(()) };
    let context = options.kv_blocks * tread_core::backend::BLOCK_SIZE;
    let cache =
        (model.graph.kv_bytes_per_token(options.kv_dtype.bytes()) as u64).saturating_mul(context as u64);
    let needed = backend.host_bytes(model.weight_bytes(), cache);
    if needed > available {
        bail!(
            "{} on {} needs {}, {} of it for the KV cache of {context} tokens, but only {} of memory are available: use a \
             smaller model, a smaller --context, or --kv f16",
            model.name,
            backend.name(),
            memory::text(needed),
            memory::text(cache),
            memory::text(available)
        );
    }
    Ok(())
}

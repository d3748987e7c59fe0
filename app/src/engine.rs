//! A model on a device, ready for sequences.

use anyhow::{Result, bail};
use tread_core::backend::{Backend, CompileOptions, Executable, KvDType};
use tread_core::model::Model;
use tread_core::session::Session;

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

/// A model with a session on a back end.
pub(crate) struct Engine {
    pub(crate) model: Model,
    pub(crate) session: Session,
    /// For people: `wgpu, NVIDIA H100 (Vulkan)`.
    pub(crate) device: String,
}

impl Engine {
    /// Opens the device and loads the model with room for one sequence.
    pub(crate) fn new(model: Model, args: &DeviceArgs) -> Result<Self> {
        let limit = model.config.context_length();
        let context = args.context.map_or(limit.min(DEFAULT_CONTEXT), |c| c as usize);
        if context > limit {
            bail!("--context {context} is more than the {limit} tokens the model was made for");
        }
        let backend = devices::open(args.backend, args.adapter.as_ref())?;
        let options = CompileOptions::single(context, PREFILL_ROWS.min(context), args.kv.into());
        let executable = compile(&model, &*backend, options)?;
        let session = Session::new(executable, model.config.vocab_size(), context);
        Ok(Self { model, session, device: format!("{}, {}", backend.name(), backend.device()) })
    }
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

/// Refuses what cannot fit host memory. A GPU's own memory is not known before it is asked for; its back end refuses.
fn check_memory(model: &Model, backend: &dyn Backend, options: &CompileOptions) -> Result<()> {
    let Some(available) = memory::available() else { return Ok(()) };
    let context = options.kv_blocks * tread_core::backend::BLOCK_SIZE;
    let cache =
        (model.graph.kv_bytes_per_token(options.kv_dtype.bytes()) as u64).saturating_mul(context as u64);
    // The CPU back end computes from the mapped file, which needs no memory of its own to be right.
    if backend.name() == "cpu" && cache > available {
        bail!(
            "the KV cache for {context} tokens needs {}, but only {} of memory are available: use a smaller --context, or \
             --kv f16",
            memory::text(cache),
            memory::text(available)
        );
    }
    Ok(())
}

//! What a model needs, compared with what there is.

use tread_core::backend::{BLOCK_SIZE, CompileOptions, KvDType};
use tread_core::engine::EngineOptions;
use tread_core::model::Model;

use super::failure::{Failed, other};
use crate::protocol::ModelInfo;

/// Context when the user names none and the model could more: memory for it is taken at once.
const DEFAULT_CONTEXT: usize = 4096;
/// Prompt tokens computed in one step.
const PREFILL_ROWS: usize = 128;
/// Conversations that are answered at a time; they share one cache.
const MAX_SEQUENCES: usize = 4;

/// Tokens of prompt and answer together.
pub(super) fn context_length(model: &Model, wanted: Option<usize>) -> Result<usize, Failed> {
    let limit = model.config.context_length();
    match wanted {
        None => Ok(limit.min(DEFAULT_CONTEXT)),
        Some(0) => Err(other("a context of no tokens holds nothing; choose at least one")),
        Some(context) if context > limit => Err(other(format!(
            "a context of {context} is more than the {limit} tokens the model was made for"
        ))),
        Some(context) => Ok(context),
    }
}

/// How a model is compiled for a context.
pub(super) fn compile_options(context: usize) -> CompileOptions {
    let rows = PREFILL_ROWS.min(context).max(MAX_SEQUENCES);
    let single = CompileOptions::single(context, rows, KvDType::F32);
    CompileOptions { max_outputs: MAX_SEQUENCES, max_table: single.max_table * MAX_SEQUENCES, ..single }
}

/// How an engine runs with a context.
pub(super) fn engine_options(context: usize) -> EngineOptions {
    EngineOptions { context_length: context, max_sequences: MAX_SEQUENCES, prefix_cache: true }
}

/// What there is for a model.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// Largest buffer that a kernel can be given; none: no GPU, or one that is not known.
    pub(super) max_binding: Option<u64>,
    /// Bytes the browser still stores.
    pub(super) storage: Option<u64>,
}

/// What a model is and needs; `download` bytes of it are not here yet.
pub(super) fn info(model: &Model, context: usize, download: u64, room: Room) -> ModelInfo {
    let options = compile_options(context);
    let kv_tokens = (options.kv_blocks * BLOCK_SIZE) as u64;
    ModelInfo {
        name: model.name.clone(),
        architecture: model.config.architecture().to_owned(),
        parameters: model.parameters().0,
        download_bytes: download,
        weight_bytes: model.weight_bytes(),
        kv_bytes: model.graph.kv_bytes_per_token(options.kv_dtype.bytes()) as u64 * kv_tokens,
        context,
        max_context: model.config.context_length(),
        obstacle: obstacle(model, &options, download, room),
        device: None,
        chats: model.template.is_some(),
    }
}

/// Why a model cannot run here, as far as can be told before it is tried.
fn obstacle(model: &Model, options: &CompileOptions, download: u64, room: Room) -> Option<String> {
    let widest = model.graph.kv_widths.iter().max().copied().unwrap_or(0);
    let layer = (options.kv_blocks * BLOCK_SIZE * widest * options.kv_dtype.bytes()) as u64;
    if let Some(most) = room.max_binding.filter(|&most| layer > most) {
        return Some(format!(
            "a layer's part of the context needs a buffer of {layer} bytes, but this GPU binds at most {most}: use a \
             shorter context"
        ));
    }
    if let Some(left) = room.storage.filter(|&left| download > left) {
        return Some(format!(
            "{download} bytes have to be downloaded, but the browser stores only {left} more: delete kept models, free \
             space on this machine, or choose a smaller model"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tread_core::checkpoint::Checkpoint;
    use tread_core::model::Model;

    use super::{Room, compile_options, context_length, info};

    fn nano() -> Model {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/models/nano");
        Model::new("nano", Checkpoint::open(&folder).unwrap()).unwrap()
    }

    #[test]
    fn a_context_is_the_models_own_within_reason() {
        let model = nano();
        let limit = model.config.context_length();
        assert_eq!(context_length(&model, None).unwrap(), limit.min(4096));
        assert_eq!(context_length(&model, Some(100)).unwrap(), 100);
        for context in [0, limit + 1] {
            assert!(context_length(&model, Some(context)).is_err());
        }
        let options = compile_options(20);
        assert_eq!((options.kv_blocks, options.max_rows, options.max_table), (2, 20, 8));
        assert_eq!(compile_options(1).max_rows, 4);
    }

    #[test]
    fn what_does_not_fit_is_said_before_it_is_downloaded() {
        let model = nano();
        let fits = info(&model, 64, 1000, Room::default());
        assert_eq!(fits.obstacle, None);
        assert_eq!(fits.weight_bytes, model.weight_bytes());
        assert_eq!(fits.kv_bytes, model.graph.kv_bytes_per_token(4) as u64 * 64);
        assert!(fits.chats && fits.parameters > 1_000_000, "{fits:?}");
        let narrow = Room { max_binding: Some(100), ..Room::default() };
        assert!(info(&model, 64, 0, narrow).obstacle.unwrap().contains("shorter context"));
        let full = Room { storage: Some(999), ..Room::default() };
        assert!(info(&model, 64, 1000, full).obstacle.unwrap().contains("only 999 more"));
        let enough = Room { storage: Some(1000), max_binding: Some(1 << 30) };
        assert_eq!(info(&model, 64, 1000, enough).obstacle, None);
    }
}

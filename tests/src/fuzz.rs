//! What the fuzz targets run (tests/fuzz), as plain functions so that the ordinary tests can run them too. Each
//! returns whether its input was read without an error; what it must never do is panic or allocate much.

use std::collections::BTreeMap;
use std::sync::Arc;

use tread_core::checkpoint::{Checkpoint, SIDE_FILES};
use tread_core::model::Model;
use tread_core::tensor::{Bytes, Source};
use tread_core::{Result, quant};

use crate::write;

/// Between the side files in the input of [`config`]; UTF-8 never contains it.
pub const SEPARATOR: u8 = 0xff;

/// The bytes of a shard, beside the config.json of [`write::tiny_llama`].
pub fn safetensors(data: &[u8]) -> bool {
    folder(&write::tiny_llama(), data)
}

/// The bytes of a shard, beside the config.json of [`write::tiny_step3`].
pub fn safetensors_fp8(data: &[u8]) -> bool {
    folder(&write::tiny_step3(), data)
}

fn folder(config: &serde_json::Value, shard: &[u8]) -> bool {
    let files = BTreeMap::from([("config.json".to_owned(), config.to_string().into_bytes())]);
    use_checkpoint(Checkpoint::from_safetensors(&files, vec![source(shard)]))
}

/// The bytes of a GGUF file.
pub fn gguf(data: &[u8]) -> bool {
    use_checkpoint(Checkpoint::from_gguf(&source(data)))
}

/// The side files of a folder in the order of [`SIDE_FILES`], with [`SEPARATOR`] between them, beside valid weights.
/// tokenizer.json stays out: another library reads it.
pub fn config(data: &[u8]) -> bool {
    let parts =
        SIDE_FILES.into_iter().filter(|name| *name != "tokenizer.json").zip(data.split(|&b| b == SEPARATOR));
    let files =
        parts.filter(|(_, part)| !part.is_empty()).map(|(name, part)| (name.to_owned(), part.to_vec()));
    let shard = write::safetensors(&write::weights(&write::tiny_llama()));
    use_checkpoint(Checkpoint::from_safetensors(&files.collect(), vec![source(&shard)]))
}

fn source(bytes: &[u8]) -> Arc<dyn Source> {
    Arc::new(Bytes::new("model.safetensors", bytes.to_vec()))
}

/// Reads every tensor, and makes the model.
fn use_checkpoint(checkpoint: Result<Checkpoint>) -> bool {
    let Ok(checkpoint) = checkpoint else { return false };
    for tensor in checkpoint.tensors.values().filter(|t| t.elements() > 0) {
        let mut row = vec![0.0; tensor.cols()];
        for at in [0, tensor.rows() - 1] {
            tensor.dequantize_rows(at..at + 1, &mut row).expect("what the reader accepted can be read");
        }
        // Damaged values are an error here; what counts is that the answer comes.
        let _ = quant::check_finite(tensor);
    }
    Model::new("fuzz", checkpoint).is_ok()
}

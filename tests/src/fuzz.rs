//! What the fuzz targets run (tests/fuzz), as plain functions so that the ordinary tests can run them too. Each
//! returns whether its input was read without an error; what it must never do is panic or allocate much.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tread_core::checkpoint::{Checkpoint, SIDE_FILES};
use tread_core::model::Model;
use tread_core::tensor::{Bytes, Source};
use tread_core::{Result, quant};

use crate::write;

/// A reader to feed with damaged files.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As the file in tests/fuzz/fuzz_targets is called.
    pub name: &'static str,
    /// Whether the input is a model.
    pub read: fn(&[u8]) -> bool,
    /// An input that is one, to start from.
    pub seed: fn() -> Vec<u8>,
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "safetensors",
        read: safetensors,
        seed: || write::safetensors(&write::weights(&write::tiny_llama())),
    },
    Target {
        name: "safetensors_fp8",
        read: safetensors_fp8,
        seed: || write::safetensors(&write::fp8_weights(&write::tiny_step3(), write::TINY_TILE)),
    },
    Target { name: "gguf", read: gguf, seed: || write::Gguf::tiny().bytes() },
    Target { name: "config", read: config, seed: side_files },
];

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

/// What [`config`] reads.
fn side_files() -> Vec<u8> {
    let mut config = write::tiny_llama();
    config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    let generation = json!({"eos_token_id": [2, 3], "temperature": 0.6, "top_p": 0.9, "top_k": 40});
    let tokenizer = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}";
    let files = [config.to_string(), generation.to_string(), tokenizer.to_string(), template.to_owned()];
    files.map(String::into_bytes).join(&SEPARATOR)
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

//! Checkpoint readers: files -> named, typed tensors, a configuration, and what text needs.

use std::collections::BTreeMap;

use crate::config::ModelConfig;
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Everything read from a model's files. Tensors stay on disk until they are asked for.
#[derive(Debug)]
pub struct Checkpoint {
    /// Architecture and sizes.
    pub config: ModelConfig,
    /// Hugging Face name -> view.
    pub tensors: BTreeMap<String, Tensor>,
    /// Tokenizer, chat template and generation defaults, as far as the files have them.
    pub text: TextFiles,
}

/// What a checkpoint says about text.
#[derive(Clone, Debug, Default)]
pub struct TextFiles {
    /// The tokenizer; none in bare test checkpoints.
    pub tokenizer: Option<TokenizerFile>,
    /// Jinja source.
    pub chat_template: Option<String>,
    /// The string of the begin-of-sequence token, for templates.
    pub bos_token: Option<String>,
    /// The string of the end-of-sequence token, for templates.
    pub eos_token: Option<String>,
    /// Tokens that end a generation (config.json, generation_config.json, GGUF metadata; merged).
    pub eos_token_ids: Vec<u32>,
    /// Suggested temperature.
    pub temperature: Option<f32>,
    /// Suggested top-p.
    pub top_p: Option<f32>,
    /// Suggested top-k.
    pub top_k: Option<usize>,
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug)]
pub enum TokenizerFile {
    /// The bytes of a Hugging Face tokenizer.json.
    Json(Vec<u8>),
    /// `tokenizer.ggml.*` of a GGUF file.
    Gguf(GgufVocab),
}

/// A vocabulary from GGUF metadata (GGUF specification, section "Tokenizer").
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` is byte-level BPE.
    pub model: String,
    /// `tokenizer.ggml.pre`: which pre-tokenizer.
    pub pre: String,
    /// Token strings by id.
    pub tokens: Vec<String>,
    /// Token types by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `left right`, by rank.
    pub merges: Vec<String>,
    /// Begin-of-sequence id.
    pub bos: Option<u32>,
    /// End-of-sequence id.
    pub eos: Option<u32>,
    /// Put the begin-of-sequence token in front of every prompt.
    pub add_bos: bool,
    /// Put a space in front of every prompt.
    pub add_space_prefix: bool,
}

impl Checkpoint {
    /// The tensor of each weight the graph declares, in order.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the first one that is missing or has another shape.
    pub fn bind(&self, graph: &Graph) -> Result<Vec<Tensor>> {
        graph
            .weights
            .iter()
            .map(|decl| {
                let tensor = self
                    .tensors
                    .get(&decl.name)
                    .ok_or_else(|| Error::tensor(&decl.name, "missing from the checkpoint"))?;
                if tensor.shape() != decl.shape {
                    let message = format!("expected shape {:?}, found {:?}", decl.shape, tensor.shape());
                    return Err(Error::tensor(&decl.name, message));
                }
                Ok(tensor.clone())
            })
            .collect()
    }
}

//! Checkpoint readers: files -> named, typed tensors, a configuration, and what text needs.

#[cfg(not(target_family = "wasm"))]
mod files;
pub(crate) mod gguf;
mod safetensors;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::config::ModelConfig;
use crate::graph::Graph;
use crate::tensor::{Source, Tensor};
use crate::{Error, Result};

/// What is wrong with a tensor that the graph needs and no file has.
const MISSING: &str = "missing from the checkpoint; was it downloaded completely?";

/// Which tensor is in which shard.
const INDEX: &str = "model.safetensors.index.json";

/// The small files beside safetensors weights that are read.
pub const SIDE_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
];

/// Everything read from a model's files. Tensors stay on disk until they are asked for.
#[derive(Debug)]
pub struct Checkpoint {
    /// Architecture and sizes.
    pub config: ModelConfig,
    /// Hugging Face name -> view.
    pub tensors: BTreeMap<String, Tensor>,
    /// Name -> why a tensor of the files cannot be used; an error only for those that the graph needs.
    pub refused: BTreeMap<String, String>,
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
    /// Opens a GGUF file, or a folder with config.json and safetensors, by mapping them: weights are not read.
    ///
    /// A mapped file must not be changed while it is in use.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] and [`Error::Tensor`] for damaged files, [`Error::Config`] and
    /// [`Error::Unsupported`] for what the configuration says.
    #[cfg(not(target_family = "wasm"))]
    pub fn open(path: &std::path::Path) -> Result<Self> {
        files::open(path)
    }

    /// Reads a GGUF file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_gguf(source: &Arc<dyn Source>) -> Result<Self> {
        gguf::read(source)
    }

    /// Reads safetensors shards; `files` holds the [`SIDE_FILES`] there are, by name.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_safetensors(files: &BTreeMap<String, Vec<u8>>, shards: Vec<Arc<dyn Source>>) -> Result<Self> {
        let json_config =
            json(files, "config.json")?.ok_or_else(|| Error::Config("config.json is missing".to_owned()))?;
        let config = ModelConfig::from_json(&json_config)?;
        let mut tensors = Tensors::default();
        for shard in shards {
            safetensors::read(&shard, &mut tensors)?;
        }
        if let Some(index) = files.get(INDEX) {
            tensors.check_index(index)?;
        }
        tensors.strip_prefixes()?;
        safetensors::pair_scales(&mut tensors, scale_block(&json_config)?)?;
        let text = text::read(files, &json_config)?;
        Ok(Self { config, tensors: tensors.found, refused: tensors.refused, text })
    }

    /// The tensor of each weight the graph declares, in order.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the first one that is missing or has another shape.
    pub fn bind(&self, graph: &Graph) -> Result<Vec<Tensor>> {
        graph
            .weights
            .iter()
            .map(|decl| {
                let tensor = self.tensors.get(&decl.name).ok_or_else(|| {
                    let reason = self.refused.get(&decl.name).map_or(MISSING, String::as_str);
                    Error::tensor(&decl.name, reason)
                })?;
                if tensor.shape() != decl.shape {
                    let message = format!("expected shape {:?}, found {:?}", decl.shape, tensor.shape());
                    return Err(Error::tensor(&decl.name, message));
                }
                Ok(tensor.clone())
            })
            .collect()
    }
}

/// The tensors of a model while its files are read.
#[derive(Debug, Default)]
struct Tensors {
    found: BTreeMap<String, Tensor>,
    refused: BTreeMap<String, String>,
    /// Name -> file, to compare with the index.
    file_of: BTreeMap<String, String>,
}

impl Tensors {
    fn add(&mut self, tensor: Tensor, file: &str) -> Result<()> {
        let name = tensor.name().to_owned();
        if let Some(other) = self.file_of.insert(name.clone(), file.to_owned()) {
            return Err(Error::tensor(name, format!("is in {other} and again in {file}")));
        }
        self.found.insert(name, tensor);
        Ok(())
    }

    fn refuse(&mut self, name: String, reason: String) {
        self.refused.insert(name, reason);
    }

    /// Every tensor must be in the shard that the index names.
    fn check_index(&self, index: &[u8]) -> Result<()> {
        for (shard, names) in index_shards(index)? {
            for name in names {
                let found = self.file_of.get(&name).is_some_and(|file| file.ends_with(&shard));
                if !found && !self.refused.contains_key(&name) {
                    return Err(Error::tensor(
                        name,
                        format!("{INDEX} places it in {shard}, but it is not there"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Some repositories put the text model under a prefix.
    fn strip_prefixes(&mut self) -> Result<()> {
        for (name, reason) in std::mem::take(&mut self.refused) {
            self.refused.insert(plain_name(&name), reason);
        }
        for (name, tensor) in std::mem::take(&mut self.found) {
            let plain = plain_name(&name);
            if self.found.insert(plain.clone(), tensor.renamed(&plain)).is_some() {
                return Err(Error::tensor(plain, format!("is there twice: as itself and as `{name}`")));
            }
        }
        Ok(())
    }
}

/// The name of a text model's tensor without the prefix that a multimodal repository puts before it.
fn plain_name(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("model.{rest}");
    }
    name.strip_prefix("language_model.").unwrap_or(name).to_owned()
}

/// The files with weights that an index (model.safetensors.index.json) names.
///
/// # Errors
/// [`Error::Format`] when it is not an index, or names what is not a file beside it.
pub fn shard_names(index: &[u8]) -> Result<Vec<String>> {
    Ok(index_shards(index)?.into_keys().collect())
}

/// Shard -> the tensors that the index places in it.
fn index_shards(index: &[u8]) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|e| Error::format(INDEX, e.to_string()))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, shard) in index.weight_map {
        // A name, not a path: an index must not reach outside its folder.
        if shard.contains(['/', '\\']) || shard.starts_with('.') || !shard.ends_with(".safetensors") {
            return Err(Error::format(INDEX, format!("`{shard}` is not the name of a shard")));
        }
        shards.entry(shard).or_default().push(name);
    }
    Ok(shards)
}

/// A side file as JSON, if it is there.
fn json(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<Option<Value>> {
    let parse =
        |bytes: &Vec<u8>| serde_json::from_slice(bytes).map_err(|e| Error::format(name, e.to_string()));
    files.get(name).map(parse).transpose()
}

/// Rows and columns of an FP8 tile: `quantization_config.weight_block_size`, else 128 x 128.
fn scale_block(config: &Value) -> Result<[usize; 2]> {
    let at = |c: &Value| c.pointer("/quantization_config/weight_block_size").cloned();
    let Some(size) = at(config).or_else(|| config.get("text_config").and_then(at)) else {
        return Ok([128, 128]);
    };
    match serde_json::from_value::<[usize; 2]>(size.clone()) {
        Ok(block) if block.iter().all(|b| (1..=1 << 20).contains(b)) => Ok(block),
        _ => Err(Error::Config(format!("`weight_block_size` is {size}, but must be two positive numbers"))),
    }
}

/// An error when two byte ranges of a file share a byte.
fn check_overlap(file: &str, mut ranges: Vec<(u64, u64, String)>) -> Result<()> {
    ranges.sort();
    let filled = ranges.iter().filter(|(start, end, _)| start < end);
    let mut last: Option<&(u64, u64, String)> = None;
    for range in filled {
        if let Some(before) = last.filter(|b| b.1 > range.0) {
            return Err(Error::format(
                file,
                format!("the bytes of `{}` and `{}` overlap", before.2, range.2),
            ));
        }
        last = Some(range);
    }
    Ok(())
}

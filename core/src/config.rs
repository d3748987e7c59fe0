//! What a model is: one struct an architecture, read from config.json or from GGUF metadata.
//!
//! The readers check every size, so that no later code meets a head count that does not divide, an odd head or a
//! layer that is not there.

pub(crate) mod gguf;
pub(crate) mod hf;
mod rope;

use crate::graph::RopeStyle;
use crate::{Error, Result};

/// A model's architecture and sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    /// Step-3's text model.
    Step3(Step3Config),
    /// The Llama family.
    Llama(LlamaConfig),
}

impl ModelConfig {
    /// Reads the contents of a Hugging Face config.json.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, [`Error::Unsupported`] for architectures and options Tread does not run.
    pub fn from_json(json: &serde_json::Value) -> Result<Self> {
        hf::model(json)
    }

    /// Tokens a sequence may have.
    pub fn context_length(&self) -> usize {
        match self {
            Self::Step3(c) => c.context_length,
            Self::Llama(c) => c.context_length,
        }
    }
    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Step3(c) => c.vocab_size,
            Self::Llama(c) => c.vocab_size,
        }
    }
    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        match self {
            Self::Step3(c) => c.num_layers,
            Self::Llama(c) => c.num_layers,
        }
    }
    /// The architecture's name.
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Step3(_) => "step3_text",
            Self::Llama(_) => "llama",
        }
    }
}

/// Step-3 text model (arXiv 2507.19427; keys of the checkpoint's config.json in parentheses where they differ).
#[derive(Clone, Debug, PartialEq)]
pub struct Step3Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the dense FFN.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads (`num_attention_groups`).
    pub num_kv_heads: usize,
    /// Elements in a head.
    pub head_dim: usize,
    /// Rank of the query factorisation (`share_q_dim`).
    pub query_rank: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Longest sequence (`max_position_embedding`).
    pub context_length: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f32,
    /// Rotation speed of each pair, scaling applied.
    pub inv_freq: Vec<f32>,
    /// `moe_layers[n]`: layer n has experts.
    pub moe_layers: Vec<bool>,
    /// Experts in an MoE layer.
    pub num_experts: usize,
    /// Experts chosen for a token.
    pub top_k: usize,
    /// Width of an expert.
    pub moe_intermediate_size: usize,
    /// Width of the shared expert.
    pub shared_expert_size: usize,
    /// Divide the chosen experts' weights by their sum (`norm_expert_weight`).
    pub norm_expert_weight: bool,
    /// The output head is the embedding table.
    pub tie_word_embeddings: bool,
}

/// Llama-family model.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the FFN.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Elements in a head.
    pub head_dim: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Longest sequence.
    pub context_length: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f32,
    /// Rotation speed of each pair, scaling applied.
    pub inv_freq: Vec<f32>,
    /// Which elements rotate together.
    pub rope_style: RopeStyle,
    /// The output head is the embedding table.
    pub tie_word_embeddings: bool,
}

/// Largest accepted width (hidden sizes, FFN sizes), head count times head size, and the like.
const MAX_WIDTH: usize = 1 << 20;
/// Largest accepted vocabulary.
const MAX_VOCAB: usize = 1 << 24;
/// Largest accepted number of layers, heads or experts.
const MAX_COUNT: usize = 4096;
/// Largest accepted context.
const MAX_CONTEXT: usize = 1 << 28;

/// An error unless `found` is in `1..=most`.
fn check_size(key: &str, found: usize, most: usize) -> Result<usize> {
    if found == 0 || found > most {
        return Err(Error::Config(format!("`{key}` is {found}, but must be between 1 and {most}")));
    }
    Ok(found)
}

/// An error unless the heads can share KV heads and be rotated in pairs.
fn check_heads(heads: usize, kv_heads: usize, head_dim: usize) -> Result<()> {
    if !heads.is_multiple_of(kv_heads) {
        return Err(Error::Config(format!(
            "{heads} query heads cannot share {kv_heads} key/value heads evenly"
        )));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(Error::Config(format!(
            "`head_dim` is {head_dim}, but rotary embedding needs an even one"
        )));
    }
    check_size("heads * head_dim", heads * head_dim, MAX_WIDTH).map(|_| ())
}

/// An error unless `eps` can be added under a square root.
fn check_eps(eps: f64) -> Result<f32> {
    if !(0.0..1.0).contains(&eps) {
        return Err(Error::Config(format!("`rms_norm_eps` is {eps}, but must be between 0 and 1")));
    }
    Ok(eps as f32)
}

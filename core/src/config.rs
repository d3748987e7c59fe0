//! What a model is: one struct an architecture, read from config.json or GGUF metadata.

use crate::graph::RopeStyle;

/// A model's architecture and sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    /// Step-3's text model.
    Step3(Step3Config),
    /// The Llama family.
    Llama(LlamaConfig),
}

impl ModelConfig {
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

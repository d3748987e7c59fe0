//! Small models with random weights, odd in every size that may be odd.

use tread_core::config::{LlamaConfig, ModelConfig, Step3Config};
use tread_core::graph::{Graph, RopeStyle};
use tread_core::models;
use tread_core::tensor::{DType, Tensor};

use crate::ops::inv_freq;
use crate::random::{random_weights, rng};

/// Token ids of these models.
pub const VOCAB: usize = 97;

/// A Step-3 with a layer for each of `moe_layers`, which says whether it has experts: seven in FP8, of which three are
/// chosen.
pub fn step3(moe_layers: &[bool]) -> (Graph, Vec<Tensor>) {
    let graph = models::graph(&ModelConfig::Step3(step3_config(moe_layers)));
    let weights = random_weights(&mut rng(1), &graph, |name| match name {
        _ if name.contains("moe.") && !name.contains("moe.gate.") => DType::F8E4M3,
        _ if name.contains("embed") => DType::F32,
        _ => DType::BF16,
    });
    (graph, weights)
}

/// The same with FFNs of three FP8 tiles in every direction, the last ones ragged, and in the format `ffn`.
pub fn step3_of_tiles(moe_layers: &[bool], ffn: DType) -> (Graph, Vec<Tensor>) {
    let graph = models::graph(&ModelConfig::Step3(Step3Config {
        hidden_size: 288,
        intermediate_size: 300,
        moe_intermediate_size: 264,
        shared_expert_size: 301,
        ..step3_config(moe_layers)
    }));
    let weights = random_weights(&mut rng(3), &graph, |name| match name {
        _ if name.contains("self_attn") || name.contains("moe.gate.") || name.contains("head") => DType::BF16,
        _ if name.contains("embed") => DType::F32,
        _ => ffn,
    });
    (graph, weights)
}

fn step3_config(moe_layers: &[bool]) -> Step3Config {
    Step3Config {
        hidden_size: 160,
        intermediate_size: 208,
        num_layers: moe_layers.len(),
        num_heads: 6,
        num_kv_heads: 1,
        head_dim: 32,
        query_rank: 48,
        vocab_size: VOCAB,
        context_length: 512,
        rms_norm_eps: 1e-5,
        inv_freq: inv_freq(32),
        moe_layers: moe_layers.to_vec(),
        num_experts: 7,
        top_k: 3,
        moe_intermediate_size: 72,
        shared_expert_size: 80,
        norm_expert_weight: true,
        tie_word_embeddings: false,
    }
}

/// A Llama of so many layers in Q4_K and Q6_K.
pub fn llama(layers: usize) -> (Graph, Vec<Tensor>) {
    llama_of(layers, 512, [DType::Q4K, DType::Q6K])
}

/// A Llama of so many layers and FFNs of such a width, in two formats: the second for embedding, values and the last product
/// of FFNs.
pub fn llama_of(layers: usize, intermediate_size: usize, dtypes: [DType; 2]) -> (Graph, Vec<Tensor>) {
    let config = LlamaConfig {
        hidden_size: 256,
        intermediate_size,
        num_layers: layers,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 64,
        vocab_size: VOCAB,
        context_length: 512,
        rms_norm_eps: 1e-5,
        inv_freq: inv_freq(64),
        rope_style: RopeStyle::Interleaved,
        tie_word_embeddings: true,
    };
    let graph = models::graph(&ModelConfig::Llama(config));
    let weights = random_weights(&mut rng(2), &graph, |name| match name {
        _ if name.contains("v_proj") || name.contains("down") || name.contains("embed") => dtypes[1],
        _ => dtypes[0],
    });
    (graph, weights)
}

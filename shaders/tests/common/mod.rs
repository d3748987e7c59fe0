//! Small graphs with weights of zeros: enough to compile, not to compute.

use std::sync::Arc;

use tread_core::config::{LlamaConfig, ModelConfig, Step3Config};
use tread_core::graph::{Graph, RopeStyle};
use tread_core::models;
use tread_core::tensor::{BlockScales, Bytes, DType, Tensor};

/// Zeroed weights of the graph's shapes; norms stay F32.
pub(crate) fn weights(graph: &Graph, dtype: DType) -> Vec<Tensor> {
    graph
        .weights
        .iter()
        .map(|decl| {
            let dtype = if decl.shape.len() == 1 { DType::F32 } else { dtype };
            let elements: usize = decl.shape.iter().product();
            let bytes = elements / dtype.block_len() * dtype.block_bytes();
            let source = Arc::new(Bytes::new("zeros", vec![0; bytes]));
            let tensor = Tensor::new(&decl.name, dtype, decl.shape.clone(), source, 0).unwrap();
            if dtype != DType::F8E4M3 {
                return tensor;
            }
            let (rows, cols) = (decl.shape[decl.shape.len() - 2], decl.shape[decl.shape.len() - 1]);
            let tiles = tensor.matrices() * rows.div_ceil(128) * cols.div_ceil(128);
            let values = vec![1.0; tiles].into();
            tensor.with_scales(BlockScales { block: [128, 128], values }).unwrap()
        })
        .collect()
}

pub(crate) fn step3() -> Graph {
    models::graph(&ModelConfig::Step3(Step3Config {
        hidden_size: 256,
        intermediate_size: 512,
        num_layers: 2,
        num_heads: 8,
        num_kv_heads: 1,
        head_dim: 64,
        query_rank: 256,
        vocab_size: 512,
        context_length: 1024,
        rms_norm_eps: 1e-5,
        inv_freq: vec![1.0; 32],
        moe_layers: vec![false, true],
        num_experts: 4,
        top_k: 3,
        moe_intermediate_size: 256,
        shared_expert_size: 256,
        norm_expert_weight: true,
        tie_word_embeddings: false,
    }))
}

pub(crate) fn llama() -> Graph {
    models::graph(&ModelConfig::Llama(LlamaConfig {
        hidden_size: 256,
        intermediate_size: 512,
        num_layers: 1,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 64,
        vocab_size: 512,
        context_length: 1024,
        rms_norm_eps: 1e-5,
        inv_freq: vec![1.0; 32],
        rope_style: RopeStyle::Interleaved,
        tie_word_embeddings: true,
    }))
}

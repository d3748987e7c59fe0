//! Llama-family configuration from GGUF metadata (GGUF specification, section "LLM").

use super::{
    LlamaConfig, MAX_CONTEXT, MAX_COUNT, MAX_VOCAB, MAX_WIDTH, ModelConfig, check_eps, check_heads,
    check_size, rope,
};
use crate::checkpoint::gguf::Metadata;
use crate::graph::RopeStyle;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Reads `llama.*`; `rope_factors` are the divisors of rotation speeds that llama 3 files carry as a tensor, `tied`
/// says that the file has no output matrix of its own.
pub(crate) fn model(
    meta: &Metadata,
    vocab_size: usize,
    rope_factors: Option<&Tensor>,
    tied: bool,
) -> Result<ModelConfig> {
    let architecture = meta.string("general.architecture")?.unwrap_or_default();
    if architecture != "llama" {
        return Err(Error::Unsupported(format!(
            "GGUF architecture `{architecture}`; Tread runs `llama` from GGUF, and step3 from safetensors"
        )));
    }
    let optional =
        |key: &str, most: usize| meta.size(key)?.map(|found| check_size(key, found, most)).transpose();
    let size = |key: &str, most: usize| {
        optional(key, most)?
            .ok_or_else(|| Error::Config(format!("`{key}` is missing from the GGUF metadata")))
    };
    let hidden_size = size("llama.embedding_length", MAX_WIDTH)?;
    let num_heads = size("llama.attention.head_count", MAX_COUNT)?;
    let num_kv_heads = optional("llama.attention.head_count_kv", MAX_COUNT)?.unwrap_or(num_heads);
    let key_length = optional("llama.attention.key_length", MAX_COUNT)?;
    let head_dim = check_size("head_dim", key_length.unwrap_or(hidden_size / num_heads), MAX_COUNT)?;
    check_heads(num_heads, num_kv_heads, head_dim)?;
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(found) = optional(key, MAX_COUNT)?.filter(|&n| n != head_dim) {
            return Err(Error::Unsupported(format!("`{key}` is {found} with heads of {head_dim}")));
        }
    }
    if meta.size("llama.expert_count")?.is_some_and(|n| n > 0) {
        return Err(Error::Unsupported("llama GGUF files with experts".to_owned()));
    }
    let mut speeds = rope::speeds(head_dim, meta.number("llama.rope.freq_base")?.unwrap_or(10_000.0))?;
    match meta.string("llama.rope.scaling.type")? {
        None | Some("none") => {}
        Some("linear") => {
            let factor = meta.number("llama.rope.scaling.factor")?.unwrap_or(1.0);
            speeds.iter_mut().for_each(|speed| *speed /= factor);
        }
        Some(kind) => {
            return Err(Error::Unsupported(format!("`llama.rope.scaling.type` {kind}; Tread knows linear")));
        }
    }
    if let Some(factors) = rope_factors {
        let values = factors.to_f32()?;
        if values.len() != speeds.len() || values.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            let message =
                format!("expected {} positive factors, found {} values", speeds.len(), values.len());
            return Err(Error::tensor(factors.name(), message));
        }
        speeds.iter_mut().zip(values).for_each(|(speed, factor)| *speed /= f64::from(factor));
    }
    Ok(ModelConfig::Llama(LlamaConfig {
        hidden_size,
        intermediate_size: size("llama.feed_forward_length", MAX_WIDTH)?,
        num_layers: size("llama.block_count", MAX_COUNT)?,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: check_size("vocabulary", vocab_size, MAX_VOCAB)?,
        context_length: size("llama.context_length", MAX_CONTEXT)?,
        rms_norm_eps: check_eps(meta.number("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5))?,
        inv_freq: rope::scale(speeds, None)?,
        // The converter permutes the rows of q and k so that pairs are neighbours.
        rope_style: RopeStyle::Interleaved,
        tie_word_embeddings: tied,
    }))
}

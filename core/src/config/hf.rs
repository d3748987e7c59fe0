//! Hugging Face config.json: `step3_vl` (its text model), `step3_text`, and the Llama family.

use serde_json::Value;

use super::{
    LlamaConfig, MAX_CONTEXT, MAX_COUNT, MAX_VOCAB, MAX_WIDTH, ModelConfig, Step3Config, check_eps,
    check_heads, check_size, rope,
};
use crate::graph::RopeStyle;
use crate::{Error, Result};

pub(super) fn model(json: &Value) -> Result<ModelConfig> {
    let kind = json.get("model_type").and_then(Value::as_str).ok_or_else(|| missing("model_type"))?;
    match kind {
        "step3_vl" => {
            let text = json.get("text_config").ok_or_else(|| missing("text_config"))?;
            step3(text).map(ModelConfig::Step3)
        }
        "step3_text" => step3(json).map(ModelConfig::Step3),
        "llama" => llama(json).map(ModelConfig::Llama),
        // The same mathematics as Llama when it attends to everything, but its class has a window by default.
        "mistral" if json.get("sliding_window").is_some_and(Value::is_null) => {
            llama(json).map(ModelConfig::Llama)
        }
        "mistral" => Err(Error::Unsupported(
            "mistral with a `sliding_window` (4096 where config.json has none); Tread attends to the whole context, \
             as versions whose `sliding_window` is null do"
                .to_owned(),
        )),
        _ => Err(Error::Unsupported(format!(
            "model_type `{kind}`; Tread runs step3_vl, step3_text, llama and mistral"
        ))),
    }
}

fn missing(key: &str) -> Error {
    Error::Config(format!("`{key}` is missing from config.json"))
}

/// The first of `keys` that is there and not null, as an integer.
fn integer(json: &Value, keys: &[&str]) -> Result<Option<usize>> {
    for key in keys {
        match json.get(*key) {
            None | Some(Value::Null) => {}
            Some(value) => {
                let found = value.as_u64().and_then(|n| usize::try_from(n).ok());
                return found.map(Some).ok_or_else(|| {
                    Error::Config(format!("`{key}` is {value}, but must be a whole number of at least 0"))
                });
            }
        }
    }
    Ok(None)
}

fn size(json: &Value, key: &str, most: usize) -> Result<usize> {
    check_size(key, integer(json, &[key])?.ok_or_else(|| missing(key))?, most)
}

fn number(json: &Value, key: &str, default: f64) -> Result<f64> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => {
            value.as_f64().ok_or_else(|| Error::Config(format!("`{key}` is {value}, but must be a number")))
        }
    }
}

fn flag(json: &Value, key: &str) -> Result<bool> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| Error::Config(format!("`{key}` is {value}, but must be true or false"))),
    }
}

/// An object; none when it is missing or null.
fn object<'a>(json: &'a Value, key: &str) -> Result<Option<&'a Value>> {
    match json.get(key).filter(|value| !value.is_null()) {
        Some(value) if !value.is_object() => {
            Err(Error::Config(format!("`{key}` is {value}, but must be an object")))
        }
        value => Ok(value),
    }
}

/// The longest sequence; `default` is what the model's class takes where config.json does not say.
fn context_length(json: &Value, default: usize) -> Result<usize> {
    let keys = ["max_position_embedding", "max_position_embeddings", "max_seq_len"];
    check_size(keys[1], integer(json, &keys)?.unwrap_or(default), MAX_CONTEXT)
}

/// Rotation speeds; newer configs keep theta and scaling together in `rope_parameters`.
fn inv_freq(json: &Value, head_dim: usize, default_theta: f64) -> Result<Vec<f32>> {
    let parameters = object(json, "rope_parameters")?;
    let theta = number(json, "rope_theta", default_theta)?;
    let theta = parameters.map_or(Ok(theta), |p| number(p, "rope_theta", theta))?;
    let scaling = parameters.map_or_else(|| object(json, "rope_scaling"), |p| Ok(Some(p)))?;
    rope::scale(rope::speeds(head_dim, theta)?, scaling)
}

fn step3(json: &Value) -> Result<Step3Config> {
    let num_layers = size(json, "num_hidden_layers", MAX_COUNT)?;
    let num_heads = size(json, "num_attention_heads", MAX_COUNT)?;
    let kv_heads = integer(json, &["num_attention_groups"])?.unwrap_or(1);
    let num_kv_heads = check_size("num_attention_groups", kv_heads, MAX_COUNT)?;
    let head_dim = size(json, "head_dim", MAX_COUNT)?;
    check_heads(num_heads, num_kv_heads, head_dim)?;
    let moe_layers = moe_layers(json, num_layers)?;
    let [has_dense, has_experts] = [false, true].map(|kind| moe_layers.contains(&kind));
    // A model may leave out the sizes of a kind of layer that it does not have.
    let size_if = |used: bool, key: &str, most: usize| if used { size(json, key, most) } else { Ok(1) };
    let expert_size = |key: &str, most: usize| size_if(has_experts, key, most);
    let num_experts = expert_size("moe_num_experts", MAX_COUNT)?;
    let top_k = expert_size("moe_top_k", MAX_COUNT)?;
    if top_k > num_experts {
        return Err(Error::Config(format!(
            "`moe_top_k` is {top_k}, but there are only {num_experts} experts"
        )));
    }
    Ok(Step3Config {
        hidden_size: size(json, "hidden_size", MAX_WIDTH)?,
        intermediate_size: size_if(has_dense, "intermediate_size", MAX_WIDTH)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        query_rank: size(json, "share_q_dim", MAX_WIDTH)?,
        vocab_size: size(json, "vocab_size", MAX_VOCAB)?,
        context_length: context_length(json, 65_536)?,
        // The published config.json leaves it out; 1e-5 is the default of its class.
        rms_norm_eps: check_eps(number(json, "rms_norm_eps", 1e-5)?)?,
        inv_freq: inv_freq(json, head_dim, 500_000.0)?,
        moe_layers,
        num_experts,
        top_k,
        moe_intermediate_size: expert_size("moe_intermediate_size", MAX_WIDTH)?,
        shared_expert_size: expert_size("share_expert_dim", MAX_WIDTH)?,
        norm_expert_weight: flag(json, "norm_expert_weight")?,
        tie_word_embeddings: flag(json, "tie_word_embeddings")?,
    })
}

/// `moe_layers_enum` is a comma-separated string in the published config and a list elsewhere; without it, all
/// layers but the first have experts.
fn moe_layers(json: &Value, num_layers: usize) -> Result<Vec<bool>> {
    let wrong = |what: &str| {
        Error::Config(format!("`moe_layers_enum` names {what}, but there are {num_layers} layers"))
    };
    let listed: Vec<usize> = match json.get("moe_layers_enum") {
        None | Some(Value::Null) => (1..num_layers).collect(),
        Some(Value::String(text)) => text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().map_err(|_| wrong(&format!("`{part}`"))))
            .collect::<Result<_>>()?,
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| wrong(&item.to_string()))
            })
            .collect::<Result<_>>()?,
        Some(other) => return Err(wrong(&other.to_string())),
    };
    let mut layers = vec![false; num_layers];
    for layer in listed {
        *layers.get_mut(layer).ok_or_else(|| wrong(&format!("layer {layer}")))? = true;
    }
    Ok(layers)
}

fn llama(json: &Value) -> Result<LlamaConfig> {
    for key in ["attention_bias", "mlp_bias"] {
        if flag(json, key)? {
            return Err(Error::Unsupported(format!("`{key}`: Tread runs Llama models without biases")));
        }
    }
    if let Some(act) = json.get("hidden_act").filter(|act| act.as_str() != Some("silu")) {
        return Err(Error::Unsupported(format!("`hidden_act` {act}; Tread runs Llama models with \"silu\"")));
    }
    let hidden_size = size(json, "hidden_size", MAX_WIDTH)?;
    let num_heads = size(json, "num_attention_heads", MAX_COUNT)?;
    let kv_heads = integer(json, &["num_key_value_heads"])?.unwrap_or(num_heads);
    let num_kv_heads = check_size("num_key_value_heads", kv_heads, MAX_COUNT)?;
    let head_dim = integer(json, &["head_dim"])?.unwrap_or(hidden_size / num_heads);
    let head_dim = check_size("head_dim", head_dim, MAX_COUNT)?;
    check_heads(num_heads, num_kv_heads, head_dim)?;
    Ok(LlamaConfig {
        hidden_size,
        intermediate_size: size(json, "intermediate_size", MAX_WIDTH)?,
        num_layers: size(json, "num_hidden_layers", MAX_COUNT)?,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: size(json, "vocab_size", MAX_VOCAB)?,
        context_length: context_length(json, 2048)?,
        rms_norm_eps: check_eps(number(json, "rms_norm_eps", 1e-6)?)?,
        inv_freq: inv_freq(json, head_dim, 10_000.0)?,
        rope_style: RopeStyle::Half,
        tie_word_embeddings: flag(json, "tie_word_embeddings")?,
    })
}

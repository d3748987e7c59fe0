//! Sizes from a config.json: the keys under which the models of these years keep them.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::shape::{Attention, Ffn, Layer, Shape};

/// Keys that mean the same, in the order they are looked for.
const KV_HEADS: &[&str] = &["num_key_value_heads", "num_attention_groups"];
const EXPERTS: &[&str] = &["n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"];
const TOP_K: &[&str] = &["num_experts_per_tok", "moe_top_k", "moe_k"];
const SHARED_WIDTH: &[&str] =
    &["share_expert_dim", "shared_expert_intermediate_size", "shared_intermediate_size"];
const SHARED_EXPERTS: &[&str] = &["n_shared_experts", "moe_num_shared_experts"];

pub(super) fn shape(name: &str, json: &Value) -> Result<Shape> {
    let keys = Keys(json.get("text_config").unwrap_or(json));
    let layers = keys.need(&["num_hidden_layers"])?;
    if layers > 4096 {
        bail!("`num_hidden_layers` is {layers}, but must be at most 4096");
    }
    let layers: Result<_> = (0..layers)
        .map(|layer| Ok(Layer { attention: keys.attention(layer)?, ffn: keys.ffn(layer)? }))
        .collect();
    let shape = Shape {
        name: name.to_owned(),
        hidden: keys.need(&["hidden_size"])?,
        vocabulary: keys.need(&["vocab_size"])?,
        layers: layers?,
    };
    shape.check()
}

struct Keys<'a>(&'a Value);

impl Keys<'_> {
    fn number(&self, names: &[&str]) -> Result<Option<usize>> {
        for name in names {
            match self.0.get(*name) {
                None | Some(Value::Null) => {}
                Some(value) => {
                    let number =
                        value.as_u64().with_context(|| format!("`{name}` is not a number: {value}"))?;
                    return Ok(Some(usize::try_from(number)?));
                }
            }
        }
        Ok(None)
    }

    fn need(&self, names: &[&str]) -> Result<usize> {
        self.number(names)?.with_context(|| format!("the config has no `{}`", names.join("` or `")))
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.0.get(name).and_then(Value::as_bool)
    }

    fn list(&self, name: &str) -> Option<&Vec<Value>> {
        self.0.get(name).and_then(Value::as_array)
    }

    fn attention(&self, layer: usize) -> Result<Attention> {
        let heads = self.need(&["num_attention_heads"])?;
        if let Some(kv_rank) = self.number(&["kv_lora_rank"])? {
            return Ok(Attention::Latent {
                heads,
                query_rank: self.number(&["q_lora_rank"])?,
                kv_rank,
                rope_dim: self.need(&["qk_rope_head_dim"])?,
                nope_dim: self.need(&["qk_nope_head_dim"])?,
                value_dim: self.need(&["v_head_dim"])?,
            });
        }
        let head_dim = match self.number(&["head_dim"])? {
            Some(head_dim) => head_dim,
            None => self.need(&["hidden_size"])? / heads.max(1),
        };
        let kind = self.list("layer_types").and_then(|kinds| kinds.get(layer)).and_then(Value::as_str);
        // MiniMax: 0 lightning, 1 softmax.
        let linear = self.list("attn_type_list").and_then(|kinds| kinds.get(layer)).and_then(Value::as_u64);
        if linear == Some(0) || kind == Some("linear_attention") {
            return Ok(Attention::Linear { heads, head_dim });
        }
        Ok(Attention::Grouped {
            heads,
            kv_heads: self.number(KV_HEADS)?.unwrap_or(heads),
            head_dim,
            query_rank: self.number(&["share_q_dim"])?,
            window: self.window(layer, kind)?,
        })
    }

    /// The tokens that a layer looks back on, if it does not look at all.
    fn window(&self, layer: usize, kind: Option<&str>) -> Result<Option<usize>> {
        if let Some(kind) = kind {
            return match kind {
                "full_attention" => Ok(None),
                "sliding_attention" => self.need(&["sliding_window"]).map(Some),
                "chunked_attention" => self.need(&["attention_chunk_size"]).map(Some),
                other => bail!("layer {layer} has attention of kind `{other}`, which is not known here"),
            };
        }
        if let Some(chunk) = self.number(&["attention_chunk_size"])? {
            // Llama 4: the layers without rotary embedding look at everything.
            let interval = self.number(&["no_rope_layer_interval"])?.unwrap_or(4);
            return Ok(if interval != 0 && (layer + 1).is_multiple_of(interval) {
                None
            } else {
                Some(chunk)
            });
        }
        match self.flag("use_sliding_window") {
            Some(false) => Ok(None),
            _ => self.number(&["sliding_window"]),
        }
    }

    fn ffn(&self, layer: usize) -> Result<Ffn> {
        let dense = || -> Result<Ffn> {
            Ok(Ffn::Dense { width: self.need(&["intermediate_size_mlp", "intermediate_size"])? })
        };
        let Some(experts) = self.number(EXPERTS)? else { return dense() };
        if !self.has_experts(layer)? {
            return dense();
        }
        let width = self.need(&["moe_intermediate_size", "intermediate_size"])?;
        let shared_width = match (self.number(SHARED_WIDTH)?, self.number(SHARED_EXPERTS)?) {
            (Some(width), _) => width,
            (None, Some(number)) => number * width,
            // Llama 4 has one, and no key for it.
            (None, None) if self.0.get("interleave_moe_layer_step").is_some() => width,
            (None, None) => 0,
        };
        Ok(Ffn::Experts { experts, top_k: self.need(TOP_K)?, width, shared_width })
    }

    fn has_experts(&self, layer: usize) -> Result<bool> {
        // Step-3: a list, or one in a string.
        if let Some(list) = self.0.get("moe_layers_enum") {
            let text = list.as_str().map_or_else(|| list.to_string(), str::to_owned);
            let mut numbers = text.trim_matches(['[', ']']).split(',').map(str::trim);
            return Ok(numbers.any(|number| number.parse() == Ok(layer)));
        }
        if self.list("mlp_only_layers").is_some_and(|l| l.contains(&Value::from(layer))) {
            return Ok(false);
        }
        let start = self.number(&["first_k_dense_replace", "moe_layer_start_index"])?.unwrap_or(0);
        let end = self.number(&["moe_layer_end_index"])?.unwrap_or(usize::MAX);
        let every = self
            .number(&[
                "moe_layer_freq",
                "moe_layer_interval",
                "decoder_sparse_step",
                "interleave_moe_layer_step",
            ])?
            .unwrap_or(1);
        // DeepSeek counts from 0, the others from 1; both agree where every layer from `start` on has experts.
        let counted = if self.0.get("moe_layer_freq").is_some() { layer } else { layer + 1 };
        Ok((start..=end).contains(&layer) && every != 0 && counted.is_multiple_of(every))
    }
}

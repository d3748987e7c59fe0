//! Step-3's text model (arXiv 2507.19427, section 3): multi-matrix factorization attention with one key/value
//! head and a low-rank query, dense layers at both ends, experts plus a shared expert between.

use crate::config::Step3Config;
use crate::graph::{Builder, Graph, Heads, RopeStyle, Side, ValueId};

use super::dense;

pub(super) fn graph(c: &Step3Config) -> Graph {
    let mut b = Builder::new(c.inv_freq.clone(), c.vocab_size);
    let embed = b.weight("model.embed_tokens.weight", &[c.vocab_size, c.hidden_size]);
    let mut x = b.embed(embed);
    b.hidden(x);
    for layer in 0..c.num_layers {
        b.layer(Some(layer));
        x = attention(&mut b, c, layer, x);
        x = ffn(&mut b, c, layer, x);
        b.hidden(x);
    }
    b.layer(None);
    let x = b.gather_rows(x);
    let norm = b.weight("model.norm.weight", &[c.hidden_size]);
    let x = b.rms_norm(x, norm, c.rms_norm_eps, "norm");
    b.features(x);
    let head = if c.tie_word_embeddings {
        embed
    } else {
        b.weight("lm_head.weight", &[c.vocab_size, c.hidden_size])
    };
    let logits = b.linear(x, head, "logits");
    b.finish(logits)
}

fn attention(b: &mut Builder, c: &Step3Config, layer: usize, x: ValueId) -> ValueId {
    let heads = Heads { heads: c.num_heads, kv_heads: c.num_kv_heads, head_dim: c.head_dim };
    let (q_width, kv_width) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
    let name = |suffix: &str| format!("model.layers.{layer}.{suffix}.weight");
    let input_norm = b.weight(name("input_layernorm"), &[c.hidden_size]);
    let q_down = b.weight(name("self_attn.q_proj"), &[c.query_rank, c.hidden_size]);
    let k_proj = b.weight(name("self_attn.k_proj"), &[kv_width, c.hidden_size]);
    let v_proj = b.weight(name("self_attn.v_proj"), &[kv_width, c.hidden_size]);
    let inter_norm = b.weight(name("self_attn.inter_norm"), &[c.query_rank]);
    let q_up = b.weight(name("self_attn.wq"), &[q_width, c.query_rank]);
    let o_proj = b.weight(name("self_attn.o_proj"), &[c.hidden_size, q_width]);

    let h = b.rms_norm(x, input_norm, c.rms_norm_eps, "attn.norm");
    let latent = b.linear(h, q_down, "attn.q_latent");
    let k = b.linear(h, k_proj, "attn.k");
    let v = b.linear(h, v_proj, "attn.v");
    let latent = b.rms_norm(latent, inter_norm, c.rms_norm_eps, "attn.q_norm");
    let q = b.linear(latent, q_up, "attn.q");
    let q = b.rope(q, c.head_dim, RopeStyle::Half, "attn.q_rope");
    let k = b.rope(k, c.head_dim, RopeStyle::Half, "attn.k_rope");
    let o = b.attention(q, k, v, heads, (c.head_dim as f32).powf(-0.5));
    let o = b.linear(o, o_proj, "attn.o");
    b.add(x, o, "attn.out")
}

fn ffn(b: &mut Builder, c: &Step3Config, layer: usize, x: ValueId) -> ValueId {
    let name = |suffix: &str| format!("model.layers.{layer}.{suffix}.weight");
    let norm = b.weight(name("post_attention_layernorm"), &[c.hidden_size]);
    let h = b.rms_norm(x, norm, c.rms_norm_eps, "ffn.norm");
    let y = if c.moe_layers[layer] {
        let router = b.weight(name("moe.gate"), &[c.num_experts, c.hidden_size]);
        let expert = [c.num_experts, c.moe_intermediate_size, c.hidden_size];
        let gate = b.weight(name("moe.gate_proj"), &expert);
        let up = b.weight(name("moe.up_proj"), &expert);
        let down = b.weight(name("moe.down_proj"), &[expert[0], expert[2], expert[1]]);
        let logits = b.linear(h, router, "ffn.router");
        let routing = b.router_top_k(logits, c.top_k, c.norm_expert_weight);
        b.side(Side::Ffn);
        let slots = b.experts(h, routing, [gate, up, down]);
        let shared = dense(b, h, c.shared_expert_size, |part| name(&format!("share_expert.{part}_proj")));
        let experts = b.combine(slots, routing);
        b.add(experts, shared, "ffn.sum")
    } else {
        b.side(Side::Ffn);
        dense(b, h, c.intermediate_size, |part| name(&format!("mlp.{part}_proj")))
    };
    b.side(Side::Attention);
    b.add(x, y, "ffn.out")
}

//! The Llama family: grouped-query attention, RoPE, SwiGLU, tied or untied embeddings.

use crate::config::LlamaConfig;
use crate::graph::{Builder, Graph, Heads, Side};

use super::dense;

pub(super) fn graph(c: &LlamaConfig) -> Graph {
    let heads = Heads { heads: c.num_heads, kv_heads: c.num_kv_heads, head_dim: c.head_dim };
    let (q_width, kv_width) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
    let mut b = Builder::new(c.inv_freq.clone(), c.vocab_size);
    let embed = b.weight("model.embed_tokens.weight", &[c.vocab_size, c.hidden_size]);
    let mut x = b.embed(embed);
    b.hidden(x);
    for layer in 0..c.num_layers {
        b.layer(Some(layer));
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}.weight");
        let norm = b.weight(name("input_layernorm"), &[c.hidden_size]);
        let q_proj = b.weight(name("self_attn.q_proj"), &[q_width, c.hidden_size]);
        let k_proj = b.weight(name("self_attn.k_proj"), &[kv_width, c.hidden_size]);
        let v_proj = b.weight(name("self_attn.v_proj"), &[kv_width, c.hidden_size]);
        let o_proj = b.weight(name("self_attn.o_proj"), &[c.hidden_size, q_width]);
        let h = b.rms_norm(x, norm, c.rms_norm_eps, "attn.norm");
        let q = b.linear(h, q_proj, "attn.q");
        let k = b.linear(h, k_proj, "attn.k");
        let v = b.linear(h, v_proj, "attn.v");
        let q = b.rope(q, c.head_dim, c.rope_style, "attn.q_rope");
        let k = b.rope(k, c.head_dim, c.rope_style, "attn.k_rope");
        let o = b.attention(q, k, v, heads, (c.head_dim as f32).powf(-0.5));
        let o = b.linear(o, o_proj, "attn.o");
        x = b.add(x, o, "attn.out");

        let norm = b.weight(name("post_attention_layernorm"), &[c.hidden_size]);
        let h = b.rms_norm(x, norm, c.rms_norm_eps, "ffn.norm");
        b.side(Side::Ffn);
        let y = dense(&mut b, h, c.intermediate_size, |part| name(&format!("mlp.{part}_proj")));
        b.side(Side::Attention);
        x = b.add(x, y, "ffn.out");
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

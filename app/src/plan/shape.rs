//! A model as its sizes: what work and memory are counted from.

use super::config;
use anyhow::{Result, bail};
use serde_json::Value;
use tread_core::config::{LlamaConfig, ModelConfig, Step3Config};

/// The sizes of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) hidden: usize,
    pub(crate) vocabulary: usize,
    pub(crate) layers: Vec<Layer>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Layer {
    pub(crate) attention: Attention,
    pub(crate) ffn: Ffn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attention {
    /// Heads in groups that share keys and values, over all tokens or the last `window`.
    /// With a query rank it is MFA: hidden -> rank -> heads.
    Grouped {
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        query_rank: Option<usize>,
        window: Option<usize>,
    },
    /// MLA, computed on the latent vectors themselves ("absorbed").
    Latent {
        heads: usize,
        query_rank: Option<usize>,
        kv_rank: usize,
        rope_dim: usize,
        nope_dim: usize,
        value_dim: usize,
    },
    /// Lightning attention: a matrix a head instead of a cache, with an output gate.
    Linear { heads: usize, head_dim: usize },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ffn {
    Dense { width: usize },
    Experts { experts: usize, top_k: usize, width: usize, shared_width: usize },
}

impl Shape {
    /// Reads the contents of a config.json.
    pub(crate) fn from_json(name: &str, json: &Value) -> Result<Self> {
        config::shape(name, json)
    }

    /// Of a model that Tread runs.
    pub(crate) fn of_config(name: &str, config: &ModelConfig) -> Self {
        match config {
            ModelConfig::Step3(config) => step3(name, config),
            ModelConfig::Llama(config) => llama(name, config),
        }
    }

    /// An error where a size is one that no decoder has: counts would overflow or divide by zero.
    pub(crate) fn check(self) -> Result<Self> {
        const MOST: usize = 1 << 24;
        let sizes = self.layers.iter().flat_map(|layer| layer.sizes());
        let sizes = sizes.chain([self.hidden, self.vocabulary, self.layers.len()]);
        for size in sizes {
            if size == 0 || size > MOST {
                bail!("a size in the config of {} is {size}, but must be between 1 and {MOST}", self.name);
            }
        }
        for layer in &self.layers {
            if let Ffn::Experts { experts, top_k, .. } = layer.ffn
                && top_k > experts
            {
                bail!("the config of {} chooses {top_k} of {experts} experts", self.name);
            }
        }
        Ok(self)
    }

    /// Some layers look at all tokens and others do not.
    pub(crate) fn is_hybrid(&self) -> bool {
        let full = |layer: &&Layer| layer.attention.is_full();
        let number = self.layers.iter().filter(full).count();
        number != 0 && number != self.layers.len()
    }

    /// The MoE layers' sparsity: (chosen + shared) / (all + shared), the shared expert counted in experts' widths.
    pub(crate) fn sparsity(&self) -> Option<f64> {
        self.layers.iter().find_map(|layer| match layer.ffn {
            Ffn::Dense { .. } => None,
            Ffn::Experts { experts, top_k, width, shared_width } => {
                let shared = shared_width as f64 / width as f64;
                Some((top_k as f64 + shared) / (experts as f64 + shared))
            }
        })
    }
}

impl Layer {
    fn sizes(&self) -> Vec<usize> {
        let mut sizes = match self.attention {
            Attention::Grouped { heads, kv_heads, head_dim, query_rank, window } => {
                vec![heads, kv_heads, head_dim, query_rank.unwrap_or(1), window.unwrap_or(1)]
            }
            Attention::Latent { heads, query_rank, kv_rank, rope_dim, nope_dim, value_dim } => {
                vec![heads, query_rank.unwrap_or(1), kv_rank, rope_dim, nope_dim, value_dim]
            }
            Attention::Linear { heads, head_dim } => vec![heads, head_dim],
        };
        sizes.extend(match self.ffn {
            Ffn::Dense { width } => vec![width],
            Ffn::Experts { experts, top_k, width, shared_width } => {
                vec![experts, top_k, width, shared_width.max(1)]
            }
        });
        sizes
    }
}

impl Attention {
    /// It looks at all tokens, however many there are.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Grouped { window, .. } => window.is_none(),
            Self::Latent { .. } => true,
            Self::Linear { .. } => false,
        }
    }

    /// What it is called.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Grouped { query_rank: Some(_), .. } => "MFA",
            Self::Grouped { window: Some(_), .. } => "local",
            Self::Grouped { heads, kv_heads, .. } if heads == kv_heads => "MHA",
            Self::Grouped { .. } => "GQA",
            Self::Latent { .. } => "MLA",
            Self::Linear { .. } => "linear",
        }
    }
}

fn step3(name: &str, c: &Step3Config) -> Shape {
    let attention = Attention::Grouped {
        heads: c.num_heads,
        kv_heads: c.num_kv_heads,
        head_dim: c.head_dim,
        query_rank: Some(c.query_rank),
        window: None,
    };
    let experts = Ffn::Experts {
        experts: c.num_experts,
        top_k: c.top_k,
        width: c.moe_intermediate_size,
        shared_width: c.shared_expert_size,
    };
    let dense = Ffn::Dense { width: c.intermediate_size };
    let layers = c.moe_layers.iter().map(|&moe| Layer { attention, ffn: if moe { experts } else { dense } });
    Shape { name: name.to_owned(), hidden: c.hidden_size, vocabulary: c.vocab_size, layers: layers.collect() }
}

fn llama(name: &str, c: &LlamaConfig) -> Shape {
    let attention = Attention::Grouped {
        heads: c.num_heads,
        kv_heads: c.num_kv_heads,
        head_dim: c.head_dim,
        query_rank: None,
        window: None,
    };
    let layer = Layer { attention, ffn: Ffn::Dense { width: c.intermediate_size } };
    let layers = vec![layer; c.num_layers];
    Shape { name: name.to_owned(), hidden: c.hidden_size, vocabulary: c.vocab_size, layers }
}

//! What one decoded token costs in operations and bytes (the paper's section 3, Tables 2 and 3).

use serde::Serialize;

use super::shape::{Attention, Ffn, Layer, Shape};

/// How values are kept and computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Precision {
    /// Bytes of a cached element: 1 (FP8, or INT8) or 2 (BF16). With 2, attention computes in BF16 too.
    pub(crate) kv_bytes: f64,
    /// The same for the layers of hybrid models that look at all tokens.
    pub(crate) hybrid_kv_bytes: f64,
}

impl Default for Precision {
    /// What the paper's tables were made with; see docs/planning.md for the hybrids.
    fn default() -> Self {
        Self { kv_bytes: 1.0, hybrid_kv_bytes: 2.0 }
    }
}

/// Bytes of a weight: FP8, or INT8 where there is no FP8.
pub(crate) const WEIGHT_BYTES: f64 = 1.0;
/// A linear layer's state is FP32, and read and written for every token.
const STATE_BYTES: f64 = 4.0;
/// An element of it is decayed, gets a product of key and value added, and is used with the query.
const STATE_FLOPS: f64 = 5.0;

/// For one token, in all layers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Work {
    /// Bytes of KV cache that are read.
    pub(crate) kv_bytes: f64,
    /// Scores and weighted values.
    pub(crate) attention_flops: f64,
    /// The projections around attention.
    pub(crate) linear_flops: f64,
    pub(crate) ffn_flops: f64,
}

impl Work {
    /// With `context` tokens in the cache.
    pub(crate) fn new(shape: &Shape, context: usize, precision: Precision) -> Self {
        let full = if shape.is_hybrid() { precision.hybrid_kv_bytes } else { precision.kv_bytes };
        let sum = |work: &dyn Fn(&Layer) -> f64| shape.layers.iter().map(work).sum::<f64>();
        Self {
            kv_bytes: sum(&|layer| {
                let element = if layer.attention.is_full() { full } else { precision.kv_bytes };
                layer.attention.bytes_read(context, element)
            }),
            attention_flops: sum(&|layer| layer.attention.flops(context)),
            linear_flops: 2.0 * sum(&|layer| layer.attention.weights(shape.hidden).all()),
            ffn_flops: 2.0 * sum(&|layer| layer.ffn.active(shape.hidden)),
        }
    }

    /// Operations for a byte of cache.
    pub(crate) fn intensity(&self) -> f64 {
        self.attention_flops / self.kv_bytes
    }
}

/// Numbers of weights of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AttentionWeights {
    /// Everything before the output projection.
    pub(crate) inputs: f64,
    pub(crate) output: f64,
}

impl AttentionWeights {
    fn all(self) -> f64 {
        self.inputs + self.output
    }

    /// Bytes that a GPU holds when `gpus` share the output projection and have all else each.
    pub(crate) fn bytes(self, gpus: usize) -> f64 {
        WEIGHT_BYTES * (self.inputs + self.output / gpus as f64)
    }
}

impl Attention {
    /// Of the cache or the state, for one token.
    fn bytes_read(&self, context: usize, element: f64) -> f64 {
        match *self {
            Self::Linear { .. } => 2.0 * self.state_bytes(),
            Self::Grouped { .. } | Self::Latent { .. } => self.cached(context) * element,
        }
    }

    /// Bytes that a sequence holds.
    pub(crate) fn bytes_held(&self, context: usize, element: f64) -> f64 {
        self.cached(context) * element + self.state_bytes()
    }

    fn state_bytes(&self) -> f64 {
        match *self {
            Self::Linear { heads, head_dim } => STATE_BYTES * product(&[heads, head_dim, head_dim]),
            Self::Grouped { .. } | Self::Latent { .. } => 0.0,
        }
    }

    /// Cached elements.
    fn cached(&self, context: usize) -> f64 {
        match *self {
            Self::Grouped { kv_heads, head_dim, .. } => {
                2.0 * product(&[kv_heads, head_dim, self.seen(context)])
            }
            Self::Latent { kv_rank, rope_dim, .. } => product(&[kv_rank + rope_dim, context]),
            Self::Linear { .. } => 0.0,
        }
    }

    /// Tokens that a new one looks at.
    fn seen(&self, context: usize) -> usize {
        match *self {
            Self::Grouped { window: Some(window), .. } => context.min(window),
            Self::Grouped { .. } | Self::Latent { .. } | Self::Linear { .. } => context,
        }
    }

    fn flops(&self, context: usize) -> f64 {
        match *self {
            Self::Grouped { heads, head_dim, .. } => 4.0 * product(&[heads, head_dim, self.seen(context)]),
            // As the paper counts: scores and values both run over whole cached rows.
            Self::Latent { heads, kv_rank, rope_dim, .. } => {
                4.0 * product(&[heads, kv_rank + rope_dim, context])
            }
            Self::Linear { heads, head_dim } => STATE_FLOPS * product(&[heads, head_dim, head_dim]),
        }
    }

    pub(crate) fn weights(&self, hidden: usize) -> AttentionWeights {
        match *self {
            Self::Grouped { heads, kv_heads, head_dim, query_rank, .. } => {
                let wide = heads * head_dim;
                let query = match query_rank {
                    None => product(&[hidden, wide]),
                    Some(rank) => product(&[hidden, rank]) + product(&[rank, wide]),
                };
                let keys_values = 2.0 * product(&[hidden, kv_heads, head_dim]);
                AttentionWeights { inputs: query + keys_values, output: product(&[wide, hidden]) }
            }
            Self::Latent { heads, query_rank, kv_rank, rope_dim, nope_dim, value_dim } => {
                let wide = heads * (nope_dim + rope_dim);
                let query = match query_rank {
                    None => product(&[hidden, wide]),
                    Some(rank) => product(&[hidden, rank]) + product(&[rank, wide]),
                };
                let latent = product(&[hidden, kv_rank + rope_dim]);
                let expansion = product(&[kv_rank, heads, nope_dim + value_dim]);
                AttentionWeights {
                    inputs: query + latent + expansion,
                    output: product(&[heads, value_dim, hidden]),
                }
            }
            // Queries, keys, values and the output gate.
            Self::Linear { heads, head_dim } => AttentionWeights {
                inputs: 4.0 * product(&[hidden, heads, head_dim]),
                output: product(&[heads, head_dim, hidden]),
            },
        }
    }
}

impl Ffn {
    /// Weights that a token meets.
    fn active(&self, hidden: usize) -> f64 {
        let width = match *self {
            Self::Dense { width } => width,
            Self::Experts { top_k, width, shared_width, .. } => top_k * width + shared_width,
        };
        3.0 * product(&[hidden, width])
    }

    /// All weights.
    pub(crate) fn weights(&self, hidden: usize) -> f64 {
        let width = match *self {
            Self::Dense { width } => width,
            Self::Experts { experts, width, shared_width, .. } => experts * width + shared_width,
        };
        3.0 * product(&[hidden, width])
    }

    /// Weights that a batch meets, if every expert is as likely as any other.
    pub(crate) fn touched(&self, hidden: usize, batch: f64) -> f64 {
        match *self {
            Self::Dense { .. } => self.weights(hidden),
            Self::Experts { experts, top_k, width, shared_width } => {
                let untouched = (1.0 - top_k as f64 / experts as f64).powf(batch);
                3.0 * hidden as f64
                    * (experts as f64 * width as f64 * (1.0 - untouched) + shared_width as f64)
            }
        }
    }
}

impl Shape {
    /// Bytes of cache that a sequence of `context` tokens holds.
    pub(crate) fn kv_bytes_held(&self, context: usize, precision: Precision) -> f64 {
        let full = if self.is_hybrid() { precision.hybrid_kv_bytes } else { precision.kv_bytes };
        let element = |layer: &Layer| if layer.attention.is_full() { full } else { precision.kv_bytes };
        self.layers.iter().map(|layer| layer.attention.bytes_held(context, element(layer))).sum()
    }

    /// Of all layers.
    pub(crate) fn attention_weights(&self) -> AttentionWeights {
        let zero = AttentionWeights { inputs: 0.0, output: 0.0 };
        self.layers.iter().map(|layer| layer.attention.weights(self.hidden)).fold(zero, |sum, one| {
            AttentionWeights { inputs: sum.inputs + one.inputs, output: sum.output + one.output }
        })
    }

    pub(crate) fn ffn_bytes(&self) -> f64 {
        WEIGHT_BYTES * self.layers.iter().map(|layer| layer.ffn.weights(self.hidden)).sum::<f64>()
    }
}

/// In floating point, where nothing overflows.
fn product(factors: &[usize]) -> f64 {
    factors.iter().map(|&factor| factor as f64).product()
}

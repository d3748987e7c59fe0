//! What a token costs on each hardware, and which sparsity a network allows (the paper's sections 3 and 4).

use serde::Serialize;

use super::Goal;
use super::hardware::Hardware;
use super::shape::Shape;
use super::work::{Precision, Work};

/// US dollars for a million tokens, every unit at its peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Cost {
    pub(crate) attention: f64,
    pub(crate) ffn: f64,
}

impl Cost {
    /// Attention waits for the slower of its operations and its cache; the matrix products are compute bound, since
    /// batches are chosen so.
    pub(crate) fn new(work: &Work, hardware: &Hardware) -> Self {
        let (flop, byte) = (hardware.price_per_flop(), hardware.price_per_byte());
        let core = (work.attention_flops * flop).max(work.kv_bytes * byte);
        Self { attention: 1e6 * (core + work.linear_flops * flop), ffn: 1e6 * work.ffn_flops * flop }
    }
}

/// The least sparsity at which the FFN of MoE layers is compute bound before its server's network is full.
pub(crate) fn minimum_sparsity(shape: &Shape, hardware: &Hardware, goal: &Goal) -> f64 {
    // A batch of `roofline / 2` tokens an expert makes the FFN compute bound; a token takes 3 bytes an element of the
    // network, FP8 there and BF16 back, so S >= H * FLOPs * L / (Net * BW * 2/3 * TPOT / 3).
    let batch = hardware.roofline() / 2.0;
    let traffic = 3.0 * shape.hidden as f64 * batch;
    traffic / (hardware.network_bandwidth * goal.stage(shape))
}

/// What the memory of a GPU can stream within one stage of a layer: the placement for hardware with little bandwidth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Streaming {
    /// Bytes that memory gives in the stage.
    pub(crate) stage_bytes: f64,
    /// Attention weights that must be read, the output projection shared by the server.
    pub(crate) attention_bytes: f64,
    /// Tokens of cache for which time is left.
    pub(crate) kv_tokens: f64,
    /// Sequences of the goal's context in a GPU's micro-batch; 0 where the weights alone take too long.
    pub(crate) batch: usize,
    /// FFN weights a GPU can hold and still read in time.
    pub(crate) ffn_bytes: f64,
    pub(crate) ffn_servers: usize,
    pub(crate) ffn_gpus: usize,
}

/// The share of the bandwidth that the paper gives FFN weights in its L20 example (section 5).
const FFN_SHARE: f64 = 0.5;

impl Streaming {
    pub(crate) fn new(shape: &Shape, hardware: &Hardware, goal: &Goal, precision: Precision) -> Self {
        let layers = shape.layers.len() as f64;
        let stage_bytes = hardware.memory_bandwidth * goal.stage(shape);
        let attention_bytes = shape.attention_weights().bytes(hardware.gpus_per_server) / layers;
        let left = (stage_bytes - attention_bytes).max(0.0);
        let sequence = Work::new(shape, goal.context, precision).kv_bytes / layers;
        let ffn_bytes = stage_bytes * FFN_SHARE * layers;
        let server = ffn_bytes * hardware.gpus_per_server as f64;
        let ffn_servers = (shape.ffn_bytes() / server).ceil() as usize;
        Self {
            stage_bytes,
            attention_bytes,
            kv_tokens: left / sequence * goal.context as f64,
            batch: (left / sequence) as usize,
            ffn_bytes,
            ffn_servers,
            ffn_gpus: ffn_servers * hardware.gpus_per_server,
        }
    }
}

//! Model files: config -> graph. Adding a model is adding a file here.

mod llama;
mod step3;

use crate::config::ModelConfig;
use crate::graph::{Builder, Graph, ValueId};

/// The graph of the model `config` describes.
pub fn graph(config: &ModelConfig) -> Graph {
    match config {
        ModelConfig::Step3(config) => step3::graph(config),
        ModelConfig::Llama(config) => llama::graph(config),
    }
}

/// A SwiGLU FFN of `width`; `name` completes `gate`, `up` and `down` to weight names.
fn dense(b: &mut Builder, h: ValueId, width: usize, name: impl Fn(&str) -> String) -> ValueId {
    let hidden = b.width(h);
    let gate = b.weight(name("gate"), &[width, hidden]);
    let up = b.weight(name("up"), &[width, hidden]);
    let down = b.weight(name("down"), &[hidden, width]);
    let gate = b.linear(h, gate, "ffn.gate");
    let up = b.linear(h, up, "ffn.up");
    let act = b.swiglu(gate, up, "ffn.act");
    b.linear(act, down, "ffn.down")
}

//! What is computed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tread_core::afd::Sharding;
use tread_core::backend::{BLOCK_SIZE, Backend as _, CompileOptions, Executable, KvDType};
use tread_core::checkpoint::Checkpoint;
use tread_core::cpu::Cpu;
use tread_core::graph::EdgeDType;
use tread_core::model::Model;

/// Token rows of a step.
pub(crate) const ROWS: usize = 48;
/// Requests at a time.
pub(crate) const STREAMS: usize = 16;
/// Tokens of a request, prompt and answer.
pub(crate) const CONTEXT: usize = 128;

/// Where a model's files are. SmolLM2's is fetched by `cargo xtask test`.
pub(crate) fn folder(name: &str) -> PathBuf {
    let app = Path::new(env!("CARGO_MANIFEST_DIR"));
    match name {
        "nano" => app.join("models/nano"),
        "smollm2" => std::env::var_os("TREAD_SMOLLM2").expect("TREAD_SMOLLM2, a GGUF file").into(),
        _ => app.join("../tests/data").join(name),
    }
}

/// A file of the certificate for `localhost`, 127.0.0.1 and 10.83.0.2 to 10.83.15.2, which signs itself.
pub(crate) fn tls(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/afd/tls").join(name)
}

pub(crate) fn model(name: &str) -> Arc<Model> {
    Arc::new(Model::new(name, Checkpoint::open(&folder(name)).unwrap()).unwrap())
}

/// Room for all streams.
pub(crate) fn options() -> CompileOptions {
    CompileOptions {
        kv_dtype: KvDType::F32,
        kv_blocks: STREAMS * CONTEXT / BLOCK_SIZE,
        max_rows: ROWS,
        max_outputs: STREAMS,
        max_table: STREAMS * CONTEXT / BLOCK_SIZE,
        lanes: 1,
    }
}

/// The whole model on one device, rounding at the same edges.
pub(crate) fn whole(model: &Model, sharding: Sharding, dtype: EdgeDType) -> Box<dyn Executable> {
    let graph = tread::afd::shape(&model.graph, sharding, dtype);
    pollster::block_on(Cpu::new().compile(&graph, &model.weights, options(), &mut |_, _| {})).unwrap()
}

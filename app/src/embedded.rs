//! The model inside the binary.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use tread_core::Result;
use tread_core::checkpoint::Checkpoint;
use tread_core::tensor::{Bytes, Source};

macro_rules! nano {
    ($file:literal) => {
        include_bytes!(concat!("../models/nano/", $file))
    };
}

/// Its name.
pub(crate) const NAME: &str = "nano";

/// Its files, the weights last.
pub(crate) static FILES: [(&str, &[u8]); 6] = [
    ("config.json", nano!("config.json")),
    ("generation_config.json", nano!("generation_config.json")),
    ("tokenizer.json", nano!("tokenizer.json")),
    ("tokenizer_config.json", nano!("tokenizer_config.json")),
    ("model.safetensors.index.json", nano!("model.safetensors.index.json")),
    ("model-00001-of-00001.safetensors", nano!("model-00001-of-00001.safetensors")),
];

/// Reads the embedded checkpoint; its weights stay in the binary.
pub(crate) fn checkpoint() -> Result<Checkpoint> {
    // The index only says that there is one file of weights.
    let [files @ .., _index, (_, weights)] = &FILES;
    let files: BTreeMap<_, _> =
        files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    let shard: Arc<dyn Source> = Arc::new(Bytes::new("the embedded model", Cow::Borrowed(*weights)));
    Checkpoint::from_safetensors(&files, vec![shard])
}

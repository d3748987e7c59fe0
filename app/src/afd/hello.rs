//! What attention and an FFN worker tell each other before anything else, and why one refuses the other.

use std::fmt;

use sha2::{Digest as _, Sha256};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_core::model::Model;

/// What both sides must mean by the same words. Another number is another language.
pub const PROTOCOL: u32 = 1;

/// What a pool and its workers must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// See [`PROTOCOL`].
    pub protocol: u32,
    /// See [`fingerprint`].
    pub model: String,
    /// Width of the activations.
    pub hidden: usize,
    /// Type in which they cross.
    pub dtype: EdgeDType,
    /// How FFNs are spread
    pub sharding: Sharding,
    /// over how many shards.
    pub shards: usize,
}

/// What attention wants of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What both must agree on.
    pub terms: Terms,
    /// Most rows of a call.
    pub max_rows: usize,
    /// Calls at a time.
    pub slots: usize,
}

/// What a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// What both must agree on.
    pub terms: Terms,
    /// Which of the shards it holds.
    pub shard: usize,
    /// Most rows of a call.
    pub max_rows: usize,
    /// Most calls at a time of each that attaches.
    pub slots: usize,
    /// Another one for each life of a worker.
    pub incarnation: u64,
    /// For people.
    pub device: String,
    /// Bytes of its weights.
    pub weight_bytes: u64,
}

impl Hello {
    /// Whether this worker will do. Both sides ask.
    ///
    /// # Errors
    /// A text that names what differs, with what attention has first.
    pub fn check(&self, worker: &Welcome) -> Result<(), String> {
        let (own, theirs) = (&self.terms, &worker.terms);
        let differ = |what: &str, own: &dyn fmt::Display, theirs: &dyn fmt::Display| {
            Err(format!("{what}: attention has {own}, the FFN worker {theirs}"))
        };
        if own.protocol != theirs.protocol {
            return differ("different versions of the protocol", &own.protocol, &theirs.protocol);
        }
        if own.model != theirs.model {
            return differ("different models", &own.model, &theirs.model);
        }
        if own.hidden != theirs.hidden {
            return differ("different widths of activations", &own.hidden, &theirs.hidden);
        }
        if own.dtype != theirs.dtype {
            return differ("different --afd-dtype", &own.dtype.name(), &theirs.dtype.name());
        }
        if own.sharding != theirs.sharding {
            return differ("different --sharding", &own.sharding.name(), &theirs.sharding.name());
        }
        if own.shards != theirs.shards {
            return differ("different numbers of shards", &own.shards, &theirs.shards);
        }
        if worker.shard >= theirs.shards {
            return Err(format!("the FFN worker says it holds shard {} of {}", worker.shard, theirs.shards));
        }
        if self.max_rows > worker.max_rows {
            return differ("calls that are too large (--max-rows)", &self.max_rows, &worker.max_rows);
        }
        if worker.slots == 0 {
            return Err("the FFN worker takes no calls at all".to_owned());
        }
        Ok(())
    }
}

/// What tells models apart: configuration, names, shapes and types of all weights, and some rows of each. Not all their
/// bytes, which may be hundreds of gigabytes.
///
/// # Errors
/// When a file cannot be read.
pub fn fingerprint(model: &Model) -> tread_core::Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{:?}", model.config));
    for tensor in &model.weights {
        hash.update(format!("{} {:?} {:?}", tensor.name(), tensor.dtype(), tensor.shape()));
        if let Some(scales) = tensor.scales() {
            hash.update(format!("{:?}", scales.block));
            hash.update(bytemuck::cast_slice(&scales.values));
        }
        let rows = tensor.rows();
        for at in [0, rows / 2, rows.saturating_sub(1)] {
            if at < rows {
                hash.update(tensor.read_rows(at..at + 1)?);
            }
        }
    }
    Ok(hex(&hash.finalize()))
}

/// The first eight bytes of a digest: enough to tell things apart.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Hello, Welcome) {
        let terms = Terms {
            protocol: PROTOCOL,
            model: "0123".to_owned(),
            hidden: 64,
            dtype: EdgeDType::F32,
            sharding: Sharding::Layers,
            shards: 2,
        };
        let worker = Welcome {
            terms: terms.clone(),
            shard: 1,
            max_rows: 64,
            slots: 6,
            incarnation: 1,
            device: String::new(),
            weight_bytes: 0,
        };
        (Hello { terms, max_rows: 64, slots: 6 }, worker)
    }

    #[test]
    fn what_differs_is_named() {
        let (hello, worker) = pair();
        assert_eq!(hello.check(&worker), Ok(()));
        let cases: [(fn(&mut Welcome), &str); 9] = [
            (|w| w.terms.protocol = 2, "versions of the protocol: attention has 1, the FFN worker 2"),
            (|w| w.terms.model = "4567".to_owned(), "models: attention has 0123, the FFN worker 4567"),
            (|w| w.terms.hidden = 1, "widths"),
            (|w| w.terms.dtype = EdgeDType::F8, "--afd-dtype: attention has f32, the FFN worker fp8"),
            (|w| w.terms.sharding = Sharding::Experts, "--sharding: attention has layers"),
            (|w| w.terms.shards = 3, "shards: attention has 2"),
            (|w| w.shard = 2, "shard 2 of 2"),
            (|w| w.max_rows = 63, "--max-rows"),
            (|w| w.slots = 0, "no calls"),
        ];
        for (change, expected) in cases {
            let mut worker = worker.clone();
            change(&mut worker);
            let error = hello.check(&worker).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}

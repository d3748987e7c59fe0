//! What attention and an FFN worker tell each other before anything else, and why one refuses the other.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_core::model::Model;

/// What both sides must mean by the same words. Another number is another language.
pub const PROTOCOL: u32 = 1;

/// What a pool and its workers must agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// For people: the back end, a comma, the device.
    pub device: String,
    /// Bytes of its weights.
    pub weight_bytes: u64,
}

impl Terms {
    /// Whether attention that has these and an FFN worker understand each other.
    ///
    /// # Errors
    /// A text that names what differs, with what attention has first.
    pub fn check(&self, theirs: &Self) -> Result<(), String> {
        if self.protocol != theirs.protocol {
            return differ("different versions of the protocol", &self.protocol, &theirs.protocol);
        }
        if self.model != theirs.model {
            return differ("different models", &self.model, &theirs.model);
        }
        if self.hidden != theirs.hidden {
            return differ("different widths of activations", &self.hidden, &theirs.hidden);
        }
        if self.dtype != theirs.dtype {
            return differ("different --afd-dtype", &self.dtype.name(), &theirs.dtype.name());
        }
        if self.sharding != theirs.sharding {
            return differ("different --sharding", &self.sharding.name(), &theirs.sharding.name());
        }
        if self.shards != theirs.shards {
            return differ("different numbers of shards", &self.shards, &theirs.shards);
        }
        Ok(())
    }
}

fn differ(what: &str, own: &dyn fmt::Display, theirs: &dyn fmt::Display) -> Result<(), String> {
    Err(format!("{what}: attention has {own}, the FFN worker {theirs}"))
}

impl Welcome {
    /// Whether the two hold the same shard on different back ends: what they answer may differ in the last bits.
    pub fn may_differ(&self, other: &Self) -> bool {
        let back_end = |worker: &Self| worker.device.split(',').next().map(str::to_owned);
        self.shard == other.shard && back_end(self) != back_end(other)
    }
}

impl Hello {
    /// Whether this worker will do. Both sides ask.
    ///
    /// # Errors
    /// As [`Terms::check`].
    pub fn check(&self, worker: &Welcome) -> Result<(), String> {
        self.terms.check(&worker.terms)?;
        if worker.shard >= worker.terms.shards {
            return Err(format!(
                "the FFN worker says it holds shard {} of {}",
                worker.shard, worker.terms.shards
            ));
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
    fn only_other_back_ends_may_differ() {
        let on = |shard, device: &str| Welcome { shard, device: device.to_owned(), ..pair().1 };
        let worker = on(0, "cpu, CPU (2 threads)");
        assert!(worker.may_differ(&on(0, "wgpu, llvmpipe (Vulkan)")));
        assert!(!worker.may_differ(&on(0, "cpu, CPU (64 threads) + CPU (64 threads)")));
        assert!(!worker.may_differ(&on(1, "wgpu, llvmpipe (Vulkan)")));
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

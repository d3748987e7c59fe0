//! What the server and an attention worker tell each other before anything else, and why one refuses the other: an answer
//! must not depend on who gives it.

use std::fmt;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_core::model::Model;

use super::Limits;
use crate::afd::hello::{fingerprint, hex};

/// What both sides must mean by the same words. Another number is another language.
pub(crate) const PROTOCOL: u32 = 1;

/// What a server and its attention workers must agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Terms {
    /// See [`PROTOCOL`].
    pub(crate) protocol: u32,
    /// See [`fingerprint`].
    pub(crate) model: String,
    /// The same of its tokenizer and stop tokens.
    pub(crate) text: String,
    /// How the KV cache is stored, and what is rounded between attention and FFN.
    pub(crate) rounding: String,
    /// Most tokens of prompt and answer together.
    pub(crate) context: usize,
    /// Sequences that a request may have, or that the engine computes together.
    pub(crate) max_sequences: usize,
}

/// What a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    /// What both must agree on.
    pub(crate) terms: Terms,
    /// Another one for each life of a worker.
    pub(crate) incarnation: u64,
}

impl Terms {
    /// # Errors
    /// When the model cannot be read.
    pub(crate) fn new(
        model: &Model,
        limits: &Limits,
        (sharding, dtype): (Sharding, EdgeDType),
    ) -> tread_core::Result<Self> {
        let cache = limits.kv_dtype.name();
        let rounding = match dtype {
            EdgeDType::F32 => format!("--kv {cache}"),
            dtype => format!("--kv {cache} --afd-dtype {} --sharding {}", dtype.name(), sharding.name()),
        };
        Ok(Self {
            protocol: PROTOCOL,
            model: fingerprint(model)?,
            text: text(model),
            rounding,
            context: limits.context_length,
            max_sequences: limits.max_sequences,
        })
    }

    /// Whether this worker will do for this server. Both sides ask.
    ///
    /// # Errors
    /// A text that names what differs, with what the server has first.
    pub(crate) fn check(&self, worker: &Self) -> Result<(), String> {
        let differ = |what: &str, own: &dyn fmt::Display, theirs: &dyn fmt::Display| {
            Err(format!("{what}: the server has {own}, the attention worker {theirs}"))
        };
        if self.protocol != worker.protocol {
            return differ("different versions of the protocol", &self.protocol, &worker.protocol);
        }
        if self.model != worker.model {
            return differ("different models", &self.model, &worker.model);
        }
        if self.text != worker.text {
            return differ("different tokenizers or stop tokens", &self.text, &worker.text);
        }
        if self.rounding != worker.rounding {
            return differ("different rounding", &self.rounding, &worker.rounding);
        }
        if self.context != worker.context {
            return differ("different --context", &self.context, &worker.context);
        }
        if self.max_sequences > worker.max_sequences {
            return differ(
                "requests that are too large (--max-sequences)",
                &self.max_sequences,
                &worker.max_sequences,
            );
        }
        Ok(())
    }
}

/// What tells vocabularies apart: the bytes of all tokens, which of them are special, and which end an answer.
fn text(model: &Model) -> String {
    let mut hash = Sha256::new();
    if let Some(tokenizer) = &model.tokenizer {
        for id in (0..).take(tokenizer.vocab_size()) {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            hash.update([u8::from(tokenizer.is_special(id))]);
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
    }
    hash.update(bytemuck::cast_slice(&model.stop_ids));
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let server = Terms {
            protocol: PROTOCOL,
            model: "0123".to_owned(),
            text: "89ab".to_owned(),
            rounding: "--kv f32".to_owned(),
            context: 256,
            max_sequences: 8,
        };
        assert_eq!(server.check(&server), Ok(()));
        assert_eq!(server.check(&Terms { max_sequences: 9, ..server.clone() }), Ok(()));
        let cases: [(fn(&mut Terms), &str); 6] = [
            (|w| w.protocol = 2, "versions of the protocol: the server has 1, the attention worker 2"),
            (|w| w.model = "4567".to_owned(), "models: the server has 0123, the attention worker 4567"),
            (|w| w.text = "cdef".to_owned(), "tokenizers or stop tokens"),
            (|w| w.rounding = "--kv f16".to_owned(), "rounding: the server has --kv f32"),
            (|w| w.context = 128, "--context: the server has 256, the attention worker 128"),
            (|w| w.max_sequences = 7, "--max-sequences"),
        ];
        for (change, expected) in cases {
            let mut worker = server.clone();
            change(&mut worker);
            let error = server.check(&worker).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}

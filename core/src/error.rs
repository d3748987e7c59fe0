//! The one error type of the library: it names the thing that is wrong and the remedy.

use serde::{Deserialize, Serialize};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a file on disk and a token.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// The system's reason.
        #[serde(with = "io_error")]
        source: std::io::Error,
    },
    /// A file breaks its format's rules (truncated, lying header, overlapping tensors, ...).
    #[error("{file} is damaged or not of the expected format: {message}")]
    Format {
        /// The file.
        file: String,
        /// Which rule is broken and what was found.
        message: String,
    },
    /// A tensor is missing, or has the wrong shape or type, or holds NaN.
    #[error("tensor `{name}`: {message}")]
    Tensor {
        /// The tensor's full name in the checkpoint.
        name: String,
        /// Expected and found.
        message: String,
    },
    /// The model's configuration is missing a key or holds a value that cannot be.
    #[error("model configuration: {0}")]
    Config(String),
    /// Valid, but not something Tread runs.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// Something does not fit: memory, context length, KV blocks.
    #[error("{0}")]
    Capacity(String),
    /// The device failed or was lost.
    #[error("device: {0}")]
    Device(String),
    /// Somebody who is needed does not answer now, and may later.
    #[error("{0}")]
    Unavailable(String),
    /// Tokenizer or chat template.
    #[error("text: {0}")]
    Text(String),
}

impl Error {
    /// A [`Error::Format`] about `file`.
    pub fn format(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Format { file: file.into(), message: message.into() }
    }

    /// A [`Error::Tensor`] about the tensor `name`.
    pub fn tensor(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), message: message.into() }
    }

    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl std::fmt::Display, source: std::io::Error) -> Self {
        Self::Io { path: path.to_string(), source }
    }
}

/// An error of the system as its text: elsewhere, no more of it is of use.
mod io_error {
    use std::io::Error;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(error: &Error, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(error)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Error, D::Error> {
        String::deserialize(from).map(Error::other)
    }
}

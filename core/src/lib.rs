//! Everything in Tread that is true without a GPU.
//!
//! A checkpoint ([`checkpoint`]) is read into named, typed [`tensor::Tensor`] views and a [`config::ModelConfig`].
//! A model file ([`models`]) turns the config into a [`graph::Graph`], a flat list of ops. A back end
//! ([`backend::Backend`]) compiles the graph once and then runs steps: ragged batches of token rows over a paged
//! KV cache. The plain back end is [`cpu`]. This crate names no other.

pub mod afd;
pub mod backend;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod engine;
pub mod error;
#[cfg(feature = "grammar")]
pub mod grammar;
#[cfg(not(feature = "grammar"))]
#[path = "grammar/none.rs"]
pub mod grammar;
pub mod graph;
mod lanes;
pub mod model;
pub mod models;
pub mod monitor;
pub mod quant;
pub mod sampling;
pub mod tensor;
pub mod text;

pub use error::{Error, Result};

//! What an engine may hold.

use anyhow::{Result, bail};
use tread_core::backend::{BLOCK_SIZE, CompileOptions, KvDType};
use tread_core::engine::EngineOptions;
use tread_core::model::Model;

use crate::cli::EngineArgs;
use crate::engine::{DEFAULT_CONTEXT, context_length};

/// Memory the KV cache takes unless told otherwise.
const DEFAULT_CACHE_BYTES: usize = 1 << 30;

/// What an engine may hold. [`Limits::new`] has the defaults of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens of prompt and answer together.
    pub context_length: usize,
    /// Most sequences computed together.
    pub max_sequences: usize,
    /// Most token rows in one step.
    pub step_tokens: usize,
    /// Tokens in the KV cache, all sequences together.
    pub kv_tokens: usize,
    /// How the KV cache is stored.
    pub kv_dtype: KvDType,
    /// Reuse the cache of prompts that begin alike.
    pub prefix_cache: bool,
}

impl Limits {
    /// The defaults for a model.
    pub fn new(model: &Model) -> Self {
        let limits = Self {
            context_length: model.config.context_length().min(DEFAULT_CONTEXT),
            max_sequences: 32,
            step_tokens: 256,
            kv_tokens: 0,
            kv_dtype: KvDType::F32,
            prefix_cache: true,
        };
        Self { kv_tokens: limits.default_kv_tokens(model), ..limits }
    }

    /// What the command line asks for.
    pub(crate) fn from_args(model: &Model, args: &EngineArgs) -> Result<Self> {
        let limits = Self {
            context_length: context_length(model, &args.device)?,
            max_sequences: args.max_sequences as usize,
            step_tokens: args.step_tokens as usize,
            kv_tokens: 0,
            kv_dtype: args.device.kv.into(),
            prefix_cache: !args.no_prefix_cache,
        };
        let kv_tokens = args.kv_tokens.map_or_else(|| limits.default_kv_tokens(model), |n| n as usize);
        let limits = Self { kv_tokens, ..limits };
        limits.check(model)?;
        Ok(limits)
    }

    fn default_kv_tokens(&self, model: &Model) -> usize {
        let token = model.graph.kv_bytes_per_token(self.kv_dtype.bytes()).max(1);
        let useful = self.max_sequences.saturating_mul(self.context_length);
        (DEFAULT_CACHE_BYTES / token).min(useful).max(self.context_length)
    }

    /// Refuses what cannot work.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        let limit = model.config.context_length();
        if self.context_length > limit {
            bail!("--context {} is more than the {limit} tokens the model was made for", self.context_length);
        }
        if self.step_tokens < self.max_sequences {
            bail!(
                "--step-tokens {} is less than --max-sequences {}, but every running sequence needs a token a step",
                self.step_tokens,
                self.max_sequences
            );
        }
        if self.kv_tokens < self.context_length {
            bail!(
                "--kv-tokens {} is less than the context of {}: one request could never be finished; use a smaller \
                 --context",
                self.kv_tokens,
                self.context_length
            );
        }
        Ok(())
    }

    pub(crate) fn engine(&self) -> EngineOptions {
        EngineOptions {
            context_length: self.context_length,
            max_sequences: self.max_sequences,
            prefix_cache: self.prefix_cache,
        }
    }

    pub(crate) fn compile(&self) -> CompileOptions {
        CompileOptions {
            kv_dtype: self.kv_dtype,
            kv_blocks: self.kv_tokens.div_ceil(BLOCK_SIZE),
            max_rows: self.step_tokens,
            // Prompts that are scored want the logits of many rows, in portions; a row is as wide as the vocabulary.
            max_outputs: self.max_sequences.max(self.step_tokens.min(64)),
            max_table: self.max_sequences * self.context_length.div_ceil(BLOCK_SIZE),
            lanes: 1,
        }
    }
}

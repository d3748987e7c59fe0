//! How a server behaves: the limits it keeps, and whom it lets in.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use tread_core::backend::{BLOCK_SIZE, CompileOptions, KvDType};
use tread_core::engine::EngineOptions;
use tread_core::model::Model;

use crate::cli::ServeArgs;
use crate::engine::{DEFAULT_CONTEXT, context_length};

/// Memory the KV cache takes unless told otherwise.
const DEFAULT_CACHE_BYTES: usize = 1 << 30;

/// The port it listens on unless told otherwise.
const DEFAULT_PORT: u16 = 8000;

/// How a server behaves. [`ServerOptions::new`] has the defaults of the command line.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// Names under which clients may ask for the model; the first is reported.
    pub model_names: Vec<String>,
    /// Keys of which clients must send one; none: everybody may.
    pub api_keys: Vec<String>,
    /// Origins whose web pages may call the server; `*` is every one.
    pub cors_origins: Vec<String>,
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
    /// Most sequences that wait beside those that run.
    pub max_queue: usize,
    /// Most bytes of a request.
    pub max_body_bytes: usize,
    /// How long a client may keep the server waiting: for a request's head, for its body, and to take the next part of an
    /// answer.
    pub client_timeout: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// How long running and waiting requests have to finish once the server is asked to stop.
    pub drain_timeout: Duration,
}

impl ServerOptions {
    /// The defaults for a model.
    pub fn new(model: &Model) -> Self {
        let mut options = Self {
            address: (IpAddr::from(Ipv4Addr::LOCALHOST), DEFAULT_PORT).into(),
            model_names: vec![default_name(&model.name)],
            api_keys: vec![],
            cors_origins: vec![],
            context_length: model.config.context_length().min(DEFAULT_CONTEXT),
            max_sequences: 32,
            step_tokens: 256,
            kv_tokens: 0,
            kv_dtype: KvDType::F32,
            prefix_cache: true,
            max_queue: 256,
            max_body_bytes: 8 << 20,
            client_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(60),
        };
        options.kv_tokens = options.default_kv_tokens(model);
        options
    }

    /// What the command line asks for.
    pub(super) fn from_args(model: &Model, args: &ServeArgs) -> Result<Self> {
        let mut options = Self {
            address: (args.host, args.port.unwrap_or_else(|| default_port(args))).into(),
            api_keys: args.api_key.iter().filter(|key| !key.is_empty()).cloned().collect(),
            cors_origins: args.cors_origin.clone(),
            max_sequences: args.max_sequences as usize,
            step_tokens: args.step_tokens as usize,
            kv_dtype: args.device.kv.into(),
            prefix_cache: !args.no_prefix_cache,
            max_queue: args.max_queue as usize,
            max_body_bytes: usize::try_from(args.max_body_bytes)?,
            client_timeout: args.client_timeout,
            request_timeout: args.request_timeout,
            drain_timeout: args.drain_timeout,
            ..Self::new(model)
        };
        if !args.served_model_name.is_empty() {
            options.model_names.clone_from(&args.served_model_name);
        }
        options.context_length = context_length(model, &args.device)?;
        options.kv_tokens = args.kv_tokens.map_or_else(|| options.default_kv_tokens(model), |n| n as usize);
        options.check(model)?;
        Ok(options)
    }

    fn default_kv_tokens(&self, model: &Model) -> usize {
        let token = model.graph.kv_bytes_per_token(self.kv_dtype.bytes()).max(1);
        let useful = self.max_sequences.saturating_mul(self.context_length);
        (DEFAULT_CACHE_BYTES / token).min(useful).max(self.context_length)
    }

    /// Refuses what cannot work.
    pub(super) fn check(&self, model: &Model) -> Result<()> {
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

    pub(super) fn engine(&self) -> EngineOptions {
        EngineOptions {
            context_length: self.context_length,
            max_sequences: self.max_sequences,
            prefix_cache: self.prefix_cache,
        }
    }

    pub(super) fn compile(&self) -> CompileOptions {
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

/// A path is nobody's business; its last part names the model well enough.
fn default_name(name: &str) -> String {
    let path = Path::new(name);
    if !path.exists() {
        return name.to_owned();
    }
    let last = path.file_name().map_or_else(|| name.to_owned(), |last| last.to_string_lossy().into_owned());
    last.strip_suffix(".gguf").map_or(last.clone(), str::to_owned)
}

/// The usual port. One who opens the page does not type its address, so for them a free one does where that is taken.
fn default_port(args: &ServeArgs) -> u16 {
    let taken =
        || TcpListener::bind((args.host, DEFAULT_PORT)).is_err_and(|e| e.kind() == ErrorKind::AddrInUse);
    if args.open && taken() { 0 } else { DEFAULT_PORT }
}

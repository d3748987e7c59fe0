//! What every handler needs.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tokio::sync::Semaphore;
use tread_core::engine::Request;
use tread_core::grammar::GrammarCompiler;
use tread_core::model::Model;

use super::engine::{EngineHandle, EventStream, Failure};
use super::error::ApiError;
use super::layers;
use super::metrics::Metrics;
use super::options::ServerOptions;

/// What every handler needs; a clone is the same one.
#[derive(Clone, Debug)]
pub(super) struct App(Arc<Shared>);

/// What an [`App`] is.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) model: Arc<Model>,
    pub(super) options: ServerOptions,
    pub(super) engine: EngineHandle,
    pub(super) metrics: Arc<Metrics>,
    /// Digests of the keys clients may use.
    pub(super) keys: Vec<[u8; 32]>,
    /// When the server was started, in Unix seconds.
    pub(super) started: u64,
    grammars: OnceLock<GrammarCompiler>,
    longest_token: OnceLock<usize>,
    /// How much may be prepared at a time.
    preparing: Arc<Semaphore>,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    pub(super) fn new(
        model: Arc<Model>,
        options: ServerOptions,
        engine: EngineHandle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let keys = options.api_keys.iter().map(|key| layers::digest(key.as_bytes())).collect();
        let started = unix_time();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let preparing = Arc::new(Semaphore::new(processors));
        Self(Arc::new(Shared {
            model,
            options,
            engine,
            metrics,
            keys,
            started,
            grammars: OnceLock::new(),
            longest_token: OnceLock::new(),
            preparing,
        }))
    }

    /// The name that answers carry.
    pub(super) fn model_name(&self) -> &str {
        self.options.model_names.first().map_or(&self.model.name, String::as_str)
    }

    /// Refuses requests for another model; whoever names none means this one.
    pub(super) fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        let names = &self.options.model_names;
        match name {
            Some(name) if !name.is_empty() && !names.iter().any(|known| known == name) => {
                let message = format!("there is no model `{name}` here, only {}", names.join(", "));
                let error = ApiError::client(StatusCode::NOT_FOUND, message);
                Err(error.about("model").code("model_not_found"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses token ids outside the vocabulary.
    pub(super) fn check_token(&self, param: &str, id: u32) -> Result<(), ApiError> {
        let size = self.model.config.vocab_size();
        if (id as usize) < size {
            return Ok(());
        }
        Err(ApiError::param(param, format!("token {id} is outside the vocabulary of {size}")))
    }

    /// Whether the model may write its reasoning into its answers.
    pub(super) fn reasons(&self) -> bool {
        let has = |tokenizer: &tread_core::text::Tokenizer| tokenizer.token_id("</think>").is_some();
        self.model.tokenizer.as_ref().is_some_and(has)
    }

    /// Bytes of the vocabulary's longest token, at least 1.
    pub(super) fn longest_token(&self) -> usize {
        *self.longest_token.get_or_init(|| {
            let Some(tokenizer) = &self.model.tokenizer else { return 1 };
            let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
            let lengths = ids.filter_map(|id| tokenizer.token_bytes(id)).map(|bytes| bytes.len());
            lengths.max().unwrap_or(1).max(1)
        })
    }

    /// Compiles grammars; made when the first one is asked for.
    pub(super) fn grammars(&self) -> Result<&GrammarCompiler, ApiError> {
        if let Some(compiler) = self.grammars.get() {
            return Ok(compiler);
        }
        let compiler = GrammarCompiler::new(&self.model)?;
        Ok(self.grammars.get_or_init(|| compiler))
    }

    /// Does what may take long (long texts, large grammars) where it does not hold up the connections, and never more
    /// at a time than there are processors: the engine needs them, too.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.preparing).acquire_owned().await;
        let app = self.clone();
        let span = tracing::Span::current();
        let work = move || {
            // Held by the work itself, which goes on when its client has gone.
            let _permit = permit;
            span.in_scope(|| work(&app))
        };
        let result = tokio::task::spawn_blocking(work).await;
        result.unwrap_or_else(|error| {
            tracing::error!(%error, "preparing a request failed");
            Err(ApiError::server(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server has a defect; its log says more",
            ))
        })
    }

    /// Hands requests to the engine.
    pub(super) fn submit(&self, requests: Vec<Request>) -> Result<EventStream, ApiError> {
        self.engine.submit(requests).map_err(|failure| {
            self.metrics.rejected(match failure {
                Failure::QueueFull { .. } => "queue_full",
                Failure::TooMany { .. } => "too_many_sequences",
                _ => "unavailable",
            });
            failure.into()
        })
    }
}

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A new name for an answer: `chatcmpl-...`.
pub(super) fn new_id(kind: &str) -> String {
    format!("{kind}-{}", uuid::Uuid::new_v4().simple())
}

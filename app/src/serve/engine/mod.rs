//! The one thread that owns the engine, and the handle by which HTTP talks to it.
//!
//! A compiled model cannot leave the thread that compiled it, so that thread opens the device, runs the steps, and opens
//! the device anew when it is lost. Commands come by one channel; each request's events go back by its own.

mod handle;
mod worker;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tread_core::backend::Backend;
use tread_core::engine::{Event, Request, RequestId};
use tread_core::model::Model;

use super::events::Feed;
use super::metrics::Metrics;
use super::options::ServerOptions;
use handle::Slot;
pub(super) use handle::{EngineHandle, EventStream};
use worker::{Device, Worker};

/// Opens the device; called again after it was lost.
pub type OpenDevice = Box<dyn FnMut() -> anyhow::Result<Box<dyn Backend>> + Send>;

/// Where the engine stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Weights are on their way to the device.
    Loading,
    /// Steps run. The text names the device.
    Ready(String),
    /// The device was lost and is opened anew.
    Rebuilding,
    /// The end.
    Failed(String),
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The engine refused or gave up this request.
    #[error(transparent)]
    Request(tread_core::Error),
    /// Others wait already.
    #[error("the server is busy: {capacity} sequences run or wait; try again soon")]
    QueueFull {
        /// Sequences that fit.
        capacity: usize,
    },
    /// It would not fit an idle server.
    #[error(
        "the request asks for {sequences} sequences (prompts times n), but this server takes at most {capacity} at a \
         time (--max-sequences and --max-queue): send fewer"
    )]
    TooMany {
        /// What was asked for.
        sequences: usize,
        /// What fits.
        capacity: usize,
    },
    /// It took too long.
    #[error("the request was given up after {} seconds (--request-timeout)", .0.as_secs_f64())]
    Timeout(Duration),
    /// The server ends.
    #[error("the server is shutting down")]
    Stopping,
    /// Something that is needed was waited for in vain.
    #[error("the model cannot be computed now: {0}; try again soon")]
    Unavailable(String),
    /// The device is gone for good.
    #[error("the device was lost and could not be opened again: {0}")]
    Lost(String),
}

enum Command {
    Submit { requests: Vec<Submit>, events: Events, deadline: Instant, span: tracing::Span },
    Abort(Vec<RequestId>),
    Stop,
}

struct Submit {
    id: RequestId,
    request: Request,
    slot: Slot,
}

type Item = (usize, Result<Event, Failure>);
type Events = UnboundedSender<Item>;

/// Starts the thread. It ends after [`EngineHandle::stop`], or when the device cannot be had.
pub(super) fn start(
    model: Arc<Model>,
    open: OpenDevice,
    options: &ServerOptions,
    metrics: Arc<Metrics>,
) -> std::io::Result<(EngineHandle, std::thread::JoinHandle<anyhow::Result<()>>)> {
    let (commands, receiver) = mpsc::channel();
    let (status, watcher) = watch::channel(Status::Loading);
    let feed = Arc::new(Feed::new());
    let handle = EngineHandle::new(commands, watcher, Arc::clone(&feed), options);
    let device = Device { open, model, options: options.clone() };
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        let result = Worker::new(device, receiver, status, metrics, feed).and_then(Worker::run);
        result.inspect_err(|error| tracing::error!(error = format!("{error:#}"), "the engine has ended"))
    })?;
    Ok((handle, thread))
}

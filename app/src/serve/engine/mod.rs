//! The engines of a server: threads of this process, and attention workers elsewhere.
//!
//! Each has a KV cache of its own (data-parallel attention). `front` is an engine as the server sees it, wherever it is;
//! `route` chooses one for a request; `stream` brings a request's events, and has it go on at another engine when its own
//! is gone. `remote` looks after attention workers.

mod front;
mod handle;
mod remote;
mod route;
mod status;
mod stream;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc::UnboundedSender;
use tread_core::engine::Event;
use tread_core::model::Model;

use super::metrics::Metrics;
use super::options::ServerOptions;
use crate::attention::thread::{Device, EngineThread, start as start_thread};
use crate::attention::{OpenDevice, Status};
use front::Orders;
pub(super) use handle::{EngineHandle, Measuring};
use route::Engines;
pub(super) use stream::EventStream;

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
    /// The engine is gone, or all are.
    #[error("the model can no longer be computed here: {0}")]
    Lost(String),
}

/// What happened to one of a call's requests.
type Item = (usize, Result<Event, Failure>);

/// Where the events of a request go. Whoever drops it before the last one says that the engine is gone.
#[derive(Debug)]
struct Ticket {
    /// Which of its call's requests it is.
    index: usize,
    events: UnboundedSender<Item>,
    ended: bool,
}

impl Ticket {
    fn new(index: usize, events: UnboundedSender<Item>) -> Self {
        Self { index, events, ended: false }
    }

    fn send(&mut self, item: Result<Event, Failure>) {
        self.ended = matches!(item, Ok(Event::Done) | Err(_));
        // If nobody listens, the abort is on its way.
        let _ = self.events.send((self.index, item));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            self.send(Err(Failure::Lost("the engine has ended".to_owned())));
        }
    }
}

/// Starts a thread for each device, which ends after [`EngineHandle::stop`] or when its device cannot be had, and begins to
/// look for attention workers. To be called on a runtime.
pub(super) fn start(
    model: &Arc<Model>,
    devices: Vec<OpenDevice>,
    options: &ServerOptions,
    metrics: &Arc<Metrics>,
) -> Result<(EngineHandle, Vec<EngineThread>)> {
    let engines = Arc::new(Engines::new(Arc::clone(metrics)));
    let mut threads = vec![];
    for open in devices {
        let (orders, receiver) = mpsc::channel();
        let front = engines.add(Status::Loading);
        front.connect(Orders::Here(orders));
        let device = Device { open, model: Arc::clone(model), limits: options.limits.clone() };
        let index = front.index();
        threads.push(start_thread(index, device, receiver, Box::new(move |report| front.hear(report)))?);
    }
    if let Some(workers) = &options.attention {
        remote::start(model, &options.limits, workers, &engines)?;
    }
    Ok((EngineHandle::new(engines, options), threads))
}

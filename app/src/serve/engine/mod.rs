//! The threads that own the engines, and the handle by which HTTP talks to them.
//!
//! A compiled model cannot leave the thread that compiled it, so that thread opens the device, runs the steps, and opens
//! the device anew when it is lost. Commands come by one channel; each request's events go back by its own. Where there
//! are several engines (data-parallel attention), each has its own KV cache, and a request whose engine is gone for good
//! goes on at another one.

mod handle;
mod route;
mod status;
mod stream;
mod worker;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tread_core::backend::Backend;
use tread_core::engine::{Event, Request, RequestId};
use tread_core::model::Model;

use super::events::Feed;
use super::metrics::Metrics;
use super::options::ServerOptions;
pub(super) use handle::EngineHandle;
use handle::Slot;
use route::Engines;
use status::Board;
pub(super) use status::Status;
pub(super) use stream::EventStream;
use worker::{Device, Worker};

/// Opens the device; called again after it was lost.
pub type OpenDevice = Box<dyn FnMut() -> anyhow::Result<Box<dyn Backend>> + Send>;

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

#[derive(Debug)]
enum Command {
    Submit(Box<Submit>),
    Abort(RequestId),
    Stop,
}

/// A request for an engine.
#[derive(Debug)]
struct Submit {
    id: RequestId,
    request: Request,
    ticket: Ticket,
    /// In the server, and in the engine.
    slots: [Slot; 2],
    deadline: Instant,
    span: tracing::Span,
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
        self.ended = matches!(item, Ok(Event::Done | Event::Failed(_)) | Err(_));
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

/// The thread of an engine.
pub(super) type EngineThread = std::thread::JoinHandle<anyhow::Result<()>>;

/// Starts a thread for each device. They end after [`EngineHandle::stop`], or when their device cannot be had.
pub(super) fn start(
    model: &Arc<Model>,
    devices: Vec<OpenDevice>,
    options: &ServerOptions,
    metrics: &Arc<Metrics>,
) -> std::io::Result<(EngineHandle, Vec<EngineThread>)> {
    let feed = Arc::new(Feed::new(devices.len()));
    let (board, watcher) = Board::new(devices.len());
    let (mut engines, mut threads) = (vec![], vec![]);
    for (index, open) in devices.into_iter().enumerate() {
        let (commands, receiver) = mpsc::channel();
        let device = Device { open, model: Arc::clone(model), options: options.clone() };
        let (status, metrics, feed) = (board.of(index), Arc::clone(metrics), Arc::clone(&feed));
        let name = format!("engine {index}");
        threads.push(std::thread::Builder::new().name(name).spawn(move || {
            let result = Worker::new(device, receiver, status, metrics, feed).and_then(Worker::run);
            result.inspect_err(|error| {
                tracing::error!(engine = index, error = format!("{error:#}"), "the engine has ended")
            })
        })?);
        engines.push(commands);
    }
    let engines = Engines::new(engines, board.each());
    Ok((EngineHandle::new(engines, watcher, feed, options), threads))
}

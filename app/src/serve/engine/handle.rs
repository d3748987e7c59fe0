//! The handle by which HTTP talks to the engine's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tread_core::engine::{Event, Request, RequestId, Task};

use super::super::events::Feed;
use super::super::options::ServerOptions;
use super::{Command, Failure, Item, Status, Submit};

/// Talks to the engine's thread.
#[derive(Clone, Debug)]
pub(in super::super) struct EngineHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    feed: Arc<Feed>,
    next_id: Arc<AtomicU64>,
    /// Sequences in the server: each of the `n` of a request counts.
    live: Arc<AtomicUsize>,
    capacity: usize,
    request_timeout: Duration,
}

impl EngineHandle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        status: watch::Receiver<Status>,
        feed: Arc<Feed>,
        options: &ServerOptions,
    ) -> Self {
        Self {
            commands,
            status,
            feed,
            next_id: Arc::default(),
            live: Arc::default(),
            capacity: options.capacity(),
            request_timeout: options.request_timeout,
        }
    }

    /// Hands requests in, all or none. Their events come from the stream, with the index in `requests`.
    pub(in super::super) fn submit(&self, requests: Vec<Request>) -> Result<EventStream, Failure> {
        let sequences: usize = requests.iter().map(choices).sum();
        let capacity = self.capacity;
        if sequences > capacity {
            return Err(Failure::TooMany { sequences, capacity });
        }
        if let Status::Failed(reason) = &*self.status.borrow() {
            return Err(Failure::Lost(reason.clone()));
        }
        // Counted only where there is room: a large request that is refused must not crowd out a small one meanwhile.
        let with_these = |live: usize| (live + sequences <= capacity).then_some(live + sequences);
        if self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_these).is_err() {
            return Err(Failure::QueueFull { capacity });
        }
        let slot = |request| Slot { live: Arc::clone(&self.live), sequences: choices(request) };
        let slots: Vec<_> = requests.iter().map(slot).collect();
        let first = self.next_id.fetch_add(requests.len() as u64, Ordering::Relaxed);
        let ids: Vec<_> = (first..).map(RequestId).take(requests.len()).collect();
        let (events, receiver) = unbounded_channel();
        let stream = EventStream { events: receiver, handle: self.clone(), ids: ids.clone() };
        let deadline = Instant::now() + self.request_timeout;
        let submit = |((id, request), slot)| Submit { id, request, slot };
        let requests = ids.into_iter().zip(requests).zip(slots).map(submit).collect();
        let span = tracing::Span::current();
        // If the thread is gone, the stream ends at once and says so.
        let _ = self.commands.send(Command::Submit { requests, events, deadline, span });
        Ok(stream)
    }

    /// Where the engine stands.
    pub(in super::super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Its changes. Closed when the thread has ended.
    pub(in super::super) fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// What it does, as it does it.
    pub(in super::super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Whether another sequence would be refused.
    pub(in super::super) fn is_full(&self) -> bool {
        self.live.load(Ordering::Relaxed) >= self.capacity
    }

    /// Ends the thread; requests that are not finished fail.
    pub(in super::super) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

fn choices(request: &Request) -> usize {
    match &request.task {
        Task::Generate(generate) => generate.n,
        Task::Embed => 1,
    }
}

/// The place of a request in the server: free again when the engine has done with it, however slowly its client reads.
#[derive(Debug)]
pub(super) struct Slot {
    live: Arc<AtomicUsize>,
    sequences: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.live.fetch_sub(self.sequences, Ordering::Relaxed);
    }
}

/// The events of the requests of one call. Dropping it aborts what is not finished: a client that went away costs
/// nothing from then on.
#[derive(Debug)]
pub(in super::super) struct EventStream {
    events: UnboundedReceiver<Item>,
    handle: EngineHandle,
    ids: Vec<RequestId>,
}

impl EventStream {
    /// The next event and the index of its request. Ask no more once every request is done.
    pub(in super::super) async fn next(&mut self) -> Result<(usize, Event), Failure> {
        match self.events.recv().await {
            Some((index, event)) => event.map(|event| (index, event)),
            None => Err(Failure::Lost("the engine has ended".into())),
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let _ = self.handle.commands.send(Command::Abort(std::mem::take(&mut self.ids)));
    }
}

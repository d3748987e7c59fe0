//! The handle by which HTTP talks to the engines' threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tread_core::engine::{Request, RequestId, Task};

use super::super::events::Feed;
use super::super::options::ServerOptions;
use super::route::Engines;
use super::status::Status;
use super::stream::EventStream;
use super::{Command, Failure, Submit, Ticket};

/// Talks to the engines' threads.
#[derive(Clone, Debug)]
pub(in super::super) struct EngineHandle {
    engines: Arc<Engines>,
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
        engines: Engines,
        status: watch::Receiver<Status>,
        feed: Arc<Feed>,
        options: &ServerOptions,
    ) -> Self {
        let running = options.max_sequences.saturating_mul(engines.len());
        Self {
            engines: Arc::new(engines),
            status,
            feed,
            next_id: Arc::default(),
            live: Arc::default(),
            capacity: running.saturating_add(options.max_queue),
            request_timeout: options.request_timeout,
        }
    }

    /// Hands requests in, all or none. Their events come from the stream, with the index in `requests`.
    pub(in super::super) fn submit(&self, mut requests: Vec<Request>) -> Result<EventStream, Failure> {
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
        let slots =
            requests.iter().map(|r| Slot { live: Arc::clone(&self.live), sequences: choices(r) }).collect();
        // An engine that goes on with what another one began must draw the same random numbers.
        for request in &mut requests {
            if let Task::Generate(generate) = &mut request.task {
                generate.sampling.seed.get_or_insert_with(|| uuid::Uuid::new_v4().as_u64_pair().0);
            }
        }
        Ok(EventStream::begin(self.clone(), requests, slots, Instant::now() + self.request_timeout))
    }

    /// Hands a request to an engine, but not to the one that it must not be; returns to which, and under which name. None
    /// when there is no other. A request that was placed before has lost its slot, but not its right to one.
    pub(super) fn place(
        &self,
        request: Request,
        ticket: impl FnOnce() -> Ticket,
        slot: Option<Slot>,
        deadline: Instant,
        not: Option<usize>,
    ) -> Option<(usize, RequestId)> {
        let engine = self.engines.choose(&request.prompt, not)?;
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let count = |live: &Arc<AtomicUsize>| Slot::take(live, choices(&request));
        let slots = [slot.unwrap_or_else(|| count(&self.live)), count(self.engines.load(engine))];
        let span = tracing::Span::current();
        let submit = Submit { id, request, ticket: ticket(), slots, deadline, span };
        self.engines.send(engine, Command::Submit(Box::new(submit)));
        Some((engine, id))
    }

    pub(super) fn abort(&self, engine: usize, id: RequestId) {
        self.engines.send(engine, Command::Abort(id));
    }

    /// Where the engines stand.
    pub(in super::super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Its changes. Closed when the threads have ended.
    pub(in super::super) fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// What they do, as they do it.
    pub(in super::super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Sequences that may be in the server at a time.
    pub(in super::super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether another sequence would be refused.
    pub(in super::super) fn is_full(&self) -> bool {
        self.live.load(Ordering::Relaxed) >= self.capacity
    }

    /// Ends the threads; requests that are not finished fail.
    pub(in super::super) fn stop(&self) {
        self.engines.stop();
    }
}

fn choices(request: &Request) -> usize {
    match &request.task {
        Task::Generate(generate) => generate.n,
        Task::Embed => 1,
    }
}

/// The place of a request, in the server or in an engine: free again when the engine has done with it, however slowly
/// its client reads.
#[derive(Debug)]
pub(super) struct Slot {
    live: Arc<AtomicUsize>,
    sequences: usize,
}

impl Slot {
    fn take(live: &Arc<AtomicUsize>, sequences: usize) -> Self {
        live.fetch_add(sequences, Ordering::Relaxed);
        Self { live: Arc::clone(live), sequences }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.live.fetch_sub(self.sequences, Ordering::Relaxed);
    }
}

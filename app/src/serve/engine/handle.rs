//! The handle by which HTTP talks to the engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tread_core::engine::{Request, RequestId, Task};

use super::super::events::Feed;
use super::super::options::ServerOptions;
use super::super::record::Record;
use super::front::{Active, Front};
use super::route::{Engines, Nobody};
use super::stream::EventStream;
use super::{Failure, Ticket};
use crate::attention::Status;

/// Talks to the engines.
#[derive(Clone, Debug)]
pub(in super::super) struct EngineHandle {
    engines: Arc<Engines>,
    next_id: Arc<AtomicU64>,
    /// Sequences in the server: each of the `n` of a request counts.
    live: Arc<AtomicUsize>,
    max_sequences: usize,
    max_queue: usize,
    request_timeout: Duration,
    hold: Duration,
}

impl EngineHandle {
    pub(super) fn new(engines: Arc<Engines>, options: &ServerOptions) -> Self {
        Self {
            engines,
            next_id: Arc::default(),
            live: Arc::default(),
            max_sequences: options.limits.max_sequences,
            max_queue: options.max_queue,
            request_timeout: options.request_timeout,
            hold: options.hold,
        }
    }

    /// Hands requests in, all or none. Their events come from the stream, with the index in `requests`.
    pub(in super::super) fn submit(&self, mut requests: Vec<Request>) -> Result<EventStream, Failure> {
        let sequences: usize = requests.iter().map(choices).sum();
        let capacity = self.capacity();
        if sequences > capacity {
            return Err(Failure::TooMany { sequences, capacity });
        }
        if let Status::Failed(reason) = self.status() {
            return Err(Failure::Lost(reason));
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

    /// Hands a request to an engine; returns to which, and under which name. A request that was placed before has lost its
    /// slot, but not its right to one.
    pub(super) fn place(
        &self,
        request: Request,
        ticket: impl FnOnce() -> Ticket,
        slot: &mut Option<Slot>,
    ) -> Result<(Arc<Front>, RequestId), Nobody> {
        let engine = self.engines.choose(&request.prompt)?;
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let count = |live: &Arc<AtomicUsize>| Slot::take(live, choices(&request));
        let slots = [slot.take().unwrap_or_else(|| count(&self.live)), count(engine.load())];
        let record = Record::new(&request, tracing::Span::current());
        engine.submit(id, request, Active { ticket: ticket(), record, _slots: slots });
        Ok((engine, id))
    }

    /// Where the engines stand.
    pub(in super::super) fn status(&self) -> Status {
        self.watch().borrow().clone()
    }

    /// Its changes.
    pub(in super::super) fn watch(&self) -> watch::Receiver<Status> {
        self.engines.watch()
    }

    /// What they do, as they do it.
    pub(in super::super) fn feed(&self) -> &Arc<Feed> {
        self.engines.feed()
    }

    /// Has ops measured until it is dropped.
    pub(in super::super) fn measure(&self) -> Measuring {
        self.engines.measure(true);
        Measuring(Arc::clone(&self.engines))
    }

    /// Sequences that may be in the server at a time. There is room for those of an engine while none has come.
    pub(in super::super) fn capacity(&self) -> usize {
        self.max_sequences.saturating_mul(self.engines.len().max(1)).saturating_add(self.max_queue)
    }

    /// Whether another sequence would be refused.
    pub(in super::super) fn is_full(&self) -> bool {
        self.live.load(Ordering::Relaxed) >= self.capacity()
    }

    /// How long a request may take.
    pub(super) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// How long a request waits for an attention worker.
    pub(super) fn hold(&self) -> Duration {
        self.hold
    }

    /// Ends the engines; requests that are not finished fail.
    pub(in super::super) fn stop(&self) {
        self.engines.stop();
    }
}

/// Somebody who wants ops to be measured.
pub(in super::super) struct Measuring(Arc<Engines>);

impl Drop for Measuring {
    fn drop(&mut self) {
        self.0.measure(false);
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

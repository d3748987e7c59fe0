//! The one thread that owns the engine, and the handle by which HTTP talks to it.
//!
//! A compiled model cannot leave the thread that compiled it, so that thread opens the device, runs the steps, and opens
//! the device anew when it is lost. Commands come by one channel; each request's events go back by its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tread_core::backend::{Backend, Executable};
use tread_core::engine::{Engine, Event, Request, RequestId, Task};
use tread_core::model::Model;

use super::metrics::Metrics;
use super::options::ServerOptions;
use super::record::Record;

/// Opens the device; called again after it was lost.
pub type OpenDevice = Box<dyn FnMut() -> anyhow::Result<Box<dyn Backend>> + Send>;

/// Seconds before each attempt to open a lost device.
const PAUSES: [u64; 6] = [0, 1, 2, 4, 8, 16];
/// Devices lost in a row without a step between, after which another one will not help.
const MOST_LOSSES: usize = 3;

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
    /// The device is gone for good.
    #[error("the device was lost and could not be opened again: {0}")]
    Lost(String),
}

enum Command {
    Submit { requests: Vec<(RequestId, Request)>, events: Events, deadline: Instant, span: tracing::Span },
    Abort(Vec<RequestId>),
    Stop,
}

type Item = (usize, Result<Event, Failure>);
type Events = UnboundedSender<Item>;

/// Talks to the engine's thread.
#[derive(Clone, Debug)]
pub(super) struct EngineHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    next_id: Arc<AtomicU64>,
    /// Sequences in the server: each of the `n` of a request counts.
    live: Arc<AtomicUsize>,
    capacity: usize,
    request_timeout: Duration,
}

impl EngineHandle {
    /// Hands requests in, all or none. Their events come from the stream, with the index in `requests`.
    pub(super) fn submit(&self, requests: Vec<Request>) -> Result<EventStream, Failure> {
        let sequences = requests.iter().map(choices).sum();
        let capacity = self.capacity;
        if sequences > capacity {
            return Err(Failure::TooMany { sequences, capacity });
        }
        if let Status::Failed(reason) = &*self.status.borrow() {
            return Err(Failure::Lost(reason.clone()));
        }
        if self.live.fetch_add(sequences, Ordering::Relaxed) + sequences > capacity {
            self.live.fetch_sub(sequences, Ordering::Relaxed);
            return Err(Failure::QueueFull { capacity });
        }
        let first = self.next_id.fetch_add(requests.len() as u64, Ordering::Relaxed);
        let ids: Vec<_> = (first..).map(RequestId).take(requests.len()).collect();
        let (events, receiver) = unbounded_channel();
        let stream = EventStream { events: receiver, handle: self.clone(), ids: ids.clone(), sequences };
        let deadline = Instant::now() + self.request_timeout;
        let requests = ids.into_iter().zip(requests).collect();
        let span = tracing::Span::current();
        // If the thread is gone, the stream ends at once and says so.
        let _ = self.commands.send(Command::Submit { requests, events, deadline, span });
        Ok(stream)
    }

    /// Where the engine stands.
    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Its changes. Closed when the thread has ended.
    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Whether another sequence would be refused.
    pub(super) fn is_full(&self) -> bool {
        self.live.load(Ordering::Relaxed) >= self.capacity
    }

    /// Ends the thread; requests that are not finished fail.
    pub(super) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

fn choices(request: &Request) -> usize {
    match &request.task {
        Task::Generate(generate) => generate.n,
        Task::Embed => 1,
    }
}

/// The events of the requests of one call. Dropping it aborts what is not finished: a client that went away costs
/// nothing from then on.
#[derive(Debug)]
pub(super) struct EventStream {
    events: UnboundedReceiver<Item>,
    handle: EngineHandle,
    ids: Vec<RequestId>,
    sequences: usize,
}

impl EventStream {
    /// The next event and the index of its request. Ask no more once every request is done.
    pub(super) async fn next(&mut self) -> Result<(usize, Event), Failure> {
        match self.events.recv().await {
            Some((index, event)) => event.map(|event| (index, event)),
            None => Err(Failure::Lost("the engine has ended".into())),
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.handle.live.fetch_sub(self.sequences, Ordering::Relaxed);
        let _ = self.handle.commands.send(Command::Abort(std::mem::take(&mut self.ids)));
    }
}

/// Starts the thread. It ends after [`EngineHandle::stop`], or when the device cannot be had.
pub(super) fn start(
    model: Arc<Model>,
    open: OpenDevice,
    options: &ServerOptions,
    metrics: Arc<Metrics>,
) -> std::io::Result<(EngineHandle, std::thread::JoinHandle<anyhow::Result<()>>)> {
    let (commands, receiver) = mpsc::channel();
    let (status, watcher) = watch::channel(Status::Loading);
    let handle = EngineHandle {
        commands,
        status: watcher,
        next_id: Arc::default(),
        live: Arc::default(),
        capacity: options.capacity(),
        request_timeout: options.request_timeout,
    };
    let device = Device { open, model, options: options.clone() };
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        let result = Worker::new(device, receiver, status, metrics).and_then(Worker::run);
        result.inspect_err(|error| tracing::error!(error = format!("{error:#}"), "the engine has ended"))
    })?;
    Ok((handle, thread))
}

/// How to get an executable, as often as need be.
struct Device {
    open: OpenDevice,
    model: Arc<Model>,
    options: ServerOptions,
}

impl Device {
    /// The compiled model, and the device for people.
    fn compile(&mut self) -> anyhow::Result<(Box<dyn Executable>, String)> {
        let backend = (self.open)()?;
        let executable = crate::engine::compile(&self.model, &*backend, self.options.compile())?;
        Ok((executable, format!("{}, {}", backend.name(), backend.device())))
    }
}

/// A request the engine knows.
struct Active {
    /// Which of its call's requests it is.
    index: usize,
    events: Events,
    deadline: Instant,
    record: Record,
}

struct Worker {
    device: Device,
    engine: Engine,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<Status>,
    metrics: Arc<Metrics>,
    active: HashMap<RequestId, Active>,
    stopping: bool,
}

impl Worker {
    fn new(
        mut device: Device,
        commands: mpsc::Receiver<Command>,
        status: watch::Sender<Status>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let (executable, name) = device.compile().inspect_err(|error| {
            status.send_replace(Status::Failed(format!("{error:#}")));
        })?;
        metrics.device(executable.stats());
        let engine = Engine::new(device.model.clone(), executable, device.options.engine());
        status.send_replace(Status::Ready(name));
        Ok(Self { device, engine, commands, status, metrics, active: HashMap::new(), stopping: false })
    }

    fn run(mut self) -> anyhow::Result<()> {
        let mut losses = 0;
        loop {
            self.take_commands();
            if self.stopping {
                self.fail_all(|| Failure::Stopping);
                return Ok(());
            }
            self.expire();
            match pollster::block_on(self.engine.step()) {
                Ok(events) => {
                    losses = 0;
                    events.into_iter().for_each(|(id, event)| self.deliver(id, event));
                    self.metrics.step(&self.engine.last_step());
                    self.metrics.device(self.engine.executable().stats());
                    self.metrics.standing(&self.engine.stats());
                }
                Err(error) => {
                    losses += 1;
                    self.metrics.live.device_lost.increment(1);
                    tracing::error!(%error, waiting = self.active.len(), "the device failed");
                    if let Err(reason) = self.rebuild(losses, &error) {
                        self.fail_all(|| Failure::Lost(reason.clone()));
                        self.status.send_replace(Status::Failed(reason.clone()));
                        anyhow::bail!("the device was lost and could not be opened again: {reason}");
                    }
                }
            }
        }
    }

    /// Takes what has come in; without work, waits for something.
    fn take_commands(&mut self) {
        while !self.stopping {
            let command = if self.engine.has_work() {
                let Ok(command) = self.commands.try_recv() else { return };
                command
            } else {
                self.metrics.standing(&self.engine.stats());
                // Without a handle there is nobody left to serve.
                self.commands.recv().unwrap_or(Command::Stop)
            };
            self.handle(command);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit { requests, events, deadline, span } => {
                for (index, (id, request)) in requests.into_iter().enumerate() {
                    let record = Record::new(&request, span.clone());
                    self.active.insert(id, Active { index, events: events.clone(), deadline, record });
                    if let Err(error) = self.engine.submit(id, request) {
                        self.fail(id, Failure::Request(error));
                    }
                }
            }
            Command::Abort(ids) => {
                for id in ids {
                    if let Some(active) = self.active.remove(&id) {
                        self.engine.abort(id);
                        active.record.aborted(&self.metrics);
                    }
                }
            }
            Command::Stop => self.stopping = true,
        }
    }

    fn deliver(&mut self, id: RequestId, event: Event) {
        let Some(active) = self.active.get_mut(&id) else { return };
        active.record.observe(&event, &self.metrics);
        let ends = matches!(event, Event::Done | Event::Failed(_));
        let item = match event {
            Event::Failed(error) => Err(Failure::Request(error)),
            event => Ok(event),
        };
        // Nobody listens: the abort is on its way.
        let _ = active.events.send((active.index, item));
        if ends {
            self.active.remove(&id);
        }
    }

    /// Gives up a request.
    fn fail(&mut self, id: RequestId, failure: Failure) {
        if let Some(active) = self.active.remove(&id) {
            self.engine.abort(id);
            active.record.aborted(&self.metrics);
            let _ = active.events.send((active.index, Err(failure)));
        }
    }

    fn fail_all(&mut self, failure: impl Fn() -> Failure) {
        for id in self.active.keys().copied().collect::<Vec<_>>() {
            self.fail(id, failure());
        }
    }

    /// Gives up the requests whose time is over, also those whose clients have stopped reading.
    fn expire(&mut self) {
        let now = Instant::now();
        let late = self.active.iter().filter(|(_, active)| active.deadline <= now).map(|(&id, _)| id);
        let timeout = self.device.options.request_timeout;
        for id in late.collect::<Vec<_>>() {
            self.fail(id, Failure::Timeout(timeout));
        }
    }

    /// Opens the device anew and goes on, or says why that is impossible.
    fn rebuild(&mut self, losses: usize, cause: &tread_core::Error) -> Result<(), String> {
        if losses > MOST_LOSSES {
            return Err(format!("{cause}, {losses} times in a row"));
        }
        self.status.send_replace(Status::Rebuilding);
        let mut last = cause.to_string();
        for pause in PAUSES {
            self.wait(Duration::from_secs(pause));
            if self.stopping {
                return Ok(());
            }
            match self.device.compile() {
                Ok((executable, name)) => {
                    self.engine.recover(executable);
                    tracing::warn!(device = name, "the device is back; requests go on");
                    self.status.send_replace(Status::Ready(name));
                    return Ok(());
                }
                Err(error) => {
                    last = format!("{error:#}");
                    tracing::error!(error = last, "the device cannot be opened yet");
                }
            }
        }
        Err(last)
    }

    /// Waits while requests come and go.
    fn wait(&mut self, pause: Duration) {
        let end = Instant::now() + pause;
        while !self.stopping {
            match self.commands.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(command) => self.handle(command),
                Err(mpsc::RecvTimeoutError::Timeout) => return self.expire(),
                Err(mpsc::RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
    }
}

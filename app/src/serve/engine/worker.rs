//! The engine's thread: takes commands, runs steps, tells what happened, and opens the device anew when it is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tread_core::backend::Executable;
use tread_core::engine::{Engine, Event, RequestId};
use tread_core::model::Model;
use tread_core::monitor::Monitor;

use super::super::events::Feed;
use super::super::metrics::Metrics;
use super::super::options::ServerOptions;
use super::super::record::Record;
use super::status::{Running, Status, StatusOf};
use super::{Command, Failure, OpenDevice, Slot, Submit, Ticket};

/// Seconds before each attempt to open a lost device.
const PAUSES: [u64; 6] = [0, 1, 2, 4, 8, 16];
/// Devices lost in a row without a step between, after which another one will not help.
const MOST_LOSSES: usize = 3;
/// Pause between steps whose ops are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// How to get an executable, as often as need be.
pub(super) struct Device {
    pub(super) open: OpenDevice,
    pub(super) model: Arc<Model>,
    pub(super) options: ServerOptions,
}

impl Device {
    /// The compiled model, and what it runs on.
    fn compile(&mut self) -> anyhow::Result<(Box<dyn Executable>, Running)> {
        let backend = (self.open)()?;
        let executable = crate::engine::compile(&self.model, &*backend, self.options.compile())?;
        Ok((executable, Running::on(&*backend)))
    }
}

/// A request the engine knows.
struct Active {
    ticket: Ticket,
    deadline: Instant,
    record: Record,
    /// Held until the request ends.
    _slots: [Slot; 2],
}

pub(super) struct Worker {
    /// Which of the server's engines it is.
    index: usize,
    device: Device,
    engine: Engine,
    commands: mpsc::Receiver<Command>,
    status: StatusOf,
    metrics: Arc<Metrics>,
    feed: Arc<Feed>,
    monitor: Monitor,
    /// When the ops of a step were measured last.
    measured: Option<Instant>,
    active: HashMap<RequestId, Active>,
    stopping: bool,
}

impl Worker {
    pub(super) fn new(
        mut device: Device,
        commands: mpsc::Receiver<Command>,
        status: StatusOf,
        metrics: Arc<Metrics>,
        feed: Arc<Feed>,
    ) -> anyhow::Result<Self> {
        let compiled = device.compile();
        let (executable, running) =
            compiled.inspect_err(|error| status.set(Status::Failed(format!("{error:#}"))))?;
        let engine = Engine::new(device.model.clone(), executable, device.options.engine());
        let monitor = Monitor::default();
        metrics.standing(&feed.standing(status.engine(), monitor.standing(&engine)));
        status.set(Status::Ready(running));
        let active = HashMap::new();
        Ok(Self {
            index: status.engine(),
            device,
            engine,
            commands,
            status,
            metrics,
            feed,
            monitor,
            measured: None,
            active,
            stopping: false,
        })
    }

    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let mut losses = 0;
        loop {
            self.take_commands();
            if self.stopping {
                self.fail_all(|| Failure::Stopping);
                return Ok(());
            }
            self.expire();
            // Without a step there is none to measure.
            if !self.engine.has_work() {
                continue;
            }
            self.measure();
            match pollster::block_on(self.engine.step()) {
                Ok(events) => {
                    losses = 0;
                    events.into_iter().for_each(|(id, event)| self.deliver(id, event));
                    self.metrics.step(self.engine.last_step());
                    let (step, standing) =
                        (self.monitor.step(&self.engine), self.monitor.standing(&self.engine));
                    self.metrics.standing(&self.feed.step(self.index, step, standing));
                }
                // The device is there, but not all that it needs. It was waited for; whoever comes now is waited for again.
                Err(tread_core::Error::Unavailable(reason)) => {
                    tracing::error!(reason, given_up = self.active.len(), "a step was given up");
                    self.fail_all(|| Failure::Unavailable(reason.clone()));
                }
                Err(error) => {
                    losses += 1;
                    self.metrics.live.device_lost.increment(1);
                    tracing::error!(%error, waiting = self.active.len(), "the device failed");
                    if let Err(reason) = self.rebuild(losses, &error) {
                        self.fail_all(|| Failure::Lost(reason.clone()));
                        self.stand();
                        self.status.set(Status::Failed(reason.clone()));
                        anyhow::bail!("the device was lost and could not be opened again: {reason}");
                    }
                }
            }
        }
    }

    /// Has the next step measured op by op if somebody wants that, and not too often.
    fn measure(&mut self) {
        if self.feed.measures() && self.measured.is_none_or(|last| last.elapsed() >= MEASURE_EVERY) {
            self.measured = Some(Instant::now());
            self.engine.profile_next();
        }
    }

    /// Takes what has come in; without work, waits for something.
    fn take_commands(&mut self) {
        while !self.stopping {
            let command = if self.engine.has_work() {
                let Ok(command) = self.commands.try_recv() else { return };
                command
            } else {
                self.stand();
                // Without a handle there is nobody left to serve.
                self.commands.recv().unwrap_or(Command::Stop)
            };
            self.handle(command);
        }
    }

    /// Tells where the engine stands without a step.
    fn stand(&self) {
        let standing = self.monitor.standing(&self.engine);
        self.metrics.standing(&self.feed.standing(self.index, standing));
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(submit) => {
                let Submit { id, request, ticket, slots, deadline, span } = *submit;
                let record = Record::new(&request, span);
                self.monitor.arrived(id);
                self.active.insert(id, Active { ticket, deadline, record, _slots: slots });
                if let Err(error) = self.engine.submit(id, request) {
                    self.fail(id, Failure::Request(error));
                }
            }
            // Nobody listens any more.
            Command::Abort(id) => {
                if let Some(active) = self.active.remove(&id) {
                    self.engine.abort(id);
                    self.monitor.forget(id);
                    active.record.aborted(&self.metrics);
                }
            }
            Command::Stop => self.stopping = true,
        }
    }

    fn deliver(&mut self, id: RequestId, event: Event) {
        let time = self.monitor.observe(id, &event);
        let Some(active) = self.active.get_mut(&id) else { return };
        active.record.observe(&event, time, &self.metrics);
        let ends = matches!(event, Event::Done | Event::Failed(_));
        active.ticket.send(match event {
            Event::Failed(error) => Err(Failure::Request(error)),
            event => Ok(event),
        });
        if ends {
            self.active.remove(&id);
        }
    }

    /// Gives up a request.
    fn fail(&mut self, id: RequestId, failure: Failure) {
        if let Some(mut active) = self.active.remove(&id) {
            self.engine.abort(id);
            self.monitor.forget(id);
            active.ticket.send(Err(failure));
            active.record.aborted(&self.metrics);
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
        self.status.set(Status::Rebuilding);
        let mut last = cause.to_string();
        for pause in PAUSES {
            self.wait(Duration::from_secs(pause));
            if self.stopping {
                return Ok(());
            }
            match self.device.compile() {
                Ok((executable, running)) => {
                    self.engine.recover(executable);
                    tracing::warn!(device = running.device, "the device is back; requests go on");
                    self.status.set(Status::Ready(running));
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

//! The engine's thread: takes orders, runs steps, reports what happened, and opens the device anew when it is lost.
//!
//! A compiled model cannot leave the thread that compiled it, so that thread opens the device, too.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tread_core::backend::Executable;
use tread_core::engine::{Engine, Event, Request, RequestId};
use tread_core::model::Model;
use tread_core::monitor::Monitor;

use super::{Limits, OpenDevice, Order, Report, Running, Status};

/// Seconds before each attempt to open a lost device.
const PAUSES: [u64; 6] = [0, 1, 2, 4, 8, 16];
/// Devices lost in a row without a step between, after which another one will not help.
const MOST_LOSSES: usize = 3;
/// Pause between steps whose ops are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// The thread of an engine. It ends with [`Order::Stop`], when nobody is left who could give orders, or when its device
/// cannot be had.
pub(crate) type EngineThread = JoinHandle<anyhow::Result<()>>;

/// Where reports go.
pub(crate) type Hear = Box<dyn Fn(Report) + Send>;

/// How to get an executable, as often as need be.
pub(crate) struct Device {
    pub(crate) open: OpenDevice,
    pub(crate) model: Arc<Model>,
    pub(crate) limits: Limits,
}

impl Device {
    /// The compiled model, and what it runs on.
    fn compile(&mut self) -> anyhow::Result<(Box<dyn Executable>, Running)> {
        let backend = (self.open)()?;
        let executable = crate::engine::compile(&self.model, &*backend, self.limits.compile())?;
        Ok((executable, Running::on(&*backend)))
    }
}

/// Starts an engine.
pub(crate) fn start(
    index: usize,
    device: Device,
    orders: mpsc::Receiver<Order>,
    hear: Hear,
) -> std::io::Result<EngineThread> {
    Builder::new().name(format!("engine {index}")).spawn(move || {
        let result = Worker::new(device, orders, Reports(hear)).and_then(Worker::run);
        result.inspect_err(|error| {
            tracing::error!(engine = index, error = format!("{error:#}"), "the engine has ended")
        })
    })
}

/// Where reports go; says so when the thread panics.
struct Reports(Hear);

impl Reports {
    fn status(&self, status: Status) {
        (self.0)(Report::Status(status));
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.status(Status::Failed("the engine has panicked; the log says more".to_owned()));
        }
    }
}

struct Worker {
    device: Device,
    engine: Engine,
    orders: mpsc::Receiver<Order>,
    reports: Reports,
    monitor: Monitor,
    /// Whether ops are to be measured,
    measures: bool,
    /// and when they were last.
    measured: Option<Instant>,
    active: HashSet<RequestId>,
    stopping: bool,
}

impl Worker {
    fn new(mut device: Device, orders: mpsc::Receiver<Order>, reports: Reports) -> anyhow::Result<Self> {
        let compiled = device.compile();
        let (executable, running) =
            compiled.inspect_err(|error| reports.status(Status::Failed(format!("{error:#}"))))?;
        let engine = Engine::new(device.model.clone(), executable, device.limits.engine());
        let worker = Self {
            device,
            engine,
            orders,
            reports,
            monitor: Monitor::default(),
            measures: false,
            measured: None,
            active: HashSet::new(),
            stopping: false,
        };
        worker.stand();
        worker.reports.status(Status::Ready(running));
        Ok(worker)
    }

    fn run(mut self) -> anyhow::Result<()> {
        let mut losses = 0;
        loop {
            self.take_orders();
            if self.stopping {
                return Ok(());
            }
            self.measure();
            match pollster::block_on(self.engine.step()) {
                Ok(events) => {
                    losses = 0;
                    events.into_iter().for_each(|(id, event)| self.deliver(id, event));
                    let step = self.monitor.step(&self.engine);
                    (self.reports.0)(Report::Step(step, self.monitor.standing(&self.engine)));
                }
                // The device is there, but not all that it needs. It was waited for; whoever comes now is waited for again.
                Err(tread_core::Error::Unavailable(reason)) => {
                    tracing::error!(reason, given_up = self.active.len(), "a step was given up");
                    for id in std::mem::take(&mut self.active) {
                        self.engine.abort(id);
                        self.fail(id, tread_core::Error::Unavailable(reason.clone()));
                    }
                }
                Err(error) => {
                    losses += 1;
                    (self.reports.0)(Report::DeviceLost);
                    tracing::error!(%error, waiting = self.active.len(), "the device failed");
                    if let Err(reason) = self.rebuild(losses, &error) {
                        self.reports.status(Status::Failed(reason.clone()));
                        anyhow::bail!("the device was lost and could not be opened again: {reason}");
                    }
                }
            }
        }
    }

    /// Has the next step measured op by op if somebody wants that, and not too often.
    fn measure(&mut self) {
        if self.measures && self.measured.is_none_or(|last| last.elapsed() >= MEASURE_EVERY) {
            self.measured = Some(Instant::now());
            self.engine.profile_next();
        }
    }

    /// Takes what has come in; without work, waits for something.
    fn take_orders(&mut self) {
        while !self.stopping {
            let order = if self.engine.has_work() {
                let Ok(order) = self.orders.try_recv() else { return };
                order
            } else {
                self.stand();
                // Without anybody to give orders there is nobody left to serve.
                self.orders.recv().unwrap_or(Order::Stop)
            };
            self.obey(order);
        }
    }

    /// Tells where the engine stands without a step.
    fn stand(&self) {
        (self.reports.0)(Report::Standing(self.monitor.standing(&self.engine)));
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Submit(id, request) => self.submit(id, *request),
            Order::Abort(id) => {
                if self.active.remove(&id) {
                    self.engine.abort(id);
                    self.monitor.forget(id);
                }
            }
            Order::Measure(measures) => self.measures = measures,
            Order::Stop => self.stopping = true,
        }
    }

    fn submit(&mut self, id: RequestId, request: Request) {
        self.monitor.arrived(id);
        match self.engine.submit(id, request) {
            Ok(()) => drop(self.active.insert(id)),
            Err(error) => self.fail(id, error),
        }
    }

    fn deliver(&mut self, id: RequestId, event: Event) {
        let time = self.monitor.observe(id, &event);
        let ends = matches!(event, Event::Done | Event::Failed(_));
        (self.reports.0)(Report::Event { id, event, time });
        if ends {
            self.active.remove(&id);
        }
    }

    /// Says that a request is given up, of which the engine knows no more.
    fn fail(&mut self, id: RequestId, error: tread_core::Error) {
        self.monitor.forget(id);
        (self.reports.0)(Report::Event { id, event: Event::Failed(error), time: None });
    }

    /// Opens the device anew and goes on, or says why that is impossible.
    fn rebuild(&mut self, losses: usize, cause: &tread_core::Error) -> Result<(), String> {
        if losses > MOST_LOSSES {
            return Err(format!("{cause}, {losses} times in a row"));
        }
        self.reports.status(Status::Rebuilding);
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
                    self.reports.status(Status::Ready(running));
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
            match self.orders.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(order) => self.obey(order),
                Err(mpsc::RecvTimeoutError::Timeout) => return,
                Err(mpsc::RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
    }
}

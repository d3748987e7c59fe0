//! A loaded model and what it is asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tread_core::Result;
use tread_core::backend::Executable;
use tread_core::engine::{Engine, Event, Request, RequestId, Task};
use tread_core::model::Model;
use tread_core::monitor::Monitor;
use web_time::Instant;

use super::answer::{Answer, Question};
use super::bench::{Bench, Next};
use super::device::Device;
use super::load::Ready;
use super::outbox::Outbox;
use crate::chat::ChatEvent;
use crate::protocol::{FromEngine, ModelInfo};

/// What a request is for.
#[derive(Debug)]
pub(super) enum Activity {
    /// An answer that the page called by this number.
    Chat(u64, Answer),
    /// A measurement.
    Bench(Bench),
}

/// What the page wants to hear of steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// Every one.
    pub(super) on: bool,
    /// And now and then where its time went.
    pub(super) ops: bool,
}

/// Between two steps whose ops are measured.
const MEASURE_PAUSE: Duration = Duration::from_secs(1);

/// A loaded model.
#[derive(Debug)]
pub(super) struct Running {
    outbox: Outbox,
    model: Arc<Model>,
    kept: Option<String>,
    info: ModelInfo,
    device: Device,
    engine: Engine,
    active: HashMap<RequestId, Activity>,
    /// The device is being opened again.
    lost: bool,
    /// Losses without a step between.
    losses: u32,
    monitor: Monitor,
    measured: Option<Instant>,
}

/// Measurements are no requests of the page: their numbers come from the other end.
const BENCH: RequestId = RequestId(u64::MAX);

impl Running {
    pub(super) fn new(ready: Ready, outbox: Outbox) -> Self {
        let Ready { model, kept, info, device, engine } = ready;
        Self {
            outbox,
            model,
            kept,
            info,
            device,
            engine,
            active: HashMap::new(),
            lost: false,
            losses: 0,
            monitor: Monitor::default(),
            measured: None,
        }
    }

    pub(super) fn model(&self) -> Arc<Model> {
        Arc::clone(&self.model)
    }

    /// Its name among the models that the browser keeps.
    pub(super) fn kept(&self) -> Option<&String> {
        self.kept.as_ref()
    }

    pub(super) fn device(&self) -> Device {
        self.device.clone()
    }

    pub(super) fn context(&self) -> usize {
        self.info.context
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.model.config.vocab_size()
    }

    /// Whether a step has something to do.
    pub(super) fn has_work(&self) -> bool {
        !self.lost && self.engine.has_work()
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.active.is_empty()
    }

    /// Takes a question of the page in.
    ///
    /// # Errors
    /// What the core says against it.
    pub(super) fn ask(&mut self, id: u64, question: Question) -> Result<(), String> {
        let Question { prompt, generate, answer } = question;
        let request = Request { prompt, task: Task::Generate(Box::new(generate)) };
        self.submit(Activity::Chat(id, answer), request)
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// What the core says against it.
    pub(super) fn submit(&mut self, activity: Activity, request: Request) -> Result<(), String> {
        let id = match &activity {
            Activity::Chat(id, _) => RequestId(*id),
            Activity::Bench(_) => BENCH,
        };
        self.monitor.arrived(id);
        if let Err(error) = self.engine.submit(id, request) {
            self.monitor.forget(id);
            return Err(error.to_string());
        }
        self.active.insert(id, activity);
        Ok(())
    }

    /// Forgets a request.
    pub(super) fn abort(&mut self, id: RequestId) {
        if self.active.remove(&id).is_some() {
            self.engine.abort(id);
            self.monitor.forget(id);
        }
    }

    /// Runs a step and tells the page what it brought.
    ///
    /// # Errors
    /// When the device failed: no request is lost.
    pub(super) async fn step(&mut self, watch: Watch) -> Result<()> {
        let due = self.measured.is_none_or(|at| at.elapsed() >= MEASURE_PAUSE);
        if watch.on && watch.ops && due {
            self.measured = Some(Instant::now());
            self.engine.profile_next();
        }
        let events = self.engine.step().await?;
        self.losses = 0;
        for (id, event) in events {
            self.monitor.observe(id, &event);
            self.deliver(id, event);
        }
        let step = self.monitor.step(&self.engine);
        if watch.on {
            self.outbox.send(&FromEngine::Step { step, standing: self.monitor.standing(&self.engine) });
        }
        Ok(())
    }

    fn deliver(&mut self, id: RequestId, event: Event) {
        let ends = matches!(event, Event::Done | Event::Failed(_));
        match self.active.get_mut(&id) {
            Some(Activity::Chat(id, answer)) => {
                for event in answer.take(event) {
                    self.outbox.send(&FromEngine::Chat { id: *id, event });
                }
            }
            Some(Activity::Bench(bench)) => match bench.take(&event) {
                Next::Wait => {}
                Next::Ask(request) => {
                    self.monitor.arrived(id);
                    match self.engine.submit(id, request) {
                        // The measurement goes on under its number.
                        Ok(()) => return,
                        Err(error) => self.tell(Err(error.to_string())),
                    }
                }
                Next::Done(result) => self.tell(result),
            },
            None => {}
        }
        if ends {
            self.active.remove(&id);
        }
    }

    fn tell(&self, result: Result<crate::protocol::Measurement, String>) {
        let result = result.map(|measured| crate::protocol::Measurement {
            model: self.info.name.clone(),
            device: self.device.name.clone(),
            ..measured
        });
        self.outbox.send(&FromEngine::Measured { result });
    }

    /// Gives everything up.
    pub(super) fn fail_all(&mut self, reason: &str) {
        for (id, activity) in std::mem::take(&mut self.active) {
            self.engine.abort(id);
            self.monitor.forget(id);
            match activity {
                Activity::Chat(id, _) => {
                    let event = ChatEvent::Failed { message: reason.to_owned() };
                    self.outbox.send(&FromEngine::Chat { id, event });
                }
                Activity::Bench(_) => self.tell(Err(reason.to_owned())),
            }
        }
    }

    /// Gives the device back and makes no steps until [`Running::recover`]; returns how many devices were lost in a row. One
    /// that ran out of memory is still there, and what it holds is what the next one needs.
    pub(super) fn lose(&mut self) -> u32 {
        self.device.destroy();
        self.lost = true;
        self.losses += 1;
        self.losses
    }

    /// Goes on with another device.
    pub(super) fn recover(&mut self, device: Device, executable: Box<dyn Executable>) {
        self.engine.recover(executable);
        self.device = device;
        self.lost = false;
    }

    /// # Errors
    /// Once the device has failed, also while nothing is computed.
    pub(super) fn check(&self) -> Result<()> {
        if self.lost { Ok(()) } else { self.device.check() }
    }
}

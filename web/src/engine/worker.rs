//! The task that owns the engine: hears the page, runs steps, tells what happened.

use std::time::Duration;

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender};
use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, Either, abortable, select};
use tread_core::backend::Executable;
use tread_core::engine::RequestId;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;
use web_sys::File;

use super::answer::Question;
use super::bench::Bench;
use super::device::{Device, Devices};
use super::download;
use super::failure::{Failed, failed, in_a_browser};
use super::js::{Turns, sleep};
use super::load::{self, Ready};
use super::outbox::Outbox;
use super::running::{Activity, Running, Watch};
use super::store::Store;
use crate::chat::{ChatEvent, ChatRequest};
use crate::protocol::{Compute, FailureKind, FromEngine, ModelRef, Stage, ToEngine};

/// A device may be lost also while nothing is asked of it: how often that is looked at.
const CHECK: Duration = Duration::from_secs(2);
/// Seconds before each attempt to open a lost device.
const PAUSES: [u64; 5] = [0, 1, 2, 4, 8];
/// Devices lost in a row without a step between, after which another one will not help.
const MOST_LOSSES: u32 = 3;

/// What the task is told.
pub(super) enum Command {
    /// By the page.
    Page(ToEngine, Vec<File>),
    /// By a task that loads: which one, and what came of it.
    Loaded(u64, Result<Box<Ready>, Failed>),
    /// By a task that opened a lost device again.
    Reopened(u64, Result<(Device, Box<dyn Executable>), Failed>),
}

/// A task that loads, or opens a device again.
struct Job {
    number: u64,
    abort: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// See the module.
pub(super) struct Worker {
    commands: UnboundedSender<Command>,
    inbox: UnboundedReceiver<Command>,
    outbox: Outbox,
    turns: Turns,
    devices: Devices,
    running: Option<Running>,
    watch: Watch,
    job: Option<Job>,
    jobs: u64,
    benches: u32,
}

impl Worker {
    /// # Errors
    /// When the browser has no message channels.
    pub(super) fn new(
        commands: UnboundedSender<Command>,
        inbox: UnboundedReceiver<Command>,
    ) -> Result<Self, JsValue> {
        Ok(Self {
            commands,
            inbox,
            outbox: Outbox::new(),
            turns: Turns::new()?,
            devices: Devices::default(),
            running: None,
            watch: Watch::default(),
            job: None,
            jobs: 0,
            benches: 0,
        })
    }

    /// Runs as long as the page.
    pub(super) async fn run(mut self) {
        loop {
            if self.running.as_ref().is_some_and(Running::has_work) {
                match self.inbox.try_recv() {
                    Ok(command) => self.handle(command),
                    Err(_) => self.step().await,
                }
                continue;
            }
            match select(self.inbox.next(), Box::pin(sleep(CHECK))).await {
                Either::Left((Some(command), _)) => self.handle(command),
                Either::Left((None, _)) => return,
                Either::Right(_) => {
                    if let Some(Err(error)) = self.running.as_ref().map(Running::check) {
                        self.lost(error.into());
                    }
                }
            }
        }
    }

    async fn step(&mut self) {
        let Some(running) = &mut self.running else { return };
        if let Err(error) = running.step(self.watch).await {
            self.lost(error.into());
        }
        self.turns.take().await;
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Page(message, files) => self.page(message, files),
            Command::Loaded(number, result) if self.finished(number) => {
                let result = result.map(|ready| {
                    let info = ready.info.clone();
                    self.running = Some(Running::new(*ready, self.outbox.clone()));
                    info
                });
                self.outbox.send(&FromEngine::Loaded { result });
            }
            Command::Reopened(number, result) if self.finished(number) => match result {
                Ok((device, executable)) => {
                    if let Some(running) = &mut self.running {
                        running.recover(device, executable);
                        self.outbox.send(&FromEngine::Recovered);
                    }
                }
                Err(failure) => self.give_up(failure),
            },
            // Of a task that was ended meanwhile.
            Command::Loaded(_, Ok(ready)) => ready.device.destroy(),
            Command::Reopened(_, Ok((device, _))) => device.destroy(),
            Command::Loaded(_, Err(_)) | Command::Reopened(_, Err(_)) => {}
        }
    }

    /// Whether a task that reports is the current one, which it no longer is then.
    fn finished(&mut self, number: u64) -> bool {
        let current = self.job.as_ref().is_some_and(|job| job.number == number);
        if current {
            self.job = None;
        }
        current
    }

    fn page(&mut self, message: ToEngine, files: Vec<File>) {
        match message {
            ToEngine::Probe => {
                let devices = self.devices.clone();
                self.answer(async move { FromEngine::Probed { capabilities: devices.probe().await } });
            }
            ToEngine::List => self.answer(stored()),
            ToEngine::Inspect { model, context } => self.answer(async move {
                let result = load::inspect(&model, &files, context).await;
                FromEngine::Inspected { model, result: result.map_err(|failure| failure.message) }
            }),
            ToEngine::Load { model, context, compute } => self.load(model, files, context, compute),
            ToEngine::CancelLoad => self.cancel(),
            ToEngine::Unload => {
                self.job = None;
                self.unload("the model was unloaded");
            }
            ToEngine::Verify { name } => self.answer(async move {
                let result = verify(&name).await.map_err(|failure| failure.message);
                FromEngine::Verified { name, result }
            }),
            ToEngine::Delete { name } => self.delete(name),
            ToEngine::Chat { id, request } => self.chat(id, &request),
            ToEngine::Abort { id } => {
                if let Some(running) = &mut self.running {
                    running.abort(RequestId(id));
                }
            }
            ToEngine::Watch { on, ops } => self.watch = Watch { on, ops },
            ToEngine::Bench { prompt_tokens, new_tokens } => self.bench([prompt_tokens, new_tokens]),
            ToEngine::LoseDevice => {
                self.lost(failed(FailureKind::Device, "the device was destroyed, as you asked"));
            }
        }
    }

    /// Sends what a task of its own finds out.
    fn answer(&self, work: impl Future<Output = FromEngine> + 'static) {
        let outbox = self.outbox.clone();
        spawn_local(async move { outbox.send(&work.await) });
    }

    /// Starts the one task that may be ended before its end; an older one ends.
    fn start(&mut self, work: impl AsyncFnOnce() -> Command + 'static) {
        self.jobs += 1;
        let commands = self.commands.clone();
        let (work, abort) = abortable(async move {
            // The receiver is gone only with the worker.
            let _ = commands.unbounded_send(work().await);
        });
        self.job = Some(Job { number: self.jobs, abort });
        spawn_local(async move {
            let _ = work.await;
        });
    }

    fn load(&mut self, model: ModelRef, files: Vec<File>, context: Option<usize>, compute: Compute) {
        // Its memory may be what the next one needs.
        self.unload("another model is being loaded");
        self.outbox.progress(Stage::Download, 0, 0);
        let (number, devices, outbox) = (self.jobs + 1, self.devices.clone(), self.outbox.clone());
        self.start(async move || {
            let ready = load::load(&devices, &outbox, &model, &files, context, compute).await;
            Command::Loaded(number, ready.map(Box::new))
        });
    }

    fn delete(&mut self, name: String) {
        // It would need its files again if its device were lost.
        if self.running.as_ref().is_some_and(|running| running.kept() == Some(&name)) {
            self.unload("its files were deleted");
        }
        self.answer(async move {
            if let Err(failure) = delete(&name).await {
                web_sys::console::error_1(&failure.message.into());
            }
            stored().await
        });
    }

    fn cancel(&mut self) {
        // A device that is being opened again is not being loaded.
        if self.running.is_none() && self.job.take().is_some() {
            let result = Err(failed(FailureKind::Cancelled, "loading was stopped; what is downloaded stays"));
            self.outbox.send(&FromEngine::Loaded { result });
        }
    }

    fn unload(&mut self, reason: &str) {
        if let Some(mut running) = self.running.take() {
            running.fail_all(reason);
            running.lose();
        }
        self.outbox.send(&FromEngine::Unloaded);
    }

    fn give_up(&mut self, failure: Failed) {
        self.unload(&failure.message);
        self.outbox.send(&FromEngine::Loaded { result: Err(failure) });
    }

    /// The device is gone, or of no use any more: opens it again, while requests wait.
    fn lost(&mut self, failure: Failed) {
        let Some(running) = &mut self.running else { return };
        let losses = running.lose();
        let Failed { message, kind } = failure;
        self.outbox.send(&FromEngine::DeviceLost { message: message.clone() });
        if losses > MOST_LOSSES {
            let message =
                format!("{message}; that happened {losses} times in a row: a smaller model may help");
            return self.give_up(failed(kind, message));
        }
        let (model, device, context) = (running.model(), running.device(), running.context());
        let (number, devices, outbox) = (self.jobs + 1, self.devices.clone(), self.outbox.clone());
        self.start(async move || {
            let mut last = failed(kind, message);
            for pause in PAUSES {
                sleep(Duration::from_secs(pause)).await;
                let device = match devices.reopen(&device).await {
                    Ok(device) => device,
                    Err(failure) => {
                        last = failure;
                        continue;
                    }
                };
                match load::upload(&device, &outbox, &model, context).await {
                    Ok(executable) => return Command::Reopened(number, Ok((device, executable))),
                    Err(failure) => last = failure,
                }
                device.destroy();
            }
            Command::Reopened(number, Err(last))
        });
    }

    fn chat(&mut self, id: u64, request: &ChatRequest) {
        let asked = match &mut self.running {
            Some(running) => {
                let seed = js_sys::Date::now() as u64 ^ id;
                let question = Question::new(&running.model(), request, seed);
                question.map_err(|error| error.to_string()).and_then(|question| running.ask(id, question))
            }
            None => Err("no model is loaded in this browser; load one first".to_owned()),
        };
        if let Err(message) = asked {
            let event = ChatEvent::Failed { message: in_a_browser(&message) };
            self.outbox.send(&FromEngine::Chat { id, event });
        }
    }

    fn bench(&mut self, tokens: [usize; 2]) {
        self.benches += 1;
        let begun = match &mut self.running {
            None => Err("no model is loaded in this browser; load one first".to_owned()),
            Some(running) if running.has_requests() => {
                Err("the model is busy; measure when it has answered".to_owned())
            }
            Some(running) => Bench::new(tokens, running.vocab_size(), running.context(), self.benches)
                .and_then(|(bench, request)| running.submit(Activity::Bench(bench), request)),
        };
        if let Err(message) = begun {
            self.outbox.send(&FromEngine::Measured { result: Err(message) });
        }
    }
}

/// What is kept.
async fn stored() -> FromEngine {
    let models = match Store::open().await {
        Ok(store) => store.list().await.unwrap_or_default(),
        Err(_) => vec![],
    };
    let (used, quota) = super::store::estimate().await;
    FromEngine::Stored { models, used, quota }
}

async fn delete(name: &str) -> Result<(), Failed> {
    Store::open().await?.delete(name).await
}

/// Compares all files of a model with the hashes that were taken when they came.
async fn verify(name: &str) -> Result<(), Failed> {
    let store = Store::open().await?;
    let recipe = store.recipe(name).await?;
    let folder = store.folder(name).await?;
    for spec in &recipe.files {
        let journal = folder.journal(&spec.name).await?;
        let Some(journal) = journal.filter(|journal| journal.complete) else {
            return Err(super::failure::other(format!(
                "{} is not complete; load {name} to go on",
                spec.name
            )));
        };
        if let Some(piece) = download::damage(&folder, &spec.name, &journal, &mut |_, _| ()).await? {
            let start = super::journal::piece(piece, journal.header.total).start;
            let message = format!("{} is damaged from byte {start} on; load {name} to mend it", spec.name);
            return Err(failed(FailureKind::Corrupt, message));
        }
    }
    Ok(())
}

//! The engine in this browser, as the page sees it: a worker, what it said last, and who listens to it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use js_sys::{Array, Object, Reflect};
use leptos::prelude::*;
use tread_core::monitor::{Standing, StepEvent};
use wasm_bindgen::prelude::*;
use web_sys::{File, MessageEvent, Worker, WorkerOptions, WorkerType};

use crate::chat::{ChatEvent, ChatRequest};
use crate::protocol::{
    Capabilities, Failure, FromEngine, Measurement, ModelInfo, ModelRef, Stage, StoredModel, ToEngine,
};

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What the browser's storage holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Storage {
    /// Models kept.
    pub models: Vec<StoredModel>,
    /// Bytes used by this origin.
    pub used: Option<u64>,
    /// Bytes it may use.
    pub quota: Option<u64>,
}

/// The engine in this browser. Its worker is started by the first message.
#[derive(Clone, Copy, Debug)]
pub struct Tab {
    /// What browser and GPU can do, once [`ToEngine::Probe`] is answered.
    pub capabilities: RwSignal<Option<Capabilities>>,
    /// Models kept in the browser.
    pub storage: RwSignal<Storage>,
    /// The model asked about last, and what it is.
    pub inspected: RwSignal<Option<(ModelRef, Result<ModelInfo, String>)>>,
    /// How far loading is; none when nothing loads.
    pub progress: RwSignal<Option<Progress>>,
    /// The model that can be asked.
    pub loaded: RwSignal<Option<ModelInfo>>,
    /// Why the last loading failed.
    pub failure: RwSignal<Option<Failure>>,
    /// The device is lost and not back yet.
    pub lost: RwSignal<Option<String>>,
    /// What checking a kept model found.
    pub verified: RwSignal<Option<(String, Result<(), String>)>>,
    /// What the last benchmark measured.
    pub measured: RwSignal<Option<Result<Measurement, String>>>,
    connection: StoredValue<Rc<Connection>, LocalStorage>,
}

/// Hears the events of one request.
type Listener = Rc<dyn Fn(ChatEvent)>;

/// Hears of steps.
type StepListener = Rc<dyn Fn(&StepEvent, &Standing)>;

/// A listener of [`Tab::on_step`], for [`Tab::off_step`].
#[derive(Clone, Copy, Debug)]
pub struct StepHandle(u64);

#[derive(Default)]
struct Connection {
    worker: RefCell<Option<Worker>>,
    listeners: RefCell<HashMap<u64, Listener>>,
    step_listeners: RefCell<HashMap<u64, StepListener>>,
    next_id: RefCell<u64>,
}

impl Tab {
    /// No worker yet.
    pub fn new() -> Self {
        Self {
            capabilities: RwSignal::new(None),
            storage: RwSignal::new(Storage::default()),
            inspected: RwSignal::new(None),
            progress: RwSignal::new(None),
            loaded: RwSignal::new(None),
            failure: RwSignal::new(None),
            lost: RwSignal::new(None),
            verified: RwSignal::new(None),
            measured: RwSignal::new(None),
            connection: StoredValue::new_local(Rc::default()),
        }
    }

    /// Sends a message.
    pub fn send(&self, message: &ToEngine) {
        self.send_files(message, &[]);
    }

    /// Sends a message with the files that it names.
    pub fn send_files(&self, message: &ToEngine, files: &[File]) {
        let Ok(json) = serde_json::to_string(message) else { return };
        let object = Object::new();
        let files: Array = files.iter().collect();
        let set = |key: &str, value: &JsValue| Reflect::set(&object, &key.into(), value);
        if set("json", &json.into()).and_then(|_| set("files", &files)).is_err() {
            return;
        }
        match self.worker() {
            Ok(worker) => _ = worker.post_message(&object),
            Err(error) => leptos::logging::error!("the worker cannot be started: {error:?}"),
        }
    }

    /// Asks for an answer; `listen` hears its events. Returns the request's number, for [`ToEngine::Abort`].
    pub fn chat(&self, request: ChatRequest, listen: impl Fn(ChatEvent) + 'static) -> u64 {
        let connection = self.connection.get_value();
        let id = connection.next_id.replace_with(|id| *id + 1);
        connection.listeners.borrow_mut().insert(id, Rc::new(listen));
        self.send(&ToEngine::Chat { id, request });
        id
    }

    /// `listen` hears of every step while they are watched ([`ToEngine::Watch`]). No signal: several steps may come in one
    /// turn, and a signal keeps only the last.
    pub fn on_step(&self, listen: impl Fn(&StepEvent, &Standing) + 'static) -> StepHandle {
        let connection = self.connection.get_value();
        let id = connection.next_id.replace_with(|id| *id + 1);
        connection.step_listeners.borrow_mut().insert(id, Rc::new(listen));
        StepHandle(id)
    }

    /// That listener hears no more.
    pub fn off_step(&self, handle: StepHandle) {
        self.connection.get_value().step_listeners.borrow_mut().remove(&handle.0);
    }

    fn worker(&self) -> Result<Worker, JsValue> {
        let connection = self.connection.get_value();
        if let Some(worker) = &*connection.worker.borrow() {
            return Ok(worker.clone());
        }
        let options = WorkerOptions::new();
        options.set_type(WorkerType::Module);
        let worker = Worker::new_with_options("worker.js", &options)?;
        let tab = *self;
        let listener = Closure::<dyn Fn(MessageEvent)>::new(move |event: MessageEvent| {
            let Some(json) = event.data().as_string() else { return };
            match serde_json::from_str(&json) {
                Ok(message) => tab.hear(message),
                Err(error) => leptos::logging::error!("the worker said something unknown: {error}: {json}"),
            }
        });
        worker.set_onmessage(Some(listener.as_ref().unchecked_ref()));
        // As long-lived as the page.
        listener.forget();
        *connection.worker.borrow_mut() = Some(worker.clone());
        Ok(worker)
    }

    fn hear(&self, message: FromEngine) {
        match message {
            FromEngine::Probed { capabilities } => self.capabilities.set(Some(capabilities)),
            FromEngine::Stored { models, used, quota } => self.storage.set(Storage { models, used, quota }),
            FromEngine::Inspected { model, result } => self.inspected.set(Some((model, result))),
            FromEngine::Progress { stage, done, total } => {
                self.failure.set(None);
                self.progress.set(Some(Progress { stage, done, total }));
            }
            FromEngine::Loaded { result } => {
                self.progress.set(None);
                self.lost.set(None);
                self.failure.set(result.as_ref().err().cloned());
                self.loaded.set(result.ok());
            }
            FromEngine::Unloaded => {
                self.progress.set(None);
                self.lost.set(None);
                self.loaded.set(None);
            }
            FromEngine::Verified { name, result } => self.verified.set(Some((name, result))),
            FromEngine::Chat { id, event } => self.deliver(id, event),
            FromEngine::Step { step, standing } => self.stepped(&step, &standing),
            FromEngine::Measured { result } => self.measured.set(Some(result)),
            FromEngine::DeviceLost { message } => self.lost.set(Some(message)),
            FromEngine::Recovered => {
                self.progress.set(None);
                self.lost.set(None);
            }
        }
    }

    fn stepped(&self, step: &StepEvent, standing: &Standing) {
        let connection = self.connection.get_value();
        // Not held while they run: a listener may take itself off.
        let listeners: Vec<StepListener> = connection.step_listeners.borrow().values().cloned().collect();
        for listener in listeners {
            listener(step, standing);
        }
    }

    fn deliver(&self, id: u64, event: ChatEvent) {
        let connection = self.connection.get_value();
        let ends = matches!(event, ChatEvent::Finished { .. } | ChatEvent::Failed { .. });
        // Not held while it runs: a listener may ask the next question.
        let listener = connection.listeners.borrow().get(&id).cloned();
        if let Some(listener) = listener {
            listener(event);
        }
        if ends {
            connection.listeners.borrow_mut().remove(&id);
        }
    }
}

impl Default for Tab {
    fn default() -> Self {
        Self::new()
    }
}

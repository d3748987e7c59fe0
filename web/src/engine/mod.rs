//! The worker: owns the device and the engine, keeps models, answers the page.
//!
//! One task, the `worker`, owns the engine and steps it while there is work; it hears the page between any two steps. What
//! takes longer (looking at a model, loading one, opening a lost device again) are tasks of their own that report back to
//! it. Dropping such a task ends it, wherever it is.

mod answer;
mod bench;
mod device;
mod download;
mod failure;
mod info;
mod journal;
mod js;
mod load;
mod outbox;
mod recipe;
mod remote;
mod resolve;
mod running;
mod self_test;
mod source;
mod store;
mod worker;

use futures_channel::mpsc::unbounded;
use js_sys::{Array, Reflect};
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::Closure;
use web_sys::{File, MessageEvent};

use self::worker::{Command, Worker};

/// Listens to the page from now on.
pub fn start() {
    let (commands, inbox) = unbounded();
    let page = commands.clone();
    let listener = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
        if let Some(command) = command(&event) {
            // The receiver is gone only when the worker ends.
            let _ = page.unbounded_send(command);
        }
    });
    js::scope().set_onmessage(Some(listener.as_ref().unchecked_ref()));
    // As long-lived as the worker.
    listener.forget();
    wasm_bindgen_futures::spawn_local(async move {
        match Worker::new(commands, inbox) {
            Ok(worker) => worker.run().await,
            Err(error) => web_sys::console::error_1(&error),
        }
    });
}

/// What a message of the page says.
fn command(event: &MessageEvent) -> Option<Command> {
    let data = event.data();
    let json = Reflect::get(&data, &"json".into()).ok()?.as_string()?;
    let files = Reflect::get(&data, &"files".into()).ok()?;
    let files = files.dyn_into::<Array>().map(|files| files.iter().map(File::from).collect());
    match serde_json::from_str(&json) {
        Ok(message) => Some(Command::Page(message, files.unwrap_or_default())),
        Err(error) => {
            web_sys::console::error_1(&format!("the page said something unknown: {error}: {json}").into());
            None
        }
    }
}

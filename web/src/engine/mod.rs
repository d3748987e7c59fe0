//! The worker: owns the device and the engine, keeps models, answers the page.

use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::Closure;
use web_sys::{DedicatedWorkerGlobalScope, MessageEvent};

/// Listens to the page from now on.
pub fn start() {
    let scope: DedicatedWorkerGlobalScope = js_sys::global().unchecked_into();
    let listener = Closure::<dyn FnMut(MessageEvent)>::new(|_event: MessageEvent| {
        wasm_bindgen_futures::spawn_local(async {
            let adapters = tread_shaders::adapters().await;
            web_sys::console::log_1(&format!("{adapters:?}").into());
        });
    });
    scope.set_onmessage(Some(listener.as_ref().unchecked_ref()));
    listener.forget();
}

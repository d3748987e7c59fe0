//! Small things that every use of the browser's interfaces needs.

use std::time::Duration;

use futures_channel::mpsc::{UnboundedReceiver, unbounded};
use futures_util::StreamExt as _;
use js_sys::{Promise, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{DedicatedWorkerGlobalScope, DomException, MessageChannel, MessagePort};

/// The worker itself.
pub(super) fn scope() -> DedicatedWorkerGlobalScope {
    js_sys::global().unchecked_into()
}

/// What a promise brings.
pub(super) async fn wait<T: JsCast>(promise: Promise) -> Result<T, JsValue> {
    JsFuture::from(promise).await.map(JsCast::unchecked_into)
}

/// What went wrong, for people.
pub(super) fn text(error: &JsValue) -> String {
    if let Some(exception) = error.dyn_ref::<DomException>() {
        return format!("{} ({})", exception.message(), exception.name());
    }
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => format!("{error:?}"),
    }
}

/// Whether an error has this name.
pub(super) fn is_named(error: &JsValue, name: &str) -> bool {
    error.dyn_ref::<DomException>().is_some_and(|exception| exception.name() == name)
}

/// Waits.
pub(super) async fn sleep(time: Duration) {
    let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    let promise = Promise::new(&mut |resolve, _| {
        // Without a timer the promise would never come; a worker always has them.
        let _ = scope().set_timeout_with_callback_and_timeout_and_arguments_0(&resolve, millis);
    });
    // It is never rejected.
    let _ = JsFuture::from(promise).await;
}

/// SHA-256 in hexadecimal digits, computed by the browser.
pub(super) async fn sha256(bytes: &[u8]) -> Result<String, JsValue> {
    let subtle = scope().crypto()?.subtle();
    let promise = subtle.digest_with_str_and_js_u8_array("SHA-256", &Uint8Array::from(bytes))?;
    let digest: js_sys::ArrayBuffer = wait(promise).await?;
    Ok(hex(&Uint8Array::new(&digest).to_vec()))
}

/// Hexadecimal digits of bytes.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Turns of the browser's event loop: timers are held back by milliseconds, messages are not.
pub(super) struct Turns {
    port: MessagePort,
    heard: UnboundedReceiver<()>,
    _listener: Closure<dyn FnMut()>,
}

impl Turns {
    pub(super) fn new() -> Result<Self, JsValue> {
        let channel = MessageChannel::new()?;
        let (sender, heard) = unbounded();
        let listener = Closure::<dyn FnMut()>::new(move || {
            // The receiver is gone only with the worker.
            let _ = sender.unbounded_send(());
        });
        channel.port1().set_onmessage(Some(listener.as_ref().unchecked_ref()));
        Ok(Self { port: channel.port2(), heard, _listener: listener })
    }

    /// Lets whatever waits in the event loop run first.
    pub(super) async fn take(&mut self) {
        if self.port.post_message(&JsValue::NULL).is_ok() {
            self.heard.next().await;
        }
    }
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Turns")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_become_digits() {
        assert_eq!(super::hex(&[0, 10, 255]), "000aff");
    }
}

//! Requests to the server behind the page.

use js_sys::Uint8Array;
use leptos::prelude::window;
use wasm_bindgen::{JsCast as _, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{AbortSignal, Headers, ReadableStreamDefaultReader, RequestInit, Response};

/// How a request is made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// The key that the server asks for.
    pub(crate) key: Option<String>,
    /// Gives the request up.
    pub(crate) signal: Option<AbortSignal>,
    /// JSON that is posted; nothing: something is asked for.
    pub(crate) body: Option<String>,
}

/// Asks for an address relative to the page; whatever is answered is an answer. The error says what happened, for people.
pub(crate) async fn send(address: &str, call: &Call) -> Result<Response, String> {
    let options = RequestInit::new();
    let headers = Headers::new().map_err(|error| told(&error))?;
    if let Some(key) = &call.key {
        headers.set("Authorization", &format!("Bearer {key}")).map_err(|error| told(&error))?;
    }
    if let Some(body) = &call.body {
        headers.set("Content-Type", "application/json").map_err(|error| told(&error))?;
        options.set_method("POST");
        options.set_body(&body.into());
    }
    options.set_headers(&headers);
    options.set_signal(call.signal.as_ref());
    let response = JsFuture::from(window().fetch_with_str_and_init(address, &options)).await;
    Ok(response.map_err(|_| "the server does not answer".to_owned())?.unchecked_into())
}

/// As [`send`], but an answer that is a refusal is an error.
pub(crate) async fn fetch(address: &str, call: &Call) -> Result<Response, String> {
    let response = send(address, call).await?;
    match response.status() {
        200..=299 => Ok(response),
        401 => Err("the server asks for its key; enter it in the settings of the chat".to_owned()),
        status => Err(format!("the server answered {status} to `{address}`")),
    }
}

/// The body as text.
pub(crate) async fn text(response: &Response) -> Result<String, String> {
    let text =
        JsFuture::from(response.text().map_err(|error| told(&error))?).await.map_err(|error| told(&error))?;
    text.as_string().ok_or_else(|| "the answer is no text".to_owned())
}

/// Gives the body's bytes to `hear` as they come, until it ends or breaks.
pub(crate) async fn stream(response: &Response, mut hear: impl FnMut(&[u8])) -> Result<(), String> {
    let Some(body) = response.body() else { return Ok(()) };
    let reader: ReadableStreamDefaultReader = body.get_reader().unchecked_into();
    loop {
        let read = JsFuture::from(reader.read()).await.map_err(|_| "the connection broke".to_owned())?;
        let field = |name: &str| js_sys::Reflect::get(&read, &name.into()).unwrap_or(JsValue::UNDEFINED);
        if field("done").is_truthy() {
            return Ok(());
        }
        hear(&field("value").unchecked_into::<Uint8Array>().to_vec());
    }
}

fn told(error: &JsValue) -> String {
    format!("{error:?}")
}

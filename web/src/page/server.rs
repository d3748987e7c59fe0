//! The server that the page came from.

use js_sys::Uint8Array;
use leptos::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{AbortController, Headers, ReadableStreamDefaultReader, RequestInit, Response};

use super::local;
use crate::chat::sse::{Answer, Events, broken, error_message};
use crate::chat::{ChatEvent, ChatRequest};

/// Where the key is kept while the tab is open.
const KEY: &str = "tread.key";

/// What is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Whether there is one.
    pub reach: RwSignal<Reach>,
    /// The name of its model; none while unknown, or where no server is.
    pub model: RwSignal<Option<String>>,
    /// Most tokens of prompt and answer together.
    pub context: RwSignal<Option<usize>>,
    /// The key that it asks for.
    pub key: RwSignal<Option<String>>,
}

/// Whether there is a server behind the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It was not asked yet.
    Unknown,
    /// Nothing answers.
    Absent,
    /// It answers, and wants a key, or another than it was given.
    Locked,
    /// It can be asked.
    Ready,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    max_model_len: Option<usize>,
}

impl Server {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            reach: RwSignal::new(Reach::Unknown),
            model: RwSignal::new(None),
            context: RwSignal::new(None),
            key: RwSignal::new(local::get(local::passing().as_ref(), KEY)),
        }
    }

    /// Takes the key that the user gave, and tries it.
    pub fn unlock(self, key: &str) {
        local::set(local::passing().as_ref(), KEY, Some(key));
        self.key.set(Some(key.to_owned()));
        self.connect(|| ());
    }

    /// Finds out whether there is a server, and its model.
    pub fn connect(self, then: impl FnOnce() + 'static) {
        spawn_local(async move {
            self.reach.set(self.find().await);
            then();
        });
    }

    async fn find(self) -> Reach {
        let Ok(response) = self.fetch("v1/models", &RequestInit::new()).await else { return Reach::Absent };
        if response.status() == 401 {
            return Reach::Locked;
        }
        let models = serde_json::from_str::<Models>(&text(&response).await).ok();
        let Some(model) = models.and_then(|models| models.data.into_iter().next()) else {
            return Reach::Absent;
        };
        self.model.set(Some(model.id));
        self.context.set(model.max_model_len);
        Reach::Ready
    }

    /// Asks for an answer; `listen` hears its events. Aborting what is returned ends them.
    pub fn chat(
        self,
        request: &ChatRequest,
        listen: impl Fn(ChatEvent) + 'static,
    ) -> Option<AbortController> {
        let abort = AbortController::new().ok();
        let options = RequestInit::new();
        options.set_method("POST");
        options.set_body(&body(request).to_string().into());
        options.set_signal(abort.as_ref().map(AbortController::signal).as_ref());
        spawn_local(async move {
            if let Some(last) = self.stream(&options, &listen).await {
                listen(last);
            }
        });
        abort
    }

    /// Reports events as they come. Returns one that ends the answer, unless the stream brought it.
    async fn stream(self, options: &RequestInit, listen: &impl Fn(ChatEvent)) -> Option<ChatEvent> {
        let failed = |message: String| Some(ChatEvent::Failed { message });
        let Ok(response) = self.fetch("v1/chat/completions", options).await else {
            let message = "The server does not answer. See whether it still runs, then regenerate.";
            return failed(message.to_owned());
        };
        if !response.ok() {
            return failed(self.refusal(&response).await);
        }
        let body = response.body()?;
        let reader: ReadableStreamDefaultReader = body.get_reader().unchecked_into();
        let (mut events, mut answer) = (Events::default(), Answer::default());
        while let Ok(Some(bytes)) = read(&reader).await {
            for event in events.push(&bytes).iter().flat_map(|data| answer.read(data)).collect::<Vec<_>>() {
                let ends = matches!(event, ChatEvent::Finished { .. } | ChatEvent::Failed { .. });
                listen(event);
                if ends {
                    return None;
                }
            }
        }
        Some(broken())
    }

    /// Why the server refuses, and what to do.
    async fn refusal(self, response: &Response) -> String {
        let said = error_message(&text(response).await);
        let said =
            said.unwrap_or_else(|| format!("The server answered with the status {}.", response.status()));
        match response.status() {
            401 => {
                self.reach.set(Reach::Locked);
                "The server asks for a key. Give it below, then regenerate.".to_owned()
            }
            429 => format!("{said} The server is busy: wait a moment, then regenerate."),
            500.. => format!("{said} Wait a moment, then regenerate."),
            _ => said,
        }
    }

    async fn fetch(self, path: &str, options: &RequestInit) -> Result<Response, JsValue> {
        let headers = Headers::new()?;
        headers.set("Content-Type", "application/json")?;
        if let Some(key) = self.key.get_untracked() {
            headers.set("Authorization", &format!("Bearer {key}"))?;
        }
        options.set_headers(&headers);
        let response = JsFuture::from(window().fetch_with_str_and_init(path, options)).await?;
        response.dyn_into()
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

/// A request in OpenAI's form.
fn body(request: &ChatRequest) -> Value {
    let mut body = serde_json::to_value(&request.sampling).unwrap_or_else(|_| json!({}));
    body["messages"] = json!(request.messages);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    if !request.tools.is_empty() {
        body["tools"] = json!(request.tools);
    }
    if request.continues {
        body["continue_final_message"] = json!(true);
    }
    body
}

/// All that a response says.
async fn text(response: &Response) -> String {
    let Ok(promise) = response.text() else { return String::new() };
    JsFuture::from(promise).await.ok().and_then(|text| text.as_string()).unwrap_or_default()
}

/// The next bytes; none at the end.
async fn read(reader: &ReadableStreamDefaultReader) -> Result<Option<Vec<u8>>, JsValue> {
    let result = JsFuture::from(reader.read()).await?;
    let value = js_sys::Reflect::get(&result, &"value".into())?;
    Ok(value.dyn_into::<Uint8Array>().ok().map(|bytes| bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::body;
    use crate::chat::{ChatRequest, Message, Sampling};

    #[test]
    fn a_request_is_what_openai_reads() {
        let message = Message { role: "user".to_owned(), content: "Hi".to_owned(), ..Message::default() };
        let sampling = Sampling { seed: Some(1), ..Sampling::default() };
        let request =
            ChatRequest { messages: vec![message], sampling, continues: true, ..ChatRequest::default() };
        let expected = json!({
            "seed": 1, "messages": [{"role": "user", "content": "Hi"}], "stream": true,
            "stream_options": {"include_usage": true}, "continue_final_message": true,
        });
        assert_eq!(body(&request), expected);
    }
}

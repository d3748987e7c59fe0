//! The server that the page came from.

use leptos::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use wasm_bindgen_futures::spawn_local;
use web_sys::{AbortController, Response};

use super::http::{self, Call};
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
        let Ok(response) = http::send("v1/models", &self.call()).await else { return Reach::Absent };
        if response.status() == 401 {
            return Reach::Locked;
        }
        let models =
            http::text(&response).await.ok().and_then(|text| serde_json::from_str::<Models>(&text).ok());
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
        let call = Call {
            signal: abort.as_ref().map(AbortController::signal),
            body: Some(body(request).to_string()),
            ..self.call()
        };
        spawn_local(async move {
            if let Some(last) = self.stream(&call, &listen).await {
                listen(last);
            }
        });
        abort
    }

    /// Reports events as they come. Returns one that ends the answer, unless the stream brought it.
    async fn stream(self, call: &Call, listen: &impl Fn(ChatEvent)) -> Option<ChatEvent> {
        let failed = |message: String| Some(ChatEvent::Failed { message });
        let Ok(response) = http::send("v1/chat/completions", call).await else {
            let message = "The server does not answer. See whether it still runs, then regenerate.";
            return failed(message.to_owned());
        };
        if !response.ok() {
            return failed(self.refusal(&response).await);
        }
        let (mut events, mut answer, mut ended) = (Events::default(), Answer::default(), false);
        let hear = |bytes: &[u8]| {
            for event in events.push(bytes).iter().flat_map(|data| answer.read(data)) {
                // Nothing comes after the end.
                if !ended {
                    ended = matches!(event, ChatEvent::Finished { .. } | ChatEvent::Failed { .. });
                    listen(event);
                }
            }
        };
        // Where it broke off is seen by the end that did not come.
        _ = http::stream(&response, hear).await;
        (!ended).then(broken)
    }

    /// Why the server refuses, and what to do.
    async fn refusal(self, response: &Response) -> String {
        let said = http::text(response).await.ok().and_then(|text| error_message(&text));
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

    /// A request with its key.
    fn call(self) -> Call {
        Call { key: self.key.get_untracked(), ..Call::default() }
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

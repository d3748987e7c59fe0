//! The server as its clients meet it: the shapes of its answers, its errors, its limits, and how it ends.

mod answers;
#[cfg(unix)]
mod binary;
mod errors;
mod events;
mod gate;
mod life;
mod limits;
mod page;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Value, json};
use tread::serve::{Limits, OpenDevice, Server, ServerOptions};
use tread_core::backend::Backend;
use tread_core::checkpoint::Checkpoint;
use tread_core::cpu::Cpu;
use tread_core::model::Model;
use ureq::http;

fn nano() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano");
    Model::new("nano", Checkpoint::open(&folder).unwrap()).unwrap()
}

fn cpu() -> OpenDevice {
    Box::new(|| Ok(Box::new(Cpu::new()) as Box<dyn Backend>))
}

/// Small limits, so that tests are quick, on a free port.
fn options(model: &Model) -> ServerOptions {
    ServerOptions {
        address: ([127, 0, 0, 1], 0).into(),
        limits: Limits {
            context_length: 256,
            max_sequences: 8,
            step_tokens: 64,
            kv_tokens: 2048,
            ..Limits::new(model)
        },
        ..ServerOptions::new(model)
    }
}

/// A server of nano on the device that `open` opens.
fn start(open: OpenDevice, change: impl FnOnce(&mut ServerOptions)) -> Server {
    start_on(vec![open], change)
}

/// A server of nano on several devices.
fn start_on(devices: Vec<OpenDevice>, change: impl FnOnce(&mut ServerOptions)) -> Server {
    let model = nano();
    let mut options = options(&model);
    change(&mut options);
    let server = Server::start(model, devices, options).unwrap();
    server.loaded().unwrap();
    server
}

/// One server for all tests that neither stop nor fill it.
fn shared() -> Client {
    static SERVER: LazyLock<Server> = LazyLock::new(|| start(cpu(), |_| ()));
    Client::new(SERVER.address())
}

/// Talks to a server.
#[derive(Clone)]
struct Client {
    agent: ureq::Agent,
    base: String,
    key: Option<String>,
}

/// A status, headers, and a body.
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn new(response: http::Response<ureq::Body>) -> Self {
        let (parts, mut body) = response.into_parts();
        Self { status: parts.status.as_u16(), headers: parts.headers, text: body.read_to_string().unwrap() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The JSON of an answer that must be good.
    #[track_caller]
    fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// The error, which must have OpenAI's shape and this status.
    #[track_caller]
    fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{}", self.text);
        assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some());
        error
    }
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        Self { agent, base: format!("http://{address}"), key: None }
    }

    fn get(&self, path: &str) -> Answer {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        Answer::new(request.call().unwrap())
    }

    fn send(&self, path: &str, content_type: &str, body: &str) -> http::Response<ureq::Body> {
        let mut request =
            self.agent.post(format!("{}{path}", self.base)).header("content-type", content_type);
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.send(body).unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better with json!")]
    fn post(&self, path: &str, body: Value) -> Answer {
        Answer::new(self.send(path, "application/json", &body.to_string()))
    }

    /// Greedy unless `more` says otherwise.
    fn chat(&self, text: &str, more: Value) -> Answer {
        let body =
            json!({"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 16});
        self.post("/v1/chat/completions", merged(body, more))
    }

    fn complete(&self, prompt: impl Into<Value>, more: Value) -> Answer {
        let body = json!({"prompt": prompt.into(), "temperature": 0, "max_tokens": 8});
        self.post("/v1/completions", merged(body, more))
    }

    /// The events of a stream, which must end with `[DONE]`.
    #[track_caller]
    fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let response =
            self.send(path, "application/json", &merged(body, json!({"stream": true})).to_string());
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let lines = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap);
        let data: Vec<_> = lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).collect();
        let (done, events) = data.split_last().unwrap();
        assert_eq!(done, "[DONE]");
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// The value of a metric, 0 while there is none; several of the name add up.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }

    /// Waits until `what` holds.
    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..3000 {
            if holds(self) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("never came true: {what}");
    }
}

/// `base` with the fields of `more`.
fn merged(mut base: Value, more: Value) -> Value {
    let fields = base.as_object_mut().unwrap();
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    base
}

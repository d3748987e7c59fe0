//! Clients of a server: sixteen at a time.

use std::io::{BufRead as _, BufReader};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tread_tests::server::Server;

use crate::models::STREAMS;

/// Tokens of a stream.
const TOKENS: usize = 64;
const QUESTIONS: [&str; 4] =
    ["Who goes there?", "What is the matter?", "Where is the king?", "Tell me a tale."];

/// An answer to a request that is a good one.
pub(crate) fn post(server: &Server, path: &str, body: &Value) -> Value {
    let (status, _, answer) = try_post(server, path, body);
    assert_eq!(status, 200, "{body} -> {answer}");
    answer
}

/// Status, Retry-After and body of an answer.
pub(crate) fn try_post(server: &Server, path: &str, body: &Value) -> (u16, Option<String>, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut response = agent.post(server.url(path)).send_json(body).unwrap();
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), retry, response.body_mut().read_json().unwrap())
}

/// The status of a path.
pub(crate) fn status(server: &Server, path: &str) -> u16 {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    agent.get(server.url(path)).call().unwrap().status().as_u16()
}

/// Waits until `what` holds.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("never came true: {what}");
}

/// Greedy, and drawn with more and more chance.
fn body(at: usize) -> Value {
    json!({
        "model": "nano",
        "messages": [{"role": "user", "content": QUESTIONS[at % 4]}],
        "temperature": (at / 4) as f64 * 0.4,
        "seed": at,
        "max_tokens": TOKENS,
        "ignore_eos": true,
        "logprobs": true,
    })
}

/// Sixteen answers asked for at the same time.
pub(crate) fn ask(server: &Server) -> Vec<Value> {
    thread::scope(|scope| {
        let ask = |at| post(server, "/v1/chat/completions", &body(at))["choices"][0].clone();
        let asked: Vec<_> = (0..STREAMS).map(|at| scope.spawn(move || ask(at))).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    })
}

/// What a stream said: its text, its tokens with what the model thought of each, and why it ended.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Said {
    text: String,
    tokens: Vec<Value>,
    finish: Value,
}

/// Sixteen answers in pieces at the same time.
#[derive(Debug)]
pub(crate) struct Streams<'a> {
    server: &'a Server,
    /// Tokens that came, of all.
    came: AtomicUsize,
}

impl<'a> Streams<'a> {
    pub(crate) fn of(server: &'a Server) -> Self {
        Self { server, came: AtomicUsize::new(0) }
    }

    pub(crate) fn undisturbed(&self) -> Vec<Said> {
        self.disturbed(|_| ())
    }

    /// What they say while something is done to those who compute it.
    pub(crate) fn disturbed(&self, disturb: impl FnOnce(&Self)) -> Vec<Said> {
        let said: Vec<_> = thread::scope(|scope| {
            let streams: Vec<_> = (0..STREAMS).map(|at| scope.spawn(move || self.stream(at))).collect();
            disturb(self);
            streams.into_iter().map(|stream| stream.join().unwrap()).collect()
        });
        assert!(said.iter().all(|said| said.tokens.len() == TOKENS), "tokens are lost or doubled");
        said
    }

    /// Waits until so many tokens of all streams have come, which must not be the last ones.
    pub(crate) fn wait_for(&self, tokens: usize) {
        assert!(tokens < STREAMS * TOKENS);
        until("the streams go on", || self.came.load(Ordering::Relaxed) >= tokens);
    }

    fn stream(&self, at: usize) -> Said {
        let mut body = body(at);
        body["stream"] = json!(true);
        let response = ureq::post(self.server.url("/v1/chat/completions")).send_json(body).unwrap();
        let lines = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap);
        let mut said = Said::default();
        for data in lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)) {
            if data == "[DONE]" {
                return said;
            }
            let piece: Value = serde_json::from_str(&data).unwrap();
            assert!(piece.get("error").is_none(), "stream {at}: {data}");
            let choice = &piece["choices"][0];
            said.text += choice["delta"]["content"].as_str().unwrap_or_default();
            for token in choice["logprobs"]["content"].as_array().into_iter().flatten() {
                said.tokens.push(token.clone());
                self.came.fetch_add(1, Ordering::Relaxed);
            }
            if !choice["finish_reason"].is_null() {
                said.finish = choice["finish_reason"].clone();
            }
        }
        panic!("stream {at} has no end");
    }
}

//! A client that behaves: one that reads its answers, whole or streamed.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};
use tread_tests::server::Server;

/// What a client got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// The tokens of each choice.
    pub(crate) tokens: Vec<Vec<String>>,
    pub(crate) text: Vec<String>,
    pub(crate) finish: Vec<String>,
}

fn post(server: &Server, body: &Value) -> ureq::http::Response<ureq::Body> {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let request = agent.post(server.url("/v1/completions")).header("content-type", "application/json");
    request.send(body.to_string()).expect("an answer")
}

/// Sends a request for a continuation and reads the answer to its end; streamed if `body` says so.
pub(crate) fn complete(server: &Server, body: &Value) -> Answer {
    let mut response = post(server, body);
    if response.status() != 200 {
        panic!("{}: {}", response.status(), response.body_mut().read_to_string().unwrap_or_default());
    }
    if body["stream"] == true {
        let mut stream = Stream(Box::new(BufReader::new(response.into_body().into_reader()).lines()));
        return stream.rest(body["n"].as_u64().unwrap_or(1) as usize);
    }
    let text = response.body_mut().read_to_string().expect("the whole answer");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    let mut all = Answer { tokens: vec![], text: vec![], finish: vec![] };
    for choice in answer["choices"].as_array().expect("choices") {
        all.tokens.push(tokens(choice));
        all.text.push(choice["text"].as_str().expect("text").to_owned());
        all.finish.push(choice["finish_reason"].as_str().expect("an end").to_owned());
    }
    all
}

fn tokens(choice: &Value) -> Vec<String> {
    let tokens = choice["logprobs"]["tokens"].as_array().into_iter().flatten();
    tokens.map(|token| token.as_str().expect("a token").to_owned()).collect()
}

/// An answer that is still coming.
pub(crate) struct Stream(Box<dyn Iterator<Item = std::io::Result<String>> + Send>);

impl Stream {
    /// Sends a request and waits for the beginning of its answer.
    pub(crate) fn open(server: &Server, body: &Value) -> Self {
        let response = post(server, body);
        assert_eq!(response.status(), 200);
        Self(Box::new(BufReader::new(response.into_body().into_reader()).lines()))
    }

    /// The next event's data.
    pub(crate) fn next(&mut self) -> Option<String> {
        loop {
            let line = self.0.next()?.expect("the stream does not break off");
            if let Some(data) = line.strip_prefix("data:") {
                return Some(data.trim().to_owned());
            }
        }
    }

    /// All that still comes, of `n` choices. It must end as streams do.
    pub(crate) fn rest(&mut self, n: usize) -> Answer {
        let mut all =
            Answer { tokens: vec![vec![]; n], text: vec![String::new(); n], finish: vec![String::new(); n] };
        while let Some(data) = self.next() {
            if data == "[DONE]" {
                return all;
            }
            let event: Value = serde_json::from_str(&data).expect("JSON");
            assert!(event.get("error").is_none(), "{event}");
            for choice in event["choices"].as_array().into_iter().flatten() {
                let index = choice["index"].as_u64().expect("an index") as usize;
                all.tokens[index].extend(tokens(choice));
                all.text[index].push_str(choice["text"].as_str().unwrap_or_default());
                all.finish[index].push_str(choice["finish_reason"].as_str().unwrap_or_default());
            }
        }
        panic!("the stream ended without [DONE] after {all:?}");
    }
}

/// Requests of every kind: greedy and seeded, short and long, of one choice and of three, whole and streamed.
pub(crate) fn mixed(count: usize) -> Vec<Value> {
    let lines = [
        "Who goes there?",
        "Shall we to the king, my lord, or wait upon the queen?",
        "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows",
        "Speak, villain! Where is the money?",
    ];
    let request = |i: usize| {
        // Prompts of the same beginning share blocks; long ones are computed in chunks.
        let prompt = lines[i % lines.len()].repeat(1 + i % 5 * 2);
        json!({
            "prompt": prompt,
            "max_tokens": 8 + i * 7 % 29,
            "ignore_eos": true,
            "temperature": if i.is_multiple_of(2) { 0.0 } else { 1.1 },
            "top_p": 0.95,
            "seed": i,
            "n": if i % 8 == 7 { 3 } else { 1 },
            "logprobs": 0,
            "stream": i.is_multiple_of(3),
        })
    };
    (0..count).map(request).collect()
}

/// The value of a metric without labels other than the model's name.
pub(crate) fn metric(server: &Server, name: &str) -> f64 {
    let text = ureq::get(server.url("/metrics")).call().expect("metrics");
    let text = text.into_body().read_to_string().expect("text");
    let line =
        text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no metric {name} in {text}"))
}

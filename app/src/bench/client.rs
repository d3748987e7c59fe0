//! One request to an OpenAI endpoint, streamed, with the times at which its answer came.

use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rand::RngExt as _;
use rand::rngs::ChaCha8Rng;
use serde_json::{Value, json};

use crate::cli::Endpoint;

/// Where requests go, and in which form.
pub(super) struct Client {
    agent: ureq::Agent,
    /// Up to and including `/v1`.
    base: String,
    authorization: Option<String>,
    pub(super) model: String,
    pub(super) endpoint: Endpoint,
    pub(super) strict: bool,
}

/// What became of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// From sending to the first text.
    pub(super) first: Duration,
    /// From sending to the last text.
    pub(super) whole: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) new_tokens: u64,
}

impl Client {
    /// A client of `url`, which may end in `/v1`. The model is the one named, else the first that the server lists.
    pub(super) fn new(url: &str, api_key: Option<&str>, model: Option<&str>) -> Result<Self> {
        let base = format!("{}/v1", url.trim_end_matches('/').trim_end_matches("/v1"));
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let authorization = api_key.map(|key| format!("Bearer {key}"));
        let mut client = Self {
            agent,
            base,
            authorization,
            model: String::new(),
            endpoint: Endpoint::default(),
            strict: false,
        };
        client.model = match model {
            Some(name) => name.to_owned(),
            None => client.first_model()?,
        };
        Ok(client)
    }

    fn first_model(&self) -> Result<String> {
        let url = format!("{}/models", self.base);
        let mut request = self.agent.get(&url);
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        let text = request.call().and_then(|mut response| response.body_mut().read_to_string());
        let text = text.with_context(|| format!("{url} cannot be had"))?;
        let listed: Option<Value> = serde_json::from_str(&text).ok();
        let name = listed.as_ref().and_then(|models| models.pointer("/data/0/id")?.as_str());
        name.map(str::to_owned).with_context(|| format!("{url} lists no model but says: {}", excerpt(&text)))
    }

    /// Sends a prompt of `prompt_tokens` and waits for an answer of `new_tokens`. `rng` writes the prompt.
    pub(super) fn send(&self, prompt_tokens: u32, new_tokens: u32, rng: &mut ChaCha8Rng) -> Result<Sample> {
        let (path, body) = self.body(prompt_tokens, new_tokens, rng);
        let mut request = self.agent.post(format!("{}/{path}", self.base));
        request = request.header("content-type", "application/json");
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        let start = Instant::now();
        let mut response = request.send(body.to_string())?;
        if !response.status().is_success() {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            bail!("{}: {}", response.status(), excerpt(&text));
        }
        let mut answer = Answer::default();
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            if let Some(data) = line?.strip_prefix("data:") {
                answer.event(data.trim(), start)?;
            }
        }
        let times = answer.first.zip(answer.last).filter(|_| answer.done);
        let (first, whole) = times.context("the answer broke off")?;
        Ok(Sample {
            first,
            whole,
            prompt_tokens: answer.prompt_tokens,
            new_tokens: answer.new_tokens.unwrap_or(answer.events),
        })
    }

    fn body(&self, prompt_tokens: u32, new_tokens: u32, rng: &mut ChaCha8Rng) -> (&'static str, Value) {
        let mut body = json!({
            "model": self.model,
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if !self.strict {
            body["ignore_eos"] = true.into();
        }
        let path = match self.endpoint {
            Endpoint::Completions => {
                // Any vocabulary has these; the first ones may be special.
                let tokens = (0..prompt_tokens).map(|_| rng.random_range(100..1000));
                body["prompt"] = tokens.collect::<Vec<u32>>().into();
                "completions"
            }
            Endpoint::Chat => {
                let words = (0..prompt_tokens).map(|_| WORDS[rng.random_range(0..WORDS.len())]);
                let content = words.collect::<Vec<_>>().join(" ");
                body["messages"] = json!([{"role": "user", "content": content}]);
                "chat/completions"
            }
        };
        (path, body)
    }
}

/// Words that are one token in most vocabularies.
const WORDS: [&str; 16] = [
    "the", "a", "man", "time", "day", "house", "water", "light", "of", "and", "to", "in", "go", "see",
    "good", "old",
];

/// What a stream has told so far.
#[derive(Default)]
struct Answer {
    first: Option<Duration>,
    last: Option<Duration>,
    /// Events with text: the number of tokens when the server does not tell it.
    events: u64,
    prompt_tokens: u64,
    new_tokens: Option<u64>,
    done: bool,
}

impl Answer {
    fn event(&mut self, data: &str, start: Instant) -> Result<()> {
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let event: Value =
            serde_json::from_str(data).with_context(|| format!("not JSON: {}", excerpt(data)))?;
        if let Some(error) = event.get("error") {
            bail!("{}", excerpt(&error.to_string()));
        }
        if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
            self.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or_default();
            self.new_tokens = usage["completion_tokens"].as_u64();
        }
        let choice = &event["choices"][0];
        let texts = [&choice["text"], &choice["delta"]["content"], &choice["delta"]["reasoning_content"]];
        let has_text = texts.iter().any(|text| text.as_str().is_some_and(|text| !text.is_empty()));
        // An answer may be all special tokens, which have no text: then its end is all there is to see.
        if has_text || choice["finish_reason"].is_string() {
            self.first.get_or_insert_with(|| start.elapsed());
            self.last = Some(start.elapsed());
        }
        self.events += u64::from(has_text);
        Ok(())
    }
}

/// The beginning of what a server said, for a message of one line.
fn excerpt(text: &str) -> String {
    text.trim().replace('\n', " ").chars().take(300).collect()
}

//! Measures a server through its API, as its clients would.

use serde::Deserialize;

use crate::chat::sse::Events;
use crate::page::http::{self, Call};
use crate::page::server::Server;
use crate::protocol::Measurement;
use leptos::prelude::GetUntracked as _;

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<serde::de::IgnoredAny>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: usize,
}

/// One request; times are those of this page, so they include the network.
pub(super) async fn measure(
    server: Server,
    prompt_tokens: usize,
    new_tokens: usize,
) -> Result<Measurement, String> {
    let model = server.model.get_untracked().unwrap_or_default();
    let now = || js_sys::Date::now() / 1000.0;
    // Other tokens each time, or the prefix cache would hold them.
    let first = (now() * 1000.0) as u64;
    let prompt: Vec<u64> = (0..prompt_tokens as u64).map(|at| 1 + (first + at * 7) % 200).collect();
    let body = serde_json::json!({
        "model": model, "prompt": prompt, "max_tokens": new_tokens, "ignore_eos": true, "temperature": 0,
        "stream": true, "stream_options": { "include_usage": true },
    });
    let call = Call { key: server.key.get_untracked(), signal: None, body: Some(body.to_string()) };
    let began = now();
    let response = http::fetch("v1/completions", &call).await?;
    let (mut events, mut first_at, mut last_at, mut written) = (Events::default(), None, began, 0);
    http::stream(&response, |bytes| {
        for data in events.push(bytes) {
            let Ok(chunk) = serde_json::from_str::<Chunk>(&data) else { continue };
            if !chunk.choices.is_empty() {
                last_at = now();
                first_at.get_or_insert(last_at);
            }
            written = chunk.usage.map_or(written, |usage| usage.completion_tokens);
        }
    })
    .await?;
    let first_at = first_at.ok_or("the server wrote no token")?;
    let time_to_first_token_s = (first_at - began).max(1e-3);
    Ok(Measurement {
        model,
        device: "the server, over the network".to_owned(),
        prompt_tokens,
        new_tokens: written,
        time_to_first_token_s,
        prefill_tokens_per_s: prompt_tokens as f64 / time_to_first_token_s,
        decode_tokens_per_s: written.saturating_sub(1) as f64 / (last_at - first_at).max(1e-3),
    })
}

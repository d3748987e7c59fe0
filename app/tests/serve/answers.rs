//! What answers look like, and that their parts agree.

use serde_json::{Value, json};

use super::{merged, shared};

/// nano's greedy answer, which `tread run` gives too.
const QUESTION: &str = "Who goes there?";
const ANSWER: &str = "I am a man, sir.";

#[test]
fn a_chat_is_answered_as_openai_does() {
    let answer = shared().chat(QUESTION, json!({"model": "nano"})).good();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "nano");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": ANSWER}));
    assert_eq!((choice["finish_reason"].as_str(), choice["index"].as_u64()), (Some("stop"), Some(0)));
    assert!(choice["stop_reason"].is_null() && choice["logprobs"].is_null());
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert!(count("prompt_tokens") > 3 && count("completion_tokens") > 5);
    assert_eq!(count("prompt_tokens") + count("completion_tokens"), count("total_tokens"));
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
}

#[test]
fn a_stream_says_the_same_in_pieces() {
    let body = json!({
        "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "logprobs": true,
        "stream_options": {"include_usage": true},
    });
    let events = shared().stream("/v1/chat/completions", body.clone());
    let whole = shared().post("/v1/chat/completions", body).good();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk" && e["id"] == events[0]["id"]));
    let pieces: Vec<&Value> = events.iter().flat_map(|e| e["choices"].as_array().unwrap()).collect();
    assert!(pieces.len() > 5, "{pieces:?}");
    let text: String = pieces.iter().filter_map(|p| p["delta"]["content"].as_str()).collect();
    assert_eq!(text, ANSWER);
    let scores: Vec<_> =
        pieces.iter().filter_map(|p| p["logprobs"]["content"].as_array()).flatten().collect();
    let expected = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(scores, expected.iter().collect::<Vec<_>>());
    assert_eq!(pieces.last().unwrap()["finish_reason"], "stop");
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert!(before.iter().all(|e| e.get("usage").is_none()));
}

#[test]
fn several_answers_are_those_of_consecutive_seeds() {
    let text = |seed: u64, n: u64| -> Vec<String> {
        let more = json!({"temperature": 1.0, "seed": seed, "n": n});
        let answer = shared().chat("Speak!", more).good();
        let choices = answer["choices"].as_array().unwrap().clone();
        choices.iter().map(|c| c["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let together = text(7, 3);
    assert_eq!(together.len(), 3);
    for (choice, seed) in together.iter().zip(7..) {
        assert_eq!(*choice, text(seed, 1)[0], "{seed}");
    }
    assert_ne!(together[0], together[1]);

    let body = json!({"prompt": "ROMEO:", "n": 2, "seed": 3, "max_tokens": 6});
    let whole = shared().post("/v1/completions", body.clone()).good();
    let mut streamed = [String::new(), String::new()];
    for event in shared().stream("/v1/completions", body) {
        let choice = &event["choices"][0];
        streamed[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    for (n, text) in streamed.iter().enumerate() {
        assert_eq!(whole["choices"][n]["text"], **text);
    }
}

#[test]
fn completions_take_texts_and_ids_one_or_several() {
    let client = shared();
    let ids = client.post("/tokenize", json!({"prompt": "To be, or"})).good()["tokens"].clone();
    let one = client.complete("To be, or", json!({})).good();
    assert_eq!(one["object"], "text_completion");
    let text = one["choices"][0]["text"].clone();
    assert!(!text.as_str().unwrap().is_empty());
    assert_eq!(client.complete(ids.clone(), json!({})).good()["choices"][0]["text"], text);
    for prompts in [json!(["To be, or", "Who"]), json!([ids, [5, 6, 7]])] {
        let several = client.complete(prompts, json!({"n": 2})).good();
        let choices = several["choices"].as_array().unwrap();
        let numbers: Vec<_> = choices.iter().map(|c| c["index"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert!(choices[0]["text"] == text && choices[1]["text"] == text && choices[2]["text"] != text);
    }
}

/// What an evaluation harness does: the scores of a given continuation are those it had when it was generated.
#[test]
fn echo_scores_a_text_without_generating() {
    let client = shared();
    let prompt = "To be, or";
    let made = client.complete(prompt, json!({"logprobs": 2, "max_tokens": 4})).good()["choices"][0].clone();
    // A stop token would be among the scores, but not in the text.
    assert_eq!(made["finish_reason"], "length");
    let text = format!("{prompt}{}", made["text"].as_str().unwrap());
    let scored = client.complete(&*text, json!({"echo": true, "logprobs": 2, "max_tokens": 0})).good();
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    let choice = &scored["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some(&*text), Some("length")));
    let list = |choice: &Value, name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    let tokens: String = list(choice, "tokens").iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(tokens, text);
    let scores = list(choice, "token_logprobs");
    assert!(scores[0].is_null() && scores[1..].iter().all(|s| s.as_f64().unwrap() <= 0.0));
    assert!(list(choice, "top_logprobs")[0].is_null());
    // Greedy: every generated token is the likeliest, and is scored as it was.
    let generated = list(&made, "token_logprobs");
    let start = scores.len() - generated.len();
    for (n, expected) in generated.iter().enumerate() {
        let found = scores[start + n].as_f64().unwrap();
        assert!((found - expected.as_f64().unwrap()).abs() < 1e-3, "{n}: {found} {expected}");
        let top = list(choice, "top_logprobs")[start + n].as_object().unwrap().clone();
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(best, found);
    }
    // Offsets are those of the tokens in the text.
    for (offset, token) in list(choice, "text_offset").iter().zip(list(choice, "tokens")) {
        let offset = offset.as_u64().unwrap() as usize;
        assert!(text.chars().skip(offset).collect::<String>().starts_with(token.as_str().unwrap()));
    }
    // Ids may be of special tokens, which then are in the text.
    let special =
        client.complete(json!([1, 2, 3]), json!({"echo": true, "logprobs": 0, "max_tokens": 0})).good();
    let (choice, whole) = (&special["choices"][0], special["choices"][0]["text"].as_str().unwrap());
    for (offset, token) in list(choice, "text_offset").iter().zip(list(choice, "tokens")) {
        let offset = offset.as_u64().unwrap() as usize;
        assert!(whole.chars().skip(offset).collect::<String>().starts_with(token.as_str().unwrap()));
    }
    // The same with one more token, as older harnesses ask for it.
    let one = client.complete(&*text, json!({"echo": true, "logprobs": 2, "max_tokens": 1})).good();
    let more = list(&one["choices"][0], "token_logprobs");
    assert_eq!(more[..scores.len()], scores[..]);
    assert_eq!(more.len(), scores.len() + 1);
    // vLLM's own field says the same.
    let own = client.complete(&*text, json!({"prompt_logprobs": 0, "max_tokens": 1})).good();
    let own = own["choices"][0]["prompt_logprobs"].as_array().unwrap().clone();
    assert!(own[0].is_null());
    for (score, place) in scores.iter().zip(own).skip(1) {
        let entry = place.as_object().unwrap().values().next().unwrap().clone();
        assert_eq!(&entry["logprob"], score);
    }
}

#[test]
fn logprobs_of_a_chat_are_those_of_its_text() {
    let answer = shared().chat(QUESTION, json!({"logprobs": true, "top_logprobs": 3})).good();
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|e| e["bytes"].as_array().unwrap())
        .map(|b| b.as_u64().unwrap() as u8)
        .collect();
    // nano closes its reasoning first.
    assert!(String::from_utf8(bytes).unwrap().ends_with(ANSWER));
    for entry in &entries {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["token"], entry["token"], "greedy");
        assert!(top.windows(2).all(|w| w[0]["logprob"].as_f64() >= w[1]["logprob"].as_f64()));
    }
}

#[test]
fn embeddings_are_unit_vectors_in_either_form() {
    let client = shared();
    let body = json!({"input": ["love", "a sword"], "model": "nano"});
    let answer = client.post("/v1/embeddings", body.clone()).good();
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let vector = |n: usize| -> Vec<f64> {
        assert_eq!(answer["data"][n]["index"], n);
        answer["data"][n]["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let (love, sword) = (vector(0), vector(1));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!((dot(&love, &love) - 1.0).abs() < 1e-5);
    assert!(dot(&love, &sword) < 0.999);
    let base64 = client.post("/v1/embeddings", merged(body, json!({"encoding_format": "base64"}))).good();
    let bytes = {
        use base64::Engine as _;
        let text = base64["data"][1]["embedding"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    };
    let values = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
    assert!(values.zip(&sword).all(|(a, b)| (a - b).abs() < 1e-6));
    assert_eq!(bytes.len(), 4 * sword.len());
    // More than run at a time, and more than may wait: each finds its place.
    let many: Vec<_> = (0..600).map(|i| if i % 7 == 3 { "a sword" } else { "love" }).collect();
    let many = client.post("/v1/embeddings", json!({"input": many})).good();
    assert_eq!(many["data"].as_array().unwrap().len(), 600);
    for (i, text) in [(3, 1), (4, 0), (598, 1), (599, 0)] {
        assert_eq!(
            (&many["data"][i]["embedding"], &many["data"][i]["index"]),
            (&answer["data"][text]["embedding"], &json!(i))
        );
    }
    let short = client.post("/v1/embeddings", json!({"input": "love", "dimensions": 4})).good();
    let short = short["data"][0]["embedding"].as_array().unwrap().clone();
    assert_eq!(short.len(), 4);
    let length: f64 = short.iter().map(|v| v.as_f64().unwrap().powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-5);
}

#[test]
fn texts_become_tokens_and_back() {
    let client = shared();
    let text = "Grüße, my lord! <|EOT|>";
    let answer = client.post("/tokenize", json!({"prompt": text, "return_token_strs": true})).good();
    let tokens = answer["tokens"].as_array().unwrap();
    assert_eq!(answer["count"], tokens.len());
    assert_eq!(answer["max_model_len"], 256);
    assert_eq!(answer["token_strs"].as_array().unwrap().len(), tokens.len());
    let back = client.post("/detokenize", json!({"tokens": tokens})).good();
    assert_eq!(back["prompt"], text);
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let tokens = client.post("/tokenize", chat.clone()).good();
    let asked = client.post("/v1/chat/completions", merged(chat, json!({"max_tokens": 1}))).good();
    assert_eq!(tokens["count"], asked["usage"]["prompt_tokens"]);
}

#[test]
fn a_message_can_be_continued() {
    let messages = json!([{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "I am a"}]);
    let body =
        json!({"messages": messages, "continue_final_message": true, "temperature": 0, "max_tokens": 8});
    let answer = shared().post("/v1/chat/completions", body).good();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(ANSWER.ends_with(&text), "{text}");
}

#[test]
fn answers_keep_to_what_is_asked_of_them() {
    let client = shared();
    let words = client.chat(QUESTION, json!({"guided_choice": ["yes", "no"]})).good();
    let text = words["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text == "yes" || text == "no", "{text}");
    let number =
        client.complete("The year is", json!({"guided_regex": "1[0-9]{3}", "max_tokens": 20})).good();
    let text = number["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(text.len() == 4 && text.starts_with('1') && text.parse::<u32>().is_ok(), "{text}");
    let schema = json!({
        "type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
    for more in [json!({"response_format": format}), json!({"guided_json": schema})] {
        let answer = client.chat("How old?", merged(more, json!({"max_tokens": 220}))).good();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(value["age"].as_u64().is_some_and(|age| age < 100), "{text}");
    }
    let stopped = client.chat(QUESTION, json!({"stop": [" man"]})).good();
    assert_eq!(stopped["choices"][0]["message"]["content"], "I am a");
    assert_eq!(stopped["choices"][0]["stop_reason"], " man");
    let cut = client.chat(QUESTION, json!({"max_tokens": 3})).good();
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 3);
    let endless = client.complete("Once", json!({"ignore_eos": true, "max_tokens": 1_000_000_000})).good();
    assert_eq!(endless["choices"][0]["finish_reason"], "length");
    assert_eq!(endless["usage"]["total_tokens"], 256);
}

#[test]
fn required_tools_are_called_with_valid_arguments() {
    let parameters = json!({
        "type": "object", "properties": {"town": {"type": "string", "enum": ["Verona", "Mantua"]}},
        "required": ["town"], "additionalProperties": false,
        // nano likes white space too much to come to an end.
        "x-guidance": {"whitespace_flexible": false},
    });
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}}]);
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "weather"}})] {
        let body = json!({
            "messages": [{"role": "user", "content": "Weather?"}], "tools": tools, "tool_choice": choice,
            "parallel_tool_calls": false, "temperature": 0, "max_tokens": 220,
        });
        let answer = shared().post("/v1/chat/completions", body.clone()).good();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1, "{answer}");
        assert!(calls[0]["id"].is_string() && calls[0]["type"] == "function");
        assert_eq!(calls[0]["function"]["name"], "weather");
        let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
        let town = serde_json::from_str::<Value>(arguments).unwrap()["town"].clone();
        assert!(town == "Verona" || town == "Mantua", "{arguments}");

        let (mut streamed, mut finish) = (String::new(), Value::Null);
        for event in shared().stream("/v1/chat/completions", body) {
            let choice = &event["choices"][0];
            for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                streamed += call["function"]["arguments"].as_str().unwrap();
            }
            if !choice["finish_reason"].is_null() {
                finish = choice["finish_reason"].clone();
            }
        }
        assert_eq!((streamed.as_str(), finish), (arguments, json!("tool_calls")));
    }
}

#[test]
fn the_server_tells_about_itself() {
    let client = shared();
    let models = client.get("/v1/models").good();
    assert_eq!((models["object"].as_str(), models["data"][0]["id"].as_str()), (Some("list"), Some("nano")));
    assert_eq!(client.get("/v1/models/nano").good()["max_model_len"], 256);
    assert_eq!(client.get("/version").good()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(client.get("/health").good()["status"], "ok");
    assert_eq!(client.get("/ready").good()["status"], "ok");
    let api = client.get("/openapi.json").good();
    for path in
        ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models/{model}", "/tokenize"]
    {
        assert!(api["paths"].get(path).is_some(), "{path}");
    }
    let references: Vec<_> = api
        .to_string()
        .split("#/components/schemas/")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert!(references.len() > 20);
    for name in references {
        assert!(api["components"]["schemas"].get(&name).is_some(), "{name} is referred to but not described");
    }
    assert!(client.get("/docs/").text.contains("swagger-ui"));
    let id = client.get("/health").headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(id.len(), 36, "{id}");
}

#[test]
fn metrics_have_vllms_names_and_count() {
    let client = shared();
    let before = client.metric("vllm:generation_tokens_total");
    client.chat(QUESTION, json!({"max_tokens": 4})).good();
    assert!(client.metric("vllm:generation_tokens_total") >= before + 4.0);
    let text = client.get("/metrics").text;
    for name in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "vllm:prompt_tokens_total",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_sum",
        "vllm:iteration_tokens_total_count",
        "tread_step_seconds_bucket",
        "tread_step_dispatches",
        "tread_device_bytes",
        "tread_device_lost_total",
        "http_requests_total",
        "http_request_duration_seconds_count",
    ] {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        let line = line.unwrap_or_else(|| panic!("{name} is missing: {text}"));
        assert!(line.contains("model_name=\"nano\""), "{line}");
    }
    assert!(client.metric("tread_device_bytes") > 1e6);
}

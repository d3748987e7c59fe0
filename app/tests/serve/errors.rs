//! Every mistake has its status, and a message that names the field.

use serde_json::{Value, json};

use super::{Answer, shared};

/// A message of one user.
fn says(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn wrong_fields_are_named() {
    let chat =
        |field: &str, value: Value| ("/v1/chat/completions", json!({"messages": says("a"), field: value}));
    let complete = |field: &str, value: Value| ("/v1/completions", json!({"prompt": "a", field: value}));
    let long = "word ".repeat(400);
    for ((path, body), param, part) in [
        (("/v1/chat/completions", json!({})), "messages", "required"),
        (chat("messages", json!([])), "messages", "empty"),
        (chat("messages", json!("hello")), "messages", "invalid type"),
        (chat("messages", json!([{"role": "user", "content": 1}])), "messages[0].content", "a string"),
        (
            chat("messages", json!([{"role": "user", "content": [{"type": "image_url"}]}])),
            "messages[0].content[0]",
            "text only",
        ),
        (chat("messages", says(&long)), "messages", "the context of this server holds 256"),
        (chat("temperature", json!("hot")), "temperature", "invalid type"),
        (chat("temperature", json!(-1)), "temperature", "0 or more"),
        (chat("top_p", json!(0)), "top_p", "above 0"),
        (chat("top_k", json!(-2)), "top_k", "-1 for all"),
        (chat("min_p", json!(1.5)), "min_p", "from 0 to 1"),
        (chat("typical_p", json!(0)), "typical_p", "above 0"),
        (chat("repetition_penalty", json!(0)), "repetition_penalty", "above 0"),
        (chat("frequency_penalty", json!(3)), "frequency_penalty", "from -2 to 2"),
        (chat("presence_penalty", json!(-3)), "presence_penalty", "from -2 to 2"),
        (chat("dry_base", json!(0.5)), "dry_base", "1 or more"),
        (chat("n", json!(0)), "n", "from 1 to 8"),
        (chat("n", json!(9)), "n", "from 1 to 8"),
        (chat("max_tokens", json!(-1)), "max_tokens", "integer `-1`"),
        (chat("max_tokens", json!(0)), "max_tokens", "at least 1"),
        (chat("min_tokens", json!(3)), "min_tokens", "more than max_tokens"),
        (chat("stop", json!("")), "stop", "empty"),
        (chat("stop", json!([1])), "stop", "a list of strings"),
        (chat("stop", json!(vec!["x"; 300])), "stop", "256 are the most"),
        (chat("stop", json!("x".repeat(20_000))), "stop", "at most 16384"),
        (chat("stop_token_ids", json!([1_000_000])), "stop_token_ids", "outside the vocabulary"),
        (chat("logit_bias", json!({"x": 1})), "logit_bias", "no token id"),
        (chat("logit_bias", json!({"1": 101})), "logit_bias", "from -100 to 100"),
        (chat("logit_bias", json!({"9999999": 1})), "logit_bias", "outside the vocabulary"),
        (chat("top_logprobs", json!(3)), "top_logprobs", "needs `logprobs`"),
        (chat("prompt_logprobs", json!(21)), "prompt_logprobs", "at most 20"),
        (chat("response_format", json!({"type": "yaml"})), "response_format.type", "yaml"),
        (chat("guided_regex", json!("(")), "guided_regex", "regular expression"),
        (chat("guided_grammar", json!("#".repeat(20_000))), "guided_grammar", "at most 16384"),
        (chat("guided_json", json!("{")), "guided_json", "not valid JSON"),
        (chat("tools", json!([{"type": "function"}])), "tools[0].function.name", "a name"),
        (chat("functions", json!([])), "functions", "send `tools`"),
        (chat("tool_choice", json!("required")), "tool_choice", "no tools"),
        (chat("continue_final_message", json!(1)), "continue_final_message", "boolean"),
        (("/v1/completions", json!({})), "prompt", "required"),
        (complete("prompt", json!({})), "prompt", "a list of token ids"),
        (complete("prompt", json!([])), "prompt", "empty list"),
        (complete("prompt", json!([[]])), "prompt", "no tokens"),
        (complete("prompt", json!([1, -2])), "prompt", "a list of token ids"),
        (complete("prompt", json!([99_999_999])), "prompt", "outside the vocabulary"),
        (complete("prompt", json!(long)), "prompt", "the context of this server holds 256"),
        (complete("logprobs", json!(21)), "logprobs", "at most 20"),
        (complete("suffix", json!("end")), "suffix", "not supported"),
        (complete("best_of", json!(3)), "best_of", "not supported"),
        (("/v1/embeddings", json!({})), "input", "required"),
        (("/v1/embeddings", json!({"input": vec!["a"; 2049]})), "input", "at most 2048"),
        (("/v1/embeddings", json!({"input": "a", "dimensions": 0})), "dimensions", "from 1 to"),
        (("/v1/embeddings", json!({"input": "a", "encoding_format": "hex"})), "encoding_format", "hex"),
        (("/tokenize", json!({})), "prompt", "messages"),
        (("/detokenize", json!({"tokens": "a"})), "tokens", "invalid type"),
        (("/detokenize", json!({"tokens": [99_999_999]})), "tokens", "outside the vocabulary"),
    ] {
        let body = if body.get("min_tokens").is_some() {
            super::merged(body, json!({"max_tokens": 2}))
        } else {
            body
        };
        let error = shared().post(path, body.clone()).error(400);
        assert_eq!(error["param"], param, "{body}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part), "{body}: {message}");
    }
}

#[test]
fn a_long_prompt_is_refused_with_both_numbers() {
    let prompt = vec![5; 300];
    for (tokens, fits) in [(300, false), (256, false), (255, true)] {
        let answer = shared().complete(json!(prompt[..tokens]), json!({"max_tokens": 1}));
        if fits {
            answer.good();
            continue;
        }
        let error = answer.error(400);
        assert_eq!(error["code"], "context_length_exceeded");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&tokens.to_string()) && message.contains("256"), "{message}");
    }
    // Of so long a text nobody counts the tokens.
    let error = shared().complete("word ".repeat(100_000), json!({})).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    assert!(error["message"].as_str().unwrap().contains("more than"), "{error}");
    // Scoring needs no room for an answer.
    shared().complete(json!(prompt[..256]), json!({"max_tokens": 0})).good();
}

#[test]
fn other_models_are_not_found() {
    for answer in [
        shared().chat("a", json!({"model": "gpt-4"})),
        shared().complete("a", json!({"model": "gpt-4"})),
        shared().post("/v1/embeddings", json!({"input": "a", "model": "gpt-4"})),
        shared().get("/v1/models/gpt-4"),
        shared().get("/v1/models/org/name"),
    ] {
        let error = answer.error(404);
        assert_eq!(
            (error["code"].as_str(), error["param"].as_str()),
            (Some("model_not_found"), Some("model"))
        );
    }
}

#[test]
fn what_is_no_request_is_refused() {
    let send =
        |content_type: &str, body: &str| Answer::new(shared().send("/v1/completions", content_type, body));
    send("application/json", "{\"prompt\": ").error(400);
    send("application/json", "[1]").error(400);
    send("application/json", "").error(400);
    send("application/json", &"[".repeat(100_000)).error(400);
    send("text/plain", "{\"prompt\": \"a\"}").error(415);
    shared().get("/v1/completions").error(405);
    shared().post("/v1/models", json!({})).error(405);
    shared().get("/nowhere").error(404);
    shared().get("/v1/edits").error(404);
    // Fields nobody knows do no harm.
    shared()
        .chat("a", json!({"user": "me", "store": false, "metadata": {"a": 1}, "service_tier": null}))
        .good();
}

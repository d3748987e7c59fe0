//! Attention workers that are processes: what a server says over them, and whom it refuses.

use std::io::{BufRead as _, BufReader};
use std::process::Command;

use serde_json::{Value, json};
use tread_tests::server::Server;

use crate::clients::{ask, post, try_post, until};
use crate::processes::addresses;
use crate::refusals::TREAD;

/// A server that only has these attention workers.
pub(crate) fn server(places: &str, more: &[&str]) -> Server {
    Server::start(TREAD, &[&["nano", "--attention", places], more].concat())
}

/// A server on one device, which all others are compared with.
pub(crate) fn plain() -> Server {
    Server::start(TREAD, &["nano", "--backend", "cpu"])
}

pub(crate) fn attention_worker(more: &[&str]) -> Server {
    Server::attention_worker(TREAD, &[&["nano", "--backend", "cpu"], more].concat())
}

/// Two FFN workers, and two attention workers that use them.
fn pools() -> ([Server; 2], [Server; 2]) {
    let ffn = ["0/2", "1/2"]
        .map(|shard| Server::ffn_worker(TREAD, &["nano", "--backend", "cpu", "--shard", shard]));
    let places = addresses(&[&ffn[0], &ffn[1]]);
    let attention = [0, 1].map(|_| attention_worker(&["--ffn", &places]));
    (ffn, attention)
}

/// Requests of every kind, with their paths.
fn requests() -> Vec<(&'static str, Value)> {
    let chat = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Who goes there?"}], "seed": 3, "max_tokens": 24});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/chat/completions", body)
    };
    let schema = json!({
        "type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
    vec![
        chat(json!({"response_format": format, "max_tokens": 220, "temperature": 0})),
        chat(json!({"guided_choice": ["yes", "no"]})),
        chat(json!({"guided_regex": "1[0-9]{3}", "n": 3})),
        chat(json!({"guided_grammar": "start: \"Mine \" (\"horse\" | \"kingdom\")"})),
        chat(json!({"stop": [" man", "ing"], "temperature": 1.1, "n": 4})),
        chat(json!({"logprobs": true, "top_logprobs": 5, "logit_bias": {"65": -100, "70": 5}, "n": 2})),
        chat(json!({"temperature": 1.4, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "min_p": 0.01})),
        (
            "/v1/completions",
            json!({"prompt": ["Once", "upon a"], "echo": true, "logprobs": 3, "max_tokens": 4, "temperature": 0}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "A horse, a horse", "prompt_logprobs": 2, "max_tokens": 1, "seed": 1}),
        ),
        ("/v1/embeddings", json!({"input": ["love", "hate and war", "x"]})),
        // Errors of the engine, too.
        chat(json!({"n": 33})),
        chat(json!({"temperature": 7e9})),
        chat(json!({"guided_regex": "("})),
        ("/v1/completions", json!({"prompt": [1_000_000]})),
    ]
}

/// Without what is never the same.
fn bare((status, _, mut answer): (u16, Option<String>, Value)) -> (u16, Value) {
    for field in ["id", "created"] {
        answer.as_object_mut().unwrap().remove(field);
    }
    // How much of a prompt was cached depends on which engine had it before.
    if let Some(usage) = answer.get_mut("usage").and_then(Value::as_object_mut) {
        usage.remove("prompt_tokens_details");
    }
    (status, answer)
}

#[test]
fn workers_say_what_one_device_says() {
    let plain = plain();
    let (_ffn, attention) = pools();
    let remote = server(&addresses(&[&attention[0], &attention[1]]), &[]);
    // One engine here, one there.
    let mixed = server(&format!("cpu,{}", attention[0].address()), &[]);
    let expected = ask(&plain);
    assert_eq!(ask(&remote), expected);
    assert_eq!(ask(&mixed), expected);
    for (path, body) in requests() {
        let expected = bare(try_post(&plain, path, &body));
        for server in [&remote, &mixed] {
            assert_eq!(bare(try_post(server, path, &body)), expected, "{path} {body}");
        }
    }
}

/// The monitor and the metrics see engines elsewhere as they see those here.
#[test]
fn what_workers_do_is_seen() {
    let (_ffn, attention) = pools();
    let server = server(&addresses(&[&attention[0], &attention[1]]), &[]);
    let events = ureq::get(server.url("/events?ops=1")).call().unwrap();
    let mut data = BufReader::new(events.into_body().into_reader())
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let hello = data.next().unwrap();
    let pools: Vec<_> = hello["pools"].as_array().unwrap().iter().map(|pool| &pool["name"]).collect();
    assert_eq!(pools, ["attention", "ffn"], "{hello}");
    let answers = ask(&server).len();
    assert_eq!(answers, 16);
    let (mut engines, mut stages, mut tokens) = (vec![], vec![], 0);
    for steps in data {
        for step in steps.as_array().into_iter().flatten() {
            engines.push(step["step"]["engine"].as_u64().unwrap());
            for op in step["step"]["ops"].as_array().unwrap() {
                stages.push(op["name"].as_str().unwrap().to_owned());
            }
            tokens = step["standing"]["generation_tokens"].as_u64().unwrap();
        }
        if tokens >= 16 * 64 {
            break;
        }
    }
    assert!(engines.contains(&0) && engines.contains(&1), "both were asked");
    for stage in tread_core::monitor::STAGES {
        assert!(stages.iter().any(|name| name == stage), "{stage} was not measured");
    }
    let metric = |name: &str| {
        let text = ureq::get(server.url("/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
        let line = text.lines().find(|line| line.split('{').next() == Some(name)).map(str::to_owned);
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).unwrap_or_default()
    };
    assert_eq!(metric("vllm:generation_tokens_total"), 1024.0);
    assert_eq!(metric("vllm:num_requests_running"), 0.0);
    assert!(metric("tread_device_bytes") > 0.0);
    assert_eq!(metric("tread_ffn_connections"), 4.0, "two engines, two workers");
    let calls = metric("tread_ffn_calls_total");
    assert!(calls > 0.0 && metric("tread_ffn_calls_resent_total") < calls);
    // Counters do not forget those who are gone.
    let before = metric("vllm:prefix_cache_queries_total");
    assert!(before > 0.0);
    attention[0].signal("KILL");
    until("the loss is seen", || server.log().contains("an attention worker is gone"));
    post(&server, "/v1/completions", &json!({"prompt": "Once", "max_tokens": 1}));
    assert!(metric("vllm:prefix_cache_queries_total") >= before);
    assert!(metric("tread_ffn_calls_total") > calls);
    assert_eq!(metric("tread_ffn_connections"), 2.0);
}

/// The server's message when it does not start, or the worker's.
#[track_caller]
fn refused(args: &[&str], parts: &[&str]) {
    let output = Command::new(TREAD).args(args).env_remove("RUST_LOG").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
    let error = message.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn a_worker_that_does_not_fit_is_refused() {
    let worker = attention_worker(&["--max-sequences", "8"]);
    let place = worker.address().to_string();
    let serve = |more: &[&str], parts: &[&str]| {
        let args = [&["serve", "--port", "0", "--attention", &place], more].concat();
        refused(&args, &[&[place.as_str()], parts].concat());
    };
    let tiny = crate::models::folder("step3-tiny");
    serve(&[tiny.to_str().unwrap(), "--max-sequences", "8", "--context", "64"], &["different models"]);
    serve(&["nano"], &["--max-sequences", "the server has 32, the attention worker 8"]);
    serve(&["nano", "--max-sequences", "8", "--context", "128"], &["--context", "128"]);
    serve(&["nano", "--max-sequences", "8", "--kv", "f16"], &["--kv f16", "--kv f32"]);
    serve(&["nano", "--max-sequences", "8", "--afd-dtype", "fp8"], &["--afd-dtype fp8"]);
    // An FFN worker is none of them.
    let ffn = Server::ffn_worker(TREAD, &["nano", "--backend", "cpu"]);
    refused(&["serve", "nano", "--port", "0", "--attention", &ffn.address().to_string()], &["does not fit"]);
}

#[test]
fn who_does_not_know_the_token_is_refused_and_connections_are_encrypted() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (file("right", "open sesame\n"), file("wrong", "open barley"));
    let tls = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/afd/tls");
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| tls.join(name).to_str().unwrap().to_owned());
    // Beyond this machine, as it has all that takes.
    let worker = attention_worker(&[
        "--listen",
        "0.0.0.0:0",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--token-file",
        &right,
    ]);
    let place = format!("localhost:{}", worker.address().port());
    let serve = ["serve", "nano", "--port", "0", "--attention", &place, "--worker-ca", &cert];
    refused(&serve, &["asks for a token"]);
    refused(&[&serve[..], &["--worker-token-file", &wrong]].concat(), &["token", "is not the worker's"]);
    let server = server(&place, &["--worker-ca", &cert, "--worker-token-file", &right]);
    post(&server, "/v1/completions", &json!({"prompt": "Once", "max_tokens": 1}));
    refused(
        &["serve", "nano", "--port", "0", "--attention", "192.0.2.1:4000", "--worker-token-file", &right],
        &["in the clear", "--worker-ca"],
    );
    refused(
        &["worker", "attention", "nano", "--listen", "0.0.0.0:0"],
        &["--tls-cert", "--token-file", "127.0.0.1"],
    );
}

//! What one client may take, so that the others are not hurt.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use super::gate::Gate;
use super::{Answer, Client, cpu, merged, start};

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let gate = Gate::closed();
    let server = start(gate.device(), |options| {
        options.limits.max_sequences = 1;
        options.max_queue = 1;
    });
    let client = Client::new(server.address());
    let ask = |text: &'static str| {
        let client = client.clone();
        std::thread::spawn(move || client.chat(text, json!({"max_tokens": 2})))
    };
    let first = ask("one");
    gate.wait_for_steps(1);
    let second = ask("two");
    client.until("the server is full", |client| client.get("/ready").status == 503);
    let refused = client.chat("three", json!({}));
    refused.error(429);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(client.metric("tread_requests_rejected_total"), 1.0);
    // More than could ever fit is not a matter of waiting.
    let error = client.complete(json!(["a", "b", "c"]), json!({})).error(400);
    assert_eq!(error["code"], "too_many_sequences");
    // Nothing is made of them: that the last one is empty is not even seen.
    let error = client.complete(json!(["a", "b", ""]), json!({})).error(400);
    assert_eq!((&error["code"], &error["param"]), (&json!("too_many_sequences"), &json!("prompt")));
    gate.open();
    first.join().unwrap().good();
    second.join().unwrap().good();
    client.until("there is room again", |client| client.get("/ready").status == 200);
    client.chat("three", json!({"max_tokens": 2})).good();
}

#[test]
fn a_request_that_takes_too_long_is_given_up() {
    let gate = Gate::closed();
    let server = start(gate.device(), |options| options.request_timeout = Duration::from_secs(3));
    let client = Client::new(server.address());
    let body = json!({"prompt": "Speak", "max_tokens": 100});
    let whole = {
        let (client, body) = (client.clone(), body.clone());
        std::thread::spawn(move || client.post("/v1/completions", body))
    };
    // No step ends before the time is over, and a stream does not wait so long for its first event before it begins.
    gate.wait_for_steps(1);
    let body = merged(body, json!({"stream": true})).to_string();
    let streamed = client.send("/v1/completions", "application/json", &body);
    assert_eq!(streamed.status(), 200);
    assert_eq!(whole.join().unwrap().error(504)["code"], "timeout");
    let text = Answer::new(streamed).text;
    assert!(text.contains("\"code\":\"timeout\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    gate.open();
    client.until("nothing is left", |client| client.metric("vllm:num_requests_running") == 0.0);
}

#[test]
fn large_bodies_are_refused() {
    let server = start(cpu(), |options| options.max_body_bytes = 2000);
    let client = Client::new(server.address());
    let body = json!({"prompt": "a".repeat(3000)}).to_string();
    let error = Answer::new(client.send("/v1/completions", "application/json", &body)).error(413);
    assert!(error["message"].as_str().unwrap().contains("2000"));
    client.complete("a".repeat(100), json!({"max_tokens": 1})).good();
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let server = start(cpu(), |options| options.client_timeout = Duration::from_millis(100));
    let mut half = TcpStream::connect(server.address()).unwrap();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"pro")
        .unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not arrive"), "{answer}");
    Client::new(server.address()).complete("a", json!({})).good();
}

#[test]
fn an_answer_nobody_reads_holds_nothing_up() {
    let server = start(cpu(), |options| {
        options.client_timeout = Duration::from_millis(300);
        options.limits.context_length = 1024;
        options.limits.kv_tokens = 8 * 1024;
        options.max_queue = 0;
    });
    let client = Client::new(server.address());
    let mut deaf = TcpStream::connect(server.address()).unwrap();
    // More than the system holds between the two.
    let body = json!({
        "messages": [{"role": "user", "content": "Speak"}], "n": 8, "ignore_eos": true, "stream": true,
        "logprobs": true, "top_logprobs": 20,
    });
    let body = body.to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json";
    write!(deaf, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    client.until("all of it is made", |client| client.metric("vllm:request_success_total") == 8.0);
    // Its places are free for others though it has read nothing.
    client.complete("a", json!({"n": 8, "max_tokens": 2})).good();
    std::thread::sleep(Duration::from_millis(900));
    let mut answer = vec![];
    let _ = deaf.read_to_end(&mut answer);
    assert!(!answer.ends_with(b"[DONE]\n\n\r\n0\r\n\r\n"), "{} bytes", answer.len());
}

#[test]
fn garbage_is_answered_and_forgotten() {
    let server = start(cpu(), |_| ());
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"NONSENSE / HTTP/9\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = vec![];
        // Whether it is told so or only cut off.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    }
    Client::new(server.address()).complete("a", json!({})).good();
}

#[test]
fn keys_are_asked_for() {
    let server = start(cpu(), |options| options.api_keys = vec!["first".into(), "second".into()]);
    let mut client = Client::new(server.address());
    for (key, status) in
        [(None, 401), (Some("third"), 401), (Some(""), 401), (Some("first"), 200), (Some("second"), 200)]
    {
        client.key = key.map(str::to_owned);
        let answer = client.get("/v1/models");
        assert_eq!(answer.status, status, "{key:?}");
        if status == 401 {
            let error = answer.error(401);
            assert_eq!(
                (error["type"].as_str(), error["code"].as_str()),
                (Some("authentication_error"), Some("invalid_api_key"))
            );
            let refused = client.complete("a", json!({}));
            refused.error(401);
            assert_eq!(refused.headers["connection"], "close", "its body was not read");
        }
    }
    let small =
        client.agent.get(format!("{}/v1/models", client.base)).header("authorization", "bearer first");
    assert_eq!(small.call().unwrap().status(), 200, "the scheme's case is the client's");
    client.key = None;
    for open in ["/health", "/ready", "/version", "/metrics", "/docs/", "/openapi.json"] {
        assert_eq!(client.get(open).status, 200, "{open}");
    }
}

#[test]
fn pages_of_listed_origins_may_call() {
    let server = start(cpu(), |options| {
        options.cors_origins = vec!["https://a.example".into()];
        options.api_keys = vec!["key".into()];
    });
    let client = Client::new(server.address());
    let preflight = |origin: &str| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let request = format!(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: authorization,x-stainless-os\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let allowed = preflight("https://a.example");
    assert!(allowed.starts_with("HTTP/1.1 200"), "{allowed}");
    assert!(allowed.contains("access-control-allow-origin: https://a.example"), "{allowed}");
    assert!(allowed.contains("access-control-allow-headers: authorization,x-stainless-os"), "{allowed}");
    assert!(!preflight("https://b.example").contains("access-control-allow-origin"));
    client.get("/v1/models").error(401);
}

#[test]
fn a_client_that_goes_away_costs_nothing_more() {
    let gate = Gate::closed();
    let server = start(gate.device(), |_| ());
    let client = Client::new(server.address());
    for stream in [false, true] {
        let before = client.metric("vllm:request_success_total");
        let mut leaver = TcpStream::connect(server.address()).unwrap();
        let body =
            json!({"prompt": "To be", "max_tokens": 200, "ignore_eos": true, "stream": stream}).to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        leaver.write_all(head.as_bytes()).unwrap();
        gate.let_steps(3);
        client.until("it runs", |client| client.metric("vllm:num_requests_running") == 1.0);
        drop(leaver);
        // As many steps as the whole answer would need were it not given up; the engine takes few of them.
        client.until("it is given up", |client| {
            gate.let_steps(1);
            client.metric("vllm:num_requests_running") == 0.0
        });
        client.until("it is counted", |client| client.metric("vllm:request_success_total") > before);
        assert!(client.get("/metrics").text.contains("finished_reason=\"abort\""));
        assert_eq!(client.metric("vllm:kv_cache_usage_perc"), 0.0);
    }
    assert!(client.metric("vllm:generation_tokens_total") < 400.0);
}

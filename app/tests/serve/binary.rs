//! The binary itself: what it prints, logs and traces, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::Client;

/// `tread serve` on a free port, and the first line it prints.
fn serve(args: &[&str]) -> (Child, Client, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tread"))
        .args(["serve", "nano", "--port", "0", "--backend", "cpu", "--log-format", "json"])
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("TREAD_API_KEY")
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let base = line.trim().rsplit_once(' ').unwrap().1.strip_suffix("/v1").unwrap().to_owned();
    let client = Client { base, ..Client::new(([127, 0, 0, 1], 1).into()) };
    (child, client, line)
}

/// A browser that only writes down what it was asked to open.
fn browser(folder: &std::path::Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let script = folder.join("browser");
    let seen = folder.join("seen");
    std::fs::write(&script, format!("#!/bin/sh\necho \"$1\" > {0}.new && mv {0}.new {0}\n", seen.display()))
        .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn it_opens_the_page() {
    let folder = tempfile::tempdir().unwrap();
    // The usual port is taken, by us or by another.
    let _taken = TcpListener::bind("127.0.0.1:8000");
    for args in [&[][..], &["serve", "--open", "--host", "0.0.0.0"]] {
        let seen = folder.path().join("seen");
        let mut child = Command::new(env!("CARGO_BIN_EXE_tread"))
            .args(args)
            .env("BROWSER", browser(folder.path()))
            .env_remove("TREAD_API_KEY")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let client = Client::new(([127, 0, 0, 1], 1).into());
        client.until("the browser was started", |_| seen.exists());
        let url = std::fs::read_to_string(&seen).unwrap();
        assert!(url.starts_with("http://127.0.0.1:") && !url.contains(":8000"), "{url}");
        let client = Client { base: url.trim().trim_end_matches('/').to_owned(), ..client };
        assert_eq!(client.get("/health").status, 200);
        std::fs::remove_file(seen).unwrap();
        terminate(&child);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn without_a_browser_it_says_where_the_page_is() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tread"))
        .args(["serve", "--open", "--port", "0", "--backend", "cpu", "--log-format", "json"])
        .env("PATH", "")
        .env("BROWSER", "no-such-browser")
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let warning = lines.find(|line| line.contains("no browser")).unwrap();
    assert!(warning.contains("; open http://127.0.0.1:"), "{warning}");
    child.kill().unwrap();
    child.wait().unwrap();
}

fn terminate(child: &Child) {
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
}

/// The log after the end.
fn log(child: &mut Child) -> Vec<Value> {
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    log.lines().filter(|line| !line.contains("XDG_RUNTIME_DIR")).map(parse).collect()
}

#[test]
fn it_serves_until_it_is_told_to_stop() {
    let (mut child, client, line) = serve(&[]);
    assert!(line.starts_with("nano on cpu"), "{line}");
    client.chat("Who goes there?", json!({})).good();
    let asked = {
        let client = client.clone();
        std::thread::spawn(move || client.chat("Speak on!", json!({"max_tokens": 200, "ignore_eos": true})))
    };
    client.until("it runs", |client| client.metric("vllm:num_requests_running") == 1.0);
    terminate(&child);
    assert_eq!(asked.join().unwrap().good()["usage"]["completion_tokens"], 200);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let log = log(&mut child);
    let finished = log.iter().find(|line| line["message"] == "finished").unwrap();
    assert!(finished["span"]["id"].is_string() && finished["generation_tokens"].is_u64(), "{finished}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (mut child, client, _) = serve(&[]);
    let body = json!({"prompt": "Speak on!", "max_tokens": 900, "ignore_eos": true, "stream": true});
    let stream = client.send("/v1/completions", "application/json", &body.to_string());
    terminate(&child);
    client.until("it stops", |client| client.agent.get(format!("{}/health", client.base)).call().is_err());
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(stream);
}

/// A collector that takes one message.
fn collector() -> (String, std::thread::JoinHandle<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            head += &line;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        reader
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .unwrap();
        (head, body)
    });
    (address, thread)
}

#[test]
fn traces_reach_a_collector() {
    let (address, collected) = collector();
    let (mut child, client, _) = serve(&["--otlp-endpoint", &address]);
    let request = client.agent.post(format!("{}/v1/completions", client.base));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = request
        .header("content-type", "application/json")
        .header("x-request-id", "a-request-of-mine")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    let answer = request.send(json!({"prompt": "a", "max_tokens": 2}).to_string()).unwrap();
    assert_eq!(answer.headers()["x-request-id"], "a-request-of-mine");
    drop(answer);
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let (head, body) = collected.join().unwrap();
    assert!(head.starts_with("POST /v1/traces") && head.contains("application/x-protobuf"), "{head}");
    let contains = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
    let id: Vec<u8> = (0..16).map(|n| u8::from_str_radix(&trace[2 * n..][..2], 16).unwrap()).collect();
    assert!(contains(&id), "it belongs to the client's trace");
    for part in
        ["service.name", "tread", "request", "/v1/completions", "a-request-of-mine", "generation_tokens"]
    {
        assert!(contains(part.as_bytes()), "{part}");
    }
}

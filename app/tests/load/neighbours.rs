//! Clients that do not behave. Each returns when it has done its worst.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tread_tests::server::Server;

/// Every kind, with a name for messages.
pub(crate) const ALL: [(&str, fn(&Server)); 12] = [
    ("vanishes before its answer", vanishes_at_once),
    ("vanishes in the middle of a stream", vanishes_in_a_stream),
    ("never reads", never_reads),
    ("reads slowly", reads_slowly),
    ("speaks no HTTP", garbage),
    ("sends half a body and goes", half_a_body),
    ("sends half a body and stays", half_a_body_and_stays),
    ("asks for a billion tokens", a_billion_tokens),
    ("sends a megabyte of prompt", a_megabyte),
    ("sends what is not UTF-8", invalid_utf8),
    ("nests without end", deep_json),
    ("sends the wrong types", wrong_types),
];

const ENDLESS: &str = r#"{"prompt":"Once","max_tokens":900,"ignore_eos":true,"stream":true,"n":2}"#;

fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address()).expect("a connection")
}

/// Sends a body with its length. The server may refuse before it has read all, so this may fail.
fn post(stream: &mut TcpStream, path: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: tread\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// The status and the rest of the answer to a whole request.
fn answer(server: &Server, path: &str, body: &[u8]) -> (u16, String) {
    let mut stream = connect(server);
    let sent = post(&mut stream, path, body);
    let mut bytes = vec![];
    // A reset may follow what was said when the server did not read all that was sent.
    let read = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {sent:?}, {read:?}, {text}")), text)
}

/// The server refuses with `status` and says something of `part`, in OpenAI's shape.
fn refuses(server: &Server, body: &[u8], status: u16, part: &str) {
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let (found, text) = answer(server, path, body);
        assert_eq!(found, status, "{path}: {text}");
        assert!(text.contains("\"error\"") && text.contains(part), "{path}: {text}");
    }
}

fn vanishes_at_once(server: &Server) {
    let mut stream = connect(server);
    post(&mut stream, "/v1/completions", ENDLESS.replace("true,\"n\"", "false,\"n\"").as_bytes())
        .expect("sent");
}

fn vanishes_in_a_stream(server: &Server) {
    let mut stream = connect(server);
    post(&mut stream, "/v1/completions", ENDLESS.as_bytes()).expect("sent");
    let mut some = [0; 600];
    stream.read_exact(&mut some).expect("the beginning of a stream");
    assert!(String::from_utf8_lossy(&some).starts_with("HTTP/1.1 200"));
}

fn never_reads(server: &Server) {
    let mut stream = connect(server);
    post(&mut stream, "/v1/completions", ENDLESS.as_bytes()).expect("sent");
    thread::sleep(Duration::from_secs(2));
}

fn reads_slowly(server: &Server) {
    let mut stream = connect(server);
    post(&mut stream, "/v1/completions", ENDLESS.as_bytes()).expect("sent");
    for _ in 0..40 {
        stream.read_exact(&mut [0; 8]).expect("more of the stream");
        thread::sleep(Duration::from_millis(50));
    }
}

fn garbage(server: &Server) {
    let mut stream = connect(server);
    let bytes: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // It may hang up before it has read all.
    let _ = stream.write_all(&bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = vec![];
    let _ = stream.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
}

fn half_a_body(server: &Server) {
    let mut stream = connect(server);
    let head = "POST /v1/completions HTTP/1.1\r\nhost: tread\r\ncontent-type: application/json\r\n\
                content-length: 1000\r\n\r\n{\"prompt\": \"To b";
    stream.write_all(head.as_bytes()).expect("sent");
}

fn half_a_body_and_stays(server: &Server) {
    let mut stream = connect(server);
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: tr").expect("sent");
    thread::sleep(Duration::from_secs(2));
}

fn a_billion_tokens(server: &Server) {
    let body = json!({"prompt": "Once", "max_tokens": 1_000_000_000, "ignore_eos": true, "stream": true});
    let mut stream = connect(server);
    post(&mut stream, "/v1/completions", body.to_string().as_bytes()).expect("sent");
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("a status");
    let status = String::from_utf8_lossy(&start);
    assert!(["HTTP/1.1 200", "HTTP/1.1 400"].contains(&&*status), "{status}");
}

fn a_megabyte(server: &Server) {
    let body = json!({"prompt": "to be or not to be ".repeat(1 << 16)});
    let (status, text) = answer(server, "/v1/completions", body.to_string().as_bytes());
    assert!(status == 400 && text.contains("1024") || status == 413, "{text}");
}

fn invalid_utf8(server: &Server) {
    refuses(server, b"{\"prompt\": \"\xff\xfe\xc3\x28\", \"messages\": []}", 400, "");
}

fn deep_json(server: &Server) {
    refuses(server, format!("{{\"prompt\": {}", "[".repeat(100_000)).as_bytes(), 400, "");
}

fn wrong_types(server: &Server) {
    refuses(server, br#"{"prompt": {"a": 1}, "messages": "none", "max_tokens": []}"#, 400, "");
    refuses(server, b"[1, 2", 400, "");
    refuses(server, b"", 400, "");
}

//! What does not fit is refused, and the message says what differs.

use std::process::Command;
use std::time::Duration;

use tread::afd::hello::Hello;
use tread::afd::transport::{Grpc, GrpcOptions, Transport as _};
use tread::afd::{AfdOptions, Members, Place};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_tests::server::Server;

use crate::models::{folder, model};
use crate::streams::executable;

pub(crate) const TREAD: &str = env!("CARGO_BIN_EXE_tread");

fn options(worker: &Server) -> AfdOptions {
    let members: Members = worker.address().to_string().parse().unwrap();
    AfdOptions { hold: Duration::from_secs(20), ..AfdOptions::new(members) }
}

#[track_caller]
pub(crate) fn refused(name: &str, afd: &AfdOptions, parts: &[&str]) {
    let error = format!("{:#}", executable(&model(name), afd).unwrap_err());
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn a_worker_that_does_not_fit_is_refused() {
    let worker =
        Server::ffn_worker(TREAD, &["nano", "--shard", "0/2", "--backend", "cpu", "--max-rows", "32"]);
    let good = options(&worker);
    let address = worker.address().to_string();
    let tiny = folder("step3-tiny");
    assert!(tiny.exists());
    refused("step3-tiny", &good, &["different models", &address]);
    refused("nano", &good, &["--max-rows", "48", "32"]);
    refused("nano", &AfdOptions { dtype: EdgeDType::BF16, ..good.clone() }, &["--afd-dtype", "bf16", "f32"]);
    let experts = AfdOptions { sharding: Sharding::Experts, ..good.clone() };
    refused("nano", &experts, &["--sharding", "experts", "layers"]);
    refused("nano", &AfdOptions { shards: Some(3), ..good }, &["shards", "3", "2"]);
}

/// Both sides look at the version: the worker refuses another one even of who does not.
#[test]
fn another_protocol_is_refused() {
    let worker = Server::ffn_worker(TREAD, &["nano", "--backend", "cpu"]);
    let place = Place::Address(worker.address().to_string());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let grpc = Grpc::new(GrpcOptions::default());
        let welcome = grpc.ask(&place).await.unwrap();
        assert_eq!((welcome.shard, welcome.terms.shards), (0, 1));
        let mut hello = Hello { terms: welcome.terms, max_rows: 1, slots: 1 };
        grpc.connect(&place, &hello).await.unwrap();
        hello.terms.protocol = 99;
        let error = grpc.connect(&place, &hello).await.unwrap_err().to_string();
        assert!(error.contains("versions of the protocol: attention has 99, the FFN worker 1"), "{error}");
    });
}

#[test]
fn who_does_not_know_the_token_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "open sesame\n").unwrap();
    let worker =
        Server::ffn_worker(TREAD, &["nano", "--backend", "cpu", "--token-file", file.to_str().unwrap()]);
    let with = |token: Option<&str>| {
        let grpc = GrpcOptions { token: token.map(str::to_owned), ..GrpcOptions::default() };
        AfdOptions { grpc, ..options(&worker) }
    };
    refused("nano", &with(None), &["asks for a token"]);
    refused("nano", &with(Some("open barley")), &["token", "is not the worker's"]);
    executable(&model("nano"), &with(Some("open sesame"))).unwrap();
}

#[test]
fn a_token_is_not_sent_abroad_in_the_clear() {
    let grpc = GrpcOptions { token: Some("secret".to_owned()), ..GrpcOptions::default() };
    let afd = AfdOptions { grpc, ..AfdOptions::new("192.0.2.1:4000".parse().unwrap()) };
    refused("nano", &afd, &["192.0.2.1:4000", "in the clear", "--worker-ca"]);
}

#[test]
fn nobody_there_is_said_after_a_while() {
    // A port that was free just now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let members: Members = format!("127.0.0.1:{port}").parse().unwrap();
    let afd = AfdOptions { hold: Duration::from_millis(300), ..AfdOptions::new(members) };
    refused("nano", &afd, &["no FFN worker answered", &port.to_string()]);
    refused(
        "nano",
        &AfdOptions { shards: Some(1), ..afd },
        &["no FFN worker for shard 0 of 1", &port.to_string()],
    );
}

#[test]
fn other_hosts_are_served_only_with_certificate_and_token() {
    let output =
        Command::new(TREAD).args(["worker", "ffn", "nano", "--listen", "0.0.0.0:0"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for part in ["--tls-cert", "--token-file", "127.0.0.1"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn devices_that_cannot_compute_together_are_refused() {
    let on = |ffn: &str| AfdOptions::new(ffn.parse().unwrap());
    // Its shared expert has 80 rows, and FP8 scales for 128.
    refused(
        "step3-tiny-fp8",
        &on("cpu+cpu"),
        &["2 devices", "80 rows", "blocks of 128", "FFN worker on cpu+cpu"],
    );
    for (args, expected) in [
        (["--device", "cpu+tpu"], "there is no device `tpu`"),
        (["--device", "cpu+wgpu"], "cpu and wgpu cannot compute a shard together"),
    ] {
        let output = Command::new(TREAD).args(["worker", "ffn", "nano"]).args(args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && message.contains(expected), "{message}");
    }
    let both = Command::new(TREAD).args(["worker", "ffn", "--device", "cpu", "--backend", "cpu"]).output();
    assert_eq!(both.unwrap().status.code(), Some(2));
}

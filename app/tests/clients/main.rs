//! Clients that people use, against the running server: the official Python package, the AI SDK, Grafana.

mod dashboard;

use std::env;
use std::path::Path;
use std::process::Command;

use tread_tests::server::Server;

const KEY: &str = "a-secret";

/// What `cargo xtask test` installed and named in the environment.
fn installed(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set; run `cargo xtask test`, which installs what it names and sets it")
    })
}

fn server(model: &str, backend: &str) -> Server {
    let args = [model, "--backend", backend, "--api-key", KEY];
    Server::start(env!("CARGO_BIN_EXE_tread"), &args)
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.output().expect("the client starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}, {}: {}\n{text}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
}

/// Runs every script of the `openai` package, one after the other.
fn openai(server: &Server) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/openai");
    for script in ["chat.py", "structured.py", "completions.py", "embeddings.py", "errors.py"] {
        let mut python = Command::new(installed("TREAD_PYTHON"));
        // Without -B it would leave compiled files in the clone.
        succeeds(python.arg("-B").arg(folder.join(script)).args([&server.url(""), KEY]));
    }
}

fn ai_sdk(server: &Server) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/ai_sdk.mjs");
    let mut node = Command::new("node");
    succeeds(node.arg(script).args([&installed("TREAD_AI_SDK"), &server.url(""), KEY]));
}

#[test]
fn nano_on_the_cpu() {
    let server = server("nano", "cpu");
    openai(&server);
    ai_sdk(&server);
}

#[test]
fn nano_on_wgpu() {
    let server = server("nano", "wgpu");
    openai(&server);
    ai_sdk(&server);
}

#[test]
fn smollm2() {
    let server = server(&installed("TREAD_SMOLLM2"), "cpu");
    openai(&server);
    ai_sdk(&server);
}

//! Who has no NIXL is told what to do about it, or does without. `cargo xtask test` gets it for all other tests.

use std::process::Command;

use tread::afd::transport::Carrier;
use tread::afd::{AfdOptions, Members};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_tests::server::Server;

use crate::clients::until;
use crate::models::model;
use crate::processes::{over, worker};
use crate::refusals::{TREAD, refused};
use crate::streams::{engine, executable, expected, run};

/// Where the library is looked for, and is not.
const NOWHERE: (&str, &str) = ("LD_LIBRARY_PATH", "");
/// How to get it.
const REMEDY: [&str; 3] = ["pip install", "LD_LIBRARY_PATH", "NIXL_PLUGIN_DIR"];

#[track_caller]
fn fails(args: &[&str]) {
    let (name, value) = NOWHERE;
    let output = Command::new(TREAD).args(args).env(name, value).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for part in REMEDY {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn who_asks_for_it_is_told_how_to_get_it() {
    fails(&["worker", "ffn", "nano", "--transport", "nixl"]);
    fails(&["run", "nano", "--ffn", "127.0.0.1:1", "--afd-transport", "nixl", "Who goes there?"]);
}

#[test]
fn who_does_not_ask_does_without() {
    let model = model("nano");
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let without =
        Server::ffn_worker_with(TREAD, &["nano", "--backend", "cpu"], &[NOWHERE, ("RUST_LOG", "info")]);
    let afd = over(Carrier::Auto, &[&without]);
    assert_eq!(
        run(&model, &mut engine(&model, executable(&model, &afd).unwrap()), |_| ()).unwrap(),
        expected
    );
    refused("nano", &over(Carrier::Nixl, &[&without]), &["does not offer NIXL"]);
    // What it logged may be on its way.
    until("the log says why", || without.log().contains("activations go by gRPC"));
    assert!(REMEDY.iter().all(|part| without.log().contains(part)), "{}", without.log());
}

#[test]
fn a_worker_may_want_nixl_alone() {
    let only = worker("nano", "0/1", &["--transport", "nixl"]);
    refused("nano", &over(Carrier::Grpc, &[&only]), &["by NIXL alone", "--afd-transport"]);
    executable(&model("nano"), &over(Carrier::Auto, &[&only])).unwrap();
    let none = worker("nano", "0/1", &["--transport", "grpc"]);
    refused("nano", &over(Carrier::Nixl, &[&none]), &["does not offer NIXL"]);
    executable(&model("nano"), &AfdOptions::new(none.address().to_string().parse::<Members>().unwrap()))
        .unwrap();
}

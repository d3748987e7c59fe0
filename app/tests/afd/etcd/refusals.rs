//! What does not fit, or is not there, is said.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use tread::afd::etcd::Etcd;
use tread::afd::{AfdOptions, Members};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;

use super::cluster::{Cluster, addresses};
use crate::models::model;
use crate::refusals::TREAD;
use crate::streams::{engine, executable, expected, run};

/// Why nothing comes of it.
fn error(afd: &AfdOptions) -> String {
    let afd = AfdOptions { hold: Duration::from_secs(5), ..afd.clone() };
    format!("{:#}", executable(&model("nano"), &afd).unwrap_err())
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn workers_that_do_not_fit_stay_out() {
    let cluster = Cluster::start();
    let other_model = cluster.worker("step3-tiny", "0/1", &[]);
    let other_type = cluster.worker("nano", "0/1", &["--afd-dtype", "bf16"]);
    let address = other_model.address().to_string();
    let found = error(&cluster.afd());
    says(&found, &[&address, "different models", "--afd-dtype: attention has f32, the FFN worker bf16"]);
    let fits = cluster.worker("nano", "0/1", &[]);
    let model = model("nano");
    let mut engine = engine(&model, executable(&model, &cluster.afd()).unwrap());
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    assert_eq!(run(&model, &mut engine, |_| ()).unwrap(), expected);
    let table = cluster.table().unwrap();
    assert_eq!(addresses(&table), [[fits.address().to_string()]]);
    assert_eq!(table.out.len(), 2);
    drop(other_type);
}

/// Who comes with another model to a cluster that has one hears of it, and changes nothing.
#[test]
fn a_prefix_is_for_one_model() {
    let cluster = Cluster::start();
    let _worker = cluster.worker("nano", "0/1", &[]);
    let model = model("nano");
    let mut engine = engine(&model, executable(&model, &cluster.afd()).unwrap());
    let before = cluster.table();
    let found = error(&AfdOptions { dtype: EdgeDType::BF16, ..cluster.afd() });
    says(
        &found,
        &["/tread/test/table", "--afd-dtype: attention has bf16, the FFN worker f32", "--etcd-prefix"],
    );
    assert_eq!(cluster.table(), before);
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    assert_eq!(run(&model, &mut engine, |_| ()).unwrap(), expected);
}

fn nowhere() -> String {
    // A port that was free just now.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("http://127.0.0.1:{port}")
}

#[test]
fn without_etcd_the_error_says_where_it_should_be() {
    let url = nowhere();
    let etcd = Etcd::new(vec![url.clone()], "/tread/test");
    let afd = AfdOptions::new(Members::Etcd(etcd));
    says(&error(&afd), &["no FFN worker answered", &url, "Connection refused", "does it run", "--etcd"]);
    let afd = AfdOptions { shards: Some(2), ..afd };
    says(&error(&afd), &["no FFN worker for shard 0 of 2 and shard 1 of 2", &url, "does it run"]);
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    let fails = |args: &[&str], parts: &[&str]| {
        let output = Command::new(TREAD).args(args).output().unwrap();
        assert!(!output.status.success());
        says(&String::from_utf8_lossy(&output.stderr), parts);
    };
    let url = nowhere();
    let tls = super::cluster::tls("cert.pem");
    let ca = ["--etcd-ca", tls.to_str().unwrap()];
    fails(&[&["run", "nano", "--etcd", &url, "x"], &ca[..]].concat(), &[&url, "https://"]);
    fails(&["run", "nano", "--etcd", "https://e:1", "x"], &["https://e:1", "--etcd-ca"]);
    fails(&["worker", "ffn", "nano", "--advertise", "a:1"], &["--etcd"]);
    fails(&["worker", "ffn", "nano", "--etcd", &url, "--advertise", "a"], &["--advertise", "host:port"]);
    let key = super::cluster::tls("key.pem");
    let [cert, key] = [&tls, &key].map(|path| path.to_str().unwrap());
    let everywhere = ["--listen", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key, "--token-file", cert];
    for kind in ["ffn", "attention"] {
        fails(&[&["worker", kind, "nano", "--etcd", &url], &everywhere[..]].concat(), &["--advertise"]);
    }
}

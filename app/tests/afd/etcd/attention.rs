//! Attention workers that register, and a server that finds them.

use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use tread_tests::server::Server;

use super::cluster::{Cluster, PREFIX, wait};
use crate::attention::{attention_worker, plain};
use crate::clients::{ask, post};
use crate::refusals::TREAD;

/// The records of attention workers.
fn records(cluster: &Cluster) -> Vec<Value> {
    let items = cluster.get(&format!("{PREFIX}/attention/"));
    items.iter().map(|(_, value)| serde_json::from_slice(value).unwrap()).collect()
}

fn is_registered(cluster: &Cluster, worker: &Server) -> bool {
    records(cluster).iter().any(|record| record["address"] == worker.address().to_string())
}

/// A worker that finds its FFNs in etcd, once it is registered there itself.
fn worker(cluster: &Cluster, more: &[&str]) -> Server {
    let flags = cluster.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--etcd-ttl", "2"]).collect();
    let worker = attention_worker(&[&flags, more].concat());
    wait("the worker is registered", || is_registered(cluster, &worker));
    worker
}

#[test]
fn attention_workers_are_found_come_and_go() {
    let cluster = Cluster::start();
    let _ffn = ["0/2", "1/2"].map(|shard| cluster.worker("nano", shard, &[]));
    let misfit = worker(&cluster, &["--context", "128"]);
    let first = worker(&cluster, &[]);
    let record = records(&cluster).into_iter().find(|r| r["address"] == first.address().to_string());
    let record = record.unwrap();
    assert!(record["device"].as_str().unwrap().contains("cpu"), "{record}");
    assert_eq!(record["terms"]["context"], 1024, "{record}");

    let flags = cluster.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = Server::start(TREAD, &[&["nano", "--attention", "etcd"], &flags[..]].concat());
    let expected = ask(&plain());
    assert_eq!(ask(&server), expected);
    wait("the misfit is told apart", || {
        server.log().contains("different --context: the server has 1024, the attention worker 128")
    });
    drop(misfit);

    // With nobody there, requests wait for who comes.
    first.signal("KILL");
    wait("the loss is seen", || server.log().contains("an attention worker is gone"));
    let body = json!({"prompt": "Once", "max_tokens": 4, "temperature": 0});
    let (answer, mut second) = thread::scope(|scope| {
        let answer = scope.spawn(|| post(&server, "/v1/completions", &body));
        let second = worker(&cluster, &[]);
        (answer.join().unwrap(), second)
    });
    assert_eq!(answer["usage"]["completion_tokens"], 4, "{answer}");
    assert_eq!(ask(&server), expected);

    // One that drains is off the list before it ends, and long before its lease would be over.
    let _third = worker(&cluster, &[]);
    second.terminate();
    assert!(second.wait().success(), "{}", second.log());
    assert!(!is_registered(&cluster, &second));
    assert_eq!(ask(&server), expected);
    wait("the lease of who was killed is over", || records(&cluster).len() == 1);
}

#[test]
fn where_etcd_is_must_be_said() {
    let output = Command::new(TREAD).args(["serve", "nano", "--attention", "etcd"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--attention etcd needs --etcd"), "{said}");
}

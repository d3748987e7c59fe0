//! Attention workers come and go under sixteen streams: every one says what it says undisturbed.

use std::thread;

use serde_json::{Value, json};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tread::afd::Place;
use tread::afd::transport::GrpcOptions;
use tread_tests::server::Server;

use crate::attention::{attention_worker, plain, server};
use crate::clients::{Said, Streams, post, status, try_post, until};
use crate::processes::{List, addresses};
use crate::refusals::TREAD;

fn expected() -> Vec<Said> {
    Streams::of(&plain()).undisturbed()
}

#[track_caller]
fn went_on(server: &Server) {
    assert!(server.log().contains("a request goes on at another engine"), "{}", server.log());
}

#[test]
fn a_killed_worker_loses_and_doubles_nothing() {
    let expected = expected();
    let ffn = ["0/2", "1/2"]
        .map(|shard| Server::ffn_worker(TREAD, &["nano", "--backend", "cpu", "--shard", shard]));
    let places = addresses(&[&ffn[0], &ffn[1]]);
    for tokens in [1, 150, 700] {
        let workers = [0, 1].map(|_| attention_worker(&["--ffn", &places]));
        let server = server(&addresses(&[&workers[0], &workers[1]]), &[]);
        let found = Streams::of(&server).disturbed(|streams| {
            streams.wait_for(tokens);
            workers[0].signal("KILL");
        });
        assert_eq!(found, expected, "after {tokens} tokens");
        went_on(&server);
        assert_eq!(status(&server, "/health"), 200);
    }
}

/// A worker that was stopped is missed; what it says when it goes on is heard by nobody, and it is taken in again.
#[test]
fn a_stopped_worker_that_goes_on_corrupts_nothing() {
    let expected = expected();
    let workers = [0, 1].map(|_| attention_worker(&[]));
    let server = server(&addresses(&[&workers[0], &workers[1]]), &[]);
    let found = Streams::of(&server).disturbed(|streams| {
        streams.wait_for(150);
        workers[0].signal("STOP");
        until("it is missed", || server.log().contains("an attention worker is gone"));
        workers[0].signal("CONT");
        until("it is back", || server.log().matches("an attention worker joins").count() == 3);
        // What was stopped is all there is.
        workers[1].signal("KILL");
    });
    assert_eq!(found, expected);
    went_on(&server);
    assert_eq!(Streams::of(&server).undisturbed(), expected);
}

#[test]
fn a_worker_that_drains_finishes_and_ends() {
    let expected = expected();
    let mut workers = [0, 1].map(|_| attention_worker(&[]));
    let server = server(&addresses(&[&workers[0], &workers[1]]), &[]);
    let found = Streams::of(&server).disturbed(|streams| {
        streams.wait_for(150);
        workers[0].terminate();
        // Whoever comes now is answered by the other one.
        post(&server, "/v1/completions", &json!({"prompt": "Once", "max_tokens": 1}));
    });
    assert_eq!(found, expected);
    assert!(workers[0].wait().success(), "{}", workers[0].log());
    assert!(!server.log().contains("goes on at another engine"), "{}", server.log());
    assert_eq!(Streams::of(&server).undisturbed(), expected);
    // The other one is asked over gRPC.
    let address = workers[1].address().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let check = HealthCheckRequest { service: "tread.attention.v1.Attention".to_owned() };
        let reply = HealthClient::new(channel).check(check).await.unwrap().into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving);
        tread::attention::drain(&Place::Address(address), &GrpcOptions::default()).await.unwrap();
    });
    assert!(workers[1].wait().success(), "{}", workers[1].log());
}

/// The list of workers is a file, and changes.
#[test]
fn workers_are_added_and_taken_away() {
    let expected = expected();
    let mut first = attention_worker(&[]);
    let list = List::of(&[&first]);
    let server = server(&format!("@{}", list.path.display()), &[]);
    let mut second = None;
    let found = Streams::of(&server).disturbed(|streams| {
        streams.wait_for(150);
        let worker = attention_worker(&[]);
        list.write(&[&first, &worker]);
        until("it is met", || server.log().matches("an attention worker joins").count() == 2);
        second = Some(worker);
        first.signal("KILL");
        first.wait();
    });
    assert_eq!(found, expected);
    went_on(&server);
    let second = second.unwrap();
    // One more, with the one before it taken off the list while it has work: that is finished.
    let third = attention_worker(&[]);
    let found = Streams::of(&server).disturbed(|streams| {
        streams.wait_for(150);
        list.write(&[&third]);
    });
    assert_eq!(found, expected);
    until("it was left", || server.log().contains("an attention worker has left"));
    drop(second);
    assert_eq!(Streams::of(&server).undisturbed(), expected);
}

fn once(server: &Server) -> (u16, Option<String>, Value) {
    try_post(server, "/v1/completions", &json!({"prompt": "Once", "max_tokens": 1}))
}

#[test]
fn without_a_worker_clients_are_told_to_come_again_until_there_is_one() {
    let mut worker = attention_worker(&[]);
    let place = worker.address().to_string();
    let server = server(&place, &["--worker-hold", "1"]);
    assert_eq!(once(&server).0, 200);
    worker.signal("KILL");
    worker.wait();
    let (refused, retry, error) = once(&server);
    assert_eq!((refused, retry.as_deref()), (503, Some("5")), "{error}");
    assert_eq!(error["error"]["code"], "unavailable");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("no attention worker") && message.contains(&place), "{message}");
    assert_eq!((status(&server, "/health"), status(&server, "/ready")), (503, 503));
    let _again = attention_worker(&["--listen", &place]);
    until("it is found", || status(&server, "/ready") == 200);
    assert_eq!(once(&server).0, 200);
}

/// Whoever is left behind waits for the next worker, and goes on there.
#[test]
fn streams_wait_for_a_worker_that_comes_back() {
    let expected = expected();
    let mut worker = attention_worker(&[]);
    let place = worker.address().to_string();
    let server = server(&place, &[]);
    let mut again = None;
    let found = Streams::of(&server).disturbed(|streams| {
        streams.wait_for(300);
        worker.signal("KILL");
        worker.wait();
        until("the loss is seen", || status(&server, "/health") == 503);
        again = Some(attention_worker(&["--listen", &place]));
    });
    assert_eq!(found, expected);
}

/// Each of them hears of its own requests only.
#[test]
fn servers_share_a_worker() {
    let expected = expected();
    let worker = attention_worker(&[]);
    let place = worker.address().to_string();
    let [one, other] = [0, 1].map(|_| server(&place, &[]));
    thread::scope(|scope| {
        let both = [&one, &other].map(|server| scope.spawn(|| Streams::of(server).undisturbed()));
        for said in both {
            assert_eq!(said.join().unwrap(), expected);
        }
    });
    // The end of one is no matter to the other.
    let found = Streams::of(&other).disturbed(|streams| {
        streams.wait_for(150);
        one.signal("KILL");
    });
    assert_eq!(found, expected);
}

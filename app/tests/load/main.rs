//! A server with many clients, good and bad.

mod client;
mod neighbours;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tread_tests::server::Server;

use client::{Stream, complete, metric, mixed};

fn server(backend: &str) -> Server {
    Server::start(env!("CARGO_BIN_EXE_tread"), &["nano", "--backend", backend])
}

/// Waits until the server has noticed that nobody wants anything any more, and has every block back.
#[track_caller]
fn comes_to_rest(server: &Server) {
    let names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
    let mut values = names.map(|name| metric(server, name));
    // A generous end, so that a leak is a failure and not a test that hangs.
    for _ in 0..600 {
        if values == [0.0; 3] {
            return;
        }
        thread::sleep(Duration::from_millis(100));
        values = names.map(|name| metric(server, name));
    }
    panic!("{names:?} stay at {values:?}");
}

/// Sixteen requests alone, then all of them arriving at random.
fn arrivals_change_nothing(backend: &str) {
    let server = server(backend);
    let requests = mixed(16);
    let alone: Vec<_> = requests.iter().map(|request| complete(&server, request)).collect();
    for (request, answer) in requests.iter().zip(&alone) {
        assert!(
            answer.tokens.iter().all(|t| t.len() as u64 == request["max_tokens"]),
            "{request} {answer:?}"
        );
    }
    thread::scope(|scope| {
        for (i, (request, alone)) in requests.iter().zip(&alone).enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(i as u64);
            let pause = Duration::from_millis(rng.random_range(0..500));
            let server = &server;
            scope.spawn(move || {
                thread::sleep(pause);
                assert_eq!(&complete(server, request), alone, "{request}");
            });
        }
    });
    comes_to_rest(&server);
}

#[test]
fn arrivals_change_nothing_on_the_cpu() {
    arrivals_change_nothing("cpu");
}

#[test]
fn arrivals_change_nothing_on_wgpu() {
    arrivals_change_nothing("wgpu");
}

#[test]
fn bad_neighbours_change_nothing() {
    let server = server("cpu");
    let requests = mixed(8);
    let alone: Vec<_> = requests.iter().map(|request| complete(&server, request)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (server, over) = (&server, &over);
        let bad = neighbours::ALL.map(|(name, neighbour)| {
            scope.spawn(move || {
                // At least once each, then again for as long as there is somebody to disturb.
                loop {
                    neighbour(server);
                    if over.load(Ordering::Relaxed) {
                        return name;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            })
        });
        let good = [0, 1, 2].map(|start| {
            let (requests, alone) = (&requests, &alone);
            scope.spawn(move || {
                for i in (0..requests.len()).map(|i| (i + start * 3) % requests.len()) {
                    assert_eq!(complete(server, &requests[i]), alone[i], "{}", requests[i]);
                }
            })
        });
        let results = good.map(|good| good.join());
        over.store(true, Ordering::Relaxed);
        for (bad, (name, _)) in bad.into_iter().zip(neighbours::ALL) {
            assert!(bad.join().is_ok(), "the neighbour who {name} was not answered as it should be");
        }
        assert!(results.iter().all(Result::is_ok));
    });
    comes_to_rest(&server);
    assert_eq!(complete(&server, &requests[0]), alone[0]);
}

#[cfg(unix)]
#[test]
fn a_server_told_to_stop_finishes_what_it_began() {
    let mut server = server("cpu");
    let request = |i: u64| json!({"prompt": "Once", "max_tokens": 400, "ignore_eos": true, "temperature": 1, "seed": i, "stream": true, "logprobs": 0});
    let alone: Vec<_> = (0..4).map(|i| complete(&server, &request(i))).collect();
    let mut streams: Vec<_> = (0..4).map(|i| Stream::open(&server, &request(i))).collect();
    server.terminate();
    while TcpStream::connect(server.address()).is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(server.running(), "it left before its answers were read");
    for (stream, alone) in streams.iter_mut().zip(&alone) {
        assert_eq!(&stream.rest(1), alone);
    }
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

//! `tread serve` over two pools on one machine: clients hear what one device says, whatever happens to FFN workers.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tread_tests::server::{Server, signal};

use crate::refusals::TREAD;

/// Sixteen answers asked for at the same time, greedy and drawn.
fn ask(server: &Server) -> Vec<Value> {
    let url = server.url("/v1/chat/completions");
    let asked: Vec<_> = (0..16)
        .map(|at| {
            thread::spawn({
                let url = url.clone();
                move || answer(&url, at)
            })
        })
        .collect();
    asked.into_iter().map(|answer| answer.join().unwrap()).collect()
}

fn answer(url: &str, at: u32) -> Value {
    let questions = ["Who goes there?", "What is the matter?", "Where is the king?", "Tell me a tale."];
    let body = json!({
        "model": "nano",
        "messages": [{"role": "user", "content": questions[at as usize % 4]}],
        "temperature": f64::from(at / 4) * 0.4,
        "seed": at,
        "max_tokens": 48,
    });
    let mut response = ureq::post(url).send_json(body).unwrap();
    let answer: Value = response.body_mut().read_json().unwrap();
    answer["choices"][0].clone()
}

/// The processes of the FFN workers that were started so far.
fn workers(server: &Server) -> Vec<u32> {
    let log = server.log();
    let pids = log.split("pid=").skip(1).filter_map(|rest| rest.split_whitespace().next());
    pids.map(|pid| pid.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()).collect()
}

fn running(process: u32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}

#[test]
fn both_pools_on_one_machine_say_what_one_device_says() {
    let expected = ask(&Server::start(TREAD, &["nano", "--backend", "cpu"]));
    for args in [&["--afd", "1A1F"][..], &["--afd", "2A2F"], &["--afd", "3A2F", "--sharding", "experts"]] {
        let server = Server::start(TREAD, &[&["nano", "--backend", "cpu"], args].concat());
        assert_eq!(ask(&server), expected, "{args:?}");
        let pids = workers(&server);
        assert!(pids.iter().all(|pid| running(*pid)), "{pids:?}");
        server.terminate();
        let mut server = server;
        assert!(server.wait().success());
        assert!(!pids.iter().any(|pid| running(*pid)), "workers end with their server: {pids:?}");
    }
}

#[test]
fn killed_workers_are_started_again_and_nobody_notices() {
    let expected = ask(&Server::start(TREAD, &["nano", "--backend", "cpu"]));
    let server = Server::start(TREAD, &["nano", "--backend", "cpu", "--afd", "2A2F"]);
    let first = workers(&server);
    assert_eq!(first.len(), 2);
    let found = thread::scope(|scope| {
        let found = scope.spawn(|| ask(&server));
        // Some time in the middle of it, whenever that is.
        thread::sleep(Duration::from_millis(120));
        first.iter().for_each(|pid| signal(*pid, "KILL"));
        found.join().unwrap()
    });
    assert_eq!(found, expected);
    // What it logged may be on its way.
    while workers(&server).len() < 4 {
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn workers_do_not_outlive_a_server_that_is_killed() {
    let mut server = Server::start(TREAD, &["nano", "--backend", "cpu", "--afd", "1A2F"]);
    let pids = workers(&server);
    assert!(pids.len() == 2 && pids.iter().all(|pid| running(*pid)));
    server.signal("KILL");
    server.wait();
    for _ in 0..200 {
        if !pids.iter().any(|pid| running(*pid)) {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("{pids:?} still run");
}

/// Whoever mixes back ends within a shard is told that tokens may depend on it.
#[test]
fn different_back_ends_of_a_shard_are_told_of() {
    for (ffn, shards, told) in [("cpu,wgpu", "1", true), ("cpu,cpu", "1", false), ("cpu,wgpu", "2", false)] {
        let server = Server::start(TREAD, &["nano", "--backend", "cpu", "--ffn", ffn, "--shards", shards]);
        // It serves when every shard has a worker; the other of a shard may come later.
        let joined = || server.log().matches("an FFN worker joins").count();
        while joined() < 2 {
            thread::sleep(Duration::from_millis(10));
        }
        let warned = || server.log().contains("workers of one shard are on different back ends");
        while told && !warned() {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(warned(), told, "{ffn}: {}", server.log());
    }
}
